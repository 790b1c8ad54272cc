"""What mechrep should say about a pretrained model, from plain transformers and hooks: one text at a time, no cache.

Nothing here imports mechrep.  Attention is computed step by step, so that patterns can be seen.  Layers count from 0;
depth 0 is the input of layer 0, depth l + 1 the output of layer l.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Units = Sequence[tuple[int, int]]
Ids = Sequence[int]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}


@dataclass
class Seen:
    """One text.

    Attributes:
        stream: ``[depth pos d_model]``.
        pattern: ``[layer head query_pos key_pos]``; nothing where it was not asked for.
        act: the activation function's output, ``[layer pos neuron]``.
        product: what is projected down, ``[layer pos neuron]``.
        written: the down-projection's output, ``[layer pos d_model]``.
        logits: ``[pos d_vocab]``.
    """

    stream: Tensor
    pattern: Tensor
    act: Tensor
    product: Tensor
    written: Tensor
    logits: Tensor


class Plain:
    """A pretrained model of the Llama kind: gated MLPs, rotary positions, norms behind the parts or not."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
        )
        self.module = loaded.eval().requires_grad_(False)
        self.layers = self.module.model.layers
        config = self.module.config
        self.n_heads = config.num_attention_heads
        self.activation = ACTIVATIONS[getattr(config, "hidden_activation", None) or config.hidden_act]

    @torch.no_grad()
    def look(self, ids: Ids, patterns: bool = False) -> Seen:
        """Everything that these tests ask of a text."""
        seen: dict[str, list[Tensor]] = {name: [] for name in ("stream", "act", "product", "written")}

        def keep(name: str, value: Any) -> None:
            value = value[0] if isinstance(value, tuple) else value
            seen[name].append(value[0].clone())

        with ExitStack() as stack:
            for number, layer in enumerate(self.layers):
                if number == 0:
                    stack.enter_context(_hook(layer, before=lambda value: keep("stream", value)))
                stack.enter_context(_hook(layer, after=lambda value: keep("stream", value)))
                gate, down = layer.mlp.gate_proj, layer.mlp.down_proj
                stack.enter_context(_hook(gate, after=lambda value: keep("act", self.activation(value))))
                stack.enter_context(_hook(down, before=lambda value: keep("product", value)))
                stack.enter_context(_hook(down, after=lambda value: keep("written", value)))
            out = self.module(input_ids=torch.tensor([list(ids)]), use_cache=False, output_attentions=patterns)
        pattern = torch.stack([part[0] for part in out.attentions]) if patterns else torch.empty(0)
        return Seen(logits=out.logits[0], pattern=pattern, **{name: torch.stack(parts) for name, parts in seen.items()})

    @torch.no_grad()
    def logits(self, ids: Ids) -> Tensor:
        """``[pos d_vocab]``."""
        return self.module(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]

    def log_probabilities(self, ids: Ids) -> Tensor:
        """Of every token but the first, given those before it."""
        chosen = self.logits(ids)[:-1].log_softmax(-1)
        return chosen[torch.arange(len(ids) - 1), torch.tensor(list(ids[1:]))]

    def continuation(self, ids: Ids, tokens: int) -> list[int]:
        """A text and its greedy continuation; everything is computed anew for every token."""
        text = list(ids)
        for _ in range(tokens):
            text.append(int(self.logits(text)[-1].argmax()))
        return text

    # -- edits: while open ------------------------------------------------------------------------------------

    @contextmanager
    def zero_neurons(self, units: Units, start: int = 0) -> Iterator[None]:
        """Neurons are zero from a position on."""
        with ExitStack() as stack:
            for layer, numbers in _by_layer(units).items():

                def change(value: Tensor, numbers: list[int] = numbers) -> Tensor:
                    value[:, start:, numbers] = 0
                    return value

                stack.enter_context(_edit_input(self.layers[layer].mlp.down_proj, change))
            yield

    @contextmanager
    def zero_heads(self, units: Units, start: int = 0) -> Iterator[None]:
        """Heads write nothing from a position on."""
        with ExitStack() as stack:
            for layer, numbers in _by_layer(units).items():

                def change(value: Tensor, numbers: list[int] = numbers) -> Tensor:
                    value.unflatten(-1, (self.n_heads, -1))[:, start:, numbers] = 0
                    return value

                stack.enter_context(_edit_input(self.layers[layer].self_attn.o_proj, change))
            yield

    @contextmanager
    def hold_up(self, layer: int, numbers: Sequence[int], anchor: int) -> Iterator[None]:
        """Up-projections of neurons keep the level of one position from there on."""

        def change(_module: Any, _args: Any, value: Tensor) -> Tensor:
            value = value.clone()
            for number in numbers:
                value[:, anchor:, number] = value[:, anchor, number].clone()
            return value

        handle = self.layers[layer].mlp.up_proj.register_forward_hook(change)
        try:
            yield
        finally:
            handle.remove()

    # -- what a neuron adds -----------------------------------------------------------------------------------

    def neuron_lengths(self, seen: Seen, layer: int, position: int) -> Tensor:
        """Length of what every neuron of a layer adds to the residual stream at a position, behind a frozen norm."""
        columns = self.layers[layer].mlp.down_proj.weight.T.double()  # [neuron d_model]
        behind = getattr(self.layers[layer], "post_feedforward_layernorm", None)
        if behind is not None:
            written = seen.written[layer, position].double()
            scale = (written.square().mean() + behind.eps).sqrt()
            columns = columns * (1 + behind.weight.double()) / scale
        return seen.product[layer, position].double().abs() * columns.norm(dim=1)


