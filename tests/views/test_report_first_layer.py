"""The report's section on the first layer: it says what marks the first token, or that nothing was found."""

from __future__ import annotations

from pathlib import Path

import pytest

from mechrep.measures.first_token import FirstTokenResult
from mechrep.report.old_first_layer_section import first_layer_section
from mechrep.report.page import Section, figures_json, save_tables
from tests.views import first_layer_study_by_hand as by_hand
from tests.views.study_by_hand import SCRIPT
from tests.views.test_report import Page


def words(section: Section) -> str:
    """Everything that a section says, with ordinary blanks."""
    return Page(section.to_html()).text.replace("\u00a0", " ")


def test_what_marks_the_first_token_is_named_beside_its_nulls() -> None:
    section = first_layer_section(by_hand.study())
    text = words(section)
    assert "neuron 5 of layer 0 tells a first token" in section.finding
    assert "0.950 (95 % 0.920 to 0.980) on other words" in text
    assert "shuffled places reach at most 0.560, 4 null models at most 0.550" in text
    assert "L0 H2 carries the mark, in both kinds of cut" in text and "the mark needs attention" in text
    assert "loses +0.400 [+0.380 to +0.420] of its area" in text
    assert "after layer 1 loses +1.20 [+1.14 to +1.26] of 2.50" in text
    assert [badge.kind for badge in section.badges] == ["good", "good", "good"]


def test_where_nothing_clears_the_nulls_nothing_is_sold() -> None:
    section = first_layer_section(by_hand.study(found=False, sink=False))
    text = words(section)
    assert "no neuron was found" in section.finding and "0.540 (95 % 0.510 to 0.570)" in text
    assert "Neurons: not found" in text and "as no mark was found, there is none to carry" in text
    assert "Its norm cannot be followed: no norm sink <i>here</i>" in text  # escaped, so it is text
    assert [badge.kind for badge in section.badges] == ["none", "good"]
    assert "yes" not in [cell for row in section.tables[0].rows for cell in row]
    assert "beyond every null" not in text and "carries the mark, in both" not in text
    assert "this alone makes no sink" in text


def test_heads_identity_and_copies_are_told_in_numbers() -> None:
    text = words(first_layer_section(by_hand.study()))
    assert "head 3 0.80, head 2 0.60, head 1 0.40, head 0 0.20; a uniform head has 0.90" in text
    assert "This identity holds on this model to 1.0e-07" in text and "equal tokens have equal values" in text
    assert "copy 1 is 0.500 of its norm away" in text and "copy 128 0.004 (medians of 3 tokens" in text
    assert "slope of −1.00 in log-log (95 % −1.00 to −1.00;" in text and "what was measured agrees" in text
    assert "what acts on the mark must in the end act on a long run, too" in text


def test_where_positions_are_part_of_values_copies_have_no_limit() -> None:
    section = first_layer_section(by_hand.study(positions="standard"))
    text = words(section)
    assert "Theory expects them to fall not at all" in text and "not in one state (positions differ by" in text
    assert "copies have no reason to end up in the state of a first token" in text
    assert "must in the end act on a long run" not in text


def test_rates_that_theory_does_not_expect_are_not_called_agreement() -> None:
    study = by_hand.study(positions="alibi")  # but the odds fall like a power of n
    section = first_layer_section(study)
    assert not study.summary.agrees and "what was measured does not agree" in words(section)
    assert section.badges[-1].kind == "open"


@pytest.mark.parametrize("sink", [True, False])
def test_figures_have_names_of_their_own_and_markup_stays_text(sink: bool) -> None:
    section = first_layer_section(by_hand.study(f"net {SCRIPT}", sink=sink))
    page = Page(section.to_html())
    assert page.open == [] and SCRIPT not in section.to_html()
    names = [figure.name for figure in section.figures]
    assert len(set(names)) == len(names) and ("first-cuts-norm" in names) == sink
    assert "<" not in figures_json(section.figures)


def test_the_numbers_behind_it_are_kept(tmp_path: Path) -> None:
    study = by_hand.study()
    save_tables(study, tmp_path)
    assert FirstTokenResult.load(tmp_path / "results" / "summary").neurons == study.summary.neurons
    tables = {path.stem for path in (tmp_path / "tables").glob("*.parquet")}
    assert {"parts-mass", "parts-detectors", "parts-cuts", "parts-convergence", "summary"} == tables
