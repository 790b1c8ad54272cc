"""Figures of heads over training: maps by condition and checkpoint, specialisation, and agreement of conditions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from mechrep.errors import InputError
from mechrep.studies.checkpoints.head_effects import INDUCED, INDUCTION, NATURAL
from mechrep.studies.checkpoints.head_history import ELIGIBLE, HeadHistory
from mechrep.views.theme import ACCENT, AXIS, DASHES, INK, plain, styled, translucent

CONDITION_WORDS = {
    NATURAL: "natural loops",
    INDUCED: "induced copying",
    ELIGIBLE: "induced copying, texts that do not loop",
    INDUCTION: "induction score",
}
_COLOURS = {NATURAL: ACCENT, INDUCED: "#3b82c4", ELIGIBLE: "#7a74e6", INDUCTION: "#5d8a3a"}
_MAPS = 6  # checkpoints side by side
_CELL, _PANEL = 26, 190  # pixels: of a layer in a map, of a panel of curves


def head_maps_figure(history: HeadHistory, revisions: Sequence[str] | None = None) -> go.Figure:
    """What every head does, one row of maps per condition and one column per checkpoint.

    All maps of direct effects share one scale; the induction score has its own, 0 to 1.  A map with too few texts is
    empty.

    Args:
        history: of the heads.
        revisions: checkpoints side by side; by default up to six, spread evenly.

    Raises:
        InputError: no checkpoint, or one that is not in the history.
    """
    known = list(history.revisions)
    if revisions is None:
        spread = np.linspace(0, len(known) - 1, min(_MAPS, len(known))).round().astype(int)
        chosen = [known[int(place)] for place in spread]
    else:
        chosen = list(revisions)
    if not chosen or not set(chosen) <= set(known):
        raise InputError(f"revisions {chosen}", f"some of {known}", "correct them")
    conditions = (NATURAL, INDUCED, INDUCTION)
    numbers = [known.index(name) for name in chosen]
    means = {condition: history.means(condition)[numbers] for condition in conditions}
    scale = max(_largest(means[NATURAL]), _largest(means[INDUCED])) or 1.0
    figure = make_subplots(
        len(conditions),
        len(chosen),
        column_titles=[plain(name) for name in chosen],
        row_titles=[CONDITION_WORDS[condition] for condition in conditions],
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.015,
        vertical_spacing=0.06,
    )
    for row, condition in enumerate(conditions, start=1):
        for column in range(len(chosen)):
            trace = go.Heatmap(
                z=means[condition][column],
                coloraxis="coloraxis2" if condition == INDUCTION else "coloraxis",
                hovertemplate="layer %{y}, head %{x}: %{z:.3f}<extra></extra>",
            )
            figure.add_trace(trace, row=row, col=column + 1)
    layers = history.natural.shape[2]
    figure.update_annotations(font_size=12)
    titled = styled(
        figure,
        title="What every head does, by condition and checkpoint",
        subtitle=f"{history.provenance.model['name']}; direct effect on the logit difference, and attention",
        x="",
        y="",
    )
    titled.update_xaxes(AXIS | {"showgrid": False, "dtick": 1})
    titled.update_yaxes(AXIS | {"showgrid": False, "dtick": 1})
    titled.update_xaxes(title_text="head", row=len(conditions))
    titled.update_yaxes(title_text="layer", col=1)
    bar = {"thickness": 10, "len": 0.6, "x": 1.07}
    return titled.update_layout(
        coloraxis={"colorscale": "RdBu", "cmin": -scale, "cmax": scale, "colorbar": bar | {"y": 0.68}},
        coloraxis2={"colorscale": "Greens", "cmin": 0, "cmax": 1, "colorbar": bar | {"y": 0.15, "len": 0.3}},
        height=max(420, len(conditions) * layers * _CELL + 220),
        margin={"t": 140, "r": 110},
    )


def specialisation_figure(curves: pd.DataFrame, name: str) -> go.Figure:
    """How concentrated the heads' effects are over training, one line per condition, with its control dotted.

    Args:
        curves: of :func:`mechrep.studies.checkpoints.specialisation_curves`.
        name: of the model.

    Example:
        >>> rows = [(r, "natural", 0.5, 0.4, 0.6, 0.2, 0.3, 20) for r in ("step0", "step8")]
        >>> columns = ["revision", "condition", "value", "low", "high", "null", "null_high", "n"]
        >>> specialisation_figure(pd.DataFrame(rows, columns=columns), "mine").layout.title.text
        'Specialisation of the heads over training'
    """
    figure = go.Figure()
    for number, (condition, part) in enumerate(curves.groupby("condition", sort=False)):
        if part["value"].isna().all():
            continue
        colour, label = _COLOURS[str(condition)], CONDITION_WORDS[str(condition)]
        _add_curve(figure, part, label, colour, DASHES[number % len(DASHES)])
        control = go.Scatter(
            x=_names(part["revision"]), y=part["null_high"], mode="lines",
            line={"color": colour, "dash": "dot", "width": 1}, name=f"{label}: control", showlegend=False,
            hovertemplate="%{x}<br>97.5 % of the control: %{y:.2f}<extra></extra>",
        )  # fmt: skip
        figure.add_trace(control)
    titled = styled(
        figure,
        title="Specialisation of the heads over training",
        subtitle=f"{name}; Gini coefficient of the mean effects, 95 % intervals; dotted: 97.5 % of the control",
        x="checkpoint",
        y="Gini coefficient",
    )
    return titled.update_yaxes(range=[0, 1]).update_layout(margin={"t": 150})


def agreement_figure(agreement: pd.DataFrame, name: str) -> go.Figure:
    """How alike two conditions are in their heads over training, one panel per pair.

    Grey: the 97.5 % of both controls, the larger; dotted: the smaller reliability of the two conditions.

    Args:
        agreement: of :func:`mechrep.studies.checkpoints.agreement_curves`.
        name: of the model.
    """
    pairs = list(agreement.groupby(["first", "second"], sort=False))
    titles = [f"{CONDITION_WORDS[str(a)]} and {CONDITION_WORDS[str(b)]}" for (a, b), _ in pairs]
    figure = make_subplots(len(pairs), 1, shared_xaxes=True, subplot_titles=titles)
    for row, ((first, _), part) in enumerate(pairs, start=1):
        _add_curve(figure, part, titles[row - 1], _COLOURS[str(first)], "solid", row=row)
        lines = {
            "controls": (part[["random_high", "layer_high"]].max(axis=1), "solid"),
            "halves of one condition": (part[["reliability_first", "reliability_second"]].min(axis=1), "dot"),
        }
        for label, (values, dash) in lines.items():
            line = {"color": INK, "width": 1.2, "dash": dash}
            trace = go.Scatter(
                x=_names(part["revision"]), y=values, mode="lines", line=line, name=label, showlegend=row == 1,
                hovertemplate=f"%{{x}}<br>{label}: %{{y:.2f}}<extra></extra>",
            )  # fmt: skip
            figure.add_trace(trace, row=row, col=1)
    figure.update_annotations(font_size=13)
    titled = styled(
        figure,
        title="Do the same heads carry both?",
        subtitle=f"{name}; overlap of what heads do, 95 % intervals",
        x="",
        y="",
    )
    titled.update_xaxes(AXIS | {"showgrid": False, "showline": True})
    titled.update_yaxes(AXIS | {"range": [0, 1.05]})
    titled.update_xaxes(title_text="checkpoint", row=len(pairs))
    return titled.update_layout(height=190 + _PANEL * len(pairs), margin={"t": 150})


def _add_curve(
    figure: go.Figure, part: pd.DataFrame, label: str, colour: str, dash: str, row: int | None = None
) -> None:
    """A line with error bars; what is not known leaves a gap."""
    trace = go.Scatter(
        x=_names(part["revision"]),
        y=part["value"],
        error_y={
            "array": part["high"] - part["value"],
            "arrayminus": part["value"] - part["low"],
            "symmetric": False,
            "color": translucent(colour, 0.5),
            "thickness": 1.2,
        },
        mode="lines+markers",
        name=label,
        showlegend=row is None,
        line={"color": colour, "dash": dash, "width": 2},
        marker={"size": 6},
        hovertemplate="%{x}<br>%{y:.2f}<extra></extra>",
    )
    place: dict[str, Any] = {} if row is None else {"row": row, "col": 1}
    figure.add_trace(trace, **place)


def _names(revisions: pd.Series) -> list[str]:
    return [plain(name) for name in revisions]


def _largest(values: Float[np.ndarray, "_ _ _"]) -> float:
    return float(np.nanmax(np.abs(values))) if (~np.isnan(values)).any() else 0.0
