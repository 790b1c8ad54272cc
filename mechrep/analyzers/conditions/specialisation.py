"""How concentrated effects are on few heads."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def gini(effects: Float[np.ndarray, "*draw head"]) -> Float[np.ndarray, "*draw"]:
    """Gini coefficient of the sizes of the effects: 0 if all heads have the same, ``1 - 1 / H`` if one has all.

    With the sizes in rising order ``a_1 <= ... <= a_H``: ``sum_i (2 i - H - 1) a_i / (H sum_i a_i)``; NaN if all
    are zero.

    Example:
        >>> gini(np.array([[1.0, -1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 5.0]])).tolist()
        [0.0, 0.75]
    """
    sizes = np.sort(np.abs(np.asarray(effects, dtype=float)), axis=-1)
    n, total = sizes.shape[-1], np.asarray(sizes.sum(-1))
    ranks = 2 * np.arange(1, n + 1) - n - 1
    return np.divide(np.asarray(sizes @ ranks), n * total, out=np.full_like(total, np.nan), where=total > 0)


def effective_number(effects: Float[np.ndarray, "*draw head"]) -> Float[np.ndarray, "*draw"]:
    """Number of equally strong heads that would be as concentrated: ``exp(-sum_h p_h log p_h)``.

    ``p_h`` is the head's share of the summed sizes; NaN if all are zero.

    Example:
        >>> effective_number(np.array([[1.0, -1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 5.0]])).round(6).tolist()
        [4.0, 1.0]
    """
    sizes = np.abs(np.asarray(effects, dtype=float))
    total = sizes.sum(-1, keepdims=True)
    shares = np.divide(sizes, total, out=np.full_like(sizes, np.nan), where=total > 0)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.asarray(np.exp(-(shares * logs).sum(-1)))
