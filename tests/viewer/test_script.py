"""The script's own tests, in node."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from mechrep.viewer.assets import viewer_script


def test_what_the_script_works_out() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    done = subprocess.run(
        [node, "--test", str(Path(__file__).with_name("numbers.test.mjs"))], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_script_needs_no_other_file_and_ends_no_script_element() -> None:
    script = viewer_script()
    assert "\nimport " not in script and not script.startswith("import ")
    assert "</script" not in script and "<!--" not in script
    assert script.count("export default") == 1
    assert "innerHTML" not in script and "insertAdjacent" not in script  # texts are set as text


def test_sizes_of_the_files() -> None:
    folder = Path(__file__).parents[2] / "mechrep" / "viewer"
    for file in folder.iterdir():
        if file.is_file():
            assert len(file.read_text(encoding="utf-8").splitlines()) <= 700, file.name
