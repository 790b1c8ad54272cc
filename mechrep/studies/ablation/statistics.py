"""Intervals and tests for many conditions at once: the text is the unit, and every condition saw the same texts."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from mechrep.errors import InputError

_ROUNDING = 1e-5  # nats; what float32 makes of a cut that changes nothing


def bootstrap_intervals(
    values: Float[np.ndarray, "row text"], confidence: float = 0.95, draws: int = 2000, seed: int = 0
) -> Float[np.ndarray, "row end"]:
    """:func:`mechrep.stats.paired_bootstrap_interval` of each row, from the same draws of texts for all rows.

    Example:
        >>> bootstrap_intervals(np.array([[1.0, 1.0], [2.0, 2.0]])).tolist()
        [[1.0, 1.0], [2.0, 2.0]]
    """
    n = values.shape[1]
    picks = np.random.default_rng(seed).integers(0, n, (draws, n))
    counts = np.stack([np.bincount(pick, minlength=n) for pick in picks])
    tail = 50 * (1 - confidence)
    return np.percentile(values @ counts.T / n, [tail, 100 - tail], axis=1).T


def paired_p_values(effects: Float[np.ndarray, "row text"]) -> Float[np.ndarray, " row"]:
    """Two-sided p-values of paired t-tests, one per row of differences against the untouched model.

    Differences within rounding error (1e-5) in every text count as none: p = 1.  Differences that are exactly the same
    in every text have p = 0.

    Raises:
        InputError: fewer than two texts.

    Example:
        >>> paired_p_values(np.array([[0.0, 1e-8], [1.0, 1.0]])).tolist()
        [1.0, 0.0]
    """
    from scipy.stats import t as student

    n = effects.shape[1]
    if n < 2:
        raise InputError(f"a test over {n} text", "at least 2: the text is the unit", "measure on more texts")
    mean, error = effects.mean(1), effects.std(1, ddof=1) / n**0.5
    nothing = np.abs(effects).max(1) < _ROUNDING
    ratio = np.divide(mean, error, out=np.full_like(mean, np.inf), where=error > 0)
    return np.where(nothing, 1.0, 2 * student.sf(np.abs(ratio), n - 1))


def holm(p_values: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Adjusted p-values that bound the chance of any false finding, whatever the dependence.

    With the p-values in rising order, ``max over i <= j of min(1, (m - i + 1) p_i)`` is the j-th of m.

    Source: Holm 1979 (Scandinavian Journal of Statistics 6, 65-70).

    Example:
        >>> holm(np.array([0.01, 0.04, 0.03])).round(2).tolist()
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values)
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * p_values[order]))
    return adjusted


def benjamini_hochberg(p_values: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Adjusted p-values that bound the expected share of false ones among the findings.

    Source: Benjamini and Hochberg 1995 (Journal of the Royal Statistical Society B 57, 289-300); SciPy's.

    Example:
        >>> benjamini_hochberg(np.array([0.01, 0.04, 0.03])).round(2).tolist()
        [0.03, 0.04, 0.04]
    """
    from scipy.stats import false_discovery_control

    return np.asarray(false_discovery_control(p_values, method="bh"))
