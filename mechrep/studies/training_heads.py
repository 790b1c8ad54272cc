"""The measure behind "do the same heads carry both": what every head does in loops and in copying, at one checkpoint.

Three numbers per head, each with its units, in two passes over the model:

* ``natural``: direct logit attribution of the loop's next token, mean over the copies that follow a whole cycle, for
  every prompt that loops by itself;
* ``induced``: the same for the next token of *every* prompt, shown twice.  The published condition shows only those
  that do not loop by themselves; which these are can be told from ``natural``, where they have no value.  Showing all
  keeps the texts the same from checkpoint to checkpoint, whatever the model has learned to loop on meanwhile;
* ``induction``: attention on what followed the earlier copy, on random repeats, for groups of texts.

Both effects are teacher-forced, so they exist before the model copies anything.

``HeadHistory``: what every head does in natural loops and in induced copying, at every checkpoint.

Curves are made from it (:mod:`mechrep.studies.training_heads`): how specialised the heads are, whether two
conditions rest on the same ones, and when either changes.

Do the same heads carry natural loops and induced copying?  Curves over training, with intervals and controls.

* *Specialisation*: Gini coefficient of the sizes of the mean effects, 0 for heads that are all alike.  Control: in each
  text the heads change places at random, so each text stays as concentrated as it was and no head stands out over
  texts.
* *Agreement* of two conditions: with a head's share of the summed sizes, ``a_h = |e_h| / sum |e|``, the overlap
  ``sum_h min(a_h, b_h)``: 1 if every head does as large a part in both, 0 if no head does anything in both.  Heads
  count by what they do; a correlation of ranks, given beside it, counts the many that do next to nothing as much as
  the one that does all.  Controls: the heads of one condition change places, among all heads or within their layers.
  *Reliability*, the overlap of two random halves of the texts of one condition, says how alike two measurements of the
  very same thing are, at half of the texts.
* Change points of these curves.

Intervals draw prompts (and groups of random repeats) anew, the same draw at every checkpoint; noise spreads effects
over heads, so intervals lie a little low.

What change points say: which mechanism appears, which of two comes first, and what was there from the start.

Figures of heads over training: maps by condition and checkpoint, specialisation, and agreement of conditions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from torch import Tensor, tensor

from mechrep.errors import InputError, NothingFoundError
from mechrep.figures import ACCENT, AXIS, DASHES, INK, plain, styled, translucent
from mechrep.generation.text_kinds import natural_condition
from mechrep.measures.natural_vs_induced import contrast_conditions
from mechrep.measures.text_kind_design import gini, rank_correlation
from mechrep.models.model import Model
from mechrep.provenance import Provenance
from mechrep.results import Result
from mechrep.stats import percentile_interval
from mechrep.studies.checkpoints import (
    PERIOD,
    SEQUENCES,
    CheckpointResult,
    Measure,
    Numbers,
    bootstrap_means,
    change_point_of_draws,
    draw_counts,
    fixed_prompts,
    named_measure,
    order_p_value,
    scores_by_group,
)
from mechrep.text.corpus import Corpus
from mechrep.text.stimuli import random_repeats

if TYPE_CHECKING:
    import plotly.graph_objects as go

HEAD_EFFECTS = "head_effects"
NATURAL, INDUCED, INDUCTION = "natural", "induced", "induction"
_SHOWN, _COPIES = 2, 2  # times a text is shown; copies beyond the first that are looked at


def head_effects_measure(prompts: int = 64, sequences: int = SEQUENCES, seed: int = 0) -> Measure:
    """:func:`head_effects` for :func:`mechrep.studies.over_checkpoints`.

    Its numbers are many, one series per head and condition: read them with
    :meth:`mechrep.studies.training_heads.HeadHistory.of_checkpoints`.

    Args:
        prompts: how many, the same that loops are counted on.
        sequences: random repeats.
        seed: of the random repeats.

    Example:
        >>> head_effects_measure(prompts=8).name
        'head_effects'
    """
    return named_measure(HEAD_EFFECTS, head_effects, {"prompts": prompts, "sequences": sequences, "seed": seed})


def head_effects(model: Model, prompts: int = 64, sequences: int = SEQUENCES, seed: int = 0) -> Numbers:
    """Effects of all heads: ``natural/L.H`` and ``induced/L.H`` by prompt, ``induction/L.H`` by group of repeats.

    A prompt without a natural loop has NaN there; there may be none with one.

    Args:
        model: the model.
        prompts: how many.
        sequences: random repeats.
        seed: of the random repeats.

    Source: the question is Mahaut and Franzon's (2025, arXiv 2504.01100), the estimator direct logit attribution, see
    :mod:`mechrep.measures.natural_vs_induced`.

    Limits: direct attribution sees what a head writes for this token, not what later parts make of it.
    """
    corpus, limit = fixed_prompts(model, prompts)
    conditions = [shown_twice(model, corpus)]
    with suppress(NothingFoundError):  # that no prompt loops is a fact of this checkpoint, and NaN says it
        conditions.append(natural_condition(model, corpus, max_new_tokens=limit, progress=False))
    result = contrast_conditions(model, conditions, copies=_COPIES, progress=False)
    place = {str(name): i for i, name in enumerate(corpus.frame["id"])}
    values = result.head_effects().values
    shape = (len(corpus), *values.shape[1:])
    tables: dict[str, np.ndarray[Any, Any]] = {name: np.full(shape, np.nan) for name in (NATURAL, INDUCED)}
    for condition, prompt, effects in zip(result.conditions, result.prompts, values, strict=True):
        tables[condition][place[prompt]] = effects
    repeats = random_repeats(model, n=min(PERIOD, (model.anatomy.n_ctx - 1) // 2), sequences=sequences, seed=seed)
    tables[INDUCTION] = scores_by_group(model, repeats, ["induction"])["induction"].double().numpy()
    return {
        f"{name}/{layer}.{head}": table[:, layer, head].tolist()
        for name, table in tables.items()
        for layer in range(table.shape[1])
        for head in range(table.shape[2])
    }


def shown_twice(model: Model, prompts: Corpus) -> Corpus:
    """Every prompt twice, and once more as what is expected; a BOS stays in front and is not repeated.

    The condition is that of :func:`mechrep.induced_condition`, whatever the texts do by themselves.

    Args:
        model: the model.
        prompts: the fixed list.
    """
    rows, starts, periods = [], [], []
    for i in range(len(prompts)):
        prompt = prompts.row(i)
        begin = prompt[:1] if prompt[0] == model.bos_id else []
        copy = prompt[len(begin) :]
        rows.append([*begin, *copy * (_SHOWN + 1)])
        starts.append(len(begin))
        periods.append(len(copy))
    return Corpus.from_tokens(rows, model=model, frame=_facts(prompts, starts, periods), bos_policy=prompts.bos_policy)


def _facts(prompts: Corpus, starts: Sequence[int], periods: Sequence[int]) -> pd.DataFrame:
    """What the builders of conditions say of each text."""
    frame = pd.DataFrame({"prompt": prompts.frame["id"].tolist(), "source": prompts.frame["source"].tolist()})
    frame = frame.assign(condition=INDUCED, builder=f"every_text_shown({_SHOWN})", shown=_SHOWN, seam=True)
    frame["id"] = frame["prompt"] + "/" + frame["builder"]
    frame["start"], frame["period"] = pd.array(list(starts), "Int64"), pd.array(list(periods), "Int64")
    frame["onset"] = frame["start"] + frame["period"]
    frame["prompt_length"] = frame["start"] + _SHOWN * frame["period"]
    return frame


ELIGIBLE = "induced, not looping"  # the published condition: texts that do not loop by themselves
CONDITIONS = (NATURAL, INDUCED, ELIGIBLE, INDUCTION)
LEAST_UNITS = 8  # fewer texts say nothing about a mean over texts
DRAWS = 1000


@dataclass(frozen=True, eq=False)
class HeadHistory(Result):
    """What every head does in every text, at every checkpoint.

    Attributes:
        natural: what a head adds to the logit of a natural loop's next token over that of its best rival; NaN where a
            prompt does not loop by itself.
        induced: the same for the next token of prompts that were shown twice.
        induction: attention of a head on what followed the earlier copy, on random repeats, for groups of texts.
        revisions: names of the checkpoints, in the order of training.
        steps: of training; NaN where unknown.
        tokens: seen; NaN where unknown.
    """

    natural: Float[Tensor, "checkpoint prompt layer head"]
    induced: Float[Tensor, "checkpoint prompt layer head"]
    induction: Float[Tensor, "checkpoint group layer head"]
    revisions: Sequence[str]
    steps: Sequence[float]
    tokens: Sequence[float]

    @classmethod
    def of_checkpoints(cls, result: CheckpointResult) -> HeadHistory:
        """The history of the heads of which a result of :func:`mechrep.studies.over_checkpoints` has the numbers.

        Args:
            result: measured with :func:`~mechrep.studies.training_heads.head_effects_measure`.

        Raises:
            InputError: a result without that measure.
        """
        names = [name for name in result.measures if result.sources[name] == HEAD_EFFECTS]
        if not names:
            raise InputError(f"measures {result.measures[:6]}", "head effects", "measure head_effects_measure() too")
        units = [tuple(map(int, name.split("/")[1].split("."))) for name in names if name.startswith(f"{NATURAL}/")]
        shape = (max(layer for layer, _ in units) + 1, max(head for _, head in units) + 1)
        tables = {
            condition: tensor(
                np.stack([result.of(f"{condition}/{layer}.{head}") for layer, head in units], axis=2)
            ).unflatten(2, shape)
            for condition in (NATURAL, INDUCED, INDUCTION)
        }
        return cls(
            Provenance(result.provenance.model, result.provenance.corpus, {"study": "head history"}),
            **tables,
            revisions=list(result.revisions),
            steps=list(result.steps),
            tokens=list(result.tokens),
        )

    def of(self, condition: str) -> Float[np.ndarray, "checkpoint unit layer head"]:
        """Effects by text (attention by group of random repeats); NaN where a text is not of this condition.

        Args:
            condition: ``"natural"``, ``"induced"``, ``"induced, not looping"`` or ``"induction"``.

        Raises:
            InputError: another condition.
        """
        if condition not in CONDITIONS:
            raise InputError(f"condition {condition!r}", f"one of {CONDITIONS}", "choose one of these")
        if condition == ELIGIBLE:
            return np.where(np.isnan(self.natural.numpy()), self.induced.numpy(), np.nan)
        return {NATURAL: self.natural, INDUCED: self.induced, INDUCTION: self.induction}[condition].numpy()

    def counts(self) -> pd.DataFrame:
        """How many texts (or groups) each condition has at each checkpoint: ``revision, condition, n, enough``."""
        rows = [
            (revision, condition, n, n >= LEAST_UNITS)
            for condition in CONDITIONS
            for revision, n in zip(self.revisions, map(int, self.known(condition).sum(1)), strict=True)
        ]
        return pd.DataFrame(rows, columns=["revision", "condition", "n", "enough"])

    def means(self, condition: str) -> Float[np.ndarray, "checkpoint layer head"]:
        """Mean effects; NaN at a checkpoint with fewer than :data:`LEAST_UNITS` texts."""
        values, known = self.of(condition), self.known(condition)
        means = np.full((len(values), *values.shape[2:]), np.nan)
        for place, has in enumerate(known):
            if has.sum() >= LEAST_UNITS:
                means[place] = values[place, has].mean(0)
        return means

    def to_frame(self) -> pd.DataFrame:
        """One row per checkpoint, condition and head: mean over texts with its 95 % interval (bootstrap), texts."""
        rows = []
        for condition, place in itertools.product(CONDITIONS, range(len(self.revisions))):
            drawn = self.drawn(condition, place)
            n, mean = int(self.known(condition)[place].sum()), self.means(condition)[place]
            ends = np.full((2, mean.size), np.nan) if drawn is None else np.percentile(drawn, [2.5, 97.5], axis=0)
            for unit, (low, high) in enumerate(ends.T):
                layer, head = divmod(unit, mean.shape[1])
                rows.append((self.revisions[place], condition, layer, head, mean[layer, head], low, high, n))
        return pd.DataFrame(
            rows, columns=["revision", "condition", "layer", "head", "value", "low", "high", "n"]
        )  # fmt: skip

    def known(self, condition: str) -> Bool[np.ndarray, "checkpoint unit"]:
        """Whether a text is of a condition."""
        return np.asarray(~np.isnan(self.of(condition)).any((2, 3)))

    def drawn(
        self, condition: str, place: int, draws: int = DRAWS, seed: int = 0
    ) -> Float[np.ndarray, "draw head"] | None:
        """Mean effects of all heads, layer by layer, in every draw of texts; ``None`` where there are too few.

        The draws are the same at every checkpoint, and for all conditions of prompts.

        Args:
            condition: as in :meth:`of`.
            place: number of the checkpoint.
            draws: of the bootstrap.
            seed: of the draws.
        """
        known = self.known(condition)[place]
        if known.sum() < LEAST_UNITS:
            return None
        values = np.where(known[:, None, None], self.of(condition)[place], np.nan).reshape(len(known), -1)
        own = seed * 1009 + int(condition == INDUCTION)  # groups of random repeats are no prompts
        return bootstrap_means(values.T, draw_counts(len(known), draws, own))


PAIRS = ((NATURAL, INDUCED), (NATURAL, ELIGIBLE), (NATURAL, INDUCTION), (INDUCED, INDUCTION))
ALIKE, NOT_ALIKE, TOO_FEW = "beyond controls", "not beyond controls", "too few texts"
CANNOT_TELL = "controls cannot be beaten"
_NEARLY = 0.95  # of the best overlap; controls that reach so much leave no room for a finding
_SHUFFLES, _SPLITS = 200, 50
_NAN = float("nan")
_UNKNOWN = dict.fromkeys(
    [
        "value", "low", "high", "random_high", "layer_high", "best", "reliability_first", "reliability_second",
        "rank", "rank_low", "rank_high", "shared", "shared_low", "shared_high", "same_lead",
    ],
    _NAN,
)  # fmt: skip


@dataclass(frozen=True)
class HeadCurves:
    """Whether the same heads carry loops and copying, over training.

    Attributes:
        history: what every head does in every text, at every checkpoint.
        counts: texts of each condition, see :meth:`HeadHistory.counts`.
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
        """All curves of a history.

        Args:
            history: of the heads.
            seed: of draws, shuffles and halves.
        """
        return cls(
            history=history,
            counts=history.counts(),
            specialisation=specialisation_curves(history, seed=seed),
            agreement=agreement_curves(history, seed=seed),
            points=curve_change_points(history, seed=seed),
        )


