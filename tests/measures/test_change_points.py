"""Change points: least squares by brute force, planted steps, coverage of intervals, control by shuffled orders."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechrep.errors import InputError
from mechrep.measures.change_points import ChangePoint, best_steps, change_point, drawn_means, unit_draws


def step(place: int, checkpoints: int = 12, units: int = 40, *, size: float = 1.0, noise: float = 0.3, seed: int = 0):
    """Units that step up between checkpoints ``place`` and ``place + 1``; every unit has a level of its own."""
    rng = np.random.default_rng(seed)
    level = rng.normal(0, noise, units) + rng.normal(0, noise, (checkpoints, units))
    return level + size * (np.arange(checkpoints)[:, None] > place)


def brute_force(means: np.ndarray) -> int:
    errors = [
        ((means[: k + 1] - means[: k + 1].mean()) ** 2).sum() + ((means[k + 1 :] - means[k + 1 :].mean()) ** 2).sum()
        for k in range(len(means) - 1)
    ]
    return int(np.argmin(errors))


def found(units: np.ndarray, draws: int = 200, seed: int = 0) -> ChangePoint:
    """The change point of the means of units."""
    means = drawn_means(units, np.ones((1, units.shape[1])))[0]
    return change_point(means, drawn_means(units, unit_draws(range(units.shape[1]), draws, seed)), orders=199)


@given(st.lists(st.integers(-9, 9), min_size=2, max_size=9).filter(lambda values: len(set(values)) > 1))
def test_the_step_is_that_of_least_squares(values: list[int]) -> None:
    means = np.array(values, dtype=float)
    point = change_point(means, orders=9)
    best = brute_force(means)
    left, right = means[: best + 1], means[best + 1 :]
    chosen_left, chosen_right = means[: point.after + 1], means[point.after + 1 :]
    error = sum(((part - part.mean()) ** 2).sum() for part in (left, right))
    assert sum(((part - part.mean()) ** 2).sum() for part in (chosen_left, chosen_right)) == pytest.approx(error)
    assert point.before_level == pytest.approx(chosen_left.mean())
    assert point.size == pytest.approx(chosen_right.mean() - chosen_left.mean())
    assert point.explained == pytest.approx(1 - error / ((means - means.mean()) ** 2).sum())


@pytest.mark.parametrize(("place", "size"), [(0, 1.0), (5, 1.0), (10, 1.0), (4, -1.0)])
def test_planted_steps_are_found(place: int, size: float) -> None:
    point = found(step(place, size=size, seed=place))
    assert point.after == place and point.behind == place + 1 and point.earliest <= place < point.latest
    assert point.low <= point.size <= point.high and point.low * size > 0 and point.high * size > 0
    assert len(point.places) == 200 and float((point.places == place).mean()) > 0.5


def test_intervals_cover_faint_steps_and_a_smooth_rise_lies_in_its_middle() -> None:
    covered, sizes = 0, 0
    for seed in range(40):
        point = found(step(5, units=15, size=0.25, noise=0.3, seed=seed))
        covered += point.earliest <= 5 < point.latest
        sizes += point.low <= 0.25 <= point.high
    assert covered >= 34 and sizes >= 32
    rise = 1 / (1 + np.exp(-(np.arange(13) - 6.0)))
    point = found(rise[:, None] + np.random.default_rng(0).normal(0, 0.05, (13, 30)))
    assert point.after in (5, 6) and point.earliest <= 5 < point.latest


def test_missing_values_are_passed_over_and_what_is_flat_has_no_step() -> None:
    values = step(4, checkpoints=8, noise=0.05)
    gaps = values.copy()
    gaps[2], gaps[6, 10:] = np.nan, np.nan
    point = found(gaps)
    assert (point.after, point.behind) == (4, 5) and 2 not in set(point.places.tolist())
    with pytest.raises(InputError, match="1 of 8"):
        found(np.where(np.arange(8)[:, None] == 3, values, np.nan))
    flat = change_point(np.ones(6), orders=9)
    assert flat.size == 0 and not flat.shuffled.any()


def test_the_control_sizes_are_those_of_steps_that_explain_as_much() -> None:
    values = np.array([0.0, 0.1, 0.0, 0.1, 1.0, 1.1, 0.9, 1.0])
    point = change_point(values, orders=500)
    _, _, shares = best_steps(np.stack([np.random.default_rng(1).permutation(values) for _ in range(500)]))
    own, shuffled = (np.abs(point.shuffled) >= abs(point.size) - 1e-9).mean(), (shares >= point.explained - 1e-9).mean()
    assert own == pytest.approx(shuffled, abs=0.05) and np.abs(point.shuffled).max() <= abs(point.size) + 1e-9
    assert point.m == 8 * 7 * 6 * 5 // 24 // 2 - 1  # halves of eight; which half is high does not matter


def test_a_step_beside_an_end_has_few_different_orders() -> None:
    alone = change_point(np.array([0.0, *[1.0] * 11]))
    assert alone.m == 12 // 2 - 1
    assert np.mean(np.abs(alone.shuffled) >= abs(alone.size) - 1e-9) == pytest.approx(2 / 12, abs=0.05)
    assert change_point(np.array([0.0, 1.0])).m == 0


def test_the_least_p_of_a_place_is_that_of_a_clear_step_there() -> None:
    """Exactly: the share of shuffled orders that leave both sides together, 2 of C(9, 3)."""
    clear, blurred = np.array([0.0] * 3 + [1.0] * 6), np.array([0.0, 0.4, 0.1, 1.0, 0.7, 1.1, 0.8, 1.0, 0.3])
    points = [change_point(values, orders=4000) for values in (clear, clear + np.linspace(0, 0.1, 9), blurred)]
    p = [(1 + (np.abs(point.shuffled) >= abs(point.size) - 1e-9).sum()) / 4001 for point in points]
    assert points[0].least == p[0] == points[1].least == p[1] == pytest.approx(2 / 84, abs=0.01)
    assert points[2].after == 2 and p[2] > points[2].least == points[0].least


def test_units_of_one_cluster_are_drawn_together() -> None:
    counts = unit_draws(["a", "a", "b", "c"], draws=50)
    assert (counts[:, 0] == counts[:, 1]).all() and (counts[:, 1:].sum(1) == 3).all()
    values = np.array([[1.0, 3.0, np.nan, np.nan], [np.nan] * 4])
    drawn = drawn_means(values, counts)
    assert set(drawn[:, 0].tolist()) == {2.0} and np.isnan(drawn[:, 1]).all()
