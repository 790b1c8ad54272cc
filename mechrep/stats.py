"""Intervals and tests that results are reported with; the mathematics is SciPy's.

Intervals and tests for many conditions at once: the text is the unit, and every condition saw the same texts.

Is a difference between right and wrong answers to the same questions more than chance?
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from mechrep.errors import InputError

_FEW_DRAWS = 40  # of fewer, no single one lies outside 95 %


def known(values: Tensor) -> Tensor:
    """The values that are there, as one row: what a layer lacks is NaN in its table.

    Example:
        >>> import torch
        >>> known(torch.tensor([[0.5, float("nan")], [0.25, -1.0]])).tolist()
        [0.5, 0.25, -1.0]
    """
    return values[~values.isnan()]


def largest(values: Tensor) -> float:
    """The largest of the values that are known; NaN if none is.

    Example:
        >>> import torch
        >>> largest(torch.tensor([[0.5, float("nan")], [0.25, -1.0]]))
        0.5
    """
    there = known(values)
    return float(there.max()) if there.numel() else float("nan")


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


def range_of_draws(draws: Sequence[float] | Float[np.ndarray, " draw"]) -> tuple[float, float]:
    """Where 95 % of control draws lie; the smallest and the largest of fewer than 40; ``(nan, nan)`` of none.

    Example:
        >>> range_of_draws([3.0, 1.0, 2.0]), range_of_draws([1.0] * 99 + [9.0])
        ((1.0, 3.0), (1.0, 1.0))
    """
    return percentile_interval(list(draws), 1.0 if len(draws) < _FEW_DRAWS else 0.95)


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


def discordant(before: Float[np.ndarray, " question"], after: Float[np.ndarray, " question"]) -> tuple[int, int]:
    """How many questions are right only after, and how many only before.

    Raises:
        InputError: a value that is neither 0 nor 1.

    Example:
        >>> discordant(np.array([0.0, 0.0, 1.0]), np.array([1.0, 1.0, 0.0]))
        (2, 1)
    """
    if not np.isin([before, after], (0.0, 1.0)).all():
        raise InputError("answers that are neither right nor wrong", "0 or 1 for every question", "use the bootstrap")
    return int((after > before).sum()), int((after < before).sum())


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p-value of McNemar's test.

    If the intervention did nothing to the rate of right answers, a question whose answer changed would become right or
    wrong with equal chance: of ``n = gained + lost`` such questions, ``gained`` is Binomial(n, 1/2).  Questions whose
    answer stayed right or wrong say nothing.  With none that changed, p = 1.

    Args:
        gained: questions that are right only with the intervention.
        lost: questions that are right only without.

    Source: McNemar 1947 (Psychometrika 12, 153-157), in the exact form.

    Limits: a large p-value is no evidence of no effect; look at the interval of the difference.

    Example:
        >>> mcnemar(0, 5), mcnemar(4, 4), mcnemar(0, 0)
        (0.0625, 1.0, 1.0)
    """
    from scipy.stats import binomtest

    changed = gained + lost
    return float(binomtest(gained, changed, 0.5).pvalue) if changed else 1.0


def area_parts(values: Float[np.ndarray, " token"], first: Bool[np.ndarray, " token"]) -> Float[np.ndarray, " token"]:
    """What every token adds to an area under the ROC curve: the mean is the area, and their spread is its spread.

    A token's placement is the share of the other class that it stands on the right side of, ties counting half.  With
    ``N`` tokens, ``n`` of them of the token's own class, its part is ``area + (placement - area) N / n``.  Whole groups
    of tokens can then be drawn as for any mean (:func:`cluster_intervals`), and areas of the same tokens be compared in
    pairs.

    Args:
        values: one number per token.
        first: which tokens should have the larger ones; some, and not all.

    Source: DeLong et al. 1988 (Biometrics 44, 837-845); groups: Obuchowski 1997 (Biometrics 53, 567-578).

    Limits: parts can lie outside 0 and 1; an interval near either end is best cut there.

    Example:
        >>> area_parts(np.array([3.0, 1.0, 2.0, 0.0]), np.array([True, True, False, False])).tolist()
        [1.25, 0.25, 0.25, 1.25]
    """
    from scipy.stats import rankdata

    ranks, parts, n = rankdata(values), np.empty(len(values)), len(values)
    own, other = int(first.sum()), int((~first).sum())
    parts[first] = (ranks[first] - rankdata(values[first])) / other
    parts[~first] = 1 - (ranks[~first] - rankdata(values[~first])) / own
    area = parts[first].mean()
    return area + (parts - area) * np.where(first, n / own, n / other)


