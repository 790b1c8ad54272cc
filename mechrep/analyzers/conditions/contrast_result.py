"""``ConditionContrastResult``: what a run of :class:`~mechrep.analyzers.conditions.ConditionContrast` found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int64
from torch import Tensor

from mechrep.analyzers.conditions.effects import HeadEffects
from mechrep.errors import InputError
from mechrep.results import Result, check_count
from mechrep.stats import paired_bootstrap_interval

if TYPE_CHECKING:
    import plotly.graph_objects as go

MEASURES = (
    "log_probability",
    "probability",
    "entropy",
    "rank",
    "correct",
    "logit_difference",
    "embedding",
    "biases",
)  # fmt: skip
_PER_TEXT = ["text", "prompt", "condition", "builder"]


@dataclass(frozen=True, eq=False)
class ConditionContrastResult(Result):
    """Means over the tokens of each copy, for every text.

    Copy ``k`` has ``k`` whole cycles before it; copy 0 is the first.  Values are NaN where a text has no such copy.

    Attributes:
        measures: in the order of :data:`MEASURES`: ``log p``, ``p``, entropy (nats) and rank of the expected token,
            the share of tokens that are the most probable ones, the logit difference to the best other token, and what
            the embedding and the biases add to it.
        lens: ``log p`` of the expected token from the residual stream before each layer, and after the last.
        heads: what each head adds to the logit difference.
        mlps: what each MLP adds.
        counts: tokens.
        ids: of the texts.
        conditions: of the texts.
        builders: of the texts.
        prompts: that the texts are from.
        copies: copies beyond the first that were looked at.
    """

    measures: Float[Tensor, "measure text copy"]
    lens: Float[Tensor, "text copy depth"]
    heads: Float[Tensor, "text copy layer head"]
    mlps: Float[Tensor, "text copy layer"]
    counts: Int64[Tensor, "text copy"]
    ids: Sequence[str]
    conditions: Sequence[str]
    builders: Sequence[str]
    prompts: Sequence[str]
    copies: int

    @property
    def labels(self) -> list[str]:
        """Group of each text: its condition, or its builder where a condition has several."""
        several = len(set(zip(self.conditions, self.builders, strict=True))) > len(set(self.conditions))
        return list(self.builders if several else self.conditions)

    @property
    def groups(self) -> dict[str, int]:
        """Number of texts of each group."""
        labels = self.labels
        return {name: labels.count(name) for name in dict.fromkeys(labels)}

    def of(self, measure: str) -> Float[Tensor, "text copy"]:
        """One of the measures by its name.

        Raises:
            InputError: a name that is not among :data:`MEASURES`.
        """
        if measure not in MEASURES:
            raise InputError(f"measure {measure!r}", f"one of {MEASURES}", "choose one of these")
        return self.measures[MEASURES.index(measure)]

    def residual(self) -> float:
        """Largest difference between a logit difference and the sum of its parts, over all texts and copies."""
        parts = self.heads.double().sum((2, 3)) + self.mlps.double().sum(2)
        parts += self.of("embedding").double() + self.of("biases").double()
        return float((parts - self.of("logit_difference").double()).abs().nan_to_num(0.0).max())

    def to_frame(self) -> pd.DataFrame:
        """One row per group, copy and measure: mean over texts with its 95 % interval, median, number of texts.

        Columns: ``condition, copy, measure, value, low, high, median, n``.  A copy's tokens count equally within a
        text, texts count equally.
        """
        rows: list[dict[str, Any]] = []
        for name, copy, chosen in self._cells():
            for measure in MEASURES:
                values = self.of(measure)[chosen, copy].double().numpy()
                rows.append({"condition": name, "copy": copy, "measure": measure, **_summary(values)})
        return pd.DataFrame(rows)

    def lens_frame(self) -> pd.DataFrame:
        """The logit lens: ``condition, copy, layer`` (the stream before it; one more for the end), mean, interval."""
        rows: list[dict[str, Any]] = []
        for name, copy, chosen in self._cells():
            for layer in range(self.lens.shape[2]):
                values = self.lens[chosen, copy, layer].double().numpy()
                rows.append({"condition": name, "copy": copy, "layer": layer, **_summary(values)})
        return pd.DataFrame(rows)

    def parts_frame(self, copy: int | None = None) -> pd.DataFrame:
        """What all heads together, every MLP, the embedding and the biases add: ``condition, part, layer``, mean, ...

        Args:
            copy: of one copy; by default the mean over those that follow a whole cycle.
        """
        rows: list[dict[str, Any]] = []
        heads, mlps = self._over_copies(self.heads, copy).sum(3), self._over_copies(self.mlps, copy)
        tables = {"heads": heads[:, 0], "mlp": mlps[:, 0]}
        for name in self.groups:
            chosen = [i for i, label in enumerate(self.labels) if label == name]
            for part, table in tables.items():
                for layer in range(table.shape[1]):
                    values = table[chosen, layer].double().numpy()
                    rows.append({"condition": name, "part": part, "layer": layer, **_summary(values)})
            for part in ("embedding", "biases"):
                values = self._over_copies(self.of(part), copy)[chosen, 0].double().numpy()
                rows.append({"condition": name, "part": part, "layer": pd.NA, **_summary(values)})
        return pd.DataFrame(rows).astype({"layer": "Int64"})

    def head_effects(self, copy: int | None = None) -> HeadEffects:
        """What each head adds to the logit difference, for the tables of :class:`HeadEffects`: positive facilitates.

        Args:
            copy: of one copy; by default the mean over those that follow a whole cycle, and for texts without a
                cycle over all expected tokens.

        Raises:
            InputError: a copy that was not looked at.
        """
        values = self._over_copies(self.heads, copy)[:, 0].double().numpy()
        return HeadEffects(values, self.labels, list(self.prompts), "direct logit attribution")

    def top(self, k: int) -> list[tuple[int, int]]:
        """The ``k`` heads in which induced copying and natural loops differ most.

        Raises:
            InputError: ``k`` larger than the number of heads, or a condition that is missing.
        """
        frame = self.head_effects().contrast()
        check_count(k, len(frame), "heads")
        return [(int(layer), int(head)) for layer, head in frame[["layer", "head"]].to_numpy()[:k]]

    def plot(self) -> go.Figure:
        """Confidence by number of cycles shown."""
        from mechrep.views.contrast_plots import confidence_figure

        return confidence_figure(self)

    def _over_copies(self, values: Tensor, copy: int | None) -> Float[Tensor, "text 1 ..."]:
        """One copy, or the mean over copies from 1 on (copy 0 of texts that have no other)."""
        if copy is not None:
            if not 0 <= copy <= self.copies:
                raise InputError(f"copy {copy}", f"0 to {self.copies}", "look at more copies")
            return values[:, copy : copy + 1]
        later = values[:, 1:].nanmean(1, keepdim=True)
        return later.where(~later.isnan(), values[:, :1])

    def _cells(self) -> list[tuple[str, int, list[int]]]:
        """Groups and copies that have texts, with the numbers of these texts."""
        cells = []
        for name in self.groups:
            for copy in range(self.copies + 1):
                chosen = [i for i, label in enumerate(self.labels) if label == name and int(self.counts[i, copy])]
                if chosen:
                    cells.append((name, copy, chosen))
        return cells


def _summary(values: np.ndarray) -> dict[str, float]:
    known = values[~np.isnan(values)]
    low, high = paired_bootstrap_interval(known)
    return {"value": known.mean(), "low": low, "high": high, "median": float(np.median(known)), "n": len(known)}
