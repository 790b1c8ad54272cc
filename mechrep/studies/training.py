"""Mechanisms over training: when each appears, which comes first, and whether the same heads carry loops and copying.

At every checkpoint, on the same texts: heads on random repeats, attention sinks, what becomes of fixed prompts
(:mod:`mechrep.studies.checkpoints`), and what every head does in natural loops and in induced copying
(:mod:`mechrep.studies.training_heads`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from mechrep.errors import InputError, ModelError, NothingFoundError
from mechrep.models import tiny
from mechrep.models.model import Model
from mechrep.provenance import Provenance
from mechrep.studies.checkpoints import (
    MEASURES,
    CheckpointResult,
    Measure,
    all_revisions,
    measure_named,
    over_checkpoints,
)
from mechrep.studies.training_heads import (
    APPEARING,
    EARLIER,
    HEAD_EFFECTS,
    HeadCurves,
    HeadHistory,
    head_effects_measure,
    judged_order,
    judged_points,
    starts_of,
)

TRAINING_MEASURES = (*MEASURES, HEAD_EFFECTS)
_PARTS = {"phrase_loops": "loops_naturally"}  # counted again within another measure: no rival of it
Revisions = str | Sequence[str] | Mapping[str, str | Path]


@dataclass(frozen=True)
class TrainingStudy:
    """Everything that the report shows about training.

    Attributes:
        model_name: whose training.
        checkpoints: every measure at every checkpoint; not those of single heads.
        values: its table, with intervals.
        points: change points, see :meth:`~mechrep.studies.checkpoints.CheckpointResult.change_points`, with a
            ``verdict`` on each, see :func:`~mechrep.studies.training_heads.judged_points`.
        starts: ``measure, first, low, high, largest, n, there``: what each measure is at the first checkpoint, and
            whether it was there from the start: the interval lies above half of the largest value of all checkpoints.
        order: which of two measures that appear is earlier, as a share of bootstrap draws, with a ``verdict``:
            ``"earlier"`` or ``"same checkpoints"`` in at least 95 % of the draws, else ``"not decided"``.
        heads: whether the same heads carry both; ``None`` where heads' effects were not measured.
        provenance: of the whole study.
    """

    model_name: str
    checkpoints: CheckpointResult
    values: pd.DataFrame
    points: pd.DataFrame
    starts: pd.DataFrame
    order: pd.DataFrame
    heads: HeadCurves | None
    provenance: Provenance

    @property
    def first(self) -> list[str]:
        """Measures that appear and that no other precedes: one, or several among which the order is not decided."""
        known = self.points[self.points["verdict"].isin(APPEARING)]["measure"].tolist()
        preceded = set(self.order[self.order["verdict"] == EARLIER]["second"])
        parts = {part for part, whole in _PARTS.items() if whole in known}
        return [name for name in known if name not in preceded | parts]

    def verdict_of(self, measure: str) -> str | None:
        """The verdict on a measure's step; ``None`` where it was not measured, or at one checkpoint only."""
        found = self.points[self.points["measure"] == measure]["verdict"]
        return None if found.empty else str(found.iloc[0])

    @property
    def starts_untrained(self) -> bool:
        """Whether the first checkpoint is the model before training."""
        return bool(self.checkpoints.steps[0] == 0)


