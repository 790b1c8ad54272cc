"""Axes of a still picture: where numbers and words lie between two ends, and which of them are named."""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TEXT_SIZE = 11
_LETTER = 0.56  # of the size of the text: the width of one letter, on average
_NAMED = 24  # names at most on an axis of words that has no step of its own
_MINUS = "−"
_FAR = 9.0  # lengths of an axis: what lies beyond is not drawn in its place
_LARGEST, _FINEST = 1e200, 1e-9  # sizes that an axis can have, and differences of them that it can show
_MARKUP = re.compile(r"</?(br|b|i|sub|sup|span|em|extra)\b[^>]*>")


def values_of(value: Any) -> list[Any]:
    """The numbers or words of a figure's field, also where plotly has packed them.

    Example:
        >>> values_of({"dtype": "i1", "bdata": "AAEC"}), values_of([1, "a"]), values_of(None)
        ([0, 1, 2], [1, 'a'], [])
    """
    if isinstance(value, Mapping):
        array = np.frombuffer(base64.b64decode(value["bdata"]), np.dtype(value["dtype"]).newbyteorder("<"))
        if "shape" in value:
            array = array.reshape([int(size) for size in str(value["shape"]).split(",")])
        return array.tolist()
    return [] if value is None else list(value)


def plain_label(text: Any) -> str:
    """A label of plotly's without its markup.

    Example:
        >>> plain_label("L2H0<br>a &lt; b")
        'L2H0 a < b'
    """
    return html.unescape(_MARKUP.sub(" ", str(text)))


def text_width(text: str, size: float | int = TEXT_SIZE) -> float:
    """About how many pixels wide a text is."""
    return len(text) * size * _LETTER


def short_number(value: float | int, digits: int = 6) -> str:
    """A number beside a tick, as plotly writes it.

    Example:
        >>> short_number(0.25), short_number(-12000.0), short_number(2.5e6), short_number(1 / 3, 3), short_number(1e-6)
        ('0.25', '−12k', '2.5M', '0.333', '1e−06')
    """
    size, unit = abs(value), ""
    for power, letter in ((9, "B"), (6, "M"), (3, "k")):
        if max(10**power, 1e4) <= size < 1e12:
            value, unit = value / 10**power, letter
            break
    return ("0" if size == 0 else f"{value:.{digits}g}{unit}").replace("-", _MINUS)


