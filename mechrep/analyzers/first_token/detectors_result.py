"""``FirstDetectorResult``: neurons that tell the first token of a text, beside what shuffled places would give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.errors import InputError
from mechrep.results import Result, check_count

if TYPE_CHECKING:
    import plotly.graph_objects as go

Score = Literal["auroc", "published"]


@dataclass(frozen=True, eq=False)
class FirstDetectorResult(Result):
    """Areas under the ROC curve of neurons of the first MLP behind the attention of layer 0.

    Held-out areas are signed by the selection half: 1 tells first tokens perfectly, 0.5 not at all, and below 0.5 what
    was chosen does not hold on other tokens.

    Attributes:
        layer: whose MLP: 0, or 1 in parallel blocks.
        score: the published one, mean of first minus second token, all triples.
        selection_auroc: first against second and third in the selection half; below 0.5: lower at first tokens.
        auroc: the same held out.
        first_second: first against second, held out.
        second_third: second against third, held out; 0.5 where a neuron says "first" and counts no further.
        neurons: the best by the selection half, most telling first.
        intervals: 95 % of the held-out area of each of these, bootstrap over words.
        values: what goes into their activation function at the first, second and third token of every triple.
        state_auroc: held-out area of one direction of the MLP's input, from the mean of others to that of first tokens.
        state_interval: 95 % of it.
        shuffled_aurocs: held-out area of the best neuron when places are shuffled, one per shuffle.
        random_aurocs: held-out areas of neurons chosen blindly.
        n_selection: tokens that neurons are chosen with.
        n_test: tokens that they are judged by.
    """

    layer: int
    score: Float[Tensor, " neuron"]
    selection_auroc: Float[Tensor, " neuron"]
    auroc: Float[Tensor, " neuron"]
    first_second: Float[Tensor, " neuron"]
    second_third: Float[Tensor, " neuron"]
    neurons: Sequence[int]
    intervals: Float[Tensor, "top 2"]
    values: Float[Tensor, "triple 3 top"]
    state_auroc: float
    state_interval: Sequence[float]
    shuffled_aurocs: Sequence[float]
    random_aurocs: Sequence[float]
    n_selection: int
    n_test: int

    @property
    def best_auroc(self) -> float:
        """Held-out area of the neuron that the selection half chose."""
        return float(self.auroc[self.neurons[0]])

    @property
    def null_auroc(self) -> float:
        """What the interval of a detector must lie above: the best of the shuffled places."""
        return max(0.5, *self.shuffled_aurocs)

    @property
    def detectors(self) -> list[int]:
        """Those of ``neurons`` whose interval lies above the null."""
        return [n for n, (low, _) in zip(self.neurons, self.intervals.tolist(), strict=True) if low > self.null_auroc]

    @property
    def found(self) -> bool:
        """Whether the chosen neuron tells first tokens better than anything under shuffled places."""
        return self.neurons[0] in self.detectors

    def ranking(self, score: Score = "auroc") -> list[int]:
        """All neurons, the most telling of the selection half first, or by the published score (largest first).

        Raises:
            InputError: another score.
        """
        if score not in ("auroc", "published"):
            raise InputError(f"score={score!r}", "'auroc' or 'published'", "choose one of these")
        values = (self.selection_auroc - 0.5).abs() if score == "auroc" else self.score
        return torch.argsort(values, descending=True, stable=True).tolist()

    def top(self, k: int, score: Score = "auroc") -> list[tuple[int, int]]:
        """The first ``k`` of a ranking, as ``(layer, neuron)``: what :class:`mechrep.Neurons` takes.

        Raises:
            InputError: ``k`` larger than the number of neurons, or another score.
        """
        check_count(k, len(self.auroc), "neurons")
        return [(self.layer, neuron) for neuron in self.ranking(score)[:k]]

    def to_frame(self) -> pd.DataFrame:
        """One row per neuron, most telling first; intervals of the best ones only."""
        order = self.ranking()
        ends = torch.full((len(order), 2), torch.nan)
        ends[list(self.neurons)] = self.intervals
        columns = {
            "auroc": self.auroc,
            "low": ends[:, 0],
            "high": ends[:, 1],
            "first_second": self.first_second,
            "second_third": self.second_third,
            "selection_auroc": self.selection_auroc,
            "score": self.score,
        }
        values = {name: value[order].numpy() for name, value in columns.items()}
        return pd.DataFrame({"layer": self.layer, "neuron": order, **values})

    def plot(self) -> go.Figure:
        """Histograms of the best neuron at the three places."""
        from mechrep.views.first_token_plots import detector_figure

        return detector_figure(self)
