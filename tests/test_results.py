"""Results on disk: whole or not at all, no pickle, nothing of the user's deleted; and where a result comes from."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from mechrep.errors import StoreError
from mechrep.progress import progress_bar
from mechrep.provenance import Provenance, package_versions
from mechrep.results import Result

PROVENANCE = Provenance({"name": "<b>hand</b>"}, {"texts": 3}, {"r": 5, "window": None})


@dataclass(frozen=True, eq=False)
class Small(Result):
    """Two tensors and some plain values."""

    one: Tensor
    other: Tensor
    names: list[str]
    count: int | None

    def to_frame(self) -> pd.DataFrame:
        """One row per name."""
        return pd.DataFrame({"name": self.names})


@dataclass(frozen=True, eq=False)
class Another(Small):
    """The same fields under another name."""


def small(**changes: Any) -> Small:
    fields = {"one": torch.randn(3, 4), "other": torch.tensor([[1, 2]]), "names": ["é<script>", "b"], "count": None}
    return Small(PROVENANCE, **(fields | changes))


FILES = ["SHA256SUMS", "result.json", "tensors.safetensors"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "one",
    [
        torch.tensor([float("nan"), float("inf"), -0.0]),
        torch.arange(12.0).reshape(3, 4).T,  # not contiguous
        torch.randn(2, 3).bfloat16(),
        torch.zeros(0, 5),
    ],
)
def test_what_was_saved_is_loaded_bit_by_bit(tmp_path: Path, one: Tensor) -> None:
    saved = small(one=one)
    saved.save(tmp_path / "result")
    loaded = Small.load(tmp_path / "result")
    assert loaded.one.dtype == one.dtype and loaded.one.shape == one.shape
    assert torch.equal(loaded.one.isnan(), one.isnan()) and torch.equal(loaded.one.nan_to_num(), one.nan_to_num())
    assert torch.equal(loaded.other, saved.other) and loaded.names == saved.names and loaded.count is None
    assert loaded.provenance == saved.provenance
    assert names(tmp_path) == ["result"] and names(tmp_path / "result") == FILES


def test_tensors_that_share_memory_are_saved_too(tmp_path: Path) -> None:
    base = torch.randn(4, 4)
    small(one=base, other=base[1:]).save(tmp_path / "result")
    loaded = Small.load(tmp_path / "result")
    assert torch.equal(loaded.one, base) and torch.equal(loaded.other, base[1:])


def test_saving_again_replaces_the_whole_result(tmp_path: Path) -> None:
    small().save(tmp_path / "result")
    newer = small(names=["c"])
    newer.save(str(tmp_path / "result"))
    assert Small.load(tmp_path / "result").names == ["c"]
    assert torch.equal(Small.load(tmp_path / "result").one, newer.one)


def test_a_folder_of_other_things_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(StoreError, match="thesis, a folder of other things"):
        small().save(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"
    (tmp_path / "file").write_text("a file")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match="a place to write"):
            small().save(folder)
    assert names(tmp_path) == ["file", "thesis"] and (tmp_path / "file").read_text() == "a file"
    (tmp_path / "empty").mkdir()
    small().save(tmp_path / "empty")
    assert Small.load(tmp_path / "empty").names == small().names


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_a_full_disk_leaves_the_old_result_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    old = small()
    old.save(tmp_path / "result")

    def full(tensors: Any, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(StoreError, match=r"result.*No space left on device.*free space"):
        small().save(tmp_path / "result")
    assert names(tmp_path) == ["result"] and torch.equal(Small.load(tmp_path / "result").one, old.one)


def test_what_is_no_result_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "result"
    with pytest.raises(StoreError, match=r"result.*a folder written by save"):
        Small.load(folder)
    small().save(folder)
    with pytest.raises(StoreError, match=r"a Small in .*load it with Small\.load"):
        Another.load(folder)
    # As mechrep 0.1 wrote it: without sums, so that what is in it decides.
    (folder / "SHA256SUMS").unlink()
    good = {key: value for key, value in json.loads((folder / "result.json").read_text()).items() if key != "version"}
    (folder / "result.json").write_text(json.dumps(good))
    assert Small.load(folder).names == small().names
    (folder / "result.json").write_text(json.dumps(good | {"version": 3}))
    with pytest.raises(StoreError, match=r"version 3.*version 1 or 2.*newer"):
        Small.load(folder)
    lacking = {key: value for key, value in good["values"].items() if key != "count"}
    damaged: list[Any] = [
        [],
        {"kind": "Small"},
        good | {"values": lacking},
        good | {"values": good["values"] | {"stranger": 1}},
        good | {"provenance": {"model": {}}},
        good | {"provenance": None},
    ]
    for record in damaged:
        (folder / "result.json").write_text(json.dumps(record))
        with pytest.raises(StoreError, match="a folder written by save"):
            Small.load(folder)
    (folder / "result.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(StoreError, match="a folder written by save"):
        Small.load(folder)


def test_a_notebook_shows_names_as_text() -> None:
    page = small()._repr_html_()
    assert "<script" not in page and "<b>" not in page
    assert "é&lt;script&gt;" in page and "&lt;b&gt;hand&lt;/b&gt;" in page and "3 texts" in page


def test_provenance_names_the_versions_that_ran() -> None:
    versions = package_versions()
    assert versions["torch"] == torch.__version__ and versions["python"].count(".") == 2
    assert {"mechrep", "transformer-lens", "transformers", "numpy"} < set(versions)
    assert Provenance(**json.loads(json.dumps(PROVENANCE.to_dict()))) == PROVENANCE


def test_progress_is_shown_to_people_only(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    for shown, expected in ((True, True), (False, False), (None, False)):  # no terminal is watching here
        with progress_bar(2, "reading", "text", shown) as bar:
            bar.update(2)
        captured = capsys.readouterr()
        assert ("reading" in captured.err) == expected and captured.out == ""


def test_progress_is_lines_in_a_log_and_nothing_in_continuous_integration(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for ci, lines in (("", 2), ("true", 0)):
        monkeypatch.setenv("CI", ci)
        with progress_bar(2, "reading", "text", every=0.0) as bar:
            bar.update(1)
            bar.update(1)
        said = capsys.readouterr()
        assert said.err.count("reading: ") == lines and said.out == ""


def test_a_notebook_gets_a_bar_that_goes_when_it_is_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    display = pytest.importorskip("IPython.display", reason="IPython is not installed: pip install mechrep[notebooks]")
    pages: list[str] = []

    class Handle:
        def update(self, page: Any) -> None:
            pages.append(page.data)

    def shown(page: Any, display_id: bool) -> Handle:
        assert display_id
        pages.append(page.data)
        return Handle()

    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    monkeypatch.delenv("CI", raising=False)
    with progress_bar(4, "reading", "text", every=0.0) as bar:
        bar.update(1)
    assert not pages and "reading: 1 of 4" in capsys.readouterr().err, "imported, but no kernel runs"
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setattr(display, "display", shown)
    monkeypatch.setattr("mechrep.progress._SECONDS_BETWEEN_BARS", 0.0)
    with progress_bar(4, "<reading>", "text") as bar:
        bar.update(1)
        bar.update(3)
    assert "&lt;reading&gt;: 1 of 4" in pages[0] and 'value="4" max="4"' in pages[1] and pages[2] == ""
    said = capsys.readouterr()
    assert said.err == "" and said.out == ""
