"""The neurons of a layer in the plain view: read and edited, whatever their MLP is built like.

A dense MLP has modules to hook: the activation function, the output matrix, the up-projection.  Routed experts have
none, and are run by :mod:`mechrep.models.experts`.  A layer with shared experts has both, so what looks at the neurons
is called once for each piece and told which columns of the layer it is.

In a gated MLP the up-projection is the second, linear branch, which the activation of the gate is multiplied with.  In
an MLP without a gate the up-projection is all that the activation function reads; its value and the function's output
determine each other as far as the rest of the model can see, so the output is what is handed out there.  Names differ
between families: what is found by its name is run once and compared with the input of the output matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mechrep.errors import InputError, ModelError
from mechrep.models.anatomy import Site
from mechrep.models.experts import ExpertShape, tapped
from mechrep.models.parts import PlainHandles, find_part, first_tensor, weight_of

# ``[batch pos neuron]`` and the columns of the layer that they are; the same or edited ones come back, or nothing.
Look = Callable[[Tensor, slice], Tensor | None]

_MLPS = ("mlp", "feed_forward", "mlp_block")
_UP = tuple(f"{mlp}.{end}" for mlp in _MLPS for end in ("up_proj", "w3"))
_GATE_AND_UP = tuple(f"{mlp}.{end}" for mlp in _MLPS for end in ("gate_up_proj", "input_linear"))
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_HALF_PRECISION_TOLERANCE = 3e-2

_found: WeakKeyDictionary[nn.Module, tuple[UpProjection | None, ...]] = WeakKeyDictionary()


def columns_of(handles: PlainHandles, layer: int) -> tuple[slice, slice]:
    """Columns of a layer's routed experts, and of its dense MLP or shared experts."""
    experts, down = handles.experts[layer], handles.mlp_outputs[layer]
    routed = 0
    if experts is not None:
        shape = ExpertShape.of(experts)
        routed = shape.experts * shape.neurons
    dense = 0 if down is None else int(weight_of(down).shape[0])
    return slice(0, routed), slice(routed, routed + dense)


def refuse_routed(handles: PlainHandles, layer: int, neurons: Sequence[int]) -> None:
    """Refuse neurons that are to be held at the level of another token and belong to routed experts.

    Raises:
        InputError: naming them.
    """
    routed, dense = columns_of(handles, layer)
    if dense.stop > dense.start and handles.activations[layer] is None:
        raise InputError(
            f"neurons of layer {layer} held at the level of another token",
            "an MLP whose activation function is a module",
            "ablate them (mechrep.Neurons at Site.MLP_POST)",
        )
    inside = [neuron for neuron in neurons if neuron < routed.stop]
    if inside:
        raise InputError(
            f"neurons {inside[:5]} of layer {layer}, of routed experts, held at the level of another token",
            "neurons of dense MLPs or shared experts: a token has no level at an expert that it is not sent to",
            "ablate them (mechrep.Neurons), or hold others",
        )


@contextmanager
def looking_at(module: nn.Module, handles: PlainHandles, site: Site, layer: int, look: Look) -> Iterator[None]:
    """While open, every pass of the module shows the neurons of a layer to ``look``, piece by piece.

    Args:
        module: the plain view.
        handles: its parts.
        site: ``GATE_PRE`` (whose return value is not used), ``GATE_ACT``, ``MLP_POST``, ``UP_PROJ`` or ``ROUTER``.
        layer: of the neurons.
        look: what reads or edits them.
    """
    _, dense = columns_of(handles, layer)
    shape: list[int] = []

    def note(_layer: nn.Module, args: Any, kwargs: Any) -> None:
        given = args[0] if args and isinstance(args[0], Tensor) else first_tensor((args, kwargs))
        assert given is not None
        shape[:] = given.shape[:2]

    def laid_out(values: Tensor, columns: slice) -> Tensor | None:
        texts = values if values.ndim == 3 else values.reshape(-1, shape[1], values.shape[-1])  # rows may have branched
        seen = look(texts, columns)
        return None if seen is None else seen.view_as(values)

    if site is Site.UP_PROJ and dense.stop > dense.start:
        find_up_projections(module, handles)  # runs the module, which nobody looks at yet
    with ExitStack() as stack:
        stack.callback(handles.layers[layer].register_forward_pre_hook(note, with_kwargs=True).remove)
        experts = handles.experts[layer]
        if experts is not None:

            def tap(values: Tensor) -> Tensor:
                seen = laid_out(values, slice(0, values.shape[-1]))
                return values if seen is None else seen

            stack.enter_context(tapped(experts, site, tap))
        if site is not Site.ROUTER and dense.stop > dense.start:
            stack.callback(_hook(module, handles, site, layer, lambda values: laid_out(values, dense)).remove)
        yield


