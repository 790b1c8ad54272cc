"""``HeadCopyingResult``: what a run of :class:`~mechrep.analyzers.heads.copying.HeadCopying` measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrep.analyzers.heads.table import HeadTableResult
from mechrep.provenance import Provenance

_BAND = NormalDist().inv_cdf(0.995)  # standard deviations on either side that hold 99 %


@dataclass(frozen=True, eq=False)
class HeadCopyingResult(HeadTableResult):
    """How much every head says the token that comes next in a repeat.

    Attributes:
        functional: correlation of the head's direct logits with the one-hot of that token, in [-1, 1]; NaN for a head
            whose direct logits are always flat.
        dla: the direct logit of that token, less the mean of all; in logits.
        prefix: attention on the tokens that follow earlier copies, at the same queries.
        functional_null: mean of ``functional`` when a text's queries swap their targets, over all permutations.
        functional_null_sd: its standard deviation over the permutations.
        prefix_null: the same for ``prefix``.
        prefix_null_sd: the same for ``prefix``.
        flat: queries that are not in ``functional`` because the head's logits there are all the same.
        n_queries: queries.
        n_texts: texts with a query.
    """

    names: ClassVar[tuple[str, ...]] = ("functional", "dla", "prefix")

    functional: Float[Tensor, "layer head"]
    dla: Float[Tensor, "layer head"]
    prefix: Float[Tensor, "layer head"]
    functional_null: Float[Tensor, "layer head"]
    functional_null_sd: Float[Tensor, "layer head"]
    prefix_null: Float[Tensor, "layer head"]
    prefix_null_sd: Float[Tensor, "layer head"]
    flat: Int[Tensor, "layer head"]
    n_queries: int
    n_texts: int

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], provenance: Provenance) -> HeadCopyingResult:
        """Turn sums into means."""
        queries = state["queries"]
        counted = {"functional": queries - state["flat"], "prefix": queries}
        tables = {"dla": state["dla"] / queries}
        for name, count in counted.items():
            tables[name] = state[name] / count
            tables[f"{name}_null"] = state[f"{name}_null"] / count
            tables[f"{name}_null_sd"] = state[f"{name}_spread"].sqrt() / count
        return cls(
            provenance,
            **{name: table.float() for name, table in tables.items()},
            flat=state["flat"].long(),
            n_queries=int(queries),
            n_texts=int(state["texts"]),
        )

    @property
    def functional_band(self) -> Float[Tensor, "2 layer head"]:
        """Lower and upper end of the 99 % band of ``functional`` under its null; the many queries make it normal."""
        return _band(self.functional_null, self.functional_null_sd)

    @property
    def prefix_band(self) -> Float[Tensor, "2 layer head"]:
        """Lower and upper end of the 99 % band of ``prefix`` under its null."""
        return _band(self.prefix_null, self.prefix_null_sd)


def _band(mean: Tensor, sd: Tensor) -> Tensor:
    return torch.stack([mean - _BAND * sd, mean + _BAND * sd])
