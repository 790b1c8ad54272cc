"""Reading activations while the model runs: each tensor is handed over inside the hook and then forgotten.

The plain view serves the sites below directly on the modules; everything else, and models without a plain view, is
read from the TransformerLens view, the reference.  Either way the forward pass ends as soon as the last activation
that somebody asked for has been handed over.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from mechrep.errors import InputError
from mechrep.models.anatomy import Site
from mechrep.models.handles import find_handles
from mechrep.models.model import Model

View = Literal["auto", "plain", "transformer_lens"]
Receiver = Callable[[Tensor, Site, int], None]

PLAIN_SITES = frozenset({Site.RESID_PRE, Site.RESID_POST, Site.GATE_ACT, Site.MLP_POST, Site.Z})


class _AllRead(Exception):
    """Raised in the hook that hands over the last activation asked for: a signal that ends the pass, no error."""


def choose_view(model: Model, sites: Collection[Site], view: View = "auto") -> Literal["plain", "transformer_lens"]:
    """The view that serves all of ``sites``: the plain one where it can, unless the caller insists.

    Raises:
        InputError: the plain view was demanded and does not exist or lacks a site.
    """
    able = model.plain is not None and set(sites) <= PLAIN_SITES and not model.processed
    if view == "plain" and not able:
        lacking = ", ".join(sorted(set(sites) - PLAIN_SITES)) or "every site (this model has no plain view)"
        raise InputError(f"view='plain' for {lacking}", f"sites among {sorted(PLAIN_SITES)}", "use view='auto'")
    return "plain" if able and view != "transformer_lens" else "transformer_lens"


@torch.no_grad()
def read_activations(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    wanted: Mapping[Site, Collection[int]],
    receive: Receiver,
    *,
    view: View = "auto",
) -> None:
    """Run ``tokens`` once and hand every wanted activation to ``receive(activation, site, layer)``, layer by layer.

    Args:
        model: the model.
        tokens: right-padded ids; a causal model's real positions never see the padding.
        wanted: layers per site.
        receive: called inside the forward pass; it must not edit or keep the tensor (keep a copy or a sum).
            Shapes are ``[batch pos ...]``: neuron sites end in ``d_mlp``, residual sites in ``d_model``,
            ``Q``/``K``/``V``/``Z`` in ``head d_head``, ``SCORES``/``PATTERN`` are ``[batch head query_pos key_pos]``.
        view: ``"auto"``, or one of the two views by name.
    """
    pairs = [(site, layer) for site, layers in wanted.items() for layer in sorted(set(layers))]
    for site, layer in pairs:
        model.anatomy.hook_name(site, layer)  # refuses what does not exist
    if not pairs:
        return
    if choose_view(model, wanted, view) == "plain":
        _read_plain(model, tokens, pairs, receive)
    else:
        _read_transformer_lens(model, tokens, pairs, receive)


def _read_plain(model: Model, tokens: Tensor, pairs: list[tuple[Site, int]], receive: Receiver) -> None:
    assert model.plain is not None and model.handles is not None
    left = set(pairs)

    def hand_over(activation: Tensor, site: Site, layer: int) -> None:
        if site is Site.Z:
            activation = activation.unflatten(-1, (model.anatomy.n_heads, model.anatomy.d_head))
        receive(activation, site, layer)
        left.discard((site, layer))
        if not left:
            raise _AllRead

    with ExitStack() as stack:
        for site, layer in pairs:
            stack.callback(_register(model, site, layer, partial(hand_over, site=site, layer=layer)).remove)
        try:
            model.plain(input_ids=tokens, use_cache=False)
        except _AllRead:
            return
    raise RuntimeError(f"hooks that never fired: {sorted(left)}")


def _register(model: Model, site: Site, layer: int, hand_over: Callable[[Tensor], None]) -> Any:
    """One torch hook on the plain view; returns its handle."""
    handles = model.handles
    assert handles is not None

    def output_hook(_module: Any, _args: Any, output: Any) -> None:
        hand_over(output[0] if isinstance(output, tuple) else output)

    def input_hook(_module: Any, args: Any, kwargs: Any) -> None:
        hand_over(_first_input(args, kwargs))

    if site in (Site.RESID_POST, Site.GATE_ACT):
        module = (handles.layers if site is Site.RESID_POST else handles.activations)[layer]
        return module.register_forward_hook(output_hook)
    module = {Site.RESID_PRE: handles.layers, Site.MLP_POST: handles.mlp_outputs, Site.Z: handles.attention_outputs}[
        site
    ][layer]
    return module.register_forward_pre_hook(input_hook, with_kwargs=True)


def _first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states that a module is called with, whether by place or by name."""
    return args[0] if args else kwargs["hidden_states"]


def _read_transformer_lens(model: Model, tokens: Tensor, pairs: list[tuple[Site, int]], receive: Receiver) -> None:
    def hook_for(site: Site, layer: int) -> tuple[str, Callable]:
        finish = activation_function(model, layer) if site is Site.GATE_ACT and model.anatomy.gated else None

        def hook(activation: Tensor, hook: Any = None) -> None:
            receive(activation if finish is None else finish(activation), site, layer)

        return model.anatomy.hook_name(site, layer), hook

    last = max(layer for _, layer in pairs) + 1
    stop = {"stop_at_layer": last} if last < model.anatomy.n_layers else {}
    model.run_with_hooks(tokens, fwd_hooks=[hook_for(site, layer) for site, layer in pairs], **stop)


def product_bias(model: Model, layer: int) -> Tensor | float:
    """What HookedTransformer adds after the product of gate and up-projection; it is no part of the neuron."""
    if model.is_bridge or not model.anatomy.gated:
        return 0.0
    bias = getattr(model.tl.blocks[layer].mlp, "b_in", None)
    return 0.0 if bias is None else bias


def activation_function(model: Model, layer: int) -> Callable[[Tensor], Tensor]:
    """The activation function of one layer's MLP, as the model itself applies it."""
    if not model.is_bridge:
        return model.tl.blocks[layer].mlp.act_fn
    handles = model.handles or find_handles(model.tl.original_model, model.anatomy.n_layers)
    if handles is None:
        raise InputError(
            f"gate_act of {model.anatomy.architecture}",
            "a family whose activation module is known",
            "use Site.MLP_POST, or add the module's name to mechrep/models/handles.py",
        )
    return handles.activations[layer]
