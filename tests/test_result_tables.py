"""Tables and rankings of results from the axes in their types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.errors import InputError
from mechrep.provenance import Provenance
from mechrep.results import Result, check_same_model


@dataclass(frozen=True, eq=False)
class Scores(Result):
    score: Float[Tensor, "layer head"]
    other: Float[Tensor, "layer head"]
    by_layer: Float[Tensor, " layer"]

    ranked_by: ClassVar[str] = "score"


@pytest.fixture
def scores() -> Scores:
    nan = float("nan")
    values = torch.tensor([[0.1, nan], [0.9, 0.5], [0.5, -2.0]])
    return Scores(Provenance({"name": "m", "fingerprint": "f"}, {"texts": 1}, {}), values, -values, torch.arange(3.0))


def test_one_table_per_set_of_axes(scores: Scores) -> None:
    frames = scores.frames()
    assert list(frames) == ["layer head", "layer"]
    for row in frames["layer head"].itertuples():
        own = float(scores.score[row.layer, row.head])
        assert (row.score == own and row.other == -own) or own != own
    assert frames["layer"].columns.tolist() == ["layer", "by_layer"]


def test_ranking_leaves_out_nan_and_keeps_ties_in_order(scores: Scores) -> None:
    assert scores.ranking() == [(1, 0), (1, 1), (2, 0), (0, 0), (2, 1)]
    assert scores.top(2) == [(1, 0), (1, 1)]
    assert scores.ranking("by_layer") == [2, 1, 0]
    assert scores.to_frame()[["layer", "head"]].apply(tuple, axis=1).tolist() == [*scores.ranking(), (0, 1)]
    with pytest.raises(InputError, match="k = 7"):
        scores.top(7)
    with pytest.raises(InputError, match="nosuch"):
        scores.ranking("nosuch")


def test_a_result_of_other_weights_is_refused_unless_it_is_meant(scores: Scores) -> None:
    class Other:
        name = "other"

        def fingerprint(self) -> str:
            return "g"

    with pytest.raises(InputError, match="weights f"):
        check_same_model(scores, Other())
    check_same_model(scores, Other(), force=True)
