"""``SweepResult``: what became of every text under every condition, and the table made from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechrep.results import Result
from mechrep.stats import percentile_interval, proportion_interval

if TYPE_CHECKING:
    import plotly.graph_objects as go

CELL = ["selection", "k", "seed"]


@dataclass(frozen=True, eq=False)
class SweepResult(Result):
    """Outcomes of a sweep; reads like its table: ``sweep["share"]``, ``sweep.query("k == 50")``, ``len(sweep)``.

    Attributes:
        kind: ``"deactivation"`` or ``"activation"``.
        preset: detector preset that says whether a text repeats.
        outcomes: one record per text and condition: ``selection, k, seed, text, repeating, escaped_at, relooped,
            new_period, new_tokens, stop_reason``.
    """

    kind: str
    preset: str
    outcomes: list[dict[str, Any]]

    @property
    def frame(self) -> pd.DataFrame:
        """Same as :meth:`to_frame`."""
        return self.to_frame()

    def outcome_frame(self) -> pd.DataFrame:
        """One row per text and condition."""
        return pd.DataFrame(self.outcomes)

    def to_frame(self) -> pd.DataFrame:
        """One row per condition.

        Columns: ``selection``, ``k``, ``seed``, ``texts``; the count ``still_repeating`` (``newly_repeating`` after
        activation), its ``share`` with a 95 % Wilson interval ``low``/``high``; after deactivation also ``escaped``
        (left the old loop at some point), ``median_tokens_to_escape`` among these, ``relooped`` (escaped, yet
        repeating) and ``median_new_period``.
        """
        rows = []
        for (selection, k, seed), cell in self.outcome_frame().groupby(CELL, sort=False):
            count, texts = int(cell["repeating"].sum()), len(cell)
            low, high = proportion_interval(count, texts)
            row: dict[str, Any] = {"selection": selection, "k": k, "seed": seed, "texts": texts, self.count_name: count}
            row |= {"share": count / texts, "low": low, "high": high}
            if self.kind == "deactivation":
                escaped = cell["escaped_at"].notna()
                row |= {"escaped": int(escaped.sum()), "median_tokens_to_escape": cell["escaped_at"].median()}
            row |= {"relooped": int(cell["relooped"].sum()), "median_new_period": cell["new_period"].median()}
            rows.append(row)
        return pd.DataFrame(rows)

    @property
    def count_name(self) -> str:
        """Column with the count of repeating texts."""
        return "still_repeating" if self.kind == "deactivation" else "newly_repeating"

    def summary(self) -> pd.DataFrame:
        """One row per selection and k: mean share over seeds, its interval, number of draws and texts.

        For one set (``none``, ``top``) the interval is Wilson's over texts; for controls the central 95 % over draws
        (their minimum and maximum when there are few).
        """
        rows = []
        for (selection, k), cell in self.to_frame().groupby(["selection", "k"], sort=False):
            low, high = (cell["low"].iloc[0], cell["high"].iloc[0])
            if len(cell) > 1:
                low, high = percentile_interval(cell["share"].tolist())
            rows.append(
                {
                    "selection": selection,
                    "k": k,
                    "share": cell["share"].mean(),
                    "low": low,
                    "high": high,
                    "draws": len(cell),
                    "texts": int(cell["texts"].iloc[0]),
                }
            )
        return pd.DataFrame(rows)

    def __getitem__(self, key: Any) -> Any:
        return self.to_frame()[key]

    def __len__(self) -> int:
        return len(self.to_frame())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in self.__dataclass_fields__:
            raise AttributeError(name)
        return getattr(self.to_frame(), name)

    def plot(self) -> go.Figure:
        """Share of repeating texts against the number of neurons, with controls."""
        from mechrep.views.plots import plot_sweep

        return plot_sweep(self)
