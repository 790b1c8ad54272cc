"""The cache of slots against a plain list per row: whatever enters, leaves or moves, each row sees its own past."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechrep.generation.slot_cache import SlotCache

N_SLOTS, LONGEST = 3, 8
CAPACITY = 12


def as_prefix(rows: list[list[float]]) -> SimpleNamespace:
    """Right-padded keys and values as Hugging Face's cache holds them; padding that would be noticed."""
    padded = torch.full((len(rows), 1, max(map(len, rows)), 1), -1.0)
    for number, row in enumerate(rows):
        padded[number, 0, : len(row), 0] = torch.tensor(row)
    return SimpleNamespace(layers=[SimpleNamespace(keys=padded, values=-padded)] * 2)


def write(cache: SlotCache, numbers: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What attention of each layer gets to see after the newest numbers were written."""
    new = numbers[:, None, None, None]
    return [layer.update(new, -new) for layer in cache.layers]


class Histories:
    """Drives a cache and remembers in lists what every row must see."""

    def __init__(self) -> None:
        self.cache = SlotCache(2, N_SLOTS, CAPACITY, torch.device("cpu"))
        self.rows: list[list[float] | None] = [None] * N_SLOTS
        self.next = 1.0

    def fresh(self) -> float:
        self.next += 1
        return self.next

    def enter(self, slots: list[int], lengths: list[int]) -> None:
        prefixes = [[self.fresh() for _ in range(length)] for length in lengths]
        filled = [prefix for prefix in prefixes if prefix]
        numbers = [filled.index(prefix) if prefix else 0 for prefix in prefixes]
        self.cache.enter(slots, as_prefix(filled) if filled else None, numbers, lengths)
        for slot, prefix in zip(slots, prefixes, strict=True):
            self.rows[slot] = list(prefix)

    def leave(self, slots: list[int]) -> None:
        self.cache.leave(slots)
        for slot in slots:
            self.rows[slot] = None

    def keep(self, slots: list[int]) -> None:
        self.cache.keep(slots)
        self.rows = [self.rows[slot] for slot in slots]

    def step(self) -> None:
        mask = self.cache.before_step().bool()
        newest = torch.tensor([0.0 if row is None else self.fresh() for row in self.rows])
        positions = [self.cache.column - start for start in self.cache.starts.tolist()]
        for layer, (keys, values) in zip(self.cache.layers, write(self.cache, newest), strict=True):
            assert layer.get_mask_sizes(1) == (keys.shape[2], 0)
            assert keys.shape[2] == mask.shape[1]
            assert torch.equal(keys, -values)
            for slot, row in enumerate(self.rows):
                if row is not None:
                    assert keys[slot, 0, mask[slot], 0].tolist() == [*row, newest[slot].item()]
                    assert positions[slot] == len(row)
        for row, number in zip(self.rows, newest.tolist(), strict=True):
            if row is not None:
                row.append(number)
        self.cache.after_step()
        self.leave([slot for slot, row in enumerate(self.rows) if row is not None and len(row) >= LONGEST])


@settings(max_examples=50)
@given(st.data())
def test_every_row_sees_exactly_its_own_past(data: st.DataObject) -> None:
    histories = Histories()
    for _ in range(data.draw(st.integers(1, 25), label="steps")):
        free = [slot for slot, row in enumerate(histories.rows) if row is None]
        some = data.draw(st.lists(st.sampled_from(free), unique=True), label="enter") if free else []
        if not some and len(free) == len(histories.rows):
            some = free[:1]
        if some:
            lengths = data.draw(st.lists(st.integers(0, LONGEST - 1), min_size=len(some), max_size=len(some)))
            histories.enter(some, lengths)
        histories.step()
        busy = [slot for slot, row in enumerate(histories.rows) if row is not None]
        histories.leave(data.draw(st.lists(st.sampled_from(busy), unique=True), label="leave") if busy else [])
        busy = [slot for slot, row in enumerate(histories.rows) if row is not None]
        if busy and data.draw(st.booleans(), label="keep"):
            histories.keep(busy)


def test_a_longer_prefix_that_enters_late_moves_the_others_right() -> None:
    histories = Histories()
    histories.enter([0], [2])
    histories.step()
    before = histories.cache.column
    histories.enter([2], [7])
    assert histories.cache.column == 7 > before
    assert histories.cache.starts.tolist()[0] == 4
    histories.step()


def test_at_the_end_of_the_columns_rows_move_left_and_the_oldest_begins_at_zero() -> None:
    histories = Histories()
    histories.enter([0], [7])
    histories.step()
    histories.enter([1], [1])
    for _ in range(4):
        histories.step()
    assert histories.cache.column == CAPACITY
    histories.step()
    assert histories.cache.column < CAPACITY
    assert histories.cache.starts[1] == 0


def test_attention_sees_no_column_before_the_oldest_row() -> None:
    histories = Histories()
    histories.enter([0, 1], [6, 1])
    histories.step()
    histories.leave([0])
    mask = histories.cache.before_step().bool()
    assert mask.shape == (N_SLOTS, 3), "two columns of the row that is left, and the newest"
    assert mask.tolist() == [[False, False, True], [True, True, True], [False, False, True]]
