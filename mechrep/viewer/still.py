"""A view as a still picture: for pages that run no script, for paper, and for files.

Drawn from what the script is given, in the colours of its light theme, and laid out as the script does it: the text
before the loop, the repetitions under each other, a strip of bars for each quantity, and small maps of heads.
"""

from __future__ import annotations

import base64
import html
import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, UInt8

from mechrep.figures import FONT
from mechrep.pictures.marks import Box, pixels
from mechrep.tables import number
from mechrep.viewer.packing import shares

Payload = Mapping[str, Any]
Loop = Mapping[str, int]

# As in numbers.js, whose light theme this is.
RAMPS = {
    "warm": ("#fbf8f4", "#fde3cd", "#fbbd8f", "#f08a4b", "#cf4f17", "#8c2a06"),
    "cool": ("#f7f8fa", "#d7e6f4", "#a5cae8", "#5f9fd3", "#2a6cab", "#123f73"),
}
_PAGE, _INK, _SOFT, _RULE, _ACCENT = "#fcfbf9", "#1d2127", "#5a626d", "#e4e1db", "#b83206"
_MONO = "ui-monospace, 'Cascadia Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"
_MARKS = {"\n": "↵", "\r": "␍", "\t": "⇥"}
_LETTER, _LINE, _EDGE, _LABEL = (
    7.8,
    22.0,
    16.0,
    58.0,
)  # pixels: a letter of 13, a line, the margin, numbers of repetitions
_MEAN, _STRIP, _MAP = 70, 30, 150
_BEFORE, _AFTER, _PLAIN = 4, 2, 14  # lines of running text that are drawn: before a loop, behind one, without one
_ROWS, _LAST, _BRIEF = 9, 2, 7  # repetitions that are drawn; the last ones among them; in a small picture
_MAPS = 4


@dataclass(frozen=True)
class _Colours:
    """What a picture is coloured by: ramp and share of every token, and what the scales mean.

    Attributes:
        shades: of every token; None where it has no number.
        scales: ramp, title, and the numbers at its ends.
        values: one number per token, where the quantity has them.
        focus: the token whose attention is shown.
    """

    shades: Sequence[tuple[str, float] | None]
    scales: Sequence[tuple[str, str, str, str]]
    values: Float64[np.ndarray, " pos"] | None = None
    focus: int | None = None


def still_of(payload: Payload, *, width: int = 860, brief: bool = False) -> str:
    """Draw what a view shows when it is opened.

    Args:
        payload: of :meth:`mechrep.viewer.show.View.payload`.
        width: pixels.
        brief: only the text or the first repetitions, without words around them, as a small picture.

    Returns:
        An ``<svg>`` element; text in it is escaped.

    Example:
        >>> import mechrep
        >>> view = mechrep.view(mechrep.load_model("mechrep-tiny"), "the sea and the sea and the sea and the sea")
        >>> picture = still_of(view.payload())
        >>> picture[:4], "surprisal" in picture, "<script" in picture
        ('<svg', True, False)
    """
    return _Still(payload, width, brief).svg()


