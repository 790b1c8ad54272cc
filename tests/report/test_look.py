"""A text in a terminal: every token there once, repetitions under each other, colours only where they are wanted."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechrep.report.look import ColouredText, colours_wanted
from mechrep.text.watch import Cycle

ESCAPE = re.compile("\x1b\\[[0-9;]*m")
PREFIX = [" it", " was", "\n", " a"]
LOOP = [" the", " old", " 海", " and"]


def looping(repetitions: int = 3, tail: int = 2, values: np.ndarray | None = None) -> ColouredText:
    tokens = [*PREFIX, *LOOP * repetitions, *LOOP[:tail], " end"]
    numbers = np.arange(float(len(tokens))) if values is None else values
    end = len(PREFIX) + len(LOOP) * repetitions + tail
    ids = [*range(100, 104), *[1, 2, 3, 4] * repetitions, *[1, 2, 3, 4][:tail], 9]
    cycle = Cycle.of(ids, start=4, period=4, end=end, detector="by hand")
    return ColouredText(tokens, numbers, "surprisal", "nats", 2, cycle)


def rows_of(drawn: str) -> list[str]:
    return [line.partition("│")[2] for line in drawn.splitlines() if re.match(r"\s*\d+ │", line)]


def test_repetitions_lie_under_each_other() -> None:
    rows = rows_of(looping().drawn(colours=False, width=80))
    assert rows == ["".join(LOOP)] * 3 + ["".join(LOOP[:2])]


@given(st.integers(24, 60), st.integers(1, 5), st.integers(0, 3))
def test_nothing_is_lost_and_no_line_is_too_long(width: int, repetitions: int, tail: int) -> None:
    text = looping(repetitions, tail)
    lines = text.drawn(colours=False, width=width).splitlines()[1:-1]
    letters = re.sub(r"(?m)^\s*\d+ │|┊|│", "", "\n".join(lines))
    joined = "".join(text.tokens).replace("\n", "↵")
    assert sorted(re.sub(r"\s", "", letters)) == sorted(re.sub(r"\s", "", joined))
    assert all(len(line) + line.count("海") <= width for line in lines)


def test_a_long_repetition_stands_in_several_blocks() -> None:
    rows = rows_of(looping().drawn(colours=False, width=16))
    assert len(rows) > 4 and all(any(token in row for token in LOOP) for row in rows)


def test_colours_follow_the_numbers_and_hide_nothing() -> None:
    values = np.linspace(-1, 1, 19)
    plain, coloured = (looping(values=values).drawn(colours=on, width=80) for on in (False, True))
    assert not ESCAPE.search(plain)
    kept = [line for line in ESCAPE.sub("", coloured).splitlines() if not re.match(r"surprisal −", line)]
    assert kept == plain.splitlines()
    steps = re.findall("48;5;(\\d+)m", coloured)
    assert {"202", "33"} <= set(steps), "the largest on either side of zero has the strongest colour"


def test_numbers_are_said_where_no_colour_is() -> None:
    said = looping().drawn(colours=False, width=80).splitlines()[-1]
    assert "surprisal (nats)" in said and "' end' 18 (token 18)" in said
    empty = ColouredText(["a"], np.array([np.nan]), "x").drawn(colours=True, width=40)
    assert "none" in empty and "no loop" in empty
    endless = ColouredText(["a", "b"], np.array([np.inf, 1.0]), "x").drawn(colours=True, width=40)
    assert "'a' ∞" in endless


def test_a_terminal_is_not_commanded_by_a_text() -> None:
    evil = ColouredText(["\x1b[2J", "a\x07"], np.array([1.0, 2.0]), "x")
    assert "\x1b[2J" not in evil.drawn(colours=True, width=40) and "\x07" not in evil.drawn(colours=False)


@pytest.mark.parametrize(
    ("tty", "set_to", "wanted"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (False, {"FORCE_COLOR": "1"}, True),
        (False, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_colours_are_for_terminals_that_want_them(
    tty: bool, set_to: dict[str, str], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in set_to.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: tty, raising=False)
    assert colours_wanted(stream) == wanted
