"""``mechrep patch``: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import mechrep.cli.patch  # noqa: F401 - adds its command
from mechrep.cli.app import app
from mechrep.errors import NothingFoundError
from mechrep.studies.sink_patch import PatchStudyResult


def run(*arguments: object, code: int = 0):
    """Run one command and check its exit code."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def test_it_prints_and_writes(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The sea was calm that day, and the king went out to sea. " * 12)
    out = tmp_path / "out"
    output = run(
        "patch", "mechrep-tiny", "--layer", 0, "--neurons", "3,8", "--repeats", 20, "--seeds", 1,
        "--text", tmp_path / "text.txt", "--out", out,
    ).output  # fmt: skip
    assert "layer 0, neurons 3, 8" in output and "perplexity" in output and output.splitlines()[-1] == str(out)
    result = PatchStudyResult.load(out / "result")
    assert result.neurons == [3, 8] and result.repeats == 20
    summary = pd.read_csv(out / "summary.csv")
    assert summary["measure"].tolist() == result.summary()["measure"].tolist()
    assert [row["measure"] for row in json.loads((out / "summary.json").read_text())] == summary["measure"].tolist()
    assert len(pd.read_csv(out / "conditions.csv")) == len(result.selections)


def test_no_sink_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object, **__: object) -> None:
        raise NothingFoundError("a model: no norm sink", "a norm sink", "there is nothing to patch here")

    monkeypatch.setattr("mechrep.studies.sink_patch.run_patch_study", nothing)
    output = run("patch", "mechrep-tiny", "--out", tmp_path / "out", code=1).output
    assert output.startswith("error: ") and "nothing to patch here" in output and len(output.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--layer", "0"], 2),
        (["--neurons", "3"], 2),
        (["--layer", "0", "--neurons", "three"], 2),
        (["--layer", "9", "--neurons", "3"], 1),
        (["--text", "/no/such/file"], 2),
        (["--seeds", "0"], 2),
    ],
)
def test_bad_input(arguments: list[str], code: int, tmp_path: Path) -> None:
    run("patch", "mechrep-tiny", "--out", tmp_path / "out", *arguments, code=code)
