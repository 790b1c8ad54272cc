"""Numbers and tables as people read them: one format for the page, the notebook and the terminal.

Everything from texts, files and models is data: escaped, and cut short.
"""

from __future__ import annotations

import html
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from mechrep.sections import plain_value

DASH, MINUS = "–", "−"
LONGEST = 400  # characters of any repr
_CHANCE = re.compile(r"(^|[ _])[pq]$")  # columns of p- and q-values
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")  # as code names things
_CELL, _ROWS = 60, 10
_BOX = "overflow-x:auto;max-width:100%"


def number(value: Any) -> str:
    """One format for every number: four significant digits, thousands apart, a real minus, a dash where unknown.

    Example:
        >>> number(1408), number(-0.123456), number(12345.6), number(float("nan")), number(1.5e-07), number("L2H0")
        ('1,408', '−0.1235', '12,346', '–', '1.5e−07', 'L2H0')
    """
    value = plain_value(value)
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace("-", MINUS)
    if isinstance(value, float):
        if math.isinf(value):
            return "∞" if value > 0 else f"{MINUS}∞"
        return (f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}").replace("-", MINUS)
    return str(value)


LEAST = 0.001  # a p- or q-value below it is shown as smaller than this


def chance(value: Any) -> str:
    """A p- or q-value in a table.

    Example:
        >>> chance(0.0004), chance(0.05), chance(0.0512), chance(None)
        ('< 0.001', '0.05', '0.051', '–')
    """
    value = plain_value(value)
    if not isinstance(value, (int, float)):
        return number(value)
    return f"< {LEAST:g}" if value < LEAST else number(float(f"{value:.2g}"))


def column_texts(values: Sequence[Any], digits: int = 4, more: int = 3) -> list[str]:
    """The cells of one column, numbers with the same number of decimals so that they can be compared down the column.

    Args:
        values: numbers, texts, ``None``.
        digits: significant digits of the largest number.
        more: decimals more than that, at most, for two significant digits of the median.

    Example:
        >>> column_texts([0.5, 12.25, None]), column_texts([1.0, 400.0]), column_texts(["a", 2])
        (['0.50', '12.25', '–'], ['1', '400'], ['a', '2'])
        >>> column_texts([0.8559, 0.25, 1.2e-06]), column_texts([0.5, 0.25])
        (['0.8559', '0.2500', '1.2e−06'], ['0.50', '0.25'])
    """
    cells = [plain_value(value) for value in values]
    known = [abs(cell) for cell in cells if isinstance(cell, float) and math.isfinite(cell)]
    if any(not isinstance(cell, float) for cell in cells if cell is not None) or not known:
        return [number(cell) for cell in cells]
    sizes = [size for size in known if size] or [1.0]
    if max(sizes) < 1e-4:  # so many zeros cannot be compared by eye
        return [number(cell) for cell in cells]
    most = digits - 1 - math.floor(math.log10(max(sizes)))
    decimals = min(max(most, min(1 - math.floor(math.log10(statistics.median(sizes))), most + more), 0), 9)
    used = (f"{size:.{decimals}f}".partition(".")[2].rstrip("0") for size in known)
    decimals = max(map(len, used))  # zeros at the end of all of them say nothing
    return [_decimals(cell, decimals) for cell in cells]


def _decimals(cell: float | None, decimals: int) -> str:
    if cell is None or math.isinf(cell):
        return number(cell)
    text = f"{cell:,.{decimals}f}"
    if cell and not text.strip("-0.,"):
        text = f"{cell:.2g}"
    return text.replace("-", MINUS)


def cells_of(frame: pd.DataFrame) -> tuple[list[str], list[bool], list[list[str]]]:
    """Names of the columns, which of them hold numbers, and the rows as text, the same wherever they are shown."""
    texts, numeric = [], []
    for place in range(frame.shape[1]):
        values = [plain_value(value) for value in frame.iloc[:, place]]
        if all(value is None or (isinstance(value, str) and _NAME.fullmatch(value)) for value in values):
            values = [value and value.replace("_", " ") for value in values]
        chances = _CHANCE.search(str(frame.columns[place]))
        texts.append([chance(value) for value in values] if chances else column_texts(values))
        numeric.append(_is_numeric(values))
    columns = [str(name).replace("_", " ") for name in frame.columns]
    return columns, numeric, [list(row) for row in zip(*texts, strict=True)]


def _is_numeric(column: Sequence[Any]) -> bool:
    known = [value for value in column if value is not None]
    return bool(known) and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in known)


def frame_html(
    frame: pd.DataFrame, caption: str, rows: int = _ROWS, wide: int = _CELL, total: int | None = None
) -> str:
    """The first rows of a frame as an HTML table for a notebook; a wide one scrolls in its own box.

    Args:
        frame: the table; its index is not shown.
        caption: a line above it, as plain text.
        rows: so many at most.
        wide: characters of a cell before it is cut.
        total: rows that there are, where the frame holds fewer.

    Example:
        >>> "<td>&lt;b&gt;</td>" in frame_html(pd.DataFrame({"id": ["<b>"]}), "one text")
        True
    """
    columns, numeric, cells = cells_of(frame.head(rows))
    align = ["right" if right else "left" for right in numeric]
    head = "".join(f'<th style="text-align:{a}">{html.escape(n)}</th>' for n, a in zip(columns, align, strict=True))
    body = "".join(f"<tr>{''.join(map(_cell, row, align, [wide] * len(row)))}</tr>" for row in cells)
    left = (len(frame) if total is None else total) - len(cells)
    more = f"<p>and {left:,} more rows</p>" if left > 0 else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div style="{_BOX}"><p><strong>{html.escape(caption)}</strong></p>{table}{more}</div>'


def _cell(text: str, align: str, wide: int) -> str:
    style = ' style="text-align:right"' if align == "right" else ""
    return f"<td{style}>{html.escape(short(text, wide))}</td>"


def facts_html(facts: Mapping[str, object], caption: str) -> str:
    """Names and values as a small HTML table, everything escaped.

    Example:
        >>> "<td>a&amp;b</td>" in facts_html({"name": "a&b"}, "a model")
        True
    """
    rows = "".join(
        f'<tr><th style="text-align:left">{html.escape(name.replace("_", " "))}</th>'
        f"<td>{html.escape(short(number(value) if isinstance(value, (int, float)) else value))}</td></tr>"
        for name, value in facts.items()
    )
    return (
        f'<div style="{_BOX}"><p><strong>{html.escape(caption)}</strong></p><table><tbody>{rows}</tbody></table></div>'
    )


def short(value: object, longest: int = _CELL) -> str:
    """A value as one line that is cut where it is too long.

    Example:
        >>> short("a name that goes on and on", 10), short(None)
        ('a name th…', 'unknown')
    """
    text = "unknown" if value is None else " ".join(str(value).split())
    return text if len(text) <= longest else text[: longest - 1] + "…"
