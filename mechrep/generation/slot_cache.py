"""Keys and values of the rows that are decoded together, in slots that rows enter and leave at any time."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class SlotLayer(DynamicLayer):
    """One layer's keys and values ``[slot kv_head column d_head]``, seen through the window that is in use."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.first, self.next = capacity, 0, 0

    def allocate(self, like: Float[Tensor, "row kv_head pos d_head"], like_values: Tensor, slots: int) -> None:
        """Make room, once, for tensors such as these."""
        self.keys = like.new_zeros(slots, like.shape[1], self.capacity, like.shape[3])
        self.values = like_values.new_zeros(slots, like_values.shape[1], self.capacity, like_values.shape[3])
        self.dtype, self.device, self.is_initialized = like.dtype, like.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the newest column; hand back every column of the window, the newest included."""
        if not self.is_initialized:
            self.allocate(key_states, value_states, key_states.shape[0])
        assert self.keys is not None and self.values is not None
        self.keys[:, :, self.next : self.next + 1] = key_states
        self.values[:, :, self.next : self.next + 1] = value_states
        window = slice(self.first, self.next + 1)
        return self.keys[:, :, window], self.values[:, :, window]

    def get_seq_length(self) -> int:
        """Columns in the window before the newest."""
        return self.next - self.first

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of what attention will see."""
        return self.get_seq_length() + query_length, 0


class SlotCache:
    """The slots of all layers, and where each row begins.

    Attributes:
        starts: first column of each slot's row; equal to :attr:`column` for an empty slot.
        column: where the next token of every row is written.
    """

    def __init__(self, n_layers: int, slots: int, capacity: int, device: torch.device) -> None:
        self.layers = [SlotLayer(capacity) for _ in range(n_layers)]
        self.hf = Cache(layers=list(self.layers))
        self.capacity, self.column = capacity, 0
        self.starts: Int[Tensor, " slot"] = torch.zeros(slots, dtype=torch.long, device=device)
        self.empty: Bool[Tensor, " slot"] = torch.ones(slots, dtype=torch.bool, device=device)

    def enter(self, slots: list[int], prefix: Any, rows: list[int], lengths: list[int]) -> None:
        """Lay computed prefixes into slots, ending just before the current column.

        Args:
            slots: where to.
            prefix: Hugging Face cache of a right-padded batch of prefixes (``None`` if all are empty).
            rows: row of ``prefix`` for each slot (several slots may share one).
            lengths: tokens of each slot's prefix.
        """
        longest = max(lengths, default=0)
        if self.column < longest:
            self._shift(longest - self.column)
        for index, layer in enumerate(self.layers):
            if prefix is None:
                break
            keys, values = prefix.layers[index].keys, prefix.layers[index].values
            if not layer.is_initialized:
                layer.allocate(keys, values, len(self.starts))
            assert layer.keys is not None and layer.values is not None
            for slot, row, length in zip(slots, rows, lengths, strict=True):
                here = slice(self.column - length, self.column)
                layer.keys[slot, :, here] = keys[row, :, :length]
                layer.values[slot, :, here] = values[row, :, :length]
        self.starts[slots] = torch.tensor([self.column - length for length in lengths], device=self.starts.device)
        self.empty[slots] = False

    def leave(self, slots: list[int]) -> None:
        """Empty these slots."""
        self.empty[slots] = True

    def before_step(self) -> Bool[Tensor, "slot column"]:
        """Make sure that there is a free column, narrow the window, and give the mask of its valid columns."""
        self.starts[self.empty] = self.column
        first = int(self.starts.min())
        if self.column == self.capacity:
            self._shift(-first)
            first = 0
        for layer in self.layers:
            layer.first, layer.next = first, self.column
        columns = torch.arange(first, self.column + 1, device=self.starts.device)
        return columns[None] >= self.starts[:, None]

    def after_step(self) -> None:
        """The newest column now belongs to the rows."""
        self.column += 1

    def keep(self, slots: list[int]) -> None:
        """Drop all other slots, to stop computing rows that nobody needs."""
        index = torch.tensor(slots, device=self.starts.device)
        self.starts, self.empty = self.starts[index], self.empty[index]
        for layer in self.layers:
            if layer.is_initialized:
                assert layer.keys is not None and layer.values is not None
                layer.keys, layer.values = layer.keys[index], layer.values[index]

    def _shift(self, by: int) -> None:
        """Move all rows ``by`` columns to the right (left if negative)."""
        old, new = slice(0, self.column), slice(by, self.column + by)
        if by < 0:
            old, new = slice(-by, self.column), slice(0, self.column + by)
        for layer in self.layers:
            if layer.is_initialized:
                assert layer.keys is not None and layer.values is not None
                layer.keys[:, :, new] = layer.keys[:, :, old].clone()
                layer.values[:, :, new] = layer.values[:, :, old].clone()
        self.starts += by
        self.column += by
