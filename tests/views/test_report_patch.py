"""The report's section on the patch: what it repairs, what it costs, and when there is nothing to repair."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from mechrep.report.old_patch_section import patch_section
from mechrep.report.page import Section, figures_json, save_tables
from mechrep.studies.sink_patch import PatchStudyResult, benchmark_changes, judged, patch_changes, patch_figure
from tests.views import repair_study_by_hand as by_hand
from tests.views.study_by_hand import SCRIPT
from tests.views.test_report import Page


def words(section: Section) -> str:
    """Everything that a section says, with ordinary blanks."""
    return Page(section.to_html()).text.replace("\u00a0", " ")


def badges(section: Section) -> dict[str, str]:
    return {badge.words.split(":")[0]: badge.kind for badge in section.badges}


def test_a_repair_beyond_controls_is_told_with_its_price() -> None:
    section = patch_section(by_hand.study(lost=1))
    text = words(section)
    assert "Holding neurons 7, 9 of layer 1 changes the share of 16 repeated tokens that drift" in section.finding
    assert "from 100 % to 0 % (beyond every control)" in text
    # The patch adds 0.01 nats to every text, a control 0.1.
    assert "from 7.39 to 7.46" in text and "controls 0.000 to +0.100; no more than controls explain" in text
    assert badges(section) == {"drift": "good", "perplexity": "none", "Recall <b>": "none"}
    assert "gained 0, lost 1, McNemar’s p = 1.00" in text


def test_where_no_repeat_drifts_there_is_nothing_to_repair_and_the_cost_is_told() -> None:
    section = patch_section(by_hand.study(drifted=(0.0,) * 6, loss=(2.0, 2.3, 2.1, 2.0, 2.0, 2.0)))
    assert section.finding.startswith("There is nothing to repair in hand: none of 16 repeated tokens drifts")
    assert "from 7.39 to 9.97" in section.finding and "beyond every control" in section.finding
    assert badges(section)["nothing to repair"] == "none" and badges(section)["perplexity"] == "good"
    assert "drift" not in [badge.words for badge in section.badges]


def test_a_control_that_repairs_as_much_takes_the_credit_away() -> None:
    section = patch_section(by_hand.study(drifted=(1.0, 0.0, 1.0, 1.0, 0.0, 1.0)))
    assert "(no more than controls explain)" in section.finding and badges(section)["drift"] == "none"


def test_few_tokens_and_no_controls_are_said() -> None:
    few = patch_section(by_hand.study(tokens=4))
    assert "beyond every control, but with few of them" in few.finding and badges(few)["drift"] == "open"
    alone = patch_section(by_hand.study(controls=False))
    assert "without controls this says nothing about these neurons" in alone.finding
    assert badges(alone)["drift"] == "open"


def test_where_drift_cannot_be_asked_the_reason_is_given() -> None:
    section = patch_section(by_hand.study(reason="both norms are alike"))
    assert "cannot be asked (both norms are alike)" in section.finding and badges(section)["drift"] == "open"
    assert "not known → not known" in words(section)


def test_without_a_sink_nothing_is_patched_or_asked() -> None:
    section = patch_section(by_hand.study(found=False))
    assert section.finding == "hand was not patched: no norm sink <i>here</i>."
    assert not section.figures and not section.tables and badges(section) == {"sink to patch": "none"}
    assert Page(section.to_html()).open == [] and "<i>" not in section.to_html()


def test_without_the_harness_it_says_what_to_install() -> None:
    section = patch_section(by_hand.study(asked=False))
    assert "Benchmarks were not asked: lm-evaluation-harness is not installed: pip install" in words(section)
    assert badges(section)["benchmarks"] == "open" and len(section.tables) == 1


def test_benchmarks_lost_beyond_controls_and_benchmarks_at_chance() -> None:
    section = patch_section(by_hand.study(lost=20))
    assert badges(section)["Recall <b>"] == "good" and "75 % right → 25 %" in words(section)
    assert "gained 0, lost 20" in words(section) and "75.00 → 25.00 [" in words(section)
    assert "little to lose" not in words(section)
    chance = dataclasses.replace(by_hand.study(), benchmarks=by_hand.benchmarks(right=12))
    assert "so there is little to lose" in words(patch_section(chance))


@pytest.mark.parametrize("measure", ["share of tokens that drift", "loss", "norm at the last repeat"])
def test_changes_are_those_of_the_conditions(measure: str) -> None:
    result = by_hand.patch()
    one, frame = patch_changes(result)[measure], result.to_frame()[measure]
    assert one.change == pytest.approx(frame[1] - frame[0])
    assert one.draws == pytest.approx([frame[i] - frame[0] for i in range(2, len(frame))])
    assert one.verdict == judged(one.low, one.high, one.n, one.draws)


def test_one_number_per_model_is_not_judged() -> None:
    changes = patch_changes(by_hand.patch())
    assert changes["typical norm"].verdict is None and math.isnan(changes["typical norm"].low)
    assert "perplexity" not in changes


def test_margins_are_judged_beside_verdicts() -> None:
    acc, margin = benchmark_changes(by_hand.benchmarks(lost=20))
    assert (acc.unit, margin.unit, acc.n) == ("share", "nats", 40)
    assert acc.change == pytest.approx(-0.5) and margin.change == pytest.approx(-1.0)
    assert acc.controls == {"random": pytest.approx([0.0, -1 / 40]), "layer_matched": [0.0, 0.0]}


def test_the_figure_has_an_interval_where_there_is_one() -> None:
    result = by_hand.patch()
    figure: Any = result.plot()
    own = [part for part in figure.data if part.name == "the patch"]
    assert figure.to_dict() == patch_figure(result).to_dict()
    assert len(own) == len(patch_changes(result))
    assert sum(part.error_x.array is not None for part in own) == 4
    unknown: Any = patch_figure(by_hand.patch(reason="alike"))
    assert len([part for part in unknown.data if part.name == "the patch"]) == len(own) - 1


def test_markup_stays_text_and_the_numbers_are_kept(tmp_path: Path) -> None:
    study = by_hand.study(f"net {SCRIPT}")
    section = patch_section(study)
    assert SCRIPT not in section.to_html() and Page(section.to_html()).open == []
    assert "<" not in figures_json(section.figures)
    save_tables(study, tmp_path)
    assert PatchStudyResult.load(tmp_path / "results" / "patch").neurons == [7, 9]
    assert (tmp_path / "tables" / "benchmarks.parquet").exists()
