"""Stages of a profile: by a second plain definition (flooding), and by what must hold for any profile."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechrep.measures.sink_stages import norm_stages, stage_of_layer

profiles = st.lists(st.floats(0.5, 200.0), min_size=2, max_size=24, unique=True)


def flooded(e: list[float]) -> dict[int, float]:
    """Persistence of every peak: islands join as the water falls, and the lower one ends; the input's side is open."""
    island: dict[int, int] = {}
    top: dict[int, int] = {}
    ended: dict[int, float] = {}

    def of(depth: int) -> int:
        while island[depth] != depth:
            depth = island[depth]
        return depth

    for depth in sorted(range(len(e)), key=lambda one: -e[one]):
        island[depth] = top[depth] = depth
        for beside in (depth - 1, depth + 1):
            if beside in island and of(beside) != of(depth):
                low, high = sorted((of(beside), of(depth)), key=lambda one: e[top[one]])
                if top[low] != depth:
                    ended[top[low]] = e[top[low]] - e[depth]
                island[low] = high
    return ended


@given(profiles)
def test_rises_are_those_of_flooding(ratio: list[float]) -> None:
    e = [math.log(value) for value in torch.tensor(ratio).tolist()]
    ended = flooded(e)
    peaks = {d for d in range(1, len(e)) if e[d] > e[d - 1] and (d + 1 == len(e) or e[d] > e[d + 1])}
    assert {stage.peak for stage in norm_stages(torch.tensor(ratio))} == peaks
    for stage in norm_stages(torch.tensor(ratio)):
        lowest = min(
            e[: stage.peak + 1][max((d for d in range(stage.peak) if e[d] >= e[stage.peak]), default=-1) + 1 :]
        )
        climbed = e[stage.peak] - lowest
        expected = min(climbed, ended.get(stage.peak, math.inf))
        assert math.log(stage.rise) == pytest.approx(expected, abs=1e-6)


@given(profiles)
def test_a_stage_rises_peaks_and_stands_where_it_says(ratio: list[float]) -> None:
    values = torch.tensor(ratio)
    for stage in norm_stages(values):
        assert 0 <= stage.since <= stage.first <= stage.peak <= stage.last < len(ratio) and stage.since < stage.peak
        assert stage.ratio == pytest.approx(float(values[stage.peak])) and stage.rise > 1
        assert sum(stage.shares) == pytest.approx(1.0) and len(stage.shares) == stage.peak - stage.since
        assert stage.layer in stage.layers and all(stage.since <= layer < stage.peak for layer in stage.layers)
        half = stage.ratio / math.sqrt(stage.rise) * (1 - 1e-6)
        assert bool((values[stage.first : stage.last + 1] >= half).all())


@given(profiles, st.floats(0.01, 100.0))
def test_scale_does_not_matter(ratio: list[float], factor: float) -> None:
    one, other = (norm_stages(torch.tensor(ratio, dtype=torch.float64) * scale) for scale in (1.0, factor))
    assert [stage.peak for stage in one] == [stage.peak for stage in other]
    assert [stage.rise for stage in one] == pytest.approx([stage.rise for stage in other])


def test_profiles_that_never_rise_or_are_not_known_have_no_stage() -> None:
    assert norm_stages(torch.tensor([5.0, 3.0, 1.0])) == [] == norm_stages(torch.tensor([1.0, float("nan"), 3.0]))


def test_a_named_layer_that_writes_no_stage_is_one_of_its_own() -> None:
    ratio = torch.tensor([1.0, 8.0, 4.0, 2.0])
    assert stage_of_layer(ratio, 0).peak == 1
    named = stage_of_layer(ratio, 2)
    assert (named.since, named.peak) == (2, 3) and named.rise < 1 and named.layer == 2
