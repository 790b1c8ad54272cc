"""A step of decoding through a model's own matrices, without what its library does around them.

A step of a small model is bound by the number of calls: a layer of Llama has 15 products and sums that count, and
makes 260 calls of Python and torch.  :class:`DirectStep` makes a fifth of them.  Where matrices and activation
functions are at work, the model's own modules are called, so that edits and whatever else is hooked there are at work
too.

Which models have one, and how it is known to be right, is the business of :mod:`mechrep.generation.direct_parts`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mechrep.generation.slot_cache import SlotCache, SlotLayer
from mechrep.models.parts import Roles, capped

Norm = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Decoder:
    """What a direct step needs of a model.

    Attributes:
        embed: from ids to the residual stream.
        places: from positions to what is added to it, where positions are learned.
        angles: cosines and sines of positions up to a length, side by side, by the kind of a layer's angles; sines of
            the first half are negative.  Empty where nothing is turned.
        layers: one by one.
        norm, head: from the residual stream to logits.
        finish: factor and soft cap (0: none) of the logits.
    """

    embed: nn.Module
    places: nn.Module | None
    angles: Callable[[int], dict[str | None, Float[Tensor, "pos 1 angle"]]]
    layers: Sequence[Layer]
    norm: Norm
    head: nn.Module
    finish: tuple[float, float]


class DirectStep:
    """One step of decoding of one model, from the cache that all ways of decoding share.

    Args:
        decoder: the model.
        capacity: of the cache; no position is beyond it.
    """

    def __init__(self, decoder: Decoder, capacity: int) -> None:
        self.decoder, self.angles = decoder, decoder.angles(capacity)

    @torch.no_grad()
    def __call__(
        self, cache: SlotCache, tokens: Int[Tensor, " slot"], positions: Int[Tensor, " slot"]
    ) -> Float[Tensor, "slot d_vocab"]:
        """Feed one token to every slot, and give the logits of the next, as :func:`~.slot_cache.step` does."""
        decoder, mask = self.decoder, cache.before_step()
        stream = decoder.embed(tokens[:, None])
        if decoder.places is not None:
            stream = stream + decoder.places(positions[:, None])
        turns = {kind: table.index_select(0, positions).chunk(2, -1) for kind, table in self.angles.items()}
        now = _Now(mask.shape[1], mask if cache.padded else None, turns, stream)
        for layer, kept in zip(decoder.layers, cache.layers, strict=True):
            stream = layer(stream, kept, now)
        logits = decoder.head(decoder.norm(stream))[:, 0]
        factor, cap = decoder.finish
        cache.after_step()
        return capped(logits if factor == 1 else logits * factor, cap)


@dataclass
class _Now:
    """What all layers of one step share.

    Attributes:
        columns: in the window of the cache, the newest included.
        given: 1 where a column is the row's; ``None`` where all are.
        turns: cosines and sines of every row, by the kind of a layer's angles.
        like: a tensor of the model's type and device.
    """

    columns: int
    given: Int[Tensor, "slot column"] | None
    turns: dict[str | None, tuple[Tensor, ...]]
    like: Tensor
    masks: dict[int | None, Tensor | None] = field(default_factory=dict)

    def turned(self, heads: Float[Tensor, "slot head d_head"], kind: str | None) -> Float[Tensor, "slot head d_head"]:
        """Queries and keys, turned by the angles of their positions; units beyond the angles are as they were."""
        if kind not in self.turns:
            return heads
        cos, sin = self.turns[kind]
        width = cos.shape[-1]
        if width == heads.shape[-1]:
            return torch.addcmul(heads * cos, heads.roll(width // 2, -1), sin)
        some, rest = heads[..., :width], heads[..., width:]
        return torch.cat([torch.addcmul(some * cos, some.roll(width // 2, -1), sin), rest], -1)

    def mask(self, window: int | None) -> Float[Tensor, "slot 1 1 column"] | None:
        """0 at columns that are the row's and in reach, elsewhere minus infinity; ``None`` where all are."""
        window = None if window is None or self.columns <= window else window
        if window not in self.masks:
            self.masks[window] = self._made(window)
        return self.masks[window]

    def _made(self, window: int | None) -> Tensor | None:
        if self.given is None and window is None:
            return None
        hidden = self.like.new_zeros(1, self.columns, dtype=torch.bool) if self.given is None else self.given == 0
        if window is not None:
            hidden = hidden | (torch.arange(self.columns, device=hidden.device) < self.columns - window)
        return self.like.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)[:, None, None]


@dataclass(frozen=True)
class Attention:
    """One layer's attention from its slots, each with one newest token.

    Attributes:
        read: from states to queries and keys, one head behind the other, and values.
        inner: norms of queries and keys.
        output: the module that reads what the heads give.
        scale: of the scores.
        window: columns that it sees; ``None`` for all.
        kind: of its angles, where layers of a model have several.
        heads: of queries, and of keys and values.
    """

    read: Callable[[Tensor], tuple[Tensor, Tensor]]
    inner: tuple[Norm, Norm] | None
    output: nn.Module
    scale: float
    window: int | None
    kind: str | None
    heads: tuple[int, int]

    def __call__(
        self, states: Float[Tensor, "slot 1 d_model"], layer: SlotLayer, now: _Now
    ) -> Float[Tensor, "slot 1 d_model"]:
        """What attention writes; the newest keys and values are in the cache then."""
        both, value = self.read(states)
        slots, _, d_head = both.shape
        n_heads, n_kv_heads = self.heads
        if self.inner is not None:
            both = torch.cat([self.inner[0](both[:, :n_heads]), self.inner[1](both[:, n_heads:])], 1)
        both = now.turned(both, self.kind)
        keys, values = layer.update(both[:, n_heads:, None], value[:, :, None])
        grouped = both[:, :n_heads].view(slots, n_kv_heads, -1, d_head)  # heads that share keys, as if positions
        z = functional.scaled_dot_product_attention(
            grouped, keys, values, attn_mask=now.mask(self.window), scale=self.scale
        )
        return run(self.output, z.reshape(slots, 1, -1))


