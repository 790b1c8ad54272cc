"""A section in a terminal: the same words and numbers as on the page, as aligned plain text without colours.

A terminal obeys control characters, so those that a model wrote are shown and not sent.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mechrep.report.view import ClaimView, view_of
from mechrep.sections import Section
from mechrep.tables import cells_of
from mechrep.text.shown import printable

_VERDICT, _CELL = 15, 44  # columns of the verdict; letters of a cell before it is shortened
_HARD = "\u00a0"  # a space where no line breaks


def print_section(section: Section, file: Any = None, *, tables: int = 2, rows: int = 12) -> None:
    """Write a section to the screen.

    Args:
        section: the data.
        file: something to write text to; standard output by default.
        tables: how many of the tables.
        rows: how many rows of each.

    Raises:
        InputError: as :func:`mechrep.report.view.view_of`.
    """
    (file or sys.stdout).write(section_text(section, tables=tables, rows=rows))


def section_text(
    section: Section, *, tables: int = 2, rows: int = 12, width: int | None = None, texts: Path | None = None
) -> str:
    """Title, lead, claims and the first tables.

    Args:
        section: the data.
        tables: how many of the tables.
        rows: how many rows of each.
        width: letters of a line; by default the terminal's, at most 110.
        texts: folder of the words; by default mechrep's own.
    """
    view = view_of(section, texts)
    columns = width or max(40, min(110, shutil.get_terminal_size((100, 24)).columns))
    lines = [view.title, "=" * min(len(view.title), columns), ""]
    for paragraph in view.lead_text.splitlines():
        lines += [*textwrap.wrap(paragraph, columns), ""]
    for claim in view.claims:
        lines += [*_claim(claim, columns), ""]
    for table in view.tables[:tables]:
        lines += textwrap.wrap(table.text, columns)
        lines += [*_aligned_table(table.columns, table.numeric, table.cells[:rows], table.total), ""]
    return printable("\n".join(lines))


def frame_text(frame: pd.DataFrame, rows: int | None = None) -> str:
    """A frame as aligned columns, its numbers as the page has them.

    Args:
        frame: the table; its index is not shown.
        rows: so many at most.

    Example:
        >>> print(frame_text(pd.DataFrame({"n": ["a", "b"], "k": [1, 20], "share": [0.5, 0.25], "q": [0.01, None]})))
        n   k  share     q
        a   1   0.50  0.01
        b  20   0.25     –
    """
    columns, numeric, cells = cells_of(frame if rows is None else frame.head(rows))
    return printable("\n".join(_aligned_table(columns, numeric, cells, len(frame))))


def _claim(claim: ClaimView, width: int) -> Iterator[str]:
    """The verdict at the margin, beside it the claim and its numbers."""
    numbers = [f"{claim.level[0]} → {claim.level[1]}", f"effect {claim.effect} {_boxed(claim.interval)}{claim.unit}"]
    if claim.range:
        numbers.append(f"controls {claim.range} ({claim.controls})")
    numbers.append(f"q {claim.q}, {claim.family}" if claim.family else f"q {claim.q}")
    together = "; ".join(part.replace(" ", _HARD) for part in numbers)  # lines break between the parts only
    body = [*textwrap.wrap(claim.text, width - _VERDICT), *textwrap.wrap(together, width - _VERDICT)]
    for place, line in enumerate(body):
        yield f"{claim.verdict if place == 0 else '':<{_VERDICT}}{line.replace(_HARD, ' ')}"


def _boxed(interval: str) -> str:
    return f"[{interval}] " if interval else ""


def _aligned_table(
    columns: Sequence[str], numeric: Sequence[bool], cells: Sequence[Sequence[str]], total: int
) -> Iterator[str]:
    lines = [list(columns), *([_short(cell) for cell in row] for row in cells)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    for line in lines:
        yield _aligned(line, widths, numeric)
    if total > len(cells):
        yield f"({len(cells):,} of {total:,} rows)"


def _aligned(line: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    cells = zip(line, widths, numeric, strict=True)
    return "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in cells).rstrip()


def _short(cell: str) -> str:
    cell = " ".join(cell.split())
    return cell if len(cell) <= _CELL else cell[: _CELL - 1] + "…"
