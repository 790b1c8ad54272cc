"""Reading a model's :class:`~mechrep.models.anatomy.Anatomy` off a TransformerLens model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mechrep.errors import ModelError
from mechrep.models.anatomy import _GATE_PRE, _HOOKS, Anatomy, Site

# Hooks that exist but never fire (rotary models keep an inert positional hook) are not sites, so none is listed here.


def hook_names(tl: Any) -> set[str]:
    """Every hook name, aliases included, of a TransformerBridge or a HookedTransformer."""
    return set(tl.hook_dict)


def describe(tl: Any) -> Anatomy:
    """Sizes and kinds of a TransformerLens model.

    Raises:
        ModelError: not a decoder with softmax attention and one MLP per layer.
    """
    config, names = tl.cfg, hook_names(tl)
    architecture = getattr(config, "architecture", None) or getattr(config, "original_architecture", None)
    architecture = str(architecture or type(tl).__name__)
    gated = bool(getattr(config, "gated_mlp", False))
    for needed in (_HOOKS[Site.PATTERN], _HOOKS[Site.MLP_POST], _GATE_PRE, *([_HOOKS[Site.UP_PROJ]] if gated else [])):
        absent = [layer for layer in range(config.n_layers) if needed.format(layer=layer) not in names]
        if absent:
            raise ModelError(
                f"{architecture}, without {needed.format(layer=absent[0])}",
                "a decoder with softmax attention and one dense MLP in every layer",
                "mechrep has nothing to measure in attention-free, mixture-of-experts or attention-only layers",
            )
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
        missing=frozenset(_missing(names, config.n_layers)),
    )


def _mlp_width(tl: Any, config: Any) -> int:
    """``d_mlp`` read off the weights: configurations of some families state another number or none."""
    width = tl.blocks[0].mlp.W_out.shape[0] if hasattr(tl.blocks[0].mlp, "W_out") else config.d_mlp
    return int(width)


def _missing(names: set[str], n_layers: int) -> Iterable[Site]:
    for site, pattern in _HOOKS.items():
        if any(pattern.format(layer=layer) not in names for layer in range(n_layers)):
            yield site
