"""Figures of natural loops against induced copying: confidence by cycle, the lens over layers, maps of heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechrep.analyzers.conditions.contrast_result import ConditionContrastResult
from mechrep.analyzers.conditions.effects import FIRST, SECOND, HeadEffects
from mechrep.views.theme import ACCENT, AXIS, DASHES, SEQUENCE, counted, plain, styled, translucent

_COLOURS = {"natural": ACCENT, "induced": "#3b82c4", "control": "#747c88"}
_CONFIDENCE = {
    "probability": "probability of the expected token",
    "entropy": "entropy (nats)",
    "rank": "median rank of the expected token",
}
_CELL = 34  # pixels per layer


def confidence_figure(result: ConditionContrastResult) -> go.Figure:
    """Probability, entropy and rank of the expected token, by the number of cycles shown, one line per condition.

    Args:
        result: of :class:`mechrep.ConditionContrast`.

    Example:
        >>> import mechrep
        >>> from mechrep.analyzers.conditions import contrast_conditions
        >>> from mechrep.generation.conditions import natural_condition
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> natural = natural_condition(model, mechrep.generation.sample_prompts(model, 4), max_new_tokens=100)
        >>> confidence_figure(contrast_conditions(model, [natural], copies=1)).layout.title.text
        'Confidence by number of cycles shown'
    """
    frame = result.to_frame()
    figure = make_subplots(1, len(_CONFIDENCE), subplot_titles=list(_CONFIDENCE.values()), horizontal_spacing=0.09)
    for column, measure in enumerate(_CONFIDENCE, start=1):
        for number, name in enumerate(result.groups):
            line = frame[(frame["condition"] == name) & (frame["measure"] == measure)]
            ranked = measure == "rank"
            y = line["median" if ranked else "value"].tolist()
            band = None if ranked else (line["low"].tolist(), line["high"].tolist())
            _add_line(figure, line["copy"].tolist(), y, band, name, number, column)
    figure.update_annotations(font_size=13)
    titled = styled(
        figure, title="Confidence by number of cycles shown", subtitle=_said(result), x="cycles shown", y=""
    )
    titled.update_xaxes(AXIS | {"title": {"text": "cycles shown"}, "dtick": 1})
    titled.update_yaxes(AXIS)
    titled.update_yaxes(type="log", col=3)
    return titled.update_layout(margin={"t": 150}, legend={"y": 1.1})


def lens_figure(result: ConditionContrastResult, copy: int = 1) -> go.Figure:
    """The logit lens: log-probability of the expected token after each layer, one line per condition.

    Args:
        result: of :class:`mechrep.ConditionContrast`.
        copy: cycles shown; a condition without that copy (a control) is drawn with its only one.
    """
    frame, figure = result.lens_frame(), go.Figure()
    for number, name in enumerate(result.groups):
        own = frame[frame["condition"] == name]
        line = own[own["copy"] == (copy if copy in set(own["copy"]) else own["copy"].min())]
        band = (line["low"].tolist(), line["high"].tolist())
        _add_line(figure, line["layer"].tolist(), line["value"].tolist(), band, name, number, None)
    return styled(
        figure,
        title="Where in the model the next token is known",
        subtitle=f"{_said(result)}; logit lens, {counted(copy, 'cycle')} shown",
        x="layer (the residual stream before it)",
        y="log-probability of the expected token (nats)",
    )


def head_contrast_figure(effects: HeadEffects, first: str = FIRST, second: str = SECOND) -> go.Figure:
    """Maps of all heads: the mean effect in either condition, and ``D``, half of what they differ by.

    Args:
        effects: of a result's ``head_effects()``.
        first: the condition that counts positive in ``D``.
        second: the other.

    Raises:
        InputError: a condition without texts.

    Example:
        >>> values = np.array([[[3.0, 0.0]], [[0.0, 0.2]]])
        >>> figure = head_contrast_figure(HeadEffects(values, ["induced", "natural"], ["p", "p"], "made up"))
        >>> [trace.z.shape for trace in figure.data]
        [(1, 2), (1, 2), (1, 2)]
    """
    contrast = effects.contrast(first, second)
    shape = effects.values.shape[1:]
    maps = {first: effects.mean(first), second: effects.mean(second)}
    maps["D"], found = np.zeros(shape), np.zeros((*shape, 4))
    for row in contrast.to_dict("records"):
        place = (row["layer"], row["head"])
        maps["D"][place] = row["D"]
        found[place] = [row["D_low"], row["D_high"], row["fdr"], row["D"]]
    scale = max(float(np.abs(values).max()) for values in maps.values()) or 1.0
    titles = [first, second, f"D: half of ({first} - {second})"]
    figure = make_subplots(1, 3, subplot_titles=[plain(title) for title in titles], horizontal_spacing=0.07)
    for column, (name, values) in enumerate(maps.items(), start=1):
        extra = "; %{customdata[0]:.3f} to %{customdata[1]:.3f}, FDR %{customdata[2]:.3f}" if name == "D" else ""
        trace = go.Heatmap(
            z=values,
            zmin=-scale,
            zmax=scale,
            colorscale="RdBu",
            showscale=column == len(maps),
            customdata=found,
            hovertemplate="layer %{y}, head %{x}: %{z:.3f}" + extra + "<extra></extra>",
        )
        figure.add_trace(trace, row=1, col=column)
    figure.update_annotations(font_size=13)
    n = int(contrast[f"n_{first}"].iloc[0]), int(contrast[f"n_{second}"].iloc[0])
    titled = styled(
        figure,
        title=f"Heads in {first} and {second} repetition",
        subtitle=f"{effects.measure}; {counted(n[0], 'text')} and {counted(n[1], 'text')}",
        x="head",
        y="layer",
    )
    titled.update_xaxes(AXIS | {"title": {"text": "head"}, "dtick": 1, "showgrid": False})
    titled.update_yaxes(AXIS | {"dtick": 1, "showgrid": False})
    return titled.update_layout(height=max(320, shape[0] * _CELL + 200), margin={"t": 130})


def _said(result: ConditionContrastResult) -> str:
    groups = ", ".join(f"{name}: {counted(n, 'text')}" for name, n in result.groups.items())
    return f"{result.provenance.model['name']}; {groups}"


def _add_line(
    figure: go.Figure,
    x: list[int],
    y: list[float],
    band: tuple[list[float], list[float]] | None,
    name: str,
    number: int,
    column: int | None,
) -> None:
    colour = _COLOURS.get(name, SEQUENCE[number % len(SEQUENCE)])
    place: dict[str, Any] = {} if column is None else {"row": 1, "col": column}
    if band is not None:
        low, high = band
        area = go.Scatter(
            x=[*x, *reversed(x)], y=[*high, *reversed(low)], mode="lines", fill="toself",
            fillcolor=translucent(colour, 0.15), line={"width": 0}, hoverinfo="skip", showlegend=False,
        )  # fmt: skip
        figure.add_trace(area, **place)
    line = go.Scatter(
        x=x, y=y, mode="lines+markers", name=plain(name), legendgroup=name, showlegend=column in (None, 1),
        line={"color": colour, "dash": DASHES[number % len(DASHES)], "width": 2}, marker={"size": 7},
    )  # fmt: skip
    figure.add_trace(line, **place)
