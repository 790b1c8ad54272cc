"""``HeadContrastResult``: what cutting (or patching) each head changes in every text of several conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from mechrep.analyzers.conditions.effects import FIRST, SECOND, HeadEffects
from mechrep.errors import InputError
from mechrep.results import Result, check_count
from mechrep.studies.ablation.statistics import holm

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)
class HeadContrastResult(Result):
    """Changes of the log-probability of the expected tokens, in nats per token; negative where the head helps.

    Attributes:
        effects: with the head cut minus without, per text and copy; NaN where a text has no such copy.
        untouched: log-probability without a cut.
        ops: operations.
        ids: of the texts.
        conditions: group of each text.
        prompts: that the texts are from.
        new_tokens: tokens that were generated for this.
    """

    effects: Float[Tensor, "op text copy layer head"]
    untouched: Float[Tensor, "text copy"]
    ops: Sequence[str]
    ids: Sequence[str]
    conditions: Sequence[str]
    prompts: Sequence[str]
    new_tokens: int

    def head_effects(self, op: str | None = None, copy: int | None = None) -> HeadEffects:
        """One operation and copy, for the tables of :class:`~mechrep.analyzers.conditions.effects.HeadEffects`.

        Args:
            op: by default the first.
            copy: from 1, the second copy, on; by default the mean over all.

        Raises:
            InputError: an operation or copy that was not measured.
        """
        name = self.ops[0] if op is None else op
        if name not in self.ops or (copy is not None and not 1 <= copy <= self.effects.shape[2]):
            raise InputError(
                f"op {name!r}, copy {copy}", f"one of {list(self.ops)}, 1 to {self.effects.shape[2]}", "choose again"
            )
        values = self.effects[list(self.ops).index(name)].double()
        chosen = values.nanmean(1) if copy is None else values[:, copy - 1]
        return HeadEffects(chosen.numpy(), list(self.conditions), list(self.prompts), f"{name}: change of log p")

    def to_frame(self) -> pd.DataFrame:
        """One row per operation, condition, copy and head: mean ``effect``, ``untouched`` log p, ``n``."""
        rows = []
        labels = np.array(self.conditions, dtype=object)
        for number, op in enumerate(self.ops):
            for name in dict.fromkeys(self.conditions):
                for copy in range(self.effects.shape[2]):
                    part = self.effects[number, labels == name, copy].double()
                    known = ~part.isnan().any(-1).any(-1)
                    base = self.untouched[labels == name, copy][known].double().mean()
                    means = part[known].mean(0)
                    rows += [
                        (op, name, copy + 1, layer, head, float(means[layer, head]), float(base), int(known.sum()))
                        for layer in range(means.shape[0])
                        for head in range(means.shape[1])
                        if int(known.sum())
                    ]
        columns = ["op", "condition", "copy", "layer", "head", "effect", "untouched", "n"]
        return pd.DataFrame(rows, columns=columns)

    def contrast(
        self, op: str | None = None, copy: int | None = None, *, first: str = FIRST, second: str = SECOND
    ) -> pd.DataFrame:
        """The table of ``HeadEffects.contrast``, with Holm's correction beside that of Benjamini and Hochberg."""
        frame = self.head_effects(op, copy).contrast(first, second)
        return frame.assign(holm=holm(frame["p"].to_numpy()))

    def top(self, k: int) -> list[tuple[int, int]]:
        """The ``k`` heads whose effect differs most between induced copying and natural loops.

        Raises:
            InputError: ``k`` larger than the number of heads, or a condition that is missing.
        """
        frame = self.contrast()
        check_count(k, len(frame), "heads")
        return [(int(layer), int(head)) for layer, head in frame[["layer", "head"]].to_numpy()[:k]]

    def plot(self) -> go.Figure:
        """Effects of all heads, per condition, and what tells them apart."""
        from mechrep.views.contrast_plots import head_contrast_figure

        return head_contrast_figure(self.head_effects())