class _Still:
    """One drawing, from above: each part begins where the one before has ended."""

    def __init__(self, payload: Payload, width: int, brief: bool = False) -> None:
        self.given, self.width, self.brief, self.top = payload, width, brief, _EDGE / (2 if brief else 1)
        self.label = 26.0 if brief else _LABEL
        self.tokens = [_shown(token) for token in payload["tokens"]]
        self.cycle: Loop | None = payload["cycle"]
        self.quantities = [(one, _values(one)) for one in payload["quantities"]]
        self.maps = [(one, _levels(one["data"])) for one in payload["maps"]]
        self.colours = self._coloured()
        self.right = width - _EDGE

    def svg(self) -> str:
        """The whole."""
        around = [] if self.brief else [*self._title(), *self._scales()]
        parts = [*around, *self._text(), *([] if self.brief else [*self._strips(), *self._heads()])]
        high = round(self.top + _EDGE / (2 if self.brief else 1))
        label = html.escape(_shown(f"Text in {self.given['model']}, coloured by {self._named()}"))
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="still" viewBox="0 0 {self.width} {high}" '
            f'width="{self.width}" height="{high}" role="img" aria-label="{label}" font-size="12" '
            f'font-family="{html.escape(FONT)}"><rect x="0.5" y="0.5" width="{self.width - 1}" height="{high - 1}" '
            f'rx="9" fill="{_PAGE}" stroke="{_RULE}"/>{"".join(parts)}</svg>'
        )

    def _named(self) -> str:
        return ", ".join(one["name"] for one, _ in self.quantities) or "nothing"

    # --- numbers ------------------------------------------------------------------------------------------------------

    def _coloured(self) -> _Colours:
        """By the first quantity, or else by the attention of the first head."""
        one, values = self.quantities[0] if self.quantities else ({}, None)
        if values is not None:
            unit = f" ({one['unit']})" if one["unit"] not in ("", one["name"]) else ""
            low, high = float(one["low"]), float(one["high"])
            ramp = "both" if low < 0 else "warm"
            shades = [_shade(float(value), low, high) for value in values]
            return _Colours(shades, [(ramp, one["name"] + unit, number(low), number(high))], values)
        if not self.maps:
            return _Colours([None] * len(self.tokens), [])
        chosen = self.quantities[0][0] if self.quantities else self.maps[0][0]
        head, levels = next(
            (pair for pair in self.maps if (pair[0]["layer"], pair[0]["head"]) == (chosen["layer"], chosen["head"])),
            self.maps[0],
        )
        pattern = _pattern(levels, len(self.tokens))
        focus, most = self._rest(), _top(pattern)
        read = [("warm", value) for value in pattern[focus, : focus + 1]]
        read_by = [("cool", value) for value in pattern[focus + 1 :, focus]]
        shades = [(ramp, float(np.sqrt(value / most))) for ramp, value in [*read, *read_by]]
        name, ends = f"L{head['layer']}H{head['head']}", ("0", f"≥ {number(most)}")
        told = f"{name}: “{self.tokens[focus]}” ({focus}) reads"
        return _Colours(shades, [("warm", told, *ends), ("cool", "and is read by", *ends)], focus=focus)

    def _rest(self) -> int:
        """The first token of the second repetition."""
        last = len(self.tokens) - 1
        return last if self.cycle is None else min(self.cycle["start"] + self.cycle["period"], last)

    # --- title and scales ---------------------------------------------------------------------------------------------

    def _title(self) -> Iterator[str]:
        loop = "no loop"
        if self.cycle is not None:
            start, period = self.cycle["start"], self.cycle["period"]
            loop = f"loop of {period} from token {start}, {(self.cycle['end'] - start) / period:.3g} times"
        under = f", under {self.given['under']}" if self.given["under"] else ""
        name, rest = str(self.given["model"]), f"{len(self.tokens)} tokens, {loop}{under}"
        self.top += 13
        yield (f'<text x="{_EDGE}" y="{self.top:.1f}" fill="{_SOFT}"><tspan font-weight="600" fill="{_INK}">'
               f"{_text(name[:60])}</tspan> {_text(rest[:110])}</text>")  # fmt: skip
        self.top += 10

    def _scales(self) -> Iterator[str]:
        left = float(_EDGE)
        for ramp, title, low, high in self.colours.scales:
            yield f'<text x="{left:.1f}" y="{self.top + 12:.1f}" font-weight="600" fill="{_INK}">{_text(title)}</text>'
            left += 7.2 * _columns(title) + 8
            yield f'<text x="{left:.1f}" y="{self.top + 12:.1f}" fill="{_SOFT}">{_text(low)}</text>'
            left += 6.8 * len(low) + 6
            for step in range(24):
                share = step / 23
                one = (("cool" if share < 0.5 else "warm"), abs(2 * share - 1)) if ramp == "both" else (ramp, share)
                yield f'<rect x="{left + 5 * step:.1f}" y="{self.top + 4:.1f}" width="5.2" height="9" {_fill(one)}/>'
            left += 126
            yield f'<text x="{left:.1f}" y="{self.top + 12:.1f}" fill="{_SOFT}">{_text(high)}</text>'
            left += 6.8 * len(high) + 22
        self.top += 26 if self.colours.scales else 4

    # --- the text -----------------------------------------------------------------------------------------------------

    def _text(self) -> Iterator[str]:
        rows = loop_rows(self.cycle)
        if len(rows) <= 2 or self.cycle is None:
            yield from self._running(0, len(self.tokens), 5 if self.brief else _PLAIN, _EDGE)
            return
        if not self.brief:
            yield from self._running(0, self.cycle["start"], _BEFORE, self.label, last=True)
        yield from self._grid(rows)
        if not self.brief:
            yield from self._running(self.cycle["end"], len(self.tokens), _AFTER, self.label)

    def _running(self, first: int, end: int, most: int, left: float, *, last: bool = False) -> Iterator[str]:
        """Tokens in lines that fit: the first lines, or the last."""
        lines: list[list[tuple[int, float]]] = [[]]
        x = left
        for place in range(first, end):
            wide = _LETTER * _columns(self.tokens[place])
            if lines[-1] and x + wide > self.right:
                lines.append([])
                x = left
            lines[-1].append((place, x))
            x += wide
            if "\n" in self.given["tokens"][place]:
                lines.append([])
                x = left
        lines = [line for line in lines if line]
        left_out = len(lines) - most
        shown = lines[-most:] if last else lines[:most]
        if left_out > 0 and last:
            yield self._note(left, f"⋯ {lines[left_out][0][0] - first} tokens before")
        for line in shown:
            for place, x in line:
                yield self._token(place, x, _LETTER * _columns(self.tokens[place]))
            self.top += _LINE
        if left_out > 0 and not last:
            yield self._note(left, f"⋯ {end - lines[most][0][0]} more tokens")

    def _note(self, x: float, text: str) -> str:
        self.top += _LINE
        return f'<text x="{x:.1f}" y="{self.top - 7:.1f}" fill="{_SOFT}">{_text(text)}</text>'

    def _token(self, place: int, x: float, width: float, *, words: bool = True, high: float = _LINE - 3) -> str:
        shade, text = self.colours.shades[place], self.tokens[place]
        line = f' stroke="{_INK}" stroke-width="2"' if place == self.colours.focus else ""
        back = "" if shade is None and not line else (
            f'<rect x="{x:.1f}" y="{self.top:.1f}" width="{max(width, 1):.1f}" height="{high:.1f}" rx="2" '
            f'{_fill(shade)}{line}/>'
        )  # fmt: skip
        if not words or not text.strip():
            return back
        inside = _LETTER * _columns(text)
        return back + (
            f'<text x="{x + (width - inside) / 2:.1f}" y="{self.top + 14:.1f}" font-family="{html.escape(_MONO)}" '
            f'font-size="13" textLength="{inside:.1f}" lengthAdjust="spacingAndGlyphs" xml:space="preserve" '
            f'fill="{_ink_on(shade)}">{_text(text)}</text>'
        )

    def _grid(self, rows: Sequence[range]) -> Iterator[str]:
        """Repetition under repetition: words where they fit beside each other, else cells with the words above."""
        assert self.cycle is not None
        period, columns = self.cycle["period"], len(rows[0])
        first = _BRIEF if self.brief else _ROWS - _LAST if len(rows) > _ROWS + 1 else len(rows)
        shown = [*range(min(first, len(rows))), *range(max(len(rows) - _LAST, first), len(rows) * (not self.brief))]
        widths = [
            max(_LETTER * _columns(self.tokens[rows[row][j]]) for row in shown if j < len(rows[row])) + 7
            for j in range(columns)
        ]
        room = self.right - self.label - (0 if self.brief else _MEAN)
        words = sum(widths) + 2 * columns <= room
        if not words:
            widths = [min(max(room / columns - 1, 2.0), 24.0)] * columns
            if widths[0] >= 10 and not self.brief:
                yield from self._above(rows[0], widths)
        lefts = np.concatenate([[0.0], np.cumsum([wide + (2 if words else 1) for wide in widths])]) + self.label
        means, before = self._means(rows), -1
        for row in shown:
            if row != before + 1:
                yield self._note(self.label, f"⋯ {(row - before - 1) * max(1, columns // period)} more repetitions")
            yield self._counted(row * max(1, columns // period) + 1, onset=row == 1 and columns == period)
            for j, place in enumerate(rows[row]):
                yield self._token(place, lefts[j], widths[j], words=words)
            yield from () if self.brief else self._mean(means, row, float(lefts[-1]) + 8)
            self.top, before = self.top + _LINE - 1, row
        self.top += 6

    def _counted(self, number_of: int, *, onset: bool) -> str:
        mark = f'<tspan fill="{_ACCENT}" font-size="10">onset</tspan> ' if onset and not self.brief else ""
        return (f'<text x="{self.label - 8}" y="{self.top + 14:.1f}" text-anchor="end" font-size="11" fill="{_SOFT}">'
                f"{mark}{number_of}</text>")  # fmt: skip

    def _above(self, row: range, widths: Sequence[float]) -> Iterator[str]:
        longest = max(_columns(self.tokens[place][:14]) for place in row)
        self.top += 6.6 * longest + 6
        for j, place in enumerate(row):
            x = self.label + j * (widths[j] + 1) + widths[j] / 2 + 4
            at = f"{x:.1f} {self.top - 4:.1f}"
            yield (f'<text x="{x:.1f}" y="{self.top - 4:.1f}" transform="rotate(-90 {at})" font-size="11" '
                   f'font-family="{html.escape(_MONO)}" xml:space="preserve" fill="{_SOFT}">'
                   f"{_text(self.tokens[place][:14].strip())}</text>")  # fmt: skip

    def _means(self, rows: Sequence[range]) -> list[float]:
        values = self.colours.values
        if values is None:
            return []
        known = [values[row.start : row.stop][np.isfinite(values[row.start : row.stop])] for row in rows]
        return [float(one.mean()) if len(one) else np.nan for one in known]

    def _mean(self, means: Sequence[float], row: int, left: float) -> Iterator[str]:
        most = np.nanmax(np.abs(means)) if len(means) and np.isfinite(means).any() else 0
        if most and np.isfinite(means[row]):
            wide = min(max(self.right - left, 20), 2 * _MEAN) * abs(means[row]) / most
            ramp = "cool" if means[row] < 0 else "warm"
            yield (f'<rect x="{left:.1f}" y="{self.top + 5:.1f}" width="{max(wide, 0.5):.1f}" height="9" rx="2" '
                   f"{_fill((ramp, 0.62))}/>")  # fmt: skip

    # --- strips and maps ----------------------------------------------------------------------------------------------

    def _strips(self) -> Iterator[str]:
        left, n = _EDGE + 130.0, len(self.tokens)
        step = (self.right - left) / n
        for one, values in self.quantities:
            if values is None:
                continue
            self.top += 6
            yield f'<text x="{_EDGE}" y="{self.top + 20:.1f}" fill="{_INK}">{_text(str(one["name"])[:20])}</text>'
            yield from self._bands(left, step)
            low, high = float(one["low"]), float(one["high"])
            zero = self.top + _STRIP / (2 if low < 0 else 1)
            for place, value in enumerate(values):
                shade = _shade(float(value), low, high)
                if shade is not None and shade[1] > 0:
                    tall = min(shade[1], 1.0) * (_STRIP - 2) / (2 if low < 0 else 1)
                    top = zero if low < 0 and value < 0 else zero - tall
                    yield (f'<rect x="{left + place * step:.1f}" y="{top:.1f}" width="{max(step - 0.6, 0.8):.1f}" '
                           f'height="{tall:.1f}" {_fill((shade[0], 0.35 + 0.65 * min(shade[1], 1)))}/>')  # fmt: skip
            self.top += _STRIP
            yield f'<path d="M{left:.1f} {self.top:.1f}H{self.right}" stroke="{_RULE}"/>'

    def _bands(self, left: float, step: float) -> Iterator[str]:
        """Every second repetition stands on a band."""
        for place, row in enumerate(loop_rows(self.cycle)):
            if not place % 2:
                yield (f'<rect x="{left + row.start * step:.1f}" y="{self.top:.1f}" width="{len(row) * step:.1f}" '
                       f'height="{_STRIP}" fill="{_INK}" fill-opacity="0.045"/>')  # fmt: skip

    def _heads(self) -> Iterator[str]:
        if not self.maps:
            return
        self.top += 16
        for place, (one, levels) in enumerate(self.maps[:_MAPS]):
            left = _EDGE + place * (_MAP + 18)
            pattern = _pattern(levels, len(self.tokens))
            size = min(len(self.tokens), _MAP)
            colours = np.zeros((size, size, 4), np.uint8)
            shown = np.sqrt(_pooled(pattern, size) / _top(pattern)).clip(0, 1)
            stops = np.linspace(0, 1, len(RAMPS["warm"]))
            for channel, at in enumerate((1, 3, 5)):
                of_stops = [int(colour[at : at + 2], 16) for colour in RAMPS["warm"]]
                colours[..., channel] = np.interp(shown, stops, of_stops).round()
            colours[..., 3] = 255 * np.tri(size, dtype=np.uint8)
            yield pixels(colours, Box(left, self.top, _MAP, _MAP), 2 * _MAP)
            yield (f'<text x="{left + _MAP}" y="{self.top + 12:.1f}" text-anchor="end" fill="{_SOFT}">'
                   f"L{one['layer']}H{one['head']}</text>")  # fmt: skip
        self.top += _MAP


def loop_rows(cycle: Loop | None, columns: int = 12) -> list[range]:
    """Rows of a loop: its repetitions; where a repetition is very short, several stand in one row.

    Example:
        >>> loop_rows({"start": 2, "period": 3, "end": 10})
        [range(2, 5), range(5, 8), range(8, 10)]
    """
    if cycle is None:
        return []
    start, period, end = cycle["start"], cycle["period"], cycle["end"]
    together = max(1, columns // period) if period <= 3 and (end - start) / period > 12 else 1
    return [range(first, min(first + period * together, end)) for first in range(start, end, period * together)]


# --- numbers and colours ----------------------------------------------------------------------------------------------


def _values(one: Mapping[str, Any]) -> Float64[np.ndarray, " pos"] | None:
    if "data" not in one:
        return None
    return np.frombuffer(base64.b64decode(one["data"]), "<f2").astype(np.float64) * one["scale"]


def _levels(data: str) -> UInt8[np.ndarray, " pair"]:
    return np.frombuffer(zlib.decompress(base64.b64decode(data)), np.uint8)


def _pattern(levels: UInt8[np.ndarray, " pair"], length: int) -> Float64[np.ndarray, "query_pos key_pos"]:
    pattern = np.zeros((length, length))
    pattern[np.tril_indices(length)] = shares(torch.from_numpy(levels.copy())).numpy()
    return pattern


def _top(pattern: Float64[np.ndarray, "query_pos key_pos"]) -> float:
    """Where the colours end: what 19 of 20 tokens read at most of another token behind the first."""
    most = sorted(float(pattern[query, 1:query].max()) for query in range(2, len(pattern)))
    return max(0.05, most[int(np.ceil(0.95 * len(most))) - 1] if most else 1.0)


def _pooled(pattern: Float64[np.ndarray, "query_pos key_pos"], size: int) -> Float64[np.ndarray, "row column"]:
    """The largest shares that fall onto each pixel: thin lines stay visible."""
    place = np.arange(len(pattern)) * size // len(pattern)
    square = np.zeros((size, size))
    np.maximum.at(square, (place[:, None], place[None, :]), pattern)
    return square


def _shade(value: float, low: float, high: float) -> tuple[str, float] | None:
    if not np.isfinite(value):
        return None
    if low < 0:
        return ("cool" if value < 0 else "warm"), abs(value) / high
    return "warm", ((value - low) / (high - low) if high > low else 0.0)


def _colour(shade: tuple[str, float]) -> tuple[int, ...]:
    stops = [[int(one[at : at + 2], 16) for at in (1, 3, 5)] for one in RAMPS[shade[0]]]
    at = min(max(shade[1], 0.0), 1.0) * (len(stops) - 1)
    low = min(int(at), len(stops) - 2)
    return tuple(round(a + (b - a) * (at - low)) for a, b in zip(stops[low], stops[low + 1], strict=True))


def _fill(shade: tuple[str, float] | None) -> str:
    return 'fill="none"' if shade is None else 'fill="#{:02x}{:02x}{:02x}"'.format(*_colour(shade))


def _ink_on(shade: tuple[str, float] | None) -> str:
    """Black or white, whichever can be read better."""
    if shade is None:
        return _INK
    red, green, blue = (
        part / 255 / 12.92 if part / 255 <= 0.04045 else ((part / 255 + 0.055) / 1.055) ** 2.4
        for part in _colour(shade)
    )
    return "#0b0d10" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.188 else "#ffffff"


# --- tokens -----------------------------------------------------------------------------------------------------------


def _shown(token: str) -> str:
    """A token as one line: what cannot be seen is written out."""
    hidden = ("C", "Zl", "Zp")
    return "".join(
        _MARKS.get(one, "·" if unicodedata.category(one).startswith(hidden) else one) for one in token
    ) or "·"  # fmt: skip


def _columns(text: str) -> int:
    wide = sum(unicodedata.east_asian_width(one) in "WF" for one in text)
    return len(text) + wide - sum(bool(unicodedata.combining(one)) for one in text)


def _text(text: str) -> str:
    return html.escape(_shown(text) if text else "", quote=False)
