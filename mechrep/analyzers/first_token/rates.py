"""How fast copies of a token approach the state of the token alone: laws, fits, and what theory expects.

Of a prefix of m tokens before n copies of x, a head of layer 0 without positions gives the share::

    w = S / (S + n),  S = sum_j exp(s_j - s_x),   so the odds w / (1 - w) = S / n fall with slope -1 in log-log, exactly

With rotary positions S oscillates within bounds.  ALiBi multiplies the prefix by exp(-a n), a the head's slope, so the
log of the odds is a straight line in n; a sliding window W drops the prefix at n = W.  Where values depend on the
position there is no such limit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Law = Literal["power", "exponential", "zero", "none"]

SMALLEST = 1e-30  # of a share of attention; below lies what float32 cannot hold well
_TAIL = 4  # fits use the last numbers of repeats, from a fourth of the largest on
_FEWEST = 4


@dataclass(frozen=True)
class Fit:
    """Two straight lines through the tail of one curve.

    Attributes:
        slope: of log y against log n.
        slope_rmse: distance of the points from that line, in log units.
        rate: of log y against n, per copy.
        rate_rmse: the same for this line.
    """

    slope: float
    slope_rmse: float
    rate: float
    rate_rmse: float

    @property
    def law(self) -> Law:
        """The line that is nearer; ``"none"`` without a fit, or where nothing falls by a tenth over the tail."""
        if math.isnan(self.slope) or self.slope > math.log(0.9) / math.log(_TAIL):
            return "none"
        return "power" if self.slope_rmse <= self.rate_rmse else "exponential"


NO_FIT = Fit(math.nan, math.nan, math.nan, math.nan)


def fit_decay(repeats: Sequence[int], values: Sequence[float], floor: float = SMALLEST) -> Fit:
    """Fit both laws to the tail of a curve.

    Args:
        repeats: numbers of repeats, rising.
        values: one per number.
        floor: from the first value below it on, the curve is rounding error and left out.

    Returns:
        The fit; NaN where fewer than four points are left.

    Example:
        >>> fit = fit_decay(list(range(1, 65)), [3 / n for n in range(1, 65)])
        >>> round(fit.slope, 6), fit.law
        (-1.0, 'power')
    """
    n, y = np.asarray(repeats, dtype=float), np.asarray(values, dtype=float)
    low = np.flatnonzero(~(y > floor))
    n, y = (n[: low[0]], y[: low[0]]) if len(low) else (n, y)
    if len(n) == 0:
        return NO_FIT
    tail = n >= n[-1] / _TAIL
    if tail.sum() < _FEWEST:
        return NO_FIT
    (slope, slope_rmse), (rate, rate_rmse) = (_line(x[tail], np.log(y[tail])) for x in (np.log(n), n))
    return Fit(slope, slope_rmse, rate, rate_rmse)


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope of the straight line through the points, and their root mean square distance from it."""
    slope, intercept = np.polyfit(x, y, 1)
    return float(slope), float(np.sqrt(np.mean((y - slope * x - intercept) ** 2)))


def alibi_slopes(n_heads: int) -> list[float]:
    """The slope of every head under ALiBi: a geometric sequence, filled up with every second of the next finer one.

    Source: Press et al. 2022 (arXiv 2108.12409).

    Example:
        >>> alibi_slopes(4), len(alibi_slopes(12))
        ([0.25, 0.0625, 0.015625, 0.00390625], 12)
    """
    power = 2 ** int(math.log2(n_heads))
    slopes = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    finer = [2 ** (-4 * (head + 1) / power) for head in range(2 * power)]
    return slopes + finer[::2][: n_heads - power]


@dataclass(frozen=True)
class Theory:
    """What theory expects of the odds of a head.

    Attributes:
        law: by which law they fall.
        words: why.
    """

    law: Law
    words: str


def expected(positions: str, window: int, same_value: bool) -> Theory:
    """What theory expects of a model.

    Args:
        positions: its kind of position encoding, as :class:`mechrep.models.anatomy.Anatomy` has it.
        window: how many keys layer 0 sees; 0 for all.
        same_value: whether equal tokens have equal values wherever they stand, measured on a run of one token.

    Example:
        >>> expected("rotary", 0, True).law, expected("alibi", 0, True).law, expected("standard", 0, False).law
        ('power', 'exponential', 'none')
    """
    if not same_value:
        return Theory("none", "values depend on the position, so copies do not tend to the token alone")
    if window:
        return Theory("zero", f"layer 0 sees {window} keys: from {window} copies on the prefix is out of sight")
    if positions == "alibi":
        return Theory("exponential", "ALiBi: the prefix fades like exp(-a n), a being the slope of the head")
    kind = {"rotary": "rotary positions: odds fall like 1/n, up to bounded oscillation"}
    return Theory("power", kind.get(positions, "no position in scores that grows with distance: odds fall like 1/n"))
