"""``mechrep contrast`` and the figures of a contrast."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from mechrep.cli import app
from mechrep.generation.text_kinds import control_condition, induced_condition, natural_condition
from mechrep.measures.natural_vs_induced import (
    ConditionContrastResult,
    confidence_figure,
    contrast_conditions,
    lens_figure,
)
from mechrep.measures.text_kind_design import HeadEffects, head_contrast_figure
from mechrep.studies.text_kind_effects import HeadContrastResult
from tests.analyzers.planted_conditions import prompts, two_mechanisms

importlib.import_module("mechrep.cli.contrast")  # adds the command, wherever it is listed


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.output


def test_contrast_prints_its_answer_and_writes_everything(tmp_path: Path) -> None:
    output = run(
        "contrast", "mechrep-tiny", "--prompts", 16, "--length", 20, "--new-tokens", 100, "--builder", "cycle",
        "--k", 2, "--regenerate", 2, "--op", "zero", "--out", tmp_path,
    )  # fmt: skip
    assert "icl_from_cycle(2) against natural, 16 prompts" in output
    assert "use different heads?" in output and "which:" in output and "how much:" in output
    assert "n = " in output and "tokens generated" in output and str(tmp_path) in output
    for name in ("confidence", "heads-attribution", "heads-ablation", "flow", "texts", "sets", "overlap-ablation"):
        assert len(pd.read_parquet(tmp_path / f"{name}-cycle.parquet"))
    for name in ("confidence", "heads-attribution", "heads-ablation", "lens"):
        assert "plotly" in (tmp_path / f"{name}-cycle.html").read_text(encoding="utf-8")
    seen = ConditionContrastResult.load(tmp_path / "seen-cycle")
    cut = HeadContrastResult.load(tmp_path / "cut-cycle")
    assert set(cut.conditions) == {"natural", "induced"} and cut.new_tokens == 0 and cut.ops == ["zero"]
    table = pd.read_parquet(tmp_path / "heads-ablation-cycle.parquet")
    mean = cut.head_effects().mean("induced")
    for row in table.to_dict("records"):
        assert row["induced"] == pytest.approx(mean[row["layer"], row["head"]])
    assert seen.groups["natural"] == seen.groups["induced"] == cut.conditions.count("natural")


def test_contrast_refuses_what_makes_no_sense(tmp_path: Path) -> None:
    run("contrast", "mechrep-tiny", "--text", tmp_path / "none.txt", code=2)
    run("contrast", "mechrep-tiny", "--builder", "icl", code=2)
    short = tmp_path / "short.txt"
    short.write_text("too short", encoding="utf-8")
    assert "longer text" in run("contrast", "mechrep-tiny", "--text", short, "--out", tmp_path / "out", code=1)


# --- figures -------------------------------------------------------------------------------------------------------


@functools.cache
def planted() -> ConditionContrastResult:
    model, listed = two_mechanisms().model, prompts(two_mechanisms().model, 3)
    builders = (natural_condition, induced_condition, control_condition)
    return contrast_conditions(model, [build(model, listed, max_new_tokens=60) for build in builders], copies=2)


def test_confidence_is_drawn_by_cycles_shown() -> None:
    figure: Any = confidence_figure(planted())
    frame = planted().to_frame()
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert len(lines) == 3 * 3 and {line.name for line in lines} == {"natural", "induced", "control"}
    first = next(line for line in lines if line.name == "induced")
    expected = frame.query("condition == 'induced' and measure == 'probability'")["value"]
    assert list(first.y) == pytest.approx(expected.tolist()) and list(first.x) == [0, 1, 2]
    assert "mechrep" not in figure.layout.title.text and "3 texts" in figure.layout.title.subtitle.text


def test_the_lens_is_drawn_by_layer() -> None:
    figure: Any = lens_figure(planted())
    lines = {trace.name: trace for trace in figure.data if trace.mode == "lines+markers"}
    assert set(lines) == {"natural", "induced", "control"}
    assert len(lines["natural"].y) == two_mechanisms().model.anatomy.n_layers + 1


def test_head_maps_show_both_conditions_and_what_tells_them_apart() -> None:
    effects = planted().head_effects()
    figure: Any = head_contrast_figure(effects)
    induced, natural, difference = (np.array(trace.z) for trace in figure.data)
    assert np.allclose(induced, effects.mean("induced")) and np.allclose(natural, effects.mean("natural"))
    assert np.allclose(difference, (induced - natural) / 2, atol=1e-9)
    assert all(trace.zmin == -trace.zmax for trace in figure.data)
    odd = HeadEffects(effects.values, effects.conditions, effects.prompts, "<b>made up</b>")
    escaped: Any = head_contrast_figure(odd)
    assert "<b>" not in escaped.layout.title.subtitle.text
