"""When does a measure change?  One step between two levels, with an interval.

For the means ``y_1 .. y_K`` at K checkpoints in order, the change point is the ``k`` whose two levels leave the
smallest squared error::

    k = argmin_k  sum_{i <= k} (y_i - mean(y_1..y_k))^2  +  sum_{i > k} (y_i - mean(y_k+1..y_K))^2

so the measure changes *between* checkpoints k and k + 1.  The units behind the means (texts, prompts) are drawn anew,
the same draw at every checkpoint, and the change point is estimated on each draw: the interval is the central 95 % of
these.  It says how sure the units make us, on this grid: between two neighbouring checkpoints nothing is known.  A
gradual rise is placed near its middle; a measure that rises and falls has one change point, the sharper of the two.

The step is *clear* if the difference of the levels has an interval without 0 and the two levels leave less than half of
the variance over checkpoints.  Its control is the order of the checkpoints (:func:`order_p_value`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from mechrep.errors import InputError
from mechrep.stats import percentile_interval

_CLEAR = 0.5


@dataclass(frozen=True)
class ChangePoint:
    """One step in a series; checkpoints are counted from 0.

    Attributes:
        after: the step lies between this checkpoint and the next.
        low: lower end of the interval of ``after``.
        high: upper end.
        size: level behind the step minus level before it.
        size_low: lower end of the interval of ``size``.
        size_high: upper end.
        explained: share of the variance over checkpoints that the step takes away.
    """

    after: int
    low: int
    high: int
    size: float
    size_low: float
    size_high: float
    explained: float

    @property
    def clear(self) -> bool:
        """Whether there is a step to speak of; without units its size has no interval, and the variance decides."""
        return not (self.size_low <= 0 <= self.size_high) and self.explained >= _CLEAR


def change_point(
    units: Float[np.ndarray, "checkpoint unit"], *, draws: int = 1000, seed: int = 0
) -> tuple[ChangePoint, Int[np.ndarray, " draw"]]:
    """The step of one measure, and its place in every draw of the units.

    Args:
        units: values; NaN where a unit has none.  Checkpoints without any value are skipped over.
        draws: of the bootstrap.
        seed: of the draws; measures with the same units and seed are drawn together.

    Raises:
        InputError: values at fewer than two checkpoints.

    Source: least-squares segmentation with one break is textbook (Bai 1994, J. Time Series Analysis 15).

    Example:
        >>> values = np.array([[0.0, 0.1], [0.1, 0.0], [0.9, 1.0], [1.0, 0.9]])
        >>> point, _ = change_point(values)
        >>> point.after, point.low, point.high, point.clear
        (1, 1, 1, True)
    """
    places = np.flatnonzero(~np.isnan(units).all(1))
    if len(places) < 2:
        raise InputError(
            f"values at {len(places)} of {len(units)} checkpoints", "values at two at least", "measure more checkpoints"
        )
    known = units[places]
    (means,) = bootstrap_means(known, np.ones((1, known.shape[1])))
    counts = draw_counts(known.shape[1], draws, seed)
    drawn = bootstrap_means(known, counts)
    point, steps = _estimate(means, drawn if known.shape[1] > 1 else None, places)
    return point, np.full(draws, point.after) if steps is None else steps


def change_point_of_draws(
    values: Float[np.ndarray, " checkpoint"], drawn: Float[np.ndarray, "draw checkpoint"]
) -> tuple[ChangePoint, Int[np.ndarray, " draw"]]:
    """The step of a curve that is no mean over units, and its place in every draw of the units behind it.

    Args:
        values: the curve; NaN where it is not known.
        drawn: the same curve of every draw; a draw that has no number at a checkpoint takes the curve's own.

    Raises:
        InputError: values at fewer than two checkpoints.

    Example:
        >>> values = np.array([0.1, 0.1, 0.8, float("nan"), 0.9])
        >>> point, _ = change_point_of_draws(values, np.tile(values, (5, 1)))
        >>> point.after, round(point.size, 2)
        (1, 0.75)
    """
    places = np.flatnonzero(~np.isnan(values))
    if len(places) < 2:
        raise InputError(
            f"values at {len(places)} of {len(values)} checkpoints",
            "values at two at least",
            "measure more checkpoints, or more texts at each",
        )
    known = drawn[:, places]
    point, steps = _estimate(values[places], np.where(np.isnan(known), values[places], known), places)
    assert steps is not None
    return point, steps


def order_p_value(values: Float[np.ndarray, " checkpoint"], *, orders: int = 1000, seed: int = 0) -> float:
    """Share of shuffled orders of the checkpoints in which one step explains as much as in the true order.

    The control of every change point: some split of any list of numbers explains something.  The observed order counts
    as one of the shuffled ones.  With fewer than five checkpoints the share cannot be small.

    Args:
        values: one per checkpoint; NaN is left out.
        orders: how many are shuffled.
        seed: of the shuffling.

    Returns:
        The share; NaN for fewer than two values, and 1 for values that are all the same.

    Example:
        >>> order_p_value(np.array([0.0] * 6 + [1.0] * 6)) < 0.01
        True
    """
    known = values[~np.isnan(values)]
    if len(known) < 2:
        return float("nan")
    shuffled = np.random.default_rng(seed).permuted(np.tile(known, (orders, 1)), axis=1)
    _, _, explained = _step(np.vstack([known[None], shuffled]))
    return float((1 + (explained[1:] >= explained[0] - 1e-9).sum()) / (1 + orders))


def _estimate(
    means: Float[np.ndarray, " known"], drawn: Float[np.ndarray, "draw known"] | None, places: Int[np.ndarray, " known"]
) -> tuple[ChangePoint, Int[np.ndarray, " draw"] | None]:
    """The step of a curve without gaps, with intervals where there are draws; ``places`` are its checkpoints."""
    after, size, explained = _step(means[None])
    low = high = float(after[0])
    size_low = size_high = float("nan")
    steps = None
    if drawn is not None:
        drawn_after, drawn_size, _ = _step(drawn)
        low, high = percentile_interval(drawn_after.astype(float).tolist())
        size_low, size_high = percentile_interval(drawn_size.tolist())
        steps = places[drawn_after]
    point = ChangePoint(
        int(places[after[0]]),
        int(places[int(np.floor(low))]),
        int(places[int(np.ceil(high))]),
        float(size[0]),
        size_low,
        size_high,
        float(explained[0]),
    )
    return point, steps


def draw_counts(units: int, draws: int, seed: int) -> Float[np.ndarray, "draw unit"]:
    """How often each unit is in each draw.

    Example:
        >>> draw_counts(3, 2, 0).sum(1).tolist()
        [3.0, 3.0]
    """
    generator = np.random.default_rng(seed)
    return generator.multinomial(units, [1 / units] * units, size=draws).astype(float)


def bootstrap_means(
    units: Float[np.ndarray, "checkpoint unit"], counts: Float[np.ndarray, "draw unit"]
) -> Float[np.ndarray, "draw checkpoint"]:
    """Means over the units that have a value; where a draw has none at a checkpoint, the mean of the units."""
    has = ~np.isnan(units)
    n = counts @ has.T
    means = np.divide(counts @ np.nan_to_num(units).T, n, out=np.zeros_like(n), where=n > 0)
    return np.where(n > 0, means, np.nanmean(units, axis=1))


def _step(
    means: Float[np.ndarray, "draw checkpoint"],
) -> tuple[Int[np.ndarray, " draw"], Float[np.ndarray, " draw"], Float[np.ndarray, " draw"]]:
    """Place, size and explained share of the best step of each row; a flat row has its step in the middle, size 0."""
    total = means.shape[1]
    sums = means.cumsum(1)
    before = np.arange(1, total)
    first = sums[:, :-1] / before
    second = (sums[:, -1:] - sums[:, :-1]) / (total - before)
    # Between groups: what the step takes away from the squared error.
    taken = (before * (total - before) / total) * (second - first) ** 2
    variance = ((means - means.mean(1, keepdims=True)) ** 2).sum(1)
    flat = variance <= 1e-24
    place = np.where(flat, (total - 2) // 2, taken.argmax(1))
    rows = np.arange(len(means))
    size = np.where(flat, 0.0, (second - first)[rows, place])
    explained = np.divide(taken[rows, place], variance, out=np.zeros_like(variance), where=~flat)
    return place, size, explained
