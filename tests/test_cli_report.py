"""``mechrep report``: which studies it runs, with which options, and what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from mechrep.cli import app
from tests.views import head_study_by_hand, study_by_hand


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """What each study was asked; they answer with numbers made by hand."""
    asked: dict[str, dict[str, Any]] = {}
    makers = {
        "mechrep.studies.neurons.run_repetition_study": ("neurons", study_by_hand.study),
        "mechrep.studies.heads.run_head_study": ("heads", head_study_by_hand.study),
    }
    for path, (part, make) in makers.items():

        def study(model: Any, *, part: str = part, make: Any = make, **options: object) -> Any:
            asked[part] = options | {"model": model.name}
            return make()

        monkeypatch.setattr(path, study)
    return asked


def test_all_parts_are_studied_and_the_second_takes_what_the_first_found(
    asked: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("words", encoding="utf-8")
    out = tmp_path / "out"
    options = ["--texts", 7, "--others", 3, "--ks", "0,5", "--seeds", 2, "--seed", 9, "--preset", "hiraoka2025"]
    output = run(
        "report", "mechrep-tiny", "--out", out, *options, "--only", "neurons,heads", "--held-out", tmp_path / "text.txt"
    ).output
    assert output.splitlines()[-1] == str(out / "report.html") and (out / "report.html").stat().st_size > 1_000_000
    common = {"model": "mechrep-tiny", "n_loops": 7, "n_others": 3, "seeds": 2, "seed": 9, "preset": "hiraoka2025"}
    common |= {"held_out_text": "words", "store": out / "store", "progress": None}
    assert asked["neurons"] == common | {"ks": [0, 5]}
    handed_on = {name: asked["heads"].pop(name) for name in ("corpus", "neurons")}
    assert asked["heads"] == common
    assert handed_on["neurons"].top(1) == [(5, 7)] and len(handed_on["corpus"]) == 4
    names = {path.name for path in (out / "tables").iterdir()}
    assert {"neurons.parquet", "scores.parquet", "single.parquet", "cut-best-induction-head.parquet"} <= names
    assert list(json.loads((out / "provenance.json").read_text())) == ["repetition", "heads"]


@pytest.mark.parametrize(
    ("only", "parts"), [("neurons", ["neurons"]), ("heads", ["heads"]), (" heads,neurons", ["neurons", "heads"])]
)
def test_parts_can_be_chosen(asked: dict[str, dict[str, Any]], tmp_path: Path, only: str, parts: list[str]) -> None:
    run("report", "mechrep-tiny", "--out", tmp_path, "--only", only)
    assert list(asked) == parts
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [f'<section id="{part}">' in page for part in ("neurons", "heads")] == [
        p in parts for p in ("neurons", "heads")
    ]


@pytest.mark.slow
def test_report_from_end_to_end(tmp_path: Path) -> None:
    arguments = ["report", "mechrep-tiny", "--out", tmp_path, "--texts", 12, "--others", 2, "--ks", "0,5", "--seeds", 1]
    assert run(*arguments).output.splitlines()[-1] == str(tmp_path / "report.html")
