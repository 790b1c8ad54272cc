"""Which models have a direct step, and how it is known to be theirs.

Two things are asked.  The layers are of *classes that were read*: what they do depends on nothing but weights,
settings, masks and rotary angles.  A class that also looks at positions or sizes (a factor beyond some length, values
that are clipped) could not be told from its neighbours by trying.  And the step is *compared* with the model's own,
on two rows from the same random keys and values, with columns that are hidden and without, where the columns outside
of sliding windows are loud.  This is done once for the settings, types and code that the model has; when they change,
again.

Any other model, and one with hooks on parts that would be passed over, takes its steps as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

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
from mechrep.generation.slot_cache import UNLIKE, SlotCache, kept_by, step
from mechrep.models.model import Model
from mechrep.models.parts import text_config
from mechrep.models.state import settings_of

Step = Callable[[SlotCache, Tensor, Tensor], Tensor]

_HOME = "transformers.models."
_READ = {  # classes of layers whose code was read, and the matrices that their attention and MLP read through
    "llama.modeling_llama.LlamaDecoderLayer": separate,
    "mistral.modeling_mistral.MistralDecoderLayer": separate,
    "qwen2.modeling_qwen2.Qwen2DecoderLayer": separate,
    "qwen3.modeling_qwen3.Qwen3DecoderLayer": separate,
    "gemma.modeling_gemma.GemmaDecoderLayer": separate,
    "gemma3.modeling_gemma3.Gemma3DecoderLayer": separate,
    "gpt2.modeling_gpt2.GPT2Block": side_by_side,
    "gpt_neox.modeling_gpt_neox.GPTNeoXLayer": head_by_head,
}
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}  # of the largest logit; a window off by one makes 1e-2
_ROUNDINGS = 8  # in half precision
_WIDEST = 8200  # columns of the comparison: models with wider windows take their steps as they are
_LOUD = 1000.0
_COUNTING = ("mechrep.models.meter", "mechrep.models.neurons")  # what is hooked there looks on and changes nothing

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
    own = partial(step, plain)
    state = _state_of(plain)
    if plain not in _found or _found[plain][0] != state:
        if not _calm(plain):  # what is hooked now may be gone later, and the verdict would stay
            return own
        _found[plain] = state, _compared(model)
    decoder = _found[plain][1]
    return own if decoder is None or not _passable(plain, decoder) else DirectStep(decoder, cache.capacity)


def _state_of(plain: Any) -> list[Any]:
    """Settings, types, devices and code: what a verdict holds for."""
    configs = [plain.config.to_dict(), text_config(plain).to_dict()]
    names = [config._attn_implementation for config in (plain.config, text_config(plain))]
    weights = {(weight.dtype, weight.device) for weight in plain.parameters()}
    code = {type(part).forward for part in plain.modules()}
    return [settings_of(plain), configs, names, ALL_ATTENTION_FUNCTIONS.get("sdpa"), weights, code]


def _calm(plain: nn.Module) -> bool:
    """Whether nothing is hooked to a model but mechrep's own counting."""
    return not _for_all() and all(
        _counts(part._forward_pre_hooks) and not part._forward_hooks and "forward" not in vars(part)
        for part in plain.modules()
    )


def _passable(plain: nn.Module, decoder: Decoder) -> bool:
    """Whether nothing is hooked to parts that a direct step passes over, but mechrep's own counting of layers."""
    called = {id(part) for layer in decoder.layers for part in layer.called}
    called |= {id(part) for part in (decoder.embed, decoder.places, decoder.head)}
    layers = {id(layer.module) for layer in decoder.layers}
    for part in plain.modules():
        before = part._forward_pre_hooks
        fine = id(part) in called or not (part._forward_hooks or before)
        fine = fine or (id(part) in layers and not part._forward_hooks and _counts(before))
        if not fine or "forward" in vars(part):
            return False
    return not _for_all()


def _for_all() -> bool:
    return bool(torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)


def _counts(hooks: dict[int, Any]) -> bool:
    return all(getattr(hook, "__module__", "") in _COUNTING for hook in hooks.values())


# --- finding --------------------------------------------------------------------------------------------------------


def _decoder_of(model: Model) -> Decoder | None:
    """The parts of a model; ``None`` if its classes were not read."""
    plain: Any = model.plain
    trace, handles = model.trace, model.handles
    if trace is None or handles is None or trace.finish is None or trace.head is None or trace.final_norm is None:
        return None
    kind, config = type(handles.layers[0]), text_config(plain)
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix(_HOME)
    if name not in _READ or model.lengths is not None or any(type(layer) is not kind for layer in handles.layers):
        return None
    around = (plain, plain.get_decoder(), *handles.attentions)
    if any(type(part).__module__ != kind.__module__ for part in around):
        return None
    attends = ALL_ATTENTION_FUNCTIONS.get("sdpa")
    if config._attn_implementation != "sdpa" or not getattr(attends, "__module__", "").startswith("transformers."):
        return None
    if getattr(config, "attn_logit_softcapping", None):
        return None
    embed, rotary = plain.get_input_embeddings(), getattr(plain.get_decoder(), "rotary_emb", None)
    layers = [_layer_of(model, number, _READ[name], rotary) for number in range(len(handles.layers))]
    angles = partial(_angles, rotary, {layer.attention.kind for layer in layers}, embed)
    places = getattr(plain.get_decoder(), "wpe", None)
    return Decoder(embed, places, angles, layers, norm_of(trace.final_norm), trace.head, trace.finish)


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


