"""Neurons of a mixture of experts: read and edited while the experts run.

transformers keeps the experts of a layer as three-dimensional weights and has no module between their two matrices.
So for the time of a read or an edit the layer's experts are run by the function here, which computes the same, and
hands the neurons over in between.  The neurons of all experts stand side by side, ``[batch pos expert*neuron]``; those
of experts that a token is not sent to are zero, and editing them changes nothing.

How a family makes one number of gate and up-projection (plain, clamped, with an offset) is its own function, asked
here: it must be a product of something of the gate and something of the up-projection, which is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechrep.errors import ModelError
from mechrep.models.anatomy import Site
from mechrep.models.state import is_replaced

Tap = Callable[[Tensor], Tensor]  # [token expert*neuron] in, the same or an edited one out

_TAPS = "_mechrep_taps"


@dataclass(frozen=True)
class ExpertShape:
    """Sizes of the experts of one layer.

    Attributes:
        experts: how many.
        neurons: of each.
        width: ``d_model``.
        gated: whether they have a gate.
    """

    experts: int
    neurons: int
    width: int
    gated: bool

    @classmethod
    def of(cls, module: nn.Module) -> ExpertShape:
        """Read the sizes off the weights: one axis is ``d_model``, told by both matrices having it."""
        down: Any = module.down_proj
        turned = _is_transposed(module)
        neurons, width = (down.shape[1], down.shape[2]) if turned else (down.shape[2], down.shape[1])
        return cls(int(down.shape[0]), int(neurons), int(width), hasattr(module, "gate_up_proj"))


def _is_transposed(module: nn.Module) -> bool:
    """Whether weights are ``[expert in out]`` (gpt-oss, Llama 4) and not ``[expert out in]``."""
    stated = getattr(module, "is_transposed", None)
    return bool(stated) if stated is not None else _is_sorted(module)


def _is_sorted(module: nn.Module) -> bool:
    """Llama 4's experts take every token once per expert, multiplied by the router's weight beforehand."""
    return type(module).__name__ == "Llama4TextExperts"


@dataclass
class Taps:
    """What looks at or edits the neurons of one layer's experts.

    Attributes:
        taps: by site, in the order in which they were added.
        before: ``forward`` that a library had put on these experts, if one had.
    """

    taps: dict[Site, list[Tap]] = field(default_factory=dict)
    before: dict[str, Any] = field(default_factory=dict)

    def apply(self, site: Site, values: Tensor) -> Tensor:
        """Pass values through the taps of a site."""
        for tap in self.taps.get(site, ()):
            values = tap(values)
        return values


@contextmanager
def tapped(module: nn.Module, site: Site, tap: Tap) -> Iterator[None]:
    """While open, the experts' neurons pass through ``tap``, which returns what goes on.

    Args:
        module: the experts of a layer.
        site: ``GATE_PRE``, ``GATE_ACT``, ``UP_PROJ``, ``MLP_POST`` or ``ROUTER``; ``GATE_PRE`` and ``ROUTER`` are
            read only.
        tap: gets ``[token expert*neuron]`` (``[token expert]`` at the router).

    Raises:
        ModelError: experts whose ``forward`` a user has replaced.
    """
    taps: Taps | None = module.__dict__.get(_TAPS)
    if taps is None:
        taps = module.__dict__[_TAPS] = _installed(module)
    taps.taps.setdefault(site, []).append(tap)
    try:
        yield
    finally:
        taps.taps[site].remove(tap)
        if not any(taps.taps.values()):
            del module.__dict__[_TAPS], module.__dict__["forward"]
            module.__dict__.update(taps.before)


def _installed(module: nn.Module) -> Taps:
    """Let the experts be run by the function here."""
    if is_replaced(module):
        raise ModelError(
            f"experts of class {type(module).__name__} with a forward of your own",
            "experts that compute what their class says: mechrep runs them itself to see their neurons",
            "change what they give in a hook (register_forward_hook), or give back their forward",
        )
    taps = Taps(before={name: module.__dict__[name] for name in ("forward",) if name in module.__dict__})
    module.__dict__["forward"] = partial(_forward, module, taps)
    return taps


def _forward(module: nn.Module, taps: Taps, hidden_states: Tensor, *routing: Tensor, **named: Tensor) -> Tensor:
    """The experts' own forward pass, with all neurons in one tensor in between."""
    shape = ExpertShape.of(module)
    if _is_sorted(module):
        weights = None
        inputs = hidden_states.view(shape.experts, -1, shape.width).transpose(0, 1)  # [token expert d_model]
        sent = (inputs != 0).any(-1)
        taps.apply(Site.ROUTER, sent.to(inputs))
    else:
        index, given = (*routing, *named.values())
        weights = _spread(index, given, shape.experts)  # [token expert]
        inputs, sent = hidden_states, _sent(index, shape.experts)
        taps.apply(Site.ROUTER, weights)
    product = _neurons(module, taps, inputs, sent, shape)
    return _written(module, product, weights, sent, shape).to(hidden_states.dtype)


