"""Attention heads edited by hand, inside transformers' own attention function: nothing of mechrep takes part.

The pattern is the model's own; rows of it are overwritten, ``z`` is summed head by head and then overwritten too.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from tests.tiny_models import PARTS, tiny

Change = Callable[[Tensor, int, int], Tensor]  # activations of one unit, its layer and number


@dataclass(frozen=True)
class ByHand:
    """What to do to some units.

    Attributes:
        units: ``(layer, head)`` or ``(layer, neuron)`` pairs.
        change: of ``z`` ``[batch pos d_head]``, or of a neuron ``[batch pos]``; ``None`` puts the head's attention on
            the first key.
        part: ``"head"`` or ``"neuron"``.
    """

    units: Sequence[tuple[int, int]]
    change: Change | None
    part: str = "head"

    def numbers(self, layer: int) -> list[int]:
        return [number for in_layer, number in self.units if in_layer == layer]


def where(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(mask.view(*mask.shape, *[1] * (old.ndim - 2)), new, old)


@contextmanager
def attention_by_hand(model: nn.Module, edits: Sequence[ByHand], mask: Tensor) -> Iterator[None]:
    """While open, the heads of ``model`` are edited at the positions of ``mask`` ``[batch pos]``."""
    modeling: Any = sys.modules[type(model).__module__]
    forward = modeling.eager_attention_forward

    def by_hand(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Any:
        _, pattern = forward(module, query, key, value, *args, **options)
        pattern, layer = pattern.clone(), module.layer_idx
        for edit in edits:
            if edit.change is None:
                for head in edit.numbers(layer):
                    rows = pattern[:, head]
                    pattern[:, head] = where(mask, torch.eye(rows.shape[-1])[0].expand_as(rows), rows)
        queries_per_value = query.shape[1] // value.shape[1]
        z = [pattern[:, head] @ value[:, head // queries_per_value] for head in range(query.shape[1])]
        for edit in edits:
            if edit.change is not None:
                for head in edit.numbers(layer):
                    z[head] = where(mask, edit.change(z[head], layer, head), z[head])
        return torch.stack(z, dim=2), pattern

    with mock.patch.object(modeling, "eager_attention_forward", by_hand):
        yield


@functools.cache
def eager(family: str) -> nn.Module:
    """The model of a family with attention that computes its pattern; a copy of its own, never changed."""
    model: Any = copy.deepcopy(tiny(family))
    model.set_attn_implementation("eager")
    return model


def logits_by_hand(family: str, tokens: Tensor, edits: Sequence[ByHand], starts: Tensor) -> Tensor:
    """Logits of transformers' own model, each row edited from its start on."""
    model = eager(family)
    mask = torch.arange(tokens.shape[1])[None] >= starts[:, None]
    with ExitStack() as stack:
        for edit in edits:
            if edit.part == "neuron":
                hook_neurons(stack, model, family, edit, mask)
        stack.enter_context(attention_by_hand(model, [edit for edit in edits if edit.part == "head"], mask))
        return model(tokens, use_cache=False).logits


def hook_neurons(stack: ExitStack, model: nn.Module, family: str, edit: ByHand, mask: Tensor) -> None:
    for layer in {layer for layer, _ in edit.units}:

        def changed(_module: Any, _args: Any, out: Tensor, layer: int = layer) -> Tensor:
            out = out.clone()
            for neuron in edit.numbers(layer):
                assert edit.change is not None
                out[..., neuron] = where(mask, edit.change(out[..., neuron], layer, neuron), out[..., neuron])
            return out

        stack.callback(PARTS[family].of(model, "activation", layer).register_forward_hook(changed).remove)
