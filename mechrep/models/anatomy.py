"""What a model is made of, and where each quantity of the literature is found in it.

This is the only place where TransformerLens hook names are spelled.  Everything above asks
:meth:`Anatomy.hook_name` for a :class:`Site` and a layer.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from mechrep.errors import InputError, MissingPartError
from mechrep.guards import guarded, within


class Site(enum.StrEnum):
    """A place in the model where an activation can be read or edited.

    ``GATE_ACT`` is *the neuron activation of the literature*: the output of the activation function.  In a gated
    MLP that is ``act(gate)`` before the product with the up-projection, while ``MLP_POST`` is the product; in a
    plain MLP the two are the same tensor.  ``GATE_PRE`` is what goes into the activation function.

    In a mixture of experts the neurons of a layer stand one expert after the other, those of shared experts last;
    neurons of experts that a token is not sent to are zero.  ``ROUTER`` is the weight of each expert for each token,
    zero where the token is not sent to it.

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
    ROUTER = "router"
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
ATTENTION_SITES = frozenset({Site.Q, Site.K, Site.V, Site.Z, Site.SCORES, Site.PATTERN})
RESIDUAL_MID_SUFFIX = "hook_resid_mid"


@dataclass(frozen=True)
class Anatomy:
    """Sizes and kinds of one model's parts.

    Attributes:
        n_kv_heads: key-value heads; fewer than ``n_heads`` under grouped-query attention.
        d_head: width of what a head reads (``Z``); queries and keys may have another (MLA).
        d_mlp: neurons of the widest layer; see :attr:`neurons`.
        gated: the MLP multiplies ``act(gate)`` with a second, linear projection.
        parallel: attention and MLP read the same residual stream (no ``RESID_MID``).
        activation: name of the activation function, as the model's own configuration gives it.
        positions: kind of position encoding: ``"standard"`` (learned), ``"rotary"``, ``"alibi"``, ...
        norm: ``"LN"``, ``"RMS"``, ...
        missing: sites that this model does not have.
        reasons: for missing sites, why, in a sentence.
        attention_layers: layers with softmax attention; all by default.
        neurons: neurons of every layer; ``d_mlp`` each by default.
        experts: routed experts of every layer; 0 in a layer with a dense MLP.
        d_expert: neurons of one routed expert.

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
    reasons: tuple[tuple[Site, str], ...] = ()
    attention_layers: tuple[int, ...] = ()
    neurons: tuple[int, ...] = ()
    experts: tuple[int, ...] = ()
    d_expert: int = 0

    def __post_init__(self) -> None:
        everywhere = {
            "attention_layers": tuple(range(self.n_layers)),
            "neurons": (self.d_mlp,) * self.n_layers,
            "experts": (0,) * self.n_layers,
        }
        for name, usual in everywhere.items():
            if not getattr(self, name):
                object.__setattr__(self, name, usual)

    @property
    def n_neurons(self) -> int:
        """Neurons in the whole model."""
        return sum(self.neurons)

    @property
    def uniform(self) -> bool:
        """Whether every layer has softmax attention and the same number of neurons."""
        return len(self.attention_layers) == self.n_layers and set(self.neurons) == {self.d_mlp}

    @guarded
    def has(self, site: Site) -> bool:
        """Whether this model has the site, in one layer at least."""
        return site not in self.missing

    @guarded
    def layers_with(self, site: Site) -> tuple[int, ...]:
        """The layers that have the site: hybrids have attention in some of them, mixtures a router in some."""
        if not self.has(site):
            return ()
        if site in ATTENTION_SITES:
            return self.attention_layers
        chosen = range(self.n_layers)
        if site in NEURON_SITES:
            return tuple(layer for layer in chosen if self.neurons[layer])
        return tuple(layer for layer in chosen if self.experts[layer]) if site is Site.ROUTER else tuple(chosen)

    @guarded
    def why_not(self, site: Site) -> str:
        """Why the model lacks a site, in a sentence."""
        return dict(self.reasons).get(site, f"{self.architecture} has no {site.value}")

    @guarded
    def width(self, site: Site) -> int:
        """Size of the last axis of an activation at ``site`` (``SCORES`` and ``PATTERN`` end in key_pos: error)."""
        if site in NEURON_SITES:
            return self.d_mlp
        if site is Site.ROUTER:
            return max(self.experts)
        if site in (Site.Q, Site.K, Site.V, Site.Z):
            return self.d_head
        if site in (Site.SCORES, Site.PATTERN):
            raise InputError(f"width of {site}", "a site with a fixed last axis", "its last axis is key_pos")
        return self.d_model

    def check_layer(self, layer: int) -> None:
        """Refuse a layer that the model does not have."""
        within("layer", layer, 0, self.n_layers - 1, "a layer")

    @guarded
    def check_site(self, site: Site, layer: int) -> None:
        """Refuse a site that the model, or this layer, does not have.

        Raises:
            MissingPartError: naming the reason.
        """
        self.check_layer(layer)
        if layer not in self.layers_with(site):
            here = [s.value for s in Site if layer in self.layers_with(s)]
            why = self.why_not(site) if not self.has(site) else f"layer {layer} has none: {self._elsewhere(site)} do"
            raise MissingPartError(
                f"site {site.value!r} of layer {layer} of {self.architecture}",
                f"a site that the layer has ({why})",
                f"use one of {', '.join(here)}",
            )

    def _elsewhere(self, site: Site) -> str:
        return "layers " + ", ".join(map(str, self.layers_with(site)))

    @guarded
    def hook_name(self, site: Site, layer: int) -> str:
        """TransformerLens' name of the hook at ``site``.

        For ``GATE_ACT`` of a gated MLP that is the hook *before* the activation function: TransformerLens has none
        after it, and :class:`mechrep.models.model.Model` applies the function to what this hook gives.

        Raises:
            InputError: the layer or the site does not exist in this model.
        """
        self.check_site(site, layer)
        if site is Site.ROUTER:
            raise MissingPartError("site 'router' in the TransformerLens view", "the plain view", "use view='auto'")
        if site is Site.GATE_ACT:
            return (_GATE_PRE if self.gated else _HOOKS[Site.MLP_POST]).format(layer=layer)
        return _HOOKS[site].format(layer=layer)
