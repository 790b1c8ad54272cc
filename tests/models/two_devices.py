"""A second device, pretended: tensors "on" it lie in ordinary memory, and mixing both is an error as it is on GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakTensorKeyDictionary

FIRST, SECOND = torch.device("cpu"), torch.device("cpu", 1)
_PLACES = {"", "cpu", "cpu:0"}
_MAY_MIX = {
    Tensor.copy_,
    Tensor.view_as,
    Tensor.expand_as,
    Tensor.__setitem__,
    Tensor.__getitem__,
    Tensor.data.__set__,  # pyright: ignore[reportAttributeAccessIssue]
    torch.set_grad_enabled,
}  # pyright: ignore


class TwoDevices(TorchFunctionMode):
    """While entered, tensors remember which of two devices they are on."""

    def __init__(self) -> None:
        super().__init__()
        self.there = WeakTensorKeyDictionary()
        self.moved = 0

    def is_there(self, tensor: Tensor) -> bool:
        """Whether a tensor is on the second device."""
        return tensor in self.there

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call, and say where the result is."""
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "__get__" and getattr(func, "__self__", None) is Tensor.device:
            return SECOND if self.is_there(args[0]) else FIRST
        if func in (Tensor.to, Tensor.cpu):
            return self._to(func, args, kwargs)
        asked = kwargs.get("device")
        if asked is not None:
            kwargs["device"] = "cpu"
        tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
        places = {self.is_there(one) for one in tensors if one.ndim > 0}
        if len(places) > 1 and func not in _MAY_MIX:
            raise RuntimeError(f"Expected all tensors to be on the same device ({name})")
        found = func(*args, **kwargs)
        there = str(asked) not in _PLACES if asked is not None else bool(tensors) and self.is_there(tensors[0])
        if asked is None and tensors and not there:
            there = any(self.is_there(one) for one in tensors) and name not in ("__getitem__", "copy_")
        if there:
            self._mark(found)
        return found

    def _to(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        tensor, there = args[0], self.is_there(args[0])
        rest, given = [], dict(kwargs)
        for one in args[1:]:
            if isinstance(one, Tensor):
                there, one = self.is_there(one), one.dtype
            elif isinstance(one, torch.device | str):
                there = str(one) not in _PLACES
                continue
            rest.append(one)
        if given.pop("device", None) is not None:
            there = str(kwargs["device"]) not in _PLACES
        if func is Tensor.cpu:
            there = False
        moved = tensor.to(*rest, **given) if rest or given else tensor
        if there != self.is_there(tensor) and moved is tensor:
            moved = tensor.view_as(tensor)
            self.moved += 1
        self.there.pop(moved, None) if not there else self._mark(moved)
        return moved

    def _mark(self, found: Any) -> None:
        for one in tree_flatten(found)[0]:
            if isinstance(one, Tensor):
                self.there[one] = True


@contextmanager
def spread(module: Any, layers: list[nn.Module], first_there: int) -> Iterator[TwoDevices]:
    """The layers from some number on, and all that is behind them, on the second device, as ``device_map`` does it."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module

    mode = TwoDevices()
    head = module.get_output_embeddings()
    last = [part for part in module.base_model.children() if not isinstance(part, nn.ModuleList | nn.Embedding)]
    behind = [*layers[first_there:], *(part for part in last if any(True for _ in part.parameters())), head]
    for part in behind:
        add_hook_to_module(part, AlignDevicesHook(execution_device=SECOND))
        for tensor in (*part.parameters(), *part.buffers()):
            mode.there[tensor] = True
    try:
        with mode:
            yield mode
    finally:
        for part in behind:
            remove_hook_from_module(part)