@dataclass(frozen=True)
class Axis:
    """One axis of one panel.

    Attributes:
        record: what the figure says of it.
        log: whether it is logarithmic.
        words: the categories, where it has words.
        low: at the first end, as a logarithm if it is logarithmic.
        high: at the other.
        domain: the part of the picture's width or height that it takes.
    """

    record: Mapping[str, Any]
    log: bool
    words: tuple[str, ...]
    low: float
    high: float
    domain: tuple[float, float]

    @property
    def title(self) -> str:
        """Plain text."""
        return plain_label(self.record.get("title", {}).get("text", ""))

    def at(self, values: Iterable[Any], shift: float | int = 0.0) -> list[float]:
        """How far along the axis values lie, from 0 to 1; NaN where that cannot be said."""
        places = {word: float(place) for place, word in enumerate(self.words)}
        found = []
        for value in values:
            if isinstance(value, str) and value in places:
                value = places[value] + shift
            number = as_number(value)
            if self.log:
                number = math.log10(number) if number > 0 else math.nan
            share = (number - self.low) / (self.high - self.low)
            found.append(share if math.isnan(share) else min(max(share, -_FAR), _FAR))
        return found

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """Places and names of at most about so many ticks."""
        inside = [one for one in self._ticks(most) if -1e-6 <= one[0] <= 1 + 1e-6]
        step = max(1, -(-len(inside) // max(most, 1)))
        return inside[::step]

    def _ticks(self, most: int) -> list[tuple[float, str]]:
        told = values_of(self.record.get("tickvals"))
        low, high = min(self.low, self.high), max(self.low, self.high)
        if told:
            names = values_of(self.record.get("ticktext")) or [short_number(as_number(value), 3) for value in told]
            return [(place, plain_label(name)) for place, name in zip(self.at(told), names, strict=False)]
        if self.words:
            step = max(1, -(-len(self.words) // min(max(most, 1), _NAMED)))
            kept = self.words[::step]
            return list(zip(self.at(kept), [plain_label(word) for word in kept], strict=True))
        if self.log:
            decades = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
            values = [float(10.0**one) for one in decades]
            if len(values) < 2:
                many = [a * 10.0**b for b in range(math.floor(low), math.ceil(high) + 1) for a in (1, 2, 5)]
                values = [one for one in many if low <= math.log10(one) <= high]
            return [(place, short_number(value)) for place, value in zip(self.at(values), values, strict=True)]
        step = as_number(self.record.get("dtick"))
        first = as_number(self.record.get("tick0")) if "tick0" in self.record else 0.0
        if not step > 0 or (high - low) / step > 10 * most:
            step, first = nice_step(high - low, most), 0.0
        start = math.ceil((low - first) / step - 1e-9)
        count = min(math.floor((high - low) / step + 1e-9) + 2, 1000)
        values = [first + (start + one) * step for one in range(count)]
        values = [0.0 if abs(value) < 1e-9 * step else value for value in values]
        alias = self.record.get("labelalias") or {}
        names = [plain_label(alias.get(f"{value:g}", short_number(value))) for value in values]
        return list(zip(self.at(values), names, strict=True))


def nice_step(span: float | int, most: int) -> float:
    """1, 2 or 5 times a power of ten: at most so many steps.

    Example:
        >>> nice_step(10.0, 5), nice_step(0.7, 4)
        (2.0, 0.2)
    """
    if not (math.isfinite(span) and span > 1 / _LARGEST):
        return 1.0
    rough = span / max(most, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(float(f"{a * power:.6g}") for a in (1, 2, 5, 10) if a * power >= rough * (1 - 1e-9))


def as_number(value: Any) -> float:
    """A number; NaN for anything else."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def axis_of(record: Mapping[str, Any], values: Sequence[Any], *, zero: bool = False, cells: bool = False) -> Axis:
    """The axis that holds values.

    Args:
        record: what the figure says of it.
        values: all that lie on it.
        zero: whether it begins at 0, as for bars.
        cells: whether a value is the middle of a cell.
    """
    words = tuple(dict.fromkeys(value for value in values if isinstance(value, str)))
    log = record.get("type") == "log" and not words
    numbers = [as_number(value) for value in values]
    numbers = [min(max(one, -_LARGEST), _LARGEST) for one in numbers if math.isfinite(one)]
    if log:
        numbers = [math.log10(one) for one in numbers if one > 1 / _LARGEST]
    told = [as_number(end) for end in values_of(record.get("range"))]
    if words:
        low, high = -0.5, len(words) - 0.5
    elif len(told) == 2 and all(math.isfinite(end) for end in told):
        most = 200.0 if log else _LARGEST
        low, high = (min(max(end, -most), most) for end in told)
    else:
        low, high = (min(numbers), max(numbers)) if numbers else (0.0, 1.0)
        edge = 0.5 if cells else (high - low) * 0.05 or 0.5
        flush = zero and low >= 0
        low, high = 0.0 if flush else low - edge, high + edge
        if record.get("rangemode") == "tozero" and not log:
            low = min(low, 0.0) if min(numbers, default=0.0) < 0 else 0.0
    if abs(high - low) <= _FINEST * max(abs(low), abs(high), 1 / _LARGEST):
        low, high = low - 0.5 * max(abs(low), 1.0), high + 0.5 * max(abs(high), 1.0)
    if record.get("autorange") == "reversed":
        low, high = high, low
    domain = values_of(record.get("domain")) or [0.0, 1.0]
    return Axis(record, log, words, low, high, (float(domain[0]), float(domain[1])))
