"""Do the same heads carry natural loops and induced copying?  Curves over training, with intervals and controls.

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
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from mechrep.analyzers.conditions.effects import rank_correlation
from mechrep.analyzers.conditions.specialisation import gini
from mechrep.errors import InputError
from mechrep.stats import percentile_interval
from mechrep.studies.checkpoints.change_points import change_point_of_draws, order_p_value
from mechrep.studies.checkpoints.head_effects import INDUCED, INDUCTION, NATURAL
from mechrep.studies.checkpoints.head_history import CONDITIONS, DRAWS, ELIGIBLE, HeadHistory

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
