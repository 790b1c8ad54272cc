"""Greedy decoding as obvious as it can be: one text, no cache, everything recomputed for every token.

The model is transformers' own, edited by torch hooks; nothing of mechrep takes part.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.tiny_models import PARTS, tiny


@dataclass(frozen=True)
class Edit:
    """What to do to some neurons, in words that mechrep's interventions do not share.

    Attributes:
        units: ``(layer, neuron)`` pairs.
        times: factor.
        plus: then added.
        part: ``"activation"`` or ``"mlp_output"`` (its input).
    """

    units: Sequence[tuple[int, int]]
    times: float
    plus: float
    part: str = "activation"


def edited(activation: Tensor, neurons: list[int], edit: Edit, start: int) -> Tensor:
    """The activation ``[1 pos d_mlp]`` with the edit from ``start`` on."""
    out = activation.clone()
    out[:, start:, neurons] = activation[:, start:, neurons] * edit.times + edit.plus
    return out


def attach(stack: ExitStack, model: nn.Module, family: str, edits: Sequence[Edit], start: Callable[[int], int]) -> None:
    """Hook the edits into the model; ``start`` maps the number of positions of a call to the first edited one."""
    for edit in edits:
        for layer in sorted({layer for layer, _ in edit.units}):
            neurons = [neuron for in_layer, neuron in edit.units if in_layer == layer]

            def change(activation: Tensor, edit: Edit = edit, neurons: list[int] = neurons) -> Tensor:
                return edited(activation, neurons, edit, start(activation.shape[1]))

            module = PARTS[family].of(model, edit.part, layer)
            if edit.part == "activation":
                handle = module.register_forward_hook(lambda _module, _args, out, change=change: change(out))
            else:
                handle = module.register_forward_pre_hook(lambda _module, args, change=change: (change(args[0]),))
            stack.callback(handle.remove)


def obvious_text(
    family: str,
    prompt: Sequence[int],
    steps: int,
    edits: Sequence[Edit] = (),
    start: int = 0,
    stop: Callable[[list[int]], bool] = lambda ids: False,
    forbidden: Sequence[int] = (),
) -> list[int]:
    """Prompt and greedy continuation, the edits active at positions ``>= start`` of the text."""
    model, ids = copy.deepcopy(tiny(family)), list(prompt)
    with ExitStack() as stack:
        attach(stack, model, family, edits, lambda _length: start)
        for _ in range(steps):
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
            logits[list(forbidden)] = -torch.inf
            ids.append(int(logits.argmax()))
            if stop(ids):
                break
    return ids
