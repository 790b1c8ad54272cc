"""A report grows part by part, replaces only what was asked for, and can be made again from what is on disk."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mechrep.errors import InputError, NothingFoundError, StoreError
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.report.build import Part, Settings, build_report, load_sections, write_page
from mechrep.report.terminal import print_section, section_text
from mechrep.report.view import view_of
from mechrep.run import Run
from mechrep.sections import Section
from tests.report.made_up import FIELDS, heads, missing, provenance, seen, sinks, words


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return words(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def tiny() -> Model:
    return load_model("mechrep-tiny")


def nothing(*_: Any) -> Section:
    raise NothingFoundError("no layer", "a layer", "name one")


def parts(**makers: Part) -> dict[str, Part]:
    given: dict[str, Part] = {
        "heads": lambda *_: [heads()], "sinks": lambda *_: sinks(), "first-layer": nothing,
    }  # fmt: skip
    given |= makers
    return given


# --- on disk ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "section", [heads(views={"seen": seen()}), sinks(variant="not_found"), missing()], ids=lambda one: one.name
)
def test_a_section_comes_back_as_it_was(section: Section, texts: Path, tmp_path: Path) -> None:
    for _ in range(2):  # the second replaces the first
        section.save(tmp_path / "one")
    back = Section.load(tmp_path / "one")
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    assert (back.name, back.variant, back.provenance.made) == (section.name, section.variant, section.provenance.made)
    pd.testing.assert_frame_equal(back.claims, section.claims, check_dtype=False, check_column_type=False)
    for key, table in section.tables.items():
        pd.testing.assert_frame_equal(back.tables[key], table, check_dtype=False)
    before, after = view_of(section, texts), view_of(back, texts)
    for name in ("title", "lead_text", "claims", "tables", "figures", "plain"):
        assert str(getattr(before, name)) == str(getattr(after, name))
    for name in ("figures", "texts"):
        assert [one.json for one in getattr(before, name)] == [one.json for one in getattr(after, name)]


def test_awkward_values_can_be_kept(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"a": [1, "x", None], "b": [[1], [2], []], "c": [None, 2.5, 1], 4: [True, False, True]}, [5, 6, 7]
    )
    table["d"] = pd.Categorical(["u", "v", "u"])
    fields = {
        "a": np.float64(0.5),
        "b": np.int64(2),
        "c": (1, 2),
        "d": float("nan"),
        "e": Path("x"),
        "f": np.bool_(True),
    }
    Section("x", provenance(), fields, tables={"A b/../c": table}).save(tmp_path / "x")
    back = Section.load(tmp_path / "x")
    assert back.fields == {"a": 0.5, "b": 2, "c": [1, 2], "d": None, "e": "x", "f": True}
    kept = back.tables["A b/../c"]
    assert list(kept["a"].astype(object).where(kept["a"].notna(), None)) == ["1", "x", None]
    assert list(kept["4"]) == [True, False, True] and list(kept["d"]) == ["u", "v", "u"] and len(back.claims) == 0


def test_damage_and_strange_folders_are_refused(tmp_path: Path) -> None:
    sinks().save(tmp_path / "one")
    (tmp_path / "one" / "claims.parquet").write_bytes(b"no")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    (tmp_path / "file").write_text("")
    for folder in ("one", "nowhere", "other"):
        with pytest.raises(StoreError, match=folder):
            Section.load(tmp_path / folder)
    for folder in ("other", "file/deeper"):
        with pytest.raises(StoreError, match=folder):
            sinks().save(tmp_path / folder)
    assert (tmp_path / "other" / "thesis.tex").read_text() == "mine"


# --- the runner -------------------------------------------------------------------------------------------------------


def names(out: Path) -> list[str]:
    return [section["name"] for section in json.loads((out / "report.json").read_text())["sections"]]


def test_all_parts_are_written_and_a_missing_one_says_so(tiny: Model, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    page = build_report(tiny, out, parts=parts(), texts=texts, run=Run(progress=False))
    assert page == out / "report.html" and page.is_file()
    assert names(out) == ["heads", "sinks", "first-layer"]
    assert load_sections(out)[2].variant == "missing" and load_sections(out)[2].fields["given"] == "no layer"
    assert len(pd.read_parquet(out / "sections" / "heads" / "tables" / "long.parquet")) == 300
    assert not list(out.rglob("*.partial")) and not list(out.rglob("*.before"))


def test_only_replaces_its_part_and_keeps_the_others(tiny: Model, texts: Path, tmp_path: Path) -> None:
    quiet = Run(progress=False)
    build_report(tiny, tmp_path, only=["sinks"], parts=parts(), texts=texts, run=quiet)
    assert names(tmp_path) == ["sinks"]
    build_report(tiny, tmp_path, only=["heads"], parts=parts(), texts=texts, run=quiet)
    assert names(tmp_path) == ["heads", "sinks"], "in the order of the parts"
    kept = (tmp_path / "sections" / "heads" / "section.json").read_bytes()
    changed = sinks(fields={"ratio": 1.5})
    build_report(tiny, tmp_path, only=["sinks"], parts=parts(sinks=lambda *_: changed), texts=texts, run=quiet)
    record = json.loads((tmp_path / "report.json").read_text())
    assert names(tmp_path) == ["heads", "sinks"] and record["sections"][1]["fields"]["ratio"] == 1.5
    assert (tmp_path / "sections" / "heads" / "section.json").read_bytes() == kept


def test_what_is_finished_is_kept_when_a_part_fails(tiny: Model, texts: Path, tmp_path: Path) -> None:
    def fails(*_: Any) -> Section:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        build_report(tiny, tmp_path, parts=parts(sinks=fails), texts=texts, run=Run(progress=False))
    assert names(tmp_path) == ["heads"] and (tmp_path / "report.html").is_file()


def test_parts_share_one_run_with_a_store(tiny: Model, texts: Path, tmp_path: Path) -> None:
    seen: list[Run] = []

    def make(_model: Any, run: Run, _settings: Settings) -> Section:
        seen.append(run)
        return sinks() if run.once("n", lambda: len(seen)) == 1 else heads()

    run = Run(progress=False, effort="quick", seed=3)
    two = {"a": make, "b": make}
    with pytest.raises(InputError, match="'sinks'"):  # both give the section "sinks"
        build_report(tiny, tmp_path, parts=two, texts=texts, run=run)
    assert seen[0] is seen[1] and seen[0].store == tmp_path / "store" and seen[0].effort == "quick"


def test_every_part_says_by_which_command_it_was_made(tiny: Model, texts: Path, tmp_path: Path) -> None:
    held_out = tmp_path / "my text.txt"
    held_out.write_text("words")
    seen: list[str | None] = []

    def make(_model: Any, _run: Run, settings: Settings) -> Section:
        seen.append(settings.held_out_text)
        return sinks()

    settings, quiet = Settings(sink_layer=1, held_out=held_out), Run(progress=False)
    out, given = tmp_path / "out", parts(sinks=make)
    build_report(tiny, out, parts=parts(), texts=texts, run=quiet, command="mechrep all")
    build_report(tiny, out, only=["sinks"], run=quiet, settings=settings, parts=given, texts=texts, command="some")
    record = json.loads((out / "report.json").read_text())
    assert record["command"].splitlines() == ["mechrep all", "some"] and seen == ["words"]
    assert "mechrep all" in (out / "report.html").read_text()
    with pytest.raises(InputError, match="nowhere"):
        Settings(held_out=tmp_path / "nowhere").held_out_text  # noqa: B018


def test_a_part_that_takes_its_work_from_the_store_costs_what_it_once_did(
    tiny: Model, texts: Path, tmp_path: Path
) -> None:
    lengths = [12, 0, 5, 5]

    def reads(*arguments: Any) -> Section:
        if length := lengths.pop(0):
            tiny.plain_logits(torch.arange(length)[None])
        return nothing(*arguments)

    def cost(command: str) -> float:
        given = parts(sinks=reads)
        run = Run(progress=False)
        build_report(tiny, tmp_path, only=["sinks"], parts=given, texts=texts, run=run, command=command)
        return json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["costs"]["sinks"]["read"]

    first, again = cost("one"), cost("one")
    assert first == again == 12, "nothing was read the second time"
    assert cost("one") == 12, "less of the same is a run that went on"
    assert cost("another") == 5, "another command is another run"


def test_the_page_can_be_made_again_without_the_model(tiny: Model, texts: Path, tmp_path: Path) -> None:
    page = build_report(tiny, tmp_path, parts=parts(), texts=texts, run=Run(progress=False))
    before = page.read_bytes(), (tmp_path / "report.json").read_bytes()
    page.unlink()
    assert write_page(tmp_path, texts=texts) == page
    assert (page.read_bytes(), (tmp_path / "report.json").read_bytes()) == before
    with pytest.raises(StoreError, match="nowhere"):
        write_page(tmp_path / "nowhere")
    (tmp_path / "sections" / "parts.json").write_text('{"model": {}, "parts": {"heads": ["heads"]}}')
    with pytest.raises(StoreError, match=r"parts\.json"):
        write_page(tmp_path)


def test_another_model_and_unknown_parts_are_refused(tiny: Model, texts: Path, tmp_path: Path) -> None:
    quiet = Run(progress=False)
    build_report(tiny, tmp_path, only=["sinks"], parts=parts(), texts=texts, run=quiet)
    path = tmp_path / "sections" / "parts.json"
    path.write_text(path.read_text().replace(tiny.fingerprint(), "another"))
    with pytest.raises(StoreError, match="another"):
        build_report(tiny, tmp_path, parts=parts(), texts=texts, run=quiet)
    for only in (["sinks", "soup"], []):
        with pytest.raises(InputError, match="heads, sinks"):
            build_report(tiny, tmp_path / "new", only=only, parts=parts(), texts=texts, run=quiet)


def test_log_files_get_one_line_for_every_part(
    tiny: Model, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)  # there progress is silent
    build_report(tiny, tmp_path, parts=parts(), texts=texts)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("report:")]
    assert [f"{done} of 3" in line for done, line in enumerate(lines, 1)] == [True, True, True]
    assert all("left" in line and "passed" in line for line in lines)


# --- terminal ---------------------------------------------------------------------------------------------------------


def test_a_terminal_shows_every_claim_and_aligned_tables(texts: Path) -> None:
    text = section_text(heads(), width=80, texts=texts)
    view = view_of(heads(), texts)
    assert max(len(line) for line in text.splitlines()) <= 80 and "\x1b" not in text and "**" not in text
    flat = " ".join(text.split())
    for claim in view.claims:
        assert claim.verdict in flat and claim.text in flat and f"{claim.effect} [{claim.interval}]" in flat
    rows = text[text.index("layer") :].splitlines()[:13]
    assert len({len(row) for row in rows}) == 1, "numbers end in one column"
    assert "12 of 300" in text and number_of_rows(section_text(heads(), tables=0, texts=texts)) < number_of_rows(text)


def number_of_rows(text: str) -> int:
    return len(text.splitlines())


def test_print_section_writes_what_section_text_gives(monkeypatch: pytest.MonkeyPatch, texts: Path) -> None:
    monkeypatch.setattr("mechrep.report.words.TEXT", texts)
    file = io.StringIO()
    wide = dataclasses.replace(heads(), fields=FIELDS | {"head": "x" * 300})
    print_section(wide, file, rows=3)
    assert file.getvalue() == section_text(wide, rows=3)
