"""What can change about a shared module: the bytes of its weights, and hooks that somebody puts on it."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn


def state_of(module: nn.Module | None) -> list[Any]:
    """Where each parameter lies and how often torch has written to it, and the user's own hooks."""
    if module is None:
        return []
    return [*((p.data_ptr(), p._version) for p in module.parameters()), *(id(hook) for _, hook in own_hooks(module))]


def byte_sums(parameter: Tensor) -> bytes:
    """Sums over the bytes of a tensor, by place: other bytes, or the same ones elsewhere, give others."""
    raw = parameter.detach().contiguous().reshape(-1).view(torch.uint8)
    whole = raw[: len(raw) // 8 * 8].view(torch.int64)
    rest = raw[len(raw) // 8 * 8 :].cpu().numpy().tobytes()
    rows = whole[: len(whole) // _BLOCK * _BLOCK].view(-1, _BLOCK)
    parts = (rows.sum(0), rows.sum(1), whole[len(whole) // _BLOCK * _BLOCK :])
    return b"".join(part.cpu().numpy().tobytes() for part in parts) + rest


_BLOCK = 512


def active_hooks(tl: Any) -> list[str]:
    """Names of TransformerLens' hook points with something on them."""
    return [name for name, point in tl.hook_dict.items() if point.fwd_hooks or point.bwd_hooks]


_LIBRARIES = ("mechrep", "torch", "transformers", "transformer_lens", "accelerate", "peft")


def own_hooks(module: nn.Module) -> list[tuple[str, Any]]:
    """Hooks that neither mechrep nor a library below it has put on a part, with the part's name."""
    found = []
    for name, part in module.named_modules():
        for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values()):
            source = hook
            while isinstance(source, functools.partial):
                source = source.func
            if (getattr(source, "__module__", None) or "").split(".")[0] not in _LIBRARIES:
                found.append((name, hook))
    return found
