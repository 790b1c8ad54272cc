"""``FirstTokenResult``: whether layer 0 tells the first token from others, with what, and what follows for repeats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.results import Result, check_count

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)
class FirstTokenResult(Result):
    """The short form of the four measurements; each has a result of its own, with everything in it.

    Attributes:
        found: some neuron tells first tokens better than anything does under shuffled places, on other words than it
            was chosen with, and better than the best neuron of every null model.
        reason: in words, what was found, or why nothing counts as found.
        layer: whose MLP holds the detectors: 0, or 1 in parallel blocks.
        neurons: ``[layer, neuron]`` of the detectors, most telling first; empty where nothing was found.
        auroc: held-out area of the best neuron, found or not.
        interval: 95 % of it.
        state_auroc: the same for one direction of the MLP's input.
        shuffled_auroc: the largest area under shuffled places.
        null_aurocs: area of the best neuron of every null model.
        heads: ``[layer, head]`` of layer 0 that carry the mark: cutting them costs clearly more than cutting others.
        needs_attention: whether the mark goes with the attention of layer 0; ``False`` where positions are learned.
        detector_loss: what cutting each head to zero costs the best neuron, in area; the last for all heads.
        norm_loss: what it costs the log ratio of the first position's norm; NaN without a norm sink in texts without
            BOS.
        mass: other-token mass of each head of layer 0 on ordinary text.
        uniform_mass: of a head that attends uniformly.
        identity_error: largest error of the exact identity over the heads, in units of their mean value norm.
        same_value_error: the same if equal tokens are taken to have equal values.
        pure_deviation: largest relative distance between positions of a run of one token without BOS.
        theory: the law by which the share of other tokens is expected to fall with copies of a token.
        law: the law that was measured.
        slope: measured exponent, median over heads and tokens; -1 is 1/n.
        agrees: whether the two agree.
        last_distance: median relative distance of the last copy from the token alone, after layer 0.
        repeats: number of copies.
    """

    found: bool
    reason: str
    layer: int
    neurons: Sequence[Sequence[int]]
    auroc: float
    interval: Sequence[float]
    state_auroc: float
    shuffled_auroc: float
    null_aurocs: Sequence[float]
    heads: Sequence[Sequence[int]]
    needs_attention: bool
    detector_loss: Float[Tensor, " head_and_all"]
    norm_loss: Float[Tensor, " head_and_all"]
    mass: Float[Tensor, " head"]
    uniform_mass: float
    identity_error: float
    same_value_error: float
    pure_deviation: float
    theory: str
    law: str
    slope: float
    agrees: bool
    last_distance: float
    repeats: int

    def top(self, k: int) -> list[tuple[int, int]]:
        """The first ``k`` detectors, as ``(layer, neuron)``: what :class:`mechrep.Neurons` takes.

        Raises:
            InputError: ``k`` larger than the number of detectors.
        """
        check_count(k, len(self.neurons), "first-token detectors")
        return [(layer, neuron) for layer, neuron in self.neurons[:k]]

    def to_frame(self) -> pd.DataFrame:
        """One row per head of layer 0, in order: its mass, what cutting it costs, and whether it carries the mark."""
        heads = range(len(self.mass))
        carriers = {head for _, head in self.heads}
        return pd.DataFrame(
            {
                "layer": 0,
                "head": heads,
                "mass": self.mass.numpy(),
                "detector_loss": self.detector_loss[:-1].numpy(),
                "norm_loss": self.norm_loss[:-1].numpy(),
                "carries": [head in carriers for head in heads],
            }
        )

    def plot(self) -> go.Figure:
        """What cutting each head of layer 0 costs, beside its other-token mass."""
        from mechrep.views.first_token_plots import first_token_figure

        return first_token_figure(self)

    @property
    def lost_together(self) -> float:
        """What cutting all heads of layer 0 costs the best neuron, in area; NaN where there is no area."""
        return float(torch.as_tensor(self.detector_loss)[-1])
