"""Several models on one page: every claim of every model once, with links that lead into its own report."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest

from mechrep.cli import main
from mechrep.disk import read_record, write_record
from mechrep.errors import InputError, StoreError
from mechrep.models.load import load_model
from mechrep.provenance import Provenance
from mechrep.report.build import build_report, is_report, write_page
from mechrep.report.side_by_side import _Unnamed, write_side_by_side
from mechrep.report.view import view_of
from mechrep.report.words import TEXT
from mechrep.sections import Section
from tests.report.made_up import HEADS, SCRIPT, heads, missing, sinks, words
from tests.report.test_render import Page


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = words(tmp_path_factory.mktemp("text"))
    shutil.copy(TEXT / "side-by-side.md", folder)
    named = HEADS.replace("With {name} ablated ({k} of them), the loss", "{name} | without {head} the loss")
    (folder / "heads.md").write_text(named)
    return folder


@pytest.fixture(scope="module")
def reports(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models, the second with a name that would be markup, and one part less."""
    folders, model = [tmp_path_factory.mktemp("reports") / name for name in ("a", "b")], load_model("mechrep-tiny")
    parts = {"heads": lambda *_: heads(), "sinks": lambda *_: sinks(), "first-layer": lambda *_: missing()}
    build_report(model, folders[0], parts=parts, texts=texts, command="mechrep report a")
    build_report(model, folders[1], parts=parts, only=["heads"], texts=texts, command="mechrep report b")
    listed = folders[1] / "sections" / "parts.json"
    record = read_record(listed)
    write_record(listed, record | {"model": record["model"] | {"name": f"net {SCRIPT}"}})
    return folders


def test_every_claim_stands_once_with_a_link_that_leads_to_it(reports: list[Path], texts: Path, tmp_path: Path) -> None:
    source = write_side_by_side(reports, tmp_path / "both", texts=texts).read_text()
    page = Page(source)
    assert page.open == [] and "<script>alert" not in source and SCRIPT in page.text
    record = json.loads((tmp_path / "both" / "report.json").read_text())
    assert [model["command"] for model in record["models"]] == ["mechrep report a", "mechrep report b"]
    links = [str(a["href"]) for a in page.all("a") if ".html#claim-" in str(a.get("href"))]
    assert len(links) == len(set(links)) == sum(cell is not None for line in record["claims"]
                                                for cell in line["models"].values()) == 6  # fmt: skip
    for link in links:
        place, anchor = link.split("#")
        assert f'id="{anchor}"' in (tmp_path / "both" / place).read_text()
    for model in record["models"]:
        assert (tmp_path / "both" / model["report"]).is_file()


def test_names_of_components_stand_beside_their_model_only(reports: list[Path], texts: Path, tmp_path: Path) -> None:
    write_side_by_side(reports, tmp_path / "both", texts=texts)
    record = json.loads((tmp_path / "both" / "report.json").read_text())
    (loss,) = (line for line in record["claims"] if "without" in line["claim"])
    assert "L2H0" not in loss["claim"] and all("L2H0" in cell["words"] for cell in loss["models"].values())
    (norm,) = (line for line in record["claims"] if "norm" in line["claim"])
    assert norm["models"]["model-2"] is None


def test_a_number_that_differs_between_models_is_that_of_none(texts: Path) -> None:
    claim = view_of(heads(), texts).claims[0]
    two = [dataclasses.replace(claim, told={"brief": brief, "name": "L2H0", "same": 5}) for brief in (8, 24)]
    fields = _Unnamed(dict(enumerate(two)))
    assert f"{fields['brief']:,.1f} {fields['name']} {fields['same']}" == "… … 5"
    assert _Unnamed({0: two[0]})["brief"] == 8, "of one model it is its own"


def test_it_needs_finished_reports_and_a_folder_of_its_own(reports: list[Path], texts: Path, tmp_path: Path) -> None:
    for wrong in (reports[:1], [reports[0], reports[0]]):
        with pytest.raises(InputError, match="at least 2"):
            write_side_by_side(wrong, tmp_path, texts=texts)
    with pytest.raises(InputError, match="folder"):
        write_side_by_side(reports, reports[0], texts=texts)
    with pytest.raises(StoreError, match="report"):
        write_side_by_side([reports[0], tmp_path], tmp_path / "out", texts=texts)


def test_a_finished_report_is_rendered_again_without_its_model(reports: list[Path], texts: Path) -> None:
    page = reports[0] / "report.html"
    before = page.read_text()
    page.unlink()
    assert is_report(reports[0]) and write_page(reports[0], texts=texts).read_text() == before


def test_each_section_says_how_to_make_it_again(reports: list[Path]) -> None:
    text = Page((reports[0] / "report.html").read_text()).text
    for part in ("heads", "sinks", "first-layer"):
        assert re.search(rf"mechrep report a --only {part}\s", text)


def test_a_section_made_in_python_says_it_in_python(texts: Path, tmp_path: Path) -> None:
    one = dataclasses.replace(sinks(), provenance=Provenance({"name": "x"}, {}, {}))
    assert isinstance(one, Section)
    page = build_report(load_model("mechrep-tiny"), tmp_path / "r", parts={"sinks": lambda *_: one}, texts=texts)
    assert "only=['sinks']" in Page(page.read_text()).text


def test_the_command_takes_finished_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        build_report(load_model("mechrep-tiny"), tmp_path / name, parts={"first-layer": lambda *_: missing()})
        (tmp_path / name / "report.html").unlink()
    a, b, both = (str(tmp_path / name) for name in ("a", "b", "both"))
    assert main(["report", a]) == 0 and (tmp_path / "a" / "report.html").is_file()
    assert main(["report", a, b, "--out", both]) == 0 and (tmp_path / "both" / "report.html").is_file()
    for option in (["--only", "heads"], ["--out", both], ["--effort", "quick"], ["--seed", "3"], ["--engine", "ray"]):
        assert main(["report", a, *option]) == 1
        said = capsys.readouterr().err
        assert "finished report" in said and option[0] in said
