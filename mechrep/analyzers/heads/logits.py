"""``DirectLogits``: what vectors of the residual stream say, without making the logits of the whole vocabulary."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrep.analyzers.heads.frozen_norm import exact

# Of the squared logits that a vector of this length has on average: less is rounding error, so the logits are flat.
_FLAT = 1e-12


class DirectLogits:
    """Logits of vectors of the residual stream, centred over the vocabulary, without making all of them.

    Args:
        unembed: unembedding, centred over the vocabulary.

    Example:
        >>> eye = torch.eye(5)
        >>> logits, correlation = DirectLogits(eye - eye.mean(1, keepdim=True)).of(eye[:2], torch.tensor([0, 3]))
        >>> correlation.round(decimals=3).tolist()
        [[1.0, -0.25], [-0.25, -0.25]]
    """

    def __init__(self, unembed: Float[Tensor, "d_model d_vocab"]) -> None:
        self.unembed = unembed
        self.gram = exact(torch.zeros(len(unembed), len(unembed), device=unembed.device))
        for columns in unembed.split(4096, dim=1):
            self.gram += exact(columns) @ exact(columns).T

    def of(
        self, vectors: Float[Tensor, "*batch d_model"], tokens: Int[Tensor, " token"]
    ) -> tuple[Float[Tensor, "*batch token"], Float[Tensor, "*batch token"]]:
        """Logits of some tokens, and the correlation of all logits with the one-hot of each of them.

        The correlation is NaN for a vector whose logits are all the same.
        """
        vectors, vocabulary = exact(vectors).to(self.gram.device), self.unembed.shape[1]
        logits = vectors @ exact(self.unembed[:, tokens.to(self.gram.device)])
        squares = ((vectors @ self.gram) * vectors).sum(-1, keepdim=True)
        typical = vectors.square().sum(-1, keepdim=True) * self.gram.diagonal().mean()
        spread = torch.where(squares <= _FLAT * typical, torch.nan, squares).sqrt()
        return logits, logits / spread * (vocabulary / (vocabulary - 1)) ** 0.5
