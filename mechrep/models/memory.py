"""How many rows fit: an estimate from the memory that is free, and halves where it was too high.

A pass over fewer rows gives the same numbers, so a batch for which memory runs out is done in halves, and so are the
batches after it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from mechrep.errors import ModelError
from mechrep.models.anatomy import Anatomy

_SHARE = 0.5  # of what is free: estimates are rough, and others use memory too
_FULL = (
    "out of memory",
    "can't allocate memory",  # torch's allocator on the CPU
    "not enough memory",  # the same on Windows
    "CUBLAS_STATUS_ALLOC_FAILED",
)
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)

Rows = TypeVar("Rows", bound=Sequence[Any] | Tensor)
Found = TypeVar("Found")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device.

    Example:
        >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
        True
        >>> is_out_of_memory(RuntimeError("shapes do not match"))
        False
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL)


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device; on the CPU also what a container or a batch system leaves of it.

    Example:
        >>> free_bytes(torch.device("cpu")) > 0
        True
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    import psutil

    found = [int(psutil.virtual_memory().available)]
    for most, used in ((_number(Path(limit)), _number(Path(use))) for limit, use in _CGROUPS):
        if most is not None and used is not None:
            found.append(max(0, most - used))
    if hasattr(psutil.Process, "rlimit"):
        addresses = psutil.Process().rlimit(psutil.RLIMIT_AS)[0]
        if addresses > 0:
            found.append(max(0, addresses - psutil.Process().memory_info().vms))
    return min(found)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such limit, or "max"
        return None


def bytes_of_reading(anatomy: Anatomy, length: int, itemsize: int, *, patterns: bool = False) -> int:
    """What one row of a pass needs at once, roughly: hidden states, an MLP, and rows of attention where they are made.

    Example:
        >>> import mechrep
        >>> anatomy = mechrep.load_model("mechrep-tiny").anatomy
        >>> bytes_of_reading(anatomy, 100, 4) < bytes_of_reading(anatomy, 100, 4, patterns=True)
        True
    """
    states = 10 * anatomy.d_model + 4 * max(anatomy.d_mlp or 0, anatomy.d_model)
    attention = 3 * anatomy.n_heads * length if patterns else 0
    return length * (states + attention) * itemsize


def bytes_of_writing(anatomy: Anatomy, length: int, itemsize: int) -> int:
    """What one row of a decoder keeps: keys and values of all its tokens, moved now and then, and its logits."""
    kept = 2 * anatomy.n_layers * anatomy.n_kv_heads * anatomy.d_head * length
    return (3 * kept + 4 * anatomy.d_vocab) * itemsize


def rows_that_fit(device: torch.device, bytes_per_row: int, most: int) -> int:
    """So many rows as half of the free memory holds; at least 1, at most ``most``.

    Example:
        >>> rows_that_fit(torch.device("cpu"), 1, most=64)
        64
    """
    return max(1, min(most, int(_SHARE * free_bytes(device)) // max(1, bytes_per_row)))


def in_batches(rows: Rows, size: int, do: Callable[[Rows], Found], what: str) -> Iterator[tuple[Rows, Found]]:
    """Do something with rows, so many at a time; in halves from where memory runs out.

    Args:
        rows: all of them.
        size: of a batch, at first.
        do: gives the same for a row whatever the batch, and can be done again.
        what: is done, for the error.

    Raises:
        ModelError: one row does not fit.

    Example:
        >>> def double(rows: list[int]) -> list[int]:
        ...     if len(rows) > 2:
        ...         raise torch.OutOfMemoryError("out of memory")
        ...     return [2 * row for row in rows]
        >>> [found for _, found in in_batches([1, 2, 3, 4, 5], 5, double, "doubling")]
        [[2, 4], [6, 8], [10]]
    """
    begin, size = 0, max(1, size)
    while begin < len(rows):
        some: Rows = rows[begin : begin + size]  # pyright: ignore[reportAssignmentType]
        found = attempt(lambda some=some: do(some))
        if found is None:
            size = fewer(len(some), what)
            continue
        yield some, found[0]
        begin += len(some)


def attempt(do: Callable[[], Found]) -> tuple[Found] | None:
    """What something gives; ``None`` where memory ran out, and what it held then is free again."""
    try:
        return (do(),)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    gc.collect()  # the error is gone, and with it all that its frames held
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def fewer(rows: int, what: str) -> int:
    """Half as many rows.

    Raises:
        ModelError: there was but one.

    Example:
        >>> fewer(7, "reading")
        3
    """
    if rows <= 1:
        raise ModelError(
            f"one row, for which memory ran out while {what}",
            "room for one text at a time",
            "use shorter texts, a smaller dtype, a larger device, or device_map= to spread the model",
        )
    return rows // 2
