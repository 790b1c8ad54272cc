"""``AttentionSinkResult``: how much attention every head gives to the first position."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.provenance import Provenance
from mechrep.results import Result, check_count

_ENOUGH_ROWS = 0.5  # a key competes for "best other key" if it is seen by half as many queries as the first


@dataclass(frozen=True, eq=False)
class AttentionSinkResult(Result):
    """Attention to the first position, head by head; means over texts, every text counting once.

    All numbers fall with the length of the texts: compare only at equal lengths, and with a null.

    Attributes:
        alpha: ``alpha~_0``, mean over queries t > 0 of A[t, 0]; a perfect sink is 1.  NaN without a text of two tokens.
        alpha_published: ``alpha_0`` of Gu et al., with the first query, whose attention is 1 in every model.
        rate: share of texts with ``alpha_0 > epsilon``.
        key_importance: mean over queries t > k of A[t, k] for the first keys, pooled over texts.
        key_rows: how many queries each of these means is made of.
        row_entropy: mean over t > 0 of the entropy of A[t, :] over log(t + 1): 0 for one key, 1 for uniform.
        column_entropy: largest entropy of a column, A[:, k] over its sum, over log(T - k): 1 for equal shares.
        uniform_alpha: what ``alpha`` would be if all heads attended uniformly to texts of these lengths.
        epsilon: the threshold of ``rate``.
        mean_length: mean number of tokens per text, T.
        length_sd: its standard deviation over texts; 0 where all texts are equally long.
        n_texts: texts.
    """

    alpha: Float[Tensor, "layer head"]
    alpha_published: Float[Tensor, "layer head"]
    rate: Float[Tensor, "layer head"]
    key_importance: Float[Tensor, "layer head key"]
    key_rows: Float[Tensor, " key"]
    row_entropy: Float[Tensor, "layer head"]
    column_entropy: Float[Tensor, "layer head"]
    uniform_alpha: float
    epsilon: float
    mean_length: float
    length_sd: float
    n_texts: int

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], provenance: Provenance, epsilon: float) -> AttentionSinkResult:
        """Turn sums into means; texts of one token have no query but their own and count in ``alpha_0`` only."""
        texts, longer = state["texts"], state["longer_texts"]
        length = float(state["length_sum"] / texts)
        variance = float(state["length_squares"] / texts) - length**2
        tensors = {
            "alpha": state["alpha_sum"] / longer,
            "alpha_published": state["published_sum"] / texts,
            "rate": state["above"] / texts,
            "key_importance": state["key_sum"] / state["key_rows"],
            "key_rows": state["key_rows"],
            "row_entropy": state["row_entropy_sum"] / longer,
            "column_entropy": state["column_entropy_sum"] / longer,
        }
        return cls(
            provenance,
            **{name: value.float() for name, value in tensors.items()},
            uniform_alpha=float(state["uniform_sum"] / longer),
            epsilon=epsilon,
            mean_length=length,
            length_sd=max(variance, 0.0) ** 0.5,
            n_texts=int(texts),
        )

    @property
    def sink_share(self) -> float:
        """``Sink_1^epsilon`` of Gu et al. in per cent: mean over texts, layers and heads of ``alpha_0 > epsilon``."""
        return 100 * float(self.rate.double().mean())

    @property
    def best_other_key(self) -> Float[Tensor, "layer head key_and_importance"]:
        """Per head the position of the key after the first that gets most attention, and how much; NaN without one.

        Only keys that at least half as many queries see as the first: what the last tokens give to each other says
        little.
        """
        rivals = (self.key_rows >= _ENOUGH_ROWS * self.key_rows[0]) & (self.key_rows > 0)
        rivals[0] = False
        values = self.key_importance.masked_fill(~rivals, -torch.inf)
        best = values.max(-1)
        found = torch.stack([best.indices.float(), best.values], dim=-1)
        return found.masked_fill(~rivals.any(), torch.nan)

    def ranking(self) -> list[tuple[int, int]]:
        """All ``(layer, head)``, the largest ``alpha`` first."""
        values = torch.nan_to_num(self.alpha.flatten(), nan=-torch.inf)
        heads = self.alpha.shape[1]
        order = torch.argsort(values, descending=True, stable=True).tolist()
        return [(index // heads, index % heads) for index in order]

    def top(self, k: int) -> list[tuple[int, int]]:
        """The ``k`` heads that attend most to the first position.

        Raises:
            InputError: ``k`` larger than the number of heads.
        """
        check_count(k, self.alpha.numel(), "heads")
        return self.ranking()[:k]

    def to_frame(self) -> pd.DataFrame:
        """One row per head, best first."""
        layers, heads = torch.tensor(self.ranking()).T
        other = self.best_other_key[layers, heads]
        columns = {
            "alpha": self.alpha[layers, heads],
            "alpha_published": self.alpha_published[layers, heads],
            "rate": self.rate[layers, heads],
            "other_key": other[:, 0],
            "other_alpha": other[:, 1],
            "row_entropy": self.row_entropy[layers, heads],
            "column_entropy": self.column_entropy[layers, heads],
        }
        values = {name: value.numpy() for name, value in columns.items()}
        return pd.DataFrame({"layer": layers.numpy(), "head": heads.numpy(), **values})
