"""Finding the parts of a plain Hugging Face decoder that mechrep reads or edits directly.

*Which module* holds neurons and heads is found by its name: the ends of names below cover the families that are tested.

*What a module does* to the residual stream is found by running: a short probe is traced through every layer, and a part
gets its role from what goes in and comes out.  The norm behind attention is the one whose input is the attention's
output; what attention writes is what, with what the MLP writes, turns the layer's input into its output.  So norms
behind a module, multipliers, parallel blocks and residual sums inside a module are not taken on trust, and a family
where the sum does not come out has no such site instead of a wrong one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

_ATTENTION_OUTPUT = (
    "self_attn.o_proj",
    "attn.c_proj",
    "attention.dense",
    "self_attention.dense",
    "self_attn.out_proj",
    "attn.out_proj",
    "attn.attention.out_proj",
    "self_attn.dense",
    "temporal_block.o_proj",
    "attn.o",  # TransformerLens' name, where it splits a fused matrix of query, key and value
    "attention.o",
    "self_attention.o",
)
_MLP = ("mlp", "feed_forward", "ffn", "mlp_block", "block_sparse_moe")
_MLP_ENDS = ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out", "w2", "out", "output_linear")
_ACTIVATION_ENDS = ("act_fn", "act", "gelu_impl", "activation_fn", "act_func", "activation")
_MLP_OUTPUT = (*(f"{mlp}.{end}" for mlp in _MLP for end in _MLP_ENDS), "fc2")
_ACTIVATION = (*(f"{mlp}.{end}" for mlp in _MLP for end in _ACTIVATION_ENDS), "activation_fn")
_SHARED = ("shared_expert", "shared_experts", "shared_mlp")
_LAYER = re.compile(r"^(?P<stack>(?:.*\.)?(?:layers|h|blocks))\.(?P<layer>\d+)$")

_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}
_ROUNDINGS = 2  # of the stream, while a layer adds to it
_AS_GOOD = 1.5  # times what the best fit leaves over: but for rounding the same


@dataclass(frozen=True)
class PlainHandles:
    """Modules of a Hugging Face decoder, one per layer; ``None`` in a layer that has no such part.

    Attributes:
        layers: the decoder layers.
        activations: module whose *output* is ``GATE_ACT``.
        mlp_outputs: module whose *input* is ``MLP_POST``.
        attention_outputs: module whose *input* is ``Z`` with its heads side by side.
        attentions: module that returns its weights, ``PATTERN``, beside its output where they are computed step by
            step.  Whether they are the pattern is checked by reading.
        queries: the projection whose output is ``Q``, of families that keep one matrix for it; keys, values: likewise.
        experts: module that holds the routed experts; its MLP's own ``activations`` and ``mlp_outputs`` are those of
            the shared experts, if there are any.
        mixtures: the module around the experts and their router.
    """

    layers: tuple[nn.Module, ...]
    activations: tuple[nn.Module | None, ...]
    mlp_outputs: tuple[nn.Module | None, ...]
    attention_outputs: tuple[nn.Module | None, ...]
    attentions: tuple[nn.Module | None, ...]
    queries: tuple[nn.Module | None, ...] = ()
    keys: tuple[nn.Module | None, ...] = ()
    values: tuple[nn.Module | None, ...] = ()
    experts: tuple[nn.Module | None, ...] = ()
    mixtures: tuple[nn.Module | None, ...] = ()

    def __post_init__(self) -> None:
        for name in ("queries", "keys", "values", "experts", "mixtures"):
            if not getattr(self, name):
                object.__setattr__(self, name, (None,) * len(self.layers))


def text_config(module: nn.Module) -> Any:
    """The configuration of the text decoder, also of a model that sees images."""
    config: Any = getattr(module, "config", None)
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def find_handles(module: nn.Module, n_layers: int) -> PlainHandles | None:
    """Handles of a plain (or bridged) Hugging Face decoder, or ``None`` where its layers cannot be found.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> len(find_handles(model.plain, 4).layers), find_handles(model.plain, 3)
        (4, None)
    """
    layers = find_layers(module, n_layers)
    if layers is None:
        return None
    experts = tuple(_experts(layer) for layer in layers)
    mixtures = tuple(None if e is None else _parent(layer, e) for layer, e in zip(layers, experts, strict=True))
    dense = tuple(
        layer if mixture is None else _shared(mixture) or _shared(layer)
        for layer, mixture in zip(layers, mixtures, strict=True)
    )
    outputs = tuple(find_part(layer, _ATTENTION_OUTPUT) for layer in layers)
    attentions = tuple(None if o is None else _parent(layer, o) for layer, o in zip(layers, outputs, strict=True))
    projections = [_projections(attentions, name) for name in ("q_proj", "k_proj", "v_proj")]
    return PlainHandles(
        layers=layers,
        activations=tuple(
            None if part is None else find_part(part, _ends(_ACTIVATION, part, layers)) for part in dense
        ),
        mlp_outputs=tuple(
            None if part is None else find_part(part, _ends(_MLP_OUTPUT, part, layers)) for part in dense
        ),
        attention_outputs=outputs,
        attentions=attentions,
        queries=projections[0],
        keys=projections[1],
        values=projections[2],
        experts=experts,
        mixtures=mixtures,
    )


def _projections(attentions: tuple[nn.Module | None, ...], name: str) -> tuple[nn.Module | None, ...]:
    found = (getattr(attention, name, None) for attention in attentions)
    return tuple(part if isinstance(part, nn.Module) else None for part in found)


def find_layers(module: nn.Module, n_layers: int) -> tuple[nn.Module, ...] | None:
    """The decoder layers: the stack of just so many, in the text decoder where there are several."""
    decoder = module.get_decoder() if hasattr(module, "get_decoder") else module  # pyright: ignore
    for root in (decoder, module):
        names = dict(root.named_modules(remove_duplicate=False))
        stacks = sorted({m["stack"] for name in names if (m := _LAYER.match(name))}, key=len)
        for stack in stacks:
            found = [names.get(f"{stack}.{layer}") for layer in range(n_layers)]
            if all(part is not None for part in found) and f"{stack}.{n_layers}" not in names:
                return tuple(part for part in found if part is not None)
    return None


def find_part(layer: nn.Module, ends: Iterable[str]) -> nn.Module | None:
    """The one submodule of a layer whose name ends in one of ``ends``; bridged wrappers are looked through."""
    ends = tuple(ends)
    for name, part in layer.named_modules():
        clean = name.replace("_original_component.", "")
        if any(clean == end or clean.endswith("." + end) for end in ends):
            return part
    return None


def _ends(ends: tuple[str, ...], part: nn.Module, layers: tuple[nn.Module, ...]) -> tuple[str, ...]:
    """Inside a shared expert the names begin where its MLP does."""
    return ends if part in layers else tuple(end.rpartition(".")[2] for end in ends)


def _parent(layer: nn.Module, part: nn.Module) -> nn.Module:
    name = next(name for name, module in layer.named_modules() if module is part)
    return layer.get_submodule(name.rpartition(".")[0])


def _experts(layer: nn.Module) -> nn.Module | None:
    """The module that holds the routed experts' weights, three-dimensional, side by side."""
    for part in layer.modules():
        weight = getattr(part, "down_proj", None)
        if isinstance(weight, Tensor) and weight.ndim == 3:
            return part
    return None