def cluster_intervals(
    values: Float[np.ndarray, "row unit"],
    clusters: Sequence[object] | np.ndarray,
    confidence: float = 0.95,
    draws: int = 4000,
    seed: int = 0,
) -> Float[np.ndarray, "row end"]:
    """Bootstrap intervals of the mean of each row; whole clusters are drawn, because units of one are not independent.

    Percentiles of the bootstrap are too near to each other where clusters are few: by a factor of
    ``sqrt((n - 1) / n)``, and because the spread is itself estimated (Student's t).  So they are taken further out, at
    ``Phi(-sqrt(n / (n - 1)) t)``, where ``t`` is the quantile of Student's t with ``n - 1`` degrees of freedom.

    Args:
        values: numbers of each unit; NaN where it has none.
        clusters: the cluster of each unit.
        confidence: coverage.
        draws: bootstrap samples.
        seed: of the draws.

    Returns:
        Ends; NaN for a row with values in fewer than two clusters.

    Source: the expanded percentile interval of Hesterberg 2015 (The American Statistician 69, 371-386).

    Limits: no interval of a mean covers as it says where units are few and lie far to one side.

    Example:
        >>> cluster_intervals(np.array([[1.0, 1.0, 3.0, 3.0]]), ["a", "a", "b", "b"]).tolist()
        [[1.0, 3.0]]
    """
    sums, sizes = _by_cluster(values, clusters)
    ends = np.full((len(values), 2), np.nan)
    patterns, kinds = np.unique(sizes, axis=0, return_inverse=True)
    for kind, pattern in enumerate(patterns):
        here, rows = pattern > 0, np.flatnonzero(kinds.reshape(-1) == kind)
        n = int(here.sum())
        if n > 1:
            # One matrix product instead of SciPy's gather, 100 times faster.
            times = _times_drawn(n, draws, seed)
            means = (times @ sums[np.ix_(rows, here)].T) / (times @ pattern[here])[:, None]
            tail = 100 * expanded_tail(n, confidence)
            ends[rows] = np.percentile(means, [tail, 100 - tail], axis=0).T
    return ends


@functools.lru_cache(maxsize=8)
def _times_drawn(n: int, draws: int, seed: int) -> Float[np.ndarray, "draw cluster"]:
    """How often each cluster is drawn."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), draws).astype(float)


def expanded_tail(n: int, confidence: float = 0.95) -> float:
    """Share of bootstrap samples beyond either end of :func:`cluster_intervals`.

    Example:
        >>> round(expanded_tail(10), 4), round(expanded_tail(10_000), 4)
        (0.0086, 0.025)
    """
    from scipy.stats import norm
    from scipy.stats import t as student

    return float(norm.cdf(-((n / (n - 1)) ** 0.5) * student.isf((1 - confidence) / 2, n - 1)))


FLIPS = 9999  # random changes of signs, where there are too many to count through


def sign_flip_p_values(
    values: Float[np.ndarray, "row unit"], clusters: Sequence[object] | np.ndarray, seed: int = 0
) -> Float[np.ndarray, " row"]:
    """Two-sided p-values of a mean of 0 in each row: how rarely changed signs of whole clusters give as large a mean.

    If a cluster's sum is as likely to be ``-s`` as ``s``, then all ``2^n`` ways to give signs to ``n`` clusters are
    equally likely, and the share of those with ``|sum| >=`` the one observed is a p-value that is valid at any ``n``
    and for clusters of any sizes.  All are counted, or 9,999 random ones and the one observed.

    Args:
        values: differences of each unit; NaN where it has none.
        clusters: the cluster of each unit.
        seed: of random signs.

    Returns:
        p-values, at least :func:`least_sign_flip_p`; NaN for a row without values.

    Source: Fisher 1935 (The Design of Experiments, section 21); SciPy's ``permutation_test`` with
    ``permutation_type="samples"`` does the same for one row.

    Limits: the signs of lopsided differences are not exchangeable: with few units the error rate is then larger.

    Example:
        >>> sign_flip_p_values(np.array([[1.0, 2.0, 1.5, 0.5, 3.0, 1.0], [1.0, -2.0, 1.5, -0.5, 3.0, -1.0]]), "abcdef")
        array([0.03125, 0.75   ])
    """
    sums, sizes = _by_cluster(values, list(clusters))
    n = sums.shape[1]
    if exact := 2 ** (n - 1) <= FLIPS:  # the sign of the first decides nothing
        ways = np.arange(2 ** max(0, n - 1))[:, None] >> np.arange(n) & 1
    else:
        ways = np.random.default_rng(seed).integers(0, 2, (FLIPS, n))
    largest = np.abs(sums).max(1, initial=0.0, keepdims=True)
    scaled = np.divide(sums, largest, out=np.zeros_like(sums), where=largest > 0)
    found = np.abs(scaled @ (1.0 - 2.0 * ways).T) >= np.abs(scaled.sum(1, keepdims=True)) - 1e-9
    counts = found.sum(1) + (0 if exact else 1)
    return np.where(sizes.sum(1) > 0, counts / (len(ways) + (0 if exact else 1)), np.nan)


def least_sign_flip_p(n: int) -> float:
    """The least that :func:`sign_flip_p_values` can give with ``n`` clusters.

    Example:
        >>> least_sign_flip_p(5), least_sign_flip_p(6)
        (0.0625, 0.03125)
    """
    return min(1.0, max(2.0 ** (1 - n), 1 / (FLIPS + 1)))


def _by_cluster(
    values: Float[np.ndarray, "row unit"], clusters: Sequence[object] | np.ndarray
) -> tuple[Float[np.ndarray, "row cluster"], Float[np.ndarray, "row cluster"]]:
    """Sum of the values of each cluster, and how many there are; clusters in the order of their names."""
    _, numbers = np.unique(np.asarray(clusters).astype(str), return_inverse=True)
    members = np.eye(int(numbers.max(initial=-1)) + 1)[numbers]
    known = ~np.isnan(values)
    return np.where(known, values, 0.0) @ members, known @ members
