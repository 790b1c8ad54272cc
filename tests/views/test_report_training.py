"""The report's section on training says what the curves say: found, not found, not decided, there from the start."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from mechrep.errors import InputError
from mechrep.report.old_training_section import training_section
from mechrep.report.page import Section
from mechrep.studies.training import TrainingStudy
from mechrep.studies.training_heads import LEAST_UNITS, agreement_figure, head_maps_figure, specialisation_figure
from tests.views import study_by_hand
from tests.views import training_study_by_hand as by_hand
from tests.views.test_report import Page


def words(section: Section) -> str:
    """Everything that a section says, with ordinary blanks."""
    return Page(section.to_html()).text.replace("\u00a0", " ")


def badges(study: TrainingStudy) -> dict[str, str]:
    return {badge.words.replace("\u00a0", " "): badge.kind for badge in training_section(study).badges}


@pytest.fixture(scope="module")
def found() -> TrainingStudy:
    return by_hand.study()


def test_the_planted_order_is_told_with_intervals_and_controls(found: TrainingStudy) -> None:
    section = training_section(found)
    text = words(section)
    names = found.checkpoints.revisions
    assert section.anchor == "training"
    assert f"natural looping appears first, between {names[2]} and {names[3]}" in section.finding
    assert "natural looping appears before induction attention" in section.finding
    assert "rest on the same heads, beyond controls" in section.finding
    point = found.points.set_index("measure").loc["induction"]
    assert f"between {names[7]} and {names[8]} (95 % {names[7]} to {names[8]}; by +{point['size']:.2f} [+" in text
    assert abs(float(point["size"]) - 0.8) < 0.05
    assert "Without one:" in text and "self-finding attention of the best head (no clear step)" in text
    assert badges(found) == {
        f"natural loops: appears between {names[2]} and {names[3]}": "good",
        f"induction: appears between {names[7]} and {names[8]}": "good",
        "loops before induction: in 100 % of draws": "good",
        "same heads: beyond controls": "good",
    }
    assert re.search(r"\d+ and \d+ texts; heads that changed places reach [\d.]+, within their layers [\d.]+", text)


def test_induction_before_loops_is_told_the_other_way_round() -> None:
    study = by_hand.study(loops=by_hand.share(8), induction=by_hand.score(3), heads={})
    section = training_section(study)
    assert "induction attention of the best head appears first" in section.finding
    assert "natural looping appears after induction attention" in section.finding
    assert badges(study)["induction before loops: in 100 % of draws"] == "good"
    assert not any(words.startswith("loops before") for words in badges(study))


def test_the_same_place_and_a_close_race_are_not_decided() -> None:
    same = by_hand.study(loops=by_hand.share(5), induction=by_hand.score(5), heads={})
    assert "between the same checkpoints as induction" in training_section(same).finding
    assert badges(same)["loops and induction: same checkpoints"] == "open"
    assert "which appears first is not decided among" in training_section(same).finding
    faint = np.vstack([by_hand.share(5, before=0.0)[:5], by_hand.share(5, before=0.5)[5:6], by_hand.share(5)[6:]])
    near = by_hand.study(loops=faint, induction=by_hand.score(4), heads={})
    pair = near.order[near.order["second"].isin(["loops_naturally"]) | near.order["first"].isin(["loops_naturally"])]
    assert {"not decided"} <= set(pair["verdict"])
    assert "in an order to induction attention of the best head that is not decided (earlier in" in words(
        training_section(near)
    )


def test_without_steps_it_says_that_nothing_was_found() -> None:
    nothing = np.zeros((by_hand.CHECKPOINTS, by_hand.PROMPTS))
    loops = by_hand.share(99, before=0.1)
    study = by_hand.study(loops=loops, copies=nothing, induction=by_hand.flat(), heads={})
    section = training_section(study)
    assert "no mechanism has a clear step upwards over 12 checkpoints" in section.finding
    assert "natural looping has no clear step" in section.finding
    assert "whether the same heads carry both was not measured" in section.finding
    assert "appears" not in words(section).split("When each measure changes")[0].replace("appears first is", "")
    assert badges(study)["induction: no clear step"] == "none"
    assert badges(study)["loops before induction: not both appear"] == "none"
    assert "good" not in badges(study).values()
    assert "What single heads do was not measured" in words(section)


def test_loops_of_an_untrained_model_do_not_come_first() -> None:
    """All loop at step 0, on single tokens; phrases come late."""
    study = by_hand.study(loops=np.ones((by_hand.CHECKPOINTS, by_hand.PROMPTS)), phrases=by_hand.share(9), heads={})
    section = training_section(study)
    text = words(section)
    assert "natural looping is there at the first checkpoint already, before any training" in section.finding
    assert (
        "100 % (95 % 100 % to 100 %, n = 24) of the prompts loop by themselves, 24 of 24 of them on one single" in text
    )
    assert "the rate alone does not say which mechanism was first" in text
    names = study.checkpoints.revisions
    assert f"Loops of two tokens or more: appears between {names[9]} and {names[10]}" in text
    assert "natural looping of phrases after induction" in text
    kinds = badges(study)
    assert kinds["natural loops: there at the first checkpoint"] == "open"
    assert kinds["loops before induction: there before training says nothing"] == "open"


def test_a_step_that_rests_on_one_checkpoint_is_named_so() -> None:
    study = by_hand.study(loops=by_hand.share(0), heads={})
    assert study.verdict_of("loops_naturally") == "appears, by one checkpoint"
    section = training_section(study)
    assert "which rests on one checkpoint" in section.finding
    assert badges(study)["loops before induction: in 100 % of draws, by one checkpoint"] == "open"


def test_other_heads_and_too_few_loops() -> None:
    study = by_hand.study(heads=by_hand.head_units(same=False))
    assert badges(study)["same heads: not beyond controls"] == "none"
    assert "is not found beyond controls (overlap" in training_section(study).finding
    few = by_hand.study(heads=by_hand.head_units(least_loops=LEAST_UNITS - 1))
    last = few.checkpoints.revisions[-2]
    assert f"at {last})" in training_section(few).finding  # the last checkpoint with enough texts
    assert re.search(rf"{few.checkpoints.revisions[-1]}\s*{LEAST_UNITS - 1}\s*24\s*–", words(training_section(few)))
    none = by_hand.head_units()
    empty = {name: np.full_like(values, np.nan) for name, values in none.items() if name.startswith("natural/")}
    study = by_hand.study(heads=none | empty)
    assert "too few texts loop to say whether the same heads carry both" in training_section(study).finding
    assert badges(study)["same heads: too few texts"] == "open"
    assert "at no checkpoint did enough texts loop" in words(training_section(study))


def test_planted_markup_stays_text_and_tags_balance() -> None:
    section = training_section(by_hand.study(name=f"net {study_by_hand.SCRIPT}"))
    page = section.to_html()
    assert study_by_hand.SCRIPT not in page and Page(page).open == []
    boxes = [a["id"] for _, a in Page(page).tags if a.get("class") == "plot"]
    assert boxes == [figure.name for figure in section.figures] and len(set(boxes)) == len(boxes) == 5


def test_figures_draw_the_numbers_and_their_controls(found: TrainingStudy) -> None:
    assert found.heads is not None
    history = found.heads.history
    maps: Any = head_maps_figure(history, history.revisions[-2:])
    assert len(maps.data) == 3 * 2
    np.testing.assert_allclose(maps.data[1].z, history.means("natural")[-1])
    np.testing.assert_allclose(maps.data[3].z, history.means("induced")[-1])
    assert maps.layout.coloraxis.cmax == -maps.layout.coloraxis.cmin
    with pytest.raises(InputError, match="step7"):
        head_maps_figure(history, ["step7"])
    curves: Any = specialisation_figure(found.heads.specialisation, "hand")
    drawn = found.heads.specialisation
    for number, condition in enumerate(("natural", "induced")):
        part = drawn[drawn["condition"] == condition]
        np.testing.assert_allclose(curves.data[2 * number].y, part["value"])
        np.testing.assert_allclose(curves.data[2 * number + 1].y, part["null_high"])
    agreement: Any = agreement_figure(found.heads.agreement, "hand")
    pair = found.heads.agreement.iloc[: by_hand.CHECKPOINTS]
    np.testing.assert_allclose(agreement.data[0].y, pair["value"])
    np.testing.assert_allclose(agreement.data[1].y, pair[["random_high", "layer_high"]].max(axis=1))