def _shared(mixture: nn.Module) -> nn.Module | None:
    """The experts that every token is sent to, as one MLP."""
    for name, part in mixture.named_modules():
        if name.rpartition(".")[2] in _SHARED:
            return part
    return None


def weight_of(module: nn.Module) -> Float[Tensor, "in out"]:
    """The matrix of a linear part, as ``inputs @ matrix``; GPT-2's ``Conv1D`` keeps it the other way round."""
    inner: Any = getattr(module, "original_component", module)  # of a module that TransformerLens wraps
    return inner.weight if type(inner).__name__ == "Conv1D" else inner.weight.T


# --- roles ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Roles:
    """What the parts of one layer do to the residual stream; ``None`` where it was not found, or is not there.

    Attributes:
        attention_writes: module whose output, times ``multiplier``, attention adds to the stream.
        mlp_writes: module whose output, times ``mlp_multiplier``, the MLP adds.
        multiplier: a number that a configuration sets (Granite, MiniCPM, Falcon-H1); 1 elsewhere.
        mlp_multiplier: the same of the MLP.
        beside: a second part that writes where attention does, before the MLP reads (Falcon-H1's Mamba).
        middle: module whose input is the stream between the two; none in a parallel block.
        before_attention: the norm that attention reads through.
        behind_attention: the norm that its output passes.
        before_mlp: the norm that the MLP reads through.
        behind_mlp: the norm that its output passes.
        parallel: attention and MLP read the same stream.
    """

    attention_writes: nn.Module | None = None
    mlp_writes: nn.Module | None = None
    multiplier: float = 1.0
    mlp_multiplier: float = 1.0
    beside: nn.Module | None = None
    middle: nn.Module | None = None
    before_attention: nn.Module | None = None
    behind_attention: nn.Module | None = None
    before_mlp: nn.Module | None = None
    behind_mlp: nn.Module | None = None
    parallel: bool = False


