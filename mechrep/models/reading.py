"""Reading activations while the model runs: each tensor is handed over inside the hook and then forgotten.

The plain view serves the sites below directly on the modules; everything else, and models without a plain view, is
read from the TransformerLens view, the reference.  Either way the forward pass ends as soon as the last activation
that somebody asked for has been handed over.

Attention patterns exist on the plain view only while attention is computed step by step (``"eager"``), which a read of
``PATTERN`` switches on for its own duration.  Whether a family's attention module then really returns its pattern is
not taken on trust: a model serves ``PATTERN`` on the plain view once both views have given the same on a probe.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor, nn

from mechrep.errors import InputError
from mechrep.models.anatomy import Site
from mechrep.models.handles import find_handles
from mechrep.models.model import Model

View = Literal["auto", "plain", "transformer_lens"]
Receiver = Callable[[Tensor, Site, int], None]

# PATTERN only where patterns_agree(model).
PLAIN_SITES = frozenset(
    {Site.RESID_PRE, Site.RESID_POST, Site.GATE_PRE, Site.GATE_ACT, Site.MLP_POST, Site.Z, Site.PATTERN}
)

# Half of the summed difference between two rows of a pattern: the share of attention that lies elsewhere.
_PATTERN_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3}
_HALF_PRECISION_TOLERANCE = 0.1

_patterns_agree: WeakKeyDictionary[Model, bool] = WeakKeyDictionary()


class AllRead(Exception):
    """Raised in the hook that hands over the last activation asked for: a signal that ends the pass, no error."""


def choose_view(model: Model, sites: Collection[Site], view: View = "auto") -> Literal["plain", "transformer_lens"]:
    """The view that serves all of ``sites``: the plain one where it can, unless the caller insists.

    ``PATTERN`` is served by the plain view of a model if :func:`patterns_agree`.

    Raises:
        InputError: the plain view was demanded and does not exist or lacks a site.
    """
    if view == "transformer_lens":
        return view
    lacking = set(Site) if model.plain is None or model.processed else set(Site) - PLAIN_SITES
    if Site.PATTERN in sites and Site.PATTERN not in lacking and not patterns_agree(model):
        lacking.add(Site.PATTERN)
    if view == "plain" and not lacking.isdisjoint(sites):
        given, served = sorted(lacking & set(sites)), sorted(set(Site) - lacking)
        raise InputError(
            f"view='plain' for {', '.join(given)}",
            f"sites among {', '.join(served)}" if served else "a model with a plain view",
            "use view='auto'",
        )
    return "plain" if lacking.isdisjoint(sites) else "transformer_lens"


@torch.no_grad()
def patterns_agree(model: Model) -> bool:
    """Whether the plain view gives the attention patterns of the TransformerLens view (run once per model).

    Two short rows of ids run through both.  ``False`` where the attention modules return no weights, or others.

    Example:
        >>> import mechrep
        >>> patterns_agree(mechrep.load_model("mechrep-tiny"))
        True
    """
    if model not in _patterns_agree:
        _patterns_agree[model] = _compare_patterns(model)
    return _patterns_agree[model]


def _compare_patterns(model: Model) -> bool:
    if model.plain is None or model.processed or model.handles is None or model.handles.attentions is None:
        return False
    tokens, pairs = model.probe_tokens(), [(Site.PATTERN, layer) for layer in range(model.anatomy.n_layers)]
    seen: dict[int, Tensor] = {}
    moved: list[float] = []

    def keep(pattern: Tensor, _site: Site, layer: int) -> None:
        seen[layer] = pattern.float()

    def compare(pattern: Tensor, _site: Site, layer: int) -> None:
        moved.append(pattern_distance(seen[layer], pattern.float()))

    if _read_plain(model, tokens, pairs, keep):
        return False
    _read_transformer_lens(model, tokens, pairs, compare)
    return max(moved) <= pattern_tolerance(model.dtype)


def pattern_distance(one: Tensor, other: Tensor) -> float:
    """The largest share of a row's attention that lies elsewhere in the other pattern; infinite for other shapes."""
    return (one - other).abs().sum(-1).max().item() / 2 if one.shape == other.shape else torch.inf


