"""``mechrep heads`` and ``mechrep ablate``: one writes the circuit that the other cuts."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from mechrep.ablation.circuit import Circuit
from mechrep.ablation.effects import Effects
from mechrep.cli import app
from mechrep.measures.head_scores import HeadScoreResult


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.output


@pytest.fixture(scope="module")
def heads_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    output = run("heads", "mechrep-tiny", "--out", folder, "--sequences", 4, "--period", 20, "--loops", 4)
    assert "random repeats" in output and "natural loops" in output and str(folder) in output
    return folder


def test_heads_writes_scores_tables_a_figure_and_a_circuit(heads_folder: Path) -> None:
    for name in ("random-repeats", "natural-loops"):
        result = HeadScoreResult.load(heads_folder / name)
        table = pd.read_parquet(heads_folder / f"{name}.parquet")
        assert len(table) == result.scores.numel()
        assert set(table["score"]) == set(result.names)
    assert "plotly" in (heads_folder / "heads.html").read_text(encoding="utf-8")
    circuit = Circuit.load(heads_folder / "induction.json")
    result = HeadScoreResult.load(heads_folder / "random-repeats")
    assert list(circuit.heads) == result.top(len(circuit.heads), "induction")


def test_ablate_ablates_what_heads_wrote_and_copying_goes(heads_folder: Path, tmp_path: Path) -> None:
    output = run(
        "ablate", "mechrep-tiny", "--circuit", heads_folder / "induction.json", "--out", tmp_path, "--loops", 6
    )
    row = pd.read_parquet(tmp_path / "summary.parquet").set_index("measure").loc["copy_accuracy"]
    assert set(row["controls"].split(", ")) == {"random", "layer_matched", "bos_matched"}
    assert row["value"] < row["baseline"] / 2, "without its induction heads the model cannot copy"
    assert "copy_accuracy" in output and str(tmp_path) in output
    assert Effects.load(tmp_path / "result").conditions
    assert "plotly" in (tmp_path / "ablation.html").read_text(encoding="utf-8")


def test_ablate_refuses_what_is_no_circuit_of_this_model(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    Circuit("far away", heads=[(90, 1)]).save(path)
    assert "90" in run("ablate", "mechrep-tiny", "--circuit", path, "--out", tmp_path / "out", code=1)
    path.write_text(json.dumps({"kind": "shopping list"}), encoding="utf-8")
    run("ablate", "mechrep-tiny", "--circuit", path, "--out", tmp_path / "out", code=1)
    run("ablate", "mechrep-tiny", "--circuit", tmp_path / "none.json", "--out", tmp_path / "out", code=2)
    run("ablate", "mechrep-tiny", "--out", tmp_path / "out", code=2)
