"""Natural loops against copying that was asked for, from one list of prompts to the answer: do other heads carry it?"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from mechrep.ablation.old_controls import as_seeds
from mechrep.errors import InputError, NothingFoundError
from mechrep.generation.text_kinds import condition_flow, control_condition, induced_condition, natural_condition
from mechrep.generation.written import Builder
from mechrep.measures.head_scores import HeadScoreResult, score_heads
from mechrep.measures.natural_vs_induced import ConditionContrastResult, contrast_conditions
from mechrep.measures.text_kind_design import HeadEffects
from mechrep.models import tiny
from mechrep.models.model import Model
from mechrep.provenance import Provenance, provenance_of
from mechrep.studies.text_kind_effects import (
    LEVEL,
    HeadContrastResult,
    ablation_contrast,
    compare_heads,
    head_dissociation,
    patching_contrast,
)
from mechrep.text.corpus import Corpus, windows_of_text

BUILDERS: tuple[Builder, ...] = ("text", "cycle")
CONTROLS = ("random", "layer_matched")
_HALF = 0.5
Answer = Literal["other heads", "same heads", "not found"]


@dataclass(frozen=True)
class BuilderContrast:
    """One induced condition against natural loops.

    Attributes:
        builder: its name in all tables, ``"icl_from_cycle(2)"``.
        induced: its texts.
        seen: confidence, logit lens and direct attribution.
        cut: every head cut alone.
        patched: every head patched from texts without repetition; ``None`` where there is no such text.
        heads: ``attribution``, ``ablation`` (and ``patching``): the contrast of every head, corrected.
        comparison: by the same names, :func:`~mechrep.studies.text_kind_effects.compare_heads`.
        specialisation: by the same names, how concentrated the effects are.
        overlap: by the same names, which kinds of heads lead.
        sets: heads that lead, cut together in texts on which they were not found; ``None`` with too few texts.
        left_out: what could not be done, and why.
    """

    builder: str
    induced: Corpus
    seen: ConditionContrastResult
    cut: HeadContrastResult
    patched: HeadContrastResult | None
    heads: Mapping[str, pd.DataFrame]
    comparison: Mapping[str, pd.DataFrame]
    specialisation: Mapping[str, pd.DataFrame]
    overlap: Mapping[str, pd.DataFrame]
    sets: pd.DataFrame | None
    left_out: Mapping[str, str]

    def compared(self, measure: str, of: str = "ablation") -> pd.Series:
        """One row of a comparison."""
        return self.comparison[of].set_index("measure").loc[measure]

    @property
    def answer(self) -> Answer:
        """Do other heads carry the two, by ablation?

        They differ if the same heads carry less of the effect in both than with swapped labels (p below 0.05), or if
        single heads matter to a different degree (FDR below 0.05), more of them than in every placebo.  Then it is
        ``"other heads"`` if the same heads carry less than half, else ``"same heads"``, to another degree; half is a
        convention.  ``"not found"``: they are not found to differ.
        """
        common, differing = self.compared("common"), self.compared("differing_heads")
        if common["p"] >= LEVEL and not differing["value"] > differing["null_high"]:
            return "not found"
        return "other heads" if common["value"] < _HALF else "same heads"


@dataclass(frozen=True)
class ConditionStudy:
    """Everything that the report shows about natural loops and induced copies.

    Attributes:
        model_name: how the model was named.
        preset: whose protocol made the conditions.
        prompts: how many were tried.
        k: heads compared and cut together.
        op: what stood in the place of a cut head.
        natural: texts that loop by themselves.
        control: continuations that do not loop; ``None`` if every text loops.
        flow: for each builder, how many texts loop, may be shown again, and are copied.
        texts: for each builder, the same text by text.
        contrasts: for each builder that gave texts.
        scores: of all heads, on random repeats.
        new_tokens: tokens generated for all conditions; cutting and patching generate none.
        left_out: what could not be built, and why.
        provenance: of the whole study.
    """

    model_name: str
    preset: str
    prompts: int
    k: int
    op: str
    natural: Corpus
    control: Corpus | None
    flow: Mapping[str, pd.DataFrame]
    texts: Mapping[str, pd.DataFrame]
    contrasts: Mapping[str, BuilderContrast]
    scores: HeadScoreResult
    new_tokens: int
    left_out: Mapping[str, str]
    provenance: Provenance


@dataclass(frozen=True)
class _Settings:
    """What both builders share."""

    control: Corpus | None
    scores: HeadScoreResult
    k: int
    op: str
    draws: int
    patched: int
    store: str | Path | None
    seed: int
    progress: bool | None


def run_condition_study(
    model: Model,
    *,
    prompts: int = 200,
    length: int = 32,
    preset: str = "mechrep",
    builders: Sequence[Builder] = BUILDERS,
    copies: int = 2,
    max_new_tokens: int | None = None,
    k: int = 3,
    op: str = "mean",
    seeds: int | Sequence[int] = 5,
    patched: int = 48,
    held_out_text: str | None = None,
    store: str | Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> ConditionStudy:
    """Build natural loops, induced copies and controls from one list of prompts, and compare the heads behind them.

    Args:
        model: the model.
        prompts: how many, spread evenly over the text.
        length: tokens of each, without BOS.
        preset: see :mod:`mechrep.generation.written`.
        builders: ``"text"`` shows texts that do not loop, ``"cycle"`` the cycles of those that do.
        copies: how often they are shown.
        max_new_tokens: greedy tokens after each prompt; the preset's by default.
        k: heads compared and cut together, at most half of the model's.
        op: what stands in the place of a cut head: see :func:`~mechrep.studies.text_kind_effects.ablation_contrast`.
        seeds: draws of the control heads.
        patched: texts of each condition that are patched; 0 for none.
        held_out_text: where prompts are taken from; the embedded English text by default.
        store: folder that lets a stopped study go on: finished shards of cuts and patches are not computed again.
        seed: of splits, draws and the choice of donors.
        progress: show progress bars.

    Raises:
        NothingFoundError: no text loops by itself.
        InputError: an unknown preset or operation, prompts that leave no room in the context.
        StoreError: the store cannot be read or written.

    Source: Mahaut & Franzon 2025 (arXiv 2504.01100) for the question and the conditions; see
    :mod:`mechrep.measures.natural_vs_induced` for what is measured otherwise.

    Limits: the texts are written anew by every run; with greedy text they are the same ones.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> study = run_condition_study(
        ...     model, prompts=12, length=16, builders=["cycle"], max_new_tokens=100, k=1, op="zero", seeds=1, patched=0
        ... )
        >>> list(study.contrasts), len(study.contrasts["cycle"].heads["ablation"]) == study.scores.induction.numel()
        (['cycle'], True)
    """
    begin = 1 if model.default_prepend_bos and model.bos_id is not None else 0
    listed = windows_of_text(model, held_out_text or tiny.held_out_text(), length=length + begin, limit=prompts)
    common: dict[str, Any] = {"preset": preset, "max_new_tokens": max_new_tokens, "progress": progress}
    natural = natural_condition(model, listed, **common)
    left_out: dict[str, str] = {}
    control = _unless_nothing(lambda: control_condition(model, listed, **common), "control", left_out)
    k = min(k, max(1, model.anatomy.n_layers * model.anatomy.n_heads // 2))
    scores = score_heads(model, seed=seed)
    settings = _Settings(control, scores, k, op, len(as_seeds(seeds)), patched, store, seed, progress)
    flow, texts, contrasts, tokens = {}, {}, {}, int(natural.frame.attrs["new_tokens"])
    for shown in builders:
        found = condition_flow(model, listed, copies=copies, builder=shown, **common)
        flow[shown], texts[shown] = found.counts(), found.frame
        tokens += found.new_tokens - found.texts.new_tokens
        make = functools.partial(induced_condition, model, listed, copies, shown, **common)
        induced = _unless_nothing(make, shown, left_out)
        if induced is not None:
            contrasts[shown] = _contrast(model, natural, induced, settings)
    config = {
        "study": "conditions", "preset": preset, "builders": list(builders), "copies": copies, "length": length,
        "max_new_tokens": max_new_tokens, "k": k, "op": op, "seeds": list(as_seeds(seeds)), "patched": patched,
        "seed": seed,
    }  # fmt: skip
    return ConditionStudy(
        model_name=model.name,
        preset=preset,
        prompts=len(listed),
        k=k,
        op=op,
        natural=natural,
        control=control,
        flow=flow,
        texts=texts,
        contrasts=contrasts,
        scores=scores,
        new_tokens=tokens,
        left_out=left_out,
        provenance=provenance_of(model, listed, config),
    )


def _unless_nothing(make: Callable[[], Any], name: str, left_out: dict[str, str]) -> Any:
    """What was made, or ``None`` with the reason kept."""
    try:
        return make()
    except NothingFoundError as error:
        left_out[name] = str(error)
        return None


def _contrast(model: Model, natural: Corpus, induced: Corpus, settings: _Settings) -> BuilderContrast:
    """One builder, by all estimators."""
    control, left_out = settings.control, dict[str, str]()
    shared: dict[str, Any] = {"seed": settings.seed, "store": settings.store, "progress": settings.progress}
    conditions = [natural, induced, *([control] if control is not None else [])]
    seen = contrast_conditions(model, conditions, store=settings.store, progress=settings.progress)
    cut = ablation_contrast(model, conditions, ops=[settings.op], reference=control, **shared)
    patched = _patched(model, [natural, induced], settings, shared, left_out)
    effects = {"attribution": seen.head_effects(), "ablation": cut.head_effects()}
    if patched is not None:
        effects["patching"] = patched.head_effects()
    try:
        sets = head_dissociation(
            model, conditions[:2], k=settings.k, op=settings.op, controls=CONTROLS, draws=settings.draws,
            reference=control, strict=False, **shared,
        )  # fmt: skip
        left_out |= {f"control heads ({name})": why for name, why in sets.attrs["left_out"].items()}
    except InputError as error:  # too few texts to find heads in one half and to cut them in the other
        sets, left_out["sets of heads"] = None, str(error)
    (builder,) = set(induced.frame["builder"])
    return BuilderContrast(
        builder=builder,
        induced=induced,
        seen=seen,
        cut=cut,
        patched=patched,
        **_tables(effects, settings),
        sets=sets,
        left_out=left_out,
    )


def _patched(
    model: Model, conditions: list[Corpus], settings: _Settings, shared: dict[str, Any], left_out: dict[str, str]
) -> HeadContrastResult | None:
    """Heads patched from control texts, in the first texts of each condition."""
    if not settings.patched:
        return None
    if settings.control is None:
        left_out["patching"] = "no text without repetition to patch from"
        return None
    few = [corpus.select(range(min(settings.patched, len(corpus)))) for corpus in conditions]
    control = settings.control
    found = _unless_nothing(lambda: patching_contrast(model, few, control, **shared), "patching", left_out)
    if found is None:
        return None
    known = ~found.untouched.isnan().any(1)
    missing = {name for name in found.conditions} - {
        name for name, here in zip(found.conditions, known.tolist(), strict=True) if here
    }
    if missing:
        left_out["patching"] = f"no control text as long as any text of {', '.join(sorted(missing))}"
        return None
    return found


def _tables(effects: Mapping[str, HeadEffects], settings: _Settings) -> dict[str, dict[str, pd.DataFrame]]:
    """All tables of all measures."""
    return {
        "heads": {name: one.contrast() for name, one in effects.items()},
        "comparison": {name: compare_heads(one, settings.k, seed=settings.seed) for name, one in effects.items()},
        "specialisation": {name: one.specialisation() for name, one in effects.items()},
        "overlap": {name: one.overlap(settings.scores, settings.k) for name, one in effects.items()},
    }
