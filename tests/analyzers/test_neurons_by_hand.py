"""``RepetitionNeurons`` on activations made by hand, where every number is known (closed forms)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mechrep.errors import InputError, NothingFoundError
from mechrep.measures.neurons import RepetitionNeurons
from tests.analyzers.by_hand import result_of
from tests.analyzers.looping_texts import NONE, random_loops
from tests.analyzers.oracle import Loop, search, windows
from tests.unchecked import as_users_call

L, M, R = 3, 5, 8
LOOPS = [Loop([9] * 40, 10, 14), Loop([9] * 33, 12, 13), Loop([9] * 40, 9, 18)]


def tables(loops: list[Loop], window: str, *, seed: int = 0) -> list[np.ndarray]:
    """Noise, but (2, 3) is 0 before and 1 during the loop, (1, 0) constant, and (0, 4) falls by 2."""
    draw = np.random.default_rng(seed)
    made = []
    for loop in loops:
        table = draw.normal(0, 0.05, (len(loop.ids), L, M))
        before, during = windows(loop, R, window)
        table[:, 2, 3], table[:, 1, 0], table[:, 0, 4] = 0.0, 0.1, 0.0
        table[during, 2, 3], table[before, 0, 4] = 1.0, 2.0
        made.append(table)
    return made


@pytest.mark.parametrize("window", ["published", "paper_form", "clean"])
def test_a_neuron_that_switches_on_is_rank_0_and_a_constant_one_has_no_rise(window: str) -> None:
    result = result_of(tables(LOOPS, window), LOOPS, window=window, r=R)
    assert result.top(1) == [(2, 3)] and result.ranking()[-1] == (0, 4)
    assert result.delta[2, 3] == 1.0 and result.normal_mean[2, 3] == 0.0 and result.repetition_mean[2, 3] == 1.0
    assert result.delta[0, 4] == -2.0
    assert result.delta[1, 0] == 0.0 and result.t[1, 0] == 0.0
    frame = result.to_frame()
    assert frame.loc[0, ["layer", "neuron", "delta"]].tolist() == [2, 3, 1.0]
    assert len(frame) == L * M and (frame["delta"].diff().dropna() <= 0).all()


def test_texts_that_agree_exactly_have_an_infinite_t_with_its_sign() -> None:
    result = result_of(tables(LOOPS, "clean"), LOOPS, r=R)
    assert result.standard_error[2, 3] == 0 and result.t[2, 3] == math.inf and result.dprime[2, 3] == math.inf
    assert result.t[0, 4] == -math.inf
    assert result.top(1, "t") == [(2, 3)] and result.ranking("t")[-1] == (0, 4)
    noisy = result.t[1, 1:]
    assert noisy.isfinite().all() and (noisy != 0).all()


def test_constant_neurons_never_look_certain() -> None:
    """Windows of unequal width round the same mean differently; in float32 that difference is all there is."""
    loops = [Loop([9] * 40, 7 + i, 16 + i) for i in range(3)]
    constants = np.random.default_rng(1).normal(size=(L, M)).astype(np.float32)
    result = result_of([np.broadcast_to(constants, (40, L, M)).copy() for _ in loops], loops, r=30)
    assert (result.delta == 0).all() and (result.t == 0).all()


def test_positions_are_pooled_over_texts() -> None:
    """30 positions of value 1 and 10 of value 0: 0.75, where a mean of means would be 0.5."""
    loops = [Loop([9] * 60, 10, 21), Loop([9] * 30, 10, 21)]  # repetition windows of 30 and of 10 positions
    ones, zeros = np.ones((60, L, M)), np.zeros((30, L, M))
    ones[:20] = 0
    result = result_of([ones, zeros], loops, window="published", r=30)
    assert [len(windows(loop, 30, "published")[1]) for loop in loops] == [30, 10]
    assert (result.repetition_mean == 0.75).all() and (result.normal_mean == 0).all()
    # The text is the unit of the error: differences 1 and 0, their mean 0.5, its error 0.5.
    assert torch.allclose(result.standard_error, torch.full((L, M), 0.5)) and torch.allclose(result.t, torch.ones(L, M))


def test_one_text_has_a_rise_and_no_error() -> None:
    result = result_of(tables(LOOPS, "clean")[:1], LOOPS[:1], r=R)
    assert result.delta[2, 3] == 1.0
    assert result.standard_error.isnan().all() and result.t.isnan().all()


def test_clean_windows_are_clipped_and_texts_without_one_are_left_out_and_counted() -> None:
    loops = [*LOOPS, Loop([9] * 30, 3, 7), Loop([9] * 30, 0, 4)]  # a clipped window, and none at all
    made = tables(loops, "clean")
    result, oracle = result_of(made, loops, r=R), search(made, loops, R, "clean")
    assert result.n_texts == 4 == oracle.n_texts and result.n_dropped == 1
    assert result.texts == [f"loop-{i}" for i in range(4)]
    np.testing.assert_allclose(result.delta, oracle.delta, atol=1e-6)
    published = result_of(made, loops, window="published", r=R)
    assert published.n_texts == 5 and published.n_dropped == 0


def test_texts_without_an_onset_change_nothing_but_the_count() -> None:
    made, none = tables(LOOPS, "clean"), Loop([9] * 50, NONE, NONE)
    loops, noise = [none, *LOOPS, none], np.full((50, L, M), 3.0)
    alone, among = result_of(made, LOOPS, r=R), result_of([noise, *made, noise], loops, r=R)
    assert among.n_texts == alone.n_texts == 3 and (among.n_dropped, alone.n_dropped) == (2, 0)
    assert torch.equal(among.delta, alone.delta) and torch.equal(among.t, alone.t)
    assert torch.equal(among.profile, alone.profile) and among.texts == ["loop-1", "loop-2", "loop-3"]
    with pytest.raises(NothingFoundError, match="2 texts, none with an onset"):
        result_of([noise, noise], [none, none], r=R)


def test_random_onsets_find_nothing() -> None:
    """Null: activations know nothing of the onset, so max |t| is that of relabelled texts."""
    draw = np.random.default_rng(5)
    loops = random_loops(30, seed=3, first=(12, 24))
    made = [draw.normal(size=(len(loop.ids), L, 40)) for loop in loops]

    def highest(labels: list[Loop]) -> float:
        return float(result_of(made, labels, window="published", r=R).t.abs().max())

    null = []
    for _ in range(60):
        onsets = [int(draw.integers(10, len(loop.ids) - 2)) for loop in loops]
        null.append(highest([Loop(loop.ids, onset - 1, onset) for loop, onset in zip(loops, onsets, strict=True)]))
    assert min(null) <= highest(loops) <= max(null)
    for table, loop in zip(made, loops, strict=True):
        table[loop.onset - 1 : loop.onset - 1 + R, 1, 7] += 1.0
    assert highest(loops) > max(null)


def test_the_published_set_counts_per_layer_and_skips_what_falls() -> None:
    made = tables(LOOPS, "clean")
    result = result_of(made, LOOPS, r=R)
    rising = [unit for unit in result.top(L * M) if result.delta[unit] >= 0]
    assert result.layer_counts(L * M) == [sum(layer == wanted for layer, _ in rising) for wanted in range(L)]
    assert result.published_k == int(0.005 * L * M) == 0 and result.layer_counts() == [0, 0, 0]
    wide = result_of([np.tile(table, (1, 1, 100)) for table in made], LOOPS, r=R)
    assert wide.published_k == 7 == sum(wide.layer_counts())
    assert [neuron for layer, neuron in wide.top(7)] == [3 + 5 * i for i in range(7)]  # ties keep the flat order


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"preset": "hiraoka2026"}, "preset='hiraoka2026'"),
        ({"window": "first"}, "window='first'"),
        ({"r": 0}, "r=0"),
        ({"r": 2.5}, "r=2.5"),
        ({"site": "resid_post"}, "site 'resid_post'"),
        ({"site": "nowhere"}, "site 'nowhere'"),
    ],
)
def test_bad_settings_are_refused(options: dict, match: str) -> None:
    unchecked = as_users_call(RepetitionNeurons.__init__)  # as users call it: without the type checker of the tests
    with pytest.raises(InputError, match=match):
        unchecked(object.__new__(RepetitionNeurons), **options)


@pytest.mark.parametrize(("first", "onset"), [(5, 40), (5, 99), (14, 14), (20, 14)])
def test_a_loop_outside_its_text_is_refused_by_name(first: int, onset: int) -> None:
    loops = [LOOPS[0], Loop([9] * 40, first, onset)]
    with pytest.raises(InputError, match=f"text 'loop-1' of 40 tokens with a loop from {first} and onset {onset}"):
        result_of(tables([LOOPS[0], LOOPS[0]], "clean"), loops, r=R)


def test_top_refuses_more_neurons_than_there_are_and_unknown_scores() -> None:
    result = result_of(tables(LOOPS, "clean"), LOOPS, r=R)
    for k in (-1, L * M + 1):
        with pytest.raises(InputError, match=f"k = {k}"):
            result.top(k)
    assert result.top(0) == []
    with pytest.raises(InputError, match="score='auroc'"):
        result.ranking("auroc")
