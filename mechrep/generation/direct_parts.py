"""Which models have a direct step, and the proof that it is theirs.

How the parts of a layer hang together is known from the probe of :mod:`mechrep.models.parts`; what is inside
attention and MLP is known by name, of families like Llama, GPT-2 and GPT-NeoX.  Neither is taken on trust: the step
is *compared with the model itself*, once, on two rows from the same random keys and values, with columns that are
hidden and without, beyond the end of every sliding window.  A model that gives other logits, has parts that are not
known here, or hooks on parts that would be passed over, takes its steps as it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from mechrep.generation.direct_step import (
    Attention,
    Decoder,
    DirectStep,
    Layer,
    gated,
    head_by_head,
    norm_of,
    separate,
    side_by_side,
    without_gate,
)
from mechrep.generation.slot_cache import SlotCache, kept_by, step
from mechrep.models.anatomy import Anatomy
from mechrep.models.model import Model
from mechrep.models.parts import weight_of
from mechrep.models.state import settings_of

Step = Callable[[SlotCache, Tensor, Tensor], Tensor]

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}  # of the largest logit; a window off by one makes 1e-2
_ROUNDINGS = 8  # in half precision
_WIDEST = 8200  # columns of the comparison: models with wider windows take their steps as they are
_FUSED = {"c_attn": side_by_side, "query_key_value": head_by_head}
_INNER = ("q_norm", "k_norm")
_UP = ("c_fc", "dense_h_to_4h")

_found: WeakKeyDictionary[nn.Module, tuple[list[Any], Decoder | None]] = WeakKeyDictionary()


def next_step(model: Model, cache: SlotCache) -> Step:
    """The quickest step that gives a model's own logits: a direct one if it has one, else its own.

    Args:
        model: the model.
        cache: the slots that will be given to it.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> type(next_step(model, SlotCache(4, 2, 30, model.device))).__name__
        'DirectStep'
    """
    plain = model.plain
    assert plain is not None
    settings = settings_of(plain)  # epsilons, scales and windows are looked at once
    if plain not in _found or _found[plain][0] != settings:
        _found[plain] = settings, _compared(model)
    decoder = _found[plain][1]
    if decoder is None or not _untouched(plain, decoder):
        return partial(step, plain)
    return DirectStep(decoder, cache.capacity)


def _untouched(plain: nn.Module, decoder: Decoder) -> bool:
    """Whether nothing is hooked to parts that a direct step passes over, but mechrep's own counting of layers."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return False
    called = {id(part) for layer in decoder.layers for part in layer.called}
    called |= {id(part) for part in (decoder.embed, decoder.places, decoder.head)}
    modules = {id(layer.module) for layer in decoder.layers}
    for part in plain.modules():
        if "forward" in vars(part):
            return False
        if id(part) in modules:
            if part._forward_hooks or not _own(part):
                return False
        elif id(part) not in called and (part._forward_hooks or part._forward_pre_hooks):
            return False
    return True


def _own(layer: nn.Module) -> bool:
    """Whether what is hooked before a layer is mechrep's."""
    return all(
        getattr(hook, "__module__", "").startswith("mechrep.") and number in layer._forward_pre_hooks_with_kwargs
        for number, hook in layer._forward_pre_hooks.items()
    )


# --- finding --------------------------------------------------------------------------------------------------------


def _decoder_of(model: Model) -> Decoder | None:
    """What is known of a model; ``None`` if it has parts that are not."""
    plain: Any = model.plain
    trace, handles = model.trace, model.handles
    if trace is None or handles is None or trace.finish is None or trace.head is None or model.lengths is not None:
        return None
    if not hasattr(plain, "get_decoder") or trace.final_norm is None:
        return None
    rotary, places = (getattr(plain.get_decoder(), name, None) for name in ("rotary_emb", "wpe"))
    if (rotary is None) == (places is None) or not (rotary is None or _takes_positions(type(rotary))):
        return None
    layers = [_layer_of(model, number, rotary) for number in range(len(handles.layers))]
    whole = [layer for layer in layers if layer is not None]
    if len(whole) < len(layers):
        return None
    kinds = {layer.attention.kind for layer in whole}
    angles = partial(_angles, rotary, kinds, plain.get_input_embeddings())
    return Decoder(
        plain.get_input_embeddings(), places, angles, whole, norm_of(trace.final_norm), trace.head, trace.finish
    )


def _takes_positions(kind: type) -> bool:
    """Whether a rotary module is asked for the angles of positions, and of a kind of layer at most."""
    names = list(inspect.signature(kind.forward).parameters)[1:]
    return names[1:] in (["position_ids"], ["position_ids", "layer_type"])


def _angles(
    rotary: Any, kinds: set[str | None], embed: Any, length: int
) -> dict[str | None, Float[Tensor, "pos 1 angle"]]:
    if rotary is None:
        return {}
    like = embed.weight[:1, None]
    positions = torch.arange(length, device=like.device)[None]
    tables = {}
    for kind in kinds:
        cos, sin = rotary(like, positions, *(() if kind is None else (kind,)))
        first, second = sin[0].chunk(2, -1)
        tables[kind] = torch.cat([cos[0], -first, second], -1)[:, None]
    return tables


