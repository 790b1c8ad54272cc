"""The report's sections on heads and on cuts: they say what was found, what was not, and what controls share."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mechrep.ablation.circuit import Circuit
from mechrep.ablation.old_study import AblationResult
from mechrep.errors import InputError
from mechrep.measures.head_scores import HeadScoreResult
from mechrep.report.old_ablation_section import ablation_section
from mechrep.report.old_cut_plots import cuts_figure, single_heads_figure
from mechrep.report.old_effects import effects_of
from mechrep.report.old_heads_section import heads_section
from mechrep.report.page import Badge, Section, save_tables
from mechrep.report.write import report_html
from mechrep.studies.heads import BEST
from tests.views import head_study_by_hand as by_hand
from tests.views import study_by_hand
from tests.views.test_report import Page


def words(section: Section) -> str:
    """Everything that a section says, with ordinary blanks."""
    return Page(section.to_html()).text.replace("\u00a0", " ")


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(report_html([study_by_hand.study(), by_hand.study()]))


def test_one_page_holds_all_sections_and_the_navigation_leads_to_each(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) and page.open == []
    links = [str(attributes["href"]) for tag, attributes in page.tags if tag == "a"]
    assert {link.removeprefix("#") for link in links} <= set(ids)
    assert {"#top", "#neurons", "#heads", "#cuts", "#provenance"} == set(links)
    boxes = [a["id"] for _, a in page.tags if a.get("class") == "plot"]
    figures = json.loads(next(text for a, text in page.scripts if a.get("id") == "figures"))
    assert list(figures) == boxes and "circuits-cut" in boxes and "attention-4-1" in boxes


def test_planted_markup_stays_text() -> None:
    source = report_html(by_hand.study(f"net {study_by_hand.SCRIPT}"))
    assert study_by_hand.SCRIPT not in source and Page(source).open == []


def test_the_heads_that_were_found_are_named_with_their_intervals() -> None:
    text = words(heads_section(by_hand.study()))
    assert "1 induction head (L4 H1) and no self-finding head" in text
    assert "0.90 (95 % 0.88 to 0.92, 32 texts; even attention 0.02)" in text  # 1.96 standard errors of 0.01
    assert "Self-finding: not found, neither on random repeats nor in loops" in text
    assert "self-finding head: not found" in text
    assert "Previous-token heads: L2 H3 0.80; sink heads: L1 H0 0.70" in text
    assert "Left out: 2 (period-1)" in text


def test_where_nothing_is_found_it_says_so_and_cuts_no_circuit() -> None:
    study = by_hand.study(found=False)
    text = words(heads_section(study)) + words(ablation_section(study))
    assert "no induction head and no self-finding head" in text and "Induction: not found" in text
    assert "No head of hand qualifies" in text and "beyond every control" not in text
    assert Page(report_html(study)).open == []


def test_each_verdict_is_the_one_that_the_draws_give() -> None:
    effects = effects_of(by_hand.study().cuts[0].result, BEST)
    assert [(effect.outcome, effect.copy) for effect in effects] == [
        (m["outcome"], m["copy"]) for m in by_hand.MEASURES
    ]
    for effect, change, beside in zip(effects, by_hand.CUT, by_hand.BESIDE, strict=True):
        draws = [draw for changes in effect.controls.values() for draw in changes]
        assert effect.change == pytest.approx(change)
        assert draws == pytest.approx([beside, 0.0] * 3)
        beyond = effect.high < min(*draws, 0.0) or effect.low > max(*draws, 0.0)
        assert (effect.verdict == "beyond controls") == beyond
        assert effect.nearest is not None and (effect.nearest["seed"] == 0 or not beside)
    verdicts = [effect.verdict for effect in effects]
    assert verdicts[2] == "beyond controls" and verdicts[4] == verdicts[5] == "not beyond controls"


def test_an_effect_that_controls_share_is_not_sold() -> None:
    section = ablation_section(by_hand.study())
    assert [badge.words for badge in section.badges] == [
        "copying: beyond every control",
        "loops: not beyond controls",
        "perplexity: not beyond controls",
    ]
    finding = section.finding.replace("\u00a0", " ")
    assert re.search(
        r"copying on random repeats goes from 90 % to 10 % \(95 % 6 % to 17 %, 12 texts\): beyond every", finding
    )
    assert re.search(
        r"that still loop goes from 100 % to 75 % \(95 % 47 % to 91 %, 12 texts\): no more than controls", finding
    )
    weak = ablation_section(by_hand.study(cut=[change / 2 for change in by_hand.BESIDE]))
    assert all(badge.kind == "none" for badge in weak.badges) and "beyond every control" not in weak.finding


def test_without_controls_nothing_is_said_about_these_heads() -> None:
    section = ablation_section(by_hand.study(controls={}))
    assert all(badge == Badge.of("no controls", badge.words.split(":")[0]) for badge in section.badges)
    assert "says nothing about these heads" in section.finding and "No control could be drawn" in words(section)


def test_tables_say_how_many_draws_differ_and_what_could_not_be_drawn() -> None:
    text = words(ablation_section(by_hand.study()))
    assert "random 2 draws, 2 different" in text and "Could not be drawn: layer-matched (2 heads" in text
    assert "random: L0 H0" in text  # the control that came nearest, by name
    shared = by_hand.study(controls={"random": [by_hand.PREVIOUS]})
    assert "(farthest random: L2 H3, where L2 H3 is of the induction circuit)" in words(ablation_section(shared))
    same = words(ablation_section(by_hand.study(controls={"layer_matched": [(4, 0), (4, 0)]})))
    assert "layer-matched 2 draws, 1 different" in same


def test_every_cut_and_every_control_is_drawn() -> None:
    study = by_hand.study()
    figure = cuts_figure(study.cuts, "hand")
    panels, lines = 5, 3 + 2  # every measure but the loss drop; circuits, and the two parts of the joint one
    tops = [trace for trace in figure.data if trace.name == "the cut"]
    assert len(tops) == panels * lines + 1, "only the first circuit was tried on loop-free texts"
    assert sum(bool(trace.showlegend) for trace in tops) == 1
    drawn = sum(len(trace.x) for trace in figure.data if trace.name == "random")
    assert drawn == panels * (2 + 1 + 3 * 2) + 2
    for trace in tops:
        assert (trace.error_x.array[0] >= 0) and (trace.error_x.arrayminus[0] >= 0)


def test_stars_mark_the_heads_that_survive_the_correction() -> None:
    sweep = by_hand.sweep()
    figure = single_heads_figure(sweep, "hand")
    assert len(figure.data) == 4
    for trace in figure.data:
        starred = [(y, x) for y, row in enumerate(trace.text) for x, text in enumerate(row) if text.endswith("*")]
        assert starred == [by_hand.COPIES] and -trace.zmin == trace.zmax == abs(trace.z[by_hand.COPIES])
    assert "L4 H1" in words(ablation_section(by_hand.study())).split("Holm’s correction")[1][:60]


def test_studies_of_two_models_or_of_one_kind_do_not_share_a_page() -> None:
    with pytest.raises(InputError, match="at least one study, one of each kind, all of one model"):
        report_html([study_by_hand.study(), by_hand.study("other")])
    with pytest.raises(InputError, match="at least one study"):
        report_html([])
    with pytest.raises(InputError, match="2 studies"):
        report_html([by_hand.study(), by_hand.study()])


def test_save_tables_keeps_results_circuits_and_kinds(tmp_path: Path) -> None:
    study = by_hand.study()
    folder = save_tables([study_by_hand.study(), study], tmp_path)
    assert HeadScoreResult.load(folder / "results" / "scores").top(1) == [by_hand.COPIES]
    loaded = AblationResult.load(folder / "results" / "cut-induction-circuit")
    pd.testing.assert_frame_equal(loaded.to_frame(), study.cuts[1].result.to_frame())
    assert Circuit.load(folder / "circuits" / "induction-circuit.json").heads == study.cuts[1].circuit.heads
    kinds: list[dict[str, Any]] = json.loads((folder / "kinds.json").read_text())
    assert [tuple(unit) for unit in kinds[0]["heads"]] == [by_hand.COPIES]
    assert len(pd.read_parquet(folder / "tables" / "profiles.parquet")) == by_hand.N_LAYERS
