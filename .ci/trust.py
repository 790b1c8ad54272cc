"""The table of docs/trust.md, written from the figures that tests handed over.

    python .ci/trust.py FOLDER          # what `make test-full` and `make trust` run when the tests are through

Each file in the folder holds one row: section, what, asked, measured, holds (see the fixture `trust` in
tests/conftest.py).  A row whose test did not run is not in the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs" / "trust.md"
BEGIN, END = "<!-- figures: begin (written by .ci/trust.py) -->", "<!-- figures: end -->"


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a table for each section, in the order of the alphabet."""
    parts = [f"Measured on {date.today()} with mechrep {version('mechrep')}, torch {version('torch')}, "
             f"Python {platform.python_version()}, {os.cpu_count()} cores."]  # fmt: skip
    for section in sorted({row["section"] for row in rows}):
        lines = [f"### {section[0].upper()}{section[1:]}", "", "| what | asked | measured | |", "|---|---|---|---|"]
        for row in sorted((row for row in rows if row["section"] == section), key=lambda row: row["what"]):
            cells = (str(row[name]).replace("|", "\\|") for name in ("what", "asked", "measured"))
            lines.append(f"| {' | '.join(cells)} | {'holds' if row['holds'] else '**does not hold**'} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def written(page: str, rows: list[dict[str, Any]]) -> str:
    """The page with the table in its place."""
    before, found, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise SystemExit(f"{PAGE}: the lines {BEGIN} and {END} are missing")
    return f"{before}{BEGIN}\n\n{table(rows)}\n\n{END}{after}"


def main() -> None:
    """Write the page; say how many rows do not hold."""
    parser = argparse.ArgumentParser(description="docs/trust.md from the figures of the tests")
    parser.add_argument("folder", type=Path)
    files = sorted(parser.parse_args().folder.glob("*.json"))
    if not files:
        sys.exit("no figures: no test with the fixture `trust` ran")
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")
    missed = [row["what"] for row in rows if not row["holds"]]
    print(f"{PAGE}: {len(rows)} rows, {len(missed)} of them do not hold{': ' if missed else ''}{'; '.join(missed)}")


if __name__ == "__main__":
    main()
