"""Tiny random models of every architecture that people bring, and where their parts are: spelled out, not searched for.

Nothing here knows mechrep.  What a part is was read in the code of transformers, and ``oracles.py`` checks it by sums:
what attention and MLP write is what the residual stream gains.

Sizes differ wherever they can (hidden 32, MLP 48, experts 20, vocabulary 61), so that no axis is taken for another.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

D_MODEL, D_MLP, D_VOCAB, N_HEADS, N_CTX = 32, 48, 61, 4, 256
WINDOW = 8  # of every sliding, local or chunked attention
SWITCH = 32  # the length at which longrope changes its angles


@dataclass(frozen=True)
class Family:
    """One architecture: how to build it, what is special, and the paths of its parts.

    Attributes:
        make: builds the model with its usual random weights; :func:`build` enlivens them.
        note: what is special, in one line.
        layers: path of the decoder layers in the model; the paths below are within one layer.
        attention: the attention module (with softmax attention; see ``attention_layers``).
        output: its output projection, which reads ``z`` with the heads side by side.
        middle: the module that reads the residual stream between attention and MLP; ``None``: they are parallel.
        mlp: the dense MLP, or the block of experts.
        act: module whose output is the neuron activation; ``None``: a function without a module.
        gate: module whose output that function (SiLU) reads, where it has no module.
        down: module that reads the neurons' product.
        up: the up-projection of a gated MLP; ``None`` without a gate.
        fused: the module at ``up`` gives gate and up-projection side by side.
        post_attention, post_mlp: norms between a part's output and the residual stream.
        scale: factor on attention's output before it is added; on the MLP's too, unless ``mlp_scale`` says otherwise.
        norm: path of the final norm in the model.
        head: path of the unembedding in the model.
        n_layers: decoder layers.
        n_kv: key-value heads.
        attention_layers: layers with softmax attention; ``None``: all.
        expert_layers: layers whose MLP is a block of experts.
        experts: the experts' weights within the block; ``router`` likewise; ``shared`` a dense expert beside them.
        beside: a second part that writes at the same place as attention (Falcon-H1's Mamba), with its factor.
        sinks: attention leaves out mass that a learned logit takes.
        gated_attention: a gate multiplies what the heads read before the output projection.
        softcap: the final logits are ``cap * tanh(logits / cap)``.
        logit_scale: factor on the final logits (before the cap).
        switch: text length past which positions are computed another way.
        window: attention window; ``None``: none.
        rewritten: norms stand in the residual stream itself, so that parts do not add up to it.
        blind: transformers' step-by-step attention is another computation than its usual one; nobody sees the pattern.
        refused: no causal decoder with softmax attention: mechrep must say so.
    """

    make: Callable[[], nn.Module]
    note: str
    layers: str = "model.layers"
    attention: str = "self_attn"
    output: str = "self_attn.o_proj"
    middle: str | None = "post_attention_layernorm"
    mlp: str = "mlp"
    act: str | None = "mlp.act_fn"
    gate: str | None = None
    down: str = "mlp.down_proj"
    up: str | None = "mlp.up_proj"
    fused: bool = False
    post_attention: str | None = None
    post_mlp: str | None = None
    scale: float = 1.0
    mlp_scale: float | None = None
    norm: str = "model.norm"
    head: str = "lm_head"
    n_layers: int = 3
    n_kv: int = 2
    attention_layers: tuple[int, ...] | None = None
    expert_layers: tuple[int, ...] = ()
    experts: str = "mlp.experts"
    router: str = "mlp.gate"
    shared: str | None = None
    beside: tuple[str, float] | None = None
    sinks: bool = False
    gated_attention: bool = False
    softcap: float | None = None
    logit_scale: float = 1.0
    switch: int | None = None
    window: int | None = None
    rewritten: bool = False
    blind: bool = False
    refused: bool = False

    @property
    def with_attention(self) -> tuple[int, ...]:
        """Layers with softmax attention."""
        return tuple(range(self.n_layers)) if self.attention_layers is None else self.attention_layers

    @property
    def dense(self) -> tuple[int, ...]:
        """Layers with a dense MLP."""
        return tuple(layer for layer in range(self.n_layers) if layer not in self.expert_layers)

    def layer(self, model: nn.Module, number: int) -> nn.Module:
        """A decoder layer."""
        return model.get_submodule(f"{self.layers}.{number}")

    def part(self, model: nn.Module, number: int, path: str | None) -> nn.Module:
        """A part of a layer, by its path in it."""
        assert path is not None
        return self.layer(model, number).get_submodule(path)


def quietly(make: Callable[[], Any]) -> Any:
    """Build without what transformers likes to say about small sizes and missing kernels."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make()
    finally:
        logging.set_verbosity(level)


def build(family: Family, *, seed: int = 0) -> Any:
    """A new model of a family in evaluation mode, its weights such that every part matters."""
    torch.manual_seed(seed)
    model = quietly(family.make).eval().requires_grad_(False)
    liven(model, seed)
    return model


@torch.no_grad()
def liven(model: nn.Module, seed: int = 0) -> None:
    """Random weights large enough that every part matters: norms, biases, sinks and routers too."""
    draw = torch.Generator().manual_seed(seed)

    def normal(parameter: torch.Tensor, scale: float) -> torch.Tensor:
        return torch.randn(parameter.shape, generator=draw) * scale

    embedding = _embedding_scale(model)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or "norm" in name or "sinks" in name:  # gains (added to 1 or kept near it), biases
            wide = "sinks" in name or name.endswith("router.bias")
            parameter.add_(normal(parameter, 0.7 if wide else 0.2))
        elif parameter.ndim == 2 and any(part in name for part in ("emb", "wte", "wpe")):
            parameter.copy_(normal(parameter, embedding))
        elif any(name.endswith(end) for end in ("gate.weight", "router.weight", "router.layer.weight")):
            parameter.copy_(normal(parameter, 0.7))  # decisive: which experts take a token is not a matter of rounding
        elif parameter.ndim in (2, 3) and "conv" not in name and not name.endswith("A_log"):  # of one or all experts
            parameter.copy_(normal(parameter, 0.35))
        else:
            parameter.add_(normal(parameter, 0.1))
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.add_(normal(buffer, 0.1).to(buffer.dtype))
    if embedding < 1.0:  # a tied embedding that is large would only ever predict the token just read
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and name.rsplit(".", 2)[-2] in (
                "norm",
                "ln_f",
                "norm_f",
                "final_norm",
                "layer_norm",
            ):
                parameter.add_(1.5 if name.endswith("weight") else 0.0)


def _embedding_scale(model: Any) -> float:
    """1, less where the embedding is also the unembedding, and less again where it is multiplied on the way in."""
    read, written = model.get_input_embeddings(), model.get_output_embeddings()
    if read is None or written is None or read.weight is not written.weight:
        return 1.0
    return 0.1 if "Scaled" in type(read).__name__ or hasattr(model, "final_logit_softcapping") else 0.3


def text(length: int, *, seed: int = 0) -> list[int]:
    """Ordinary ids without BOS, EOS and padding (0, 1, 2)."""
    return torch.randint(3, D_VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@functools.cache
def families() -> dict[str, Family]:
    """All families by name, dense ones first."""
    from tests.families.dense import DENSE
    from tests.families.others import OTHERS

    return {**DENSE, **OTHERS}
