"""The one verdict: its error rate under three nulls, its power, and each of its clauses."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, false_discovery_control

import mechrep
from mechrep.ablation.circuit import Circuit
from mechrep.ablation.controls import draw_controls
from mechrep.ablation.effects import Condition, Effects, Measure, detection, example_effects, judge, rank_p_value
from mechrep.ablation.outcomes import HeldOutLoss
from mechrep.models import tiny
from mechrep.provenance import Provenance
from mechrep.text.corpus import windows_of_text

PROVENANCE = Provenance({"name": "made up"}, {"texts": 0}, {})


def table(values: np.ndarray, clusters: list[str] | None = None, direction: int = 0) -> Effects:
    """Baseline, the set under test and its draws, in this order, ``[condition unit]``."""
    conditions = [Condition(), Condition("set", "ablation", 1, "zero")]
    conditions += [Condition("set", "random", 1, "zero", seed=draw) for draw in range(len(values) - 2)]
    ids = [str(unit) for unit in range(values.shape[1])]
    measure = Measure("loss", direction=direction)
    return Effects(PROVENANCE, conditions, [measure], [ids], [clusters or ids], torch.from_numpy(values)[None])


def simulated(
    generator: np.random.Generator, *, m: int, between: float, families: int, size: int, shift: float = 0.0
) -> Effects:
    """One study: every set has an effect of its own (spread ``between``); units of a family share their noise."""
    n = families * size
    family = np.repeat(np.arange(families), size)
    own = generator.normal(0, between, (m + 1, 1)) if between else np.zeros((m + 1, 1))
    own[0] += shift
    noise = generator.normal(0, 0.1, (m + 1, families))[:, family] + generator.normal(0, 0.05, (m + 1, n))
    baseline = generator.normal(2, 0.3, (1, n))
    return np.concatenate([baseline, baseline + own + noise]), [f"f{one}" for one in family]


def rate(supported: list[bool]) -> str:
    """Share of findings with its exact interval, for the message of a failing test."""
    ends = binomtest(sum(supported), len(supported)).proportion_ci()
    return f"{np.mean(supported):.3f} [{ends.low:.3f}, {ends.high:.3f}]"


NULLS = {
    "equal sets": {"between": 0.0, "families": 20, "size": 1},
    "sets that differ more than texts": {"between": 0.5, "families": 20, "size": 1},
    "families of loops": {"between": 0.05, "families": 12, "size": 3},
}


@pytest.mark.parametrize("null", NULLS)
@pytest.mark.parametrize("m", [19, 99])
def test_p_below_five_per_cent_comes_in_five_per_cent_of_null_studies(null: str, m: int) -> None:
    generator = np.random.default_rng(m)
    found = []
    for _ in range(1000):
        values, _ = simulated(generator, m=m, **NULLS[null])
        effects = (values - values[0]).mean(1)
        found.append(rank_p_value(effects[1], effects[2:].tolist()) <= 0.05)
    assert 0.03 <= np.mean(found) <= 0.07, rate(found)


@pytest.mark.slow
@pytest.mark.parametrize("null", NULLS)
@pytest.mark.parametrize("m", [19, 99])
def test_a_null_study_is_supported_in_at_most_seven_per_cent(null: str, m: int) -> None:
    """The verdict asks for more than p: an interval without 0 and a size; so it can only be rarer."""
    generator = np.random.default_rng(100 + m)
    studies = (table(*simulated(generator, m=m, **NULLS[null])) for _ in range(400))
    found = [one.summary()["verdict"].iloc[0] == "supported" for one in studies]
    low = 0.03 if null == "sets that differ more than texts" else 0.0
    assert low <= np.mean(found) <= 0.07, rate(found)


@pytest.mark.parametrize("m", [19, 99])
def test_a_planted_effect_of_three_spreads_is_supported(m: int) -> None:
    generator = np.random.default_rng(7)
    studies = [table(*simulated(generator, m=m, between=0.1, families=12, size=2, shift=0.5)) for _ in range(25)]
    found = [one.summary()["verdict"].iloc[0] == "supported" for one in studies]
    assert np.mean(found) >= 0.8, rate(found)


@pytest.mark.slow
def test_placebo_sets_on_the_embedded_model_are_supported_in_five_per_cent() -> None:
    """Every random set of neurons plays the set under test once, against 99 others."""
    model = mechrep.load_model("mechrep-tiny")
    windows = windows_of_text(model, tiny.held_out_text(), length=64, limit=10)
    for k in (3, 28):
        first = draw_controls("random", [(0, i) for i in range(k)], layers=4, width=352, draws=200, seed=k)
        interventions = [Circuit("placebo", neurons=units).intervention("zero", "all") for units in first]
        values = HeldOutLoss(model, windows).values([None, *interventions], False)[0].numpy()
        generator, found = np.random.default_rng(k), []
        for _ in range(400):
            chosen = 1 + generator.permutation(len(first))[:100]
            p = table(values[[0, *chosen]]).draws()["p"].iloc[0]
            found.append(bool(p <= 0.05))
        assert 0.03 <= np.mean(found) <= 0.07, f"k = {k}: {rate(found)}"


@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([-1, 0, 1]))
def test_p_is_the_share_of_draws_that_are_as_extreme(m: int, seed: int, direction: int) -> None:
    draws = np.random.default_rng(seed).normal(size=m + 1).round(1)
    own, others = draws[0], draws[1:]
    far = [abs(x) >= abs(own) if direction == 0 else direction * x >= direction * own for x in others]
    assert rank_p_value(own, others.tolist(), direction) == pytest.approx((1 + sum(far)) / (m + 1))


def test_over_all_roles_of_a_pool_every_rank_comes_once() -> None:
    pool = np.random.default_rng(0).normal(size=20)
    p_values = [rank_p_value(own, np.delete(pool, place).tolist()) for place, own in enumerate(pool)]
    assert sorted(p_values) == pytest.approx([rank / 20 for rank in range(1, 21)])


def row(**changes: object) -> dict[str, object]:
    facts: dict[str, object] = {
        "name": "x", "measure": "loss", "over": "text", "effect": 1.0, "low": 0.5, "high": 1.5, "n": 20, "m": 99,
        "p": 0.01, "direction": 0, "floor": 0.01,
    }  # fmt: skip
    return facts | changes


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "supported"),
        ({"p": 0.06}, "not supported"),
        ({"effect": 0.009, "low": 0.001, "high": 0.02}, "not supported"),
        ({"low": -0.1}, "not supported"),
        ({"direction": -1}, "not supported"),
        ({"direction": 1}, "supported"),
        ({"m": 18}, "too few"),
        ({"m": 19, "p": 0.05}, "supported"),
        ({"m": 0, "p": float("nan")}, "too few"),
        ({"n": 5}, "too few"),
        ({"n": 6}, "supported"),
        ({"n": 0, "over": "model", "low": float("nan"), "high": float("nan")}, "supported"),
    ],
)
def test_each_clause_decides(changes: dict[str, object], verdict: str) -> None:
    assert judge([row(**changes)])["verdict"].tolist() == [verdict]


def test_q_values_are_those_of_the_family_and_what_is_too_few_burdens_no_one() -> None:
    p_values = [0.01, 0.02, 0.03, 0.5]
    rows = [row(name=str(p), p=p) for p in p_values] + [row(name="few", m=3, p=0.25)]
    judged = judge(rows, family="four")
    assert judged["q"][:4].tolist() == pytest.approx(false_discovery_control(p_values).tolist())
    assert (
        np.isnan(judged["q"][4]) and judged["verdict"][4] == "too few" and set(judged["family"]) == {"four (4 tests)"}
    )
    apart = judge([row(measure=m, p=p) for m, p in itertools.product("ab", (0.04, 0.5))], within=["measure"])
    assert apart["q"].tolist() == pytest.approx([0.08, 0.5, 0.08, 0.5])
    assert judge(pd.DataFrame(columns=list(row()))).empty


def test_several_kinds_of_control_are_all_exceeded() -> None:
    effects = example_effects(shift=0.3, m=30)
    conditions = [
        one if number < 17 else Condition("heads", "layer_matched", 2, "zero", seed=number)
        for number, one in enumerate(effects.conditions)
    ]
    values = effects.values.clone()
    values[0, 17:] += 1.0  # one kind of control does more than the set
    mixed = Effects(effects.provenance, conditions, effects.measures, effects.units, effects.clusters, values)
    by_kind = mixed.draws().set_index("control")["p"]
    assert by_kind["random"] < 0.1 and by_kind["layer_matched"] == 1 and mixed.summary()["p"].iloc[0] == 1


def test_a_detection_stands_beside_its_draws() -> None:
    found = judge([detection("sink", "ratio", 9.0, [1 + i / 100 for i in range(19)], unit="ratio")]).iloc[0]
    assert (found["verdict"], found["p"], found["m"]) == ("supported", 0.05, 19)
    assert found["effect"] == pytest.approx(9 - found["baseline"])
    assert (
        judge([detection("sink", "ratio", 1.1, [1 + i / 100 for i in range(19)])])["verdict"].iloc[0] == "not supported"
    )
    assert judge([detection("sink", "ratio", 9.0, [1.0] * 5)])["verdict"].iloc[0] == "too few"
