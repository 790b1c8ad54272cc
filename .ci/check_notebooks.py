"""Do notebooks/*.py and notebooks/*.ipynb come in pairs, with the same cells?  Outputs are not compared."""

from __future__ import annotations

import sys
from pathlib import Path

import jupytext

REMEDY = "edit the .py, then: make notebooks-sync"


def cells(path: Path) -> list[tuple[str, str]]:
    """The kind and the source of each cell of a notebook, in order."""
    return [(cell.cell_type, cell.source.strip()) for cell in jupytext.read(path).cells]


def complaints(folder: Path) -> list[str]:
    """One line for each notebook whose two files differ, or of which one is missing."""
    found = []
    for stem in sorted({path.stem for path in folder.glob("*.*") if path.suffix in {".py", ".ipynb"}}):
        script, notebook = folder / f"{stem}.py", folder / f"{stem}.ipynb"
        if not script.exists() or not notebook.exists():
            found.append(f"{folder / stem}: only one of .py and .ipynb is there; {REMEDY}")
        elif cells(script) != cells(notebook):
            found.append(f"{folder / stem}: the .py and the .ipynb differ; {REMEDY}")
    return found


if __name__ == "__main__":
    lines = complaints(Path("notebooks"))
    print("\n".join(lines) or "Each notebook is the same in .py and .ipynb.")
    sys.exit(bool(lines))
