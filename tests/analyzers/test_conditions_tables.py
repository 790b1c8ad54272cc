"""The design behind contrasts of conditions (draws, swaps, pairs), and the tables made with it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechrep.measures.text_kind_design import ConditionDesign, HeadEffects, effective_number, gini, rank_correlation


def made_up(n: int = 40, *, effect: float = 0.0, paired: bool, seed: int = 0) -> HeadEffects:
    """Six heads of noise that differs between prompts; the first has an effect in the induced condition alone."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(2 * n, 2, 3))
    names = [f"p{i}" for i in range(n)]
    if paired:
        values += np.tile(generator.normal(size=(n, 2, 3)) * 3, (2, 1, 1))
    values[:n, 0, 0] += effect
    return HeadEffects(
        values, ["induced"] * n + ["natural"] * n, names + (names if paired else [f"q{i}" for i in range(n)]), "noise"
    )


@pytest.mark.parametrize("paired", [True, False])
def test_swapped_labels_make_every_contrast_vanish_within_its_interval(paired: bool) -> None:
    effects = made_up(effect=5.0, paired=paired)
    found = effects.contrast().set_index(["layer", "head"]).loc[(0, 0)]
    assert 2 < found["D_low"] < found["D_high"] < 3 and found["fdr"] < 0.05
    covered, loud, draws = 0, 0, 40
    for seed in range(draws):
        table = effects.swapped(seed).contrast(draws=200)
        covered += int(((table["D_low"] <= 0) & (table["D_high"] >= 0)).sum())
        loud += int((table["fdr"] < 0.05).any())
    assert covered > 0.88 * draws * 6 and loud <= 0.2 * draws


@pytest.mark.slow
@pytest.mark.parametrize("paired", [True, False])
def test_intervals_cover_a_planted_effect_and_nulls_are_kept(paired: bool) -> None:
    runs, covered, false = 60, 0, 0
    for seed in range(runs):
        table = made_up(30, effect=1.0, paired=paired, seed=seed).contrast(draws=300).set_index(["layer", "head"])
        row = table.loc[(0, 0)]
        covered += bool(row["D_low"] <= 0.5 <= row["D_high"])
        nulls = made_up(30, paired=paired, seed=1000 + seed).contrast(draws=10)  # its p-values come from swaps
        false += bool((nulls["fdr"] < 0.05).any())
    assert covered >= 0.86 * runs and false <= 0.15 * runs


def test_pairs_are_used_as_pairs() -> None:
    """Prompts differ far more than the effect: only within pairs is it seen."""
    paired = made_up(effect=1.0, paired=True)
    alone = HeadEffects(paired.values, paired.conditions, [f"r{i}" for i in range(80)], "noise")
    tables = [one.contrast().set_index(["layer", "head"]).loc[(0, 0)] for one in (paired, alone)]
    widths = [row["D_high"] - row["D_low"] for row in tables]
    assert widths[0] < widths[1] / 1.8 and tables[0]["D"] == pytest.approx(tables[1]["D"])


def test_s_and_d_are_half_the_sum_and_half_the_difference() -> None:
    effects = made_up(effect=2.0, paired=False)
    for row in effects.contrast().to_dict("records"):
        place = row["layer"], row["head"]
        one, other = effects.mean("induced")[place], effects.mean("natural")[place]
        assert row["S"] == pytest.approx((one + other) / 2) and row["D"] == pytest.approx((one - other) / 2)
        assert row["S_low"] < row["S"] < row["S_high"] and row["n_induced"] == 40


@settings(max_examples=25)
@given(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4), st.integers(0, 10_000))
def test_every_draw_keeps_the_sizes_and_every_swap_the_totals(pairs: int, ones: int, twos: int, seed: int) -> None:
    if not (pairs + ones and pairs + twos):
        return
    conditions = ["a"] * (pairs + ones) + ["b"] * (pairs + twos)
    names = [f"p{i}" for i in range(pairs)] + [f"q{i}" for i in range(ones)]
    names += [f"p{i}" for i in range(pairs)] + [f"r{i}" for i in range(twos)]
    design = ConditionDesign(conditions, names, "a", "b")
    first, counts, swaps = np.array(conditions) == "a", design.draws(20, seed), design.swaps(20, seed)
    assert (counts[:, first].sum(1) == pairs + ones).all() and (counts[:, ~first].sum(1) == pairs + twos).all()
    assert np.allclose(counts[:, :pairs], counts[:, pairs + ones : 2 * pairs + ones])
    assert np.allclose(swaps.sum(1), 0) and np.allclose(np.abs(swaps).sum(1), 1)
    assert sorted(design.swapped(seed)) == sorted(conditions)


def test_concentration_of_known_effects() -> None:
    for n in (1, 2, 5):
        flat, single = np.ones(n), np.eye(n)[0]
        assert gini(flat) == pytest.approx(0) and gini(single) == pytest.approx(1 - 1 / n)
        assert effective_number(flat) == pytest.approx(n) and effective_number(single) == pytest.approx(1)
    sizes = np.random.default_rng(0).exponential(size=30)
    pairs = sum(abs(a - b) for a, b in itertools.product(sizes, sizes))
    assert gini(sizes) == pytest.approx(pairs / (2 * 30 * sizes.sum()))
    assert np.isnan(gini(np.zeros(3))) and np.isnan(effective_number(np.zeros(3)))


def test_rank_correlation_is_scipys() -> None:
    from scipy.stats import spearmanr

    one, other = np.random.default_rng(0).integers(0, 5, (2, 4, 30)).astype(float)
    mine = rank_correlation(one, other)
    theirs: list[Any] = [spearmanr(a, b) for a, b in zip(one, other, strict=True)]
    assert np.allclose(mine, [found.statistic for found in theirs])
