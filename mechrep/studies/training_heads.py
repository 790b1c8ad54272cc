"""Do the same heads carry natural loops and induced repetition?  Curves over training, with intervals and controls.

* *Specialisation*: Gini coefficient of the sizes of the mean effects, 0 for heads that are all alike.  Control: in each
  text the heads change places at random, so each text stays as concentrated as it was and no head stands out over
  texts.
* *Agreement* of two text kinds: with a head's share of the summed sizes, ``a_h = |e_h| / sum |e|``, the overlap
  ``sum_h min(a_h, b_h)``: 1 if every head does as large a part in both, 0 if no head does anything in both.  Heads
  count by what they do; a correlation of ranks, given beside it, counts the many that do next to nothing as much as
  the one that does all.  Controls: the heads of one text kind change places, among all heads or within their layers.
  *Reliability*, the overlap of two random halves of the texts of one kind, says how alike two measurements of the very
  same thing are, at half of the texts.

Intervals draw prompts (and groups of random repeats) anew, the same draw at every checkpoint; noise spreads effects
over heads, so intervals lie a little low.

Source: the question is Mahaut and Franzon's (2025, arXiv 2504.01100); estimator and controls are mechrep's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from torch import Tensor, tensor

from mechrep.ablation.effects import Effects, Measure, detection, judge
from mechrep.errors import InputError
from mechrep.figures import ACCENT, AXIS, INK, new_figure, plain, styled, translucent
from mechrep.guards import guarded, one_of, some_of
from mechrep.measures.change_points import DRAWS, change_point, drawn_means, unit_draws
from mechrep.measures.mechanisms import INDUCED, INDUCTION, NATURAL, SEQUENCES, head_effects
from mechrep.measures.text_kind_design import gini, rank_correlation
from mechrep.provenance import Provenance
from mechrep.results import Result
from mechrep.stats import percentile_interval
from mechrep.studies.checkpoints import ModelMeasure, named_measure, revisions_of, step_name, step_row

if TYPE_CHECKING:
    import plotly.graph_objects as go

HEAD_EFFECTS = "head_effects"
ELIGIBLE = "induced, not looping"  # the published text kind: texts that do not loop by themselves
KINDS = (NATURAL, INDUCED, ELIGIBLE, INDUCTION)
PAIRS = ((NATURAL, INDUCED), (NATURAL, ELIGIBLE), (NATURAL, INDUCTION), (INDUCED, INDUCTION))
LEAST_UNITS = 8  # fewer texts say nothing about a mean over texts
_SHUFFLES, _SPLITS = 199, 50
_NAN = float("nan")


def head_effects_measure(prompts: int = 64, sequences: int = SEQUENCES, seed: int = 0) -> ModelMeasure:
    """:func:`~mechrep.measures.mechanisms.head_effects` for :func:`mechrep.studies.over_checkpoints`.

    Its numbers are many, one row per head and text kind: read them with :meth:`HeadHistory.of_checkpoints`.

    Example:
        >>> head_effects_measure(prompts=8).name
        'head_effects'
    """
    return named_measure(HEAD_EFFECTS, head_effects, {"prompts": prompts, "sequences": sequences, "seed": seed})


@dataclass(frozen=True, eq=False)
class HeadHistory(Result):
    """What every head does in every text, at every checkpoint.

    Attributes:
        natural: what a head adds to the logit of a natural loop's next token over that of its best rival; NaN where a
            prompt does not loop by itself.
        induced: the same for the next token of prompts that were shown twice.
        induction: attention of a head on what followed the earlier copy, on random repeats, for groups of texts.
        revisions: names of the checkpoints, in the order of training.
    """

    natural: Float[Tensor, "checkpoint prompt layer head"]
    induced: Float[Tensor, "checkpoint prompt layer head"]
    induction: Float[Tensor, "checkpoint group layer head"]
    revisions: Sequence[str]

    @classmethod
    def of_checkpoints(cls, effects: Effects) -> HeadHistory:
        """The history of the heads of which a table of :func:`mechrep.studies.over_checkpoints` has the numbers.

        Raises:
            InputError: a table without :func:`head_effects_measure`.
        """
        made = effects.notes["sources"]
        names = [measure.name for measure in effects.measures if made[measure.name] == HEAD_EFFECTS]
        if not names:
            measured = sorted(set(made.values()))
            raise InputError(f"measures {measured}", "head effects", "measure head_effects_measure() too")
        units = [tuple(map(int, name.split("/")[1].split("."))) for name in names if name.startswith(f"{NATURAL}/")]
        shape = (max(layer for layer, _ in units) + 1, max(head for _, head in units) + 1)
        tables = {
            kind: tensor(np.stack([effects.of(f"{kind}/{layer}.{head}") for layer, head in units], axis=2)).unflatten(
                2, shape
            )
            for kind in (NATURAL, INDUCED, INDUCTION)
        }
        provenance = Provenance(effects.provenance.model, effects.provenance.corpus, {"study": "head history"})
        return cls(provenance, **tables, revisions=revisions_of(effects))

    @guarded
    def of(self, kind: str) -> Float[np.ndarray, "checkpoint unit layer head"]:
        """Effects by text (attention by group of random repeats); NaN where a text is not of this kind.

        Raises:
            InputError: a kind that is none of :data:`KINDS`.
        """
        one_of("kind", kind, KINDS)
        if kind == ELIGIBLE:
            return np.where(np.isnan(self.natural.numpy()), self.induced.numpy(), np.nan)
        return {NATURAL: self.natural, INDUCED: self.induced, INDUCTION: self.induction}[kind].numpy()

    def counts(self) -> pd.DataFrame:
        """How many texts (or groups) each text kind has at each checkpoint: ``revision, kind, n, enough``."""
        rows = [
            (revision, kind, n, n >= LEAST_UNITS)
            for kind in KINDS
            for revision, n in zip(self.revisions, map(int, self.known(kind).sum(1)), strict=True)
        ]
        return pd.DataFrame(rows, columns=["revision", "kind", "n", "enough"])

    @guarded
    def means(self, kind: str) -> Float[np.ndarray, "checkpoint layer head"]:
        """Mean effects; NaN at a checkpoint with fewer than :data:`LEAST_UNITS` texts."""
        values, known = self.of(kind), self.known(kind)
        means = np.full((len(values), *values.shape[2:]), np.nan)
        for place, has in enumerate(known):
            if has.sum() >= LEAST_UNITS:
                means[place] = values[place, has].mean(0)
        return means

    def to_frame(self) -> pd.DataFrame:
        """One row per checkpoint, kind and head: mean over texts with its 95 % interval (bootstrap), texts."""
        rows = []
        for kind, place in itertools.product(KINDS, range(len(self.revisions))):
            drawn = self.drawn(kind, place)
            n, mean = int(self.known(kind)[place].sum()), self.means(kind)[place]
            ends = np.full((2, mean.size), np.nan) if drawn is None else np.percentile(drawn, [2.5, 97.5], axis=0)
            for unit, (low, high) in enumerate(ends.T):
                layer, head = divmod(unit, mean.shape[1])
                rows.append((self.revisions[place], kind, layer, head, mean[layer, head], low, high, n))
        return pd.DataFrame(
            rows, columns=["revision", "kind", "layer", "head", "value", "low", "high", "n"]
        )  # fmt: skip

    @guarded
    def known(self, kind: str) -> Bool[np.ndarray, "checkpoint unit"]:
        """Whether a text is of a kind."""
        return np.asarray(~np.isnan(self.of(kind)).any((2, 3)))

    @guarded
    def drawn(self, kind: str, place: int, draws: int = DRAWS, seed: int = 0) -> Float[np.ndarray, "draw head"] | None:
        """Mean effects of all heads, layer by layer, in every draw of texts; ``None`` where there are too few.

        The draws are the same at every checkpoint, and for all text kinds of prompts.
        """
        known = self.known(kind)[place]
        if known.sum() < LEAST_UNITS:
            return None
        values = np.where(known[:, None, None], self.of(kind)[place], np.nan).reshape(len(known), -1)
        own = seed * 1009 + int(kind == INDUCTION)  # groups of random repeats are no prompts
        return drawn_means(values.T, unit_draws(range(len(known)), draws, own))


@dataclass(frozen=True)
class HeadCurves:
    """Whether the same heads carry loops and repetition, over training.

    Attributes:
        history: what every head does in every text, at every checkpoint.
        counts: texts of each kind, see :meth:`HeadHistory.counts`.
        specialisation: see :func:`specialisation_curves`.
        agreement: see :func:`agreement_curves`.
        points: when these curves change, see :func:`curve_change_points`.
    """

    history: HeadHistory
    counts: pd.DataFrame
    specialisation: pd.DataFrame
    agreement: pd.DataFrame
    points: pd.DataFrame

    @classmethod
    def of(cls, history: HeadHistory, seed: int = 0) -> HeadCurves:
        """All curves of a history; the seed is that of draws, shuffles and halves."""
        return cls(
            history=history,
            counts=history.counts(),
            specialisation=specialisation_curves(history, seed=seed),
            agreement=agreement_curves(history, seed=seed),
            points=curve_change_points(history, seed=seed),
        )

    def last(self, curves: pd.DataFrame) -> pd.DataFrame:
        """Of each curve the last checkpoint with enough texts, with verdicts."""
        keys = [name for name in ("first", "second", "kind") if name in curves]
        rows = curves[curves["value"].notna()].groupby(keys, sort=False).tail(1)
        return judge(rows, family=f"{rows['measure'].iloc[0] if len(rows) else 'heads'} at the last checkpoint")


def specialisation_curves(history: HeadHistory, *, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """How concentrated the mean effects are: one row per text kind and checkpoint.

    Columns: ``revision, kind``, and what :func:`~mechrep.ablation.effects.judge` needs: ``value``, the Gini
    coefficient; ``effect``, its distance from the mean of heads that changed places in each text, with ``low, high``
    (95 %, bootstrap over texts) and the range of the control; ``n`` texts.  NaN where texts are too few.
    """
    rows = []
    for kind, (place, revision) in itertools.product(KINDS, enumerate(history.revisions)):
        drawn, known = history.drawn(kind, place, draws, seed), history.known(kind)[place]
        row = {"revision": revision, "kind": kind, "n": int(known.sum())}
        if drawn is None:
            rows.append(row | _unknown("specialisation"))
            continue
        value, shuffled = (
            float(gini(history.means(kind)[place].ravel())),
            _scattered(_values(history, kind, place), seed),
        )
        ends = percentile_interval(_finite(gini(drawn)))
        rows.append(row | _found("specialisation", value, {"heads shuffled": (shuffled, _SHUFFLES)}, ends, row["n"]))
    return pd.DataFrame(rows)


def agreement_curves(history: HeadHistory, *, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """Do two text kinds rest on the same heads?  One row per pair and checkpoint.

    Columns: ``revision, first, second``; what :func:`~mechrep.ablation.effects.judge` needs, with the overlap as
    ``value`` and the larger p of both controls; ``best``, the overlap if both ranked the heads alike;
    ``reliability_first, reliability_second``; ``rank``, Spearman's correlation of the sizes; ``lead_first,
    lead_second``, the head that does most in either, as ``"L2H0"``; ``same_lead``, share of draws in which it is
    the same; ``n_first, n_second`` texts.  NaN where texts are too few.

    Limits: with few heads, and few in a layer, there are few ways to change places: then no verdict can be reached.
    """
    rows = [
        {"revision": revision, "first": first, "second": second}
        | _agreement(history, (first, second), place, draws, seed)
        for first, second in PAIRS
        for place, revision in enumerate(history.revisions)
    ]
    return pd.DataFrame(rows)


def curve_change_points(history: HeadHistory, *, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """When the curves change, with verdicts: rows as of :func:`~mechrep.studies.checkpoints.change_points`.

    Curves: ``specialisation: KIND`` and ``agreement: FIRST / SECOND``; what is known at fewer than two checkpoints is
    left out.
    """
    rows = []
    for name, kinds, values, drawn in _curves(history, draws, seed):
        if (~np.isnan(values)).sum() >= 2:
            n = min(int(history.known(kind).any(0).sum()) for kind in kinds)
            rows.append(step_row(Measure(name, "score"), change_point(values, drawn, seed=seed), n, history.revisions))
    return judge(rows, family="steps of the heads' curves")


Summary = Callable[[Sequence[Float[np.ndarray, "draw head"]]], Float[np.ndarray, " draw"]]


def _curves(
    history: HeadHistory, draws: int, seed: int
) -> Iterator[tuple[str, tuple[str, ...], np.ndarray, np.ndarray]]:
    """Every curve by its name and text kinds, with the curve of each draw."""
    summaries: list[tuple[str, tuple[str, ...], Summary]] = [
        *((f"specialisation: {one}", (one,), lambda means: gini(means[0])) for one in KINDS),
        *((f"agreement: {a} / {b}", (a, b), lambda m: overlap(m[0], m[1])) for a, b in PAIRS),
    ]
    for name, kinds, summary in summaries:
        values, curves = np.full(len(history.revisions), np.nan), np.full((draws, len(history.revisions)), np.nan)
        means = [history.means(kind) for kind in kinds]
        for place in range(len(values)):
            parts = [part for kind in kinds if (part := history.drawn(kind, place, draws, seed)) is not None]
            if len(parts) == len(kinds):
                curves[:, place] = summary(parts)
                values[place] = summary([mean[place].reshape(1, -1) for mean in means])[0]
        yield name, kinds, values, curves


def _agreement(history: HeadHistory, pair: tuple[str, str], place: int, draws: int, seed: int) -> dict[str, Any]:
    known = [int(history.known(kind)[place].sum()) for kind in pair]
    facts: dict[str, Any] = {"n_first": known[0], "n_second": known[1]}
    drawn = [history.drawn(kind, place, draws, seed) for kind in pair]
    if drawn[0] is None or drawn[1] is None:
        more = dict.fromkeys(("best", "reliability_first", "reliability_second", "rank", "same_lead"), _NAN)
        return _unknown("agreement") | more | {"lead_first": "", "lead_second": ""} | facts
    ones, others = np.abs(drawn[0]), np.abs(drawn[1])
    one, other = (np.abs(history.means(kind)[place]) for kind in pair)
    flat = [one.reshape(1, -1), other.reshape(1, -1)]
    heads, (layers, width) = one.size, one.shape
    controls = {
        "heads shuffled": (_moved(one, other, seed, within_layers=False), math.factorial(heads) - 1),
        "shuffled within layers": (_moved(one, other, seed, within_layers=True), math.factorial(width) ** layers - 1),
    }
    leads = [divmod(int(sizes.argmax()), width) for sizes in flat]
    found = _found(
        "agreement", float(overlap(*flat)[0]), controls, percentile_interval(_finite(overlap(ones, others))), min(known)
    )
    return found | facts | {
        "best": float(overlap(np.sort(flat[0], axis=1), np.sort(flat[1], axis=1))[0]),
        "reliability_first": _reliability(_values(history, pair[0], place), seed),
        "reliability_second": _reliability(_values(history, pair[1], place), seed),
        "rank": float(rank_correlation(*flat)[0]),
        "same_lead": float((ones.argmax(1) == others.argmax(1)).mean()),
        "lead_first": f"L{leads[0][0]}H{leads[0][1]}",
        "lead_second": f"L{leads[1][0]}H{leads[1][1]}",
    }  # fmt: skip


def _found(
    measure: str,
    value: float,
    controls: Mapping[str, tuple[Float[np.ndarray, " draw"], int]],
    interval: tuple[float, float],
    n: int,
) -> dict[str, Any]:
    """A detection beside each kind of control, with how many different draws it has: the kind with the largest p."""
    rows = []
    for kind, (drawn, different) in controls.items():
        row = detection(measure, measure, value, drawn.tolist(), interval=interval, n=n)
        rows.append(row | {"controls": kind, "m": min(row["m"], different)})
    worst = max(rows, key=lambda row: (row["p"], -row["m"]))
    return worst | {"m": min(row["m"] for row in rows)}


def _unknown(measure: str) -> dict[str, Any]:
    return detection(measure, measure, _NAN, [])


def overlap(ones: Float[np.ndarray, "draw head"], others: Float[np.ndarray, "draw head"]) -> Float[np.ndarray, " draw"]:
    """``sum_h min(a_h, b_h)`` of the heads' shares of the summed sizes, row by row; NaN where a row does nothing.

    Example:
        >>> overlap(np.array([[3.0, 1.0]]), np.array([[1.0, 3.0]])).tolist()
        [0.5]
    """
    shares = []
    for values in (ones, others):
        sizes = np.abs(values)
        total = sizes.sum(1, keepdims=True)
        shares.append(np.divide(sizes, total, out=np.full_like(sizes, np.nan), where=total > 0))
    return np.minimum(*shares).sum(1)


def _values(history: HeadHistory, kind: str, place: int) -> Float[np.ndarray, "text head"]:
    known = history.known(kind)[place]
    return history.of(kind)[place][known].reshape(int(known.sum()), -1)


def _scattered(values: Float[np.ndarray, "text head"], seed: int) -> Float[np.ndarray, " shuffle"]:
    """Gini coefficients of means over texts in each of which the heads changed places."""
    generator = np.random.default_rng(seed)
    return gini(np.stack([generator.permuted(values, axis=1).mean(0) for _ in range(_SHUFFLES)]))


def _reliability(values: Float[np.ndarray, "text head"], seed: int) -> float:
    """Overlap of the mean effects of two random halves of the texts, mean over splits."""
    generator, half = np.random.default_rng(seed), len(values) // 2
    orders = np.stack([generator.permutation(len(values)) for _ in range(_SPLITS)])
    one, other = (np.abs(values[part].mean(1)) for part in (orders[:, :half], orders[:, half : 2 * half]))
    found = _finite(overlap(one, other))
    return float(np.mean(found)) if found else _NAN


def _moved(
    one: Float[np.ndarray, "layer head"], other: Float[np.ndarray, "layer head"], seed: int, *, within_layers: bool
) -> Float[np.ndarray, " shuffle"]:
    """Overlaps after the heads of one kind changed places."""
    generator = np.random.default_rng(seed)
    moved = [
        (generator.permuted(other, axis=1) if within_layers else generator.permutation(other.ravel())).ravel()
        for _ in range(_SHUFFLES)
    ]
    return overlap(np.repeat(one.reshape(1, -1), _SHUFFLES, axis=0), np.stack(moved))


def _finite(values: np.ndarray) -> list[float]:
    return values[~np.isnan(values)].tolist()


# --- figures ----------------------------------------------------------------------------------------------------------

KIND_WORDS = {
    NATURAL: "natural loops",
    INDUCED: "induced repetition",
    ELIGIBLE: "induced repetition, texts that do not loop",
    INDUCTION: "induction score",
}
_COLOURS = {NATURAL: ACCENT, INDUCED: "#3b82c4", ELIGIBLE: "#7a74e6", INDUCTION: "#5d8a3a"}
_MAPS = 6  # checkpoints side by side
_CELL, _PANEL = 26, 190  # pixels: of a layer in a map, of a panel of curves


def head_maps_figure(history: HeadHistory, revisions: Sequence[str] | None = None) -> go.Figure:
    """What every head does, one row of maps per text kind and one column per checkpoint.

    All maps of direct effects share one scale; the induction score has its own, 0 to 1.  A map with too few texts is
    empty.

    Args:
        history: of the heads.
        revisions: checkpoints side by side; by default up to six, spread evenly.

    Raises:
        InputError: no checkpoint, one twice, or one that is not in the history.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    known = list(history.revisions)
    if revisions is None:
        spread = np.linspace(0, len(known) - 1, min(_MAPS, len(known))).round().astype(int)
        chosen = [known[int(place)] for place in spread]
    else:
        chosen = list(revisions)
    some_of("revisions", chosen, known)
    kinds = (NATURAL, INDUCED, INDUCTION)
    numbers = [known.index(name) for name in chosen]
    means = {kind: history.means(kind)[numbers] for kind in kinds}
    scale = max(_largest(means[NATURAL]), _largest(means[INDUCED])) or 1.0
    figure = make_subplots(
        len(kinds),
        len(chosen),
        column_titles=_names(chosen),
        row_titles=[KIND_WORDS[kind] for kind in kinds],
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.015,
        vertical_spacing=0.06,
        figure=new_figure(),
    )
    for row, kind in enumerate(kinds, start=1):
        for column in range(len(chosen)):
            trace = go.Heatmap(
                z=means[kind][column],
                coloraxis="coloraxis2" if kind == INDUCTION else "coloraxis",
                hovertemplate="layer %{y}, head %{x}: %{z:.3f}<extra></extra>",
            )
            figure.add_trace(trace, row=row, col=column + 1)
    layers = history.natural.shape[2]
    figure.update_annotations(font_size=12)
    titled = styled(
        figure,
        title="What every head does, by text kind and checkpoint",
        subtitle=f"{history.provenance.model['name']}; direct effect on the logit difference, and attention",
        x="",
        y="",
    )
    titled.update_xaxes(AXIS | {"showgrid": False, "dtick": 1})
    titled.update_yaxes(AXIS | {"showgrid": False, "dtick": 1})
    titled.update_xaxes(title_text="head", row=len(kinds))
    titled.update_yaxes(title_text="layer", col=1)
    bar = {"thickness": 10, "len": 0.6, "x": 1.07}
    return titled.update_layout(
        coloraxis={"colorscale": "RdBu", "cmin": -scale, "cmax": scale, "colorbar": bar | {"y": 0.68}},
        coloraxis2={"colorscale": "Greens", "cmin": 0, "cmax": 1, "colorbar": bar | {"y": 0.15, "len": 0.3}},
        height=max(420, len(kinds) * layers * _CELL + 220),
        margin={"t": 140, "r": 110},
    )


