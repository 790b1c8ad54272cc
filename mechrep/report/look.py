"""A text in a terminal: its tokens coloured by a number, the repetitions of its loop laid under each other.

Where there are no colours, in a file, a pipe or under ``NO_COLOR``, the numbers stand in a list instead.
"""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from mechrep.tables import number
from mechrep.text.shown import printable
from mechrep.text.watch import Cycle
from mechrep.viewer.packing import ColourRange, colour_range

# Of the 256 colours that terminals have: black on ever darker orange; below zero on blue.
_ABOVE, _BELOW = (230, 223, 216, 209, 202), (195, 159, 117, 75, 33)
_RESET = "\x1b[0m"
_LISTED = 8
_MARKS = {"\n": "↵", "\r": "␍", "\t": "⇥"}


@dataclass(frozen=True)
class ColouredText:
    """A text whose tokens have a number each.

    Attributes:
        tokens: as text.
        values: one number per token, NaN where there is none.
        name: what the numbers are.
        unit: theirs.
        prompt_length: tokens before the continuation.
        cycle: the loop, if there is one.
    """

    tokens: Sequence[str]
    values: Float[np.ndarray, " pos"]
    name: str
    unit: str = ""
    prompt_length: int = 0
    cycle: Cycle | None = None

    def drawn(self, *, colours: bool, width: int | None = None) -> str:
        """The text for a terminal.

        Args:
            colours: write escape sequences for colours.
            width: columns of the terminal; by default those that there are.

        Example:
            >>> loop = Cycle.of([9, 1, 2, 1, 2, 1], start=1, period=2, end=6, detector="by hand")
            >>> text = ColouredText(["So", " a", " b", " a", " b", " a"], np.arange(6.0), "L0N1", cycle=loop)
            >>> print(text.drawn(colours=False, width=60))
            loop: 2 tokens, 2.5 times, from token 1; second time at token 3
            So
              1 │ a b
              2 │ a b
              3 │ a
            L0N1, largest: ' a' 5 (token 5), ' b' 4 (4), ' a' 3 (3), ' b' 2 (2), ' a' 1 (1)
        """
        columns = width or shutil.get_terminal_size((100, 24)).columns
        scale = colour_range(self.values)
        cells = [_cell(token, value, scale, colours) for token, value in zip(self.tokens, self.values, strict=True)]
        start, end = (len(cells), len(cells)) if self.cycle is None else (self.cycle.start, self.cycle.end)
        lines = [self._told(), *_wrapped(cells[:start], columns, self.prompt_length, 0)]
        if self.cycle is not None:
            lines += _laid_out(cells[start:end], self.cycle.period, columns)
            lines += _wrapped(cells[end:], columns, self.prompt_length, end)
        lines.append(self._legend(scale) if colours else "")
        lines.append(self._largest())
        return "\n".join(line for line in lines if line)

    def _told(self) -> str:
        if self.cycle is None:
            return "no loop"
        one = self.cycle
        where = f"from token {one.start}; second time at token {one.onset}"
        return f"loop: {one.period} token{'s' * (one.period != 1)}, {one.copies:.3g} times, {where}"

    def _largest(self) -> str:
        known = np.where(np.isnan(self.values), -np.inf, np.abs(self.values))
        places = [int(place) for place in np.argsort(-known, kind="stable")[:_LISTED] if known[place] > 0]
        listed = [
            f"{self.tokens[place]!r} {number(float(self.values[place]))} ({'token ' * (not i)}{place})"
            for i, place in enumerate(places)
        ]
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.name}{unit}, largest: {', '.join(listed) or 'none'}"

    def _legend(self, scale: ColourRange) -> str:
        steps = [*reversed(_BELOW), *_ABOVE] if scale.low < 0 else list(_ABOVE)
        bar = "".join(f"\x1b[48;5;{step}m  " for step in steps) + _RESET
        beyond = "" if scale.beyond is None else f"; the first token has {number(scale.beyond)}"
        return f"{self.name} {number(scale.low)} {bar} {number(scale.high)} {self.unit}{beyond}".rstrip()


def colours_wanted(stream: Any) -> bool:
    """Whether to write colours: on terminals, unless ``NO_COLOR`` is set; ``FORCE_COLOR`` asks for them anywhere.

    Source: no-color.org, force-color.org.
    """
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


@dataclass(frozen=True)
class _Cell:
    """A token on the screen: what is written, and how many columns it takes."""

    text: str
    width: int
    ends_line: bool


def _cell(token: str, value: float, scale: ColourRange, colours: bool) -> _Cell:
    shown = printable("".join(_MARKS.get(letter, letter) for letter in token))
    width = sum(_columns(letter) for letter in shown)
    if not colours or not shown:
        return _Cell(shown, width, token.endswith("\n"))
    step = _step(value, scale)
    painted = shown if step is None else f"\x1b[48;5;{step}m\x1b[38;5;16m{shown}{_RESET}"
    return _Cell(painted, width, token.endswith("\n"))


def _columns(letter: str) -> int:
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def _step(value: float, scale: ColourRange) -> int | None:
    """The colour of a number; ``None`` for the lowest tenth and for what is no finite number, which stay plain."""
    if not np.isfinite(value):
        return None
    low, high = (0.0, scale.high) if scale.low < 0 else (scale.low, scale.high)
    share = (abs(value) - low) / (high - low) if high > low else 0.0
    if share < 0.1:
        return None
    ramp = _BELOW if value < 0 else _ABOVE
    return ramp[min(len(ramp) - 1, int(share * len(ramp)))]


def _wrapped(cells: Sequence[_Cell], columns: int, bar: int, first: int) -> Iterator[str]:
    """Tokens one after the other in lines that fit; a bar stands before token ``bar`` of the text."""
    line, used = "", 0
    for place, cell in enumerate(cells, first):
        mark = "│" if place == bar and bar else ""
        if used and used + cell.width + len(mark) > columns:
            yield line
            line, used = "", 0
        line, used = line + mark + cell.text, used + cell.width + len(mark)
        if cell.ends_line:
            yield line
            line, used = "", 0
    if line:
        yield line


def _laid_out(cells: Sequence[_Cell], period: int, columns: int) -> Iterator[str]:
    """One line per repetition, the same place in each at the same column; a long one in several blocks."""
    rows = [cells[begin : begin + period] for begin in range(0, len(cells), period)]
    widths = [max((row[place].width for row in rows if place < len(row)), default=0) for place in range(period)]
    label = max(3, len(str(len(rows))))
    room = max(8, columns - label - 3)
    begin = 0
    while begin < period:
        end, used = begin, 0
        while end < period and (end == begin or used + widths[end] <= room):
            used += widths[end]
            end += 1
        for count, row in enumerate(rows, 1):
            padded = [cell.text + " " * (widths[begin + i] - cell.width) for i, cell in enumerate(row[begin:end])]
            if padded:
                yield f"{count:>{label}} │{''.join(padded)}".rstrip()
        begin = end
        if begin < period:
            yield " " * label + " ┊"
