"""The published deactivation as it was done: one text at a time, a hook at the last position of every call.

transformers' own ``generate`` with its cache, and the released detector read as words: no part of mechrep.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from tests.tiny_models import PARTS


def hooked(
    stack: ExitStack, family: str, model: nn.Module, units: Sequence[tuple[int, int]], add: float | None
) -> None:
    """Zero the units (or add to them) at the last position of every forward call."""
    for layer in sorted({layer for layer, _ in units}):
        neurons = [neuron for in_layer, neuron in units if in_layer == layer]

        def change(_module: Any, _inputs: Any, out: Tensor, neurons: list[int] = neurons) -> Tensor:
            out = out.clone()
            out[:, -1, neurons] = 0.0 if add is None else out[:, -1, neurons] + add
            return out

        stack.callback(PARTS[family].of(model, "activation", layer).register_forward_hook(change).remove)


def continued(
    family: str,
    model: Any,
    prompt: Sequence[int],
    units: Sequence[tuple[int, int]],
    new_tokens: int,
    *,
    add: float | None = None,
) -> list[int]:
    """Prompt and greedy continuation under the edit."""
    with ExitStack() as stack, torch.no_grad():
        hooked(stack, family, model, units, add)
        ids = torch.tensor([list(prompt)])
        return model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False, pad_token_id=2
        )[0].tolist()  # fmt: skip


def published_detector(ids: Sequence[int], n: int = 10, r: int = 100) -> tuple[int, int, int] | None:
    """Starts of the first 10-gram that stands three times at equal distances within the last 100 tokens."""
    for end in range(n, len(ids) + 1):
        newest = list(ids[end - n : end])
        begin = max(0, end - r)
        places = [i for i in range(begin, end - n + 1) if list(ids[i : i + n]) == newest]
        if len(places) >= 3 and places[1] - places[0] == places[2] - places[1]:
            return places[0], places[1], places[2]
    return None


def losses(
    family: str, model: Any, rows: Sequence[Sequence[int]], units: Sequence[tuple[int, int]], add: float | None = None
) -> list[float]:
    """Mean -log p over the second half of each text, the edit from the position before it on; one text at a time."""
    means = []
    for ids in rows:
        middle = len(ids) // 2
        with ExitStack() as stack, torch.no_grad():
            for layer, neuron in units:

                def change(_module: Any, _inputs: Any, out: Tensor, neuron: int = neuron) -> Tensor:
                    out = out.clone()
                    out[:, middle - 1 :, neuron] = 0.0 if add is None else out[:, middle - 1 :, neuron] + add  # noqa: B023
                    return out

                stack.callback(PARTS[family].of(model, "activation", layer).register_forward_hook(change).remove)
            logits = model(torch.tensor([list(ids)]), use_cache=False).logits[0].double()
        scores = torch.log_softmax(logits, dim=-1)
        means.append(-sum(float(scores[t - 1, ids[t]]) for t in range(middle, len(ids))) / (len(ids) - middle))
    return means
