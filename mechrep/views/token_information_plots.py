"""Figures of attention by information: which tokens a loop looks at, beside readers that look anywhere."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from mechrep.analyzers.token_information.result import TokenInformationResult
from mechrep.views.theme import ACCENT, AXIS, INK, SEQUENCE, counted, plain, styled

_COLOURS = {"natural": ACCENT, "induced": "#3b82c4", "control": "#747c88"}
_CELL = 34  # pixels per layer


def information_figure(result: TokenInformationResult, *, matched: bool | None = None) -> go.Figure:
    """Bias towards each group, mean over heads, with its 95 % interval over prompts; one marker per condition.

    Args:
        result: of :class:`mechrep.TokenInformation`.
        matched: compare with the reader by distance; by default where there is a profile.

    Example:
        >>> import mechrep
        >>> from mechrep.analyzers.token_information import token_information
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea, the sea, the sea, the sea."], model=model)
        >>> figure = information_figure(token_information(model, corpus, reference=corpus))
        >>> figure.layout.title.text
        'Where the loop looks'
    """
    by_distance = not bool(result.matched.isnan().any()) if matched is None else matched
    table = result.summary(matched=by_distance)
    figure = go.Figure()
    for number, (condition, part) in enumerate(table.groupby("condition", sort=False)):
        colour = _COLOURS.get(str(condition), SEQUENCE[number % len(SEQUENCE)])
        figure.add_scatter(
            x=part["bias"],
            y=[_label(group) for group in part["group"]],
            mode="markers",
            name=plain(condition),
            marker={"color": colour, "size": 9, "symbol": number},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": part["high"] - part["bias"],
                "arrayminus": part["bias"] - part["low"],
                "color": colour,
                "thickness": 1.5,
            },
            customdata=np.stack([part["share_att"], part["share_vis"], part["low"], part["high"]], axis=1),
            hovertemplate="%{y}<br>bias %{x:.2f} (%{customdata[2]:.2f} to %{customdata[3]:.2f})<br>"
            "attention %{customdata[0]:.3f}, visible %{customdata[1]:.3f}<extra></extra>",
        )
    reader = "a reader of the usual distances" if by_distance else "a reader of all visible tokens alike"
    titled = styled(
        figure, title="Where the loop looks", subtitle=_said(result), x=f"attention over that of {reader}", y=""
    )
    titled.add_vline(x=1, line={"color": INK, "dash": "dot", "width": 1})
    titled.update_xaxes(type="log", showgrid=True)
    titled.update_yaxes(AXIS | {"autorange": "reversed", "categoryorder": "array"})
    return titled.update_layout(scattermode="group", height=160 + 34 * len(result.groups))


def head_information_figure(
    result: TokenInformationResult, group: str = "low_surprisal", *, condition: str | None = None
) -> go.Figure:
    """Bias of every head towards one group, as ``log2``: 0 is a reader of all visible tokens alike.

    Args:
        result: of :class:`mechrep.TokenInformation`.
        group: one of ``result.groups``.
        condition: texts of one condition; all by default.

    Example:
        >>> import mechrep
        >>> from mechrep.analyzers.token_information import token_information
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea, the sea, the sea, the sea."], model=model)
        >>> figure = head_information_figure(token_information(model, corpus, reference=corpus))
        >>> len(figure.data[0].z) == model.anatomy.n_layers
        True
    """
    values = result.bias(condition)[..., list(result.groups).index(group)].log2().numpy()
    finite = values[np.isfinite(values)]
    most = float(np.abs(finite).max()) if len(finite) else 1.0
    heads = go.Heatmap(
        z=np.where(np.isfinite(values), values, np.nan),
        zmin=-most,
        zmax=most,
        colorscale=[[0, "#3b82c4"], [0.5, "rgba(127,127,127,0.08)"], [1, ACCENT]],
        colorbar={"title": {"text": "log2 bias"}, "outlinewidth": 0, "thickness": 12},
        hovertemplate="layer %{y}, head %{x}<br>log2 bias %{z:.2f}<extra></extra>",
    )
    where = "" if condition is None else f", {condition}"
    titled = styled(
        go.Figure(heads), title=f"Heads and {_label(group)}", subtitle=_said(result) + where, x="head", y="layer"
    )
    titled.update_xaxes(dtick=1, showline=False)
    titled.update_yaxes(dtick=1, autorange="reversed", showgrid=False)
    return titled.update_layout(height=180 + _CELL * values.shape[0])


def _label(group: str) -> str:
    """A group's name in words."""
    return plain(group.replace("_", " "))


def _said(result: TokenInformationResult) -> str:
    return f"{result.provenance.model['name']}, {counted(len(result.ids), 'text')}, sinks left out"
