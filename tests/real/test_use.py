"""Pretrained models through the command line, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mechrep import cli, commands, run
from mechrep.ablation.effects import Effects
from tests.real.conftest import Real

pytestmark = pytest.mark.real
SMALLEST = run.Effort(
    loops=6, others=2, windows=4, tokens=2, draws=19, regenerated_draws=3, nulls=2, sequences=2, curve=1, repeats=32,
    questions=4, reading=16,
)  # fmt: skip


@pytest.fixture
def command(real: Real, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs one command on the model, which is loaded already, in a folder of its own; gives standard output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "load_model", lambda *_, **__: real.model)
    monkeypatch.setitem(run.EFFORTS_OF_LARGE, "quick", SMALLEST)

    def ran(name: str, *arguments: object) -> str:
        assert cli.main([name, str(real.path), *map(str, arguments)]) == 0
        return capsys.readouterr().out

    return ran


def test_generate_writes_what_the_model_writes(real: Real, command: Any) -> None:
    prompt = real.model.tokenizer.decode(real.prose(bos=False)[0][:8])
    (text,) = json.loads(command("generate", prompt, "--max-new-tokens", 8, "--json"))
    ids = real.model.encode(prompt)
    assert text["text"] == real.model.decode(real.plain.continuation(ids, 8))
    assert text["prompt_length"] == len(ids)


def test_models_explains_what_can_be_measured(command: Any) -> None:
    told = json.loads(command("models", "--explain", "--json"))
    measured = {row["part"]: row["measured"] for row in told["measurable"]}
    assert all(measured[part] for part in ("neurons", "heads", "sinks", "first-layer", "patch", "text-kinds"))
    assert not measured["router-shift"]


def test_a_study_ends_with_a_table(real: Real, command: Any, tmp_path: Path) -> None:
    layer, head = real.heads[0]
    command(
        "ablate", f"L{layer}H{head}", "--outcomes", "copy_accuracy", "--effort", "quick", "--out", "kept", "--quiet"
    )
    effects = Effects.load(tmp_path / "kept" / "effects")
    assert effects.conditions[1].components == {"heads": [[layer, head]]}
    assert len(effects.summary()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("part", ["heads", "neurons", "sinks", "first-layer", "patch", "text-kinds", "information"])
def test_a_part_of_the_report_ends_with_a_page(command: Any, tmp_path: Path, part: str) -> None:
    command(part, "--effort", "quick", "--out", "kept", "--quiet")
    assert (tmp_path / "kept" / "report.html").stat().st_size > 10_000
    assert json.loads((tmp_path / "kept" / "report.json").read_text())
