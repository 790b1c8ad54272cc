"""Control sets: their sizes, what they exclude, what they match, and that a seed decides them."""

from __future__ import annotations

import inspect
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechrep.ablation.old_controls import (
    CONTROLS,
    as_ranking,
    as_seeds,
    control_units,
    standard_deviations,
    sweep_conditions,
)
from mechrep.errors import InputError
from mechrep.interventions import zero
from mechrep.measures.neurons import RepetitionNeuronResult
from tests.analyzers.by_hand import result_of
from tests.analyzers.oracle import Loop
from tests.studies.loops import model, neurons
from tests.tiny_models import D_MLP, N_LAYERS

L, M = 3, 60


def searched(seed: int = 0) -> RepetitionNeuronResult:
    """Mean activations that differ widely between neurons, both signs."""
    draw = np.random.default_rng(seed)
    base = draw.normal(0, 1, (1, L, M)) ** 3
    loops = [Loop([9] * 40, 15, 18) for _ in range(3)]
    return result_of([base + draw.normal(0, 0.05, (40, L, M)) for _ in loops], loops, r=10)


RESULT = searched()


@given(
    kind=st.sampled_from(CONTROLS),
    units=st.sets(st.tuples(st.integers(0, L - 1), st.integers(0, M - 1)), min_size=1, max_size=30),
    seed=st.integers(0, 1000),
)
def test_a_control_is_as_large_as_its_set_and_matched_ones_lie_in_the_same_layers_outside_it(
    kind: str, units: set[tuple[int, int]], seed: int
) -> None:
    drawn, again = (control_units(kind, sorted(units), n_layers=L, d_mlp=M, seed=seed, result=RESULT) for _ in range(2))
    assert drawn == again and drawn == sorted(drawn)
    assert len(set(drawn)) == len(drawn) == len(units)
    assert all(0 <= layer < L and 0 <= neuron < M for layer, neuron in drawn)
    if kind != "random":
        assert not set(drawn) & units
        assert Counter(layer for layer, _ in drawn) == Counter(layer for layer, _ in units)


@pytest.mark.parametrize("kind", CONTROLS)
def test_every_seed_draws_another_set(kind: str) -> None:
    top = RESULT.top(20)
    sets = {tuple(control_units(kind, top, n_layers=L, d_mlp=M, seed=seed, result=RESULT)) for seed in range(10)}
    assert len(sets) == 10


def test_random_reaches_every_neuron_and_the_top_ones_too() -> None:
    top = RESULT.top(20)
    drawn = {unit for seed in range(100) for unit in control_units("random", top, n_layers=L, d_mlp=M, seed=seed)}
    assert len(drawn) == L * M and set(top) <= drawn


def test_activation_matched_neurons_are_closer_in_mean_activation_than_layer_matched_ones() -> None:
    size = RESULT.normal_mean.abs()
    # The larger half, so that its layer at large is another population.
    top = [(layer, int(neuron)) for layer in range(L) for neuron in size[layer].argsort(descending=True)[3:27:3]]

    def distance(kind: str, seed: int) -> float:
        drawn = control_units(kind, top, n_layers=L, d_mlp=M, seed=seed, result=RESULT)
        mine, theirs = (np.sort([float(size[unit]) for unit in units]) for units in (top, drawn))
        return float(np.abs(mine - theirs).mean())

    matched, unmatched = (np.mean([distance(kind, seed) for seed in range(20)]) for kind in CONTROLS[:0:-1])
    assert matched < 0.6 * unmatched


def test_a_partner_is_among_the_nearest_that_are_left() -> None:
    size = RESULT.normal_mean.abs().numpy()
    for seed in range(10):
        for neuron in range(0, M, 7):
            ((layer, partner),) = control_units(
                "activation_matched", [(1, neuron)], n_layers=L, d_mlp=M, seed=seed, result=RESULT
            )
            others = np.delete(np.abs(size[1] - size[1, neuron]), neuron)
            assert layer == 1 and np.abs(size[1, partner] - size[1, neuron]) <= np.sort(others)[7]


