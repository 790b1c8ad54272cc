"""Planted models run by plain transformers modules with eager attention: scores and norms from ids, with loops.

Nothing here is mechrep's own but the models' builders.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.planted import circuits, sinks
from tests.planted.circuits import Unit
from tests.tiny_models import PARTS

BUILDERS = {
    "induction_circuit": circuits.induction_circuit,
    "self_finding_head": circuits.self_finding_head,
    "repetition_neurons": circuits.repetition_neurons,
    "sink_model": sinks.sink_model,
    "bos_sink_model": sinks.bos_sink_model,
}
BACKGROUND = 0.101  # what a neuron of no interest reaches at most, and the norm's rounding


@functools.cache
def planted(builder: str, family: str) -> Any:
    """One model per process; tests change copies only."""
    return BUILDERS[builder](family)


@dataclass(frozen=True)
class Run:
    """One pass over one text: patterns ``[head query key]``, the others ``[pos ...]``, all but logits by layer."""

    patterns: list[Tensor]
    logits: Tensor
    residual: list[Tensor]
    activation: list[Tensor]
    gate: list[Tensor]


def plain(model: Any) -> Any:
    """A copy of the module, with eager attention."""
    module = copy.deepcopy(model.plain)
    module.set_attn_implementation("eager")
    return module


def forward(module: Any, family: str, ids: Sequence[int]) -> Run:
    """One pass, everything read by torch hooks."""
    n_layers = module.config.num_hidden_layers
    residual, activation, gate = ([torch.empty(0)] * n_layers for _ in range(3))
    with ExitStack() as stack:
        for layer in range(n_layers):

            def keep_residual(_module: Any, _args: Any, out: Any, layer: int = layer) -> None:
                residual[layer] = (out[0] if isinstance(out, tuple) else out)[0]

            def keep_activation(_module: Any, args: Any, out: Tensor, layer: int = layer) -> None:
                gate[layer], activation[layer] = args[0][0], out[0]

            for part, hook in (("layer", keep_residual), ("activation", keep_activation)):
                stack.callback(PARTS[family].of(module, part, layer).register_forward_hook(hook).remove)
        out = module(torch.tensor([list(ids)]), output_attentions=True, use_cache=False)
    return Run([pattern[0] for pattern in out.attentions], out.logits[0], residual, activation, gate)


def without_heads(module: Any, family: str, heads: Iterable[Unit]) -> Any:
    """A copy in which heads move nothing: their columns of the output projection are 0."""
    module = copy.deepcopy(module)
    for layer, head in heads:
        projection: Any = PARTS[family].of(module, "attention_output", layer)
        weight = projection.weight if family == "gpt2" else projection.weight.T
        weight[head * 64 : (head + 1) * 64] = 0
    return module


def output_rows(module: Any, family: str, layer: int) -> Tensor:
    """Output weights ``[d_mlp d_model]`` of a layer, a view."""
    weight: Any = PARTS[family].of(module, "mlp_output", layer).weight
    return weight if family == "gpt2" else weight.T


def without_neurons(module: Any, family: str, neurons: Iterable[Unit]) -> Any:
    """A copy in which neurons write nothing."""
    module = copy.deepcopy(module)
    for layer, neuron in neurons:
        output_rows(module, family, layer)[neuron] = 0
    return module


def greedy(module: Any, ids: Sequence[int], steps: int) -> list[int]:
    """What transformers' own greedy decoding appends."""
    return greedy_rows(module, [list(ids)], steps)[0][len(ids) :]


def greedy_rows(module: Any, rows: list[list[int]], steps: int) -> list[list[int]]:
    """Rows of one length and what greedy decoding appends; padding after EOS."""
    tokens = torch.tensor(rows)
    out = module.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=steps, do_sample=False)
    return out.tolist()


def period_of_end(ids: Sequence[int], at_least: int) -> int | None:
    """The smallest period of the last ``at_least`` ids that goes into them twice."""
    tail = list(ids[-at_least:])
    return next((p for p in range(1, at_least // 2 + 1) if tail[p:] == tail[:-p]), None)
