"""Reading a model's :class:`~mechrep.models.anatomy.Anatomy` off its modules, or off a TransformerLens model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from mechrep.errors import ModelError
from mechrep.models.anatomy import _GATE_PRE, _HOOKS, Anatomy, Site
from mechrep.models.experts import ExpertShape
from mechrep.models.parts import PlainHandles, Trace, find_part, text_config, weight_of

_LEARNED_POSITIONS = ("wpe", "embed_positions", "position_embeddings")
_UNLIMITED = 2048  # context of a model whose positions have no end (ALiBi), as TransformerLens has it
_UP = ("up_proj", "gate_up_proj", "w3")


def describe_plain(module: nn.Module, handles: PlainHandles, seen: Trace) -> Anatomy:
    """Sizes and kinds of a Hugging Face decoder.

    Args:
        module: the decoder.
        handles: its parts.
        seen: what a probe showed of them.

    Raises:
        ModelError: a model without softmax attention, or with neither neurons nor experts.
    """
    config, architecture = text_config(module), type(module).__name__
    attention_layers = tuple(n for n, part in enumerate(handles.attention_outputs) if part is not None)
    shapes = [None if part is None else ExpertShape.of(part) for part in handles.experts]
    dense = [0 if part is None else int(weight_of(part).shape[0]) for part in handles.mlp_outputs]
    neurons = tuple(n + (0 if s is None else s.experts * s.neurons) for n, s in zip(dense, shapes, strict=True))
    if not attention_layers or not any(neurons):
        raise ModelError(
            f"{architecture}, without {'neurons' if attention_layers else 'softmax attention'}",
            "a decoder with softmax attention and an MLP (dense, or a mixture of experts)",
            "mechrep knows no part of it that it could measure; choose another model",
        )
    n_heads = int(_first(config, "num_attention_heads", "n_head", "n_heads", "num_heads"))
    embedding: Any = module.get_input_embeddings()  # pyright: ignore
    output = handles.attention_outputs[attention_layers[0]]
    assert output is not None
    routed = [shape for shape in shapes if shape is not None]
    gated = any(_has_gate(layer) for layer in handles.layers) or any(shape.gated for shape in routed)
    reasons = dict(_absent(handles, seen, config, gated))
    return Anatomy(
        n_layers=len(handles.layers),
        n_heads=n_heads,
        n_kv_heads=_key_heads(config, n_heads),
        d_model=int(weight_of(output).shape[1]),
        d_head=int(weight_of(output).shape[0]) // n_heads,
        d_mlp=max(neurons),
        d_vocab=int(embedding.weight.shape[0]),
        n_ctx=context_of(config),
        gated=gated,
        parallel=any(roles.parallel for roles in seen.roles),
        activation=str(_first(config, "hidden_act", "hidden_activation", "activation_function", usual="gelu")),
        positions=_positions(module, config),
        norm="RMS" if any("rms" in type(p).__name__.lower() for p in handles.layers[0].modules()) else "LN",
        architecture=architecture,
        missing=frozenset(reasons),
        reasons=tuple(sorted(reasons.items())),
        attention_layers=attention_layers,
        neurons=neurons,
        experts=tuple(0 if shape is None else shape.experts for shape in shapes),
        d_expert=max((shape.neurons for shape in routed), default=0),
    )


def _first(config: Any, *names: str, usual: Any = None) -> Any:
    """The first of several settings that is given."""
    found = (getattr(config, name, None) for name in names)
    return next((value for value in found if value is not None), usual)


def context_of(config: Any) -> int:
    """Positions of the model; dynamic rotary angles are made to go on behind the stated ones."""
    stated = int(_first(config, "max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", usual=_UNLIMITED))
    rope = getattr(config, "rope_parameters", None) or {}
    return int(stated * rope.get("factor", 1.0)) if rope.get("rope_type") == "dynamic" else stated


def _key_heads(config: Any, n_heads: int) -> int:
    if getattr(config, "kv_lora_rank", None):  # compressed, then made anew for every head
        return n_heads
    if getattr(config, "model_type", "") == "falcon" and not config.new_decoder_architecture:
        return 1 if config.multi_query else n_heads
    if getattr(config, "multi_query", None) and getattr(config, "model_type", "") == "gpt_bigcode":
        return 1
    inner = getattr(config, "attn_config", None)
    return int(_first(config, "num_key_value_heads", "num_kv_heads") or getattr(inner, "kv_n_heads", None) or n_heads)


def _positions(module: Any, config: Any) -> str:
    decoder = module.get_decoder() if hasattr(module, "get_decoder") else module
    if any(name in _LEARNED_POSITIONS for name, _ in decoder.named_children()):
        return "standard"
    inner = getattr(config, "attn_config", None)
    alibi = getattr(config, "alibi", False) or getattr(inner, "alibi", False)
    return "alibi" if alibi or getattr(config, "model_type", "") == "bloom" else "rotary"


def _has_gate(layer: nn.Module) -> bool:
    return find_part(layer, [f"{mlp}.{end}" for mlp in ("mlp", "feed_forward", "mlp_block") for end in _UP]) is not None


def _absent(handles: PlainHandles, seen: Trace, config: Any, gated: bool) -> Iterator[tuple[Site, str]]:
    """Sites that are not there, and why."""
    roles = seen.roles
    if any(r.parallel for r in roles):
        yield Site.RESID_MID, "attention and MLP read the same residual stream"
    elif any(r.middle is None for r in roles):
        yield Site.RESID_MID, "what attention and the MLP add does not make up the layer's output"
    for site, lacking in (
        (Site.ATTN_OUT, any(r.attention_writes is None for r in roles)),
        (Site.MLP_OUT, any(r.mlp_writes is None for r in roles)),
    ):
        if lacking:
            yield site, "what attention and the MLP add does not make up the layer's output"
    if any(r.before_mlp is None for r in roles):
        yield Site.MLP_INPUT_NORMALIZED, "the MLP has no norm before it"
    if not gated:
        yield Site.UP_PROJ, "the MLP has no gate"
    if not any(handles.experts):
        yield Site.ROUTER, "it is no mixture of experts"
    if any(
        down is not None and act is None for down, act in zip(handles.mlp_outputs, handles.activations, strict=True)
    ):
        for site in (Site.GATE_PRE, Site.GATE_ACT, *([Site.UP_PROJ] if gated else [])):
            yield site, "its activation function is not a module of its own"
    output = next(part for part in handles.attention_outputs if part is not None)
    queries = [int(weight_of(part).shape[1]) for part in handles.queries if part is not None]
    if any(width != int(weight_of(output).shape[0]) for width in queries) and not getattr(config, "kv_lora_rank", None):
        yield Site.Q, "queries are made together with a gate on what the heads read"
    if getattr(config, "kv_lora_rank", None):
        for site in (Site.Q, Site.K):
            yield site, "queries and keys are made of compressed ones (MLA)"


# --- TransformerLens ------------------------------------------------------------------------------------------------


def describe(tl: Any) -> Anatomy:
    """Sizes and kinds of a TransformerLens model.

    Raises:
        ModelError: not a decoder with softmax attention and one MLP per layer.
    """
    config, names = tl.cfg, set(tl.hook_dict)
    architecture = getattr(config, "architecture", None) or getattr(config, "original_architecture", None)
    architecture = str(architecture or type(tl).__name__)
    gated = bool(getattr(config, "gated_mlp", False))
    for needed in (_HOOKS[Site.PATTERN], _HOOKS[Site.MLP_POST], _GATE_PRE, *([_HOOKS[Site.UP_PROJ]] if gated else [])):
        absent = [layer for layer in range(config.n_layers) if needed.format(layer=layer) not in names]
        if absent:
            raise ModelError(
                f"{architecture}, without {needed.format(layer=absent[0])}",
                "a decoder with softmax attention and one dense MLP in every layer",
                "give the Hugging Face model itself: mechrep reads other kinds of layers there",
            )
    missing = frozenset(_missing(names, config.n_layers))
    return Anatomy(
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        n_kv_heads=config.n_key_value_heads or config.n_heads,
        d_model=config.d_model,
        d_head=config.d_head,
        d_mlp=_mlp_width(tl, config),
        d_vocab=config.d_vocab,
        n_ctx=config.n_ctx,
        gated=gated,
        parallel=bool(getattr(config, "parallel_attn_mlp", False)),
        activation=str(config.act_fn),
        positions=str(config.positional_embedding_type),
        norm=str(config.normalization_type),
        architecture=architecture,
        missing=missing,
        reasons=tuple((site, f"TransformerLens has no {_HOOKS[site]} on it") for site in sorted(missing & set(_HOOKS))),
    )


def _mlp_width(tl: Any, config: Any) -> int:
    """``d_mlp`` read off the weights: configurations of some families state another number or none."""
    width = tl.blocks[0].mlp.W_out.shape[0] if hasattr(tl.blocks[0].mlp, "W_out") else config.d_mlp
    return int(width)


def _missing(names: set[str], n_layers: int) -> Iterable[Site]:
    yield Site.ROUTER
    for site, pattern in _HOOKS.items():
        if any(pattern.format(layer=layer) not in names for layer in range(n_layers)):
            yield site
