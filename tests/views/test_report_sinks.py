"""The report's section on sinks says what was found, what was not, and what controls share."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
import torch

from mechrep.report.old_sinks_section import sinks_section
from mechrep.report.page import Section, figures_json
from mechrep.studies.sink_ablation import MEASURES, sink_cause_figure
from mechrep.studies.sinks import PublishedLayer, SinkStudy
from tests.views import sink_study_by_hand as by_hand
from tests.views import study_by_hand
from tests.views.test_report import Page


def told(study: SinkStudy) -> Section:
    """The section without its figures, which take longest and say nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mechrep.report.old_sinks_section.sink_figures", lambda _: [])
        return sinks_section(study)


def words(section: Section) -> str:
    """Everything that a section says, with ordinary blanks."""
    return Page(section.to_html()).text.replace("\u00a0", " ")


def badges(study: SinkStudy) -> dict[str, str]:
    return {badge.words: badge.kind for badge in told(study).badges}


def test_a_sink_is_told_with_its_nulls_its_neurons_and_its_heads() -> None:
    section = told(by_hand.study())
    text = words(section)
    assert section.anchor == "sinks" and section.title.endswith("?")
    assert "100.0 times that of the others, made in layer 2, and 1 head of 24 rests on it" in text
    assert "2 null models at most 1.70; more than 5 was asked for): a norm sink" in text
    assert "L3 H1 gives it 80 % of its attention (best head of any null model 12 %, a uniform head 6 %)" in text
    assert "L2 N7, L2 N9" in text and "authors at first 50 %" in text
    assert "The published rule names layer 2, the same" in text
    assert "none of hand is known to us" in text


def test_how_many_repeats_come_to_the_sink_is_said_with_its_interval() -> None:
    assert "4 of 10 repeated tokens come at least half-way to it within 64 copies (95 % 17 % to 69 %)" in words(
        told(by_hand.study())
    )
    assert "50 % by 4 of 10, half of them by copy 30" in words(told(by_hand.study()))
    none, some, all_of_them = (by_hand.study(moved=moved) for moved in (0, 4, 10))
    assert "none of 10 repeated tokens comes half-way to it within 64 copies (95 % 0 % to 28 %)" in words(told(none))
    assert badges(none)["repeats that become a sink: 0 of 10, not found"] == "none"
    assert badges(some)["repeats that become a sink: 4 of 10"] == "open"
    assert badges(all_of_them)["repeats that become a sink: 10 of 10"] == "good"


def test_every_measure_is_beside_its_controls_and_judged_by_its_interval() -> None:
    study = by_hand.study()
    assert study.ablation is not None
    text, summary = words(told(study)), study.ablation.summary().set_index(["cut", "measure"])
    assert summary.loc[("all", "first_norm"), "alike"] and not summary.loc[("all", "attention"), "alike"]
    for (cut, measure), row in summary.iterrows():  # pyright: ignore[reportGeneralTypeIssues]
        draws = [by_hand.BESIDE[measure], 0.0]
        expected = row["high"] < min(draws) or row["low"] > max(draws)
        assert row["beyond"] == expected, (cut, measure)
        assert row["change"] == pytest.approx(by_hand.CUT[measure] * (1 if cut == "all" else 0.5), abs=1e-4)
    assert bool(summary.loc[("all", "attention"), "beyond"]) and not summary.loc[("all", "p_next"), "beyond"]
    assert "attention of L3 H1 to the first position from 80 % to 30 % (−50 points, 95 % −50 to −50, 20 texts; " in text
    assert (
        "norm at the first position from 200.00 to 10.00 (−190.00, the same in every text, 20 texts; controls" in text
    )
    assert re.search(r"probability of one more copy from 20 % to 22 % \([^)]*\): not beyond controls", text)
    assert "With the first alone (L2 N7) set to zero everywhere" in text
    assert badges(study)["attention without them: beyond every control"] == "good"


def test_what_controls_do_too_is_not_sold() -> None:
    section = told(by_hand.study(cut=by_hand.BESIDE))
    kinds = {badge.words: badge.kind for badge in section.badges}
    assert kinds["norm without its neurons: not beyond controls"] == "none"
    assert kinds["attention without them: not beyond controls"] == "none"
    assert "beyond every control" not in words(section).replace("norm sink: beyond every null model", "")
    bare = by_hand.study(controls=())
    assert badges(bare)["attention without them: no controls"] == "open" and "no controls" in words(told(bare))
    few = by_hand.study(texts=4)
    assert badges(few)["attention without them: beyond controls, but few texts"] == "open"
    assert badges(few)["norm without its neurons: beyond every control"] == "good", "at BOS all texts are one"