def pattern_tolerance(dtype: torch.dtype) -> float:
    """How far two computations of one pattern may lie apart."""
    return _PATTERN_TOLERANCE.get(dtype, _HALF_PRECISION_TOLERANCE)


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
        left = _read_plain(model, tokens, pairs, receive)
        if left:
            raise RuntimeError(f"hooks that never fired: {sorted(left)}")
    else:
        _read_transformer_lens(model, tokens, pairs, receive)


def _read_plain(
    model: Model, tokens: Tensor, pairs: list[tuple[Site, int]], receive: Receiver
) -> set[tuple[Site, int]]:
    """Hand over what is wanted; what is left at the end, because no hook gave it, is returned."""
    assert model.plain is not None and model.handles is not None
    left = set(pairs)

    def hand_over(activation: Tensor, site: Site, layer: int) -> None:
        if site is Site.Z:
            activation = activation.unflatten(-1, (model.anatomy.n_heads, model.anatomy.d_head))
        receive(activation, site, layer)
        left.discard((site, layer))
        if not left:
            raise AllRead

    with ExitStack() as stack:
        if any(site is Site.PATTERN for site, _ in pairs):
            stack.enter_context(attention_computed(model.plain, "eager"))
        for site, layer in pairs:
            stack.callback(_register(model, site, layer, partial(hand_over, site=site, layer=layer)).remove)
        with suppress(AllRead):
            model.plain(input_ids=tokens, use_cache=False)
    return left


@contextmanager
def attention_computed(module: nn.Module, implementation: str) -> Iterator[None]:
    """Attention as transformers' ``implementation`` computes it inside the block; as the model had it set after it.

    Set on the configurations themselves: ``set_attn_implementation`` would pass a value on to sub-configurations, and
    restoring it would make them all alike.
    """
    found = (getattr(part, "config", None) for part in module.modules())
    configs: dict[int, Any] = {id(c): c for c in found if hasattr(c, "_attn_implementation_internal")}
    before = [(config, config._attn_implementation_internal) for config in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation_internal = implementation
        yield
    finally:
        for config, usual in before:
            config._attn_implementation_internal = usual


def _register(model: Model, site: Site, layer: int, hand_over: Callable[[Tensor], None]) -> Any:
    """One torch hook on the plain view; returns its handle."""
    handles = model.handles
    assert handles is not None

    def output_hook(_module: Any, _args: Any, output: Any) -> None:
        hand_over(output[0] if isinstance(output, tuple) else output)

    def weights_hook(_module: Any, _args: Any, output: Any) -> Any:
        beside = output[1:] if isinstance(output, tuple) else ()
        found = [part for part in beside if isinstance(part, Tensor) and part.ndim == 4]
        if len(found) != 1:  # then the site is left over, and the caller says so
            return None
        hand_over(found[0])
        # Nobody else needs it, and some families would keep it until the next layer has made its own.
        return tuple(None if part is found[0] else part for part in output)

    def input_hook(_module: Any, args: Any, kwargs: Any) -> None:
        hand_over(_first_input(args, kwargs))

    if site is Site.PATTERN:
        assert handles.attentions is not None
        return handles.attentions[layer].register_forward_hook(weights_hook)
    if site in (Site.RESID_POST, Site.GATE_ACT):
        module = (handles.layers if site is Site.RESID_POST else handles.activations)[layer]
        return module.register_forward_hook(output_hook)
    modules = {
        Site.RESID_PRE: handles.layers,
        Site.GATE_PRE: handles.activations,
        Site.MLP_POST: handles.mlp_outputs,
        Site.Z: handles.attention_outputs,
    }
    module = modules[site][layer]
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
