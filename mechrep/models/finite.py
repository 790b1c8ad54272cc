"""Numbers that are none: float16 ends at 65,504, and beyond it stand infinities, then NaN in every later token.

Tables read NaN as "this layer has no such part", so one overflow at a sink would pass for a finding.  What is read, and
what tokens are chosen by, is therefore looked at, and a model that overflows is refused by name.  What mechrep adds up
itself is float64 and does not overflow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mechrep.errors import ModelError

LARGEST = torch.finfo(torch.float16).max


def no_number(name: str, dtype: torch.dtype, what: str) -> ModelError:
    """The error about what is no number.

    Example:
        >>> no_number("gpt", torch.float16, "resid_post of layer 3").given
        "resid_post of layer 3 of 'gpt' in float16, which overflows"
    """
    owner = f" of {name!r}" if name else ""
    if dtype is torch.float16:
        return ModelError(
            f"{what}{owner} in float16, which overflows",
            f"numbers up to {LARGEST:,.0f}, where float16 ends",
            "load it with dtype='bfloat16' or 'float32'",
        )
    return ModelError(
        f"{what}{owner}, which are no numbers",
        "numbers",
        "see whether weights, or what an intervention puts in their place, are infinite or NaN",
    )


def checked(
    model: Any, receive: Callable[..., None], what: Callable[..., str], *, infinite: bool = False
) -> Callable[..., None]:
    """The same receiver, behind a look at every tensor where the model is float16; elsewhere the receiver itself.

    Args:
        model: a :class:`~mechrep.models.model.Model`.
        receive: called with a tensor first.
        what: names the tensor, from the other arguments.
        infinite: whether infinities are no fault: of scores, where masked keys have them.
    """
    if model.dtype is not torch.float16:
        return receive

    def look(tensor: Tensor, *rest: Any) -> None:
        bad = tensor.isnan() if infinite else ~tensor.isfinite()
        if bool(bad.any()):
            raise no_number(model.name, model.dtype, what(*rest))
        receive(tensor, *rest)

    return look
