"""A norm with its scale frozen: what is linear in it, apart from what is not.

Vectors are rows.  A norm is ``N(x) = g * c(x) / s(x) + b``: gains ``g`` and bias ``b``; ``c`` takes the mean away
(LayerNorm) or nothing (RMSNorm); ``s`` alone is not linear.  With ``s`` frozen at what it is, ``c`` and ``g`` belong to
the weights that read the norm's output::

    N(x) W + bias = x [c diag(g) W] / s(x) + (b W + bias)

Norms are read off by running them, which is the same for every family: gains stored as ``1 + g`` (Gemma), folded away
(compatibility mode) or absent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def wide(tensor: Tensor) -> Tensor:
    """The same without gradients, in float32 at least: weights and activations are multiplied in this precision."""
    tensor = tensor.detach()
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def exact(tensor: Tensor) -> Tensor:
    """The same in float64, in which sums are taken; float32 on Apple's GPUs, which have nothing wider."""
    return tensor.detach().float() if tensor.device.type == "mps" else tensor.detach().double()


@dataclass(frozen=True)
class FrozenNorm:
    """A norm as ``N(x) = gain * c(x) / s(x) + bias``.

    Attributes:
        module: the norm itself.
        gain: up to one common factor, which :meth:`scale` takes into account.
        bias: zeros where it has none.
        centred: whether ``c`` takes the mean away.
    """

    module: Any
    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    centred: bool

    @classmethod
    def of(cls, module: Any, width: int, like: Tensor) -> FrozenNorm:
        """Run a norm on three vectors: of zeros, which leaves the bias; of ones, which centring removes; of +1 and -1.

        Args:
            module: the norm.
            width: ``d_model``.
            like: a weight beside it, for type and device.
        """
        probes = torch.zeros(3, width, dtype=like.dtype, device=like.device)
        probes[1:], probes[2, 1::2] = 1.0, -1.0
        bias, flat, uneven = wide(module(probes[None])[0])
        centred = bool((flat - bias).abs().max() < 1e-3 * (uneven - bias).abs().max())
        probe = wide(probes[2])
        return cls(module, (uneven - bias) / (probe - probe.mean() * centred), bias, centred)

    def fold(self, weight: Float[Tensor, "... d_model out"]) -> Float[Tensor, "... d_model out"]:
        """``c diag(g) W``: a weight that reads the norm's output, made to read its input."""
        scaled = self.gain[:, None] * weight
        return scaled - scaled.mean(-2, keepdim=True) if self.centred else scaled

    def apply(self, vectors: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """``g * c(x)``: the norm without its scale and bias."""
        return self.gain * (vectors - vectors.mean(-1, keepdim=True) if self.centred else vectors)

    def scale(self, vectors: Float[Tensor, "... d_model"]) -> Float[Tensor, "... 1"]:
        """``s(x)``, from what the norm makes of the vectors."""
        linear, out = exact(self.apply(wide(vectors))), exact(self.module(vectors)) - exact(self.bias)
        scale = linear.square().sum(-1, keepdim=True) / (linear * out).sum(-1, keepdim=True)
        return scale.nan_to_num(1.0)  # of a vector of zeros, to which no scale does anything