def test_one_neuron_is_one_cut() -> None:
    study = by_hand.study(neurons=1)
    assert study.ablation is not None and study.ablation.cut_names == ["all"]
    text = words(told(study))
    assert "With the sink neuron set to zero everywhere" in text and "the first alone" not in text


def test_without_a_sink_nothing_is_claimed() -> None:
    study = by_hand.study(found=False, heads=False, moved=0)
    section = sinks_section(study)
    text = words(section)
    assert "No attention sink was found in hand" in text and "no neuron is named as its maker" in text
    assert all(badge.kind == "none" for badge in section.badges)
    assert "nowhere to move to" in text and "there is nothing to set to zero" in text
    assert "half-way to it" not in text and "beyond every" not in text
    assert "sink-cause" not in [figure.name for figure in section.figures]
    assert Page(section.to_html()).open == []


def test_heads_can_rest_without_a_norm() -> None:
    section = told(by_hand.study(found=False, heads=True, moved=0))
    assert "1 head of 24 rest on the first position, but its norm is not that of a sink" in words(section)
    assert {badge.words: badge.kind for badge in section.badges}["1 sink head: beyond every null model"] == "good"


@pytest.mark.parametrize(
    ("stimuli", "says"),
    [
        ((0.8, 0.6, 0.2), "less in repeats than in either"),
        ((0.2, 0.3, 0.8), "more in repeats than in either"),
        ((0.8, 0.2, 0.21), "it cannot be told from both"),
    ],
)
def test_attention_in_repeats_is_compared_with_text_and_with_random_tokens(
    stimuli: tuple[float, float, float], says: str
) -> None:
    assert says in words(told(by_hand.study(stimuli=stimuli)))


def test_the_published_rule_and_published_sinks_can_disagree() -> None:
    other = PublishedLayer(4, "", torch.ones(by_hand.N_LAYERS))
    assert "names layer 4, another one" in words(told(by_hand.study(published=other)))
    cannot = PublishedLayer(None, "given 4 layers, it needs <six>", None)
    section = told(by_hand.study(published=cannot))
    assert "names no layer: given 4 layers, it needs <six>" in words(section) and "<six>" not in section.to_html()
    assert "are not met" in words(told(by_hand.study(known="not met")))
    assert "are met: same layer" in words(told(by_hand.study(known="met")))


def test_what_was_not_measured_is_left_out_with_its_reason() -> None:
    study = dataclasses.replace(by_hand.study(), behaviour=None, cluster=None, cluster_reason="too small")
    section = sinks_section(study)
    assert "were not tried: too small" in words(section) and "Can it repeat a token?" not in words(section)
    assert "sink-behaviour" not in [figure.name for figure in section.figures]


def test_tokens_and_names_stay_text() -> None:
    section = sinks_section(by_hand.study(f"net {study_by_hand.SCRIPT}"))
    source = section.to_html()
    assert study_by_hand.SCRIPT not in source and Page(source).open == []
    names = [figure.name for figure in section.figures]
    assert len(set(names)) == len(names) == 6 and all(name.startswith("sink-") for name in names)
    drawn = figures_json(section.figures)
    assert "<script" not in drawn and set(json.loads(drawn)) == set(names)


def test_every_draw_of_every_control_is_drawn() -> None:
    result = by_hand.ablation()
    figure, summary = sink_cause_figure(result), result.summary().set_index(["cut", "measure"])
    tops = [trace for trace in figure.data if trace.name == "the sink neurons"]
    assert len(tops) == len(MEASURES) * 2 and sum(bool(trace.showlegend) for trace in tops) == 1
    order = [(cut, measure) for measure in MEASURES for cut in result.cut_names]
    for key, trace in zip(order, tops, strict=True):
        row = summary.loc[key]
        np.testing.assert_allclose(trace.x, [row["change"]])
        np.testing.assert_allclose(trace.error_x.array, [row["high"] - row["change"]], atol=1e-9)
        np.testing.assert_allclose(trace.error_x.arrayminus, [row["change"] - row["low"]], atol=1e-9)
    random = [trace for trace in figure.data if trace.name == "random neurons"]
    assert len(random) == len(tops) and all(len(trace.x) == 2 for trace in random)
    assert json.loads(figure.to_json())
