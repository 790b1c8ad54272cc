"""What a model is made of, and where each quantity of the literature is found in it.

This is the only place where TransformerLens hook names are spelled.  Everything above asks
:meth:`Anatomy.hook_name` for a :class:`Site` and a layer.

Finding the parts of a plain Hugging Face decoder that mechrep reads or edits directly.

The names differ between families; the ends of the module names below cover those that are tested, and
:mod:`mechrep.models.load` checks by running that what was found really is the part it is taken for.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from mechrep.errors import InputError


class Site(enum.StrEnum):
    """A place in the model where an activation can be read or edited.

    ``GATE_ACT`` is *the neuron activation of the literature*: the output of the activation function.  In a gated
    MLP that is ``act(gate)`` before the product with the up-projection, while ``MLP_POST`` is the product; in a
    plain MLP the two are the same tensor.  ``GATE_PRE`` is what goes into the activation function.

    Example:
        >>> Site("gate_act") is Site.GATE_ACT
        True
    """

    EMBED = "embed"
    RESID_PRE = "resid_pre"
    RESID_MID = "resid_mid"
    RESID_POST = "resid_post"
    ATTN_OUT = "attn_out"
    MLP_OUT = "mlp_out"
    MLP_INPUT_NORMALIZED = "mlp_input_normalized"
    GATE_PRE = "gate_pre"
    GATE_ACT = "gate_act"
    MLP_POST = "mlp_post"
    UP_PROJ = "up_proj"
    Q = "q"
    K = "k"
    V = "v"
    Z = "z"
    SCORES = "scores"
    PATTERN = "pattern"


_HOOKS: dict[Site, str] = {
    Site.EMBED: "hook_embed",
    Site.RESID_PRE: "blocks.{layer}.hook_resid_pre",
    Site.RESID_MID: "blocks.{layer}.hook_resid_mid",
    Site.RESID_POST: "blocks.{layer}.hook_resid_post",
    Site.ATTN_OUT: "blocks.{layer}.hook_attn_out",
    Site.MLP_OUT: "blocks.{layer}.hook_mlp_out",
    Site.MLP_INPUT_NORMALIZED: "blocks.{layer}.ln2.hook_normalized",
    Site.GATE_PRE: "blocks.{layer}.mlp.hook_pre",
    Site.MLP_POST: "blocks.{layer}.mlp.hook_post",
    Site.UP_PROJ: "blocks.{layer}.mlp.hook_pre_linear",
    Site.Q: "blocks.{layer}.attn.hook_q",
    Site.K: "blocks.{layer}.attn.hook_k",
    Site.V: "blocks.{layer}.attn.hook_v",
    Site.Z: "blocks.{layer}.attn.hook_z",
    Site.SCORES: "blocks.{layer}.attn.hook_attn_scores",
    Site.PATTERN: "blocks.{layer}.attn.hook_pattern",
}
_GATE_PRE = _HOOKS[Site.GATE_PRE]

NEURON_SITES = frozenset({Site.GATE_PRE, Site.GATE_ACT, Site.MLP_POST, Site.UP_PROJ})
RESIDUAL_MID_SUFFIX = "hook_resid_mid"


@dataclass(frozen=True)
class Anatomy:
    """Sizes and kinds of one model's parts.

    Attributes:
        n_kv_heads: key-value heads; fewer than ``n_heads`` under grouped-query attention.
        gated: the MLP multiplies ``act(gate)`` with a second, linear projection.
        parallel: attention and MLP read the same residual stream (no ``RESID_MID``).
        activation: name of the activation function, as the model's own configuration gives it.
        positions: kind of position encoding: ``"standard"`` (learned), ``"rotary"``, ``"alibi"``, ...
        norm: ``"LN"``, ``"RMS"``, ...
        missing: sites that this model does not have.

    Example:
        >>> import mechrep
        >>> anatomy = mechrep.load_model("mechrep-tiny").anatomy
        >>> anatomy.gated, anatomy.hook_name(Site.MLP_POST, 1)
        (True, 'blocks.1.mlp.hook_post')
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int
    gated: bool
    parallel: bool
    activation: str
    positions: str
    norm: str
    architecture: str
    missing: frozenset[Site] = frozenset()

    @property
    def n_neurons(self) -> int:
        """Neurons in the whole model: layers times ``d_mlp``."""
        return self.n_layers * self.d_mlp

    def has(self, site: Site) -> bool:
        """Whether this model has the site at all."""
        return site not in self.missing

    def width(self, site: Site) -> int:
        """Size of the last axis of an activation at ``site`` (``SCORES`` and ``PATTERN`` end in key_pos: error)."""
        if site in NEURON_SITES:
            return self.d_mlp
        if site in (Site.Q, Site.K, Site.V, Site.Z):
            return self.d_head
        if site in (Site.SCORES, Site.PATTERN):
            raise InputError(f"width of {site}", "a site with a fixed last axis", "its last axis is key_pos")
        return self.d_model

    def check_layer(self, layer: int) -> None:
        """Refuse a layer that the model does not have."""
        if not 0 <= layer < self.n_layers:
            raise InputError(f"layer {layer}", f"a layer from 0 to {self.n_layers - 1}", "count layers from 0")

    def hook_name(self, site: Site, layer: int) -> str:
        """TransformerLens' name of the hook at ``site``.

        For ``GATE_ACT`` of a gated MLP that is the hook *before* the activation function: TransformerLens has none
        after it, and :class:`mechrep.models.model.Model` applies the function to what this hook gives.

        Raises:
            InputError: the layer or the site does not exist in this model.
        """
        self.check_layer(layer)
        if not self.has(site):
            raise InputError(
                f"site {site.value!r}",
                f"a site that {self.architecture} has",
                f"use one of {', '.join(s.value for s in Site if self.has(s))}",
            )
        if site is Site.GATE_ACT:
            return (_GATE_PRE if self.gated else _HOOKS[Site.MLP_POST]).format(layer=layer)
        return _HOOKS[site].format(layer=layer)


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
