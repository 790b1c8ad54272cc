"""What a patched model remembers of every row of a key-value cache, kept on the cache itself.

A cache may be filled in several passes, go on for thousands of tokens, be copied, cropped, and have its rows
repeated, selected or put in another order (beam search).  Other caches may be filled in between.  So what belongs to a
row is an attribute of the cache that holds the row, and goes wherever its rows go.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NOT_YET = torch.iinfo(torch.long).max


@dataclass
class RowLevels:
    """Where every row's text begins and which level its neurons are held at.

    Columns are counted from the first column of the cache, padding included.

    Attributes:
        first: column of the row's first real token; ``NOT_YET`` before there is one.
        begins_with_bos: whether that token is BOS.
        anchor: column of the first token after BOS, or of the first token where there is no BOS.
        levels: up-projection of the held neurons there, by layer.
    """

    first: Int[Tensor, " batch"]
    begins_with_bos: Bool[Tensor, " batch"]
    anchor: Int[Tensor, " batch"]
    levels: dict[int, Float[Tensor, "batch neuron"]] = field(default_factory=dict)

    @classmethod
    def empty(cls, rows: int, device: torch.device) -> RowLevels:
        """Rows that have not begun."""
        none = torch.full((rows,), NOT_YET, device=device)
        return cls(none, torch.zeros_like(none, dtype=torch.bool), none.clone())

    def __len__(self) -> int:
        return len(self.first)

    def take(self, rows: Int[Tensor, " batch"]) -> None:
        """Become these rows, in this order."""
        for name in ("first", "begins_with_bos", "anchor"):
            values = getattr(self, name)
            setattr(self, name, values[rows.to(values.device)])
        self.levels = {layer: level[rows.to(level.device)] for layer, level in self.levels.items()}

    def advance(
        self,
        is_bos: Bool[Tensor, "batch pos"],
        real: Bool[Tensor, "batch pos"],
        past: int,
    ) -> tuple[Bool[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
        """Take note of the columns of one pass.

        Args:
            is_bos: where the token is BOS.
            real: where there is a token and no padding.
            past: columns before this pass; what was noted of later ones (a cropped cache) is forgotten.

        Returns:
            Where the anchors are, and where neurons are held: from the anchor on, padding left out.
        """
        begun = self.first < past
        bos_before = self.begins_with_bos & begun
        number = real.cumsum(1)  # of each real token in this pass, from 1
        first_here = real & (number == 1) & ~begun[:, None]
        begins_here = (first_here & is_bos).any(1)
        self.first = torch.where(begun, self.first, _column(first_here, past))
        self.begins_with_bos = bos_before | begins_here
        waiting = ~(self.anchor < past)
        wanted = torch.where(begun, 1, 1 + begins_here.long())
        anchor_here = real & (number == wanted[:, None]) & waiting[:, None]
        self.anchor = torch.where(waiting, _column(anchor_here, past), self.anchor)
        columns = past + torch.arange(real.shape[1], device=real.device)
        return anchor_here, real & (columns >= self.anchor[:, None])

    def catch(
        self, layer: int, values: Float[Tensor, "batch pos neuron"], anchor_here: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch neuron"]:
        """Note the values at the anchors of this pass; returns the level of every row (0 where it is unknown)."""
        found = anchor_here.any(1)
        at_anchor = values[torch.arange(len(values), device=values.device), anchor_here.int().argmax(1)]
        before = self.levels[layer].to(values) if layer in self.levels else torch.zeros_like(at_anchor)
        self.levels[layer] = torch.where(found[:, None], at_anchor, before)
        return self.levels[layer]


def _column(here: Bool[Tensor, "batch pos"], past: int) -> Int[Tensor, " batch"]:
    """The column of the one place in each row, or ``NOT_YET`` where there is none."""
    return torch.where(here.any(1), past + here.int().argmax(1), NOT_YET)


class _CarriesRows:
    """Mixed into the class of a cache: what moves its rows moves what is remembered of them."""

    row_levels: dict[int, RowLevels]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam search: row ``i`` becomes what row ``beam_idx[i]`` was."""
        super().reorder_cache(beam_idx)  # pyright: ignore[reportAttributeAccessIssue]
        self._take(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        super().batch_select_indices(indices)  # pyright: ignore[reportAttributeAccessIssue]
        self._take(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row several times, side by side."""
        super().batch_repeat_interleave(repeats)  # pyright: ignore[reportAttributeAccessIssue]
        for levels in self.row_levels.values():
            levels.take(torch.arange(len(levels)).repeat_interleave(repeats))

    def _take(self, rows: Tensor) -> None:
        for levels in self.row_levels.values():
            levels.take(rows)


_carrying: dict[type, type] = {}


def row_levels(cache: Any) -> dict[int, RowLevels]:
    """What is remembered of a cache's rows, by owner; from now on it follows the rows."""
    kind = type(cache)
    if not isinstance(cache, _CarriesRows):
        if kind not in _carrying:
            _carrying[kind] = type(kind.__name__, (_CarriesRows, kind), {"__module__": kind.__module__})
        cache.__class__ = _carrying[kind]
        cache.row_levels = {}
    return cache.row_levels


def remembered(cache: Any, owner: int) -> RowLevels | None:
    """A copy of what ``owner`` remembers of a cache: a pass that fails leaves the cache as it was."""
    known = row_levels(cache).get(owner)
    return None if known is None else replace(known, levels=dict(known.levels))