def _hook(
    module: nn.Module, handles: PlainHandles, site: Site, layer: int, look: Callable[[Tensor], Tensor | None]
) -> Any:
    """One hook on a module of a dense MLP; returns its handle."""

    def at_input(_module: Any, args: Any) -> Any:
        seen = look(args[0])
        return None if seen is None else (seen, *args[1:])

    def at_output(_module: Any, _args: Any, output: Any) -> Any:
        return look(output)

    if site is Site.MLP_POST:
        down = handles.mlp_outputs[layer]
        assert down is not None
        return down.register_forward_pre_hook(at_input)
    if site is Site.UP_PROJ:
        up = find_up_projections(module, handles)[layer]
        if up is None:
            raise InputError(f"up_proj of layer {layer}", "an activation function that is a module", "use MLP_POST")
        return up.edit(look)
    activation = handles.activations[layer]
    if activation is None:
        raise InputError(
            f"{site.value} of layer {layer}", "an activation function that is a module", "use Site.MLP_POST"
        )
    if site is Site.GATE_PRE:
        return activation.register_forward_pre_hook(lambda _module, args: (look(args[0]), None)[1])
    return activation.register_forward_hook(at_output)


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

    def edit(self, change: Callable[[Tensor], Tensor | None]) -> Any:
        """Hook ``change`` in; returns the handle, which has ``remove()``."""

        def hook(_module: Any, _args: Any, output: Tensor) -> Tensor | None:
            if not self.second_half:
                return change(output)
            gate, up = output.chunk(2, dim=-1)
            changed = change(up)
            return None if changed is None else torch.cat([gate, changed], dim=-1)

        return self.module.register_forward_hook(hook)


def find_up_projections(module: nn.Module, handles: PlainHandles) -> tuple[UpProjection | None, ...]:
    """The up-projection of every layer's dense MLP, checked by running the module on two tokens (once per module).

    Args:
        module: a Hugging Face decoder.
        handles: its parts.

    Returns:
        One per layer; ``None`` where a layer has no dense MLP, or one whose activation function is no module.

    Raises:
        ModelError: what was found is not what the activation function's output is multiplied with.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> len(find_up_projections(model.plain, model.handles)) == model.anatomy.n_layers
        True
    """
    if module not in _found:
        found = tuple(_find_in(handles, layer) for layer in range(len(handles.layers)))
        _check(module, handles, found)
        _found[module] = found
    return _found[module]


def _find_in(handles: PlainHandles, layer: int) -> UpProjection | None:
    activation = handles.activations[layer]
    if activation is None or handles.mlp_outputs[layer] is None:
        return None
    root = handles.layers[layer]
    ends = [_UP, _GATE_AND_UP]
    if handles.mixtures[layer] is not None:  # the names begin in the shared expert
        root = [part for part in root.modules() if activation in part.children()][-1]
        ends = [tuple(end.rpartition(".")[2] for end in group) for group in ends]
    separate, fused = (find_part(root, group) for group in ends)
    if separate is not None:
        return UpProjection(separate)
    return UpProjection(activation) if fused is None else UpProjection(fused, second_half=True)


@torch.no_grad()
def _check(module: nn.Module, handles: PlainHandles, found: tuple[UpProjection | None, ...]) -> None:
    """The input of the output matrix must be activation times up-projection or, without a gate, the activation."""
    seen: dict[tuple[str, int], Tensor] = {}
    hooks: list[Any] = []

    def keep(kind: str, layer: int) -> Callable[..., None]:
        def hook(_module: Any, args: Any, output: Any = None) -> None:
            seen[kind, layer] = (args[0] if output is None else output).detach().double()

        return hook

    there = [(layer, up) for layer, up in enumerate(found) if up is not None]
    for layer, up in there:
        hooks.append(handles.activations[layer].register_forward_hook(keep("act", layer)))  # pyright: ignore
        hooks.append(up.module.register_forward_hook(keep("up", layer)))
        hooks.append(handles.mlp_outputs[layer].register_forward_pre_hook(keep("product", layer)))  # pyright: ignore
    parameter = next(module.parameters())
    try:
        module(input_ids=torch.tensor([[0, 1]], device=parameter.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    tolerance = _TOLERANCE.get(parameter.dtype, _HALF_PRECISION_TOLERANCE)
    for layer, up in there:
        product = seen["product", layer]
        activation = seen["act", layer].reshape(product.shape)
        without_gate = up.module is handles.activations[layer]
        gated = activation if without_gate else activation * up.of(seen["up", layer]).reshape(product.shape)
        scale = product.abs().max().clamp_min(1e-6)
        if not any(float((part - product).abs().max() / scale) <= tolerance for part in (gated, activation)):
            raise ModelError(
                f"{type(module).__name__}, whose up-projection in layer {layer} was not found",
                "an MLP that multiplies act(gate) with one up-projection, or has no gate",
                "measure its neurons at Site.MLP_POST",
            )
