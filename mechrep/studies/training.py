"""Mechanisms over training: when each appears, which comes first, and whether the same heads carry both kinds of loops.

At every checkpoint, on the same texts: heads on random repeats, attention sinks, what becomes of fixed prompts
(:mod:`mechrep.measures.mechanisms`), and what every head does in natural loops and in induced repetition
(:mod:`mechrep.studies.training_heads`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from mechrep.ablation.effects import SUPPORTED, Effects
from mechrep.errors import InputError, NothingFoundError
from mechrep.figures import ACCENT, new_figure, plain, styled, translucent
from mechrep.guards import Count, guarded, one_of
from mechrep.measures.mechanisms import INDUCED, INDUCTION, NATURAL
from mechrep.models import tiny
from mechrep.models.model import Model
from mechrep.models.revisions import Revisions
from mechrep.provenance import Provenance
from mechrep.results import Shown
from mechrep.run import EFFORTS, Run
from mechrep.sections import Section
from mechrep.studies.checkpoints import (
    MEASURES,
    ModelMeasure,
    change_points,
    measure_named,
    order_of_steps,
    over_checkpoints,
    part_of,
    revisions_of,
    step_name,
    training_curves,
)
from mechrep.studies.training_heads import (
    HEAD_EFFECTS,
    HeadCurves,
    HeadHistory,
    curves_figure,
    head_effects_measure,
    head_maps_figure,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

TRAINING_MEASURES = (*MEASURES, HEAD_EFFECTS)
NAMES = {
    "loops_naturally": "natural loops",
    "phrase_loops": "loops of two tokens or more",
    "copies_in_icl": "repetition of a text shown twice",
    "induction": "induction heads",
    "self_finding": "duplicate-token heads",
    "previous_token": "previous-token heads",
    "copying": "gain from repetition",
    "sink": "attention sink",
    "sink_heads": "share of sink heads",
}
_CLAIMED = {"loops_naturally": "loops", "induction": "induction", "copying": "copying", "sink": "sink"}
_ORDERS = {
    "loops_naturally": "loops-order",
    "sink": "sink-order",
    "previous_token": "previous-order",
    "phrase_loops": "",
    "copying": "",
}
_PARTS = {"phrase_loops": "loops_naturally"}  # counted again within another measure: no rival of it
_AGREEMENTS = {(NATURAL, INDUCED): "same-heads", (NATURAL, INDUCTION): "loops-on-induction-heads"}


@dataclass(frozen=True)
class TrainingStudy(Shown):
    """When each mechanism appears, in which order, and whether the same heads carry loops and induced repetition.

    Attributes:
        model_name: whose training.
        checkpoints: every measure at every checkpoint; not those of single heads.
        points: change points, see :func:`~mechrep.studies.checkpoints.change_points`.
        order: which of two steps is earlier, see :func:`~mechrep.studies.checkpoints.order_of_steps`.
        heads: whether the same heads carry both; ``None`` where heads' effects were not measured.
        provenance: of the whole study.
    """

    model_name: str
    checkpoints: Effects
    points: pd.DataFrame
    order: pd.DataFrame
    heads: HeadCurves | None
    provenance: Provenance

    @property
    def first(self) -> list[str]:
        """Measures that appear (a supported step upwards) and that no other precedes: one, or several undecided."""
        known = self.points[(self.points["verdict"] == SUPPORTED) & (self.points["effect"] > 0)]["measure"].tolist()
        decided = self.order[(self.order["verdict"] == SUPPORTED) & self.order["first"].isin(known)]
        parts = {part for part, whole in _PARTS.items() if whole in known}
        return [name for name in known if name not in set(decided["second"]) | parts]

    def section(self) -> Section:
        """The section of the report."""
        return Section(
            "training", self.provenance, self._fields(), claims=self._claims(), tables=self._tables(),
            figures=self._figures(), variant="" if self._appearing else "no_steps",
        )  # fmt: skip

    @property
    def _appearing(self) -> list[tuple[str, str, list[str]]]:
        """Supported steps upwards, the earliest first: the checkpoints around them, and what appears there."""
        up = self.points[(self.points["verdict"] == SUPPORTED) & (self.points["effect"] > 0)]
        known, order = set(up["measure"]), revisions_of(self.checkpoints)
        up = up[~up["measure"].map(_PARTS).isin(known)]
        groups: dict[tuple[str, str], list[str]] = {}
        steps = [(str(before), str(after), str(name)) for before, after, name in
                 up[["before", "after", "measure"]].itertuples(index=False)]  # fmt: skip
        for before, after, name in sorted(steps, key=lambda one: (order.index(one[0]), order.index(one[1]))):
            groups.setdefault((step_name(before), step_name(after)), []).append(NAMES.get(name, name))
        return [(before, after, names) for (before, after), names in groups.items()]

    def _fields(self) -> dict[str, Any]:
        names, frame = revisions_of(self.checkpoints), self._values()
        fields: dict[str, Any] = {
            "model": self.model_name, "prompts": self.provenance.config["prompts"], "checkpoints": len(names),
            "begin": step_name(names[0]), "end": step_name(names[-1]),
            **dict.fromkeys(("value", "baseline", "reliability_first")),  # of claims where they are unknown
        }  # fmt: skip
        for measure, key in _CLAIMED.items():
            rows = frame[frame["measure"] == measure]["value"]
            ends = (float(rows.iloc[0]), float(rows.iloc[-1])) if len(rows) else (None, None)
            fields |= dict(zip((f"{key}_begin", f"{key}_end"), ends, strict=True))
        if self._appearing:
            (before, after, names), *others = self._appearing
            later = [name for _, _, group in others for name in group]
            fields |= {"earliest": ", ".join(names), "earliest_before": before, "earliest_after": after,
                       "later": ", ".join(later) or "none"}  # fmt: skip
        return fields

    def _values(self) -> pd.DataFrame:
        columns = ["measure", "selection", "value"]
        return self.checkpoints.to_frame()[columns] if self.checkpoints.measures else pd.DataFrame(columns=columns)

    def _claims(self) -> pd.DataFrame:
        tables = [
            self.points.assign(claim=self.points["measure"].map(_CLAIMED)),
            self.order.assign(claim=[_ORDERS.get(other, "") for other in self._others()]),
        ]
        if self.heads is not None:
            agreement, special = (self.heads.last(one) for one in (self.heads.agreement, self.heads.specialisation))
            pairs = zip(agreement["first"], agreement["second"], strict=True)
            tables.append(agreement.assign(claim=[_AGREEMENTS.get(pair, "") for pair in pairs]))
            tables.append(special.assign(claim=special["kind"].map({INDUCED: "specialised"})))
        rows = pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)
        rows = rows[rows["claim"].notna() & (rows["claim"] != "")].reset_index(drop=True)
        named = {name: rows[name].replace(NAMES) for name in ("first", "second") if name in rows}
        named |= {name: rows[name].map(step_name, na_action="ignore")
                  for name in ("before", "after", "revision") if name in rows}  # fmt: skip
        return rows.assign(**named)

    def _others(self) -> list[str]:
        """Of each pair the measure that is not induction."""
        pairs = self.order[["first", "second"]].itertuples(index=False) if len(self.order) else []
        return [first if second == INDUCTION else second for first, second in pairs]

    def _tables(self) -> dict[str, pd.DataFrame]:
        points, tables = self.points[self.points["explained"] > 0], {}  # what never changes has no step
        if len(points):
            named = {"before": "from", "after": "to", "baseline": "mean before", "value": "mean after",
                     "low": "change, low", "high": "change, high"}  # fmt: skip
            points = points.assign(
                measure=points["measure"].replace(NAMES),
                **{name: points[name].map(step_name) for name in ("before", "after")},
            )
            points = points.assign(**points[list(named)[2:]].round(3))
            tables["steps"] = points[["measure", *named, "verdict"]].rename(columns=named)
        if len(self.order):
            named = {"effect": "checkpoints apart", "earlier": "share of draws"}
            columns = ["first", "second", "effect", "low", "high", "earlier", "q", "verdict"]
            order = self.order.assign(**{name: self.order[name].replace(NAMES) for name in ("first", "second")})
            tables["order"] = order[columns].rename(columns=named)
        if self.heads is not None:
            tables["agreement"] = _agreement_table(self.heads.agreement)
        return tables

    def _figures(self) -> dict[str, go.Figure]:
        result, figures = self.checkpoints, {}
        if result.measures and len(result.conditions) > 1:
            changing = self.points.loc[self.points["explained"] > 0, "measure"].tolist()
            if changing:
                figures["measures"] = training_curves(_with_names(result.select(measures=changing)))
            if {"loops_naturally", "copies_in_icl"} <= {measure.name for measure in result.measures}:
                figures["flow"] = flow_figure(result)
        if self.heads is not None:
            figures["head-maps"] = head_maps_figure(self.heads.history)
            figures["specialisation"] = curves_figure(self.heads.specialisation, self.model_name)
            figures["agreement"] = curves_figure(self.heads.agreement, self.model_name)
        return figures


def _with_names(effects: Effects) -> Effects:
    measures = [dataclasses.replace(one, name=NAMES.get(one.name, one.name)) for one in effects.measures]
    return dataclasses.replace(effects, measures=measures)


def _agreement_table(agreement: pd.DataFrame) -> pd.DataFrame:
    rows = agreement[(agreement["first"] == NATURAL) & (agreement["second"] == INDUCED)]
    return pd.DataFrame(
        {
            "checkpoint": rows["revision"].map(step_name), "looping texts": rows["n_first"],
            "texts shown twice": rows["n_second"], "overlap": rows["value"], "low": rows["baseline"] + rows["low"],
            "high": rows["baseline"] + rows["high"], "controls, high": rows["baseline"] + rows["control_high"],
            "two halves": rows["reliability_first"],
        }
    ).reset_index(drop=True)  # fmt: skip


@guarded
def run_training_study(
    model: Model | str | Path,
    *,
    revisions: Revisions | None = None,
    measures: Sequence[str] = TRAINING_MEASURES,
    prompts: Count | None = None,
    run: Run | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> TrainingStudy:
    """Follow the training of a model by its checkpoints, one in memory at a time.

    Args:
        model: an embedded model or a hub name; of a loaded model, name, type and device are taken, not its weights.
        revisions: by default those of an embedded model that stand next to a thinned list of steps; for others
            ``"grid"``, ``"all"``, a list of names, or a mapping from names to folders.
        measures: some of :data:`TRAINING_MEASURES`.
        prompts: whose fate is followed, the same at every checkpoint; by default as many as the effort says.
        run: options; with a store, each measure of each checkpoint is kept.
        dtype: of the weights, where the model is named.
        device: of the weights, where the model is named.

    Raises:
        NothingFoundError: no revisions named, and none embedded.
        InputError: no measure or an unknown one, revisions that do not exist, checkpoints of two tokenizers.
        ModelError: a checkpoint that cannot be found or loaded.

    Source: Olsson et al. 2022 (arXiv 2209.11895); Mahaut and Franzon 2025 (arXiv 2504.01100).

    Example:
        >>> study = run_training_study("mechrep-tiny", revisions=["step0"], measures=["sinks"])
        >>> len(study.checkpoints.conditions), study.first
        (1, [])
    """
    options, name = run or Run(), str(model)
    prompts = 2 * EFFORTS[options.effort].sequences if prompts is None else prompts
    if isinstance(model, Model):
        name, dtype, device = model.source, model.dtype, model.device
    if revisions is None and name not in tiny.NAMES:  # a dozen models to fetch: not without being asked
        raise NothingFoundError(
            f"{name}, whose checkpoints are not embedded",
            "checkpoints at hand",
            'name them: revisions="grid", a list of names, or a mapping from names to folders',
        )
    whole = over_checkpoints(
        [_measure(one, prompts, options) for one in measures],
        model=name,
        revisions="grid" if revisions is None else revisions,
        run=options,
        dtype=dtype,
        device=device,
    )
    return study_of_checkpoints(whole, prompts=prompts, seed=options.seed)


def study_of_checkpoints(whole: Effects, *, prompts: int, seed: int = 0) -> TrainingStudy:
    """The study that a table of :func:`~mechrep.studies.checkpoints.over_checkpoints` makes.

    Args:
        whole: with or without the effects of heads.
        prompts: whose fate was followed.
        seed: of the draws.
    """
    sources = list(dict.fromkeys(whole.notes["sources"].values()))
    result = part_of(whole, [name for name in sources if name != HEAD_EFFECTS])
    points = change_points(result, seed=seed)
    known = set() if points.empty else set(points["measure"])
    pairs = [(other, INDUCTION) for other in _ORDERS if {other, INDUCTION} <= known]
    config = {"study": "training", "measures": sources, "revisions": revisions_of(result)}
    return TrainingStudy(
        model_name=str(whole.provenance.model["name"]),
        checkpoints=result,
        points=points,
        order=order_of_steps(result, pairs, seed=seed),
        heads=HeadCurves.of(HeadHistory.of_checkpoints(whole), seed) if HEAD_EFFECTS in sources else None,
        provenance=Provenance(whole.provenance.model, {"texts": prompts}, config | {"prompts": prompts, "seed": seed}),
    )


def _measure(name: str, prompts: int, run: Run) -> ModelMeasure:
    one_of("measure", name, TRAINING_MEASURES)
    repeats = {"sequences": EFFORTS[run.effort].sequences, "seed": run.seed}
    if name == HEAD_EFFECTS:
        return head_effects_measure(prompts, **repeats)
    return measure_named(name, **{"heads": repeats, "loops": {"prompts": prompts}}.get(name, {}))


_FLOW = 10  # checkpoints side by side
_NODE, _GAP = 0.05, 0.06  # half the width of a column, and the gap between states as a share of all prompts
_NEVER, _NATURAL, _COPIED = "neither", "loops naturally", "repeats when shown twice"
_STATES = {_NATURAL: ACCENT, _COPIED: "#3b82c4", _NEVER: "#747c88"}


def flow_figure(effects: Effects, revisions: Sequence[str] | None = None) -> go.Figure:
    """What becomes of the same prompts from checkpoint to checkpoint: loops naturally, repeats when shown, or neither.

    Args:
        effects: of :func:`~mechrep.studies.checkpoints.over_checkpoints` with the measure ``"loops"``.
        revisions: checkpoints side by side; by default up to ten, spread evenly.

    Raises:
        InputError: a table without that measure, or fewer than two checkpoints.
    """
    columns = ("loops_naturally", "copies_in_icl")
    measured, known = [measure.name for measure in effects.measures], revisions_of(effects)
    if not set(columns) <= set(measured):
        raise InputError(f"measures {measured}", f"{list(columns)}", 'measure "loops" too')
    if revisions is None:
        spread = np.linspace(0, len(known) - 1, min(_FLOW, len(known))).round().astype(int)
        chosen = [known[int(place)] for place in spread]
    else:
        chosen = list(revisions)
    unknown = [name for name in chosen if name not in known]
    if unknown or len(chosen) < 2:
        raise InputError(f"revisions {chosen}", f"two or more of {known}", "correct them")
    numbers = [known.index(str(name)) for name in chosen]
    loops, copies = (effects.of(name)[numbers] for name in columns)
    states = np.where(loops > 0.5, 0, np.where(np.nan_to_num(copies) > 0.5, 1, 2))  # [checkpoint prompt]
    figure = new_figure()
    for place, states_here in enumerate(states):
        for state, (low, high) in _stacked(states_here).items():
            corners = [place - _NODE, place + _NODE, place + _NODE, place - _NODE], [low, low, high, high]
            _fill(figure, *corners, list(_STATES)[state], f"{step_name(chosen[place])}: {high - low:.0f} prompts", 1.0)
    for place in range(len(chosen) - 1):
        for a, b, left, right in _flows(states[place], states[place + 1]):
            told = f"{list(_STATES)[a]} → {list(_STATES)[b]}: {left[1] - left[0]:.0f} prompts"
            _fill(figure, *_ribbon(place, left, right), list(_STATES)[a], told, 0.3)
    subtitle = f"{effects.provenance.model['name']}, {loops.shape[1]} prompts, the same at every checkpoint"
    styled(figure, title="What becomes of each prompt", subtitle=subtitle, x="", y="prompts")
    figure.update_xaxes(tickvals=list(range(len(chosen))), ticktext=[step_name(revision) for revision in chosen])
    figure.update_yaxes(showticklabels=False, ticks="", showgrid=False)  # gaps between states are no prompts
    return figure.update_layout(hovermode="closest")


def _stacked(states: np.ndarray) -> dict[int, tuple[float, float]]:
    """From where to where each state reaches, with gaps between them."""
    counts, low, found = [int((states == state).sum()) for state in range(len(_STATES))], 0.0, {}
    for state in reversed(range(len(_STATES))):
        if counts[state]:
            found[state] = (low, low + counts[state])
            low += counts[state] + _GAP * len(states)
    return found


def _flows(
    before: np.ndarray, after: np.ndarray
) -> Iterator[tuple[int, int, tuple[float, float], tuple[float, float]]]:
    """From which state to which, and where the prompts that go that way stand on the left and on the right."""
    left, right = ({state: ends[0] for state, ends in _stacked(one).items()} for one in (before, after))
    for a in reversed(range(len(_STATES))):
        for b in reversed(range(len(_STATES))):
            if count := int(((before == a) & (after == b)).sum()):
                yield a, b, (left[a], left[a] + count), (right[b], right[b] + count)
                left[a] += count
                right[b] += count


def _ribbon(place: int, left: tuple[float, float], right: tuple[float, float]) -> tuple[list[float], list[float]]:
    """Outline of a band that leaves one column level and reaches the next one level."""
    steps = np.linspace(0.0, 1.0, 13)
    rise = steps**2 * (3 - 2 * steps)
    x = place + _NODE + (1 - 2 * _NODE) * steps
    lower, upper = (left[end] + (right[end] - left[end]) * rise for end in (0, 1))
    return [*x.tolist(), *x[::-1].tolist()], [*lower.tolist(), *upper[::-1].tolist()]


def _fill(figure: go.Figure, x: list[float], y: list[float], state: str, told: str, opacity: float) -> None:
    """An area in the colour of a state; the first of each state stands in the legend."""
    named = {trace["legendgroup"] for trace in figure.data}  # pyright: ignore[reportIndexIssue]
    figure.add_scatter(
        x=x,
        y=y,
        fill="toself",
        mode="none",
        showlegend=state not in named,
        fillcolor=translucent(_STATES[state], opacity),
        name=plain(state),
        legendgroup=state,
        text=plain(told),
        hoverinfo="text",
        hoveron="fills",
    )
