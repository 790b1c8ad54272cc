"""Attention patterns of long texts, some queries at a time: no ``n x n`` matrix is ever made.

transformers lets a model compute its attention by any function that takes queries and keys (positions rotated and
scaled as the family does it), values and a mask.  For the time of a read that function is ours: it computes what the
step-by-step one computes for ``queries`` positions at a time, hands these rows over and forgets them.  The mask too is
kept as transformers' *rule* and worked out row by row, so sliding windows and chunks are those of the model.

Families whose attention is not computed by such a function (BLOOM's, with ALiBi) cannot be read like this.  Which ones
can is not taken on trust: a short probe is compared with the patterns of the TransformerLens view.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mechrep.errors import InputError
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import AllRead, attention_computed, pattern_distance, pattern_tolerance, read_activations

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
    if model.plain is None or model.processed or model.handles is None or model.handles.attentions is None:
        return False
    tokens, layers = model.probe_tokens(), range(model.anatomy.n_layers)
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
