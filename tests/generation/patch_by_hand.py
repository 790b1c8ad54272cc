"""The sink patch by hand on bare transformers models: whole texts, no cache, one text at a time.

Nothing of mechrep takes part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tests.tiny_models import GATED, PARTS

BOS = 0
LAYER, NEURONS = 1, [5, 17, 40]


def up_module(model: nn.Module, family: str, layer: int = LAYER) -> nn.Module:
    """The module whose output is held: the up-projection, or without a gate the activation function."""
    return PARTS[family].of(model, "up_projection" if family in GATED else "activation", layer)


@contextmanager
def held(model: nn.Module, family: str, anchor: int, neurons: Sequence[int] = NEURONS) -> Iterator[None]:
    """While open, calls with one whole text are patched."""

    def hold(_module: Any, _args: Any, output: Tensor) -> Tensor:
        assert len(output) == 1
        changed = output.clone()
        for position in range(anchor, output.shape[1]):
            for neuron in neurons:
                changed[0, position, neuron] = output[0, anchor, neuron]
        return changed

    handle = up_module(model, family).register_forward_hook(hold)
    try:
        yield
    finally:
        handle.remove()


def logits_by_hand(model: nn.Module, family: str, ids: Sequence[int], neurons: Sequence[int] = NEURONS) -> Tensor:
    """Logits ``[pos d_vocab]`` of one whole text under the patch."""
    with torch.no_grad(), held(model, family, int(ids[0] == BOS), neurons):
        return model(torch.tensor([list(ids)]), use_cache=False).logits[0]


def text_by_hand(model: nn.Module, family: str, prompt: Sequence[int], steps: int) -> list[int]:
    """Prompt and greedy continuation; everything is computed anew for every token."""
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(logits_by_hand(model, family, ids)[-1].argmax()))
    return ids