@dataclass(frozen=True)
class Trace:
    """What the probe showed of a decoder.

    Attributes:
        roles: of every layer.
        final_norm: the norm before the unembedding.
        head: the unembedding.
        finish: factor and soft cap (0: none) behind the unembedding: logits are ``factor * output``, then ``cap *
            tanh(logits / cap)``; ``None`` where they are something else.
    """

    roles: tuple[Roles, ...]
    final_norm: nn.Module | None
    head: nn.Module | None
    finish: tuple[float, float] | None = None


@dataclass
class _Flow:
    """What went into the parts of a layer and came out, in the probe."""

    inputs: dict[nn.Module, Tensor] = field(default_factory=dict)
    outputs: dict[nn.Module, Tensor] = field(default_factory=dict)
    place: int = 0  # where in memory the layer's own input lies
    same: set[nn.Module] = field(default_factory=set)  # parts that were given that very tensor


def probe(d_vocab: int, length: int) -> Int[Tensor, "batch pos"]:
    """Two fixed rows of ordinary ids."""
    return torch.randint(0, d_vocab, (2, length), generator=torch.Generator().manual_seed(0))


def probe_of(module: Any) -> Int[Tensor, "batch pos"]:
    """Two short rows for a Hugging Face decoder."""
    embedding = module.get_input_embeddings()
    return probe(embedding.weight.shape[0], 8).to(embedding.weight.device)


