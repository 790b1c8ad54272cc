"""Metrics of repetition against closed forms and plain counts."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechrep.errors import InputError
from mechrep.text import detect_cycle, loop_share, rep_n, seq_rep_n, smallest_tail_block, tail_cycle


@pytest.mark.parametrize("p", [1, 2, 5, 16, 17])
@pytest.mark.parametrize("length", [40, 50, 64])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_closed_form_of_a_periodic_text(p: int, length: int, n: int) -> None:
    text = [i % p for i in range(length)]
    total = length - n + 1
    expected = 1 - min(p, total) / total
    assert seq_rep_n(text, n) == pytest.approx(expected)
    assert rep_n([text], n) == pytest.approx(100 * expected)
    assert rep_n([" ".join(map(str, text))], n) == pytest.approx(100 * expected)
    assert loop_share(tail_cycle(text), length) == 1


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=5), st.integers(1, 4))
def test_rep_n_pools_repeats_over_texts(texts: list[list[int]], n: int) -> None:
    counts = [Counter(zip(*(text[i:] for i in range(n)), strict=False)) for text in texts]
    total = sum(sum(count.values()) for count in counts)
    repeats = sum(times - 1 for count in counts for times in count.values())
    if total:
        assert rep_n(texts, n) == pytest.approx(100 * repeats / total)
    else:
        assert math.isnan(rep_n(texts, n))


def test_rep_n_weighs_long_texts_more_and_the_mean_of_seq_rep_n_does_not() -> None:
    loop, plain = [1] * 21, [1, 2, 3]
    assert rep_n([loop, plain], 2) == pytest.approx(100 * 19 / 22)
    assert np.mean([seq_rep_n(loop, 2), seq_rep_n(plain, 2)]) == pytest.approx(0.95 / 2)


def test_texts_shorter_than_n() -> None:
    assert math.isnan(seq_rep_n([1, 2, 3], 4))
    assert math.isnan(seq_rep_n([], 1))
    assert math.isnan(rep_n(["a b", ""], 4))
    assert math.isnan(rep_n([], 4))
    assert rep_n(["a", "b b b"], 2) == 50


def test_arrays_are_texts_too() -> None:
    assert rep_n([np.array([1, 1, 1])], 2) == 50


def test_loop_share_counts_the_cycle_in_its_region() -> None:
    text = [9] * 5 + [50, 51] + [1, 2, 3] * 4
    assert loop_share(detect_cycle(text, prompt_length=5), len(text) - 5) == pytest.approx(12 / 14)
    assert loop_share(None, 10) == 0
    assert math.isnan(loop_share(None, 0))
    rotated = smallest_tail_block([1, 2, 3, 1, 2, 3, 1])
    assert loop_share(rotated, 7) == pytest.approx(2 * 3 / 7)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="n >= 1"):
        rep_n([[1, 2]], 0)
    with pytest.raises(InputError, match="n >= 1"):
        seq_rep_n([1, 2], 0)
    with pytest.raises(InputError, match=r"pass \[text\]"):
        rep_n("a b a b", 2)
    with pytest.raises(InputError, match="region"):
        loop_share(tail_cycle([1] * 9), 8)
