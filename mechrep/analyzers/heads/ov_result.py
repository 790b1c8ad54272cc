"""``OVScoreResult``: heads as copiers and suppressors, by their weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from mechrep.analyzers.heads.table import HeadTableResult
from mechrep.stats import percentile_interval


@dataclass(frozen=True, eq=False)
class OVScoreResult(HeadTableResult):
    """Scores of every head's full OV circuit, see :func:`mechrep.analyzers.heads.ov.ov_scores`.

    Attributes:
        eigen: in [-1, 1]; a copier has 1, a head that takes away what it looks at -1; NaN for a head of zeros.
        top1: share of tokens whose own logit rises most.
        topk: share of tokens whose own logit is among the ``k`` that rise most.
        suppress_topk: share of tokens whose own logit is among the ``k`` that fall most.
        eigen_null: ``eigen`` of heads with Gaussian weights.
        k: for ``topk`` and ``suppress_topk``.
        embed: what a head is taken to look at: ``"token"`` or ``"mlp0"``.
        n_tokens: tokens behind the shares.
    """

    names: ClassVar[tuple[str, ...]] = ("eigen", "top1", "topk", "suppress_topk")

    eigen: Float[Tensor, "layer head"]
    top1: Float[Tensor, "layer head"]
    topk: Float[Tensor, "layer head"]
    suppress_topk: Float[Tensor, "layer head"]
    eigen_null: Float[Tensor, " draw"]
    k: int
    embed: str
    n_tokens: int

    @property
    def eigen_band(self) -> tuple[float, float]:
        """Where 99 % of the heads with Gaussian weights lie; ``(nan, nan)`` if none was drawn."""
        return percentile_interval(self.eigen_null.tolist(), confidence=0.99)