@torch.no_grad()
def trace(module: nn.Module, handles: PlainHandles, tokens: Int[Tensor, "batch pos"]) -> Trace:
    """Run a probe and find out what every part does.

    Args:
        module: a Hugging Face decoder.
        handles: its parts, by name.
        tokens: the probe.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> roles = trace(model.plain, model.handles, model.probe_tokens()).roles[0]
        >>> type(roles.before_attention).__name__, roles.behind_attention, roles.parallel
        ('LlamaRMSNorm', None, False)
    """
    roles: list[Roles] = []
    flow, whole = _Flow(), _Flow()
    named = _named_factors(text_config(module))

    def note(part: nn.Module, args: Any, kwargs: Any, output: Any, into: _Flow) -> None:
        given, made = first_tensor((args, kwargs)), first_tensor(output)
        if given is not None and made is not None:
            into.inputs[part], into.outputs[part] = given.detach().clone(), made.detach().clone()
            if given.data_ptr() == into.place:
                into.same.add(part)

    def end_of_layer(_module: Any, _args: Any, _kwargs: Any, output: Any) -> None:
        number = len(roles)
        roles.append(_roles_of(handles, number, flow, first_tensor(output), named))
        for table in (flow.inputs, flow.outputs, flow.same):
            table.clear()

    with ExitStack() as stack:
        for layer in handles.layers:

            def start(part: nn.Module, args: Any, kwargs: Any) -> None:
                given = first_tensor((args, kwargs))
                assert given is not None
                flow.inputs[part], flow.place = given.detach().clone(), given.data_ptr()

            stack.callback(layer.register_forward_pre_hook(start, with_kwargs=True).remove)
            for part in layer.modules():
                if part is not layer:
                    hook = part.register_forward_hook(lambda p, a, k, o: note(p, a, k, o, flow), with_kwargs=True)
                    stack.callback(hook.remove)
            stack.callback(layer.register_forward_hook(end_of_layer, with_kwargs=True).remove)
        for part in _around(module, handles):
            hook = part.register_forward_hook(lambda p, a, k, o: note(p, a, k, o, whole), with_kwargs=True)
            stack.callback(hook.remove)
        whole.outputs[module] = module(input_ids=tokens, use_cache=False).logits
    return _with_head(module, handles, tuple(roles), whole)


def _around(module: nn.Module, handles: PlainHandles) -> Iterator[nn.Module]:
    """The last layer, and all parts that are in no layer."""
    inside = {id(part) for layer in handles.layers for part in layer.modules()}
    yield handles.layers[-1]
    yield from (part for part in module.modules() if id(part) not in inside and part is not module)


def _roles_of(handles: PlainHandles, number: int, flow: _Flow, after: Tensor | None, named: Sequence[float]) -> Roles:
    layer, attention = handles.layers[number], handles.attentions[number]
    before = flow.inputs[layer]
    output, down = handles.attention_outputs[number], handles.mlp_outputs[number]
    mlp = handles.mixtures[number] or (None if down is None else _parent(layer, down))
    mlp = down if mlp is layer else mlp  # OPT has no module around its MLP
    mixer = attention if attention is not None else _other_mixer(layer, mlp, flow)
    behind_attention, behind_mlp = (_reader_of(flow, part) for part in (mixer, mlp))
    known = Roles(
        before_attention=_feeder_of(flow, mixer),
        # Where the MLP is no module of its own (OPT), its norm feeds the first of its matrices.
        before_mlp=None if down is not None and mlp is down else _feeder_of(flow, mlp),
    )
    if after is None:
        return known
    for wrote in _seen(flow, behind_attention, mixer, output):
        for added in _seen(flow, behind_mlp, mlp, down):
            for beside in (None, *_beside(layer, flow, wrote, added, mixer)):
                found = _factors(flow, before, after, [p for p in (wrote, added, beside) if p is not None], named)
                if found is None:
                    continue
                middle = before + found[0] * _like(flow.outputs[wrote], before)
                middle = middle if beside is None else middle + found[2] * _like(flow.outputs[beside], before)
                reader = _first_reader(layer, flow, middle, attention)
                return replace(
                    known,
                    attention_writes=wrote,
                    mlp_writes=added,
                    multiplier=found[0],
                    mlp_multiplier=found[1],
                    beside=beside,
                    middle=reader,
                    behind_attention=behind_attention if wrote is behind_attention else None,
                    behind_mlp=behind_mlp if added is behind_mlp else None,
                    parallel=reader is None,
                )
    return known


def _beside(
    layer: nn.Module, flow: _Flow, wrote: nn.Module, added: nn.Module, mixer: nn.Module | None
) -> list[nn.Module]:
    """Other parts of the layer that write to the stream beside attention, and read what it reads."""
    own, given = (wrote, added, mixer), None if mixer is None else flow.inputs.get(mixer)
    others = [p for p in layer.children() if p in flow.outputs and p not in own and not _is_norm(p)]
    return [p for p in others if given is not None and (_ratio(given, flow.inputs[p]) is not None)]


