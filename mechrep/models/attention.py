"""Attention patterns and values of the plain view, some queries at a time: no ``n x n`` matrix need ever be made.

transformers lets most models compute their attention by any function that takes queries and keys (positions rotated and
scaled as the family does it), values and a mask.  For the time of a read that function is ours: it computes what the
step-by-step one computes for ``queries`` positions at a time, hands these rows over and forgets them.  The mask too is
kept as transformers' *rule* and worked out row by row, so sliding windows and chunks are those of the model.

Learned sinks (gpt-oss) are one more logit in every row, which takes attention and gives nothing: rows then sum to less
than 1, and the rest is the sink's share.

Families whose attention is not computed by such a function (BLOOM, GPT-J, MPT, ...) cannot be read like this.  Which
ones can is not taken on trust: rows times values must be what the heads read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mechrep.errors import MissingPartError
from mechrep.guards import Count, guarded, within
from mechrep.models.finite import checked
from mechrep.models.model import Model

QUERIES = 128  # rows of the pattern at a time: 128 x n numbers per head
_BLOCK = 512  # queries of fused attention at a time, where who may look at whom is more than "what came before"
_NAME = "mechrep_rows"

# Half of the summed difference between two rows of a pattern: the share of attention that lies elsewhere.
_PATTERN_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3}
_HALF_PRECISION_TOLERANCE = 0.1

# A block of rows ``[batch head query_pos key_pos]``, the layer, and the position of its first query.  Keys after the
# last query of the block are left out.
RowReceiver = Callable[[Tensor, int, int], None]
ValueReceiver = Callable[[Tensor, int], None]  # ``[batch pos kv_head d_head]`` and the layer
ColumnReceiver = Callable[[Tensor, int], None]  # ``[batch head query_pos]`` and the layer


class AllRead(Exception):
    """Raised in the hook that hands over the last activation asked for: a signal that ends the pass, no error."""


def pattern_distance(one: Tensor, other: Tensor) -> float:
    """The largest share of a row's attention that lies elsewhere in the other pattern; infinite for other shapes."""
    other = other.to(one.device)
    return (one - other).abs().sum(-1).max().item() / 2 if one.shape == other.shape else torch.inf


def pattern_tolerance(dtype: torch.dtype) -> float:
    """How far two computations of one pattern may lie apart."""
    return _PATTERN_TOLERANCE.get(dtype, _HALF_PRECISION_TOLERANCE)


@dataclass(frozen=True)
class Reading:
    """Which families can be read through the attention function, found by a probe.

    Attributes:
        rows: rows of the pattern come out block by block, in every layer with attention.
        plain: rows times values are what the output projection reads: no gate, no norm in between.
        sinks: a learned sink takes part of the attention of some rows.
    """

    rows: bool
    plain: bool
    sinks: bool = False


_readings: WeakKeyDictionary[Model, Reading] = WeakKeyDictionary()


@torch.no_grad()
def reading_of(model: Model) -> Reading:
    """What a probe shows of a model's attention function (run once per model).

    Example:
        >>> import mechrep
        >>> reading_of(mechrep.load_model("mechrep-tiny"))
        Reading(rows=True, plain=True, sinks=False)
    """
    if model not in _readings:
        try:
            _readings[model] = _probe(model)
        except _WholeMaskNeeded:
            _readings[model] = Reading(rows=False, plain=False)
    return _readings[model]


def rows_agree(model: Model) -> bool:
    """Whether rows of the pattern can be read block by block.

    Example:
        >>> import mechrep
        >>> rows_agree(mechrep.load_model("mechrep-tiny"))
        True
    """
    return model.fast and reading_of(model).rows


