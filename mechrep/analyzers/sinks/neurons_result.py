"""``SinkNeuronResult``: how much every neuron of the sink layer writes, by three scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.errors import InputError
from mechrep.results import Result, check_count

Score = Literal["contribution", "authors", "bos_only"]
Place = Literal["first", "repeat"]
SCORES = ("contribution", "authors", "bos_only")
PLACES = ("first", "repeat")


@dataclass(frozen=True, eq=False)
class SinkNeuronResult(Result):
    """Scores of the neurons of one layer, at the first position and at the last repeat.

    Attributes:
        layer: the layer.
        contribution: ``|hook_post| * |W_out row|``, the length of what the neuron adds to the residual stream.
        authors: ``|gate pre-activation| * |W_out row|``, the published score; it ignores activation function and
            up-projection.  In a model without a gate: of what goes into the activation function.
        bos_only: ``|hook_post|``, without the row.
        repeats: copies of the token in the second place; 0 where nothing was repeated, whose scores are then NaN.
    """

    layer: int
    contribution: Float[Tensor, "place neuron"]
    authors: Float[Tensor, "place neuron"]
    bos_only: Float[Tensor, "place neuron"]
    repeats: int

    def scores(self, score: Score = "contribution", place: Place = "first") -> Float[Tensor, " neuron"]:
        """One score at one place.

        Args:
            score: ``"contribution"`` (default), ``"authors"`` or ``"bos_only"``.
            place: ``"first"``: the first position of the texts; ``"repeat"``: the last copy of a repeated token.

        Raises:
            InputError: a score or place of another name, or one that was not measured.
        """
        if score not in SCORES or place not in PLACES:
            raise InputError(
                f"score={score!r}, place={place!r}", f"one of {SCORES} and one of {PLACES}", "choose among these"
            )
        values = getattr(self, score)[PLACES.index(place)]
        if bool(values.isnan().all()):
            raise InputError(
                f"score {score!r} at {place!r}, which was not measured",
                "'repeat' on a corpus of repeated tokens",
                "choose another score or place, or measure again with such a corpus",
            )
        return values

    def ranking(self, score: Score = "contribution", place: Place = "first") -> list[int]:
        """All neurons of the layer, the highest score first; ties keep their order."""
        return torch.argsort(self.scores(score, place), descending=True, stable=True).tolist()

    def top(self, k: int, score: Score = "contribution", place: Place = "first") -> list[tuple[int, int]]:
        """The ``k`` neurons with the highest score, as ``(layer, neuron)``.

        Raises:
            InputError: ``k`` larger than the layer, or a score that was not measured.
        """
        check_count(k, self.contribution.shape[1], "neurons of the layer")
        return [(self.layer, neuron) for neuron in self.ranking(score, place)[:k]]

    def agreement(self, k: int = 5) -> dict[str, float]:
        """Share of the top ``k`` by contribution at the first position that each other score has in its top ``k``.

        Args:
            k: size of the sets; by chance they share ``k / d_mlp``.

        Returns:
            Shares by ``"score at place"``, of every score that was measured.
        """
        check_count(k, self.contribution.shape[1], "neurons of the layer")
        own = set(self.ranking()[:k])
        shares = {}
        for place in PLACES:
            for score in SCORES:
                measured = not bool(getattr(self, score)[PLACES.index(place)].isnan().all())
                if measured and (score, place) != ("contribution", "first") and k:
                    shares[f"{score} at {place}"] = len(own & set(self.ranking(score, place)[:k])) / k
        return shares

    def to_frame(self) -> pd.DataFrame:
        """One row per neuron, the largest contribution at the first position first."""
        order = self.ranking()
        columns = {
            f"{score}_{place}": getattr(self, score)[index, order].numpy()
            for index, place in enumerate(PLACES)
            for score in SCORES
        }
        return pd.DataFrame({"rank": range(len(order)), "layer": self.layer, "neuron": order, **columns})
