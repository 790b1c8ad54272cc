"""Numbers for the viewer, as small as they can be while they look the same: float16 and uint8, in base64.

* Values of tokens are float16 in units of the largest of them: their error is at most 2^-11 of themselves, or 2^-25 of
  the largest.
* Attention is one byte for each query and each key at or before it, row by row, deflated.  On the scale of the square
  root, which the colours have too, a byte counts steps of 1/96 up to 1/4, where nearly all of a model's attention lies,
  and of 1/308 above: half a step is the error.  A share of 1/512 is still 4 steps from nothing.
"""

from __future__ import annotations

import base64
import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from mechrep.errors import InputError

_KNEE, _STEPS, _LEVELS = 0.25, 24, 255  # so many steps up to the knee, the rest of them above
_ROUNDING = 1e-2  # of half precision


def pack_values(values: Float[np.ndarray, " pos"]) -> dict[str, Any]:
    """One number per token; NaN stays NaN.

    Args:
        values: no infinity among them.

    Returns:
        ``data``, and ``scale``, which every number has been divided by.

    Raises:
        InputError: an infinite value.

    Example:
        >>> packed = pack_values(np.array([0.5, np.nan, -2.0]))
        >>> packed["scale"], np.frombuffer(base64.b64decode(packed["data"]), "<f2").tolist()
        (2.0, [0.25, nan, -1.0])
    """
    if np.isinf(values).any():
        raise InputError("an infinite value", "numbers, or NaN where a token has none", "replace it")
    known = values[~np.isnan(values)]
    scale = float(np.abs(known).max()) if len(known) and known.any() else 1.0
    scale = scale if scale > np.finfo(np.float64).tiny else 1.0
    return {"data": _written((values / scale).astype("<f2").tobytes()), "scale": scale}


def quantised(pattern: Float[Tensor, "*head query_pos key_pos"]) -> UInt8[Tensor, "*head pair"]:
    """Attention as one byte for each query and each key at or before it, row by row.

    Raises:
        InputError: numbers that are no attention.

    Example:
        >>> quantised(torch.tensor([[1.0, 0.0], [0.01, 0.99]])).tolist()
        [255, 10, 253]
    """
    low, high = (float(value) for value in pattern.aminmax())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # NaN is neither
        raise InputError(f"numbers from {low:.3g} to {high:.3g}", "attention, from 0 to 1", "take patterns, not scores")
    root = pattern.detach().float().clamp(0, 1).sqrt()
    above = _STEPS + (root - _KNEE) * ((_LEVELS - _STEPS) / (1 - _KNEE))
    levels = torch.where(root <= _KNEE, root * (_STEPS / _KNEE), above).round().to(torch.uint8)
    length = pattern.shape[-1]
    return levels[..., torch.ones(length, length, dtype=torch.bool, device=levels.device).tril()]


def shares(levels: UInt8[Tensor, "*head pair"]) -> Float64[Tensor, "*head pair"]:
    """The attention that levels stand for.

    Example:
        >>> shares(torch.tensor([255, 10, 24], dtype=torch.uint8)).round(decimals=3).tolist()
        [1.0, 0.011, 0.062]
    """
    counted = levels.double()
    above = _KNEE + (counted - _STEPS) * ((1 - _KNEE) / (_LEVELS - _STEPS))
    return torch.where(counted <= _STEPS, counted * (_KNEE / _STEPS), above).square()


def pack_attention(levels: UInt8[Tensor, " pair"]) -> str:
    """What :func:`quantised` gave for one head, deflated.

    Example:
        >>> zlib.decompress(base64.b64decode(pack_attention(torch.tensor([255, 10, 253], dtype=torch.uint8)))).hex()
        'ff0afd'
    """
    # Runs and the code of Huffman: of noise, longer matches only take time.
    deflate = zlib.compressobj(6, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
    return _written(deflate.compress(levels.cpu().numpy().tobytes()) + deflate.flush())


def _written(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


@dataclass(frozen=True)
class ColourRange:
    """From where to where the colours go.

    Attributes:
        low: the palest colour; minus ``high`` where there are values below zero, and the middle is 0 then.
        high: the strongest.
        beyond: the value of the first token, where it lies so far out that the scale leaves it out.
    """

    low: float
    high: float
    beyond: float | None = None


def colour_range(values: Float[np.ndarray, " pos"]) -> ColourRange:
    """The range of colours for one number per token.

    Below zero: symmetric about zero.  Else from 0, or from the smallest value where all are of one size.  The first
    token, where sinks and massive activations are, does not count where it is more than twice as large as all others.

    Example:
        >>> colour_range(np.array([310.0, 2.0, 9.0])), colour_range(np.array([-1.0, 3.0]))
        (ColourRange(low=0.0, high=9.0, beyond=310.0), ColourRange(low=-3.0, high=3.0, beyond=None))
    """
    size = np.abs(values)
    rest = size[1:][~np.isnan(size[1:])]
    beyond = len(rest) > 0 and bool(rest.any()) and not math.isnan(size[0]) and size[0] / 2 > rest.max()
    shown = values[1:] if beyond else values
    shown = shown[~np.isnan(shown)]
    if not len(shown):
        return ColourRange(0.0, 1.0)
    low, high = float(shown.min()), float(np.abs(shown).max()) or 1.0
    first = float(values[0]) if beyond else None
    if low < 0:
        return ColourRange(-high, high, first)
    return ColourRange(low if high / 2 <= low < high else 0.0, high, first)
