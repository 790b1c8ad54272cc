"""Control sets: different, of the same size, never what is under test or named; matched ones are nearer than others."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from mechrep.ablation.controls import CONTROLS, draw_controls
from mechrep.errors import InputError

SIZE: dict[str, Any] = {"layers": 3, "width": 40}
UNITS = [(0, 1), (0, 5), (2, 7)]
MATCH = torch.rand(3, 40, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", CONTROLS)
def test_sets_are_different_of_the_same_size_and_hold_nothing_that_is_barred(kind: str) -> None:
    barred = [(0, 2), (2, 8), (1, 1)]
    sets = draw_controls(kind, UNITS, **SIZE, draws=99, exclude=barred, match=MATCH)
    assert len({tuple(one) for one in sets}) == 99
    for one in sets:
        assert len(set(one)) == 3 and not set(one) & {*UNITS, *barred}
        if kind in ("layer_matched", "activation_matched"):
            assert sorted(layer for layer, _ in one) == [0, 0, 2]
    assert sets == draw_controls(kind, UNITS, **SIZE, draws=99, exclude=barred, match=MATCH)
    assert sets != draw_controls(kind, UNITS, **SIZE, draws=99, seed=1, exclude=barred, match=MATCH)


@pytest.mark.parametrize("kind", ["random", "layer_matched"])
def test_the_first_draws_do_not_depend_on_their_number(kind: str) -> None:
    assert draw_controls(kind, UNITS, **SIZE, draws=99)[:19] == draw_controls(kind, UNITS, **SIZE, draws=19)


@pytest.mark.parametrize("kind", ["activation_matched", "bos_matched"])
def test_matched_sets_are_nearer_than_random_ones(kind: str) -> None:
    def distance(sets: list[list[tuple[int, int]]]) -> float:
        own = sorted(float(MATCH[unit]) for unit in UNITS)
        return float(np.mean([np.abs(np.sort([float(MATCH[u]) for u in one]) - own).mean() for one in sets]))

    matched, random = (draw_controls(name, UNITS, **SIZE, draws=50, match=MATCH) for name in (kind, "random"))
    assert distance(matched) < 0.6 * distance(random)


def test_where_few_sets_exist_all_of_them_are_drawn_once() -> None:
    sets = draw_controls("layer_matched", [(0, 0), (0, 1)], layers=1, width=7, draws=99, exclude=[(0, 2)])
    assert sorted(map(tuple, sets)) == sorted(combinations([(0, n) for n in range(3, 7)], 2))
    assert len(draw_controls("random", [(0, 0)], layers=2, width=2, draws=99)) == 3


def test_random_draws_are_uniform() -> None:
    sets = draw_controls("random", [(0, 0)], layers=4, width=50, draws=150)
    layers = np.bincount([one[0][0] for one in sets], minlength=4)
    assert chisquare(layers, 150 * np.array([49, 50, 50, 50]) / 199).pvalue > 0.001
    assert math.isclose(np.mean([one[0][1] for one in sets]), 24.6, abs_tol=5)


@pytest.mark.parametrize(("kind", "possible"), [("random", 15), ("layer_matched", 9)])
def test_every_set_is_as_likely_as_any_other(kind: str, possible: int) -> None:
    """Of two in six free ones, three in each of two layers: the first draw of many seeds."""
    options: dict[str, Any] = {"layers": 2, "width": 4, "draws": 5}
    firsts = [tuple(draw_controls(kind, [(0, 0), (1, 0)], seed=seed, **options)[0]) for seed in range(600)]
    counts = [firsts.count(one) for one in set(firsts)]
    assert len(counts) == possible and chisquare(counts).pvalue > 0.001
    pairs = [tuple(unit) for sets in firsts for unit in sets]
    assert chisquare([pairs.count(unit) for unit in set(pairs)]).pvalue > 0.001


def test_sets_of_the_same_size_share_no_draws_by_accident() -> None:
    """Draws of two sizes, kinds or seeds do not begin alike."""
    one = draw_controls("random", UNITS, **SIZE, draws=5)
    assert one != draw_controls("layer_matched", UNITS, **SIZE, draws=5)
    assert [s[:2] for s in one] != draw_controls("random", UNITS[:2], **SIZE, draws=5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kind": "norm_matched"}, "control='norm_matched'"),
        ({"draws": 0}, "draws=0"),
        ({"units": []}, "at least one"),
        ({"units": [(3, 0)]}, "of this model"),
        ({"units": [(0, 40)]}, "of this model"),
        ({"units": [(0, n) for n in range(30)]}, "exclude fewer"),
        ({"kind": "activation_matched"}, "nothing to match by"),
        ({"kind": "bos_matched", "match": torch.rand(2, 40)}, "a table of"),
        ({"kind": "bos_matched", "match": torch.full((3, 40), torch.nan)}, "a table of"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options: dict[str, Any], match: str) -> None:
    given = {"kind": "layer_matched", "units": UNITS, "draws": 3, **SIZE, **options}
    with pytest.raises(InputError, match=match):
        draw_controls(given.pop("kind"), given.pop("units"), **given)
