"""Loops with a counter, against a plain second implementation; and ordinary texts with numbers, which are none."""

from __future__ import annotations

import re
import string
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import mechrep
from mechrep.errors import InputError
from mechrep.generation.loops import without_counter
from mechrep.models import tiny
from mechrep.models.model import Model
from mechrep.text import Corpus
from mechrep.text.counters import COPIES, FEWEST, FRAME, MASK, Masked, counting_loop, frame_loop
from mechrep.text.cycles import detect_cycle, exact_loop, repeats_after_prompt

TEMPLATE = "The man went to the door and said no, {}. "


@pytest.fixture(scope="module")
def model() -> Model:
    return mechrep.load_model("mechrep-tiny")


def letters(text: str) -> list[int]:
    """One token per byte."""
    return list(text.encode())


def read(ids: list[int]) -> str:
    return bytes(ids).decode(errors="replace")


def pairs(text: str) -> tuple[list[int], Callable[[list[int]], str]]:
    """A tokenizer that is awkward on purpose: two characters per token, so that copies are cut anywhere."""
    pieces = [text[i : i + 2] for i in range(0, len(text), 2)]
    known = sorted(set(pieces))
    return [known.index(piece) for piece in pieces], lambda ids: "".join(known[i] for i in ids)


def many_letters(block: str) -> bool:
    return sum(c.isalpha() for c in block) >= 8