@torch.no_grad()
@guarded
def read_attention_rows(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    receive: RowReceiver,
    *,
    layers: Collection[int] | None = None,
    queries: Count = QUERIES,
) -> None:
    """Run ``tokens`` once and hand over all rows of the attention patterns, block by block and layer by layer.

    Args:
        model: a model with a plain view.
        tokens: right-padded ids; a causal model's real positions never see the padding.
        receive: called inside the forward pass as ``receive(rows, layer, first_query)`` with
            ``rows [batch head query_pos key_pos]``; it must not keep the tensor.  Row ``i`` is the query at position
            ``first_query + i``; the keys end with the block's last query.
        layers: all that have attention by default.
        queries: rows per block; memory is ``batch * heads * queries * pos``.

    Raises:
        InputError: no rows per block, a layer without attention, or a model that cannot be read like this.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> shapes = []
        >>> tokens = torch.tensor([[0, 300, 301, 302, 303]])
        >>> read_attention_rows(model, tokens, lambda rows, *_: shapes.append(rows.shape[2:]), layers=[0], queries=3)
        >>> [tuple(shape) for shape in shapes]
        [(3, 3), (2, 5)]
    """
    chosen = _readable_layers(model, layers)
    if model.lengths is not None:
        model.lengths.check(tokens)
    receive = checked(model, receive, lambda layer, _first: f"attention of layer {layer}")
    if len(chosen):
        assert model.plain is not None
        with computed_here(model, receive, layers=chosen, queries=queries, stop=True), suppress(AllRead):
            model.plain(input_ids=tokens, use_cache=False)


def _readable_layers(model: Model, layers: Collection[int] | None) -> Sequence[int]:
    """Layers whose attention is asked for.

    Raises:
        MissingPartError: one without attention, or a model that cannot be read like this.
    """
    there = model.anatomy.attention_layers
    chosen = there if layers is None else sorted(set(layers))
    for layer in chosen:
        model.anatomy.check_layer(layer)
        if layer not in there:
            raise MissingPartError(f"attention of layer {layer}", f"one of the layers {there}", "leave it out")
    if not rows_agree(model):
        raise MissingPartError(
            f"long texts for {model.name} ({model.anatomy.architecture})",
            "a model whose plain view computes its attention by transformers' attention interface",
            "cut the texts (windows_of_text) and read whole patterns: CorpusCache(...).run(AttentionSinks())",
        )
    return chosen


@torch.no_grad()
def read_attention_column(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    receive: ColumnReceiver,
    *,
    key: int = 0,
    layers: Collection[int] | None = None,
) -> None:
    """Run ``tokens`` once and hand over what every query gives to one key: a column of each head's pattern.

    With ``s`` the score of the key, ``A[t, key] = exp(s[t] - log sum_k exp s[t, k])``.  Fused attention makes the
    sum of every row beside its output, so the column costs little more than the pass itself.  Where there is no such
    kernel (scores with a cap, other devices than the processor) rows are made block by block, with equal numbers.

    Args:
        model: a model with a plain view.
        tokens: right-padded ids; a causal model's real positions never see the padding.
        receive: called as ``receive(column, layer)`` with ``column [batch head query_pos]``; zeros before the key, and
            where a sliding window does not reach it.
        key: position of the key.
        layers: all that have attention by default.

    Raises:
        InputError: a key that is not there, a layer without attention, or a model that cannot be read like this.

    Example:
        >>> import mechrep
        >>> model, columns = mechrep.load_model("mechrep-tiny"), {}
        >>> tokens = torch.tensor([[0, 300, 301, 302, 303]])
        >>> read_attention_column(model, tokens, lambda column, layer: columns.update({layer: column}))
        >>> sorted(columns), columns[0].shape, bool((columns[0][..., 0] == 1).all())
        ([0, 1, 2, 3], torch.Size([1, 2, 5]), True)
    """
    chosen = _readable_layers(model, layers)
    within("key", key, 0, tokens.shape[1] - 1, "a position")
    if model.lengths is not None:
        model.lengths.check(tokens)
    receive = checked(model, receive, lambda layer: f"attention of layer {layer}")
    if len(chosen):
        assert model.plain is not None
        with computed_here(model, column=(key, receive), layers=chosen, stop=True), suppress(AllRead):
            model.plain(input_ids=tokens, use_cache=False)


