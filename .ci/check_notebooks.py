"""Do notebooks/*.py and notebooks/*.ipynb come in pairs, with the same cells, and can what they show be seen as stored?

Outputs are not compared: what is checked is that every cell has been run, that pictures and views are there without a
script, and that nothing names the machine or the moment.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext

REMEDY = "edit the .py, then: make notebooks-sync"
AGAIN = "make notebooks-stored"
MOST = 1.5e6  # bytes of a notebook
_VIEW = "application/vnd.mechrep.view+json"
_NEEDS_MORE = ("application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json")
_PACKED = re.compile(r'base64,[\w+/=]+|"data": ?"[\w+/=]+"')  # numbers, in which any letters can come
_PLACE = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|Users|usr|opt|var|mnt)/\S*")
_MOMENT = re.compile(r"\b20\d\d-\d\d-\d\d[T ]\d\d:\d\d")


def cells(path: Path) -> list[tuple[str, str]]:
    """The kind and the source of each cell of a notebook, in order."""
    return [(cell.cell_type, cell.source.strip()) for cell in jupytext.read(path).cells]


def of_pairs(folder: Path) -> Iterator[str]:
    """One line for each notebook whose two files differ, or of which one is missing."""
    for stem in sorted({path.stem for path in folder.glob("*.*") if path.suffix in {".py", ".ipynb"}}):
        script, notebook = folder / f"{stem}.py", folder / f"{stem}.ipynb"
        if not script.exists() or not notebook.exists():
            yield f"{folder / stem}: only one of .py and .ipynb is there; {REMEDY}"
        elif cells(script) != cells(notebook):
            yield f"{folder / stem}: the .py and the .ipynb differ; {REMEDY}"


def of_outputs(path: Path) -> Iterator[str]:
    """One line for each thing that a reader without a kernel would miss, or should not see."""
    text = path.read_text(encoding="utf-8")
    code = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in code for output in cell["outputs"]]
    shown = [output["data"] for output in outputs if "data" in output]
    if missing := sum(cell["execution_count"] is None for cell in code):
        yield f"{path}: {missing} of {len(code)} cells have not been run since they were changed; {AGAIN}"
    if len(text) > MOST:
        yield f"{path}: {len(text) / 1e6:.2f} MB; expected at most {MOST / 1e6} MB; show less, or smaller"
    if not any(_VIEW in data for data in shown):
        yield f"{path}: no view is stored; {AGAIN}"
    for data in shown:
        if live := [kind for kind in _NEEDS_MORE if kind in data]:
            yield f"{path}: {live[0]} needs a script or a kernel; {AGAIN}"
        if _VIEW in data and not {"image/svg+xml", "image/png"} <= set(data):
            yield f"{path}: a view without a picture; {AGAIN}"
    if any(output["output_type"] == "error" or output.get("name") == "stderr" for output in outputs):
        yield f"{path}: an error or a warning is stored; {AGAIN}"
    for pattern in (_PLACE, _MOMENT):
        if found := pattern.search(_words(outputs)):
            yield f"{path}: {found[0]!r} names the machine or the moment; leave it out"


def _words(outputs: list[Any]) -> str:
    """What a reader can read in outputs."""
    pieces = [output.get("text", "") for output in outputs]
    pieces += [part for output in outputs for kind, part in output.get("data", {}).items() if kind != "image/png"]
    texts = [
        "".join(one) if isinstance(one, list) else one if isinstance(one, str) else json.dumps(one) for one in pieces
    ]
    return _PACKED.sub("", "\n".join(texts))


if __name__ == "__main__":
    found = [
        *of_pairs(Path("notebooks")),
        *(one for path in sorted(Path("notebooks").glob("*.ipynb")) for one in of_outputs(path)),
    ]
    print("\n".join(found) or "Each notebook is the same in .py and .ipynb, and is stored with what it shows.")
    sys.exit(bool(found))
