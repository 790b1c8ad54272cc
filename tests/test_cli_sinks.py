"""``mechrep sinks``: what it prints and writes, for a model with a sink and for one without."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import mechrep.cli.sinks  # noqa: F401 - adds its command
from mechrep.cli import app
from mechrep.measures.find_sink import SinkResult
from mechrep.measures.sink_norms import RepeatNormResult
from mechrep.studies.repeat_behaviour import RepeatBehaviourResult
from mechrep.studies.sink_ablation import MEASURES, SinkCutResult

FIGURES = ("norms-by-layer", "norms-vs-repeats", "sink-heads", "attention")


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["sinks", *map(str, arguments)])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


@pytest.mark.slow
def test_a_model_with_a_sink(tmp_path: Path) -> None:
    output = run("mechrep-tiny", "--out", tmp_path, "--tokens", 4, "--repeats", 60)
    sink = SinkResult.load(tmp_path / "sink")
    assert sink.reason in output and f"sink layer {sink.layer}" in output
    assert all(f"{layer}:{neuron}" in output for layer, neuron in sink.neurons)
    assert all(way in output for way in sink.agreement) and "null models" in output
    assert "nothing is published on mechrep-tiny" in output
    assert RepeatNormResult.load(tmp_path / "repeats").repeats[-1] == 60
    behaviour = RepeatBehaviourResult.load(tmp_path / "behaviour")
    assert list(behaviour.conditions) == ["none", "sink", "matched", "random 0", "random 1", "random 2"]
    cut = SinkCutResult.load(tmp_path / "ablation")
    assert [list(unit) for unit in cut.units[1]] == [list(unit) for unit in sink.neurons] and "layer_matched" in output
    assert all(measure in output for measure in MEASURES)
    for name in ("layers", "norms", "repeats", "heads", "ablation", "behaviour"):
        assert len(pd.read_parquet(tmp_path / f"{name}.parquet"))
    for name in (*FIGURES, "cause", "behaviour"):
        assert "plotly" in (tmp_path / f"{name}.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_model_without_a_sink(tmp_path: Path, shared: Path) -> None:
    folder = shared / "models" / "stories260K"
    output = run(folder, "--out", tmp_path, "--tokens", 8, "--repeats", 400, "--no-behaviour")
    assert "no norm sink" in output and "nowhere to move to" in output and "half-way" not in output
    assert "0 of 40 rest on it" in output and "sink layer" not in output
    repeats = RepeatNormResult.load(tmp_path / "repeats")
    norms = pd.read_parquet(tmp_path / "norms.parquet")
    largest = (repeats.norm[:, 1:, -1].double().amax(0).numpy() / norms["other_norm"].to_numpy()).max()
    assert largest < 5, "no repeat is as large as a sink would be"
    assert f"{largest:.3g} times the typical norm" in output
    assert not (tmp_path / "behaviour").exists()
    assert "no neurons to set to zero" in output and not (tmp_path / "ablation").exists()
    assert all((tmp_path / f"{name}.html").is_file() for name in FIGURES)