def curves_figure(curves: pd.DataFrame, name: str) -> go.Figure:
    """Specialisation or agreement over training, one panel per text kind or pair, with intervals and controls.

    Grey: the upper end of the range of the controls.  Dotted, for agreement: the smaller reliability of the two kinds.

    Args:
        curves: of :func:`specialisation_curves` or :func:`agreement_curves`.
        name: of the model.
    """
    from plotly.subplots import make_subplots

    keys = [key for key in ("first", "second", "kind") if key in curves]
    known = [(kinds, part) for kinds, part in curves.groupby(keys, sort=False) if part["value"].notna().any()]
    parts = [(kinds, part) for kinds, part in known if part["value"].notna().sum() > 1] or known  # a point is no curve
    titles = [" and ".join(KIND_WORDS[str(kind)] for kind in kinds) for kinds, _ in parts]
    figure = make_subplots(max(1, len(parts)), 1, shared_xaxes=True, subplot_titles=titles or None, figure=new_figure())
    for row, (kinds, part) in enumerate(parts, start=1):
        _add_curve(figure, part, titles[row - 1], _COLOURS[str(kinds[0])], row)
        lines = {"upper end of the controls": (part["baseline"] + part["control_high"], "solid")}
        if "reliability_first" in part:
            halves = part[["reliability_first", "reliability_second"]].min(axis=1)
            lines["two halves of the texts of one kind"] = (halves, "dot")
        for label, (values, dash) in lines.items():
            figure.add_scatter(
                x=_names(part["revision"]), y=values, mode="lines", line={"color": INK, "width": 1.2, "dash": dash},
                name=label, showlegend=row == 1, row=row, col=1,
                hovertemplate=f"%{{x}}<br>{label}: %{{y:.2f}}<extra></extra>",
            )  # fmt: skip
    figure.update_annotations(font_size=13)
    agree = "first" in curves
    title = "Do the same heads do both?" if agree else "Concentration of effects on few heads over training"
    what = "overlap of what heads do" if agree else "Gini coefficient of what heads do"
    titled = styled(figure, title=title, subtitle=f"{name}; {what}, 95 % intervals", x="", y="")
    titled.update_xaxes(AXIS | {"showgrid": False, "showline": True})
    titled.update_yaxes(AXIS | {"range": [0, 1.05]})
    titled.update_xaxes(title_text="checkpoint", row=max(1, len(parts)))
    return titled.update_layout(height=190 + _PANEL * max(1, len(parts)), margin={"t": 150})


def _add_curve(figure: go.Figure, part: pd.DataFrame, label: str, colour: str, row: int) -> None:
    """A line with error bars; what is not known leaves a gap."""
    figure.add_scatter(
        x=_names(part["revision"]), y=part["value"], mode="lines+markers", name=label, showlegend=False,
        error_y={"array": part["high"] - part["effect"], "arrayminus": part["effect"] - part["low"],
                 "symmetric": False, "color": translucent(colour, 0.5), "thickness": 1.2},
        line={"color": colour, "width": 2}, marker={"size": 6}, hovertemplate="%{x}<br>%{y:.2f}<extra></extra>",
        row=row, col=1,
    )  # fmt: skip


def _names(revisions: Iterable[object]) -> list[str]:
    return [plain(step_name(str(name))) for name in revisions]


def _largest(values: Float[np.ndarray, "_ _ _"]) -> float:
    return float(np.nanmax(np.abs(values))) if (~np.isnan(values)).any() else 0.0
