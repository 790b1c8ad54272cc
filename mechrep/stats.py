"""Intervals and tests that results are reported with; the mathematics is SciPy's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def proportion_interval(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a share.

    Args:
        count: successes.
        total: trials; 0 gives ``(nan, nan)``.
        confidence: coverage.

    Returns:
        Lower and upper end, in [0, 1].

    Example:
        >>> low, high = proportion_interval(8, 10)
        >>> round(low, 3), round(high, 3)
        (0.49, 0.943)
    """
    from scipy.stats import binomtest

    if total == 0:
        return (float("nan"), float("nan"))
    interval = binomtest(count, total).proportion_ci(confidence, method="wilson")
    return (float(interval.low), float(interval.high))


def percentile_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Central interval of draws (seeds of a control, bootstrap samples); ``(nan, nan)`` of none.

    Example:
        >>> percentile_interval([1.0, 2.0, 3.0], confidence=0.0)
        (2.0, 2.0)
    """
    if len(values) == 0:
        return (float("nan"), float("nan"))
    tail = 50 * (1 - confidence)
    low, high = np.percentile(np.asarray(values, dtype=float), [tail, 100 - tail])
    return (float(low), float(high))


def paired_bootstrap_interval(
    differences: Sequence[float] | Float[np.ndarray, " text"],
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean of per-text differences.

    Example:
        >>> paired_bootstrap_interval([1.0] * 8)
        (1.0, 1.0)
    """
    values = np.asarray(differences, dtype=float)
    if len(values) == 0:
        return (float("nan"), float("nan"))
    picks = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    return percentile_interval(values[picks].mean(1).tolist(), confidence)
