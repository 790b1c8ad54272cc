"""The sentence says no more than the numbers."""

from __future__ import annotations

import pytest

from mechrep.ablation.old_sweeps import (
    activation_finding,
    cost_sentence,
    deactivation_finding,
    escape_sentence,
    percent,
)
from tests.views import study_by_hand as by_hand

NB = "\u00a0"


def counts(top: int, control: int) -> dict[str, tuple[int, ...]]:
    return {"top": (40, top), "random": (40, 40), "activation_matched": (40, control)}


@pytest.mark.parametrize(
    ("top", "control", "verdict"),
    [
        (4, 30, "beyond controls"),
        (25, 30, "beyond controls, few texts"),
        (30, 30, "not beyond controls"),
        (39, 10, "not beyond controls"),
    ],
)
def test_the_cut_is_judged_by_every_control(top: int, control: int, verdict: str) -> None:
    finding = deactivation_finding(by_hand.sweep(counts=counts(top, control)), "net")
    assert finding.verdict == verdict
    assert (
        percent(top / 40) in finding.sentence and "100 neurons" in finding.sentence and "40 looping" in finding.sentence
    )


def test_the_control_that_does_as_much_is_named() -> None:
    finding = deactivation_finding(by_hand.sweep(counts=counts(35, 20)), "net")
    assert "activation-matched neurons" in finding.sentence and "random" not in finding.sentence


def test_without_controls_nothing_is_claimed() -> None:
    finding = deactivation_finding(by_hand.sweep(counts={"top": (5, 0)}), "net")
    assert finding.verdict == "no controls" and "without controls" in finding.sentence


def test_without_a_cut_nothing_is_claimed() -> None:
    assert "nothing is known" in deactivation_finding(by_hand.sweep(counts={}), "net").sentence


@pytest.mark.parametrize(
    ("top", "control", "verdict"),
    [(30, 5, "beyond controls"), (8, 5, "beyond controls, few texts"), (5, 5, "not beyond controls")],
)
def test_the_boost_is_judged_by_every_control(top: int, control: int, verdict: str) -> None:
    sweep = by_hand.sweep("activation", counts={"top": (0, top), "random": (0, 1), "layer_matched": (0, control)})
    assert activation_finding(sweep).verdict == verdict


def test_a_missing_boost_is_said() -> None:
    assert "not tested" in activation_finding(None).sentence


def test_the_price_is_the_perplexity_at_the_largest_k() -> None:
    table = by_hand.losses().to_frame()
    after = float(table.query("selection == 'top' and k == 100")["perplexity"].iloc[0])
    assert f"from {table['perplexity'][0]:.1f} to {after:.1f} (controls" in cost_sentence(by_hand.losses())


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0"), (1.0, "100"), (0.5, "50"), (0.004, "0.4"), (0.996, "99.6"), (0.126, "13")]
)
def test_percent(share: float, text: str) -> None:
    assert percent(share) == f"{text}{NB}%"


def test_texts_that_left_their_loop_are_counted_beside_every_draw() -> None:
    sweep = by_hand.sweep(counts=counts(30, 30))
    table = sweep.to_frame()
    sentence = escape_sentence(sweep)
    for k in (table.query("k > 0")["k"].min(), table["k"].max()):
        here = table[table["k"] == k]
        left = here.query("selection == 'top'")["escaped"].iloc[0]
        controls = here.query("selection not in ['top', 'none']")["escaped"]
        assert f"{left} of 40" in sentence and f"(controls {controls.min()} to {controls.max()})" in sentence


def test_nothing_cut_nothing_left() -> None:
    assert escape_sentence(by_hand.sweep(counts={"random": (5, 0)})) == ""