def specialisation_curves(history: HeadHistory, *, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """How concentrated the mean effects are: one row per condition and checkpoint.

    Columns: ``revision, condition, value`` (Gini), ``low, high`` (95 %, bootstrap over texts), ``null`` and
    ``null_high`` (mean and 97.5 % of heads that changed places in each text), ``n``.  NaN where texts are too few.

    Args:
        history: of the heads.
        draws: of the bootstrap.
        seed: of draws and shuffles.
    """
    rows = []
    for condition, (place, revision) in itertools.product(CONDITIONS, enumerate(history.revisions)):
        drawn, n = history.drawn(condition, place, draws, seed), int(history.known(condition)[place].sum())
        cells: tuple[float, ...] = (_NAN,) * 5
        if drawn is not None:
            low, high = percentile_interval(_finite(gini(drawn)))
            null = _finite(_scattered(_values(history, condition, place), seed))
            value = float(gini(history.means(condition)[place].ravel()))
            cells = (value, low, high, float(np.mean(null)) if null else _NAN, percentile_interval(null)[1])
        rows.append((revision, condition, *cells, n))
    return pd.DataFrame(rows, columns=["revision", "condition", "value", "low", "high", "null", "null_high", "n"])


def agreement_curves(history: HeadHistory, k: int | None = None, *, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """Do two conditions rest on the same heads?  One row per pair of conditions and checkpoint.

    Columns: ``revision, first, second``; ``value``, the overlap, with ``low, high`` (95 %, bootstrap); ``random_high``
    and ``layer_high``, the 97.5 % of heads of one condition that changed places among all heads, and within their
    layers; ``best``, the overlap if both ranked the heads alike; ``reliability_first, reliability_second``; ``rank``,
    Spearman's correlation of the sizes, with ``rank_low, rank_high``; ``shared`` of the first ``k`` heads, with
    ``shared_low, shared_high`` and ``chance``; ``lead_first, lead_second``, the head that does most in either, as
    ``"layer.head"``; ``same_lead``, share of draws in which it is the same; ``n_first, n_second``; ``verdict``:
    :data:`ALIKE` where the interval lies beyond both controls, :data:`CANNOT_TELL` where the controls reach 95 % of the
    best (one head of few does nearly all, or heads of a layer are alike), else :data:`NOT_ALIKE`; :data:`TOO_FEW`
    texts (numbers are NaN there).

    Args:
        history: of the heads.
        k: heads that count as the first; a quarter of them, at least 1, by default.
        draws: of the bootstrap.
        seed: of draws, shuffles and halves.

    Raises:
        InputError: ``k`` that is no number of heads.

    Limits: with few heads, and few in a layer, there are few ways to change places, and a control reaches far.
    """
    heads = history.natural[0, 0].numel()
    chosen = max(1, heads // 4) if k is None else k
    if not 1 <= chosen <= heads:
        raise InputError(f"k = {k}", f"1 to {heads} heads", "choose another")
    rows = [
        {"revision": revision, "first": first, "second": second}
        | _agreement(history, first, second, place, chosen, draws, seed)
        for first, second in PAIRS
        for place, revision in enumerate(history.revisions)
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(verdict=[_verdict(row) for row in frame.to_dict("records")])


def curve_change_points(history: HeadHistory, *, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """When the curves change: the columns of :meth:`CheckpointResult.change_points`, with ``curve`` for the measure.

    Curves: ``specialisation: <condition>`` and ``agreement: <first> / <second>``; what is known at fewer than two
    checkpoints is left out.

    Args:
        history: of the heads.
        draws: of the bootstrap.
        seed: of draws and shuffles.
    """
    rows = []
    for name, values, drawn in _curves(history, draws, seed):
        places = np.flatnonzero(~np.isnan(values))
        if len(places) < 2:
            continue
        point, _ = change_point_of_draws(values, drawn)
        behind = [int(places[places > place][0]) for place in (point.after, point.high)]
        ends = [history.revisions[place] for place in (point.after, behind[0], point.low, behind[1])]
        sizes = (point.size, point.size_low, point.size_high, point.explained)
        rows.append((name, *ends, *sizes, order_p_value(values, seed=seed), point.clear))
    columns = ["curve", "before", "after", "earliest", "latest", "size", "low", "high", "explained", "p", "clear"]
    return pd.DataFrame(rows, columns=columns)


Summary = Callable[[Sequence[Float[np.ndarray, "draw head"]]], Float[np.ndarray, " draw"]]


def _curves(history: HeadHistory, draws: int, seed: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Every curve by its name, with the curve of each draw."""
    summaries: list[tuple[str, tuple[str, ...], Summary]] = [
        *((f"specialisation: {one}", (one,), lambda means: gini(means[0])) for one in CONDITIONS),
        *((f"agreement: {a} / {b}", (a, b), lambda m: overlap(m[0], m[1])) for a, b in PAIRS),
    ]
    for name, conditions, summary in summaries:
        values, curves = np.full(len(history.revisions), np.nan), np.full((draws, len(history.revisions)), np.nan)
        means = [history.means(condition) for condition in conditions]
        for place in range(len(values)):
            parts = [part for c in conditions if (part := history.drawn(c, place, draws, seed)) is not None]
            if len(parts) == len(conditions):
                curves[:, place] = summary(parts)
                values[place] = summary([mean[place].reshape(1, -1) for mean in means])[0]
        yield name, values, curves


def _verdict(row: Mapping[Hashable, Any]) -> str:
    if np.isnan(row["low"]):
        return TOO_FEW
    controls = float(np.nanmax([row["random_high"], row["layer_high"], 0.0]))
    if row["low"] > controls:
        return ALIKE
    return CANNOT_TELL if controls >= _NEARLY * row["best"] else NOT_ALIKE


def _agreement(
    history: HeadHistory, first: str, second: str, place: int, k: int, draws: int, seed: int
) -> dict[str, float | str]:
    facts: dict[str, float | str] = {"k": k, "chance": k * k / history.natural[0, 0].numel()}
    facts |= {f"n_{end}": int(history.known(c)[place].sum()) for end, c in (("first", first), ("second", second))}
    drawn = [history.drawn(condition, place, draws, seed) for condition in (first, second)]
    if drawn[0] is None or drawn[1] is None:
        return _UNKNOWN | {"lead_first": "", "lead_second": ""} | facts
    ones, others = np.abs(drawn[0]), np.abs(drawn[1])
    one, other = (np.abs(history.means(condition)[place]) for condition in (first, second))
    flat = [one.reshape(1, -1), other.reshape(1, -1)]
    found: dict[str, float | str] = {}
    ways: list[tuple[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]] = [("", overlap), ("rank", rank_correlation)]
    for name, way in ways:
        low, high = percentile_interval(_finite(way(ones, others)))
        prefix = f"{name}_" if name else ""
        found |= {name or "value": float(way(flat[0], flat[1])[0]), f"{prefix}low": low, f"{prefix}high": high}
    shared_low, shared_high = percentile_interval(_shared(ones, others, k).tolist())
    leads = [divmod(int(sizes.argmax()), one.shape[1]) for sizes in flat]
    return (
        found
        | {
            "random_high": _moved(one, other, seed, within_layers=False),
            "layer_high": _moved(one, other, seed, within_layers=True),
            "best": float(overlap(np.sort(flat[0], axis=1), np.sort(flat[1], axis=1))[0]),
            "reliability_first": _reliability(_values(history, first, place), seed),
            "reliability_second": _reliability(_values(history, second, place), seed),
            "shared": float(_shared(flat[0], flat[1], k)[0]),
            "shared_low": shared_low,
            "shared_high": shared_high,
            "same_lead": float((ones.argmax(1) == others.argmax(1)).mean()),
            "lead_first": f"{leads[0][0]}.{leads[0][1]}",
            "lead_second": f"{leads[1][0]}.{leads[1][1]}",
        }
        | facts
    )


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


def _values(history: HeadHistory, condition: str, place: int) -> Float[np.ndarray, "text head"]:
    known = history.known(condition)[place]
    return history.of(condition)[place][known].reshape(int(known.sum()), -1)


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
) -> float:
    """97.5 % of the overlaps after the heads of one condition changed places."""
    generator = np.random.default_rng(seed)
    moved = [
        (generator.permuted(other, axis=1) if within_layers else generator.permutation(other.ravel())).ravel()
        for _ in range(_SHUFFLES)
    ]
    found = overlap(np.repeat(one.reshape(1, -1), _SHUFFLES, axis=0), np.stack(moved))
    return percentile_interval(_finite(found))[1]


def _shared(
    ones: Float[np.ndarray, "draw head"], others: Float[np.ndarray, "draw head"], k: int
) -> Float[np.ndarray, " draw"]:
    """How many of the ``k`` largest are the same; what does nothing is not among them."""
    first = []
    for sizes in (ones, others):
        chosen = np.zeros(sizes.shape, dtype=bool)
        np.put_along_axis(chosen, np.argsort(-sizes, axis=1, kind="stable")[:, :k], True, axis=1)
        first.append(chosen & (sizes > 0))
    return (first[0] & first[1]).sum(1).astype(float)


def _finite(values: np.ndarray) -> list[float]:
    return values[~np.isnan(values)].tolist()


APPEARS, BY_ONE, FADES, UNSURE, NO_STEP = (
    "appears",
    "appears, by one checkpoint",
    "fades",
    "no more than shuffled checkpoints",
    "no clear step",
)
APPEARING = (APPEARS, BY_ONE)
EARLIER, SAME, UNDECIDED = "earlier", "same checkpoints", "not decided"
_LEVEL = 0.05
_THERE = 0.5  # of its largest value: what has so much at the first checkpoint did not appear during training


def judged_points(points: pd.DataFrame, values: pd.DataFrame) -> pd.DataFrame:
    """Change points with a ``verdict`` on each.

    :data:`APPEARS` or :data:`FADES` where the step is clear and shuffled orders of the checkpoints seldom have one like
    it (p < 0.05).  One checkpoint apart from all others is at an end in ``2 / K`` of the orders of K checkpoints, so p
    cannot be small for a step next to an end: there a clear step upwards is :data:`BY_ONE`, as sure as the texts at
    that one checkpoint.  Any other clear step is :data:`UNSURE`; the rest is :data:`NO_STEP`.

    Args:
        points: of :meth:`~mechrep.studies.checkpoints.CheckpointResult.change_points`.
        values: of :meth:`~mechrep.studies.checkpoints.CheckpointResult.to_frame`.

    Example:
        >>> columns = ["measure", "before", "after", "size", "p", "clear"]
        >>> points = pd.DataFrame([("loops", "step1", "step2", 0.5, 0.01, True)], columns=columns)
        >>> values = pd.DataFrame({"measure": "loops", "revision": ["step1", "step2", "step3"], "n": 8})
        >>> judged_points(points, values)["verdict"].tolist()
        ['appears']
    """
    known = values[values["n"] > 0].groupby("measure")["revision"].agg(["first", "last"])
    verdicts = []
    for point in points.to_dict("records"):
        first, last = known.loc[point["measure"]]
        verdict = APPEARS if point["size"] > 0 else FADES
        if not point["clear"]:
            verdict = NO_STEP
        elif not point["p"] < _LEVEL:
            at_end = (point["before"] == first) != (point["after"] == last)  # both: two checkpoints, no order at all
            verdict = BY_ONE if verdict == APPEARS and at_end else UNSURE
        verdicts.append(verdict)
    return points.assign(verdict=verdicts)


def judged_order(order: pd.DataFrame) -> pd.DataFrame:
    """Pairs of measures with a ``verdict`` on each; what is more often earlier stands first.

    Args:
        order: of :meth:`~mechrep.studies.checkpoints.CheckpointResult.order`.

    Example:
        >>> columns = ["first", "second", "earlier", "same", "later"]
        >>> judged_order(pd.DataFrame([("a", "b", 0.5, 0.3, 0.2)], columns=columns))["verdict"].tolist()
        ['not decided']
    """
    verdicts = []
    for pair in order.to_dict("records"):
        sure = {EARLIER: pair["earlier"], SAME: pair["same"]}
        verdicts.append(next((name for name, share in sure.items() if share >= 1 - _LEVEL), UNDECIDED))
    return order.assign(verdict=verdicts)


def starts_of(values: pd.DataFrame) -> pd.DataFrame:
    """What each measure is at the first checkpoint, and whether it was there from the start.

    Args:
        values: of :meth:`~mechrep.studies.checkpoints.CheckpointResult.to_frame`.
    """
    rows = []
    for measure, part in values.groupby("measure", sort=False):
        first, largest = part.iloc[0], float(part["value"].max())
        there = bool(first["low"] > 0 and first["low"] >= _THERE * largest)  # False where nothing is known
        rows.append((measure, first["value"], first["low"], first["high"], largest, int(first["n"]), there))
    return pd.DataFrame(rows, columns=["measure", "first", "low", "high", "largest", "n", "there"])


CONDITION_WORDS = {
    NATURAL: "natural loops",
    INDUCED: "induced copying",
    ELIGIBLE: "induced copying, texts that do not loop",
    INDUCTION: "induction score",
}
_COLOURS = {NATURAL: ACCENT, INDUCED: "#3b82c4", ELIGIBLE: "#7a74e6", INDUCTION: "#5d8a3a"}
_MAPS = 6  # checkpoints side by side
_CELL, _PANEL = 26, 190  # pixels: of a layer in a map, of a panel of curves


def head_maps_figure(history: HeadHistory, revisions: Sequence[str] | None = None) -> go.Figure:
    """What every head does, one row of maps per condition and one column per checkpoint.

    All maps of direct effects share one scale; the induction score has its own, 0 to 1.  A map with too few texts is
    empty.

    Args:
        history: of the heads.
        revisions: checkpoints side by side; by default up to six, spread evenly.

    Raises:
        InputError: no checkpoint, or one that is not in the history.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    known = list(history.revisions)
    if revisions is None:
        spread = np.linspace(0, len(known) - 1, min(_MAPS, len(known))).round().astype(int)
        chosen = [known[int(place)] for place in spread]
    else:
        chosen = list(revisions)
    if not chosen or not set(chosen) <= set(known):
        raise InputError(f"revisions {chosen}", f"some of {known}", "correct them")
    conditions = (NATURAL, INDUCED, INDUCTION)
    numbers = [known.index(name) for name in chosen]
    means = {condition: history.means(condition)[numbers] for condition in conditions}
    scale = max(_largest(means[NATURAL]), _largest(means[INDUCED])) or 1.0
    figure = make_subplots(
        len(conditions),
        len(chosen),
        column_titles=[plain(name) for name in chosen],
        row_titles=[CONDITION_WORDS[condition] for condition in conditions],
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.015,
        vertical_spacing=0.06,
    )
    for row, condition in enumerate(conditions, start=1):
        for column in range(len(chosen)):
            trace = go.Heatmap(
                z=means[condition][column],
                coloraxis="coloraxis2" if condition == INDUCTION else "coloraxis",
                hovertemplate="layer %{y}, head %{x}: %{z:.3f}<extra></extra>",
            )
            figure.add_trace(trace, row=row, col=column + 1)
    layers = history.natural.shape[2]
    figure.update_annotations(font_size=12)
    titled = styled(
        figure,
        title="What every head does, by condition and checkpoint",
        subtitle=f"{history.provenance.model['name']}; direct effect on the logit difference, and attention",
        x="",
        y="",
    )
    titled.update_xaxes(AXIS | {"showgrid": False, "dtick": 1})
    titled.update_yaxes(AXIS | {"showgrid": False, "dtick": 1})
    titled.update_xaxes(title_text="head", row=len(conditions))
    titled.update_yaxes(title_text="layer", col=1)
    bar = {"thickness": 10, "len": 0.6, "x": 1.07}
    return titled.update_layout(
        coloraxis={"colorscale": "RdBu", "cmin": -scale, "cmax": scale, "colorbar": bar | {"y": 0.68}},
        coloraxis2={"colorscale": "Greens", "cmin": 0, "cmax": 1, "colorbar": bar | {"y": 0.15, "len": 0.3}},
        height=max(420, len(conditions) * layers * _CELL + 220),
        margin={"t": 140, "r": 110},
    )


def specialisation_figure(curves: pd.DataFrame, name: str) -> go.Figure:
    """How concentrated the heads' effects are over training, one line per condition, with its control dotted.

    Args:
        curves: of :func:`mechrep.studies.training_heads.specialisation_curves`.
        name: of the model.

    Example:
        >>> rows = [(r, "natural", 0.5, 0.4, 0.6, 0.2, 0.3, 20) for r in ("step0", "step8")]
        >>> columns = ["revision", "condition", "value", "low", "high", "null", "null_high", "n"]
        >>> specialisation_figure(pd.DataFrame(rows, columns=columns), "mine").layout.title.text
        'Specialisation of the heads over training'
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    for number, (condition, part) in enumerate(curves.groupby("condition", sort=False)):
        if part["value"].isna().all():
            continue
        colour, label = _COLOURS[str(condition)], CONDITION_WORDS[str(condition)]
        _add_curve(figure, part, label, colour, DASHES[number % len(DASHES)])
        control = go.Scatter(
            x=_names(part["revision"]), y=part["null_high"], mode="lines",
            line={"color": colour, "dash": "dot", "width": 1}, name=f"{label}: control", showlegend=False,
            hovertemplate="%{x}<br>97.5 % of the control: %{y:.2f}<extra></extra>",
        )  # fmt: skip
        figure.add_trace(control)
    titled = styled(
        figure,
        title="Specialisation of the heads over training",
        subtitle=f"{name}; Gini coefficient of the mean effects, 95 % intervals; dotted: 97.5 % of the control",
        x="checkpoint",
        y="Gini coefficient",
    )
    return titled.update_yaxes(range=[0, 1]).update_layout(margin={"t": 150})


def agreement_figure(agreement: pd.DataFrame, name: str) -> go.Figure:
    """How alike two conditions are in their heads over training, one panel per pair.

    Grey: the 97.5 % of both controls, the larger; dotted: the smaller reliability of the two conditions.

    Args:
        agreement: of :func:`mechrep.studies.training_heads.agreement_curves`.
        name: of the model.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    pairs = list(agreement.groupby(["first", "second"], sort=False))
    titles = [f"{CONDITION_WORDS[str(a)]} and {CONDITION_WORDS[str(b)]}" for (a, b), _ in pairs]
    figure = make_subplots(len(pairs), 1, shared_xaxes=True, subplot_titles=titles)
    for row, ((first, _), part) in enumerate(pairs, start=1):
        _add_curve(figure, part, titles[row - 1], _COLOURS[str(first)], "solid", row=row)
        lines = {
            "controls": (part[["random_high", "layer_high"]].max(axis=1), "solid"),
            "halves of one condition": (part[["reliability_first", "reliability_second"]].min(axis=1), "dot"),
        }
        for label, (values, dash) in lines.items():
            line = {"color": INK, "width": 1.2, "dash": dash}
            trace = go.Scatter(
                x=_names(part["revision"]), y=values, mode="lines", line=line, name=label, showlegend=row == 1,
                hovertemplate=f"%{{x}}<br>{label}: %{{y:.2f}}<extra></extra>",
            )  # fmt: skip
            figure.add_trace(trace, row=row, col=1)
    figure.update_annotations(font_size=13)
    titled = styled(
        figure,
        title="Do the same heads carry both?",
        subtitle=f"{name}; overlap of what heads do, 95 % intervals",
        x="",
        y="",
    )
    titled.update_xaxes(AXIS | {"showgrid": False, "showline": True})
    titled.update_yaxes(AXIS | {"range": [0, 1.05]})
    titled.update_xaxes(title_text="checkpoint", row=len(pairs))
    return titled.update_layout(height=190 + _PANEL * len(pairs), margin={"t": 150})


def _add_curve(
    figure: go.Figure, part: pd.DataFrame, label: str, colour: str, dash: str, row: int | None = None
) -> None:
    """A line with error bars; what is not known leaves a gap."""
    import plotly.graph_objects as go

    trace = go.Scatter(
        x=_names(part["revision"]),
        y=part["value"],
        error_y={
            "array": part["high"] - part["value"],
            "arrayminus": part["value"] - part["low"],
            "symmetric": False,
            "color": translucent(colour, 0.5),
            "thickness": 1.2,
        },
        mode="lines+markers",
        name=label,
        showlegend=row is None,
        line={"color": colour, "dash": dash, "width": 2},
        marker={"size": 6},
        hovertemplate="%{x}<br>%{y:.2f}<extra></extra>",
    )
    place: dict[str, Any] = {} if row is None else {"row": row, "col": 1}
    figure.add_trace(trace, **place)


def _names(revisions: pd.Series) -> list[str]:
    return [plain(name) for name in revisions]


def _largest(values: Float[np.ndarray, "_ _ _"]) -> float:
    return float(np.nanmax(np.abs(values))) if (~np.isnan(values)).any() else 0.0