@dataclass(frozen=True)
class Layer:
    """One layer: what writes to the residual stream, and the norms before and behind.

    Attributes:
        module: of the model, whose own hooks are called.
        neurons: from what the MLP reads to what its last matrix reads.
        down: that matrix.
        called: all modules that are called as they are.
    """

    module: nn.Module
    roles: Roles
    attention: Attention
    neurons: Callable[[Tensor], Tensor]
    down: nn.Module
    norms: tuple[Norm, Norm | None, Norm, Norm | None]
    called: tuple[nn.Module, ...]

    def __call__(
        self, stream: Float[Tensor, "slot 1 d_model"], layer: SlotLayer, now: _Now
    ) -> Float[Tensor, "slot 1 d_model"]:
        """The residual stream behind the layer."""
        for hook in self.module._forward_pre_hooks.values():  # mechrep's own, which count and look at shapes
            hook(self.module, (stream,), {})  # pyright: ignore[reportCallIssue]
        roles, (before, behind, before_mlp, behind_mlp) = self.roles, self.norms
        middle = _added(stream, self.attention(before(stream), layer, now), behind, roles.multiplier)
        neurons = self.neurons(before_mlp(stream if roles.parallel else middle))
        return _added(middle, run(self.down, neurons), behind_mlp, roles.mlp_multiplier)


def _added(stream: Tensor, written: Tensor, behind: Norm | None, multiplier: float) -> Tensor:
    written = written if behind is None else behind(written)
    return stream + written if multiplier == 1 else stream + written * multiplier


def run(part: Any, states: Float[Tensor, "*batch unit"]) -> Float[Tensor, "*batch out"]:
    """Call a module; one that is a matrix with nothing hooked to it is a single product.

    Example:
        >>> part, states = nn.Linear(3, 2), torch.ones(1, 3)
        >>> torch.equal(run(part, states), part(states))
        True
    """
    if part._forward_pre_hooks or part._forward_hooks or type(part) is not nn.Linear:
        return part(states)
    own: Any = part._parameters
    return functional.linear(states, own["weight"], own["bias"])


# --- parts of layers ------------------------------------------------------------------------------------------------


def separate(parts: Sequence[nn.Module], d_head: int, states: Tensor) -> tuple[Tensor, Tensor]:
    """Queries, keys and values from a matrix each."""
    query, key, value = (run(part, states) for part in parts)
    return torch.cat([query, key], -1).view(len(states), -1, d_head), value.view(len(states), -1, d_head)


def side_by_side(parts: Sequence[nn.Module], d_head: int, states: Tensor) -> tuple[Tensor, Tensor]:
    """From GPT-2's matrix: all queries, then all keys, then all values."""
    heads = run(parts[0], states).view(len(states), -1, d_head)
    n_heads = heads.shape[1] // 3
    return heads[:, : 2 * n_heads], heads[:, 2 * n_heads :]


def head_by_head(parts: Sequence[nn.Module], d_head: int, states: Tensor) -> tuple[Tensor, Tensor]:
    """From GPT-NeoX' matrix: query, key and value of one head, then of the next one."""
    query, key, value = run(parts[0], states).view(len(states), -1, 3 * d_head).chunk(3, -1)
    return torch.cat([query, key], 1), value


def gated(activation: nn.Module, gate: nn.Module, up: nn.Module, states: Tensor) -> Tensor:
    """``act(gate(x)) * up(x)``."""
    return activation(run(gate, states)) * run(up, states)


def without_gate(activation: nn.Module, up: nn.Module, states: Tensor) -> Tensor:
    """``act(up(x))``."""
    return activation(run(up, states))


@torch.no_grad()
def norm_of(module: Any) -> Norm:
    """A norm in as few calls as it takes: an RMS norm in single precision is four; others are called as they are.

    Example:
        >>> import mechrep
        >>> norm = mechrep.load_model("mechrep-tiny").trace.final_norm
        >>> states = torch.ones(1, 1, 128)
        >>> torch.allclose(norm_of(norm)(states), norm(states))
        True
    """
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, Tensor) or weight.ndim != 1 or weight.dtype is not torch.float32 or not eps:
        return module
    if [name for name, _ in module.named_parameters()] != ["weight"]:
        return module
    probe = torch.linspace(-1, 2, len(weight), dtype=weight.dtype, device=weight.device)[None, None]
    expected = module(probe)
    for beside_one in (False, True):  # Gemma keeps its gains less 1
        made = _RmsNorm(module, torch.tensor(eps, dtype=weight.dtype, device=weight.device), beside_one)
        if torch.allclose(made(probe), expected, rtol=1e-5, atol=1e-6):
            return made
    return module


@dataclass(frozen=True)
class _RmsNorm:
    """``x / sqrt(mean(x^2) + eps)``, times the gains or one more than them."""

    module: nn.Module
    eps: Tensor
    beside_one: bool

    def __call__(self, values: Float[Tensor, "*batch unit"]) -> Float[Tensor, "*batch unit"]:
        size = torch.linalg.vector_norm(values, 2, -1, True)
        scaled = values * torch.addcmul(self.eps, size, size, value=1 / values.shape[-1]).rsqrt_()
        weight: Any = self.module._parameters["weight"]
        return torch.addcmul(scaled, scaled, weight) if self.beside_one else scaled.mul_(weight)
