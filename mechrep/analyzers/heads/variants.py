"""Published normalisations of prefix matching, each to the letter; never carry a threshold from one to another.

What a head scores that attends to nothing but the token after the earlier copy (``[BOS] + r + r``, ``n = 50`` unless
another stimulus is named):

====================  ============  ====================================================================
``induction``         1.0           mechrep's own, see :mod:`mechrep.analyzers.heads.scores`
``tl_mul``            0.495         0.5 without BOS; 0.746 on ``r * 4``: all rows count, matching or not
``tl_mul_no_bos``     0.5 to 1.0    by where idle rows rest; NaN for a head that only looks at BOS
``tl_abs``            0.495         -0.48 for a head with uniform attention
``diagonal``          0.96 or 0.98  by where the last row of the first copy rests
``doan2025``          0.495         ``[BOS] + r * 4``: 150 queries over 303 pairs
``song2025``          1.0           25/26 with BOS; ``n = 25``
====================  ============  ====================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrep.analyzers.heads.targets import earlier_copies, one_later
from mechrep.errors import InputError

VARIANTS = ("tl_mul", "tl_mul_no_bos", "tl_abs", "diagonal", "doan2025", "song2025")
NEED_PERIOD = frozenset({"diagonal", "doan2025", "song2025"})

# Keyword arguments of mechrep.analyzers.score_heads.  The published filters of tokens (by frequency, by BPE rank) are
# not among them: they depend on the tokenizer, and mechrep draws from all ordinary tokens.
PROTOCOLS: Mapping[str, Mapping[str, Any]] = {
    "olsson2022": {"n": 25, "copies": 4, "bos": True},  # read off result.induction, copies="all"
    "song2025": {"n": 25, "sequences": 50, "bos": False, "variants": ("song2025",)},
    "doan2025": {"n": 50, "copies": 4, "sequences": 5, "bos": True, "variants": ("doan2025",)},
    "yin2025": {"n": 50, "sequences": 1000, "bos": True, "variants": ("tl_abs", "tl_mul")},
}


def tl_mul(
    pattern: Float[Tensor, "*batch head query_pos key_pos"],
    target: Float[Tensor, "*batch query_pos key_pos"],
    *,
    exclude_bos: bool = False,
) -> Float[Tensor, "*batch head"]:
    """TransformerLens' ``detect_head`` with ``error_measure="mul"``: attention on targets over all attention.

    ``sum A * D / sum A`` over *all* rows, those without a target too.

    Args:
        pattern: attention.
        target: 1 at target keys, else 0.
        exclude_bos: leave column 0 out of both sums.  A head that looks at nothing else gives NaN.

    Source: TransformerLens, ``head_detector`` (as of 3.9.0).

    Example:
        >>> tl_mul(torch.tensor([[[1.0, 0.0], [0.25, 0.75]]]), torch.tensor([[0.0, 0.0], [1.0, 0.0]])).tolist()
        [0.125]
    """
    from_key = 1 if exclude_bos else 0
    kept = pattern[..., from_key:]
    return torch.einsum("...hqk,...qk->...h", kept, target[..., from_key:].to(kept)) / kept.sum((-2, -1))


def tl_abs(
    pattern: Float[Tensor, "*batch head query_pos key_pos"], target: Float[Tensor, "*batch query_pos key_pos"]
) -> Float[Tensor, "*batch head"]:
    """TransformerLens' ``detect_head`` with ``error_measure="abs"``: ``1 - round(T * mean abs(A - D), 3)``.

    Args:
        pattern: attention.
        target: wanted attention.

    Source: TransformerLens, ``head_detector`` (as of 3.9.0).  Used by Yin and Steinhardt 2025 (arXiv 2502.14010), with
    releases that may have computed ``"mul"`` instead.

    Example:
        >>> tl_abs(torch.eye(4)[None], torch.eye(4)).tolist()
        [1.0]
    """
    apart = (pattern - target.to(pattern).unsqueeze(-3)).abs()
    return 1 - torch.round(apart.mean((-2, -1)) * pattern.shape[-1], decimals=3)


def diagonal(pattern: Float[Tensor, "*batch head query_pos key_pos"], n: int) -> Float[Tensor, "*batch head"]:
    """Mean of the diagonal ``j = i - n + 1`` over all its ``T - n + 1`` entries, boundary rows included.

    Args:
        pattern: attention on repeats of ``n`` tokens.
        n: period.

    Source: the idiom of TransformerLens' demos and of courses built on it (threshold 0.4 there).
    """
    return pattern.diagonal(offset=1 - n, dim1=-2, dim2=-1).mean(-1)


def song2025(pattern: Float[Tensor, "*batch head query_pos key_pos"], n: int = 25) -> Float[Tensor, "*batch head"]:
    """Row and column 0 removed, rows divided by their sum; mean of the diagonal ``j = i - n + 1`` of what is left.

    As in the released code each entry adds 1e-6 to the sum that a row is divided by: a perfect head scores
    ``1 / (1 + 1e-6 (T - 1))``, and an empty row 0.

    Args:
        pattern: attention on two copies of ``n`` tokens.
        n: period.

    Source: Song, Xu and Zhong 2025 (arXiv 2408.09503), released code.
    """
    inner = pattern[..., 1:, 1:]
    return diagonal(inner / (inner + 1e-6).sum(-1, keepdim=True), n)


def doan2025(pattern: Float[Tensor, "*batch head query_pos key_pos"], n: int = 50) -> Float[Tensor, "*batch head"]:
    """Attention on ``[BOS] + r * m`` over the number of (query, key) pairs, not of queries.

    Query ``i > n`` has the keys ``c n + (i mod n) + 1`` for ``c < floor(i / n)``.  Where ``i`` is a multiple of ``n``
    they include key 1, which follows BOS.

    Args:
        pattern: attention on BOS and at least two copies of ``n`` tokens.
        n: period.

    Raises:
        InputError: a length that is not BOS and two or more copies.

    Source: Doan et al. 2025 (arXiv 2507.07810), released code.
    """
    length = pattern.shape[-1]
    if n < 1 or length <= 2 * n or length % n != 1 % n:
        raise InputError(f"a text of {length} tokens for doan2025", f"BOS and copies of n = {n} tokens", "correct n")
    pairs = [(i, copy * n + i % n + 1) for i in range(n + 1, length) for copy in range(i // n)]
    query, key = torch.tensor(pairs, device=pattern.device).T
    return pattern[..., query, key].mean(-1)


@dataclass(frozen=True)
class VariantTexts:
    """Texts of a batch that have one length and one period, so that their patterns need no padding.

    Attributes:
        rows: their places in the batch.
        length: tokens of each.
        period: of their loops, where the frame states it.
        target: TransformerLens' detection pattern for induction heads, to which a BOS is a token like others.
    """

    rows: list[int]
    length: int
    period: int
    target: Float[Tensor, "text query_pos key_pos"]

    @classmethod
    def of(
        cls, tokens: Int[Tensor, "batch pos"], lengths: Int[Tensor, " batch"], periods: Sequence[int]
    ) -> list[VariantTexts]:
        """The texts of a batch, sorted by length and period."""
        alike: dict[tuple[int, int], list[int]] = {}
        for row, (length, period) in enumerate(zip(lengths.tolist(), periods, strict=True)):
            alike.setdefault((length, period), []).append(row)
        groups = []
        for (length, period), rows in alike.items():
            ids = tokens[rows][:, :length]
            no_bos = torch.zeros(len(rows), dtype=torch.bool, device=ids.device)
            groups.append(cls(rows, length, period, one_later(earlier_copies(ids, no_bos)).float()))
        return groups

    def score(self, name: str, pattern: Float[Tensor, "batch head query_pos key_pos"]) -> Float[Tensor, "text head"]:
        """One of ``VARIANTS``, given the attention of the whole batch."""
        real = pattern[self.rows][:, :, : self.length, : self.length]
        if name in NEED_PERIOD:
            return {"diagonal": diagonal, "doan2025": doan2025, "song2025": song2025}[name](real, self.period)
        return (
            tl_abs(real, self.target) if name == "tl_abs" else tl_mul(real, self.target, exclude_bos=name != "tl_mul")
        )