@contextmanager
def computed_here(
    model: Model,
    receive: RowReceiver | None = None,
    values: ValueReceiver | None = None,
    *,
    column: tuple[int, ColumnReceiver] | None = None,
    layers: Collection[int],
    queries: int = QUERIES,
    stop: bool = False,
) -> Iterator[None]:
    """While open, the plain view's attention is computed here, and hands over rows and values of some layers.

    Args:
        model: the model.
        receive: gets rows; ``None`` if nobody wants them.
        values: gets values, one per key-value head.
        column: position of a key, and who gets its column; not beside ``receive``.
        layers: whose rows, values and columns are handed over.
        queries: rows at a time.
        stop: end the pass (:class:`AllRead`) behind the last of these layers.
    """
    assert model.plain is not None and model.handles is not None
    numbers = {id(module): layer for layer, module in enumerate(model.handles.attentions) if module is not None}

    def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **settings: Any) -> Any:
        layer = numbers[id(module)]
        if values is not None and layer in layers:
            values(value.transpose(1, 2), layer)
        if column is not None and layer in layers:
            read, found = _with_column(query, key, value, mask, column[0], settings)
            column[1](found, layer)
        else:

            def see(rows: Tensor, first: int) -> None:
                if receive is not None and layer in layers:
                    receive(rows, layer, first)

            read = _by_rows((query, key, value), mask, queries, settings, see)
        if stop and layer == max(layers):
            raise AllRead
        return read.transpose(1, 2), None  # [batch pos head d_head]

    with _attention_function(attention, _mask_rule), attention_computed(model.plain, _NAME):
        yield


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


