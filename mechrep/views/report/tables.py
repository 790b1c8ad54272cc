"""The report's tables as HTML.  Every cell is escaped, numbers stand right."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

escape = html.escape
_LONG, _WRAPPED = 36, ' class="words"'


@dataclass(frozen=True)
class ReportTable:
    """A table that scrolls in its own box.

    Attributes:
        caption: above the table, plain text.
        head: names of the columns, plain text.
        rows: cells; columns of numbers are right-aligned, everything is escaped.
        note: below the table, plain text.

    Example:
        >>> "<td>&lt;b&gt;</td>" in ReportTable("one", ["name"], [["<b>"]]).to_html()
        True
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""

    def to_html(self) -> str:
        """Caption, table, note."""
        places = range(len(self.head))
        numeric = [all(shown(row[i])[:1] in "0123456789−+–∞" for row in self.rows) for i in places]
        kinds = [' class="number"' if is_number else "" for is_number in numeric]
        named = zip(self.head, kinds, strict=True)
        heads = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in named)
        lines = ["".join(_cell(shown(cell), kind) for cell, kind in zip(row, kinds, strict=True)) for row in self.rows]
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        below = f'<p class="note">{escape(self.note)}</p>' if self.note else ""
        return (
            f'<h3>{escape(self.caption)}</h3><div class="table" tabindex="0">'
            f'<table aria-label="{escape(self.caption)}"><thead><tr>{heads}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>{below}"
        )


def _cell(text: str, kind: str) -> str:
    """One cell; a sentence in it may break."""
    return f"<td{kind or (_WRAPPED if len(text) > _LONG else '')}>{escape(text)}</td>"


def shown(cell: object) -> str:
    """Whole numbers with separators, others with four decimals, so that they line up; text as it is.

    Example:
        >>> shown(1408), shown(-0.5), shown("a")
        ('1,408', '−0.5000', 'a')
    """
    if isinstance(cell, float):
        return decimals(cell, 4)
    return f"{cell:,}" if isinstance(cell, Integral) else str(cell)


def decimals(number: float, places: int = 2, *, sign: bool = False) -> str:
    """A number with a real minus sign; a dash where it is not known.

    Args:
        number: the number.
        places: decimals.
        sign: write a plus, too.

    Example:
        >>> decimals(-1.5), decimals(1.5, 1, sign=True), decimals(float("nan")), decimals(-0.001)
        ('−1.50', '+1.5', '–', '0.00')
    """
    if math.isnan(number):
        return "–"
    text = "∞" if math.isinf(number) else f"{abs(number):.{places}f}"
    if not text.strip("0."):
        return text
    return f"−{text}" if number < 0 else f"+{text}" if sign else text


def interval(value: float, low: float, high: float, places: int = 2, *, sign: bool = False) -> str:
    """A number with its interval in brackets.

    Example:
        >>> interval(0.5, 0.4, 0.6), interval(-0.5, -0.625, 0.125, 1)
        ('0.50 [0.40 to 0.60]', '−0.5 [−0.6 to 0.1]')
    """
    ends = (decimals(low, places, sign=sign), decimals(high, places, sign=sign))
    return f"{decimals(value, places, sign=sign)} [{ends[0]} to {ends[1]}]"
