"""The table of docs/trust.md about float32, bfloat16 and float16, measured anew: about two minutes on one core.

    python .ci/numerics.py          # what `make numerics` runs

It measures what tests/numerics tests: against float64 of the same (rounded) weights and, beside it, of the weights
before they were rounded.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PAGE = ROOT / "docs" / "trust.md"
BEGIN, END = "<!-- numerics: begin (written by .ci/numerics.py) -->", "<!-- numerics: end -->"


def statistics() -> list[str]:
    """A line per statistic of every analyzer on mechrep-tiny."""
    from tests.numerics.analyzers import MAKERS, TINY
    from tests.numerics.measure import LOW, analyzed, rows_of

    names = [
        "statistic",
        "float32",
        "float16",
        "bfloat16",
        "bfloat16, rounding of the weights included",
        "first five in bfloat16",
    ]
    lines = [f"| {' | '.join(names)} |", "|---|---|---|---|---|---|"]
    for name, make in MAKERS.items():
        if name == "RouterShift":
            continue
        by_type = {dtype: {row.what: row for row in rows_of(name, dtype, analyzed(make), model=TINY)} for dtype in LOW}
        for what, row in by_type["bfloat16"].items():
            single, half = by_type["float32"][what].error, by_type["float16"][what].error
            if not any((single, half, row.error, row.with_weights)) or row.error > 1:
                continue  # numbers of texts and the like; and what is but the rounding of a zero
            top = "" if row.top != row.top else f"{5 * row.top:.0f} of 5"
            lines.append(f"| {what} | {single:.0e} | {half:.0e} | {row.error:.0e} | {row.with_weights:.0e} | {top} |")
    return lines


def answers() -> list[str]:
    """A line per answer that a reader takes from mechrep-tiny."""
    from tests.numerics.behaviour import of_dtype
    from tests.numerics.measure import LOW

    order = ["float32", "float16", "bfloat16"]
    found = {dtype: of_dtype(dtype, texts=32) for dtype in LOW}
    lines = ["| answer | float32 | float16 | bfloat16 |", "|---|---|---|---|"]
    for what in found["float32"]:
        cells = (found[dtype][what] for dtype in order)
        shown = ("none" if one != one else f"{one:.0e}" if 0 < one < 0.02 else f"{one:.3g}" for one in cells)
        lines.append(f"| {what} | {' | '.join(shown)} |")
    return lines


def main() -> None:
    """Write both tables."""
    warnings.simplefilter("ignore")
    page = PAGE.read_text(encoding="utf-8")
    before, found, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise SystemExit(f"{PAGE}: the lines {BEGIN} and {END} are missing")
    tables = "\n\n".join(["\n".join(answers()), "\n".join(statistics())])
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
