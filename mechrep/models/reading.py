"""Reading activations while the model runs: each tensor is handed over inside the hook and then forgotten.

The plain view serves the sites below directly on the modules; everything else, and models without a plain view, is
read from the TransformerLens view, the reference.  Either way the forward pass ends as soon as the last activation
that somebody asked for has been handed over.

Attention patterns exist on the plain view only while attention is computed step by step (``"eager"``), which a read of
``PATTERN`` switches on for its own duration.  Whether a family's attention module then really returns its pattern is
not taken on trust: a model serves ``PATTERN`` on the plain view once both views have given the same on a probe.

Attention patterns of long texts, some queries at a time: no ``n x n`` matrix is ever made.

transformers lets a model compute its attention by any function that takes queries and keys (positions rotated and
scaled as the family does it), values and a mask.  For the time of a read that function is ours: it computes what the
step-by-step one computes for ``queries`` positions at a time, hands these rows over and forgets them.  The mask too is
kept as transformers' *rule* and worked out row by row, so sliding windows and chunks are those of the model.

Families whose attention is not computed by such a function (BLOOM's, with ALiBi) cannot be read like this.  Which ones
can is not taken on trust: a short probe is compared with the patterns of the TransformerLens view.

Where the up-projection of an MLP is found in a plain Hugging Face decoder.

In a gated MLP that is the second, linear branch, which the activation of the gate is multiplied with.  In an MLP
without a gate the up-projection is all that the activation function reads; its value and the function's output
determine each other as far as the rest of the model can see, so the output is what is handed out there.

Names differ between families.  What is found by its name is therefore run once and compared with the input of the
output matrix before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mechrep.errors import InputError, ModelError
from mechrep.models.anatomy import PlainHandles, Site, _find_part, find_handles
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
    lacking = set(Site) if not model.fast else set(Site) - PLAIN_SITES
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
    if not model.fast or model.handles is None or model.handles.attentions is None:
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
        _hand_over(model, receive, site, layer, activation)
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
        model.anatomy.hook_name(site, layer)  # refuses what does not exist
    with ExitStack() as stack:
        if choose_view(model, wanted, view) == "plain":
            assert model.plain is not None
            if Site.PATTERN in wanted:
                stack.enter_context(attention_computed(model.plain, "eager"))
            for site, layer in pairs:
                hand_over = partial(_hand_over, model, receive, site, layer)
                stack.callback(_register(model, site, layer, hand_over).remove)
        else:
            stack.enter_context(model.hooks(fwd_hooks=_reference_hooks(model, pairs, receive)))
        yield


def _hand_over(model: Model, receive: Receiver, site: Site, layer: int, activation: Tensor) -> None:
    heads = (model.anatomy.n_heads, model.anatomy.d_head)
    receive(activation.unflatten(-1, heads) if site is Site.Z else activation, site, layer)


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


QUERIES = 128  # rows of the pattern at a time: 128 x n numbers per head
_NAME = "mechrep_rows"

# A block of rows ``[batch head query_pos key_pos]``, the layer, and the position of its first query.  Keys after the
# last query of the block are left out.
RowReceiver = Callable[[Tensor, int, int], None]

_rows_agree: WeakKeyDictionary[Model, bool] = WeakKeyDictionary()


@torch.no_grad()
def read_attention_rows(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    receive: RowReceiver,
    *,
    layers: Collection[int] | None = None,
    queries: int = QUERIES,
) -> None:
    """Run ``tokens`` once and hand over all rows of the attention patterns, block by block and layer by layer.

    Args:
        model: a model with a plain view.
        tokens: right-padded ids; a causal model's real positions never see the padding.
        receive: called inside the forward pass as ``receive(rows, layer, first_query)`` with
            ``rows [batch head query_pos key_pos]``; it must not keep the tensor.  Row ``i`` is the query at position
            ``first_query + i``; the keys end with the block's last query.
        layers: all by default.
        queries: rows per block; memory is ``batch * heads * queries * pos``.

    Raises:
        InputError: no rows per block, a layer that the model does not have, or a model that cannot be read like this.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> shapes = []
        >>> tokens = torch.tensor([[0, 300, 301, 302, 303]])
        >>> read_attention_rows(model, tokens, lambda rows, *_: shapes.append(rows.shape[2:]), layers=[0], queries=3)
        >>> [tuple(shape) for shape in shapes]
        [(3, 3), (2, 5)]
    """
    chosen = range(model.anatomy.n_layers) if layers is None else sorted(set(layers))
    for layer in chosen:
        model.anatomy.check_layer(layer)
    if queries < 1:
        raise InputError(f"queries={queries}", "at least one row at a time", "raise it")
    if not rows_agree(model):
        raise InputError(
            f"long texts for {model.name} ({model.anatomy.architecture})",
            "a model whose plain view computes its attention by transformers' attention interface",
            "cut the texts (windows_of_text) and read whole patterns: CorpusCache(...).run(AttentionSinks())",
        )
    if len(chosen):
        _read_rows(model, tokens, receive, chosen, queries)


@torch.no_grad()
def rows_agree(model: Model) -> bool:
    """Whether rows read block by block are those of the TransformerLens view (run on a probe, once per model).

    Example:
        >>> import mechrep
        >>> rows_agree(mechrep.load_model("mechrep-tiny"))
        True
    """
    if model not in _rows_agree:
        _rows_agree[model] = _compare_rows(model)
    return _rows_agree[model]


def _compare_rows(model: Model) -> bool:
    if not model.fast or model.handles is None or model.handles.attentions is None:
        return False
    tokens, layers = model.probe_tokens(), range(model.anatomy.n_layers)
    assert model.plain is not None
    if not _asks_for_attention(model.plain, tokens):
        return False
    length = tokens.shape[1]
    seen = {layer: torch.zeros(len(tokens), model.anatomy.n_heads, length, length) for layer in layers}
    left = set(layers)

    def keep(rows: Tensor, layer: int, first: int) -> None:
        seen[layer][:, :, first : first + rows.shape[2], : rows.shape[3]] = rows.float().cpu()
        left.discard(layer)

    moved: list[float] = []
    _read_rows(model, tokens, keep, layers, queries=max(1, length // 3))
    if left:
        return False
    read_activations(
        model,
        tokens,
        {Site.PATTERN: layers},
        lambda pattern, _site, layer: moved.append(pattern_distance(seen[layer], pattern.float().cpu())),
        view="transformer_lens",
    )
    return max(moved) <= pattern_tolerance(model.dtype)


def _asks_for_attention(plain: nn.Module, tokens: Tensor) -> bool:
    """Whether the model's attention is computed by a function that can be chosen; its mask is an ordinary one here."""
    from transformers.masking_utils import eager_mask

    asked: list[nn.Module] = []

    def attention(module: nn.Module, *_: Any, **__: Any) -> Any:
        asked.append(module)
        raise AllRead

    with _attention_function(attention, eager_mask), attention_computed(plain, _NAME), suppress(AllRead):
        plain(input_ids=tokens, use_cache=False)
    return bool(asked)


