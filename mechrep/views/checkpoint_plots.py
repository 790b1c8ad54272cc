"""Figures of training: all mechanisms on one axis with their change points, and what becomes of the same prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechrep.errors import InputError
from mechrep.studies.checkpoints.result import CheckpointResult
from mechrep.views.theme import ACCENT, AXIS, INK, SEQUENCE, counted, plain, styled, translucent

_PANEL = 150  # pixels
_NEVER, _NATURAL, _COPIED = "neither", "loops naturally", "copies when shown twice"
_STATES = {_NATURAL: ACCENT, _COPIED: "#3b82c4", _NEVER: "#747c88"}


def mechanisms_figure(result: CheckpointResult, measures: Sequence[str] | None = None) -> go.Figure:
    """Each measure over training, one panel under the other on one axis, with 95 % intervals.

    A line marks the change point of a clear step, a band its interval; both lie between two checkpoints.

    Args:
        result: of :func:`mechrep.studies.over_checkpoints`.
        measures: some of them; all by default.

    Example:
        >>> from mechrep.studies.checkpoints import over_checkpoints
        >>> def size(model): return {"weights": float(model.tl.W_E.abs().sum())}
        >>> figure = mechanisms_figure(over_checkpoints([size], revisions=["step0", "step512"]))
        >>> figure.layout.title.text
        'Mechanisms over training'
    """
    chosen = result.measures if measures is None else list(measures)
    frame, points = result.to_frame(), result.change_points().set_index("measure")
    places, axis = _places(result)
    figure = make_subplots(len(chosen), 1, shared_xaxes=True, subplot_titles=[plain(name) for name in chosen])
    for row, measure in enumerate(chosen, start=1):
        result.of(measure)  # refuses an unknown name
        _add_series(figure, frame[frame["measure"] == measure], places, SEQUENCE[(row - 1) % len(SEQUENCE)], row)
        if measure in points.index and bool(points.loc[measure, "clear"]):
            by_name = dict(zip(result.revisions, places, strict=True))
            _add_change(figure, points.loc[measure], by_name, row, logarithmic=axis != "revision")
    figure.update_annotations(font_size=13)
    subtitle = f"{result.provenance.model['name']}, {counted(len(result.revisions), 'checkpoint')}"
    titled = styled(figure, title="Mechanisms over training", subtitle=subtitle, x="", y="")
    titled.update_xaxes(AXIS | {"showgrid": False, "showline": True})
    titled.update_yaxes(AXIS)
    if axis == "revision":
        titled.update_xaxes(tickvals=places, ticktext=[plain(name) for name in result.revisions], row=len(chosen))
    else:
        titled.update_xaxes(type="log", dtick=1)
    titled.update_xaxes(title_text=axis, row=len(chosen))
    return titled.update_layout(height=150 + _PANEL * len(chosen), showlegend=False)


def flow_figure(result: CheckpointResult, revisions: Sequence[str] | None = None) -> go.Figure:
    """What becomes of the same prompts from checkpoint to checkpoint: loops naturally, copies when shown, or neither.

    Args:
        result: with the measure ``"loops"``.
        revisions: checkpoints side by side; by default up to eight, spread evenly.

    Raises:
        InputError: a result without that measure, or fewer than two checkpoints.

    Example:
        >>> from mechrep.provenance import Provenance
        >>> units = {"loops_naturally": [[1.0, 1.0], [0.0, 1.0]], "copies_in_icl": [[0.0, 0.0], [1.0, 0.0]]}
        >>> provenance, facts = Provenance({"name": "mine"}, {}, {}), ([0.0, 8.0], [0.0, 64.0], ["", ""])
        >>> result = CheckpointResult(provenance, ["step0", "step8"], *facts, units, dict.fromkeys(units, "loops"))
        >>> figure = flow_figure(result)
        >>> sum(figure.data[0].link.value)
        2.0
    """
    columns = ("loops_naturally", "copies_in_icl")
    if not set(columns) <= set(result.measures):
        raise InputError(f"measures {result.measures}", f"{list(columns)}", 'measure "loops" too')
    if revisions is None:
        spread = np.linspace(0, len(result.revisions) - 1, min(8, len(result.revisions))).round().astype(int)
        chosen: list[str] = [result.revisions[int(place)] for place in spread]
    else:
        chosen = list(revisions)
    unknown = [name for name in chosen if name not in result.revisions]
    if unknown or len(chosen) < 2:
        raise InputError(f"revisions {chosen}", f"two or more of {list(result.revisions)}", "correct them")
    known = list(result.revisions)
    numbers = [known.index(str(name)) for name in chosen]
    loops, copies = (result.of(name)[numbers] for name in columns)
    states = np.where(loops > 0.5, 0, np.where(np.nan_to_num(copies) > 0.5, 1, 2))  # [checkpoint prompt]
    names = list(_STATES)
    links = [
        (3 * place + a, 3 * (place + 1) + b, float(((states[place] == a) & (states[place + 1] == b)).sum()))
        for place in range(len(chosen) - 1)
        for a in range(3)
        for b in range(3)
    ]
    source, target, value = zip(*(link for link in links if link[2] > 0), strict=True)
    sankey = go.Sankey(
        arrangement="snap",
        node={
            "label": [""] * (3 * len(chosen)),  # names of all nodes would lie on top of each other
            "customdata": [plain(f"{revision}: {name}") for revision in chosen for name in names],
            "hovertemplate": "%{customdata}, %{value:.0f} prompts<extra></extra>",
            "color": [_STATES[name] for _ in chosen for name in names],
            "pad": 14,
            "thickness": 12,
            "line": {"width": 0},
        },
        link={
            "source": source,
            "target": target,
            "value": value,
            "color": [translucent(_STATES[names[node % 3]], 0.3) for node in source],
            "hovertemplate": "%{source.customdata} → %{target.customdata}, %{value:.0f} prompts<extra></extra>",
        },
    )
    subtitle = f"{result.provenance.model['name']}, the same {counted(loops.shape[1], 'prompt')} at every checkpoint"
    figure = styled(go.Figure(sankey), title="What becomes of each prompt", subtitle=subtitle, x="", y="")
    paper = {"xref": "paper", "yref": "paper", "showarrow": False}
    for place, revision in enumerate(chosen):
        figure.add_annotation(text=plain(revision), x=place / (len(chosen) - 1), y=-0.02, yanchor="top", **paper)
    legend = "   ".join(f'<span style="color:{colour}">■</span> {name}' for name, colour in _STATES.items())
    return figure.add_annotation(text=legend, x=0, y=1.02, xanchor="left", yanchor="bottom", **paper)


def _places(result: CheckpointResult) -> tuple[list[float], str]:
    """Places on the axis and its title; the untrained model, at 0, stands half of the first place before it."""
    for values, axis in ((result.tokens, "tokens seen"), (result.steps, "training step")):
        numbers = np.array(values, dtype=float)
        if not np.isnan(numbers).any() and len(set(numbers.tolist())) == len(numbers) and (numbers > 0).any():
            return np.where(numbers > 0, numbers, numbers[numbers > 0].min() / 2).tolist(), axis
    return [float(place) for place in range(len(result.revisions))], "revision"


def _add_series(figure: go.Figure, part: pd.DataFrame, places: list[float], colour: str, row: int) -> None:
    low, high = part["low"].fillna(part["value"]), part["high"].fillna(part["value"])
    known = part["value"].notna().to_numpy()
    x = np.array(places)[known]
    figure.add_scatter(
        x=[*x, *x[::-1]],
        y=[*high[known], *low[known][::-1]],
        mode="lines",
        fill="toself",
        fillcolor=translucent(colour, 0.18),
        line={"width": 0},
        hoverinfo="skip",
        row=row,
        col=1,
    )
    figure.add_scatter(
        x=x,
        y=part["value"][known],
        mode="lines+markers",
        line={"color": colour, "width": 2},
        marker={"size": 5},
        customdata=np.stack(
            [[plain(name) for name in part["revision"][known]], low[known].round(3), high[known].round(3)], axis=1
        ),
        hovertemplate="%{customdata[0]}<br>%{y:.3f} (%{customdata[1]} to %{customdata[2]})<extra></extra>",
        row=row,
        col=1,
    )


def _add_change(figure: go.Figure, point: pd.Series, place: dict[str, float], row: int, *, logarithmic: bool) -> None:
    """The interval as a band, and the step in the middle of the two checkpoints that it lies between."""
    panel: dict[str, Any] = {"row": row, "col": 1}
    first, last = place[point["earliest"]], place[point["latest"]]
    figure.add_vrect(x0=first, x1=last, fillcolor=INK, opacity=0.12, line_width=0, **panel)
    before, after = place[point["before"]], place[point["after"]]
    middle = (before * after) ** 0.5 if logarithmic else (before + after) / 2
    figure.add_vline(x=middle, line={"color": INK, "dash": "dot", "width": 1.5}, **panel)
