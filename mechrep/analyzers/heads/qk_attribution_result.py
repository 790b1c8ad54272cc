"""``QKAttributionResult``: what a head's attention scores are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrep.errors import InputError
from mechrep.results import Result, check_count


@dataclass(frozen=True, eq=False)
class QKAttributionResult(Result):
    """Contributions to one head's scores before the softmax.

    A ``_contrast`` is the contribution less its mean over the query's other keys.

    Attributes:
        layer: of the head.
        head: its number.
        components: names: ``embed`` (``pos_embed`` beside it where positions are learned), ``L0H0`` and so on for
            earlier heads, ``MLP0`` and so on, ``bias`` (all biases on the way), ``remainder`` (rounding error, or what
            is unknown).
        edges: ``(text, query, key)``.
        scores: the model's own scores.
        pairs: mean over the edges, first axis the query's component, second the key's; its sum is the mean score.
        pairs_contrast: the same as a contrast; NaN if a query sees one key only.
        by_query: contribution of each component of the query, with all components of the key; rows sum to ``scores``.
        by_query_contrast: the same as a contrast; NaN for a query that sees one key only.
        by_key: contribution of each component of the key, with all components of the query; rows sum to ``scores``.
        by_key_contrast: the same as a contrast; NaN for a query that sees one key only.
    """

    layer: int
    head: int
    components: Sequence[str]
    edges: Int[Tensor, "edge 3"]
    scores: Float[Tensor, " edge"]
    pairs: Float[Tensor, "component component"]
    pairs_contrast: Float[Tensor, "component component"]
    by_query: Float[Tensor, "edge component"]
    by_query_contrast: Float[Tensor, "edge component"]
    by_key: Float[Tensor, "edge component"]
    by_key_contrast: Float[Tensor, "edge component"]

    def marginals(self, side: Literal["query", "key"]) -> pd.DataFrame:
        """One row per component of one side: component, contribution, contrast, and share (of the summed contrast).

        Means over the edges; the largest contrast comes first.

        Raises:
            InputError: neither query nor key.
        """
        tables = {"query": (self.by_query, self.by_query_contrast), "key": (self.by_key, self.by_key_contrast)}
        if side not in tables:
            raise InputError(f"side {side!r}", "'query' or 'key'", "choose one of these")
        contribution, contrast = (table.double().mean(0) for table in tables[side])
        columns = {"contribution": contribution, "contrast": contrast, "share": contrast / contrast.sum()}
        frame = pd.DataFrame({"component": self.components, **{name: part.numpy() for name, part in columns.items()}})
        return frame.sort_values("contrast", ascending=False, kind="stable", ignore_index=True)

    def top(self, k: int) -> list[tuple[str, str]]:
        """The ``k`` pairs of components, the query's first, that tell the key most from the query's other keys.

        Raises:
            InputError: ``k`` larger than the number of pairs.
        """
        frame = self.to_frame().sort_values("contrast", ascending=False, kind="stable", ignore_index=True)
        check_count(k, len(frame), "pairs of components")
        return [(str(a), str(b)) for a, b in frame.loc[:, ["component_query", "component_key"]].to_numpy()[:k]]

    def to_frame(self) -> pd.DataFrame:
        """One row per pair, largest contribution first: component_query, component_key, contribution, contrast."""
        order = torch.argsort(self.pairs.abs().flatten(), descending=True, stable=True)
        names, width = list(self.components), len(self.components)
        return pd.DataFrame(
            {
                "component_query": [names[index // width] for index in order.tolist()],
                "component_key": [names[index % width] for index in order.tolist()],
                "contribution": self.pairs.flatten()[order].numpy(),
                "contrast": self.pairs_contrast.flatten()[order].numpy(),
            }
        )
