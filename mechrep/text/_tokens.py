"""Token ids as they arrive: one check, used by every detector, watch and corpus."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from numbers import Integral
from typing import TypeAlias

import numpy as np
from jaxtyping import Int64, Shaped
from torch import Tensor

from mechrep.errors import InputError

# `Shaped`, not `Int`: ids of a wrong type are refused below, with a message that says what to do.  `_`, not `pos`: the
# texts of one list differ in length.
TokenSequence: TypeAlias = Sequence[int] | Shaped[np.ndarray, " _"] | Shaped[Tensor, " _"]


def eos_set(eos_id: int | Collection[int] | None) -> frozenset[int]:
    """End-of-sequence ids as a set; a model may have one, several or none.

    Example:
        >>> sorted(eos_set([7, 2])), sorted(eos_set(7)), sorted(eos_set(None))
        ([2, 7], [7], [])
    """
    if eos_id is None:
        return frozenset()
    return frozenset([eos_id] if isinstance(eos_id, int) else eos_id)


def up_to_eos(ids: Sequence[int], eos_ids: Collection[int], first: int = 0) -> list[int]:
    """``ids`` cut before the first end-of-sequence id at or after position ``first``."""
    ends = (place for place in range(first, len(ids)) if ids[place] in eos_ids)
    return list(ids[: next(ends, len(ids))])


def token_array(tokens: object, name: str = "tokens") -> Int64[np.ndarray, " pos"]:
    """Check a sequence of token ids and return it as a one-dimensional int64 array.

    Args:
        tokens: a list or tuple of ints, or a one-dimensional numpy array or torch tensor of any integer type.
        name: what to call it in the error, for example ``"text 3"``.

    Returns:
        The ids; no range is checked.

    Raises:
        InputError: if the ids are not whole numbers or not one-dimensional.

    Example:
        >>> token_array([5, 6, 5]).tolist()
        [5, 6, 5]
    """
    if isinstance(tokens, Tensor):
        tokens = tokens.detach().cpu().numpy()
    if isinstance(tokens, str | bytes) or not isinstance(tokens, Sequence | np.ndarray):
        raise _not_ids(f"{name} is a {type(tokens).__name__}")
    try:
        array = np.asarray(tokens)
    except (ValueError, OverflowError) as error:  # ragged lists, numbers beyond 64 bits
        raise _not_ids(f"{name} cannot be read as ids ({error})") from error
    if array.ndim != 1:
        raise _not_ids(f"{name} has {array.ndim} dimensions")
    if array.size == 0:
        return np.zeros(0, dtype=np.int64)
    if array.dtype.kind not in "iu":
        raise _not_ids(f"{name} holds {_first_odd_one(tokens, array)}")
    return array.astype(np.int64)


def token_ids(tokens: object, name: str = "tokens") -> list[int]:
    """Check a sequence of token ids and return it as a list of ints; see `token_array`."""
    return token_array(tokens, name).tolist()


def _first_odd_one(tokens: Sequence[object] | np.ndarray, array: np.ndarray) -> str:
    plain = tokens.tolist() if isinstance(tokens, np.ndarray) else tokens
    for position, token in enumerate(plain):
        if isinstance(token, bool) or not isinstance(token, Integral):
            return f"{token!r} at position {position}"
    return f"numbers of type {array.dtype}"


def _not_ids(given: str) -> InputError:
    return InputError(given, "a one-dimensional sequence of token ids (whole numbers)", "pass the ids of one text")
