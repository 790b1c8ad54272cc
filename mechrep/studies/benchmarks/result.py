"""``BenchmarkResult``: every question's verdict under every condition, and the paired tables made from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from mechrep.errors import InputError
from mechrep.results import Result, check_count
from mechrep.stats import proportion_interval
from mechrep.studies.ablation.statistics import bootstrap_intervals
from mechrep.studies.benchmarks.statistics import discordant, mcnemar

if TYPE_CHECKING:
    import plotly.graph_objects as go

CELL = ["condition", "selection", "seed"]
MARGIN = "margin"
UNTOUCHED = "original"


@dataclass(frozen=True, eq=False)
class BenchmarkResult(Result):
    """The same questions, asked of the untouched model, of the model under each intervention, and under its controls.

    Attributes:
        conditions: ``condition`` (the name of the intervention; the first is ``"original"``), ``selection``
            (``"none"``, ``"intervention"`` or the name of a control), ``seed`` of the control's draw, and in words
            what was ``done``.
        tasks: for each benchmark ``task``, ``title``, number of ``questions`` and of those ``truncated``, whose text
            did not fit the model's context for at least one choice, and the share right by ``chance``.
        measures: ``task`` (its name) and ``metric``: those of the benchmark, then ``"margin"``, the log-probability of
            the right choice minus the largest of the others (nats).
        questions: ids of the questions of each benchmark.
        values: of each measure; NaN beyond the questions of its benchmark.
        choices: which choice has the highest log-probability; -1 beyond the questions of the benchmark.
    """

    conditions: Sequence[dict[str, Any]]
    tasks: Sequence[dict[str, Any]]
    measures: Sequence[dict[str, Any]]
    questions: Sequence[Sequence[str]]
    values: Float[Tensor, "measure condition question"]
    choices: Int[Tensor, "task condition question"]

    def to_frame(self) -> pd.DataFrame:
        """One row per measure and condition.

        Columns: ``task, title, metric``, ``condition, selection, seed``; ``value``, the mean over the ``n`` questions,
        with a 95 % interval ``low``/``high`` (Wilson's where every answer is right or wrong, else the bootstrap's);
        ``difference`` to the untouched model on the same questions, with its paired bootstrap interval
        ``difference_low``/``difference_high``; ``gained`` and ``lost``, the questions that are right only with and only
        without the intervention, and ``p_value`` of :func:`~mechrep.studies.benchmarks.statistics.mcnemar` (these three
        are missing where answers are not right or wrong); ``truncated`` and ``chance`` of the benchmark.
        """
        return pd.concat([self._table(number) for number in range(len(self.measures))], ignore_index=True)

    def _table(self, number: int) -> pd.DataFrame:
        measure = self.measures[number]
        facts = next(facts for facts in self.tasks if facts["task"] == measure["task"])
        values = self.values[number, :, : facts["questions"]].double().numpy()
        differences = values - values[:1]
        binary = bool(np.isin(values, (0.0, 1.0)).all())
        if binary:
            ends = np.array([proportion_interval(int(row.sum()), len(row)) for row in values])
            changed: list[Any] = [discordant(values[0], row) for row in values]
            p_values = [mcnemar(*pair) for pair in changed]
        else:
            ends, changed = bootstrap_intervals(values), [(None, None)] * len(values)
            p_values = [float("nan")] * len(values)
        difference_ends = bootstrap_intervals(differences)
        table = pd.DataFrame(list(self.conditions))[CELL].assign(
            task=measure["task"],
            title=facts["title"],
            metric=measure["metric"],
            value=values.mean(1),
            low=ends[:, 0],
            high=ends[:, 1],
            difference=differences.mean(1),
            difference_low=difference_ends[:, 0],
            difference_high=difference_ends[:, 1],
            gained=pd.array([gained for gained, _ in changed], dtype="Int64"),
            lost=pd.array([lost for _, lost in changed], dtype="Int64"),
            p_value=p_values,
            n=values.shape[1],
            truncated=facts["truncated"],
            chance=facts["chance"] if measure["metric"] != MARGIN else np.nan,
        )
        return table[["task", "title", "metric", *CELL, *table.columns[len(CELL) + 3 :]]]

    def summary(self, metric: str | None = None) -> pd.DataFrame:
        """The poster's comparison: one row per benchmark and intervention.

        Columns: ``task, title, metric, condition``; ``original`` and ``patched``, the means without and with the
        intervention; ``difference, difference_low, difference_high, gained, lost, p_value, n, truncated, chance`` as in
        :meth:`to_frame`; and, where controls were drawn, for each kind of them the mean of the differences
        ``<kind>`` with the least and the largest of the draws, ``<kind>_low`` and ``<kind>_high``.

        Args:
            metric: one that all benchmarks have; by default the first of each.

        Raises:
            InputError: a metric that no benchmark has.
        """
        frame = self.to_frame()
        first = {facts["task"]: self._metric(facts["task"], metric) for facts in self.tasks}
        frame = frame[frame["metric"] == frame["task"].map(first)]
        if frame.empty:
            known = list(dict.fromkeys(measure["metric"] for measure in self.measures))
            raise InputError(f"metric {metric!r}", f"one of {known}", "choose one that was measured")
        rows = []
        for (task, condition), cell in frame.groupby(["task", "condition"], sort=False):
            if condition == UNTOUCHED:
                continue
            row = cell[cell["selection"] == "intervention"].iloc[0].drop(["selection", "seed", "low", "high"])
            untouched = frame[(frame["task"] == task) & (frame["condition"] == UNTOUCHED)].iloc[0]
            record = row.rename({"value": "patched"}).to_dict()
            rows.append(record | {"original": untouched["value"]} | _controls(cell))
        columns = ["task", "title", "metric", "condition", "original", "patched"]
        table = pd.DataFrame(rows, columns=None if rows else columns)
        return table[[*columns, *(name for name in table.columns if name not in columns)]]

    def _metric(self, task: str, metric: str | None) -> str | None:
        own = [measure["metric"] for measure in self.measures if measure["task"] == task]
        return own[0] if metric is None else metric if metric in own else None

    def question_frame(self) -> pd.DataFrame:
        """One row per benchmark, condition and question: its ``choice`` and the value of each measure."""
        cells = pd.DataFrame(list(self.conditions))[CELL].to_dict("records")
        tables = []
        for number, (facts, ids) in enumerate(zip(self.tasks, self.questions, strict=True)):
            own = [(i, m["metric"]) for i, m in enumerate(self.measures) if m["task"] == facts["task"]]
            for place, cell in enumerate(cells):
                columns = {metric: self.values[i, place, : len(ids)].tolist() for i, metric in own}
                chosen = {"question": list(ids), "choice": self.choices[number, place, : len(ids)].tolist()}
                tables.append(pd.DataFrame(chosen | columns).assign(task=facts["task"], **cell))
        frame = pd.concat(tables, ignore_index=True)
        head = ["task", *CELL, "question", "choice"]
        return frame[[*head, *(name for name in frame.columns if name not in head)]]

    def top(self, k: int) -> list[Any]:
        """``(task, condition)`` of the ``k`` largest differences that an intervention makes, of either sign.

        Raises:
            InputError: ``k`` larger than the number of benchmarks times interventions.
        """
        summary = self.summary()
        check_count(k, len(summary), "benchmarks under an intervention")
        order = np.argsort(-summary["difference"].abs().to_numpy(dtype=float), kind="stable")[:k]
        return [(summary["task"].iloc[i], summary["condition"].iloc[i]) for i in order]

    def plot(self) -> go.Figure:
        """Differences with their intervals, beside the controls (:mod:`mechrep.views.benchmark_plots`)."""
        from mechrep.views.benchmark_plots import benchmark_figure

        return benchmark_figure(self)


def _controls(cell: pd.DataFrame) -> dict[str, float]:
    """Mean, least and largest difference over the draws of each kind of control."""
    found: dict[str, float] = {}
    for kind, draws in cell[cell["selection"] != "intervention"].groupby("selection", sort=False):
        differences = draws["difference"]
        found |= {
            str(kind): float(differences.mean()),
            f"{kind}_low": float(differences.min()),
            f"{kind}_high": float(differences.max()),
        }
    return found