def _read_rows(model: Model, tokens: Tensor, receive: RowReceiver, layers: Collection[int], queries: int) -> None:
    assert model.plain is not None and model.handles is not None and model.handles.attentions is not None
    numbers = {id(module): layer for layer, module in enumerate(model.handles.attentions)}

    def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **settings: Any) -> Any:
        layer = numbers[id(module)]
        wanted = layer in layers
        outputs = []
        for first in range(0, query.shape[2], queries):
            rows = _rows(query, key, mask, first, queries, settings)
            if wanted:
                receive(rows, layer, first)
            outputs.append(_weighted(rows, value))
        if layer == max(layers):
            raise AllRead
        return torch.cat(outputs, dim=2).transpose(1, 2), None  # [batch pos head d_head]

    with _attention_function(attention, _mask_rule), attention_computed(model.plain, _NAME), suppress(AllRead):
        model.plain(input_ids=tokens, use_cache=False)


@contextmanager
def _attention_function(attention: Callable[..., Any], mask: Callable[..., Any]) -> Iterator[None]:
    """``attention`` as one of the functions that transformers' models choose from by name, with its masks."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    # A name without a mask function would get no mask at all, whatever the model asks for.
    ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, mask)
    ALL_ATTENTION_FUNCTIONS[_NAME] = attention
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS[_NAME]


class _MaskRule:
    """transformers' rule for who may look at whom, to be asked about some rows at a time."""

    def __init__(self, allowed: Callable[..., Tensor]) -> None:
        self.allowed = allowed

    def rows(self, batch: int, queries: range, keys: int, device: torch.device) -> Bool[Tensor, "batch 1 query key"]:
        texts = torch.arange(batch, device=device)[:, None, None, None]
        query = torch.arange(queries.start, queries.stop, device=device)[:, None]
        head = torch.zeros((), dtype=torch.long, device=device)
        return self.allowed(texts, head, query, torch.arange(keys, device=device)).expand(batch, 1, -1, -1)


def _mask_rule(*, mask_function: Callable[..., Tensor], **_: Any) -> _MaskRule:
    return _MaskRule(mask_function)


