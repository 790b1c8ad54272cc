"""``CheckpointResult``: every measure at every checkpoint, when each changes, and in which order."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from mechrep.errors import InputError
from mechrep.results import Result
from mechrep.stats import percentile_interval
from mechrep.studies.checkpoints.change_points import (
    ChangePoint,
    bootstrap_means,
    change_point,
    draw_counts,
    order_p_value,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)
class CheckpointResult(Result):
    """Measures over training.

    Attributes:
        revisions: names, in the order of training.
        steps: of training; NaN where unknown.
        tokens: seen; NaN where unknown.
        fingerprints: of the models.
        units: by measure, per checkpoint the value of every unit; one unit where a measure is a single number.
        sources: by measure, which :class:`Measure` it comes from; measures of one source share their units.
    """

    revisions: Sequence[str]
    steps: Sequence[float]
    tokens: Sequence[float]
    fingerprints: Sequence[str]
    units: Mapping[str, Sequence[Sequence[float]]]
    sources: Mapping[str, str]

    @property
    def measures(self) -> list[str]:
        """Names of the measures."""
        return list(self.units)

    def of(self, measure: str) -> Float[np.ndarray, "checkpoint unit"]:
        """Values of one measure.

        Args:
            measure: its name.

        Raises:
            InputError: an unknown name.
        """
        if measure not in self.units:
            raise InputError(f"measure {measure!r}", f"one of {self.measures}", "choose one of these")
        return np.array(self.units[measure], dtype=float)

    def to_frame(self, *, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
        """One row per measure and checkpoint, with a 95 % bootstrap interval over units.

        Columns: ``measure, revision, step, tokens, value, low, high, n``; ``n`` counts units with a value, and an
        interval of one unit is NaN.

        Args:
            draws: of the bootstrap.
            seed: of the draws.
        """
        rows = []
        for measure in self.measures:
            values = self.of(measure)
            n = (~np.isnan(values)).sum(1)
            with np.errstate(invalid="ignore"):
                drawn = _bootstrap(values, draws, seed)
            for place, revision in enumerate(self.revisions):
                value = float(np.nanmean(values[place])) if n[place] else float("nan")
                low, high = percentile_interval(drawn[:, place].tolist()) if n[place] > 1 else (float("nan"),) * 2
                facts = (measure, revision, self.steps[place], self.tokens[place])
                rows.append((*facts, value, low, high, int(n[place])))
        return pd.DataFrame(rows, columns=["measure", "revision", "step", "tokens", "value", "low", "high", "n"])

    def wide(self) -> pd.DataFrame:
        """One row per checkpoint, one column per measure."""
        frame = pd.DataFrame({"revision": list(self.revisions)})
        for measure in self.measures:
            frame[measure] = self._means(measure)
        return frame

    def part(self, sources: Sequence[str]) -> CheckpointResult:
        """The measures of some sources alone.

        Args:
            sources: names of :attr:`sources`; what none of them made is left out.
        """
        chosen = [name for name in self.measures if self.sources[name] in sources]
        return replace(
            self,
            units={name: self.units[name] for name in chosen},
            sources={name: self.sources[name] for name in chosen},
        )

    def change_points(self, *, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
        """When each measure changes; see :mod:`mechrep.studies.checkpoints.change_points` for the estimator.

        One row per measure: the step lies between ``before`` and ``after``, with 95 % between ``earliest`` (the last
        checkpoint surely before it) and ``latest`` (the first surely behind it); ``size`` of the step with its
        interval; ``explained`` share of the variance over checkpoints; ``p``, the share of shuffled orders of the
        checkpoints in which a step explains as much; ``clear``.  Measures known at fewer than two checkpoints are left
        out.

        Args:
            draws: of the bootstrap.
            seed: of the draws.
        """
        names, rows = self.revisions, []
        for measure, (point, _) in self._points(draws, seed).items():
            places = (point.after, self._next(measure, point.after), point.low, self._next(measure, point.high))
            rows.append(
                (
                    measure, *(names[place] for place in places), point.size, point.size_low, point.size_high,
                    point.explained, order_p_value(self._means(measure), seed=seed), point.clear,
                )
            )  # fmt: skip
        columns = ["measure", "before", "after", "earliest", "latest", "size", "low", "high", "explained", "p", "clear"]
        return pd.DataFrame(rows, columns=columns)

    def order(self, measures: Sequence[str] | None = None, *, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
        """Which of two measures changes first?  Share of bootstrap draws in which one's step is earlier.

        Measures with the same units are drawn together, others independently.  On a coarse grid many draws tie:
        ``same`` is the share in which both steps lie between the same checkpoints.  A measure without units is the
        same in every draw.

        Args:
            measures: to compare; those with a clear step by default.
            draws: of the bootstrap.
            seed: of the draws.

        Returns:
            ``first, second, earlier, same, later`` for every pair, the one more often earlier as ``first``.
        """
        points = self._points(draws, seed)
        chosen = [name for name, (point, _) in points.items() if point.clear] if measures is None else list(measures)
        unknown = [name for name in chosen if name not in points]
        if unknown:
            raise InputError(f"measure {unknown[0]!r}", f"one of {list(points)}", "choose among these")
        rows = []
        for one, other in itertools.combinations(chosen, 2):
            a, b = points[one][1], points[other][1]
            earlier, same, later = (float(share.mean()) for share in (a < b, a == b, a > b))
            rows.append((one, other, earlier, same, later) if earlier >= later else (other, one, later, same, earlier))
        return pd.DataFrame(rows, columns=["first", "second", "earlier", "same", "later"])

    def plot(self) -> go.Figure:
        """All measures on one axis of training, with their change points."""
        from mechrep.views.checkpoint_plots import mechanisms_figure

        return mechanisms_figure(self)

    def _means(self, measure: str) -> Float[np.ndarray, " checkpoint"]:
        """Mean over the units that have a value; NaN at a checkpoint without any."""
        known = [row[~np.isnan(row)] for row in self.of(measure)]
        return np.array([row.mean() if len(row) else np.nan for row in known])

    def _points(self, draws: int, seed: int) -> dict[str, tuple[ChangePoint, Int[np.ndarray, " draw"]]]:
        found = {}
        sources = list(dict.fromkeys(self.sources.values()))
        for measure in self.measures:
            values = self.of(measure)
            if (~np.isnan(values).all(1)).sum() >= 2:
                own_seed = seed * 1009 + sources.index(self.sources[measure])
                found[measure] = change_point(values, draws=draws, seed=own_seed)
        return found

    def _next(self, measure: str, place: int) -> int:
        """The next checkpoint at which a measure is known."""
        has = np.flatnonzero(~np.isnan(self.of(measure)).all(1))
        return int(has[has > place][0])


def _bootstrap(values: Float[np.ndarray, "checkpoint unit"], draws: int, seed: int) -> np.ndarray:
    """Means ``[draw checkpoint]``; NaN at checkpoints without a value."""
    known = ~np.isnan(values).all(1)
    drawn = np.full((draws, len(values)), np.nan)
    if known.any():
        drawn[:, known] = bootstrap_means(values[known], draw_counts(values.shape[1], draws, seed))
    return drawn