def test_what_cannot_be_drawn_is_refused() -> None:
    half = [(1, neuron) for neuron in range(M // 2 + 1)]
    for kind in ("layer_matched", "activation_matched"):
        with pytest.raises(InputError, match=rf"31 of the 60 neurons of layer 1.*{kind}"):
            control_units(kind, half, n_layers=L, d_mlp=M, seed=0, result=RESULT)
        assert len(control_units(kind, half[:-1], n_layers=L, d_mlp=M, seed=0, result=RESULT)) == 30
    with pytest.raises(InputError, match=r"control 'uniform'.*random"):
        control_units("uniform", half, n_layers=L, d_mlp=M, seed=0)
    with pytest.raises(InputError, match="'activation_matched' with a list of neurons"):
        control_units("activation_matched", half, n_layers=L, d_mlp=M, seed=0)


def test_seeds_and_rankings() -> None:
    assert as_seeds(3) == [0, 1, 2] and as_seeds([7, 2]) == [7, 2]
    for seeds in (0, [], [1, 1], [-1], -2):
        with pytest.raises(InputError, match="at least one seed, none twice or negative"):
            as_seeds(seeds)
    assert as_ranking(RESULT) == RESULT.ranking()
    assert inspect.unwrap(as_ranking)([(np.int64(2), 3)]) == [(2, 3)]  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"neurons=\[\]"):
        as_ranking([])
    for no_pairs in ([1, 2], [(1, 2, 3)], [(0.5, 1)]):
        with pytest.raises(InputError, match=r"a ranked list of \(layer, neuron\)"):
            inspect.unwrap(as_ranking)(no_pairs)  # pyright: ignore[reportArgumentType]
    for ks in (5, [2.5]):
        with pytest.raises(InputError, match="a list of numbers from 0 to"):
            inspect.unwrap(sweep_conditions)(model("gpt_neox"), [(0, 1)] * 9, ks, [], [0])  # pyright: ignore
    two_sd = standard_deviations(RESULT, 2.0)
    assert np.allclose(two_sd.numpy(), 2 * RESULT.normal_sd.numpy())


# --- conditions ----------------------------------------------------------------------------------------------------


def test_conditions_are_the_untouched_model_and_every_k_with_every_control_from_every_seed() -> None:
    found, loaded = neurons("gpt_neox"), model("gpt_neox")
    conditions = sweep_conditions(loaded, found, [9, 0, 4, 9], ["layer_matched", "random"], [3, 5])
    cells = [(c.selection, c.k, c.seed) for c in conditions]
    per_k = [("top", 0), ("layer_matched", 3), ("layer_matched", 5), ("random", 3), ("random", 5)]
    assert cells == [("none", 0, 0), *((name, k, seed) for k in (4, 9) for name, seed in per_k)]
    assert all(len(set(c.units)) == c.k for c in conditions)
    assert [c.units for c in conditions if c.selection == "top"] == [tuple(found.top(4)), tuple(found.top(9))]
    assert conditions[0].intervention(zero(), "last") is None


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"ks": []}, r"ks=\[\]"),
        ({"ks": [-1, 2]}, r"ks=\[-1, 2\]"),
        ({"ks": [N_LAYERS * D_MLP + 1]}, r"0 to 144, the neurons given"),
        ({"controls": ["random", "random"]}, "each control once"),
        ({"controls": ["uniform"]}, "control 'uniform'"),
    ],
)
def test_conditions_that_make_no_sense_are_refused(options: dict, match: str) -> None:
    settings = {"ks": [3], "controls": [], "seeds": [0]} | options
    with pytest.raises(InputError, match=match):
        sweep_conditions(model("gpt_neox"), neurons("gpt_neox"), **settings)


def test_a_result_of_another_model_is_refused() -> None:
    with pytest.raises(InputError, match=r"a result of hand with \(3, 60\) neurons.*3 layers of 48"):
        sweep_conditions(model("gpt_neox"), RESULT, [3], [], [0])
