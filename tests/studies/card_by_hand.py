"""The card's numbers once more, from plain Hugging Face forward passes and without anything of mechrep's analyzers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Seen:
    """One forward pass: logits, all attention patterns, and the residual norm after every block."""

    logits: Tensor
    patterns: Tensor  # layer text head query key
    norms: Tensor  # layer text pos


@torch.no_grad()
def look(model: Any, tokens: Tensor) -> Seen:
    """Run a Hugging Face Llama with eager attention."""
    norms: list[Tensor] = []

    def keep(_module: Any, _args: Any, output: Any) -> None:
        norms.append((output[0] if isinstance(output, tuple) else output).norm(dim=-1))

    handles = [layer.register_forward_hook(keep) for layer in model.model.layers]
    answer = model(input_ids=tokens, output_attentions=True, use_cache=False)
    for handle in handles:
        handle.remove()
    return Seen(answer.logits, torch.stack(answer.attentions), torch.stack(norms))


def losses(seen: Seen, tokens: Tensor) -> Tensor:
    """Loss of every token but the first ``[text target]``."""
    log_probabilities = seen.logits.log_softmax(-1)[:, :-1]
    return -log_probabilities.gather(-1, tokens[:, 1:, None])[..., 0]


def induction(seen: Seen, period: int) -> Tensor:
    """Mean attention from each token of the second copy to the token after its first occurrence ``[layer head]``."""
    queries = range(period + 1, seen.patterns.shape[-1])
    return torch.stack([seen.patterns[..., i, i - period + 1] for i in queries]).mean((0, 2))


def previous_token(seen: Seen) -> Tensor:
    """Mean attention to the token before, BOS never being one ``[layer head]``."""
    return torch.stack([seen.patterns[..., i, i - 1] for i in range(2, seen.patterns.shape[-1])]).mean((0, 2))


def first_token(seen: Seen) -> Tensor:
    """Mean attention of all later positions to the first ``[layer head]``."""
    return seen.patterns[..., 1:, 0].mean((1, 3))


def norm_ratio(seen: Seen) -> Tensor:
    """Mean norm at position 0 over the mean norm elsewhere, after every block."""
    return seen.norms[..., 0].mean(1) / seen.norms[..., 1:].mean((1, 2))
