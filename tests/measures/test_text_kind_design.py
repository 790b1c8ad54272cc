"""The design behind contrasts of text kinds (clusters, draws, swaps), and the numbers made with it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechrep.errors import InputError
from mechrep.measures.text_kind_design import HeadEffects, KindDesign, effective_number, gini, rank_correlation


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
    assert 2 < found["D_low"] < found["D_high"] < 3 and found["q"] < 0.05
    covered, loud, draws = 0, 0, 40
    for seed in range(draws):
        table = effects.swapped(seed).contrast(draws=200)
        covered += int(((table["D_low"] <= 0) & (table["D_high"] >= 0)).sum())
        loud += int((table["q"] < 0.05).any())
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
        false += bool((nulls["q"] < 0.05).any())
    assert covered >= 0.86 * runs and false <= 0.15 * runs


def test_p_values_are_those_of_all_swaps() -> None:
    """Of four pairs there are 16 swaps, and many are as far out as what was seen: the sign turns, the size stays."""
    differences = np.array([[1.0, 1, 1, 1], [1, 1, 1, -1], [3, -1, 2, 2], [0, 1, 1, 0]]).T
    values = np.concatenate([differences, np.zeros_like(differences)])[:, None]
    found = HeadEffects(values, ["induced"] * 4 + ["natural"] * 4, list("pqrs") * 2, "made up").contrast(draws=10)
    sums = np.array(list(itertools.product((1, -1), repeat=4))) @ differences
    expected = (np.abs(sums) >= np.abs(differences.sum(0))).mean(0)
    assert expected.tolist() == [0.125, 0.625, 0.25, 0.5]
    assert found.sort_values("head")["p"].tolist() == pytest.approx(expected.tolist(), abs=0.02)


def test_pairs_are_used_as_pairs() -> None:
    """Prompts differ far more than the effect: only within pairs is it seen."""
    paired = made_up(effect=1.0, paired=True)
    alone = HeadEffects(paired.values, paired.text_kinds, [f"r{i}" for i in range(80)], "noise")
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


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 4)), min_size=2, max_size=12), st.integers(0, 10_000))
def test_draws_and_swaps_keep_clusters_whole(texts: list[tuple[str, int]], seed: int) -> None:
    kinds, clusters = [kind for kind, _ in texts], [str(number) for _, number in texts]
    if set(kinds) != {"a", "b"}:
        with pytest.raises(InputError, match="two kinds"):
            KindDesign(kinds, clusters, "a", "b")
        return
    design, first = KindDesign(kinds, clusters, "a", "b"), np.array(kinds) == "a"
    for one, other in (design.draws(20, seed), design.swaps(20, seed)):
        assert np.allclose(one.sum(1), 1) and np.allclose(other.sum(1), 1)
        assert not (one * other).any(), "a text is of one kind"
    one, other = design.draws(20, seed)
    assert not one[:, ~first].any() and not other[:, first].any()
    swapped = design.swaps(20, seed)[0] > 0
    for name in set(clusters):
        own = np.array(clusters) == name
        same = swapped[:, own] == first[own]
        assert (same.all(1) | ~same.any(1)).all() or len(set(first[own])) == 1, "a cluster turns as a whole"
    assert set(design.swapped(seed)) == {"a", "b"}


def test_texts_of_one_family_are_one_unit() -> None:
    """Ten texts that are copies of one say no more than the one: the interval over clusters is wider."""
    generator = np.random.default_rng(0)
    family = generator.normal(size=(8, 1, 4))
    values = np.concatenate([np.repeat(family, 10, axis=0), generator.normal(size=(80, 1, 4))])
    kinds, alone = ["natural"] * 80 + ["induced"] * 80, [f"t{i}" for i in range(160)]
    clusters = [f"f{i // 10}" for i in range(80)] + alone[80:]
    tables = [HeadEffects(values, kinds, one, "noise").contrast() for one in (clusters, alone)]
    widths = [float((table["natural_high"] - table["natural_low"]).mean()) for table in tables]
    assert widths[0] > 2 * widths[1] and (tables[0]["q"] > 0.05).all()


def test_common_effect_by_hand() -> None:
    values = np.zeros((4, 1, 4))
    values[:2, 0] = [3.0, 1.0, 0.0, 0.0]
    values[2:, 0] = [0.0, -1.0, -1.0, 0.0]
    effects = HeadEffects(values, ["induced"] * 2 + ["natural"] * 2, ["p", "q", "p", "q"], "made up")
    found = effects.compare(2, swaps=50)
    assert found["common"].value == pytest.approx(0.25)  # min(1/4, 1/2) of the second head
    assert found["shared_top"].value == 1 and found["gini"].value == pytest.approx(0.125)
    silent = HeadEffects(np.where(values < 0, 0.0, values), effects.text_kinds, effects.clusters, "made up")
    assert silent.compare(1, swaps=50)["common"].value == 0, "where one kind needs no head, none is in common"


@pytest.mark.parametrize("paired", [True, False])
def test_numbers_of_swapped_effects_lie_among_the_swaps(paired: bool) -> None:
    """Of like samples, the observed number has any rank among the swaps: few are beyond 95 % of them."""
    low = 0
    for seed in range(40):
        found = made_up(20, paired=paired, seed=seed).compare(2, swaps=99)["common"]
        low += int((1 + (found.swaps <= found.value).sum()) / 100 <= 0.05)
    assert low <= 6


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
