"""Finding the parts of a plain Hugging Face decoder that mechrep reads or edits directly.

The names differ between families; the ends of the module names below cover those that are tested, and
:mod:`mechrep.models.contract` checks by running that what was found really is the part it is taken for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

_ACTIVATION = ("mlp.act_fn", "mlp.act", "mlp.gelu_impl", "mlp.activation_fn")
_MLP_OUTPUT = ("mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h", "mlp.fc2", "mlp.fc_out")
_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
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
        attentions: module that returns its weights, ``PATTERN``, beside its output where they are computed step by
            step; ``None`` where a layer has no such module.  Whether they are the pattern is checked by reading.
    """

    layers: tuple[nn.Module, ...]
    activations: tuple[nn.Module, ...]
    mlp_outputs: tuple[nn.Module, ...]
    attention_outputs: tuple[nn.Module, ...]
    attentions: tuple[nn.Module, ...] | None


def find_handles(module: nn.Module, n_layers: int) -> PlainHandles | None:
    """Handles of a plain (or bridged) Hugging Face decoder, or ``None`` where a part cannot be found."""
    names = {name: part for name, part in module.named_modules(remove_duplicate=False)}
    stacks = sorted({m["stack"] for name in names if (m := _LAYER.match(name))}, key=len)
    for stack in stacks:
        layers = _complete(names.get(f"{stack}.{layer}") for layer in range(n_layers))
        if layers is not None and f"{stack}.{n_layers}" not in names:
            activations, mlp_outputs, attention_outputs, attentions = (
                _complete(_find_part(layer, ends) for layer in layers)
                for ends in (_ACTIVATION, _MLP_OUTPUT, _ATTENTION_OUTPUT, _ATTENTION)
            )
            if activations is not None and mlp_outputs is not None and attention_outputs is not None:
                return PlainHandles(layers, activations, mlp_outputs, attention_outputs, attentions)
    return None


def _complete(parts: Iterable[nn.Module | None]) -> tuple[nn.Module, ...] | None:
    """The parts of all layers, or ``None`` where one layer lacks it."""
    found = tuple(parts)
    return None if any(part is None for part in found) else tuple(part for part in found if part is not None)


def _find_part(layer: nn.Module, ends: tuple[str, ...]) -> nn.Module | None:
    """The one submodule of a layer whose name ends in one of ``ends``; bridged wrappers are looked through."""
    for name, part in layer.named_modules():
        clean = name.replace("_original_component.", "")
        if any(clean == end or clean.endswith("." + end) for end in ends):
            return part
    return None
