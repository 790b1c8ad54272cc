"""The question of every sweep: does a text fall into a loop after its prompt?"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mechrep.errors import InputError
from mechrep.text.cycles import detect_cycle, exact_loop

EOS, BOS, PAD = 1, 0, 2
tokens = st.lists(st.integers(3, 6), max_size=30)


@st.composite
def texts(draw: st.DrawFn) -> tuple[list[int], int]:
    """Pieces that repeat and pieces that do not, and where the prompt ends."""
    ids: list[int] = []
    for _ in range(draw(st.integers(1, 4))):
        piece = draw(st.lists(st.integers(0, 6), min_size=1, max_size=12))
        ids += piece * draw(st.sampled_from([1, 1, 2, 3, 5, 13]))
    return ids, draw(st.integers(0, len(ids)))


def tail_copies(ids: Sequence[int], copies: int, span: int, special: Sequence[int]) -> bool:
    """By trying every period: do the ids end in so many copies, over so many tokens, not only of special ids?"""
    for period in range(1, len(ids) // copies + 1):
        length = period
        while length < len(ids) and ids[-1 - length] == ids[-1 - length + period]:
            length += 1
        if length >= max(copies * period, span) and not set(ids[-length:]) <= set(special):
            return True
    return False


def obvious(ids: Sequence[int], prompt_length: int, eos_id: int | None, special: Sequence[int]) -> bool:
    """The definition, tried at every length of the text."""
    continuation = list(ids[prompt_length:])
    if eos_id in continuation:
        continuation = continuation[: continuation.index(eos_id)]
    if not continuation:
        return False
    for count in range(1, len(continuation) + 1):
        if tail_copies([*ids[:prompt_length], *continuation[:count]], 4, 32, special):
            return True
    return tail_copies([*ids[:prompt_length], *continuation], 3, 8, special)


@given(texts())
@example(([*[3, 4, 5] * 20, 6, 3, 6, 4], 60))
def test_the_answer_is_the_one_found_by_trying_everything(text: tuple[list[int], int]) -> None:
    ids, prompt_length = text
    for eos_id, special in ((None, ()), (EOS, (BOS, EOS, PAD))):
        cycle = exact_loop(ids, prompt_length, eos_id=eos_id, special_ids=special)
        assert (cycle is not None) == obvious(ids, prompt_length, eos_id, special)
        if cycle is not None:
            assert cycle.end > prompt_length and cycle.copies >= 3
            assert all(ids[i] == ids[i + cycle.period] for i in range(cycle.start, cycle.end - cycle.period))
            assert not set(cycle.tokens) <= set(special)


@given(texts(), tokens, st.sampled_from(["mechrep", "hiraoka2025"]))
def test_a_loop_that_is_certain_stays_one_however_the_text_goes_on(
    text: tuple[list[int], int], more: list[int], preset: str
) -> None:
    ids, prompt_length = text
    certain = [*ids, *[7, 8, 9] * 12]  # 36 tokens: enough for both detectors, whatever stands before them
    before = exact_loop(ids, prompt_length, preset) is not None
    assert exact_loop(certain, prompt_length, preset) is not None
    assert exact_loop([*certain, *more], prompt_length, preset) is not None
    if preset == "hiraoka2025" and before:
        assert exact_loop([*ids, *more], prompt_length, preset) is not None


@given(texts(), tokens)
def test_what_comes_after_the_end_of_the_text_does_not_count(text: tuple[list[int], int], more: list[int]) -> None:
    ids, prompt_length = text
    ended = exact_loop([*ids, EOS, *more], prompt_length, eos_id=EOS)
    assert ended == exact_loop(ids, prompt_length, eos_id=EOS)


def test_three_copies_at_the_end_are_enough_and_elsewhere_are_not() -> None:
    text = [9, 3, 4, 5, 3, 4, 5, 3, 4, 5]
    cycle = exact_loop(text, 4)
    assert cycle is not None and (cycle.start, cycle.period, cycle.onset) == (1, 3, 4)
    assert exact_loop(text[:-1], 4) is None
    assert exact_loop([*text, 6], 4) is None


@pytest.mark.parametrize("after", [[], [6], [6, 5, 6, 3, 4]])
def test_a_loop_inside_the_prompt_only_is_no_loop(after: list[int]) -> None:
    assert exact_loop([*[3, 4, 5] * 20, *after], 60) is None
    assert exact_loop([*[3, 4, 5] * 20, 3], 60) is not None  # it goes on
    assert exact_loop([*[3, 4, 5] * 20, EOS, 3], 60, eos_id=EOS) is None  # the text ended before it could


def test_special_ids_are_no_loop_on_their_own_and_do_not_hide_one() -> None:
    special = (BOS, EOS, PAD)
    assert exact_loop([5, *[PAD] * 50], 1, special_ids=special) is None
    assert exact_loop([5, *[PAD] * 50], 1) is not None
    assert exact_loop([5, *[PAD, BOS] * 50], 1, special_ids=special) is None
    cycle = exact_loop([5, *[PAD] * 50, *[6, PAD] * 20], 1, special_ids=special)
    assert cycle is not None and cycle.period == 2


def test_a_bos_that_is_also_eos_ends_nothing_at_the_start() -> None:
    assert exact_loop([EOS, 3, 4, *[5, 6] * 20], 3, eos_id=EOS) is not None


def test_the_published_detectors_answer_themselves() -> None:
    template = [*range(10, 22)] * 3
    assert exact_loop(template, 12, "hiraoka2025") == exact_loop([*template, 5, 6], 12, "hiraoka2025")
    assert exact_loop([3, 4, 3, 4], 0, "mahaut2025") is not None  # two copies are enough for it
    assert exact_loop([3, 4, 3, 4], 0) is None
    with pytest.raises(InputError, match="preset='published'"):
        exact_loop([3, 4], 1, "published")


def test_any_of_several_eos_ids_ends_the_text() -> None:
    loop = [5, 1, 2, 3] + [1, 2, 3] * 3
    for eos in (98, 99):
        text = [*loop, eos, 40, 41, 42]
        found = exact_loop(text, 1, eos_id=[98, 99])
        assert found is not None and (found.period, found.end) == (3, len(loop))
        assert detect_cycle(text, prompt_length=1, eos_id={98, 99}) == detect_cycle(text, prompt_length=1, eos_id=eos)
        assert detect_cycle(text, prompt_length=1) is None