def obvious(text: str, prompt: int) -> bool:
    """By trying every period at every length: digits masked, copies with letters in them."""
    for end in range(prompt + 1, len(text) + 1):
        if end < len(text) and text[end - 1 : end + 1].isdecimal():
            continue  # inside a number
        masked = re.sub(r"\d+", MASK, text[:end])
        copies, least = (3, 16) if end == len(text) else (4, 64)
        for period in range(1, len(masked) // copies + 1):
            span = period
            while span < len(masked) and masked[-1 - span] == masked[-1 - span + period]:
                span += 1
            block = masked[len(masked) - span :][:period]
            if span >= max(copies * period, least) and MASK in block and many_letters(block):
                return True
    return False


words = st.one_of(st.text("abx -\n_,0179", min_size=1, max_size=7), st.sampled_from(["the sea ", "a moonlit "]))


@st.composite
def texts(draw: st.DrawFn) -> tuple[str, int]:
    """Templates with numbers that go on, and pieces that do not."""
    text = ""
    for _ in range(draw(st.integers(1, 3))):
        before, after = draw(words), draw(words)
        first, step = draw(st.integers(0, 11)), draw(st.integers(0, 3))
        copies = draw(st.sampled_from([1, 2, 3, 4, 12]))
        text += "".join(f"{before}{first + step * i}{after}" for i in range(copies))
    return text, draw(st.integers(0, len(text) // 2))


@settings(deadline=None, max_examples=150)
@given(texts())
@example(("".join(f"x{i} " for i in range(12)), 0))
@example(("".join(f"a{i}b, " for i in range(95, 101)) + "xx", 0))
@example(("".join(f"ab {i}, " for i in range(30)) + "xx", 0))
def test_the_answer_is_the_one_found_by_trying_everything(text: tuple[str, int]) -> None:
    whole, prompt = text
    loop = counting_loop(letters(whole), read, prompt)
    with_letters = loop is not None and many_letters(Masked.of(read(list(loop.tokens))).text)
    assert loop is not None or not obvious(whole, prompt)
    assert obvious(whole, prompt) or not with_letters
    if loop is not None:
        assert loop.end > prompt and loop.copies >= 3
    ids, decode = pairs(whole)
    again = counting_loop(ids, decode, 0)
    assert (again is None) == (counting_loop(letters(whole), read, 0) is None)


@pytest.mark.parametrize(
    "text",
    [
        "".join(TEMPLATE.format(n) for n in range(5, 15)),
        "".join(f"def test_{n}():\n    assert run({n}) == {n * 7}\n\n" for n in range(8, 12)),
        "".join(f"{n}. The sea\n" for n in range(1, 5)),
        "".join(f"{n}.\n" for n in range(1, 9)),
        ", ".join(str(n) for n in range(95, 105)),
        "".join(f"{letter}) the sea\n" for letter in "abcd"),
        "".join(f"({numeral}) the sea\n" for numeral in ("i", "ii", "iii", "iv")),
        "".join(f"{numeral}. THE SEA\n" for numeral in ("VIII", "IX", "X", "XI")),
        "".join(f"On {day} he slept. " for day in ("Monday", "Tuesday", "Wednesday", "Thursday")),
        "".join(f"{month} was cold. " for month in ("January", "February", "March")),
        "".join(f"2021-01-{day:02} rain\n" for day in range(8, 12)),
        "".join(f"{month} was cold. " for month in ("january", "february", "march", "april")),
        "".join(f"{number}. THE SEA\n" for number in ("ONE", "TWO", "THREE", "FOUR")),
        "".join(f"The {number} man slept. " for number in ("eleventh", "twelfth", "thirteenth", "fourteenth")),
        "".join(f"{number} the sea\n" for number in "①②③④"),
        "".join(f"第{number}章 海与王国\n" for number in ("八", "九", "十", "十一")),
        " + ".join(f"x{number}" for number in "¹²³⁴⁵⁶⁷"),
        "".join(f"2021-01-{day:02}\n" for day in range(8, 14)),
        "".join(f"The {name} man sat. " for name in ("first", "second", "third")),
        "".join(f"[{n}] see page {n * 13 % 50}; " for n in range(9, 14)),
        "".join(f"९{n} दिन. " for n in "१२३४"),
    ],
)
def test_what_counts_is_found_whatever_its_tokens(text: str, model: Model) -> None:
    start = "It was late. "
    for ids, decode in ((letters(start + text), read), pairs(start + text), (model.encode(start + text), model.decode)):
        loop = repeats_after_prompt(ids, 1, decode=decode)
        assert loop is not None and loop.detector == "counting"
        assert exact_loop(ids, 1) is None, "ids alone do not show it"
        assert detect_cycle(ids, "counting", decode=decode) == loop
        assert loop.start < loop.onset < loop.end == len(ids)
        assert abs(len(decode(ids[: loop.start])) - len(start)) <= 2 * max(len(decode([i])) for i in ids)


@pytest.mark.parametrize(
    "text",
    [
        "In 1815 he was 46 years old; in 1821 he died at 51, after 6 years on the island.",
        "12, 7, 93, 4, 51, 8, 66, 23, 5, 91, 17",  # a table
        "3 1 4 1 5 9 2 6 5 3 5 8 9 7 9 3 2 3 8 4 6",
        "0.31 4.7 12.5\n9.1 0.02 3.8\n44.0 1.7 2.9\n8.8 5.1 7.3\n",
        "1. The king\n2. A ship at sea\n3. What the old man said\n4. Morning\n",  # a list of different things
        "Call 555-1234 or 555-9876, or come to 12 Main Street, room 7.",
        "w12 w5 w33 w2 w19 w51 w7 w40",
        "x1 = 5, x7 = 3, x2 = 90",
        "a) go home b) stay here c) do nothing at all",
        "From Monday to Friday, and on the first Sunday in May, it rains.",
        "x = 1\ny = 2\nz = x + y\nprint(z * 10)\n",
        "No number at all.",
        "",
    ],
)
def test_ordinary_texts_with_numbers_are_no_loops(text: str) -> None:
    assert counting_loop(letters(text), read) is None


def test_ordinary_english_stays_loop_free(model: Model) -> None:
    ids = model.encode(tiny.held_out_text(), prepend_bos=False)
    windows = [ids[i : i + 200] for i in range(0, 200 * 60, 200)]
    exact = [repeats_after_prompt(row, 1) is None for row in windows]
    found = [repeats_after_prompt(row, 1, decode=model.decode) is None for row in windows]
    assert found == exact


def test_a_loop_that_the_model_left_again_counts_where_it_was_long() -> None:
    long, short = ("".join(TEMPLATE.format(n) for n in range(5, 5 + copies)) for copies in (5, 3))
    assert counting_loop(letters(long + "The end."), read) is not None
    assert counting_loop(letters(short + "And that is the end of it, she said."), read) is None
    assert counting_loop(letters(short), read) is not None


def test_a_loop_that_ends_with_the_prompt_or_comes_after_eos_is_none() -> None:
    text = letters("".join(TEMPLATE.format(n) for n in range(5, 15)))
    assert counting_loop(text, read, len(text)) is None
    assert counting_loop([*text, *letters("And then she laughed.")], read, len(text)) is None
    assert counting_loop([*text, *letters("The man went")], read, len(text)) is not None
    assert counting_loop([*letters("No."), 255, *text], read, 3, eos_id=255) is None
    assert counting_loop([*letters("No."), 255, *text], read, 4, eos_id=255) is not None


def test_special_ids_are_no_text(model: Model) -> None:
    names = {200 + i: f"<|reserved_{i}|>" for i in range(5)}

    def decode(ids: list[int]) -> str:
        return "".join(names.get(i, chr(i)) for i in ids)

    reserved = [65, *[200, 201, 202, 203, 204] * 3]
    assert counting_loop(reserved, decode) is not None
    assert counting_loop(reserved, decode, special_ids=names) is None
    text = model.encode("".join(TEMPLATE.format(n) for n in range(5, 15)), prepend_bos=False)
    with_bos = counting_loop([0, *text], model.decode, 1, special_ids=model.special_ids)
    without = counting_loop(text, model.decode, special_ids=model.special_ids)
    assert with_bos is not None and without is not None and with_bos.shifted(-1) == without


def test_ids_alone_do_not_say_what_counts() -> None:
    with pytest.raises(InputError, match="decode"):
        detect_cycle([1, 2, 3], "counting")
    with pytest.raises(InputError, match="options"):
        detect_cycle([1, 2, 3], "counting", decode=read, min_span=4)


def test_a_corpus_is_marked_and_its_controls_are_free_of_counters(model: Model) -> None:
    texts = ["It was late and he went home.", "".join(TEMPLATE.format(n) for n in range(8, 14))]
    corpus = Corpus.from_texts(texts, model=model)
    marked = corpus.with_cycles("counting", eos_id=model.eos_ids, decode=model.decode)
    assert marked.frame["onset"].isna().tolist() == [True, False]
    row, onset = corpus.row(1), int(marked.frame["onset"][1])
    assert model.decode(row[onset:]).strip().startswith("The man") and round(marked.frame["copies"][1]) == 6
    assert without_counter(model, corpus).tolist() == [True, False]
    assert corpus.with_cycles(eos_id=model.eos_ids).frame["onset"].isna().all(), "the default sees neither"


@given(st.text(string.ascii_letters + string.digits + " .,):\n", max_size=80))
def test_masking_keeps_places(text: str) -> None:
    masked = Masked.of(text)
    for place, sign in enumerate(masked.text):
        if sign != MASK:
            assert text[masked.real(place)] == sign and masked.place(masked.real(place)) == place
    assert len(masked.values) == len(masked.places) == masked.text.count(MASK)
    assert masked.place(len(text)) == len(masked.text)


# --- by ids alone ---------------------------------------------------------------------------------------------------


def frames_by_hand(ids: list[int], prompt: int) -> tuple[int, int] | None:
    """Every start and length, counted out."""
    found = []
    for start in range(len(ids)):
        for period in range(FEWEST, (len(ids) - start) // COPIES + 1):
            copies = [ids[start + n * period : start + (n + 1) * period] for n in range(COPIES)]
            frame = sum(a == b == c for a, b, c in zip(*copies, strict=True))
            if frame >= max(FEWEST, FRAME * period) and start + (COPIES - 1) * period >= prompt:
                found.append((start, period, frame))
    if not found:
        return None
    first, period, _ = min(found)
    same = [
        (-2 * frame - (ids[start] == ids[start + length] == ids[start + 2 * length]), start)
        for start, length, frame in found
        if length == period and start < first + period
    ]
    return min(same)[1], period


@given(
    st.lists(st.integers(0, 3), max_size=8),
    st.lists(st.integers(0, 5), min_size=9, max_size=14),
    st.lists(st.integers(0, 9), min_size=2, max_size=5),
    st.integers(0, 40),
)
@settings(max_examples=80, deadline=None)
def test_frames_are_found_as_counted_out(before: list[int], copy: list[int], slots: list[int], prompt: int) -> None:
    ids = [*before, *(token for slot in slots for token in (*copy, 100 + slot)), *before]
    found = frame_loop(ids, min(prompt, len(ids)))
    assert (None if found is None else (found.start, found.period)) == frames_by_hand(ids, min(prompt, len(ids)))
    if len(slots) >= COPIES and prompt == 0:
        assert found is not None


def test_a_counting_loop_is_not_loop_free_by_ids_alone_and_prose_stays_so() -> None:
    model = mechrep.load_model("mechrep-tiny")
    text = "".join(f"The man went to the door and said no, {n}. " for n in range(11, 41))
    tokens = model.encode(text, prepend_bos=True)
    assert exact_loop(tokens, 1) is None
    assert repeats_after_prompt(tokens, 1) is not None
    prose = model.encode(tiny.held_out_text(), prepend_bos=False)
    windows = [prose[i : i + 200] for i in range(0, min(len(prose), 20_000) - 200, 200)]
    taken = [window for window in windows if exact_loop(window, 1) is None and frame_loop(window, 1) is not None]
    assert len(taken) <= 0.02 * len(windows)