def _rows(
    query: Float[Tensor, "batch head pos d_head"],
    key: Float[Tensor, "batch kv_head pos d_head"],
    mask: Any,
    first: int,
    queries: int,
    settings: dict[str, Any],
) -> Float[Tensor, "batch head query_pos key_pos"]:
    """Rows of the pattern from ``first`` on, as the step-by-step function of the family computes them."""
    batch, heads, length, width = query.shape
    last = min(first + queries, length)
    # Heads that share a key are put side by side, so that the key is not copied.
    grouped = query[:, :, first:last].unflatten(1, (key.shape[1], heads // key.shape[1]))
    scores = (grouped @ key[:, :, None, :last].transpose(-1, -2)).flatten(1, 2)
    scaling = settings.get("scaling")
    scores = scores * (width**-0.5 if scaling is None else scaling)
    softcap = settings.get("softcap")
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    causal = torch.ones(last - first, last, dtype=torch.bool, device=scores.device).tril(first)
    if isinstance(mask, _MaskRule):
        causal = causal & mask.rows(batch, range(first, last), last, scores.device)
    elif mask is not None:  # the family's own, made whole
        part = mask[..., first:last, :last]
        scores = scores.masked_fill(~part, -torch.inf) if part.dtype == torch.bool else scores + part
    return scores.masked_fill(~causal, -torch.inf).softmax(-1, dtype=torch.float32).to(query.dtype)


def _weighted(
    rows: Float[Tensor, "batch head query_pos key_pos"], value: Float[Tensor, "batch kv_head pos d_head"]
) -> Float[Tensor, "batch head query_pos d_head"]:
    """What the heads read: the rows times the values."""
    grouped = rows.unflatten(1, (value.shape[1], rows.shape[1] // value.shape[1]))
    return (grouped @ value[:, :, None, : rows.shape[-1]]).flatten(1, 2)


_UP, _GATE_AND_UP = ("mlp.up_proj",), ("mlp.gate_up_proj",)
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_HALF_PRECISION_TOLERANCE_UP = 3e-2

_found: WeakKeyDictionary[nn.Module, tuple[UpProjection, ...]] = WeakKeyDictionary()


@dataclass(frozen=True)
class UpProjection:
    """One layer's up-projection.

    Attributes:
        module: the module whose output holds it.
        second_half: whether it is the second half of that output, behind the gate.
    """

    module: nn.Module
    second_half: bool = False

    def of(self, output: Tensor) -> Tensor:
        """The up-projection in the module's output."""
        return output.chunk(2, dim=-1)[1] if self.second_half else output

    def edit(self, change: Callable[[Tensor], Tensor]) -> Any:
        """Hook ``change`` in; returns the handle, which has ``remove()``."""

        def hook(_module: Any, _args: Any, output: Tensor) -> Tensor:
            if not self.second_half:
                return change(output)
            gate, up = output.chunk(2, dim=-1)
            return torch.cat([gate, change(up)], dim=-1)

        return self.module.register_forward_hook(hook)


def find_up_projections(module: nn.Module, handles: PlainHandles) -> tuple[UpProjection, ...]:
    """The up-projection of every layer, checked by running the module on two tokens (once per module).

    Args:
        module: a Hugging Face decoder.
        handles: its parts.

    Raises:
        ModelError: what was found is not what the activation function's output is multiplied with.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> len(find_up_projections(model.plain, model.handles)) == model.anatomy.n_layers
        True
    """
    if module not in _found:
        found = tuple(
            _find_in(layer, activation) for layer, activation in zip(handles.layers, handles.activations, strict=True)
        )
        _check(module, handles, found)
        _found[module] = found
    return _found[module]


def _find_in(layer: nn.Module, activation: nn.Module) -> UpProjection:
    separate, fused = _find_part(layer, _UP), _find_part(layer, _GATE_AND_UP)
    if separate is not None:
        return UpProjection(separate)
    return UpProjection(activation) if fused is None else UpProjection(fused, second_half=True)


@torch.no_grad()
def _check(module: nn.Module, handles: PlainHandles, found: tuple[UpProjection, ...]) -> None:
    """The input of the output matrix must be activation times up-projection or, without a gate, the activation."""
    seen: dict[tuple[str, int], Tensor] = {}
    hooks: list[Any] = []

    def keep(kind: str, layer: int) -> Callable[..., None]:
        def hook(_module: Any, args: Any, output: Any = None) -> None:
            seen[kind, layer] = (args[0] if output is None else output).detach().float()

        return hook

    for layer, up in enumerate(found):
        hooks.append(handles.activations[layer].register_forward_hook(keep("act", layer)))
        hooks.append(up.module.register_forward_hook(keep("up", layer)))
        hooks.append(handles.mlp_outputs[layer].register_forward_pre_hook(keep("product", layer)))
    parameter = next(module.parameters())
    try:
        module(input_ids=torch.tensor([[0, 1]], device=parameter.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    tolerance = _TOLERANCE.get(parameter.dtype, _HALF_PRECISION_TOLERANCE_UP)
    for layer, up in enumerate(found):
        product = seen["product", layer]
        activation = seen["act", layer].reshape(product.shape)
        without_gate = up.module is handles.activations[layer]
        gated = activation if without_gate else activation * up.of(seen["up", layer]).reshape(product.shape)
        scale = product.abs().max().clamp_min(1e-6)
        if not any(float((part - product).abs().max() / scale) <= tolerance for part in (gated, activation)):
            raise ModelError(
                f"{type(module).__name__}, whose up-projection in layer {layer} was not found",
                "an MLP that multiplies act(gate) with one up-projection, or has no gate",
                "add the module's name to mechrep/models/up_projections.py",
            )
