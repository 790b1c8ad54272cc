"""Intervals against closed forms, other implementations and their promise: coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mechrep.stats import (
    cluster_intervals,
    least_sign_flip_p,
    paired_bootstrap_interval,
    percentile_interval,
    proportion_interval,
    sign_flip_p_values,
)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_a_share_has_wilsons_interval(counts: tuple[int, int], confidence: float) -> None:
    count, total = counts
    z, share = stats.norm.ppf(0.5 + confidence / 2), count / total
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    low, high = proportion_interval(count, total, confidence)
    assert (low, high) == pytest.approx((middle - half, middle + half), abs=1e-9)
    assert 0 <= low <= share <= high <= 1


def test_a_share_of_nothing_has_no_interval() -> None:
    assert all(math.isnan(end) for end in proportion_interval(0, 0))
    assert all(math.isnan(end) for end in percentile_interval([]))
    assert all(math.isnan(end) for end in paired_bootstrap_interval([]))


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=40), st.floats(0, 1))
def test_a_percentile_interval_holds_the_middle_of_the_draws(values: list[float], confidence: float) -> None:
    low, high = percentile_interval(values, confidence)
    assert min(values) <= low <= high <= max(values)
    tail = (1 - confidence) / 2
    assert (low, high) == pytest.approx((np.quantile(values, tail), np.quantile(values, 1 - tail)), abs=1e-9)


def test_the_bootstrap_of_a_mean_covers_it_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    samples = draw.normal(3, 2, (300, 40))
    hits = [low <= 3 <= high for low, high in (paired_bootstrap_interval(sample, draws=400) for sample in samples)]
    assert 0.89 <= np.mean(hits) <= 0.98
    low, high = paired_bootstrap_interval(samples[0])
    wide = stats.bootstrap((samples[0],), np.mean, method="percentile", n_resamples=4000, rng=draw).confidence_interval
    assert (low, high) == pytest.approx((wide.low, wide.high), abs=0.1)


def test_the_bootstrap_is_decided_by_its_seed_and_moves_with_the_data() -> None:
    values = np.random.default_rng(1).normal(size=30)
    one, same, other = (paired_bootstrap_interval(values, seed=seed) for seed in (0, 0, 1))
    assert one == same != other
    assert paired_bootstrap_interval(values + 5) == pytest.approx((one[0] + 5, one[1] + 5))
    narrow = paired_bootstrap_interval(values, confidence=0.5)
    assert one[0] < narrow[0] < values.mean() < narrow[1] < one[1]


def test_whole_families_are_drawn() -> None:
    """However many units a family has: 40 equal ones of each say as much as one."""
    means = np.random.default_rng(0).normal(size=7)
    alone = cluster_intervals(means[None], list(range(7)))
    together = cluster_intervals(means.repeat(40)[None], np.arange(7).repeat(40))
    np.testing.assert_allclose(together, alone)
    assert alone[0, 1] - alone[0, 0] > 3 * np.ptp(cluster_intervals(means.repeat(40)[None], list(range(280))))


@pytest.mark.parametrize("n", [6, 10, 20, 40])
def test_the_observed_signs_are_one_of_all(n: int) -> None:
    """So no p-value is 0, whether all ways are counted or some are drawn, and the least is the one stated."""
    (found,) = sign_flip_p_values(np.ones((1, n)), list(range(n)))
    assert found == pytest.approx(least_sign_flip_p(n)) and found > 0