def _factors(
    flow: _Flow, before: Tensor, after: Tensor, parts: list[nn.Module], named: Sequence[float]
) -> list[float] | None:
    """What each part's output is multiplied with so that, added to the stream, they give what comes out.

    Of several explanations that are as good as the best one but for rounding, the first: what the configuration names,
    nothing, a fit.  What is left over is compared with what the layer adds, which may be little beside the stream.
    """
    columns = torch.stack([_like(flow.outputs[part], before).flatten() for part in parts], 1).cpu().double()
    start, end = before.flatten().cpu().double(), after.flatten().cpu().double()
    change = end - start
    if not bool(torch.isfinite(columns).all() and torch.isfinite(change).all()):
        return None
    # Rounding grows with the stream, which in trained models is huge in a few directions: these count less.
    trust = 1 / (start.abs() + end.abs() + 1e-3 * change.abs().max() + 1e-30)
    fit = torch.linalg.lstsq(columns * trust[:, None], (change * trust)[:, None]).solution[:, 0]
    tried = [*(columns.new_full((len(parts),), factor) for factor in (*named, 1.0)), fit]
    left = [change - columns @ factors for factors in tried]
    best = next(n for n, rest in enumerate(left) if (rest * trust).norm() <= _AS_GOOD * (left[-1] * trust).norm())
    sizes = torch.stack([start.abs(), end.abs(), (columns * tried[best]).abs().amax(1)]).amax(0)
    allowed = 1e-4 * change.abs().max() + _ROUNDINGS * torch.finfo(after.dtype).eps * sizes
    if bool((left[best].abs() > allowed.clamp_min(1e-30)).any()):
        return None
    return [float(f"{factor:.6g}") for factor in tried[best].tolist()]


def _named_factors(config: Any) -> list[float]:
    """What configurations say that outputs are multiplied with before they are added."""
    depth = getattr(config, "scale_depth", None)  # MiniCPM
    named = (getattr(config, "residual_multiplier", None), depth and depth / config.num_hidden_layers**0.5)
    return [float(factor) for factor in named if factor]


def _is_norm(part: nn.Module) -> bool:
    return "norm" in type(part).__name__.lower()


def _like(tensor: Tensor, stream: Tensor) -> Tensor:
    """Some parts see positions without their texts: the same numbers, laid out as the residual stream."""
    return tensor.to(stream).view_as(stream) if tensor.numel() == stream.numel() else torch.full_like(stream, torch.nan)


def _seen(flow: _Flow, *parts: nn.Module | None) -> list[nn.Module]:
    return [part for part in parts if part is not None and part in flow.outputs]


def _other_mixer(layer: nn.Module, mlp: nn.Module | None, flow: _Flow) -> nn.Module | None:
    """What mixes positions in a layer without softmax attention: the first part that is no norm and no MLP."""
    for part in layer.children():
        if part is not mlp and part in flow.outputs and not _is_norm(part):
            return part
    return None


def _reader_of(flow: _Flow, maker: nn.Module | None) -> nn.Module | None:
    """The norm that a part's output goes into."""
    return None if maker is None else _norm_where(flow.inputs, flow.outputs.get(maker), maker)


def _feeder_of(flow: _Flow, reader: nn.Module | None) -> nn.Module | None:
    """The norm that a part's input comes from."""
    return None if reader is None else _norm_where(flow.outputs, flow.inputs.get(reader), reader)


def _norm_where(flow: dict[nn.Module, Tensor], value: Tensor | None, part: nn.Module) -> nn.Module | None:
    if value is None:
        return None
    inside = {id(inner) for inner in part.modules()}
    for norm, tensor in flow.items():
        if _is_norm(norm) and id(norm) not in inside and _same(tensor, value):
            return norm
    return None


