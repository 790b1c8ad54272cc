"""``.ci/real_models.py``: packages that come in pieces, and nothing left behind where one does not come."""

from __future__ import annotations

import hashlib
import importlib.util
import zipfile
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "real_models.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    if not SCRIPT.is_file():
        pytest.skip("needs a checkout with .ci/")
    spec = importlib.util.spec_from_file_location("real_models", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "real_models", module)  # where its dataclass looks up annotations
    spec.loader.exec_module(module)
    return module


def wheels(folder: Path) -> list[Path]:
    made = [folder / f"part{number}.whl" for number in (1, 2)]
    for number, path in enumerate(made):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"data/model.gguf.part{number}", b"ab" if number == 0 else b"c")
            archive.writestr(f"gguf_part{number}/__init__.py", b"not a piece")
    return made


def test_pieces_are_put_together_in_order(script: Any, tmp_path: Path) -> None:
    digest = script.put_together(wheels(tmp_path), tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == b"abc"
    assert digest == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize("fails", ["not fetched", "another file", "not converted"])
def test_a_failure_leaves_nothing_and_the_next_run_makes_it(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    source = script.Source("A", ("a==1",), hashlib.sha256(b"abc").hexdigest(), "free", "no time")
    (tmp_path / "packages").mkdir()
    made, out = wheels(tmp_path / "packages"), tmp_path / "out"

    def fetch(*_: Any) -> list[Path]:
        if fails == "not fetched":
            raise script.FetchError("no network")
        return made[:1] if fails == "another file" else made

    def convert(_: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        if fails == "not converted":
            raise ValueError("half-way")

    monkeypatch.setitem(script.SOURCES, "a", source)
    monkeypatch.setattr(script, "fetch", fetch)
    monkeypatch.setattr(script, "convert", convert)
    monkeypatch.setattr("sys.argv", ["real_models.py", "a", "--out", str(out)])
    assert script.main() == (script.NOT_FETCHED if fails == "not fetched" else 1)
    assert not out.exists()
    fails = ""
    assert script.main() == 0 and sorted(path.name for path in out.iterdir()) == ["a"]
    monkeypatch.setattr(script, "fetch", None)
    assert script.main() == 0, "what is there is left alone"