def _layer_of(model: Model, number: int, rotary: Any) -> Layer | None:
    handles, trace = model.handles, model.trace
    assert handles is not None and trace is not None
    module, roles, down = handles.layers[number], trace.roles[number], handles.mlp_outputs[number]
    attention, mlp = _attention_of(model, number, rotary), _mlp_of(model, number)
    norms = [roles.before_attention, roles.behind_attention, roles.before_mlp, roles.behind_mlp]
    if attention is None or mlp is None or down is None or norms[0] is None or norms[2] is None:
        return None
    if roles.attention_writes is None or roles.mlp_writes is None or roles.beside is not None:
        return None
    called = (*attention[1], *mlp[1], attention[0].output, down)
    within = handles.attentions[number]
    passed = (module, within, _around(module, down), *norms, *(getattr(within, name, None) for name in _INNER))
    known = {id(part) for part in (*called, *passed)}
    if any(id(part) not in known and not isinstance(part, nn.Dropout) for part in module.modules()):
        return None
    before, behind, before_mlp, behind_mlp = (None if norm is None else norm_of(norm) for norm in norms)
    assert before is not None and before_mlp is not None
    return Layer(module, roles, attention[0], mlp[0], down, (before, behind, before_mlp, behind_mlp), called)


def _attention_of(model: Model, number: int, rotary: Any) -> tuple[Attention, list[nn.Module]] | None:
    """A layer's attention, and its matrices for queries, keys and values."""
    handles, anatomy = model.handles, model.anatomy
    assert handles is not None
    module, output = handles.attentions[number], handles.attention_outputs[number]
    parts: list[Any] = [handles.queries[number], handles.keys[number], handles.values[number]]
    read: Any = separate
    if None in parts:
        parts, read = next(
            (([part], way) for name, way in _FUSED.items() if (part := getattr(module, name, None)) is not None),
            ([], None),
        )
    scale = getattr(module, "scaling", None)
    inner = [getattr(module, name, None) for name in _INNER]
    if read is None or output is None or not isinstance(scale, float) or not _fit(anatomy, parts, inner):
        return None
    window = getattr(module, "sliding_window", getattr(model.config, "sliding_window", None))
    made = Attention(
        read=partial(read, parts, anatomy.d_head),
        inner=None if inner[0] is None else (norm_of(inner[0]), norm_of(inner[1])),
        output=output,
        scale=scale,
        window=window,
        kind=getattr(module, "layer_type", None) if hasattr(rotary, "layer_types") else None,
        heads=(anatomy.n_heads, anatomy.n_kv_heads),
    )
    return made, parts


def _fit(anatomy: Anatomy, parts: list[Any], inner: list[Any]) -> bool:
    """Whether the matrices make heads of the sizes that are known, and both norms inside, or none, are of one head."""
    heads, kv_heads = anatomy.n_heads * anatomy.d_head, anatomy.n_kv_heads * anatomy.d_head
    widths = [heads, kv_heads, kv_heads] if len(parts) == 3 else [3 * heads]
    found = [weight_of(part).shape[1] if isinstance(getattr(part, "weight", None), Tensor) else 0 for part in parts]
    norms = [getattr(norm, "weight", None) for norm in inner if norm is not None]
    whole = all(isinstance(one, Tensor) and one.shape == (anatomy.d_head,) for one in norms)
    return found == widths and (len(parts) == 3 or heads == kv_heads) and len(norms) in (0, 2) and whole


def _around(layer: nn.Module, part: nn.Module | None) -> Any:
    """The part of a layer that another one is in."""
    return next((child for child in layer.children() if part is not None and part in child.children()), None)


def _mlp_of(model: Model, number: int) -> tuple[Callable[[Tensor], Tensor], list[nn.Module]] | None:
    """From what a layer's MLP reads to its neurons, and the modules on the way."""
    handles = model.handles
    assert handles is not None
    down, activation = handles.mlp_outputs[number], handles.activations[number]
    mlp = _around(handles.layers[number], down)
    if mlp is None or activation is None:
        return None
    gate, up = getattr(mlp, "gate_proj", None), getattr(mlp, "up_proj", None)
    if gate is not None and up is not None:
        return partial(gated, activation, gate, up), [activation, gate, up]
    up = next((part for name in _UP if (part := getattr(mlp, name, None)) is not None), None)
    return None if up is None else (partial(without_gate, activation, up), [activation, up])


# --- comparing ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _compared(model: Model) -> Decoder | None:
    """The decoder of a model whose direct step gives its own logits."""
    decoder = _decoder_of(model)
    if decoder is None or model.plain is None or not _untouched(model.plain, decoder):
        return None
    return decoder if all(_agrees(model, decoder, starts) for starts in ((0, 0), (0, 3))) else None


def _agrees(model: Model, decoder: Decoder, starts: tuple[int, int]) -> bool:
    """Whether both steps give the same logits, from keys and values that nobody has computed."""
    anatomy, draw = model.anatomy, torch.Generator().manual_seed(0)
    columns = min(max(layer.attention.window or 0 for layer in decoder.layers) + 8, anatomy.n_ctx - 2)
    if columns > _WIDEST:
        return False
    shape = (2, anatomy.n_kv_heads, columns + 2, anatomy.d_head)
    keys, values = (torch.randn(shape, generator=draw).to(model.device, model.dtype) for _ in range(2))
    tokens = torch.tensor([1, anatomy.d_vocab // 2], device=model.device)
    logits = []
    for way in (partial(step, model.plain), DirectStep(decoder, columns + 2)):
        cache = SlotCache(anatomy.n_layers, 2, columns + 2, model.device, kept_by(model))
        if cache.states or len(cache.layers) != anatomy.n_layers:
            return False
        for layer in cache.layers:  # all share them: each writes its newest column before it reads
            layer.allocate(keys, values, 2)
            layer.keys, layer.values = keys, values
        cache.column, cache.starts = columns, torch.tensor(starts, device=model.device)
        cache.empty[:] = False
        cache.make_room(1)
        logits.append(way(cache, tokens, columns - cache.starts).float())
    allowed = _TOLERANCE.get(model.dtype, _ROUNDINGS * torch.finfo(model.dtype).eps)
    return bool((logits[0] - logits[1]).abs().max() <= allowed * logits[0].abs().max())
