"""Notebooks in a JupyterLab that is started for real: figures and views are there, can be pointed at, nothing fails."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jupyterlab", reason="jupyterlab is not installed: pip install mechrep[lab]")
pytestmark = pytest.mark.slow

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
_RUN = "() => window.jupyterapp.commands.execute('notebook:run-all-cells')"
_SAVE = "() => window.jupyterapp.commands.execute('docmanager:save')"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address and folder of a server with its own settings, in which every cell of a notebook is on the page."""
    folder = tmp_path_factory.mktemp("lab")
    settings = folder / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text(json.dumps({"windowingMode": "none"}), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "PYTHONPATH": str(NOTEBOOKS.parent),
        "HF_HUB_OFFLINE": "1",
    }
    (folder / "notebooks").mkdir()
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
        "--ServerApp.ip=127.0.0.1", "--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True",
        f"--ServerApp.root_dir={folder / 'notebooks'}", "--LabApp.news_url=None",
    ]  # fmt: skip
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            _until(lambda: _answers(f"{address}/api"), 90, lambda: (folder / "log").read_text(encoding="utf-8"))
            yield address, folder / "notebooks"
        finally:
            server.terminate()
            server.wait(20)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except OSError:
        return False


def _until(done: Any, seconds: float, what: Any) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, what()
        time.sleep(0.5)


@pytest.mark.parametrize("name", ["01_quickstart", "09_a_real_model"])
def test_a_notebook_runs_and_shows_its_loops(lab: tuple[str, Path], chromium: Any, name: str) -> None:
    address, folder = lab
    path = folder / f"{name}.ipynb"
    shutil.copy(NOTEBOOKS / path.name, path)
    cells = [one for one in json.loads(path.read_text(encoding="utf-8"))["cells"] if one["cell_type"] == "code"]
    context = chromium.new_context(viewport={"width": 1400, "height": 1000})
    said: list[str] = []
    try:
        page = context.new_page()
        page.on("pageerror", lambda error: said.append(str(error)))
        # A workspace of its own: the server would open the notebook of the last test again beside this one.
        page.goto(f"{address}/lab/workspaces/{name}/tree/{path.name}", timeout=120_000)
        page.wait_for_selector(".jp-CodeCell", timeout=120_000)
        page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.sessionContext?.isReady", timeout=120_000)
        page.evaluate(_RUN)
        prompts = [one.inner_text() for one in page.query_selector_all(".jp-CodeCell .jp-InputPrompt")]
        assert prompts[-1].strip() == f"[{len(cells)}]:", prompts
        assert not page.query_selector_all('[data-mime-type="application/vnd.jupyter.error"]')
        assert page.query_selector(".js-plotly-plot, .jp-RenderedPlotly, .jp-RenderedSVG, .jp-RenderedHTML svg")

        view = page.wait_for_selector(".mv-text")
        view.scroll_into_view_if_needed()
        before = page.text_content(".mv-readout")
        page.hover(".mv-grid .mv-token >> nth=3")
        page.wait_for_function("was => document.querySelector('.mv-readout').textContent !== was", arg=before)
        page.evaluate(_SAVE)
    finally:
        context.close()
    assert said == []
    stored = json.loads(path.read_text(encoding="utf-8"))
    outputs = [one for cell in stored["cells"] for one in cell.get("outputs", [])]
    assert not [one for one in outputs if one.get("name") == "stderr" and "Warning" in "".join(one["text"])]
