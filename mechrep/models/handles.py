"""Finding the parts of a plain Hugging Face decoder that mechrep reads or edits directly.

The names differ between families; the ends of the module names below cover those that are tested, and
:mod:`mechrep.models.contract` checks by running that what was found really is the part it is taken for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

_ACTIVATION = ("mlp.act_fn", "mlp.act", "mlp.gelu_impl", "mlp.activation_fn")
_MLP_OUTPUT = ("mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h", "mlp.fc2", "mlp.fc_out")
_ATTENTION_OUTPUT = (
    "self_attn.o_proj",
    "attn.c_proj",
    "attention.dense",
    "self_attention.dense",
    "self_attn.out_proj",
    "attn.out_proj",
    "self_attn.dense",
    "attn.o",  # TransformerLens' name, where it splits a fused matrix of query, key and value
    "attention.o",
    "self_attention.o",
)
_LAYER = re.compile(r"^(?P<stack>.*\b(?:layers|h|blocks))\.(?P<layer>\d+)$")


@dataclass(frozen=True)
class PlainHandles:
    """Modules of a Hugging Face decoder, one per layer.

    Attributes:
        layers: the decoder layers.
        activations: module whose *output* is ``GATE_ACT``.
        mlp_outputs: module whose *input* is ``MLP_POST``.
        attention_outputs: module whose *input* is ``Z`` with its heads side by side.
    """

    layers: tuple[nn.Module, ...]
    activations: tuple[nn.Module, ...]
    mlp_outputs: tuple[nn.Module, ...]
    attention_outputs: tuple[nn.Module, ...]


def find_handles(module: nn.Module, n_layers: int) -> PlainHandles | None:
    """Handles of a plain (or bridged) Hugging Face decoder, or ``None`` where a part cannot be found."""
    names = {name: part for name, part in module.named_modules(remove_duplicate=False)}
    stacks = sorted({m["stack"] for name in names if (m := _LAYER.match(name))}, key=len)
    for stack in stacks:
        layers = [names.get(f"{stack}.{layer}") for layer in range(n_layers)]
        if all(part is not None for part in layers) and f"{stack}.{n_layers}" not in names:
            parts = [
                [_find_part(part, ends) for part in layers if part is not None]
                for ends in (_ACTIVATION, _MLP_OUTPUT, _ATTENTION_OUTPUT)
            ]
            if all(part is not None for group in parts for part in group):
                return PlainHandles(*(tuple(p for p in group if p is not None) for group in (layers, *parts)))
    return None


def _find_part(layer: nn.Module, ends: tuple[str, ...]) -> nn.Module | None:
    """The one submodule of a layer whose name ends in one of ``ends``; bridged wrappers are looked through."""
    for name, part in layer.named_modules():
        clean = name.replace("_original_component.", "")
        if any(clean == end or clean.endswith("." + end) for end in ends):
            return part
    return None
