"""The section on conditions says what the numbers give: other heads, the same heads, or nothing that was found."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from mechrep.report.old_conditions_section import conditions_section
from mechrep.report.page import Section, save_tables
from mechrep.studies.text_kind_effects import HeadContrastResult
from tests.views import condition_study_by_hand as by_hand
from tests.views import study_by_hand
from tests.views.test_report import Page


def words(section: Section) -> str:
    return Page(section.to_html()).text.replace("\u00a0", " ")


def claims(section: Section) -> list[str]:
    return [str(row[2]) for row in section.tables[0].rows]


def test_other_heads_are_told_as_other_heads() -> None:
    section = conditions_section(by_hand.study())
    assert "natural loops and copying of cycles shown again rest on different heads (0 of the first 3 shared" in words(
        section
    )
    assert [(badge.kind, badge.words) for badge in section.badges] == [("good", "cycles shown again: different heads")]
    text = words(section)
    for layer, head in (*by_hand.COPIES[:2], *by_hand.LOOPS[:2]):
        assert f"L{layer} H{head}" in text
    assert re.search(r"With the labels of the conditions swapped, (0|0 to 1|0 to 2) heads differ \(10 tests\)", text)
    assert claims(section)[0] == "as they say: different heads"
    assert claims(section)[1] == f"{by_hand.PAPER}: no difference was found", "as many heads in either condition"


def test_the_same_heads_at_half_strength_are_not_sold_as_other_heads() -> None:
    section = conditions_section(by_hand.study("same heads"))
    assert [(badge.kind, badge.words) for badge in section.badges] == [
        ("open", "cycles shown again: same heads, different degree")
    ]
    assert "3 of the first 3 shared" in section.finding and "rest on different heads" not in section.finding
    assert claims(section)[0] == f"{by_hand.PAPER}: largely the same heads, to a different degree"


def test_where_nothing_differs_nothing_is_found() -> None:
    section = conditions_section(by_hand.study("not found"))
    assert (
        section.finding.startswith("In hand, no difference between the heads of") and section.badges[0].kind == "none"
    )
    assert "cut alone, no head matters to a different degree" in words(section)
    assert claims(section)[0] == f"{by_hand.PAPER}: no difference was found"


def test_few_texts_decide_nothing() -> None:
    section = conditions_section(by_hand.study(n=3))
    assert section.badges[0].kind == "open" and "is open (3 texts in one of the conditions)" in section.finding
    assert claims(section) == ["open"] * 3 and "too few for intervals" in words(section)


def test_which_condition_rests_on_fewer_heads_is_read_off_the_numbers() -> None:
    section = conditions_section(by_hand.study("natural"))
    assert "natural loops rest on fewer heads than induced copying does" in words(section)
    assert claims(section)[1] == f"{by_hand.PAPER}: fewer heads carry natural loops"
    even = words(conditions_section(by_hand.study("not found")))
    assert "that one condition rests on fewer heads than the other was not found" in even


@pytest.mark.parametrize(
    ("own", "verdict", "claim"),
    [
        (-2.0, "beyond controls", f"{by_hand.PAPER}: loops need these heads"),
        (-0.12, "not beyond controls", "as they say: no set of heads was found"),
    ],
)
def test_sets_are_judged_by_every_draw_of_their_controls(own: float, verdict: str, claim: str) -> None:
    section = conditions_section(by_hand.study(own=own))
    table = next(table for table in section.tables if "cut together" in table.caption)
    found = {(row[0], row[2]): row[-1] for row in table.rows}
    assert found["natural", "natural"] == found["induced", "induced"] == verdict
    assert found["natural", "induced"] == found["induced", "natural"] == "not beyond controls"
    assert claims(section)[2] == claim and "0 of 3 are in both sets" in words(section)


def test_what_could_not_be_built_is_said_and_markup_stays_text() -> None:
    study = by_hand.study(name=f"net {study_by_hand.SCRIPT}")
    source = conditions_section(study).to_html()
    assert study_by_hand.SCRIPT not in source and Page(source).open == []
    text = words(conditions_section(study))
    assert "Left out, texts shown again: every text loops" in text
    assert "Left out, cycles shown again, patching: no control text" in text
    empty = dataclasses.replace(study, contrasts={})
    section = conditions_section(empty)
    assert "cannot be asked: every text loops" in section.finding and section.badges[0].kind == "none"


def test_save_tables_keeps_results_tables_and_texts(tmp_path: Path) -> None:
    study = by_hand.study()
    folder = save_tables(study, tmp_path)
    cut = HeadContrastResult.load(folder / "results" / "contrasts-cycle-cut")
    assert cut.head_effects().top(3, "natural") == by_hand.LOOPS
    names = {path.stem for path in (folder / "tables").glob("*.parquet")}
    assert {"flow-cycle", "contrasts-cycle-sets", "contrasts-cycle-comparison-ablation"} <= names
    assert (folder / "natural.parquet").is_file()
