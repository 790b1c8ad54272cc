"""All studies of one model: their order, what each hands on, and what becomes of a part that finds nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

import mechrep
from mechrep.cli import report as report_command
from mechrep.errors import InputError, NothingFoundError
from mechrep.models.load import reinitialised
from mechrep.models.model import Model
from mechrep.report.page import Section
from mechrep.report.write import sections_of
from mechrep.studies import full_study
from mechrep.studies.full_study import PARTS, MissingStudy, StudySettings, run_studies
from tests.views.test_report import Page

Said = list[tuple[str, list[str]]]


@pytest.fixture(scope="module")
def model() -> Model:
    return mechrep.load_model("mechrep-tiny")


def answering(said: Said, name: str, *, found: bool = True) -> full_study.Part:
    """A part that notes what it was told and answers with its name, or finds nothing."""

    def part(_model: Model, _settings: StudySettings, earlier: Mapping[str, Any]) -> str:
        said.append((name, list(earlier)))
        if not found:
            raise NothingFoundError(f"<b>no {name}</b>", "some", "look elsewhere")
        return name

    return part


def test_parts_run_in_their_own_order_and_see_what_was_found_before(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: Said = []
    parts = {name: answering(said, name, found=name != "b") for name in "abcd"}
    monkeypatch.setattr(full_study, "PARTS", parts)
    studies = list(run_studies(model, ["d", "b", "a"]))
    assert said == [("a", []), ("b", ["a"]), ("d", ["a"])], "what found nothing hands nothing on"
    assert studies[0] == "a" and studies[2] == "d"
    missing = studies[1]
    assert isinstance(missing, MissingStudy) and missing.part == "b" and "look elsewhere" in missing.reason


def test_each_study_is_there_before_the_next_begins(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    said: Said = []
    monkeypatch.setattr(full_study, "PARTS", {name: answering(said, name) for name in "ab"})
    running = run_studies(model)
    assert next(running) == "a" and len(said) == 1


def test_where_no_part_finds_anything_the_reason_is_raised(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_study, "PARTS", {name: answering([], name, found=False) for name in "ab"})
    with pytest.raises(NothingFoundError, match="no b"):
        list(run_studies(model))
    with pytest.raises(InputError, match="some of a, b"):
        list(run_studies(model, ["c"]))


def test_a_missing_part_is_a_section_of_its_own_and_its_words_stay_text(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full_study, "PARTS", {n: answering([], n, found=n == "a") for n in ("a", "first-part")})
    (section,) = sections_of(list(run_studies(model))[1])
    assert isinstance(section, Section) and section.anchor == "first-part"
    source = section.to_html()
    assert "<b>no" not in source and "no first-part" in Page(source).text and "nothing found" in Page(source).text


def test_the_command_offers_exactly_these_parts() -> None:
    assert tuple(PARTS) == report_command._PARTS


def test_checkpoints_of_a_model_that_is_not_embedded_are_not_fetched_unasked(model: Model) -> None:
    theirs = reinitialised(model)
    with pytest.raises(NothingFoundError, match="not embedded"):
        PARTS["training"](theirs, StudySettings(), {})
