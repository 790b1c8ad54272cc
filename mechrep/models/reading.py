"""Reading activations while the model runs: each tensor is handed over inside the hook and then forgotten.

The plain view serves most sites directly on the modules; queries, keys and scores, and models without a plain view, are
read from the TransformerLens view.  Either way the forward pass ends as soon as the last activation that somebody asked
for has been handed over.

Attention patterns exist on the plain view only while attention is computed step by step (``"eager"``), which a read of
``PATTERN`` switches on for its own duration.  Whether a family's attention module then really returns its pattern is
not taken on trust: it is compared on a probe with rows times values, or with the TransformerLens view.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor, nn

from mechrep.errors import InputError, ModelError
from mechrep.models.anatomy import NEURON_SITES, Site
from mechrep.models.attention import (
    AllRead,
    attention_computed,
    computed_here,
    pattern_distance,
    pattern_tolerance,
    returned_weights,
    rows_agree,
)
from mechrep.models.finite import checked
from mechrep.models.model import Model
from mechrep.models.neurons import looking_at
from mechrep.models.parts import find_handles, first_tensor, weight_of
from mechrep.models.stream import Stream

View = Literal["auto", "plain", "transformer_lens"]
Receiver = Callable[[Tensor, Site, int], None]

# Where the model has them; PATTERN only where patterns_agree(model), Q, K and V where they have a matrix of their own.
PLAIN_SITES = frozenset(Site) - {Site.EMBED, Site.SCORES}
_AT_NEURONS = NEURON_SITES | {Site.ROUTER}

_patterns_agree: WeakKeyDictionary[Model, bool] = WeakKeyDictionary()


def choose_view(model: Model, sites: Collection[Site], view: View = "auto") -> Literal["plain", "transformer_lens"]:
    """The view that serves all of ``sites``: the plain one where it can, unless the caller insists.

    ``PATTERN`` is served by the plain view of a model if :func:`patterns_agree`.

    Raises:
        InputError: the plain view was demanded and does not exist or lacks a site.
    """
    if view == "transformer_lens":
        return view
    lacking = set(Site) if not model.fast else set(Site) - PLAIN_SITES
    if Site.PATTERN in sites and Site.PATTERN not in lacking and not patterns_agree(model):
        lacking.add(Site.PATTERN)
    for site in (Site.Q, Site.K, Site.V):
        served = site in lacking or _projected(model, site) or (site is Site.V and rows_agree(model))
        if site in sites and not served:
            lacking.add(site)
    if view == "plain" and not lacking.isdisjoint(sites):
        given, served = sorted(lacking & set(sites)), sorted(set(Site) - lacking)
        raise InputError(
            f"view='plain' for {', '.join(given)}",
            f"sites among {', '.join(served)}" if served else "a model with a plain view",
            "use view='auto'",
        )
    return "plain" if lacking.isdisjoint(sites) else "transformer_lens"


def _projected(model: Model, site: Site) -> bool:
    """Whether every layer with attention has a matrix of its own for queries, keys or values."""
    projections, heads = _projections(model, site)
    width = heads * model.anatomy.d_head
    there = (projections[layer] for layer in model.anatomy.attention_layers)
    return all(part is not None and int(weight_of(part).shape[1]) == width for part in there)


def _projections(model: Model, site: Site) -> tuple[tuple[nn.Module | None, ...], int]:
    """The projections of all layers, and how many heads each makes."""
    handles, anatomy = model.handles, model.anatomy
    assert handles is not None
    parts = {Site.Q: handles.queries, Site.K: handles.keys, Site.V: handles.values}[site]
    return parts, anatomy.n_heads if site is Site.Q else anatomy.n_kv_heads


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
    there = model.anatomy.attention_layers
    if not model.fast or model.handles is None or any(model.handles.attentions[layer] is None for layer in there):
        return False
    pairs = [(Site.PATTERN, layer) for layer in there]
    tokens, seen = model.probe_tokens(), {}
    if _read_plain(model, tokens, pairs, lambda pattern, _site, layer: seen.__setitem__(layer, pattern.float())):
        return False
    if rows_agree(model):  # the same rows, and what the heads read is these rows times the values
        return True
    moved: list[float] = []

    def compare(pattern: Tensor, _site: Site, layer: int) -> None:
        moved.append(pattern_distance(seen[layer], pattern.float()))

    try:
        _read_transformer_lens(model, tokens, pairs, compare)
    except ModelError:
        return False
    return max(moved) <= pattern_tolerance(model.dtype)


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
        model.anatomy.check_site(site, layer)
    if not pairs:
        return
    if model.lengths is not None:
        model.lengths.check(tokens)
    receive = _of_numbers(model, receive)
    if choose_view(model, wanted, view) == "plain":
        left = _read_plain(model, tokens, pairs, receive)
        if left:
            raise RuntimeError(f"hooks that never fired: {sorted(left)}")
    else:
        _read_transformer_lens(model, tokens, pairs, receive)


def _of_numbers(model: Model, receive: Receiver) -> Receiver:
    """The receiver, told of no activation that overflowed."""
    looked = checked(model, receive, lambda site, layer: f"{site.value} of layer {layer}")
    masked = checked(model, receive, lambda site, layer: f"{site.value} of layer {layer}", infinite=True)
    return lambda activation, site, layer: (masked if site is Site.SCORES else looked)(activation, site, layer)


def _read_plain(
    model: Model, tokens: Tensor, pairs: list[tuple[Site, int]], receive: Receiver
) -> set[tuple[Site, int]]:
    """Hand over what is wanted; what is left at the end, because no hook gave it, is returned."""
    plain = model.plain  # asked for once: each time it is looked at whole
    assert plain is not None
    left = set(pairs)

    def hand_over(activation: Tensor, site: Site, layer: int) -> None:
        receive(activation, site, layer)
        left.discard((site, layer))
        if not left:
            raise AllRead

    with _hooked(model, plain, pairs, hand_over), suppress(AllRead):
        plain(input_ids=tokens, use_cache=False)
    return left


@contextmanager
def _hooked(model: Model, plain: nn.Module, pairs: list[tuple[Site, int]], receive: Receiver) -> Iterator[None]:
    """While open, passes of the plain view hand over what is wanted."""
    valued = [layer for site, layer in pairs if site is Site.V and not _projected(model, Site.V)]
    patterned = [layer for site, layer in pairs if site is Site.PATTERN]
    with ExitStack() as stack:
        if valued:  # attention is computed here then, and gives patterns too
            length = sys.maxsize

            def rows(pattern: Tensor, layer: int, _first: int) -> None:
                if layer in patterned:
                    receive(pattern, Site.PATTERN, layer)

            def values(value: Tensor, layer: int) -> None:
                if layer in valued:
                    receive(value, Site.V, layer)

            both = sorted({*valued, *patterned})
            stack.enter_context(computed_here(model, rows, values, layers=both, queries=length))
        elif patterned:
            stack.enter_context(attention_computed(plain, "eager"))
        for site, layer in pairs:
            if not (valued and site in (Site.V, Site.PATTERN)):
                stack.enter_context(_reading(model, plain, site, layer, partial(_hand_over, receive, site, layer)))
        yield


def _hand_over(receive: Receiver, site: Site, layer: int, activation: Tensor) -> None:
    receive(activation, site, layer)


def _reading(
    model: Model, plain: nn.Module, site: Site, layer: int, receive: Callable[..., None]
) -> AbstractContextManager[Any]:
    """Hooks of the plain view for one site."""
    if site in _AT_NEURONS:
        return _reading_neurons(model, plain, site, layer, receive)
    module, take = _place(model, site, layer)
    stack, shape = ExitStack(), list[int]()
    if site is Site.MLP_INPUT_NORMALIZED:
        norm, whole = Stream(model).before(layer, "mlp"), receive  # the norm is run now: in the hook it would call it
        receive = lambda tensor: whole(norm.normalised(tensor))  # noqa: E731
    if site in (Site.RESID_MID, Site.MLP_OUT):  # some see positions without their texts

        def note(_layer: nn.Module, args: Any, kwargs: Any) -> None:
            given = first_tensor((args, kwargs))
            assert given is not None
            shape[:] = given.shape[:2]

        def shaped(tensor: Tensor, give: Callable[..., None] = receive) -> None:
            give(tensor.view(*shape, tensor.shape[-1]))

        receive = shaped
        assert model.handles is not None
        stack.callback(model.handles.layers[layer].register_forward_pre_hook(note, with_kwargs=True).remove)
    if take == "input":
        hook = module.register_forward_pre_hook(
            lambda _m, a, k: receive(_shaped(model, site, layer, (a, k))), with_kwargs=True
        )
    elif take == "weights":
        hook = module.register_forward_hook(partial(_weights_hook, receive))
    else:
        hook = module.register_forward_hook(lambda _m, _a, output: receive(_shaped(model, site, layer, output)))
    stack.callback(hook.remove)
    return stack


def _place(model: Model, site: Site, layer: int) -> tuple[nn.Module, Literal["input", "output", "weights"]]:
    handles, roles = model.handles, model.trace.roles[layer] if model.trace is not None else None
    assert handles is not None and roles is not None
    if site in (Site.Q, Site.K, Site.V):
        module = _projections(model, site)[0][layer]
        assert module is not None
        return module, "output"
    places: dict[Site, tuple[nn.Module | None, Literal["input", "output", "weights"]]] = {
        Site.RESID_PRE: (handles.layers[layer], "input"),
        Site.RESID_POST: (handles.layers[layer], "output"),
        Site.RESID_MID: (roles.middle, "input"),
        Site.ATTN_OUT: (roles.attention_writes, "output"),
        Site.MLP_OUT: (roles.mlp_writes, "output"),
        Site.MLP_INPUT_NORMALIZED: (roles.before_mlp, "input"),
        Site.Z: (handles.attention_outputs[layer], "input"),
        Site.PATTERN: (handles.attentions[layer], "weights"),
    }
    module, take = places[site]
    assert module is not None, f"{site} of layer {layer}"
    return module, take


def _shaped(model: Model, site: Site, layer: int, value: Any) -> Tensor:
    """What is read, in the shape and size that the site promises."""
    tensor = first_tensor(value)
    assert tensor is not None and model.trace is not None
    if site in (Site.Q, Site.K, Site.V, Site.Z):
        return tensor.unflatten(-1, (-1, model.anatomy.d_head))
    roles = model.trace.roles[layer]
    multiplier = {Site.ATTN_OUT: roles.multiplier, Site.MLP_OUT: roles.mlp_multiplier}.get(site, 1.0)
    return tensor * multiplier if multiplier != 1 else tensor


def _weights_hook(receive: Callable[..., None], _module: Any, _args: Any, output: Any) -> Any:
    weights = returned_weights(output)
    if weights is None:  # then the site is left over, and the caller says so
        return None
    receive(weights)
    # Nobody else needs it, and some families would keep it until the next layer has made its own.
    return tuple(None if part is weights else part for part in output)


@contextmanager
def _reading_neurons(
    model: Model, plain: nn.Module, site: Site, layer: int, receive: Callable[..., None]
) -> Iterator[None]:
    """Neurons of a layer, put together of their pieces; a layer with fewer than the widest ends in zeros."""
    assert model.handles is not None
    width = model.anatomy.width(site)
    count = model.anatomy.experts[layer] if site is Site.ROUTER else model.anatomy.neurons[layer]
    pieces: dict[int, Tensor] = {}

    def look(values: Tensor, columns: slice) -> None:
        pieces[columns.start] = values
        if sum(piece.shape[-1] for piece in pieces.values()) == count:
            whole = [pieces.pop(start) for start in sorted(pieces)]
            if count < width:
                whole.append(values.new_zeros(*values.shape[:-1], width - count))
            receive(whole[0] if len(whole) == 1 else torch.cat(whole, -1))

    with looking_at(plain, model.handles, site, layer, look):
        yield


def _read_transformer_lens(model: Model, tokens: Tensor, pairs: list[tuple[Site, int]], receive: Receiver) -> None:
    last = max(layer for _, layer in pairs) + 1
    stop = {"stop_at_layer": last} if last < model.anatomy.n_layers else {}
    model.run_with_hooks(tokens, fwd_hooks=_reference_hooks(model, pairs, receive), **stop)


def _reference_hooks(model: Model, pairs: list[tuple[Site, int]], receive: Receiver) -> list[tuple[str, Callable]]:
    def hook_for(site: Site, layer: int) -> tuple[str, Callable]:
        finish = activation_function(model, layer) if site is Site.GATE_ACT and model.anatomy.gated else None

        def hook(activation: Tensor, hook: Any = None) -> None:
            receive(activation if finish is None else finish(activation), site, layer)

        return model.anatomy.hook_name(site, layer), hook

    return [hook_for(site, layer) for site, layer in pairs]


@contextmanager
def listening(
    model: Model, wanted: Mapping[Site, Collection[int]], receive: Receiver, *, view: View = "auto"
) -> Iterator[None]:
    """While open, forward passes of a view hand over what is wanted and go on to their logits: one pass reads both.

    Args:
        model: the model.
        wanted: layers per site.
        receive: as of :func:`read_activations`.
        view: the view that runs.

    Example:
        >>> import mechrep
        >>> model, seen = mechrep.load_model("mechrep-tiny"), []
        >>> with listening(model, {Site.RESID_POST: [1]}, lambda states, *_: seen.append(states.shape[1])):
        ...     logits = model.plain_logits(torch.tensor([[0, 5, 6]]))
        >>> seen, logits.shape[1]
        ([3], 3)
    """
    pairs = [(site, layer) for site, layers in wanted.items() for layer in sorted(set(layers))]
    for site, layer in pairs:
        model.anatomy.check_site(site, layer)
    receive = _of_numbers(model, receive)
    if choose_view(model, wanted, view) == "plain":
        plain = model.plain
        assert plain is not None
        with _hooked(model, plain, pairs, receive):
            yield
    else:
        with model.hooks(fwd_hooks=_reference_hooks(model, pairs, receive)):
            yield


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
    activation = None if handles is None else handles.activations[layer]
    if activation is None:
        raise InputError(
            f"gate_act of layer {layer} of {model.anatomy.architecture}",
            "a dense MLP whose activation function is a module",
            "use view='auto', or Site.MLP_POST",
        )
    return activation
