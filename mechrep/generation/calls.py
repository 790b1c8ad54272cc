"""Reading off a call of a Hugging Face decoder which of its columns are text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechrep.errors import InputError


def real_columns(mask: Any, ids: Int[Tensor, "batch pos"], past: int) -> Bool[Tensor, "batch pos"]:
    """True where a column of this call is a token and no padding.

    Args:
        mask: ``attention_mask`` as the model got it: ``None``; ``[batch past+pos]`` of ones and zeros; or what
            ``generate`` makes of that for a static cache, ``[batch 1 query key]``, which may stand in a dictionary.
        ids: the ids of this call.
        past: columns in the cache.

    Raises:
        InputError: a mask that does not say which columns are padding.

    Example:
        >>> real_columns(torch.tensor([[0, 1, 1]]), torch.tensor([[2, 5, 7]]), past=0).tolist()
        [[False, True, True]]
    """
    if isinstance(mask, Mapping) and "full_attention" in mask:
        mask = mask["full_attention"]
    if mask is None:
        return torch.ones_like(ids, dtype=torch.bool)
    rows, length = ids.shape
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] in (length, past + length):
        return mask[:, -length:].to(ids.device) != 0
    if isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[2] == length and mask.shape[3] >= past + length:
        # What the last query may see; additive masks have 0 there and a huge negative number elsewhere.
        last = mask[:, 0, -1, past : past + length].to(ids.device)
        return (last if mask.dtype == torch.bool else last == 0).expand(rows, length)
    shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
    raise InputError(
        f"attention_mask {shape} for {rows} rows of {length} tokens after {past}",
        "a mask [batch, all columns so far] of ones and zeros",
        "pass the mask that the tokenizer gives",
    )


def refuse_packed_rows(call: Mapping[str, Any], real: Bool[Tensor, "batch pos"]) -> None:
    """Refuse rows that hold several texts: positions that begin again, or lengths of packed sequences.

    Raises:
        InputError: they do.
    """
    positions = call.get("position_ids")
    lengths = next(
        (name for name in ("cu_seq_lens_q", "cu_seqlens_q", "block_table") if call.get(name) is not None), ""
    )
    packed = bool(lengths)
    if isinstance(positions, Tensor) and positions.ndim == 2 and positions.shape[1] == real.shape[1] > 1:
        both = real[:, 1:] & real[:, :-1]
        packed = packed or bool((both & (positions.diff(dim=1) <= 0).to(real.device)).any())
    if packed:
        raise InputError(
            f"several texts in one row ({lengths or 'position_ids begin again'})",
            "one text per row",
            "pad the batch instead of packing it",
        )
