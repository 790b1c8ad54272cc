"""What a model computes with now: its weights, buffers, settings, parts and hooks, which anybody may change.

mechrep shares the user's object.  So whatever was derived from it (the TransformerLens view, a fingerprint, the
handles) is compared with what the object is now, each time it is used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator
from types import FunctionType
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

_LIBRARIES = ("mechrep", "torch", "transformers", "transformer_lens", "accelerate", "peft", "kernels", "builtins",
              "jaxtyping", "beartype")  # fmt: skip
_BLOCK = 512
_NO_SETTINGS = {"training", "name_or_path", "max_seq_len_cached", "gradient_checkpointing"}

_patched: WeakSet[nn.Module] = WeakSet()


def mark_patched(module: nn.Module, patched: bool) -> None:
    """Note that hooks of mechrep stay on a module for whoever calls it, or that they are gone."""
    (_patched.add if patched else _patched.discard)(module)


def is_patched(module: nn.Module | None) -> bool:
    """Whether a :class:`~mechrep.generation.patched_model.PatchedModel` is at work in this module."""
    return module in _patched


def is_compiled(parts: Iterable[nn.Module]) -> bool:
    """Whether one of the parts runs as compiled code, in which hooks can be passed over."""
    for part in parts:  # no function for each: this runs before every pass, over every part
        own = vars(part)
        if own.get("_compiled_call_impl") is not None or hasattr(part, "_orig_mod"):
            return True
        if "forward" in own and hasattr(own["forward"], "_torchdynamo_orig_callable"):
            return True
    return False


def state_of(module: nn.Module | None, without: Collection[nn.Module] = ()) -> list[Any]:
    """Everything that decides what a module computes, by identity: cheap to compare, of this process only.

    Args:
        module: the module.
        without: parts that remember their last call; their buffers and settings are left out.
    """
    if module is None:
        return []
    return [
        *versions(module),
        *_versions(buffer for _, buffer in buffers_of(module, without)),
        *settings_of(module, without),
        *(id(part) for part in module.modules()),
        *(id(hook) for _, hook in own_hooks(module)),
    ]


def versions(module: nn.Module) -> list[Any]:
    """Of every weight where it lies and how often torch has seen it written."""
    return _versions(module.parameters())


def _versions(tensors: Iterable[Tensor]) -> list[Any]:
    return [(tensor.data_ptr(), None if tensor.is_inference() else tensor._version) for tensor in tensors]


def buffers_of(module: nn.Module, without: Collection[nn.Module] = ()) -> Iterator[tuple[str, Tensor]]:
    """Buffers with their names: a router's correction, a mask that prunes, rotary frequencies."""
    for name, part in module.named_modules():
        if part not in without:
            yield from ((f"{name}.{own}", buffer) for own, buffer in part._buffers.items() if buffer is not None)


def settings_of(module: nn.Module, without: Collection[nn.Module] = ()) -> list[tuple[str, str, list[tuple[str, Any]]]]:
    """What parts keep as plain numbers and words (epsilons, scales, windows, ...), with their names and classes.

    Example:
        >>> settings_of(nn.LayerNorm(2, eps=0.5))[0][1:]
        ('LayerNorm', [('elementwise_affine', True), ('eps', 0.5)])
    """
    found = []
    for name, part in module.named_modules():  # no function for each: this runs before every pass, over every part
        if part not in without:
            own = [
                (key, value)
                for key, value in vars(part).items()
                if type(value) in (bool, int, float, str) and not key.startswith("_") and key not in _NO_SETTINGS
            ]
            found.append((name, type(part).__name__, sorted(own)))
    return found


def byte_sums(parameter: Tensor) -> bytes:
    """Sums over the bytes of a tensor, by place: other bytes, or the same ones elsewhere, give others."""
    raw = parameter.detach().contiguous().reshape(-1).view(torch.uint8)
    raw = raw if raw.data_ptr() % 8 == raw.storage_offset() % 8 == 0 else raw.clone()  # a piece of a longer tensor
    whole = raw[: len(raw) // 8 * 8].view(torch.int64)
    rest = raw[len(raw) // 8 * 8 :].cpu().numpy().tobytes()
    rows = whole[: len(whole) // _BLOCK * _BLOCK].view(-1, _BLOCK)
    parts = (rows.sum(0), rows.sum(1), whole[len(whole) // _BLOCK * _BLOCK :])
    return b"".join(part.cpu().numpy().tobytes() for part in parts) + rest


def active_hooks(tl: Any) -> list[Any]:
    """Names of TransformerLens' hook points with something on them, and torch's own hooks that a user has set."""
    points = [name for name, point in tl.hook_dict.items() if point.fwd_hooks or point.bwd_hooks]
    return [*points, *((name, id(hook)) for name, hook in own_hooks(tl, everywhere=False))]


def own_hooks(module: nn.Module, *, everywhere: bool = True) -> list[tuple[str, Any]]:
    """What neither mechrep nor a library below it has put on a part or in its place, with the part's name.

    These are hooks of parts, a ``forward`` that is not the class's own, and hooks that torch runs for all modules.

    Args:
        module: the module.
        everywhere: hooks for all modules too.
    """
    for_all = (*torch_module._global_forward_hooks.values(), *torch_module._global_forward_pre_hooks.values())
    found = [("", hook) for hook in for_all if everywhere and _is_foreign(hook)]
    for name, part in module.named_modules():
        for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values()):
            if _is_foreign(hook):
                found.append((name, hook))
        kind = type(part)
        shared = "forward" not in vars(part) and isinstance(kind.forward, FunctionType)
        if _is_foreign_to(kind.__module__, kind.forward) if shared else is_replaced(part):
            found.append((name, vars(part).get("forward", type(part).forward)))
    return found


def is_replaced(part: nn.Module) -> bool:
    """Whether a part's ``forward`` is neither its class's own nor one that a library has put there."""
    return _is_foreign(part.forward, type(part).__module__)


@functools.cache
def _is_foreign_to(home: str, function: FunctionType) -> bool:
    """The same of a class's function, remembered: it stays what it is, and there are few classes for many parts."""
    return _is_foreign(function, home)


def _is_foreign(function: Callable, home: str = "") -> bool:
    """Whether a function, or what stands around it, comes from elsewhere than the libraries and its home."""
    while isinstance(function, functools.partial):
        function = function.func
    inner = getattr(function, "__func__", function)  # of a bound method
    places = {getattr(inner, "__module__", None), getattr(inner, "__globals__", {}).get("__name__")}
    known = {*_LIBRARIES, home.split(".")[0]}
    if inner is function and not hasattr(inner, "__globals__"):  # an object: its class says where it is from
        places = {type(inner).__module__ if getattr(inner, "__module__", None) is None else inner.__module__}
    return any(place is not None and place.split(".")[0] not in known for place in places)
