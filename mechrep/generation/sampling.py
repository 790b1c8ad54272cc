"""Choosing the next token of every row: greedily, or with random numbers that belong to the text."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor


def choose_tokens(
    logits: Float[Tensor, "batch d_vocab"], uniforms: Float[Tensor, " batch"], temperature: float, top_k: int | None
) -> Int[Tensor, " batch"]:
    """Next ids: the most probable one, or by inverting the cumulative distribution at ``uniforms``.

    Args:
        logits: scores of the next token.
        uniforms: one number in [0, 1) per row; not used when greedy.
        temperature: 0 is greedy; else the logits are divided by it.
        top_k: keep only so many most probable tokens.

    Example:
        >>> import torch
        >>> choose_tokens(torch.tensor([[0.0, 5.0, 1.0]]), torch.tensor([0.5]), 0.0, None)
        tensor([1])
    """
    if temperature == 0:
        return logits.argmax(-1)
    count = logits.shape[-1] if top_k is None else min(top_k, logits.shape[-1])
    best, ids = logits.double().topk(count, dim=-1)
    cumulative = (best / temperature).softmax(-1).cumsum(-1)
    picked = (cumulative <= uniforms.double()[:, None] * cumulative[:, -1:]).sum(-1).clamp_max(count - 1)
    return ids.gather(-1, picked[:, None]).squeeze(-1)
