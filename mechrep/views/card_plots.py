"""A model's card over its training, one small panel per measure on one axis of tokens seen."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechrep.views.theme import ACCENT, AXIS, INK, plain, styled, translucent

_COLUMNS = 2
_PANEL = 230  # pixels
_LINE = 62  # characters


def history_figure(history: pd.DataFrame, name: str, tokens_seen: dict[str, int] | None = None) -> go.Figure:
    """Each measure of the card at each checkpoint, with its 95 % interval where it has one, and its bars as lines.

    Args:
        history: as :func:`mechrep.studies.card_history.card_history` gives it.
        name: of the model.
        tokens_seen: tokens by revision, for the axis; without it revisions stand side by side.

    Example:
        >>> history = pd.DataFrame({"revision": ["step0", "step8"], "value": [0.1, 0.6], "low": [0.0, 0.5]})
        >>> history = history.assign(high=0.7, phenomenon="loops", measure="share", least=0.25, most=0.85)
        >>> figure = history_figure(history, "my-model", {"step0": 0, "step8": 16384})
        >>> len(figure.data)  # band, line, and two bars
        4
    """
    measures = list(dict.fromkeys(history["measure"]))
    rows = -(-len(measures) // _COLUMNS)
    parts = [history[history["measure"] == measure] for measure in measures]
    titles = [_title(str(part["phenomenon"].iloc[0]), str(part["measure"].iloc[0])) for part in parts]
    figure = make_subplots(rows, _COLUMNS, subplot_titles=titles, vertical_spacing=0.35 / rows, horizontal_spacing=0.09)
    for index, part in enumerate(parts):
        places = _places(part["revision"].tolist(), tokens_seen)
        _add_panel(figure, part, places, index // _COLUMNS + 1, index % _COLUMNS + 1)
    figure.update_annotations(font_size=12)
    titled = styled(figure, title="What the model shows over training", subtitle=name, x="", y="")
    for update, axis in ((titled.update_xaxes, {"showline": True, "showgrid": False}), (titled.update_yaxes, {})):
        update(AXIS | axis)
    if tokens_seen is not None:
        titled.update_xaxes(type="log", title_text="tokens seen", row=rows)
        titled.update_xaxes(type="log", dtick=1)
    return titled.update_layout(height=rows * _PANEL + 150, margin={"t": 140}, showlegend=False)


def _title(phenomenon: str, measure: str) -> str:
    """The phenomenon in bold and its measure under it, in lines that fit half of a page."""
    lines = textwrap.wrap(measure, _LINE)
    return f"<b>{plain(phenomenon)}</b><br>" + "<br>".join(plain(line) for line in lines)


def _places(revisions: list[str], tokens_seen: dict[str, int] | None) -> list[float] | list[str]:
    """The untrained model has seen nothing, which a logarithmic axis cannot show: half of the first place after it."""
    if tokens_seen is None:
        return [plain(revision) for revision in revisions]
    smallest = min((value for value in tokens_seen.values() if value > 0), default=1)
    return [float(tokens_seen[revision] or smallest / 2) for revision in revisions]


def _add_panel(figure: go.Figure, part: pd.DataFrame, places: list, row: int, column: int) -> None:
    low, high = part["low"].fillna(part["value"]), part["high"].fillna(part["value"])
    band = go.Scatter(
        x=[*places, *reversed(places)],
        y=[*high, *reversed(low.tolist())],
        mode="lines",
        fill="toself",
        fillcolor=translucent(ACCENT, 0.18),
        line={"width": 0},
        hoverinfo="skip",
    )
    line = go.Scatter(
        x=places,
        y=part["value"],
        mode="lines+markers",
        line={"color": ACCENT, "width": 2},
        marker={"size": 5},
        customdata=np.stack([[plain(name) for name in part["revision"]], low.round(3), high.round(3)], axis=1),
        hovertemplate="%{customdata[0]}<br>%{y:.3f} (%{customdata[1]} to %{customdata[2]})<extra></extra>",
    )
    figure.add_trace(band, row=row, col=column)
    figure.add_trace(line, row=row, col=column)
    for bar in ("least", "most"):
        if not np.isnan(part[bar].iloc[0]):
            height = float(part[bar].iloc[0])
            dotted = go.Scatter(
                x=[places[0], places[-1]],
                y=[height, height],
                mode="lines",
                line={"color": INK, "dash": "dot", "width": 1},
                hoverinfo="skip",
            )
            figure.add_trace(dotted, row=row, col=column)
