"""How well one number per token tells first tokens from others: the area under the ROC curve, and its uncertainty.

The area is the chance that a first token's number is larger than another's, ties counting half: 0.5 tells nothing.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

Values = Float[np.ndarray, "token unit"]


def aurocs(values: Values, first: Bool[np.ndarray, " token"]) -> Float[np.ndarray, " unit"]:
    """The area of every unit; NaN where there are no first tokens or no others.

    Args:
        values: one number per token and unit.
        first: which tokens are first.

    Source: the rank sum, Mann and Whitney 1947.

    Example:
        >>> values = np.array([[3.0, 1.0], [2.0, 1.0], [1.0, 1.0]])
        >>> aurocs(values, np.array([True, False, False])).tolist()
        [1.0, 0.5]
    """
    from scipy.stats import rankdata

    return areas_of_ranks(rankdata(values, axis=0), first)


def areas_of_ranks(ranks: Values, first: Bool[np.ndarray, " token"]) -> Float[np.ndarray, " unit"]:
    """:func:`aurocs` of values whose ranks are known: for many labellings of the same values."""
    positives, negatives = int(first.sum()), int((~first).sum())
    if min(positives, negatives) == 0:
        return np.full(ranks.shape[1], np.nan)
    return (ranks[first].sum(0) - positives * (positives + 1) / 2) / (positives * negatives)


def auroc_draws(
    values: Float[np.ndarray, " token"],
    first: Bool[np.ndarray, " token"],
    groups: Int[np.ndarray, " token"],
    draws: int = 500,
    seed: int = 0,
) -> Float[np.ndarray, " draw"]:
    """Areas of bootstrap samples in which whole groups are drawn; NaN where a sample lacks a class.

    Two numbers of the same tokens, drawn with the same seed, are paired: subtract their draws.

    Args:
        values: one number per token.
        first: which tokens are first.
        groups: tokens that belong together (the same word at several places is no independent evidence).
        draws: samples.
        seed: of the draws.

    Example:
        >>> values, first = np.array([2.0, 1.0, 2.5, 0.0]), np.array([True, False, True, False])
        >>> auroc_draws(values, first, np.array([0, 0, 1, 1]), draws=3).tolist()
        [1.0, 1.0, 1.0]
    """
    names, members = np.unique(groups, return_inverse=True)
    counts = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    order = np.argsort(values, kind="stable")
    weights, ordered = counts[:, members[order]].astype(float), first[order]
    starts = np.flatnonzero(np.r_[True, np.diff(values[order]) != 0])  # one bin per distinct value
    positives = np.add.reduceat(weights * ordered, starts, axis=1)
    negatives = np.add.reduceat(weights * ~ordered, starts, axis=1)
    below = negatives.cumsum(1) - negatives / 2
    pairs = positives.sum(1) * negatives.sum(1)
    won = (positives * below).sum(1)
    return np.divide(won, pairs, out=np.full(draws, np.nan), where=pairs > 0)
