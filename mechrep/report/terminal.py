"""A section in a terminal: the same words and numbers as on the page, as aligned plain text without colours."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mechrep.report.view import ClaimView, TableView, view_of
from mechrep.sections import Section

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
        lines += [*textwrap.wrap(table.text, columns), *_table(table, rows), ""]
    return "\n".join(lines)


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


def _table(table: TableView, rows: int) -> Iterator[str]:
    cells = [[_short(cell) for cell in row] for row in table.cells[:rows]]
    lines = [list(table.columns), *cells]
    widths = [max(len(line[place]) for line in lines) for place in range(len(table.columns))]
    for line in lines:
        yield _aligned(line, widths, table.numeric)
    if table.total > len(cells):
        yield f"({len(cells):,} of {table.total:,} rows)"


def _aligned(line: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    cells = zip(line, widths, numeric, strict=True)
    return "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in cells).rstrip()


def _short(cell: str) -> str:
    cell = " ".join(cell.split())
    return cell if len(cell) <= _CELL else cell[: _CELL - 1] + "…"
