"""``HeadTableResult``: what results with several scores per head have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.errors import InputError
from mechrep.results import Result, check_count


@dataclass(frozen=True, eq=False)
class HeadTableResult(Result):
    """Base of results whose fields named in ``names`` are tables ``[layer head]``; the first of them ranks."""

    names: ClassVar[tuple[str, ...]]

    def of(self, score: str) -> Float[Tensor, "layer head"]:
        """One of the scores by its name.

        Raises:
            InputError: a name that is not among ``names``.
        """
        if score not in self.names:
            raise InputError(f"score {score!r}", f"one of {list(self.names)}", "choose one of these")
        return getattr(self, score)

    def ranking(self, score: str | None = None) -> list[tuple[int, int]]:
        """All ``(layer, head)`` pairs, highest score first; ties keep the order of layers and heads, NaN comes last."""
        values = self.of(self.names[0] if score is None else score)
        order = torch.argsort(torch.nan_to_num(values.flatten(), nan=-torch.inf), descending=True, stable=True)
        return [divmod(index, values.shape[1]) for index in order.tolist()]

    def top(self, k: int, score: str | None = None) -> list[tuple[int, int]]:
        """The ``k`` heads that score highest.

        Args:
            k: how many.
            score: one of ``names``; the first of them by default.

        Raises:
            InputError: ``k`` larger than the number of heads, or an unknown score.
        """
        ranking = self.ranking(score)
        check_count(k, len(ranking), "heads")
        return ranking[:k]

    def to_frame(self, score: str | None = None) -> pd.DataFrame:
        """One row per head, highest ``score`` first: rank, layer, head, and each of ``names``."""
        units = self.ranking(score)
        layers, heads = torch.tensor(units, dtype=torch.long).reshape(-1, 2).T
        scores = {name: self.of(name)[layers, heads].numpy() for name in self.names}
        return pd.DataFrame({"rank": range(len(units)), "layer": layers.numpy(), "head": heads.numpy(), **scores})
