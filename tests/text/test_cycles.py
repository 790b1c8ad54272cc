"""Detectors for finished texts, against closed forms, plain second implementations and their stated properties."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechrep.errors import InputError
from mechrep.text import Cycle, detect_cycle, ngram_triple, repeated_phrase, smallest_tail_block, tail_cycle
from mechrep.text.cycles import z_array
from mechrep.text.watch import token_ids

PRESETS = ["mechrep", "hiraoka2025", "mahaut2025", "holtzman2020"]
small_texts = st.lists(st.integers(0, 2), max_size=40)


@st.composite
def loops(draw: st.DrawFn) -> tuple[list[int], int, int, int]:
    """Prefix of ids outside the alphabet, then a primitive cycle: the text, its period, start and span."""
    block = draw(st.lists(st.integers(0, 2), min_size=1, max_size=9).filter(is_primitive))
    prefix = draw(st.lists(st.integers(50, 60), max_size=6))
    span = draw(st.integers(max(8, 2 * len(block)), 60))
    return prefix + tiled(block, span), len(block), len(prefix), span


def tiled(block: list[int], span: int) -> list[int]:
    return (block * (span // len(block) + 1))[:span]


def is_primitive(block: list[int]) -> bool:
    n = len(block)
    return not any(n % d == 0 and block[:d] * (n // d) == block for d in range(1, n))


def periodic_suffix(x: list[int], p: int) -> int:
    """Length of the longest p-periodic suffix, one comparison at a time."""
    span = p
    while span < len(x) and x[-1 - span] == x[-1 - span + p]:
        span += 1
    return span


def plain_tail_cycle(x: list[int], min_period: int, max_period: int, min_copies: int, min_span: int, select: str):
    spans = {p: periodic_suffix(x, p) for p in range(min_period, min(max_period, len(x) - 1) + 1)}
    hits = [p for p, span in spans.items() if span >= min_copies * p and span >= min_span]
    if not hits:
        return None
    best = hits[0] if select == "smallest" else max(hits, key=lambda p: (spans[p], -p))
    return best, len(x) - spans[best], len(x)


def plain_tail_block(x: list[int], pads: frozenset[int] = frozenset()):
    """Mahaut and Franzon's search as their code walks it: block, count, start."""
    for size in range(2, min(500, len(x) // 2) + 1):
        block, count, start = x[-size:], 0, len(x)
        if set(block) <= pads:
            continue
        while start >= size and x[start - size : start] == block:
            start, count = start - size, count + 1
        if count > 1:
            return tuple(block), count, start
    return None


def numbers(cycle: Cycle | None) -> tuple[int, int, int] | None:
    return None if cycle is None else (cycle.period, cycle.start, cycle.end)


# --- closed forms and second implementations -------------------------------------------------------------------


@pytest.mark.parametrize("p", [1, 2, 5, 16, 17])
@pytest.mark.parametrize("length", [40, 50, 64])
def test_closed_forms_of_a_periodic_text(p: int, length: int) -> None:
    text = tiled(list(range(p)), length)
    assert numbers(tail_cycle(text)) == (p, 0, length)
    triple = ngram_triple(text)
    assert (triple is not None) == (length >= 2 * p + 10)
    if triple is not None:
        assert (triple.start, triple.onset, triple.end) == (0, p, 2 * p + 10)
    size = max(p, 2)
    block = smallest_tail_block(text)
    assert block is not None
    assert (block.period, block.copies, block.start) == (size, length // size, length % size)


@settings(deadline=None)
@given(small_texts)
def test_z_array_is_the_naive_one(x: list[int]) -> None:
    naive = [next((k for k in range(len(x) - i) if x[k] != x[i + k]), len(x) - i) for i in range(len(x))]
    assert z_array(x) == naive


@settings(deadline=None, max_examples=300)
@given(
    small_texts,
    st.integers(1, 3),
    st.integers(1, 20),
    st.integers(2, 4),
    st.integers(0, 12),
    st.sampled_from(["longest_span", "smallest"]),
)
def test_tail_cycle_is_the_naive_one(
    x: list[int], min_period: int, max_period: int, min_copies: int, min_span: int, select: str
) -> None:
    options = {
        "min_period": min_period,
        "max_period": max_period,
        "min_copies": min_copies,
        "min_span": min_span,
        "select": select,
    }
    assert numbers(tail_cycle(x, **options)) == plain_tail_cycle(x, **options)


def test_smallest_tail_block_is_the_released_search() -> None:
    rng = random.Random(0)
    for _ in range(3000):
        block = [rng.randrange(3) for _ in range(rng.randint(1, 6))]
        text = [rng.randrange(4) for _ in range(rng.randint(0, 5))] + tiled(block, rng.randint(0, 24))
        pads = frozenset([2] if rng.random() < 0.5 else [])
        found = smallest_tail_block(text, special_ids=pads)
        assert (found and (found.tokens, found.copies, found.start)) == plain_tail_block(text, pads)


def test_smallest_tail_block_rotates_the_smallest_tail_cycle() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        block = [rng.randrange(3) for _ in range(rng.randint(1, 6))]
        text = [rng.randrange(4) for _ in range(rng.randint(0, 5))] + tiled(block, rng.randint(0, 24))
        ours = tail_cycle(text, select="smallest", min_period=2, min_span=0, max_period=500)
        theirs = smallest_tail_block(text)
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            assert theirs.period == ours.period
            assert theirs.copies == ours.span // ours.period
            assert theirs.start == ours.start + ours.tail
            assert theirs.tokens == ours.tokens[ours.tail :] + ours.tokens[: ours.tail]
            assert theirs.tail == 0


@settings(deadline=None)
@given(st.lists(st.integers(0, 1), max_size=60))
def test_repeated_phrase_is_a_tail_of_three(x: list[int]) -> None:
    assert numbers(repeated_phrase(x, window=30)) == plain_tail_cycle(x[:30], 2, 60, 3, 0, "smallest")


# --- the listed examples ---------------------------------------------------------------------------------------


def test_listed_examples_of_smallest_tail_block() -> None:
    sevens = smallest_tail_block([7] * 5)
    assert sevens is not None
    assert (sevens.tokens, sevens.period, sevens.copies, sevens.start) == ((7, 7), 2, 2, 1)
    assert smallest_tail_block([9, 7, 7, 7]) is None
    a, b, c = 1, 2, 3
    text = [8, 9, a, b, c, a, b, c, a]
    rotated, ours = smallest_tail_block(text), tail_cycle(text, min_span=0)
    assert rotated is not None
    assert ours is not None
    assert (rotated.tokens, rotated.start, ours.start) == ((b, c, a), 3, 2)
    assert smallest_tail_block([5, 6, 5, 6]) is not None
    assert smallest_tail_block([1, 2, 3] * 4 + [99]) is None
    assert smallest_tail_block([4, 5, 0, 0, 0, 0]) is not None
    assert smallest_tail_block([4, 5, 0, 0, 0, 0], special_ids=[0]) is None


@pytest.mark.parametrize(
    ("text", "by_longest", "by_smallest"),
    [
        ([3, 1, 1] * 5, (3, 0, 15), (1, 13, 15)),
        ([1, 2, 1, 2, 1, 2, 3] * 2 + [1, 2, 1, 2], (7, 0, 18), (2, 14, 18)),
        ([4, 4, 4], (1, 0, 3), (1, 0, 3)),
    ],
)
def test_inner_repeats(text: list[int], by_longest: tuple, by_smallest: tuple) -> None:
    assert numbers(tail_cycle(text, min_span=0)) == by_longest
    assert numbers(tail_cycle(text, min_span=0, select="smallest")) == by_smallest


def test_a_chance_tie_moves_the_start_one_step_left() -> None:
    assert numbers(tail_cycle([9, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3])) == (3, 1, 11)


def test_onset_is_the_second_copy_and_tail_the_unfinished_one() -> None:
    cycle = tail_cycle([9, *tiled([1, 2, 3, 4], 11)])
    assert cycle is not None
    assert (cycle.start, cycle.onset, cycle.span, cycle.tail, cycle.copies) == (1, 5, 11, 3, 2.75)
    assert cycle.tokens == (1, 2, 3, 4)


# --- properties ------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(loops())
def test_a_primitive_loop_is_recovered(loop: tuple[list[int], int, int, int]) -> None:
    text, period, start, span = loop
    assert numbers(tail_cycle(text)) == (period, start, start + span)


@settings(deadline=None)
@given(loops(), st.integers(1, 30))
def test_start_and_period_stay_when_the_loop_goes_on_or_is_cut(
    loop: tuple[list[int], int, int, int], more: int
) -> None:
    text, period, start, span = loop
    longer = text + [text[start + (span + i) % period] for i in range(more)]
    assert numbers(tail_cycle(longer)) == (period, start, len(longer))
    shorter = text[: start + max(span - more, 2 * period, 8)]
    assert numbers(tail_cycle(shorter)) == (period, start, len(shorter))


@settings(deadline=None, max_examples=300)
@given(small_texts, st.sampled_from(["longest_span", "smallest"]))
def test_what_a_cycle_promises(x: list[int], select: str) -> None:
    cycle = tail_cycle(x, min_span=0, select=select)
    if cycle is None:
        return
    assert tiled(list(cycle.tokens), cycle.span) == x[cycle.start : cycle.end]
    assert cycle.end == len(x)
    assert 2 * cycle.period <= cycle.span
    assert cycle.start == 0 or x[cycle.start - 1] != x[cycle.start - 1 + cycle.period]
    assert is_primitive(list(cycle.tokens))
    assert cycle.copies == cycle.span / cycle.period


@settings(deadline=None)
@given(st.lists(st.integers(0, 2), max_size=50), st.permutations(range(3)), st.sampled_from(PRESETS))
def test_renaming_the_vocabulary_changes_nothing(x: list[int], names: list[int], preset: str) -> None:
    there = detect_cycle([names[token] for token in x], preset)
    assert numbers(detect_cycle(x, preset)) == numbers(there)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("text", [[], [5], [5, 6], list(range(100))])
def test_texts_without_repetition(preset: str, text: list[int]) -> None:
    assert detect_cycle(text, preset) is None


# --- presets: regions, EOS, special ids ------------------------------------------------------------------------


@pytest.mark.parametrize("bos", [[], [98]])
@pytest.mark.parametrize("prompt", [[], [60, 61, 62]])
@pytest.mark.parametrize("tail", [[], [99], [99, 99, 99, 99], [99, *[97] * 12]])
def test_the_same_loop_whatever_stands_around_it(bos: list[int], prompt: list[int], tail: list[int]) -> None:
    before = len(bos) + len(prompt)
    text = bos + prompt + [50] + tiled([1, 2, 3], 13) + tail
    cycle = detect_cycle(text, prompt_length=before, eos_id=99, special_ids=[97, 98, 99])
    assert numbers(cycle) == (3, before + 1, before + 14)


def test_the_continuation_is_looked_at_and_the_prompt_is_not() -> None:
    text = tiled([1, 2, 3, 4], 30)
    assert numbers(detect_cycle(text)) == (4, 0, 30)
    assert numbers(detect_cycle(text, prompt_length=10)) == (4, 10, 30)
    assert numbers(detect_cycle(text, "mahaut2025", prompt_length=11)) == (4, 14, 30)
    assert numbers(detect_cycle(text, "holtzman2020", prompt_length=10)) == (4, 10, 30)
    assert numbers(detect_cycle(text, "hiraoka2025", prompt_length=10)) == (4, 0, 18)
    assert detect_cycle(text, prompt_length=30) is None


def test_an_eos_in_the_prompt_ends_nothing_and_only_the_default_stops_at_eos() -> None:
    text = [99, 50, *tiled([1, 2, 3], 15), 99]
    assert numbers(detect_cycle(text, prompt_length=1, eos_id=99)) == (3, 2, 17)
    assert detect_cycle(text, prompt_length=0, eos_id=99) is None
    assert detect_cycle(text, "mahaut2025", prompt_length=1, eos_id=99) is None
    assert detect_cycle(text, "holtzman2020", prompt_length=1, eos_id=99) is None


def test_special_ids_are_no_cycle_on_their_own_but_may_be_part_of_one() -> None:
    pads = [5, *[0] * 20]
    assert numbers(detect_cycle(pads)) == (1, 1, 21)
    assert detect_cycle(pads, special_ids=[0]) is None
    with_pads = tiled([7, 0, 0, 0], 16)
    assert numbers(detect_cycle(with_pads, special_ids=[0])) == (4, 0, 16)
    assert numbers(detect_cycle(with_pads, "mahaut2025", special_ids=[0])) == (4, 0, 16)


def test_holtzman_ends_after_200_tokens_of_the_continuation() -> None:
    text = [50] * 10 + list(range(100, 190)) + tiled([1, 2], 300)
    cycle = detect_cycle(text, "holtzman2020", prompt_length=10)
    assert numbers(cycle) == (2, 100, 210)


def test_the_detector_is_named_and_does_not_count_in_comparisons() -> None:
    text = tiled([1, 2, 3], 20)
    cycle = detect_cycle(text)
    assert cycle is not None
    assert cycle.detector == "mechrep"
    assert cycle == tail_cycle(text)
    other = detect_cycle(text, min_span=12)
    assert other is not None
    assert other.detector == "tail_cycle"


@pytest.mark.parametrize("make", [list, tuple, np.array, torch.tensor, lambda x: np.array(x, dtype=np.uint8)])
def test_any_kind_of_sequence(make) -> None:
    assert numbers(detect_cycle(make([9, *tiled([1, 2, 3], 12)]))) == (3, 1, 13)


# --- bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "part"),
    [
        ([1, 2.5], "2.5 at position 1"),
        ([True, False], "True at position 0"),
        (["a"], "'a' at position 0"),
        ("123", "str"),
        (5, "int"),
        ([[1, 2], [3, 4]], "2 dimensions"),
        ([[1, 2], [3]], "cannot be read"),
        (np.array([0.5]), "0.5 at position 0"),
        (torch.zeros(2, 2, dtype=torch.int64), "2 dimensions"),
        ([1, 2**70], "object"),
    ],
)
def test_what_is_no_sequence_of_ids_is_refused(tokens: object, part: str) -> None:
    with pytest.raises(InputError, match="whole numbers") as caught:
        token_ids(tokens)
    assert part in caught.value.given


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="mechrep, hiraoka2025, mahaut2025, holtzman2020"):
        detect_cycle([1, 2], "hiraoka")


@pytest.mark.parametrize("prompt_length", [-1, 4])
def test_a_prompt_longer_than_the_text_is_refused(prompt_length: int) -> None:
    with pytest.raises(InputError, match="prompt_length"):
        detect_cycle([1, 2, 3], prompt_length=prompt_length)


@pytest.mark.parametrize(("preset", "option"), [("mechrep", "min_spam"), ("hiraoka2025", "n")])
def test_options_that_a_preset_does_not_have_are_refused(preset: str, option: str) -> None:
    with pytest.raises(InputError, match=option):
        detect_cycle([1, 2, 3], preset, **{option: 3})


@pytest.mark.parametrize("options", [{"min_period": 0}, {"min_copies": 1}, {"select": "best"}])
def test_options_that_make_no_sense_are_refused(options: dict) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        tail_cycle([1, 2, 3], **options)


def test_a_detector_of_ones_own_serves_everywhere() -> None:
    """Added by name, it marks texts, ends texts that are being written, and decides what an ablation leaves."""
    import mechrep
    from mechrep.generation.loops import PRESETS, LoopPreset, collect_loops
    from mechrep.text.cycles import add_detector, exact_loop, tail_cycle

    def long_ones(ids: list[int]) -> Cycle | None:
        found = tail_cycle(ids, min_period=3, min_copies=4)
        return found and Cycle.of(ids, start=found.start, period=found.period, end=found.end, detector="long ones")

    add_detector("long ones", long_ones)
    PRESETS["long ones"] = LoopPreset(detector="long ones", min_copies=4.0, greedy=120)
    try:
        model = mechrep.load_model("mechrep-tiny")
        text = [0, *range(30, 50), *[9, 8, 7, 6] * 5]
        assert exact_loop(text, 21, "long ones") == detect_cycle(text, "long ones", prompt_length=21)
        assert exact_loop(text[:-8], 21, "long ones") is None

        prompts = mechrep.Corpus.from_texts(["It was a cold morning, and"], model=model)
        whole = mechrep.generate(model, prompts, max_new_tokens=120)
        length = int(whole.frame["prompt_length"][0])
        ended = mechrep.generate(model, prompts, max_new_tokens=120, stop_when=["eos", "long ones"])
        row = whole.row(0)[: len(ended.row(0))]
        assert ended.row(0) == row and ended.frame["stop_reason"][0] == "stopped"
        assert detect_cycle(row, "long ones", prompt_length=length)
        assert detect_cycle(row[:-9], "long ones", prompt_length=length) is None

        loops = collect_loops(model, 2, preset="long ones").where(condition="looping")
        assert all(loops.frame["copies"] >= 4) and all(loops.frame["period"] >= 3)
        again = loops.with_cycles("long ones", eos_id=model.eos_ids)
        assert again.frame["onset"].tolist() == loops.frame["onset"].tolist()
    finally:
        PRESETS.pop("long ones")


def test_an_own_detector_cannot_take_the_name_of_a_published_one() -> None:
    from mechrep.text.cycles import add_detector

    with pytest.raises(InputError, match="mahaut2025"):
        add_detector("mahaut2025", lambda _ids: None)