def _layer_of(model: Model, number: int, read: Any, rotary: Any) -> Layer:
    handles, trace, anatomy = model.handles, model.trace, model.anatomy
    assert handles is not None and trace is not None
    module, roles = handles.layers[number], trace.roles[number]
    attention: Any = handles.attentions[number]
    output, down, activation = (
        parts[number] for parts in (handles.attention_outputs, handles.mlp_outputs, handles.activations)
    )
    assert output is not None and down is not None and activation is not None
    names = {side_by_side: ("c_attn",), head_by_head: ("query_key_value",)}.get(read, ("q_proj", "k_proj", "v_proj"))
    projections = [getattr(attention, name) for name in names]
    mlp: Any = module.mlp
    if read is separate:
        ups = [mlp.gate_proj, mlp.up_proj]
    else:
        ups = [mlp.c_fc if read is side_by_side else mlp.dense_h_to_4h]
    inner = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    made = Attention(
        read=partial(read, projections, anatomy.d_head),
        inner=None if inner[0] is None else (norm_of(inner[0]), norm_of(inner[1])),
        output=output,
        scale=attention.scaling,
        window=getattr(attention, "sliding_window", getattr(model.config, "sliding_window", None)),
        kind=getattr(attention, "layer_type", None) if hasattr(rotary, "layer_types") else None,
        heads=(anatomy.n_heads, anatomy.n_kv_heads),
    )
    norms = [roles.before_attention, roles.behind_attention, roles.before_mlp, roles.behind_mlp]
    before, behind, before_mlp, behind_mlp = (None if norm is None else norm_of(norm) for norm in norms)
    assert before is not None and before_mlp is not None
    return Layer(
        module=module,
        roles=roles,
        attention=made,
        neurons=partial(gated if len(ups) == 2 else without_gate, activation, *ups),
        down=down,
        norms=(before, behind, before_mlp, behind_mlp),
        called=(*projections, output, *ups, activation, down),
    )


# --- comparing ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _compared(model: Model) -> Decoder | None:
    """The decoder of a model whose direct step gives its own logits."""
    assert model.plain is not None
    with _uncounted(model.plain):
        try:
            decoder = _decoder_of(model)
            same = decoder is not None and all(_agrees(model, decoder, starts) for starts in ((0, 0), (0, 3)))
        except torch.OutOfMemoryError:
            raise
        except UNLIKE:  # the parts are not what the classes of another version of the library have
            return None
    return decoder if same else None


@contextmanager
def _uncounted(plain: nn.Module) -> Iterator[None]:
    """While open, what counts passes does not see them."""
    kept = [(part, dict(part._forward_pre_hooks)) for part in plain.modules() if part._forward_pre_hooks]
    for part, _ in kept:
        part._forward_pre_hooks.clear()
    try:
        yield
    finally:
        for part, hooks in kept:
            part._forward_pre_hooks.update(hooks)


def _agrees(model: Model, decoder: Decoder, starts: tuple[int, int]) -> bool:
    """Whether both steps give the same logits, from keys and values that nobody has computed."""
    anatomy, draw = model.anatomy, torch.Generator().manual_seed(0)
    window = max(layer.attention.window or 0 for layer in decoder.layers)
    columns = min(window + 8, anatomy.n_ctx - 2)
    if not 4 < columns <= _WIDEST:
        return False
    shape = (2, anatomy.n_kv_heads, columns + 2, anatomy.d_head)
    keys, values = (torch.randn(shape, generator=draw) for _ in range(2))
    if columns > window > 0:
        values[:, :, : columns + 1 - window] *= _LOUD  # the newest column is one of those in the window
    tokens = torch.tensor([1, anatomy.d_vocab // 2], device=model.device)
    logits = []
    for way in (partial(step, model.plain), DirectStep(decoder, columns + 2)):
        cache = SlotCache(anatomy.n_layers, 2, columns + 2, model.device, kept_by(model))
        if cache.states or len(cache.layers) != anatomy.n_layers:
            return False
        own_keys, own_values = (made.to(model.device, model.dtype) for made in (keys, values))
        for layer in cache.layers:  # all share them: each writes its newest column before it reads
            layer.allocate(own_keys, own_values, 2)
            layer.keys, layer.values = own_keys, own_values
        cache.column, cache.starts = columns, torch.tensor(starts, device=model.device)
        cache.empty[:] = False
        cache.make_room(1)
        logits.append(way(cache, tokens, columns - cache.starts).float())
    largest, off = float(logits[0].abs().max()), float((logits[0] - logits[1]).abs().max())
    return 0 < largest < torch.inf and off <= largest * _TOLERANCE.get(
        model.dtype, _ROUNDINGS * torch.finfo(model.dtype).eps
    )
