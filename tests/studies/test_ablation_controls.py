"""Control heads, statistics and layer profiles: properties, exact nulls, second implementations."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mechrep.ablation.old_controls import HEAD_CONTROLS, control_heads, induction_heads
from mechrep.ablation.old_study import layer_profiles
from mechrep.cache import CorpusCache
from mechrep.errors import InputError, NothingFoundError
from mechrep.measures.attention_sinks import AttentionSinkResult, AttentionSinks
from mechrep.measures.head_scores import HeadScoreResult, score_heads
from mechrep.measures.neurons import RepetitionNeuronResult, RepetitionNeurons
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.stats import benjamini_hochberg, bootstrap_intervals, holm, paired_bootstrap_interval, paired_p_values
from mechrep.text.stimuli import random_repeats
from tests.tiny_models import D_MLP, N_HEADS, N_LAYERS, fresh, tiny

L, H = N_LAYERS, N_HEADS
INDUCTION = [(2, 0), (2, 1)]  # by hand
HEADS = [(layer, head) for layer in range(L) for head in range(H)]


@functools.cache
def model() -> Model:
    return load_model(copy.deepcopy(tiny("gpt_neox")))


@functools.cache
def measured() -> HeadScoreResult:
    return score_heads(model(), n=8, sequences=2)


@functools.cache
def neurons() -> RepetitionNeuronResult:
    corpus = random_repeats(model(), n=12, sequences=2)
    (result,) = CorpusCache(model(), corpus).run(RepetitionNeurons("hiraoka2025", r=5))
    assert isinstance(result, RepetitionNeuronResult)
    return result


@functools.cache
def shallow() -> HeadScoreResult:
    return score_heads(load_model(fresh("gpt_neox", num_hidden_layers=2)), n=8, sequences=2)


@functools.cache
def by_hand() -> HeadScoreResult:
    """Induction heads in the last layer; attention to the first position that differs from head to head."""
    draw = torch.Generator().manual_seed(1)
    scores = torch.rand(5, L, H, generator=draw) * 0.2
    scores[0, -1, :2] = torch.tensor([0.9, 0.8])
    scores[4] = torch.rand(L, H, generator=draw)
    return dataclasses.replace(measured(), scores=scores)


def drawn(kind: str, units: Any, seed: int = 0, **options: Any) -> list[tuple[int, int]]:
    return control_heads(kind, units, n_layers=L, n_heads=H, seed=seed, **({"scores": by_hand()} | options))


# --- control heads -------------------------------------------------------------------------------------------------


@given(
    kind=st.sampled_from(HEAD_CONTROLS),
    units=st.sets(st.sampled_from(HEADS), min_size=1, max_size=4).filter(
        lambda units: max(Counter(layer for layer, _ in units).values()) <= H // 2
    ),
    seed=st.integers(0, 1000),
)
def test_a_control_is_as_large_as_its_set_and_lies_outside_it(kind: str, units: set, seed: int) -> None:
    first, again = (drawn(kind, sorted(units), seed) for _ in range(2))
    assert first == again == sorted(set(first)) and len(first) == len(units) and set(first) <= set(HEADS)
    assert not set(first) & units
    if kind == "layer_matched":
        assert Counter(layer for layer, _ in first) == Counter(layer for layer, _ in units)
    if kind == "bos_matched":
        assert not set(first) & set(INDUCTION)


def test_random_reaches_every_other_head_and_seeds_differ() -> None:
    top = [*INDUCTION, (0, 0)]
    for kind in HEAD_CONTROLS:
        assert len({tuple(drawn(kind, top, seed)) for seed in range(12)}) > 2
    assert {unit for seed in range(80) for unit in drawn("random", top, seed)} == set(HEADS) - set(top)


def test_a_partner_rests_nearly_as_much_on_the_first_position() -> None:
    first = by_hand().first_token
    sinks = dataclasses.replace(sink_result(), alpha=1 - first)
    for table, options in ((first, {}), (1 - first, {"sinks": sinks})):
        for unit in HEADS:
            free = sorted(abs(float(table[o] - table[unit])) for o in HEADS if o not in (unit, *INDUCTION))
            for seed in range(4):
                (partner,) = drawn("bos_matched", [unit], seed, **options)
                assert abs(float(table[partner] - table[unit])) <= free[2] + 1e-6
    others = [unit for unit in HEADS if unit not in INDUCTION]
    assert drawn("bos_matched", others[:5], 5) == others[5:]  # when all that are left are needed, they are taken


@functools.cache
def sink_result() -> AttentionSinkResult:
    (result,) = CorpusCache(model(), random_repeats(model(), n=6, sequences=2)).run(AttentionSinks())
    assert isinstance(result, AttentionSinkResult)
    return result


def test_induction_heads_are_those_above_the_convention() -> None:
    assert induction_heads(by_hand()) == INDUCTION


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(InputError, match=r"3 heads for the control 'layer_matched'.*the 1 heads of layer 2"):
        drawn("layer_matched", [(2, head) for head in range(3)])
    with pytest.raises(InputError, match=r"6 heads for the control 'bos_matched'.*at most the 4 heads"):
        drawn("bos_matched", HEADS[:6])
    with pytest.raises(InputError, match=r"control 'uniform'.*bos_matched"):
        drawn("uniform", HEADS[:1])
    with pytest.raises(InputError, match="'bos_matched' without head scores"):
        drawn("bos_matched", HEADS[:1], scores=None)
    with pytest.raises(InputError, match=r"scores of \(2, 4\) heads"):
        drawn("bos_matched", HEADS[:1], scores=shallow())
    missing = by_hand().scores.clone()
    missing[4, 1, 1] = torch.nan
    with pytest.raises(InputError, match="1 of them NaN"):
        drawn("bos_matched", HEADS[:1], scores=dataclasses.replace(by_hand(), scores=missing))


# --- statistics ----------------------------------------------------------------------------------------------------

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12).map(np.array)


@given(P_VALUES)
def test_holm_by_its_definition(p_values: np.ndarray) -> None:
    m, level = len(p_values), 0.05
    found = np.zeros(m, dtype=bool)  # step down: as long as the smallest p is below level / (those left), go on
    for step, place in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[place] * (m - step) > level:
            break
        found[place] = True
    adjusted = holm(p_values)
    assert ((adjusted <= level) == found).all() and (adjusted >= p_values).all() and (adjusted <= 1).all()


@given(P_VALUES)
def test_benjamini_hochberg_by_its_definition(p_values: np.ndarray) -> None:
    m, order = len(p_values), np.sort(p_values)
    expected = [min(min(1.0, m * order[j] / (j + 1)) for j in range(m) if order[j] >= p) for p in p_values]
    assert (
        np.allclose(benjamini_hochberg(p_values), expected) and (benjamini_hochberg(p_values) <= holm(p_values)).all()
    )


def test_p_values_are_those_of_a_paired_t_test() -> None:
    effects = np.random.default_rng(0).normal(0.2, 1, (6, 9))
    expected = [stats.ttest_1samp(row, 0).pvalue for row in effects]
    assert np.allclose(paired_p_values(effects), expected)
    special = np.array([[0.0] * 4, [9e-6, -9e-6, 0, 9e-6], [2.0] * 4, [-2.0] * 4])
    assert paired_p_values(special).tolist() == [1.0, 1.0, 0.0, 0.0]
    with pytest.raises(InputError, match="a test over 1 text"):
        paired_p_values(np.zeros((2, 1)))


def test_intervals_of_many_rows_are_those_of_each() -> None:
    values = np.random.default_rng(1).normal(0, 1, (5, 13))
    expected = [paired_bootstrap_interval(row) for row in values]
    assert np.allclose(bootstrap_intervals(values), expected)


# --- layers --------------------------------------------------------------------------------------------------------


def profiles(neuron_layers: dict[int, int], head_layers: dict[int, int], **options: Any) -> Any:
    """So many neurons that rise, and so many induction heads, in these layers; nothing else."""
    found, delta = neurons(), torch.full((3, D_MLP), -1.0)
    scores = torch.zeros(5, 3, 4)
    for layer, number in neuron_layers.items():
        delta[layer, :number] = 1.0
    for layer, number in head_layers.items():
        scores[0, layer, :number] = 0.9
    heads = dataclasses.replace(measured(), scores=scores)
    return layer_profiles(dataclasses.replace(found, delta=delta), heads, **({"k_neurons": 20} | options))


@pytest.mark.parametrize(
    ("neuron_layers", "head_layers", "overlap"),
    [
        ({2: 9}, {2: 3}, 1.0),
        ({2: 9}, {0: 3}, 0.0),
        ({1: 4, 2: 12}, {0: 1, 2: 1}, 0.5),
        ({0: 2, 1: 2}, {0: 3, 1: 1}, 0.75),
    ],
)
def test_overlap_and_its_null_by_all_orders_of_layers(neuron_layers: dict, head_layers: dict, overlap: float) -> None:
    frame = profiles(neuron_layers, head_layers)
    assert frame["neurons"].tolist() == [neuron_layers.get(layer, 0) for layer in range(3)]
    assert frame["heads"].tolist() == [head_layers.get(layer, 0) for layer in range(3)]
    assert frame["overlap"].tolist() == [overlap] * 3
    shares = frame[["neuron_share", "head_share"]].to_numpy().T
    orders = [np.minimum(shares[0], shares[1][list(order)]).sum() for order in itertools.permutations(range(3))]
    row = frame.iloc[0]
    assert row["null"] == pytest.approx(np.mean(orders), abs=0.03)
    assert row["p"] == pytest.approx(np.mean(np.array(orders) >= overlap), abs=0.05)
    assert (row["null_low"], row["null_high"]) == (min(orders), max(orders))


def test_profiles_count_what_they_are_asked_for() -> None:
    assert profiles({0: 5, 1: 5}, {2: 2}, k_neurons=3, k_heads=1)[["neurons", "heads"]].sum().tolist() == [3, 1]
    for options, match in (
        ({"score": "previous_token"}, "without k_heads"),
        ({"k_heads": 99}, "k = 99"),
        ({"draws": 0}, "draws=0"),
    ):
        with pytest.raises(InputError, match=match):
            profiles({0: 5}, {2: 2}, **options)
    with pytest.raises(NothingFoundError, match="0 neurons that rise and 2 heads"):
        profiles({}, {2: 2})
    with pytest.raises(NothingFoundError, match="5 neurons that rise and 0 heads"):
        profiles({0: 5}, {})
    with pytest.raises(InputError, match="neurons of 3 layers, heads of 2"):
        layer_profiles(neurons(), shallow())
