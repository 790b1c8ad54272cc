"""What a family lacks leaves that part out, with its reason, and the page is written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from mechrep.cli import main
from mechrep.errors import InputError, MechrepError, MissingPartError, ModelError
from mechrep.models.load import load_model
from mechrep.report.build import PARTS, Settings, build_report, load_sections
from mechrep.report.terminal import section_text
from mechrep.run import Run
from mechrep.sections import LEFT_OUT, MISSING
from mechrep.studies.requirements import REQUIREMENTS, what_can_be_measured
from tests.families.words import save, worded
from tests.report.made_up import heads, words

FAMILIES = ("Mixtral", "DeepSeek-V3", "gpt-oss", "Llama 4", "Jamba", "Qwen3-Next", "LFM2", "Phi", "MiniCPM3", "MPT")


def raising(error: MechrepError) -> Any:
    def part(*_: Any) -> Any:
        raise error

    return part


@pytest.mark.parametrize("kind", [ModelError, MissingPartError])
def test_the_others_go_on(kind: type[MechrepError], tmp_path: Path) -> None:
    parts = {"sinks": raising(kind("no pattern", "a pattern", "look elsewhere")), "heads": lambda *_: heads()}
    (tmp_path / "text").mkdir()
    texts = words(tmp_path / "text")
    page = build_report(load_model("mechrep-tiny"), tmp_path / "out", parts=parts, texts=texts)
    lost, made = load_sections(tmp_path / "out")
    assert (lost.name, lost.variant, made.variant) == ("sinks", LEFT_OUT, "")
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    for shown in (page.read_text(), section_text(lost, texts=texts), json.dumps(record["sections"][0])):
        assert "no pattern" in " ".join(shown.split()) and "look elsewhere" in " ".join(shown.split())


def test_what_a_user_got_wrong_ends_it(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        build_report(load_model("mechrep-tiny"), tmp_path, parts={"heads": raising(InputError("0", "1", "2"))})


def test_all_parts_have_their_requirements() -> None:
    assert set(PARTS) <= set(REQUIREMENTS)
    with pytest.raises(InputError):
        what_can_be_measured(load_model("mechrep-tiny"), ["hands"])


@pytest.mark.parametrize("name", ["OPT", *(pytest.param(n, marks=pytest.mark.slow) for n in ("LFM2", "Falcon-H1"))])
def test_parts_that_cannot_be_measured_say_so(name: str, tmp_path: Path) -> None:
    model = worded(name)
    lacking = {row.part: row.reason for row in what_can_be_measured(model, list(PARTS)) if not row.measured}
    assert "training" in lacking and len(lacking) > 1
    build_report(model, tmp_path, only=list(lacking), run=Run(effort="quick", progress=False))
    sections = load_sections(tmp_path)
    assert {one.name: one.fields["reason"] for one in sections} == lacking
    for part in set(lacking) - {"training"}:  # and it is true
        with pytest.raises(MechrepError):
            PARTS[part](model, Run(effort="quick", progress=False), Settings())


def test_explained_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save("OPT", tmp_path / "model")
    capsys.readouterr()
    assert main(["models", str(folder), "--explain", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    expected = [dataclasses.asdict(row) for row in what_can_be_measured(worded("OPT"))]
    for said, row in zip(record["measurable"], expected, strict=True):
        assert (said["part"], said["measured"]) == (row["part"], row["measured"])
    assert record["anatomy"]["n_layers"] == 3
    assert main(["models", "--explain"]) == 1
    assert main(["report", str(folder), "--only", "first-layer,training", "--out", str(tmp_path), "--quiet"]) == 0
    assert (tmp_path / "report.html").is_file() and "left out" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_whole_reports(name: str, tmp_path: Path) -> None:
    model = worded(name)
    build_report(model, tmp_path, run=Run(effort="quick", progress=False))
    made = {one.name: one for one in load_sections(tmp_path)}
    for row in what_can_be_measured(model, list(PARTS)):
        assert row.measured or made[row.part].variant == LEFT_OUT, row.part
        assert not row.measured or made[row.part].variant != LEFT_OUT, made[row.part].fields
    assert any(one.variant not in (MISSING, LEFT_OUT) for one in made.values())
