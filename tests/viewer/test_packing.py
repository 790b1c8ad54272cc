"""Packed numbers come back within a quantisation step; what stands on the page is what the model gives."""

from __future__ import annotations

import base64
import time
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechrep.errors import InputError
from mechrep.viewer.packing import colour_range, pack_attention, pack_values, quantised, shares

finite = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e30, max_value=1e30)


def unpacked(packed: dict) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed["data"]), "<f2").astype(np.float64) * packed["scale"]


def share_of(level: int) -> float:
    return (level / 96 if level <= 24 else 0.25 + (level - 24) / 308) ** 2


def rows_of(data: str, length: int) -> list[list[float]]:
    """A second reader of packed attention, query by query."""
    levels = zlib.decompress(base64.b64decode(data))
    rows, at = [], 0
    for query in range(length):
        rows.append([share_of(level) for level in levels[at : at + query + 1]])
        at += query + 1
    assert at == len(levels)
    return rows


@given(st.lists(finite | st.just(float("nan")), min_size=1, max_size=40))
def test_values_come_back_within_half_a_step_of_float16(numbers: list[float]) -> None:
    values = np.array(numbers)
    back = unpacked(pack_values(values))
    assert (np.isnan(back) == np.isnan(values)).all()
    known = ~np.isnan(values)
    largest = np.abs(values[known]).max(initial=0.0)
    step = np.maximum(np.abs(values[known]) * 2.0**-11, largest * 2.0**-25)
    assert (np.abs(back[known] - values[known]) <= step * (1 + 1e-9) + 1e-300).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 24), st.sampled_from([0.1, 1.0, 10.0]))
def test_attention_comes_back_within_half_a_level(seed: int, length: int, sharpness: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, length, length, generator=generator) * sharpness
    pattern = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf).softmax(-1)
    for head, levels in zip(pattern.double().numpy(), quantised(pattern), strict=True):
        for query, row in enumerate(rows_of(pack_attention(levels), length)):
            true = head[query, : query + 1]
            half = np.where(true <= 1 / 16, 0.5 / 96, 0.5 / 308)
            assert (np.abs(np.sqrt(row) - np.sqrt(true)) <= half + 1e-6).all()
            assert (np.abs(row - true) <= 0.004).all()
        back = torch.tensor([share_of(level) for level in levels.tolist()], dtype=torch.float64)
        torch.testing.assert_close(shares(levels), back)


@pytest.mark.parametrize("wrong", [torch.full((2, 2), torch.nan), torch.tensor([[3.0, 0.0], [1.0, 1.0]])])
def test_what_is_no_attention_is_refused(wrong: torch.Tensor) -> None:
    with pytest.raises(InputError, match="attention"):
        quantised(wrong)


def test_infinite_values_are_refused() -> None:
    with pytest.raises(InputError, match="infinite"):
        pack_values(np.array([0.0, np.inf]))


@given(st.lists(finite | st.just(float("nan")), min_size=1, max_size=40))
def test_every_value_but_a_far_first_one_lies_on_the_scale(numbers: list[float]) -> None:
    colours = colour_range(np.array(numbers))
    shown = numbers if colours.beyond is None else numbers[1:]
    assert colours.low < colours.high
    assert all(np.isnan(value) or colours.low <= value <= colours.high for value in shown)
    assert colours.beyond is None or abs(colours.beyond) > 2 * max(abs(v) for v in shown if not np.isnan(v))
    if any(value < 0 for value in shown):
        assert colours.low == -colours.high


def test_twelve_heads_of_512_tokens_are_less_than_a_megabyte() -> None:
    """Of attention as spread out as a model's: noise of one standard deviation in the scores, and a sink."""
    length, generator = 512, torch.Generator().manual_seed(0)
    scores = torch.randn(12, length, length, generator=generator)
    scores[..., 0] += 4
    pattern = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf).softmax(-1)
    start = time.process_time()
    packed = [pack_attention(levels) for levels in quantised(pattern)]
    seconds = time.process_time() - start
    assert sum(len(data) for data in packed) < 1_000_000
    assert seconds < 2  # 0.3 on a machine that does nothing else
