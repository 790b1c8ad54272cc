"""Figures of an ablation study: every condition beside its controls, and curves over the number of components cut."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechrep.errors import NothingFoundError
from mechrep.studies.ablation.result import AblationResult
from mechrep.views.theme import AXIS, INK, counted, plain, style_of, styled, translucent

_TITLES = {
    "loop_log_probability": "log-probability of the loop's tokens (nats per token)",
    "copy_accuracy": "share of the second copy that is predicted",
    "copy_loss_drop": "loss on the first copy minus the second (nats)",
    "loss": "held-out loss (nats per token)",
    "still_looping": "share of looping texts that still loop",
    "newly_looping": "share of loop-free texts that loop",
}
_ROW = 24  # pixels per condition
_UNTOUCHED = "none"


def ablation_figure(result: AblationResult) -> go.Figure:
    """One panel per outcome, one point with its 95 % interval per condition; the dotted line is the untouched model.

    The draws of a control are one point: their mean, with the interval over draws.

    Args:
        result: of :func:`mechrep.studies.ablation.study.ablation_study` or ``single_head_sweep``.

    Example:
        >>> import mechrep
        >>> from mechrep.studies.ablation.heads import single_head_sweep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> row = [0, *range(30, 50), *[9, 8, 7, 6, 5] * 4]
        >>> corpus = mechrep.Corpus.from_tokens([row, row], model=model).with_cycles()
        >>> figure = ablation_figure(single_head_sweep(model, corpus, copies=1))
        >>> figure.layout.title.text
        'What the model loses'
    """
    summary = result.summary()
    measures = list(dict.fromkeys(zip(summary["outcome"], summary["copy"].fillna(-1).astype(int), strict=True)))
    rows = max(1, len(summary) // len(measures) - 1)
    height = rows * _ROW + 90
    figure = make_subplots(
        len(measures),
        1,
        subplot_titles=[_measure(*measure) for measure in measures],
        vertical_spacing=0.3 / len(measures),
    )
    for number, (outcome, copy) in enumerate(measures, start=1):
        part = summary[(summary["outcome"] == outcome) & (summary["copy"].fillna(-1) == copy)]
        _add_points(figure, part, number)
    figure.update_annotations(font_size=13)
    texts = counted(int(summary["texts"].max()), "text")
    titled = styled(figure, title="What the model loses", subtitle=f"{_name(result)}, {texts}", x="", y="")
    titled.update_xaxes(AXIS | {"showgrid": True})
    titled.update_yaxes(AXIS | {"showgrid": False, "autorange": "reversed"})
    return titled.update_layout(height=height * len(measures) + 150, showlegend=False, margin={"l": 220, "t": 140})


def ablation_curves_figure(result: AblationResult, outcome: str | None = None, copy: int | None = None) -> go.Figure:
    """One outcome over the number of components cut: the ranking beside its controls, with 95 % bands.

    Args:
        result: of an ablation study with several ``ks``.
        outcome: by default the first.
        copy: of the loop, by default the first.

    Raises:
        InputError: an outcome that was not measured.
        NothingFoundError: nothing was cut at more than one number of components.
    """
    measure = result.measures[result.measure_number(outcome, copy)]
    summary = result.summary()
    copies = summary["copy"].isna() if measure["copy"] is None else summary["copy"] == measure["copy"]
    part = summary[(summary["outcome"] == measure["outcome"]) & copies]
    cut = part[part["selection"] != _UNTOUCHED]
    if cut["k"].nunique() < 2:
        raise NothingFoundError("cuts of one size", "several numbers of components", "pass ks= to ablation_study")
    untouched = part[part["selection"] == _UNTOUCHED].iloc[0]
    figure = go.Figure()
    groups = cut.groupby(["circuit", "part", "op", "selection"], sort=False)
    for place, ((circuit, kind, op, selection), line) in enumerate(groups):
        label = selection if len(groups) == cut["selection"].nunique() else f"{circuit}, {kind}, {op}: {selection}"
        _add_curve(figure, pd.concat([untouched.to_frame().T, line.sort_values("k")]), selection, label, place)
    title = _TITLES.get(str(measure["outcome"]), str(measure["outcome"]))
    return styled(
        figure,
        title="What the model loses as more is cut",
        subtitle=f"{_name(result)}, {counted(int(part['texts'].max()), 'text')}",
        x="components cut",
        y=title,
    )


def _name(result: AblationResult) -> str:
    return str(result.provenance.model["name"])


def _measure(outcome: str, copy: int) -> str:
    title = plain(_TITLES.get(outcome, outcome))
    return title if copy < 0 else f"{title}, {'onset token' if copy == 0 else f'copy {copy}'}"


def _label(row: pd.Series) -> str:
    """What was cut, in words: circuit, part, operation, and the control it is."""
    what = row["circuit"] if row["part"] == "whole" else f"{row['circuit']}: {row['part']}"
    control = "" if row["selection"] in ("top", "single", "whole") else f", {row['selection'].replace('_', '-')}"
    draws = f" x {row['draws']}" if row["draws"] > 1 else ""
    return plain(f"{what} (k = {row['k']}, {row['op']}{control}{draws})")


def _add_points(figure: go.Figure, part: pd.DataFrame, number: int) -> None:
    untouched = part[part["selection"] == _UNTOUCHED]
    cut = part[part["selection"] != _UNTOUCHED]
    styles = [style_of(selection) for selection in cut["selection"]]
    labels = [_label(row) for _, row in cut.iterrows()]
    points = go.Scatter(
        x=cut["value"],
        y=labels,
        mode="markers",
        marker={"size": 9, "color": [s.colour for s in styles], "symbol": [s.symbol for s in styles]},
        error_x=_bars(cut),
        customdata=cut[["effect", "effect_low", "effect_high", "n"]],
        hovertemplate="%{y}<br>%{x:.3f}; change %{customdata[0]:.3f} (%{customdata[1]:.3f} to %{customdata[2]:.3f}), "
        "n = %{customdata[3]}<extra></extra>",
    )
    figure.add_trace(points, row=number, col=1)
    if len(untouched) and len(cut):
        value = float(untouched["value"].iloc[0])
        line = go.Scatter(
            x=[value] * 2,
            y=[labels[0], labels[-1]],
            mode="lines",
            line={"color": INK, "dash": "dot", "width": 1.5},
            hovertemplate=f"untouched: {value:.3f}<extra></extra>",
        )
        figure.add_trace(line, row=number, col=1)


def _bars(part: pd.DataFrame) -> dict[str, object]:
    above, below = part["high"] - part["value"], part["value"] - part["low"]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1.2, "width": 3}


def _add_curve(figure: go.Figure, line: pd.DataFrame, selection: str, label: str, place: int) -> None:
    style = style_of(selection, place)
    ks: Sequence[int] = [0 if row["selection"] == _UNTOUCHED else int(row["k"]) for _, row in line.iterrows()]
    low, high = ([float(value) for value in line[name]] for name in ("low", "high"))
    if not any(map(math.isnan, [*low, *high])):
        band = go.Scatter(
            x=[*ks, *reversed(ks)],
            y=[*high, *reversed(low)],
            mode="lines",
            fill="toself",
            fillcolor=translucent(style.colour, 0.15),
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
        )
        figure.add_trace(band)
    figure.add_trace(
        go.Scatter(
            x=ks,
            y=[float(value) for value in line["value"]],
            mode="lines+markers",
            name=plain(label.replace("_", "-")),
            line={"color": style.colour, "dash": style.dash, "width": style.width},
            marker={"symbol": style.symbol, "size": 7},
        )
    )