def _hook(module: nn.Module, before: Callable[[Any], None] | None = None, after: Callable[[Any], None] | None = None):
    if before is not None:
        return _closing(module.register_forward_pre_hook(lambda _module, args: before(args[0])))
    assert after is not None
    return _closing(module.register_forward_hook(lambda _module, _args, output: after(output)))


def _edit_input(module: nn.Module, change: Callable[[Tensor], Tensor]):
    return _closing(module.register_forward_pre_hook(lambda _module, args: (change(args[0].clone()), *args[1:])))


@contextmanager
def _closing(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _by_layer(units: Units) -> dict[int, list[int]]:
    layers: dict[int, list[int]] = {}
    for layer, number in units:
        layers.setdefault(layer, []).append(number)
    return layers


# -- definitions ------------------------------------------------------------------------------------------------


def norm_profile(texts: Sequence[Seen]) -> dict[str, Tensor]:
    """By depth: norm at the first position, mean elsewhere, and by layer the jump of the log norm at the first."""
    norms = [seen.stream.double().norm(dim=-1) for seen in texts]  # [depth pos]
    first = torch.stack([norm[:, 0] for norm in norms])
    return {
        "first_norm": first.mean(0),
        "other_norm": torch.cat([norm[:, 1:] for norm in norms], dim=1).mean(1),
        "jump": first.log().mean(0).diff(),
    }


def head_scores(texts: Sequence[Ids], seen: Sequence[Seen], has_bos: bool) -> dict[str, Tensor]:
    """Mean attention ``[layer head]`` on the targets of each kind of head, over all queries that have one.

    Induction: the token behind an earlier copy of the query's own.  Duplicate token: the earlier copies.  Previous
    token: the one before.  First token: position 0, from the second query on.  BOS is neither a copy nor a previous
    token.
    """
    sums: dict[str, Any] = {}
    queries: dict[str, int] = {}
    first = int(has_bos)
    for ids, one in zip(texts, seen, strict=True):
        for i in range(1, len(ids)):
            copies = [j for j in range(first, i) if ids[j] == ids[i]]
            targets = {
                "induction": [j + 1 for j in copies],
                "duplicate_token": copies,
                "previous_token": [i - 1] if i - 1 >= first else [],
                "first_token": [0],
            }
            for name, keys in targets.items():
                if keys:
                    sums[name] = sums.get(name, 0) + one.pattern[:, :, i, keys].double().sum(-1)
                    queries[name] = queries.get(name, 0) + 1
    return {name: total / queries[name] for name, total in sums.items()}


def attention_to_first(seen: Sequence[Seen]) -> Tensor:
    """Mean over texts of the mean over queries after the first of the attention to position 0, ``[layer head]``."""
    return torch.stack([one.pattern[:, :, 1:, 0].double().mean(-1) for one in seen]).mean(0)


def rise(seen: Sequence[Seen], starts: Sequence[int], onsets: Sequence[int], width: int) -> Tensor:
    """Mean activation behind the onset minus mean before the first copy, ``[layer neuron]``."""
    repetition = [one.act[:, onset - 1 : onset - 1 + width] for one, onset in zip(seen, onsets, strict=True)]
    normal = [one.act[:, max(start - width, 0) : start] for one, start in zip(seen, starts, strict=True)]
    return torch.cat(repetition, 1).double().mean(1) - torch.cat(normal, 1).double().mean(1)