def _first_reader(layer: nn.Module, flow: _Flow, middle: Tensor, attention: nn.Module | None) -> nn.Module | None:
    inside = set() if attention is None else {id(part) for part in attention.modules()}
    nothing_written = _close(middle, flow.inputs[layer])  # then the stream before and after attention are alike
    for part in layer.modules():
        given = flow.inputs.get(part)
        if part is layer or id(part) in inside or given is None or (nothing_written and part in flow.same):
            continue
        if _close(given, middle):
            return part
    return None


def _with_head(module: nn.Module, handles: PlainHandles, roles: tuple[Roles, ...], whole: _Flow) -> Trace:
    head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None  # pyright: ignore
    last = whole.outputs.get(handles.layers[-1])
    if head is None or head not in whole.inputs or last is None:
        return Trace(roles, None, None)
    given = whole.inputs[head]
    norms = (part for part, seen in whole.inputs.items() if part is not head and _same(seen, last))
    norm, before_head = next(
        ((part, found) for part in norms if (found := _ratio(whole.outputs[part], given)) is not None), (None, 1.0)
    )
    raw, logits = whole.outputs[head], whole.outputs[module]
    made = {f: capped(wide(raw) * f[0], f[1]) for f in _finishes(text_config(module))}
    finish = min(made, key=lambda f: float((made[f] - wide(logits)).abs().max()))  # small logits show no cap
    finish = finish if _close(made[finish].to(logits), logits) else None
    if finish is not None and before_head != 1.0:  # MiniCPM divides what the unembedding reads
        finish = (finish[0] * before_head, finish[1]) if getattr(head, "bias", None) is None else None
    return Trace(roles, norm, head, finish)


def _ratio(one: Tensor, other: Tensor) -> float | None:
    """The number that makes one tensor the other; ``None`` where there is none."""
    if one.numel() != other.numel():
        return None
    first, second = (tensor.flatten().cpu().double() for tensor in (one, other))
    factor = float((first @ second) / (first @ first).clamp_min(1e-30))
    factor = 1.0 if abs(factor - 1) < 1e-5 else float(f"{factor:.6g}")
    rounding = max(1e-5, 4 * torch.finfo(other.dtype).eps)  # entry by entry: one that is huge would hide the others
    return factor if bool(((first * factor - second).abs() <= rounding * second.abs()).all()) else None


def _finishes(config: Any) -> Iterator[tuple[float, float]]:
    """What families do to the unembedding's output: nothing, a factor, a soft cap."""
    divisor = getattr(config, "logits_scaling", None)
    named = (getattr(config, name, None) for name in ("logit_scale", "lm_head_multiplier"))
    caps = (getattr(config, name, None) for name in ("final_logit_softcapping", "logits_soft_cap"))
    cap = float(next((c for c in caps if c), 0.0))
    for factor in (1.0, *(float(f) for f in named if f), *([1 / float(divisor)] if divisor else [])):
        yield from [(factor, 0.0), *([(factor, cap)] if cap else [])]


def wide(tensor: Tensor) -> Tensor:
    """The same without gradients, in float32 at least: weights and activations are multiplied in this precision."""
    tensor = tensor.detach()
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def capped(logits: Tensor, cap: float) -> Tensor:
    """Logits under a soft cap; 0 is none."""
    return cap * (logits / cap).tanh() if cap else logits


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor of numbers in what a module was given or returned, which is its hidden states."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else None
    if isinstance(value, dict):
        value = [value[name] for name in ("hidden_states", *value) if name in value]
    if isinstance(value, (tuple, list)):
        return next((found for part in value if (found := first_tensor(part)) is not None), None)
    return None


def _same(one: Tensor, other: Tensor) -> bool:
    return one.numel() == other.numel() and bool(torch.equal(one.flatten(), other.flatten().to(one)))


def _close(one: Tensor, other: Tensor) -> bool:
    if one.numel() != other.numel():
        return False
    one = one.reshape(other.shape)
    scale = other.abs().max().clamp_min(1e-6)
    return bool(((one.to(other) - other).abs().max() / scale) <= _TOLERANCE.get(other.dtype, 1e-4))
