"""When does a curve over training change?  One step between two levels, with an interval and its control.

For a curve ``y_1 .. y_K`` over K checkpoints in order, the change point is the ``k`` whose two levels leave the least
squared error::

    k = argmin_k  sum_{i <= k} (y_i - mean(y_1..y_k))^2  +  sum_{i > k} (y_i - mean(y_k+1..y_K))^2

so the curve changes *between* checkpoints k and k + 1.  The units behind it (texts, prompts) are drawn anew, the same
draw at every checkpoint, and the change point is estimated on each draw: the interval is the central 95 % of these.
Between two neighbouring checkpoints nothing is known.  A gradual rise is placed near its middle; a curve that rises and
falls has one change point, the sharper of the two.

The control is the order of the checkpoints: some split of any list of numbers explains something.  In shuffled orders
the best step explains a share ``R'`` of the variance over checkpoints, in the true order ``R``; a step at the place
found that explains ``R'`` has the size ``size * sqrt(R' / R)``.  These sizes are the control draws.

Source: least-squares segmentation with one break: Bai 1994 (Journal of Time Series Analysis 15).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mechrep.errors import InputError
from mechrep.stats import percentile_interval

DRAWS, ORDERS = 1000, 999


@dataclass(frozen=True, eq=False)
class ChangePoint:
    """One step of a curve; checkpoints are counted from 0.

    Attributes:
        after: the step lies between this checkpoint and the next one at which the curve is known, ``behind``.
        behind: that checkpoint.
        earliest: lower end of the 95 % interval of ``after``.
        latest: upper end of the interval of ``behind``.
        before_level: mean of the curve up to the step.
        size: level behind the step minus level before it.
        low: lower end of the 95 % interval of ``size``; NaN without draws.
        high: upper end.
        explained: share of the variance over checkpoints that the step takes away.
        places: the step's place in every draw of the units, as its number among all checkpoints.
        shuffled: sizes of the control draws, see the module.
        m: control draws that can differ from each other: one checkpoint apart from all others lies at an end in 2 of K
            orders, so a step next to an end needs many checkpoints.
        least: smallest p-value that a step at this place could have beside these shuffled orders: those that only turn
            or shuffle the two sides in themselves explain as much, however clear the step.
    """

    after: int
    behind: int
    earliest: int
    latest: int
    before_level: float
    size: float
    low: float
    high: float
    explained: float
    places: Int[np.ndarray, " draw"]
    shuffled: Float[np.ndarray, " order"]
    m: int
    least: float


def change_point(
    curve: Float[np.ndarray, " checkpoint"],
    drawn: Float[np.ndarray, "draw checkpoint"] | None = None,
    *,
    orders: int = ORDERS,
    seed: int = 0,
) -> ChangePoint:
    """The step of a curve.

    Args:
        curve: one value per checkpoint; checkpoints without one (NaN) are passed over.
        drawn: the same curve of every draw of the units behind it; a draw without a number at a checkpoint takes the
            curve's own.  Without draws there are no intervals.
        orders: shuffled orders of the checkpoints.
        seed: of the orders.

    Raises:
        InputError: values at fewer than two checkpoints.

    Example:
        >>> point = change_point(np.array([0.1, 0.1, 0.8, float("nan"), 0.9]))
        >>> point.after, point.behind, round(point.size, 2)
        (1, 2, 0.75)
    """
    known = np.flatnonzero(~np.isnan(curve))
    if len(known) < 2:
        raise InputError(
            f"values at {len(known)} of {len(curve)} checkpoints",
            "values at two at least",
            "measure more checkpoints, or more texts at each",
        )
    values = curve[known]
    (place,), (size,), (explained,) = best_steps(values[None])
    low = high = float(place)
    size_ends, places = (float("nan"), float("nan")), np.full(1 if drawn is None else len(drawn), known[place])
    if drawn is not None:
        full = np.where(np.isnan(drawn[:, known]), values, drawn[:, known])
        drawn_places, drawn_sizes, _ = best_steps(full)
        low, high = percentile_interval(drawn_places.astype(float).tolist())
        size_ends, places = percentile_interval(drawn_sizes.tolist()), known[drawn_places]
    return ChangePoint(
        after=int(known[place]),
        behind=int(known[place + 1]),
        earliest=int(known[math.floor(low)]),
        latest=int(known[math.ceil(high) + 1]),
        before_level=float(values[: place + 1].mean()),
        size=float(size),
        low=size_ends[0],
        high=size_ends[1],
        explained=float(explained),
        places=places,
        shuffled=_shuffled(values, float(size), float(explained), orders, seed),
        least=_least(len(known), int(place), orders, seed),
        m=min(orders, max(0, math.comb(len(known), int(place) + 1) // 2 - 1)),
    )


def _shuffled(
    values: Float[np.ndarray, " known"], size: float, explained: float, orders: int, seed: int
) -> Float[np.ndarray, " order"]:
    """Sizes of steps at the place found that explain what the best steps of shuffled orders explain."""
    generator = np.random.default_rng(seed)
    _, sizes, shares = best_steps(generator.permuted(np.tile(values, (orders, 1)), axis=1))
    return np.sign(sizes) * abs(size) * np.sqrt(shares / explained) if explained > 0 else np.zeros(orders)


def _least(checkpoints: int, place: int, orders: int, seed: int) -> float:
    """The p-value of a curve that is one step at this place and nothing else."""
    ideal = (np.arange(checkpoints) > place).astype(float)
    sizes = np.abs(_shuffled(ideal, 1.0, 1.0, orders, seed))
    return float((1 + (sizes >= 1 - 1e-9).sum()) / (orders + 1))


def best_steps(
    curves: Float[np.ndarray, "draw checkpoint"],
) -> tuple[Int[np.ndarray, " draw"], Float[np.ndarray, " draw"], Float[np.ndarray, " draw"]]:
    """Place, size and explained share of the best step of each row; a flat row has its step in the middle, size 0.

    Example:
        >>> places, sizes, shares = best_steps(np.array([[0.0, 0.0, 1.0, 1.0]]))
        >>> places.tolist(), sizes.tolist(), shares.tolist()
        ([1], [1.0], [1.0])
    """
    total, sums = curves.shape[1], curves.cumsum(1)
    before = np.arange(1, total)
    first, second = sums[:, :-1] / before, (sums[:, -1:] - sums[:, :-1]) / (total - before)
    # Between groups: what the step takes away from the squared error.
    taken = (before * (total - before) / total) * (second - first) ** 2
    variance = ((curves - curves.mean(1, keepdims=True)) ** 2).sum(1)
    flat, rows = variance <= 1e-24, np.arange(len(curves))
    place = np.where(flat, (total - 2) // 2, taken.argmax(1))
    size = np.where(flat, 0.0, (second - first)[rows, place])
    shares = np.divide(taken[rows, place], variance, out=np.zeros_like(variance), where=~flat)
    return place, size, shares


def unit_draws(clusters: Sequence[object], draws: int = DRAWS, seed: int = 0) -> Float[np.ndarray, "draw unit"]:
    """How often each unit is in each bootstrap draw; units of one cluster are drawn together.

    Example:
        >>> unit_draws(["a", "b", "b"], draws=2)[:, 1:].std(1).tolist()
        [0.0, 0.0]
    """
    names, members = np.unique(np.asarray(list(clusters), dtype=str), return_inverse=True)
    counts = np.random.default_rng(seed).multinomial(len(names), [1 / len(names)] * len(names), size=draws)
    return counts[:, members].astype(float)


def drawn_means(
    units: Float[np.ndarray, "checkpoint unit"], counts: Float[np.ndarray, "draw unit"]
) -> Float[np.ndarray, "draw checkpoint"]:
    """Means over the units that have a value; where a draw has none at a checkpoint, the mean of the units.

    A checkpoint at which no unit has a value is NaN.

    Example:
        >>> drawn_means(np.array([[1.0, 3.0], [5.0, np.nan]]), np.array([[1.0, 1.0], [0.0, 2.0]])).tolist()
        [[2.0, 5.0], [3.0, 5.0]]
    """
    has = ~np.isnan(units)
    n, all_of = counts @ has.T, has.sum(1)
    sums = np.nan_to_num(units)
    own = np.divide(sums.sum(1), all_of, out=np.full(len(units), np.nan), where=all_of > 0)
    means = np.divide(counts @ sums.T, n, out=np.zeros_like(n), where=n > 0)
    return np.where(n > 0, means, own)
