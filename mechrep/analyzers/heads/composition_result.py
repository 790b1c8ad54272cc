"""``HeadCompositionResult``: which heads can read which, by their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.errors import InputError
from mechrep.results import Result, check_count

Mode = Literal["Q", "K", "V"]
Pair = tuple[tuple[int, int], tuple[int, int]]

MODES: tuple[Mode, ...] = ("Q", "K", "V")


@dataclass(frozen=True, eq=False)
class HeadCompositionResult(Result):
    """Composition scores, see :mod:`mechrep.analyzers.heads.composition`.  Axis ``mode`` runs over Q, K, V.

    Attributes:
        scores: of every pair of heads; NaN where the second is not in a later layer, and for heads of zeros.
        null: mean score of Gaussian heads in the same layers.
        null_sd: its standard deviation over pairs of heads.
    """

    scores: Float[Tensor, "mode from_layer from_head to_layer to_head"]
    null: Float[Tensor, "mode from_layer to_layer"]
    null_sd: Float[Tensor, "mode from_layer to_layer"]

    def of(self, mode: str) -> Float[Tensor, "from_layer from_head to_layer to_head"]:
        """The scores of one mode.

        Raises:
            InputError: not Q, K or V.
        """
        return self.scores[_number(mode)]

    def excess(self, mode: str) -> Float[Tensor, "from_layer from_head to_layer to_head"]:
        """Scores less the mean of Gaussian heads."""
        return self.of(mode) - self.null[_number(mode)][:, None, :, None]

    def z_scores(self, mode: str) -> Float[Tensor, "from_layer from_head to_layer to_head"]:
        """:meth:`excess` in standard deviations of Gaussian heads, which are narrow: read it as "not by chance"."""
        return self.excess(mode) / self.null_sd[_number(mode)][:, None, :, None]

    def with_sources(self, sources: Sequence[tuple[int, int]], mode: str) -> Float[Tensor, "source to_layer to_head"]:
        """How much every head composes with given ones, for instance with the previous-token heads of a model.

        Args:
            sources: ``(layer, head)`` pairs, for instance ``head_scores.above(0.5, "previous_token")``.
            mode: Q, K or V.

        Raises:
            InputError: no source, or a head that the model does not have.
        """
        n_layers, n_heads = self.scores.shape[1:3]
        wrong = [unit for unit in sources if not (0 <= unit[0] < n_layers and 0 <= unit[1] < n_heads)]
        if wrong or not sources:
            raise InputError(
                f"sources {list(sources)[:5]}",
                f"heads of {n_layers} layers x {n_heads} heads, one at least",
                "correct them",
            )
        layers, heads = torch.tensor(list(sources)).T
        return self.of(mode)[layers, heads]

    def top(self, k: int, mode: str = "K") -> list[Pair]:
        """The ``k`` pairs ``((layer, head), (later layer, head))`` that compose most.

        Raises:
            InputError: ``k`` larger than the number of pairs, or an unknown mode.
        """
        frame = self.to_frame(mode)
        check_count(k, len(frame), "pairs of heads")
        columns = ("from_layer", "from_head", "to_layer", "to_head")
        rows = frame.loc[: k - 1, list(columns)].to_numpy().tolist() if k else []
        return [((row[0], row[1]), (row[2], row[3])) for row in rows]

    def to_frame(self, mode: str = "K") -> pd.DataFrame:
        """One row per pair with a score, highest first.

        Columns: from_layer, from_head, to_layer, to_head, mode, score, excess, z.
        """
        scores = self.of(mode)
        places = (~scores.isnan()).nonzero()
        places = places[torch.argsort(scores[tuple(places.T)], descending=True, stable=True)]
        columns = dict(zip(("from_layer", "from_head", "to_layer", "to_head"), places.T.numpy(), strict=True))
        tables = {"score": scores, "excess": self.excess(mode), "z": self.z_scores(mode)}
        values = {name: table[tuple(places.T)].numpy() for name, table in tables.items()}
        return pd.DataFrame({**columns, "mode": mode, **values})


def _number(mode: str) -> int:
    if mode not in MODES:
        raise InputError(f"mode {mode!r}", "'Q', 'K' or 'V'", "choose one of these")
    return MODES.index(mode)
