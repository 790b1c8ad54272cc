"""Benchmarks under intervention: the poster's table for several models, and a figure of paired differences."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from mechrep.errors import InputError
from mechrep.studies.benchmarks.result import MARGIN, BenchmarkResult
from mechrep.views.theme import ACCENT, AXIS, INK, counted, plain, style_of, styled

_ROW = 30  # pixels per point
_OWN = ("none", "intervention")


def benchmark_table(*results: BenchmarkResult, metric: str | None = None) -> pd.DataFrame:
    """The poster's table: a row per benchmark, a column per model and intervention, "original → patched" in per cent.

    Behind it, in brackets, the 95 % interval of the paired difference in percentage points.  Differences whose interval
    leaves out 0 are marked with ``*``; among many benchmarks some are so by chance.

    Args:
        results: one per model.
        metric: one that all benchmarks have; by default the first of each.

    Raises:
        InputError: no result, or two of one model and intervention.

    Example:
        >>> import torch
        >>> from mechrep.provenance import Provenance
        >>> conditions = [
        ...     {"condition": "original", "selection": "none", "seed": 0},
        ...     {"condition": "patched", "selection": "intervention", "seed": 0},
        ... ]
        >>> tasks = [{"task": "winogrande", "title": "WinoGrande", "questions": 4, "truncated": 0, "chance": 0.5}]
        >>> result = BenchmarkResult(
        ...     Provenance({"name": "a model"}, {"texts": 4}, {}),
        ...     conditions,
        ...     tasks,
        ...     measures=[{"task": "winogrande", "metric": "acc"}],
        ...     questions=[["0", "1", "2", "3"]],
        ...     values=torch.tensor([[[0.0, 0, 1, 1], [1, 0, 1, 1]]]),
        ...     choices=torch.tensor([[[0, 0, 0, 0], [1, 0, 0, 0]]]),
        ... )
        >>> benchmark_table(result).values.tolist()
        [['WinoGrande', '50.00 → 75.00 [+0.00, +75.00]']]
    """
    if not results:
        raise InputError("no result", "at least one", "pass results of benchmark_study")
    columns: dict[str, dict[str, str]] = {}
    for result in results:
        summary = result.summary(metric)
        for condition, rows in summary.groupby("condition", sort=False):
            name = f"{result.provenance.model['name']}, {condition}"
            if name in columns:
                raise InputError(f"two results of {name}", "one per model and intervention", "leave one out")
            columns[name] = {row["title"]: _entry(row) for _, row in rows.iterrows()}
    titles = dict.fromkeys(title for column in columns.values() for title in column)
    table = {"benchmark": list(titles)}
    return pd.DataFrame(table | {name: [column.get(title, "") for title in titles] for name, column in columns.items()})


def _entry(row: pd.Series) -> str:
    scale = 1 if row["metric"] == MARGIN else 100
    values = f"{scale * row['original']:.2f} → {scale * row['patched']:.2f}"
    low, high = scale * row["difference_low"], scale * row["difference_high"]
    return f"{values} [{low:+.2f}, {high:+.2f}]{'*' if low > 0 or high < 0 else ''}"


def benchmark_figure(result: BenchmarkResult, metric: str | None = None) -> go.Figure:
    """What every intervention changes on every benchmark: paired differences with 95 % intervals, beside controls.

    Open markers are controls: the mean of their draws with the least and the largest.  The dotted line is the untouched
    model.

    Args:
        result: of :func:`mechrep.studies.benchmarks.study.benchmark_study`.
        metric: one that all benchmarks have; by default the first of each.

    Raises:
        InputError: a result without interventions, or a metric that no benchmark has.

    Example:
        >>> import torch
        >>> from mechrep.provenance import Provenance
        >>> conditions = [
        ...     {"condition": "original", "selection": "none", "seed": 0},
        ...     {"condition": "patched", "selection": "intervention", "seed": 0},
        ... ]
        >>> tasks = [{"task": "winogrande", "title": "WinoGrande", "questions": 4, "truncated": 0, "chance": 0.5}]
        >>> result = BenchmarkResult(
        ...     Provenance({"name": "a model"}, {"texts": 4}, {}),
        ...     conditions,
        ...     tasks,
        ...     measures=[{"task": "winogrande", "metric": "acc"}],
        ...     questions=[["0", "1", "2", "3"]],
        ...     values=torch.tensor([[[0.0, 0, 1, 1], [1, 0, 1, 1]]]),
        ...     choices=torch.tensor([[[0, 0, 0, 0], [1, 0, 0, 0]]]),
        ... )
        >>> float(benchmark_figure(result).data[0].x[0])  # percentage points
        25.0
    """
    summary = result.summary(metric)
    if summary.empty:
        raise InputError("a result without interventions", "at least one", "pass interventions to benchmark_study")
    in_nats = metric == MARGIN
    scale = 1.0 if in_nats else 100.0
    kinds = list(dict.fromkeys(c["selection"] for c in result.conditions if c["selection"] not in _OWN))
    points: list[go.Scatter] = []
    for place, (condition, rows) in enumerate(summary.groupby("condition", sort=False)):
        colour = ACCENT if place == 0 else style_of(str(condition), place - 1).colour
        several = summary["condition"].nunique() > 1
        label = str(condition) if several else "intervention"
        points.append(_points(rows, "difference", label, colour, "circle", scale))
        for kind in (kind for kind in kinds if kind in rows and not rows[kind].isna().all()):
            style = style_of(kind)
            name = f"{kind.replace('_', '-')} units" + (f", {condition}" if several else "")
            points.append(_points(rows, kind, name, colour if several else style.colour, style.symbol, scale))
    figure = go.Figure(points)
    figure.add_vline(x=0, line={"color": INK, "dash": "dot", "width": 1.5})
    subtitle = (
        f"{result.provenance.model['name']}, {counted(int(summary.groupby('task')['n'].first().sum()), 'question')}"
    )
    titled = styled(
        figure,
        title="What an intervention costs on benchmarks",
        subtitle=subtitle,
        x="change of the margin (nats)" if in_nats else "change (percentage points)",
        y="",
    )
    titled.update_xaxes(AXIS | {"showgrid": True})
    titled.update_yaxes(AXIS | {"showgrid": False, "autorange": "reversed"})
    height = _ROW * len(points) * summary["task"].nunique() + 216
    return titled.update_layout(height=height, scattermode="group", margin={"l": 150, "t": 130})


def _points(rows: pd.DataFrame, name: str, label: str, colour: str, symbol: str, scale: float) -> go.Scatter:
    values, low, high = (scale * rows[column] for column in (name, f"{name}_low", f"{name}_high"))
    facts = pd.DataFrame({"n": rows["n"], "truncated": rows["truncated"], "low": low, "high": high})
    return go.Scatter(
        x=values,
        y=[plain(title) for title in rows["title"]],
        orientation="h",
        mode="markers",
        name=plain(label),
        marker={"size": 9, "color": colour, "symbol": symbol},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": high - values,
            "arrayminus": values - low,
            "thickness": 1.2,
            "width": 3,
        },
        customdata=facts,
        hovertemplate="%{y}: %{x:+.2f} (%{customdata[2]:+.2f} to %{customdata[3]:+.2f})<br>%{customdata[0]} questions, "
        "%{customdata[1]} longer than the context<extra>%{fullData.name}</extra>",
    )