def _probe(model: Model) -> Reading:
    """Run two short rows: which layers ask for attention, and is what they read the rows times the values?"""
    nothing = Reading(rows=False, plain=False)
    if model.plain is None or model.handles is None:
        return nothing
    tokens, there = model.probe_tokens(), model.anatomy.attention_layers
    known = [model.handles.attentions[layer] for layer in there]
    if any(part is None for part in known) or _asks_for_attention(model.plain, tokens) not in known:
        return nothing
    length, n_heads = tokens.shape[1], model.anatomy.n_heads
    like: dict[str, Any] = {"device": tokens.device, "dtype": torch.float32}
    seen = {layer: torch.zeros(len(tokens), n_heads, length, length, **like) for layer in there}
    values: dict[int, Tensor] = {}
    read: dict[int, Tensor] = {}
    left = set(there)

    def keep(rows: Tensor, layer: int, first: int) -> None:
        if rows.shape[:2] == seen[layer].shape[:2]:
            seen[layer][:, :, first : first + rows.shape[2], : rows.shape[3]] = rows.float()
            left.discard(layer)

    def hook(layer: int) -> Callable[..., None]:
        return lambda _module, args: read.__setitem__(layer, args[0].detach().float())

    handles = [model.handles.attention_outputs[layer].register_forward_pre_hook(hook(layer)) for layer in there]  # pyright: ignore
    try:
        with computed_here(
            model,
            keep,
            lambda v, layer: values.__setitem__(layer, v.float()),
            layers=there,
            queries=max(1, length // 3),
        ):
            model.plain(input_ids=tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    usual = _usual_rows(model, tokens)
    rows = not left and all(
        pattern_distance(seen[n], usual.get(n, seen[n])) <= pattern_tolerance(model.dtype) for n in there
    )
    if not rows:
        return nothing
    sums = torch.stack([seen[layer].sum(-1).cpu() for layer in there])  # layers may lie on several devices
    plain = all(_is_read(seen[n], values[n], read[n], model.dtype) for n in there)
    return Reading(rows=True, plain=plain, sinks=bool((sums < 1 - 1e-3).any()))


def _usual_rows(model: Model, tokens: Tensor) -> dict[int, Tensor]:
    """Patterns that the family's own step-by-step function gives, where its attention returns them."""
    assert model.plain is not None and model.handles is not None
    found: dict[int, Tensor] = {}

    def hook(layer: int) -> Callable[..., None]:
        def keep(_module: Any, _args: Any, output: Any) -> None:
            weights = returned_weights(output)
            if weights is not None:
                found[layer] = weights.float()

        return keep

    parts = [(n, part) for n, part in enumerate(model.handles.attentions) if part is not None]
    handles = [part.register_forward_hook(hook(n)) for n, part in parts]
    try:
        with attention_computed(model.plain, "eager"):
            model.plain(input_ids=tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def returned_weights(output: Any) -> Tensor | None:
    """The pattern ``[batch head query_pos key_pos]`` that an attention module returns beside its output."""
    beside = output[1:] if isinstance(output, tuple) else ()
    found = [part for part in beside if isinstance(part, Tensor) and part.ndim == 4]
    return found[0] if len(found) == 1 else None


def _is_read(rows: Tensor, value: Tensor, read: Tensor, dtype: torch.dtype) -> bool:
    expected = _weighted(rows.to(value.device), value.transpose(1, 2)).transpose(1, 2).flatten(2)
    if expected.numel() != read.numel():
        return False
    scale = read.abs().max().clamp_min(1e-6)
    tolerance = 1e-3 if dtype in (torch.float32, torch.float64) else 5e-2
    return bool((expected - read.view_as(expected)).abs().max() / scale <= tolerance)


def _asks_for_attention(plain: nn.Module, tokens: Tensor) -> nn.Module | int:
    """The first module that has its attention computed by a function that can be chosen; 0 where none does."""
    from transformers.masking_utils import eager_mask

    asked: list[nn.Module] = []

    def attention(module: nn.Module, *_: Any, **__: Any) -> Any:
        asked.append(module)
        raise AllRead

    with _attention_function(attention, eager_mask), attention_computed(plain, _NAME), suppress(AllRead):
        plain(input_ids=tokens, use_cache=False)
    return asked[0] if asked else 0


@contextmanager
def _attention_function(attention: Callable[..., Any], mask: Callable[..., Any]) -> Iterator[None]:
    """``attention`` as one of the functions that transformers' models choose from by name, with its masks."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    outside = ALL_ATTENTION_FUNCTIONS.get(_NAME), ALL_MASK_ATTENTION_FUNCTIONS.get(_NAME)  # of a read around this one
    # A name without a mask function would get no mask at all, whatever the model asks for.
    ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, mask)
    ALL_ATTENTION_FUNCTIONS[_NAME] = attention
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS[_NAME]
        if outside[0] is not None and outside[1] is not None:
            ALL_ATTENTION_FUNCTIONS[_NAME] = outside[0]
            ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, outside[1])


class _WholeMaskNeeded(Exception):
    """Raised where a family takes the mask for a tensor."""


class _MaskRule:
    """transformers' rule for who may look at whom, to be asked about some rows at a time."""

    def __init__(self, allowed: Callable[..., Tensor]) -> None:
        self.allowed = allowed
        self._causal: dict[tuple[int, int], bool] = {}

    def __getitem__(self, _place: Any) -> Tensor:
        """Some families cut the mask themselves: they are not read row by row."""
        raise _WholeMaskNeeded

    def rows(self, batch: int, queries: range, keys: int, device: torch.device) -> Bool[Tensor, "batch 1 query key"]:
        texts = torch.arange(batch, device=device)[:, None, None, None]
        query = torch.arange(queries.start, queries.stop, device=device)[:, None]
        head = torch.zeros((), dtype=torch.long, device=device)
        return self.allowed(texts, head, query, torch.arange(keys, device=device)).expand(batch, 1, -1, -1)

    def only_causal(self, batch: int, length: int, device: torch.device) -> bool:
        """Whether everybody may look at whatever came before, and nothing else is asked; found by asking, once."""
        if (batch, length) not in self._causal:
            self._causal[batch, length] = all(
                torch.equal(part, torch.ones_like(part).tril(first))
                for first in range(0, length, _BLOCK)
                for part in [self.rows(batch, range(first, min(first + _BLOCK, length)), length, device)]
            )
        return self._causal[batch, length]


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
    scores = scores.masked_fill(~causal, -torch.inf)
    sinks = settings.get("s_aux")
    if sinks is None:
        return scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    beside = sinks.to(scores).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    return torch.cat([scores, beside], -1).softmax(-1, dtype=torch.float32)[..., :-1].to(query.dtype)


def _by_rows(
    given: tuple[Tensor, Tensor, Tensor],
    mask: Any,
    queries: int,
    settings: dict[str, Any],
    see: Callable[[Tensor, int], None],
) -> Float[Tensor, "batch head pos d_head"]:
    """What the heads read, from queries, keys and values; ``see`` gets some rows at a time, and the first query."""
    query, key, value = given
    parts = []
    for first in range(0, query.shape[2], queries):
        rows = _rows(query, key, mask, first, queries, settings)
        see(rows, first)
        parts.append(_weighted(rows, value))
    return torch.cat(parts, dim=2)


def _weighted(
    rows: Float[Tensor, "batch head query_pos key_pos"], value: Float[Tensor, "batch kv_head pos d_head"]
) -> Float[Tensor, "batch head query_pos d_head"]:
    """What the heads read: the rows times the values."""
    grouped = rows.unflatten(1, (value.shape[1], rows.shape[1] // value.shape[1]))
    return (grouped @ value[:, :, None, : rows.shape[-1]]).flatten(1, 2)


def _with_column(
    query: Float[Tensor, "batch head pos d_head"],
    key: Float[Tensor, "batch kv_head pos d_head"],
    value: Float[Tensor, "batch kv_head pos d_head"],
    mask: Any,
    place: int,
    settings: dict[str, Any],
) -> tuple[Float[Tensor, "batch head pos d_head"], Float[Tensor, "batch head query_pos"]]:
    """What the heads read, and the column of the key at ``place``."""
    batch, heads, length, width = query.shape
    rule = mask if isinstance(mask, _MaskRule) else None
    fused = query.device.type == "cpu" and settings.get("softcap") is None and width == value.shape[-1]
    whole = mask is None or (rule is not None and rule.only_causal(batch, length, query.device))
    column = query.new_zeros(batch, heads, length)
    if not fused or (rule is None and mask is not None):

        def see(rows: Tensor, first: int) -> None:
            if place < rows.shape[-1]:
                column[:, :, first : first + rows.shape[2]] = rows[..., place]

        return _by_rows((query, key, value), mask, QUERIES, settings, see), column
    scaling = settings.get("scaling")
    scale = width**-0.5 if scaling is None else scaling
    grouped = query.unflatten(1, (key.shape[1], -1)).float()
    scores = (grouped @ key[:, :, None, place, :, None].float()).flatten(1, 2)[..., 0] * scale
    keys, values = (part.repeat_interleave(heads // key.shape[1], 1) for part in (key, value))
    read, sums = _fused(query, keys, values, None if whole else rule, scale)
    sinks = settings.get("s_aux")
    if sinks is not None:  # one more logit in every row, which gives nothing
        more = torch.logaddexp(sums, sinks.to(sums).view(1, -1, 1))
        read, sums = read * (sums - more).exp()[..., None].to(read.dtype), more
    seen = torch.arange(length, device=query.device) >= place
    if not whole and rule is not None:
        seen = torch.cat([
            rule.rows(batch, range(first, min(first + _BLOCK, length)), length, query.device)[..., place]
            for first in range(0, length, _BLOCK)
        ], -1) & seen  # fmt: skip
    column = (scores - sums).exp().masked_fill(~seen, 0)
    column[:, :, 0] = column[:, :, 0].round() if place == 0 and sinks is None else column[:, :, 0]  # its own key alone
    return read, column.to(query.dtype)


def _fused(
    query: Tensor, key: Tensor, value: Tensor, rule: _MaskRule | None, scale: float
) -> tuple[Float[Tensor, "batch head pos d_head"], Float[Tensor, "batch head pos"]]:
    """Fused attention of torch on the processor: what the heads read, and the logarithm of each row's sum."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    if rule is None:
        return kernel(query, key, value, 0.0, True, scale=scale)
    batch, length = query.shape[0], query.shape[2]
    parts: list[tuple[Tensor, Tensor]] = []
    for first in range(0, length, _BLOCK):
        last = min(first + _BLOCK, length)
        allowed = rule.rows(batch, range(first, last), last, query.device)
        allowed = allowed & torch.ones(last - first, last, dtype=torch.bool, device=query.device).tril(first)
        begin = int(allowed.flatten(0, 2).any(0).int().argmax())  # keys before it are out of every window
        bias = torch.zeros_like(allowed[..., begin:], dtype=query.dtype).masked_fill(~allowed[..., begin:], -torch.inf)
        here, keys = slice(first, last), slice(begin, last)
        parts.append(
            kernel(query[:, :, here], key[:, :, keys], value[:, :, keys], 0.0, False, attn_mask=bias, scale=scale)
        )
    return torch.cat([read for read, _ in parts], 2), torch.cat([sums for _, sums in parts], 2)
