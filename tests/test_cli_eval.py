"""``mechrep eval``: files in, tables out, and one line for what is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import mechrep.cli.eval  # noqa: F401 - adds the command
from mechrep.ablation.circuit import Circuit
from mechrep.ablation.effects import Effects
from mechrep.cli import app
from mechrep.interventions import SinkPatch


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["eval", *(str(argument) for argument in arguments)])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.output


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two small benchmarks."""
    folder = tmp_path / "data"
    folder.mkdir()
    queries = [{"id": str(n), "query": f"Q: {n}?", "choices": ["the sea", "a dog"], "gold": n % 2} for n in range(6)]
    sentences = [
        {"id": str(n), "sentence": f"The {n} dogs saw the cats as _ ran.", "option1": "they", "option2": "the cats"}
        for n in range(6)
    ]
    (folder / "arc_challenge_val.jsonl").write_text("\n".join(map(json.dumps, queries)), encoding="utf-8")
    lines = "\n".join(json.dumps(row | {"answer": "1"}) for row in sentences)
    (folder / "winogrande.jsonl").write_text(lines, encoding="utf-8")
    return folder


def test_a_patch_and_a_circuit_are_compared_with_the_baseline(small_effort: None, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install mechrep[evals]")
    patch, circuit, out = tmp_path / "sink.json", tmp_path / "cut.json", tmp_path / "out"
    patch.write_text(json.dumps(SinkPatch(1, [5, 9]).to_dict()))
    Circuit("two heads", heads=[(0, 0), (1, 1)]).save(circuit)
    output = run(
        "mechrep-tiny", "--data", data, "--patch", patch, "--circuit", circuit, "--tasks", "arc_challenge,winogrande",
        "--limit", 4, "--controls", 1, "--out", out,
    )  # fmt: skip
    assert "held at the first token after BOS: L1N5, L1N9" in output and "zero: L0H0, L1H1" in output
    assert "WinoGrande" in output and str(out) in output
    result = Effects.load(out / "result")
    assert [facts["questions"] for facts in result.notes["benchmarks"].values()] == [4, 4]
    summary = pd.read_parquet(out / "summary.parquet")
    assert set(summary["name"]) == {"patched", "two heads"} and (summary["m"] > 0).all()
    assert set(pd.read_parquet(out / "questions.parquet")["unit_id"]) == {"0", "1", "2", "3"}
    assert "plotly" in (out / "eval.html").read_text(encoding="utf-8")


def test_without_intervention_it_is_a_plain_benchmark(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install mechrep[evals]")
    output = run("mechrep-tiny", "--data", data, "--tasks", "arc_challenge", "--out", tmp_path / "out")
    frame = pd.read_parquet(tmp_path / "out" / "conditions.parquet")
    names = {f"arc_challenge {metric}" for metric in ("acc", "acc_norm", "margin", "truncated")}
    assert set(frame["measure"]) == names and set(frame["name"]) == {"baseline"}
    assert "acc_norm" in output


def test_wrong_input_is_one_line(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install mechrep[evals]")
    (tmp_path / "no.json").write_text("{")
    given = ["mechrep-tiny", "--data", data, "--out", tmp_path / "out", "--tasks"]
    for arguments, said in (
        ([*given, "gsm8k"], "gsm8k"),
        ([*given, "arc_challenge,hellaswag"], "hellaswag"),
        ([*given, "winogrande", "--patch", "0:3,1:4"], "neurons of one layer"),
        ([*given, "winogrande", "--patch", "0:90000"], "90000"),
        ([*given, "winogrande", "--patch", tmp_path / "no.json"], "no.json"),
    ):
        output = run(*arguments, code=1)
        assert said in output and len(output.strip().splitlines()) == 1


def test_without_the_harness_it_says_what_to_install(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    output = run("mechrep-tiny", "--data", data, "--tasks", "winogrande", "--out", tmp_path / "out", code=1)
    assert "pip install mechrep[evals]" in output and len(output.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_list_of_neurons_is_a_patch_too(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install mechrep[evals]")
    (tmp_path / "sink.json").write_text("[[1, 5], [1, 9]]")
    given = ["mechrep-tiny", "--data", data, "--out", tmp_path / "out", "--tasks", "winogrande", "--controls", 0]
    for patch in (tmp_path / "sink.json", "1:5,1:9"):
        assert "held at the first token after BOS: L1N5, L1N9" in run(*given, "--patch", patch)


@pytest.mark.slow
def test_auto_patches_the_sink_that_is_found_and_refuses_where_there_is_none(
    data: Path, tmp_path: Path, shared: Path
) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install mechrep[evals]")
    options = ["--data", data, "--tasks", "winogrande", "--patch", "auto", "--controls", 0, "--out", tmp_path / "out"]
    assert "held at the first token after BOS" in run("mechrep-tiny", *options)
    assert "norm sink" in run(shared / "models" / "stories260K", *options, code=1)
