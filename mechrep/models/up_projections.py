"""Where the up-projection of an MLP is found in a plain Hugging Face decoder.

In a gated MLP that is the second, linear branch, which the activation of the gate is multiplied with.  In an MLP
without a gate the up-projection is all that the activation function reads; its value and the function's output
determine each other as far as the rest of the model can see, so the output is what is handed out there.

Names differ between families.  What is found by its name is therefore run once and compared with the input of the
output matrix before it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mechrep.errors import ModelError
from mechrep.models.handles import PlainHandles, _find_part

_UP, _GATE_AND_UP = ("mlp.up_proj",), ("mlp.gate_up_proj",)
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_HALF_PRECISION_TOLERANCE = 3e-2

_found: WeakKeyDictionary[nn.Module, tuple[UpProjection, ...]] = WeakKeyDictionary()


@dataclass(frozen=True)
class UpProjection:
    """One layer's up-projection.

    Attributes:
        module: the module whose output holds it.
        second_half: whether it is the second half of that output, behind the gate.
    """

    module: nn.Module
    second_half: bool = False

    def of(self, output: Tensor) -> Tensor:
        """The up-projection in the module's output."""
        return output.chunk(2, dim=-1)[1] if self.second_half else output

    def edit(self, change: Callable[[Tensor], Tensor]) -> Any:
        """Hook ``change`` in; returns the handle, which has ``remove()``."""

        def hook(_module: Any, _args: Any, output: Tensor) -> Tensor:
            if not self.second_half:
                return change(output)
            gate, up = output.chunk(2, dim=-1)
            return torch.cat([gate, change(up)], dim=-1)

        return self.module.register_forward_hook(hook)


def find_up_projections(module: nn.Module, handles: PlainHandles) -> tuple[UpProjection, ...]:
    """The up-projection of every layer, checked by running the module on two tokens (once per module).

    Args:
        module: a Hugging Face decoder.
        handles: its parts.

    Raises:
        ModelError: what was found is not what the activation function's output is multiplied with.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> len(find_up_projections(model.plain, model.handles)) == model.anatomy.n_layers
        True
    """
    if module not in _found:
        found = tuple(
            _find_in(layer, activation) for layer, activation in zip(handles.layers, handles.activations, strict=True)
        )
        _check(module, handles, found)
        _found[module] = found
    return _found[module]


def _find_in(layer: nn.Module, activation: nn.Module) -> UpProjection:
    separate, fused = _find_part(layer, _UP), _find_part(layer, _GATE_AND_UP)
    if separate is not None:
        return UpProjection(separate)
    return UpProjection(activation) if fused is None else UpProjection(fused, second_half=True)


@torch.no_grad()
def _check(module: nn.Module, handles: PlainHandles, found: tuple[UpProjection, ...]) -> None:
    """The input of the output matrix must be activation times up-projection or, without a gate, the activation."""
    seen: dict[tuple[str, int], Tensor] = {}
    hooks: list[Any] = []

    def keep(kind: str, layer: int) -> Callable[..., None]:
        def hook(_module: Any, args: Any, output: Any = None) -> None:
            seen[kind, layer] = (args[0] if output is None else output).detach().float()

        return hook

    for layer, up in enumerate(found):
        hooks.append(handles.activations[layer].register_forward_hook(keep("act", layer)))
        hooks.append(up.module.register_forward_hook(keep("up", layer)))
        hooks.append(handles.mlp_outputs[layer].register_forward_pre_hook(keep("product", layer)))
    parameter = next(module.parameters())
    try:
        module(input_ids=torch.tensor([[0, 1]], device=parameter.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    tolerance = _TOLERANCE.get(parameter.dtype, _HALF_PRECISION_TOLERANCE)
    for layer, up in enumerate(found):
        product = seen["product", layer]
        activation = seen["act", layer].reshape(product.shape)
        without_gate = up.module is handles.activations[layer]
        gated = activation if without_gate else activation * up.of(seen["up", layer]).reshape(product.shape)
        scale = product.abs().max().clamp_min(1e-6)
        if not any(float((part - product).abs().max() / scale) <= tolerance for part in (gated, activation)):
            raise ModelError(
                f"{type(module).__name__}, whose up-projection in layer {layer} was not found",
                "an MLP that multiplies act(gate) with one up-projection, or has no gate",
                "add the module's name to mechrep/models/up_projections.py",
            )