def run_training_study(
    model: Model,
    *,
    revisions: Revisions = "grid",
    prompts: int = 64,
    store: str | Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> TrainingStudy:
    """Follow the training of a loaded model, by the checkpoints that are known under its name.

    Args:
        model: whose name, type and device are taken; its own weights are not read.
        revisions: ``"grid"``, a thinned list; ``"all"``; a list of names; or a mapping from names to folders, which
            serves a model without known checkpoints too.
        prompts: whose fate is followed.
        store: folder that lets a stopped study go on.
        seed: of random repeats and draws.
        progress: show a progress bar.

    Raises:
        NothingFoundError: no checkpoint of this model is known: a folder, a model object, a hub model whose revisions
            name no step or cannot be asked for.
        InputError: as :func:`training_study`.
        ModelError: a checkpoint that is known but cannot be loaded.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> study = run_training_study(model, revisions=["step0"], prompts=8)
        >>> study.checkpoints.revisions, study.first
        (['step0'], [])
    """
    if isinstance(revisions, str):
        _check_known(model.name)
    return training_study(
        model.name,
        revisions=revisions,
        prompts=prompts,
        dtype=model.dtype,
        device=model.device,
        store=store,
        seed=seed,
        progress=progress,
    )


def training_study(
    model: str | Path,
    *,
    revisions: Revisions = "grid",
    measures: Sequence[str] = TRAINING_MEASURES,
    prompts: int = 64,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    store: str | Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> TrainingStudy:
    """The study of a model that is named, not loaded; see :func:`run_training_study`.

    Args:
        model: an embedded model or a hub name.
        revisions: as there.
        measures: some of :data:`TRAINING_MEASURES`.
        prompts: as there.
        dtype: of the weights.
        device: of the weights.
        store: as there.
        seed: as there.
        progress: as there.

    Raises:
        InputError: no measure or an unknown one, revisions that do not exist, checkpoints of two tokenizers.
        ModelError: a checkpoint that cannot be found or loaded.

    Source: Olsson et al. 2022 (arXiv 2209.11895); Mahaut and Franzon 2025 (arXiv 2504.01100).
    """
    chosen = [_measure(name, prompts, seed) for name in measures]
    whole = over_checkpoints(
        chosen, model=model, revisions=revisions, store=store, dtype=dtype, device=device, progress=progress
    )
    return study_of_checkpoints(whole, prompts=prompts, seed=seed)


def study_of_checkpoints(whole: CheckpointResult, *, prompts: int, seed: int = 0) -> TrainingStudy:
    """The study that a result of :func:`~mechrep.studies.checkpoints.over_checkpoints` makes.

    Args:
        whole: with or without the effects of heads.
        prompts: whose fate was followed.
        seed: of the draws.

    Example:
        >>> units = {"loops_naturally": [[0.0] * 8] * 6 + [[1.0] * 8] * 6}
        >>> names, steps = [f"step{i}" for i in range(12)], [float(i) for i in range(12)]
        >>> provenance, sources = Provenance({"name": "mine"}, {}, {}), {"loops_naturally": "loops"}
        >>> result = CheckpointResult(provenance, names, steps, steps, [""] * 12, units, sources)
        >>> study_of_checkpoints(result, prompts=8).verdict_of("loops_naturally")
        'appears'
    """
    sources = list(dict.fromkeys(whole.sources.values()))
    result = whole.part([name for name in sources if name != HEAD_EFFECTS])
    values = result.to_frame(seed=seed)
    points = judged_points(result.change_points(seed=seed), values)
    appearing = points[points["verdict"].isin(APPEARING)]["measure"].tolist()
    config = {"study": "checkpoints", "measures": sources, "revisions": list(result.revisions)}
    return TrainingStudy(
        model_name=str(whole.provenance.model["name"]),
        checkpoints=result,
        values=values,
        points=points,
        starts=starts_of(values),
        order=judged_order(result.order(appearing, seed=seed)),
        heads=HeadCurves.of(HeadHistory.of_checkpoints(whole), seed) if HEAD_EFFECTS in sources else None,
        provenance=Provenance(whole.provenance.model, {"texts": prompts}, config | {"prompts": prompts, "seed": seed}),
    )


def _check_known(name: str) -> None:
    """Refuse a model of which no checkpoints are known.

    Raises:
        NothingFoundError: that.
    """
    reason = "a folder or an object" if "/" not in name or Path(name).expanduser().exists() else ""
    if name in tiny.NAMES:
        return
    if not reason:
        try:
            all_revisions(name)
            return
        except ModelError as error:
            reason = error.given
    raise NothingFoundError(
        f"checkpoints of {name!r} ({reason})",
        "a model whose revisions are known by its name",
        "pass revisions= as a mapping from names to folders",
    )


def _measure(name: str, prompts: int, seed: int) -> Measure:
    if name == HEAD_EFFECTS:
        return head_effects_measure(prompts, seed=seed)
    if name not in MEASURES:
        raise InputError(f"measure {name!r}", f"one of {sorted(TRAINING_MEASURES)}", "choose among these")
    return measure_named(name, **{"heads": {"seed": seed}, "loops": {"prompts": prompts}}.get(name, {}))
