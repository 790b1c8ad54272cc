"""The table of families: what mechrep can do with every architecture, each cell held against an oracle.

``python -m tests.families.table`` prints cells that are wrong; ``--write docs/families.md`` writes the page; ``--only
NAME`` does one family.  The exit status is 1 where a cell is wrong.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
import transformers

from mechrep.errors import MechrepError
from tests.families.capabilities import CAPABILITIES, Capability, Case, Difference
from tests.families.zoo import Family, families

Row = dict[str, str]  # by capability: "right", "right (layers 1, 3)", "not there, because ..." or "WRONG: ..."


def verdict(capability: Capability, case: Case) -> str:
    """One cell.  Whatever is raised, a crash too, becomes a word in it: the table goes on."""
    try:
        said = capability.run(case)
    except Difference as difference:
        return f"WRONG: {difference}"
    except MechrepError as error:
        return f"not there, because {because(error, type(case.module).__name__)}"
    except Exception as error:  # the one place where any error is caught: it is what the table is looking for
        return f"WRONG: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
    return f"right ({said})" if said else "right"


def because(error: MechrepError, architecture: str) -> str:
    """One sentence out of an error of mechrep's, the same for all models."""
    said = f"this needs {error.expected}; here it is {error.given}"
    for name in (f"'{architecture}' ({architecture})", f"{architecture} ({architecture})", f"'{architecture}'"):
        said = said.replace(name, architecture)
    return re.sub(rf"(?<!type )(?<!class ){architecture}", "the model", said)


def row(name: str, family: Family, capabilities: Iterable[Capability] = CAPABILITIES) -> Row:
    """One family.  A model that cannot be loaded has no other cell of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case, cells = Case(name, family), Row()
        loading, *others = capabilities
        cells[loading.name] = verdict(loading, case)
        refused = cells[loading.name].startswith("not there")
        if family.refused and not refused:
            cells[loading.name] = f"WRONG: no decoder with softmax attention, and it was loaded ({cells[loading.name]})"
        crashed = cells[loading.name].startswith("WRONG") and "model" not in vars(case)
        for capability in others:
            cells[capability.name] = cells[loading.name] if refused or crashed else verdict(capability, case)
    return cells


def page(table: dict[str, Row]) -> str:
    """The table as Markdown, with what is not there spelled out below."""
    known = families()
    columns = [capability.name for capability in CAPABILITIES]
    counted = Counter(
        cell.partition(",")[0].partition(":")[0].partition(" (")[0] for r in table.values() for cell in r.values()
    )
    lines = [
        "# Families",
        "",
        f"{len(table)} architectures x {len(columns)} capabilities, made by `make families` from tiny random models "
        f"(transformers {transformers.__version__}): {counted['right']} cells right, {counted['not there']} not there, "
        f"{counted['WRONG']} wrong. *Right* means: equal to what plain torch hooks, and forward passes without a "
        "cache, give on the Hugging Face model, text by text.",
        "",
        "A tick is right; a tick with a number, right in the layers that have it (see below); a number alone is not "
        "there, for the reason of that number.",
        "",
        "| family | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    notes: dict[str, int] = {}

    def cell(text: str) -> str:
        if text == "right":
            return "✓"
        mark = "✓ " if text.startswith("right") else "**wrong** " if text.startswith("WRONG") else ""
        said = text.removeprefix("right (").removesuffix(")") if text.startswith("right") else text
        return f"{mark}{notes.setdefault(said, len(notes) + 1)}"

    for name, cells in table.items():
        lines.append(f"| {name} | " + " | ".join(cell(cells[column]) for column in columns) + " |")
    lines += ["", "## Notes", "", *(f"{number}. {_escaped(said)}" for said, number in notes.items())]
    lines += ["", "## What is special about each", "", *(f"* **{name}**: {known[name].note}." for name in table), ""]
    return "\n".join(lines)


def _escaped(said: str) -> str:
    return said.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def main(arguments: list[str] | None = None) -> int:
    """Make the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="write the page there")
    parser.add_argument("--only", action="append", help="one family, by name; may be given again")
    parser.add_argument("--all-cells", action="store_true", help="print every cell, not only wrong ones")
    options = parser.parse_args(arguments)
    torch.set_grad_enabled(False)
    table: dict[str, Row] = {}
    for name, family in families().items():
        if options.only and name not in options.only:
            continue
        began = time.monotonic()
        table[name] = row(name, family)
        right = sum(cell.startswith("right") for cell in table[name].values())
        wrong = {column: cell for column, cell in table[name].items() if cell.startswith("WRONG")}
        print(f"{name}: {right} right, {len(wrong)} wrong of {len(table[name])} ({time.monotonic() - began:.1f} s)")
        for column, cell in (table[name] if options.all_cells else wrong).items():
            print(f"    {column}: {cell}")
        sys.stdout.flush()
    if options.write:
        options.write.write_text(page(table), encoding="utf-8")
    return int(any(cell.startswith("WRONG") for cells in table.values() for cell in cells.values()))


if __name__ == "__main__":
    sys.exit(main())
