"""Runs the notebooks, each in a kernel of its own, and says what each of them and its slowest cells took.

    python .ci/run_notebooks.py                         # all of notebooks/*.ipynb: do they run?
    python .ci/run_notebooks.py --store                 # and keep what they show in the .ipynb
    python .ci/run_notebooks.py --workers 2 01_quickstart 03_heads

What is stored can be seen without a kernel and without a script: tables, text, and every figure and every view as a
picture (SVG, and PNG for readers that show no SVG of strangers).  Of a view its data are stored too: the documentation
makes the live one of them.  The notebook on a pretrained model is stored with that model alone.  Exit status 1: one
failed.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).parents[1] / "notebooks"
VIEW = "application/vnd.mechrep.view+json"
PRETRAINED = {"09_a_real_model": "smollm2-135m"}
_LIVE, _SVG, _PNG = "application/vnd.plotly.v1+json", "image/svg+xml", "image/png"
_PAYLOAD = re.compile(r'<div class="mechrep-view".*?<script type="application/json">(.*?)</script>', re.DOTALL)
_SLOWEST = 3
_LIMIT = 600  # seconds of a cell
_TALL = 1000  # pixels of a picture whose PNG is made smaller


def run(path: Path) -> tuple[nbformat.NotebookNode, list[tuple[float, int]], str]:
    """Run one notebook: itself with its outputs, seconds and number of each cell of code, and what went wrong."""
    notebook = nbformat.read(path, as_version=4)
    seconds: list[tuple[float, int]] = []
    begun = [0.0]

    def begin(**_: Any) -> None:
        begun[0] = time.monotonic()

    def end(cell_index: int, **_: Any) -> None:
        seconds.append((time.monotonic() - begun[0], cell_index))

    client = NotebookClient(
        notebook,
        timeout=_LIMIT,
        kernel_name="python3",
        record_timing=False,
        on_cell_execute=begin,
        on_cell_executed=end,
        startup_timeout=_LIMIT,
        extra_arguments=["--log-level=40"],  # a kernel on this machine alone: no word about encryption
        resources={"metadata": {"path": str(path.parent)}},
    )
    try:
        client.execute()
    except CellExecutionError as error:
        return notebook, seconds, str(error)
    return notebook, seconds, ""


# --- what is stored -------------------------------------------------------------------------------------------------


def store(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write a notebook with outputs that need neither kernel nor script."""
    with _pictures() as picture:
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = [one for output in cell.outputs for one in _kept(output, picture)]
    # Not of which Python: the same outputs would differ from machine to machine.
    notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def _kept(output: Any, picture: Any) -> Iterator[Any]:
    if output.output_type == "stream":
        if output.name == "stdout":
            yield output
        return
    data = dict(output.get("data", {}))
    shown = _PAYLOAD.search(data.get("text/html", ""))
    if shown:
        data[VIEW] = json.loads(shown[1])
        del data["text/html"]
    data.pop(_LIVE, None)
    if _SVG in data:
        data[_PNG] = base64.b64encode(picture(data[_SVG])).decode()
    if data.get("text/html") != "":  # what a bar of progress leaves behind
        output.data, output.metadata = nbformat.from_dict(data), nbformat.from_dict({})
        yield output


@contextmanager
def _pictures() -> Iterator[Any]:
    """Draws SVG as PNG, in a browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 900})

        def picture(svg: str) -> bytes:
            tall = int(re.search(r' height="(\d+)', svg)[1]) > _TALL  # pyright: ignore[reportOptionalSubscript]
            small = "<style>svg { width: 600px; height: auto }</style>" * tall
            page.set_content(f'{small}<body style="margin:0;line-height:0">{svg}</body>')
            return page.locator("svg").first.screenshot(omit_background=True)

        yield picture
        browser.close()


def _pretrained(name: str) -> bool:
    """Whether the model that a notebook is about is there."""
    folder = Path(os.environ.get("MECHREP_REAL_MODELS", FOLDER.parent / "real-models"))
    return name not in PRETRAINED or (folder / PRETRAINED[name]).is_dir()


def _worked() -> float:
    """Seconds of a processor that kernels of this process have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def one(name: str, stored: bool) -> tuple[str, str]:
    """Run one notebook: what to say of it, and what went wrong."""
    path, started, worked = FOLDER / f"{name}.ipynb", time.monotonic(), _worked()
    notebook, seconds, failed = run(path)
    slowest = ", ".join(f"cell {cell} {took:.0f} s" for took, cell in sorted(seconds, reverse=True)[:_SLOWEST])
    said = f"{name}: {time.monotonic() - started:.0f} s, {_worked() - worked:.0f} s of a processor ({slowest})"
    if stored and not failed:
        if _pretrained(name):
            store(notebook, path)
            said += f", stored, {path.stat().st_size / 1e6:.2f} MB"
        else:
            said += f", not stored: it is about {PRETRAINED[name]} (make real-models)"
    return said, failed


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of notebooks; all by default")
    parser.add_argument("--store", action="store_true", help="keep what they show")
    parser.add_argument("--workers", type=int, default=1, help="notebooks at a time")
    chosen = parser.parse_args()
    names = [Path(name).stem for name in chosen.names] or sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    names = sorted(names, key=lambda name: name not in PRETRAINED)  # what takes longest must not begin last
    failures: Mapping[str, str] = {}
    with ProcessPoolExecutor(chosen.workers) as pool:
        for name, (said, failed) in zip(names, pool.map(one, names, [chosen.store] * len(names)), strict=True):
            print(said, flush=True)
            failures = {**failures, name: failed} if failed else failures
    for name, failed in failures.items():
        print(f"\n{name} failed:\n{failed}", flush=True)
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
