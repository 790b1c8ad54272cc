"""``CopySuppressionResult``: what a run of :class:`~mechrep.analyzers.heads.suppression.CopySuppression` measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from mechrep.analyzers.heads.table import HeadTableResult
from mechrep.provenance import Provenance


@dataclass(frozen=True, eq=False)
class CopySuppressionResult(HeadTableResult):
    """How much every head looks at what the model is about to say, and makes it less likely.

    Attributes:
        cs: ``sqrt(qk_adjusted * ov)``; 1.0 for a pure suppressor.
        qk: attention on tokens that the logit lens before the layer predicts.
        qk_adjusted: ``qk``, with uniform attention at 0 and a perfect head at 1.
        ov: share of tokens whose own logit is among the ``k`` that the head lowers most (``suppress_topk``).
        functional: correlation of the head's direct logits with the one-hot of a predicted token before, sign turned;
            NaN for a head whose direct logits are always flat.
        chance: ``qk`` of uniform attention.
        n_queries: queries with a predicted token before them, by layer.
        m: tokens of the logit lens that count as predicted.
    """

    names: ClassVar[tuple[str, ...]] = ("cs", "qk", "qk_adjusted", "ov", "functional")

    cs: Float[Tensor, "layer head"]
    qk: Float[Tensor, "layer head"]
    qk_adjusted: Float[Tensor, "layer head"]
    ov: Float[Tensor, "layer head"]
    functional: Float[Tensor, "layer head"]
    chance: Float[Tensor, " layer"]
    n_queries: Sequence[int]
    m: int

    @classmethod
    def from_state(
        cls, state: Mapping[str, Tensor], provenance: Provenance, ov: Float[Tensor, "layer head"], m: int
    ) -> CopySuppressionResult:
        """Turn sums into means; a layer without a query has NaN."""
        queries = state["queries"]
        qk, chance = state["attention"] / queries[:, None], state["chance"] / queries
        adjusted = (qk - chance[:, None]) / (1 - chance[:, None])
        tables = {
            "cs": (adjusted.clamp_min(0) * ov).sqrt(),
            "qk": qk,
            "qk_adjusted": adjusted,
            "ov": ov,
            "functional": -state["correlation"] / state["counted"],
            "chance": chance,
        }
        n_queries = [int(n) for n in queries.tolist()]
        return cls(provenance, **{name: table.float() for name, table in tables.items()}, n_queries=n_queries, m=m)
