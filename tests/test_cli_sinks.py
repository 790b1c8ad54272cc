"""``mechrep sinks``: what it writes, for a model with a sink and for one without."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import mechrep.cli.sinks  # noqa: F401 - adds its command
from mechrep.ablation.effects import Effects
from mechrep.cli import app
from mechrep.measures.sink_norms import RepeatNormResult
from mechrep.studies.find_sink import SinkResult

FIGURES = ("norms", "heads", "repeats", "attention")


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["sinks", *map(str, arguments), "--effort", "quick"])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


@pytest.mark.slow
def test_a_model_with_a_sink(tmp_path: Path) -> None:
    output = run("mechrep-tiny", "--out", tmp_path, "--tokens", 4, "--repeats", 16, "--no-behaviour")
    sink, ablation = SinkResult.load(tmp_path / "sink"), Effects.load(tmp_path / "ablation")
    assert all(f"L{layer}N{neuron}" in output for layer, neuron in sink.neurons) and "supported" in output
    assert ablation.conditions[1].components["neurons"] == sink.neurons
    assert RepeatNormResult.load(tmp_path / "repeats").repeats[-1] == 16
    for name in ("layers", "norms", "repeats", "heads", "ablation"):
        assert len(pd.read_parquet(tmp_path / f"{name}.parquet"))
    for name in (*FIGURES, "ablation"):
        assert "plotly" in (tmp_path / f"{name}.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_model_without_a_sink(tmp_path: Path, shared: Path) -> None:
    folder = shared / "models" / "stories260K"
    run(folder, "--out", tmp_path, "--tokens", 4, "--repeats", 100, "--no-behaviour")
    assert not SinkResult.load(tmp_path / "sink").found
    repeats = RepeatNormResult.load(tmp_path / "repeats")
    norms = pd.read_parquet(tmp_path / "norms.parquet")
    largest = (repeats.norm[:, 1:, -1].double().amax(0).numpy() / norms["other_norm"].to_numpy()).max()
    assert largest < 5, "no repeat is as large as a sink would be"
    assert not (tmp_path / "behaviour").exists() and not (tmp_path / "ablation").exists()
    assert all((tmp_path / f"{name}.html").is_file() for name in FIGURES)