def _spread(index: Int[Tensor, "token k"], given: Tensor, experts: int) -> Float[Tensor, "token expert"]:
    """Routing weights at their experts; one index beyond the last stands for a masked expert and is dropped."""
    table = given.new_zeros(len(index), experts + 1)
    return table.scatter_add(1, index, given.expand_as(index))[:, :experts]


def _sent(index: Int[Tensor, "token k"], experts: int) -> Tensor:
    table = torch.zeros(len(index), experts + 1, dtype=torch.bool, device=index.device)
    return table.scatter(1, index, True)[:, :experts]


def _neurons(module: nn.Module, taps: Taps, inputs: Tensor, sent: Tensor, shape: ExpertShape) -> Tensor:
    """What goes into the second matrix, ``[token expert neuron]``; zero where a token is not sent."""
    size = (len(sent), shape.experts, shape.neurons)
    gate, act, up = (inputs.new_zeros(size) for _ in range(3))
    for expert in sent.any(0).nonzero()[:, 0].tolist():
        rows = sent[:, expert].nonzero()[:, 0]
        given = inputs[rows] if inputs.ndim == 2 else inputs[rows, expert]
        raw = _first_matrix(module, given, expert)
        gate[rows, expert], act[rows, expert], up[rows, expert] = _factors(module, raw, shape.gated)

    def through(site: Site, values: Tensor) -> Tensor:
        return taps.apply(site, values.flatten(1)).view(size)

    through(Site.GATE_PRE, gate)
    act = through(Site.GATE_ACT, act)
    if shape.gated:
        act = act * through(Site.UP_PROJ, up)
    return through(Site.MLP_POST, act) * sent[..., None]


def _first_matrix(module: Any, given: Tensor, expert: int) -> Tensor:
    weight = (module.gate_up_proj if hasattr(module, "gate_up_proj") else module.up_proj)[expert]
    bias = getattr(module, "gate_up_proj_bias", getattr(module, "up_proj_bias", None))
    made = given @ (weight if _is_transposed(module) else weight.T)
    return made if bias is None else made + bias[expert]


def _factors(module: Any, raw: Tensor, gated: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What goes into the activation function, what comes out, and what that is multiplied with."""
    if not gated:
        return raw, module.act_fn(raw), torch.ones_like(raw)
    gate, up = _halves(module, raw)
    if not hasattr(module, "_apply_gate"):
        return gate, module.act_fn(gate), up
    dtype, raw = raw.dtype, raw.float() if raw.itemsize < 4 else raw  # rounding is no other function
    gate, up = _halves(module, raw)

    def joined(gate: Tensor, up: Tensor) -> Tensor:
        if getattr(module, "is_concatenated", True):
            return module._apply_gate(torch.cat([gate, up], -1))
        return module._apply_gate(torch.stack([gate, up], -1).flatten(-2))

    zero, one = torch.zeros_like(gate[:1]), torch.ones_like(gate[:1])
    neutral = zero if bool(joined(one, zero).any()) else one  # what the up-projection is where it counts once
    act = joined(gate, neutral.expand_as(gate))
    factor = joined(one.expand_as(up), up) / joined(one, neutral)
    whole = module._apply_gate(raw)
    if not torch.allclose(act * factor, whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max())):
        raise ModelError(
            f"experts of class {type(module).__name__}",
            "neurons that are a product of something of the gate and something of the up-projection",
            "mechrep cannot tell their activations apart; measure attention and the residual stream",
        )
    return gate.to(dtype), act.to(dtype), factor.to(dtype)


def _halves(module: Any, raw: Tensor) -> tuple[Tensor, Tensor]:
    if getattr(module, "is_concatenated", True):
        gate, up = raw.chunk(2, -1)
        return gate, up
    return raw[..., ::2], raw[..., 1::2]


def _written(
    module: Any, product: Tensor, weights: Tensor | None, sent: Tensor, shape: ExpertShape
) -> Float[Tensor, "token d_model"]:
    """Products through the second matrix, times the routing weights, summed over experts."""
    outputs = []
    bias = getattr(module, "down_proj_bias", None)
    total = product.new_zeros(len(sent), shape.width)
    for expert in range(shape.experts):
        rows = sent[:, expert].nonzero()[:, 0]
        weight = module.down_proj[expert]
        made = product[rows, expert] @ (weight if _is_transposed(module) else weight.T)
        made = made if bias is None else made + bias[expert]
        if weights is None:
            outputs.append(total.index_add(0, rows, made))
        else:
            total = total.index_add(0, rows, made * weights[rows, expert, None].to(made))
    return torch.cat(outputs) if weights is None else total


def down_matrix(module: Any) -> Float[Tensor, "neuron d_model"]:
    """Rows of the second matrices of all experts, in the order of their neurons."""
    weight = module.down_proj
    return (weight if _is_transposed(module) else weight.transpose(1, 2)).flatten(0, 1)
