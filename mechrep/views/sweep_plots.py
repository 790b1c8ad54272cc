"""Figures of sweeps: what changing k neurons does to repetition, and to the loss on other text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mechrep.studies.loss import LossResult
from mechrep.studies.sweep_result import SweepResult
from mechrep.views.theme import INK, Style, counted, plain, style_of, styled, translucent

_WIDEST_LINEAR = 10  # perplexities that lie further apart than this factor get a logarithmic axis
_VERBS = {"zero": "cut", "deactivation": "cut", "activation": "boosted"}


def plot_sweep(sweep: SweepResult) -> go.Figure:
    """Share of repeating texts against the number of neurons that were cut or boosted.

    The top neurons have a 95 % Wilson interval over texts, the controls the central 95 % of their draws (with few
    draws that is about their smallest and largest).  All lines begin at ``k = 0``, the untouched model.

    Args:
        sweep: of :func:`mechrep.studies.deactivation_sweep` or :func:`mechrep.studies.activation_sweep`.

    Source: Hiraoka & Inui 2025 (arXiv 2410.13497), figures on deactivation and activation.

    Example:
        >>> from mechrep.provenance import Provenance
        >>> outcomes = [
        ...     {"selection": s, "k": k, "seed": 0, "text": "a", "repeating": s != "top",
        ...      "escaped_at": 3.0 if s == "top" else None, "relooped": False, "new_period": None}
        ...     for s, k in [("none", 0), ("top", 5), ("random", 5)]
        ... ]
        >>> sweep = SweepResult(Provenance({"name": "net"}, {}, {}), "deactivation", "mechrep", outcomes)
        >>> {trace.name: trace.y.tolist() for trace in plot_sweep(sweep).data if trace.mode == "lines+markers"}
        {'random neurons': [1.0, 1.0], 'top neurons': [1.0, 0.0]}
    """
    table, figure = sweep.summary(), go.Figure()
    table = table.assign(over=np.where(table["draws"] > 1, "draws", "texts"))
    hover = (
        "%{fullData.name}, k = %{customdata[0]}<br>%{y:.1%} of texts repeat"
        "<br>95 %: %{customdata[1]:.1%} to %{customdata[2]:.1%} over %{customdata[3]}<extra></extra>"
    )
    _draw_selections(figure, table, "share", hover)
    cut = sweep.kind == "deactivation"
    texts = counted(int(table["texts"].max()), "looping text" if cut else "loop-free text")
    styled(
        figure,
        title="Texts that still repeat when neurons are cut"
        if cut
        else "Texts that begin to repeat when neurons are boosted",
        subtitle=f"{sweep.provenance.model['name']}, {texts}",
        x=f"neurons {_VERBS[sweep.kind]}, k (logarithmic, 0 apart)",
        y="share of texts that repeat",
    )
    _number_axis(figure, table["k"].tolist())
    return figure.update_yaxes(tickformat=".0%", range=[-0.03, 1.05], tickvals=[0, 0.25, 0.5, 0.75, 1])


def plot_perplexity(loss_result: LossResult) -> go.Figure:
    """Perplexity on held-out text against the number of neurons that were cut or boosted.

    The top neurons have a 95 % bootstrap interval of the rise over windows of text, the controls the range of their
    draws round the mean loss.

    Args:
        loss_result: of :func:`mechrep.studies.loss_sweep`.

    Source: the question is that of Hiraoka & Inui 2025 (arXiv 2410.13497); see :func:`mechrep.studies.loss_sweep` for
    what is mechrep's own.

    Example:
        >>> import torch
        >>> from mechrep.provenance import Provenance
        >>> cells = [["none", 0, 0], ["top", 5, 0], ["random", 5, 0], ["random", 5, 1]]
        >>> losses = torch.tensor([[2.0, 2.0], [2.5, 2.5], [2.0, 2.0], [2.2, 2.2]])
        >>> result = LossResult(Provenance({"name": "net"}, {}, {}), "zero", cells, losses)
        >>> plot_perplexity(result).data[-1].y.round(2).tolist()
        [7.39, 12.18]
    """
    table, figure = perplexity_summary(loss_result), go.Figure()
    hover = (
        "%{fullData.name}, k = %{customdata[0]}<br>perplexity %{y:.2f}"
        "<br>%{customdata[1]:.2f} to %{customdata[2]:.2f} over %{customdata[3]}<extra></extra>"
    )
    _draw_selections(figure, table, "perplexity", hover)
    base = float(table["perplexity"].iloc[0])
    figure.add_hline(y=base, line={"color": INK, "width": 1.5, "dash": "dot"}, layer="below")
    verb = _VERBS.get(loss_result.op, "boosted")
    windows = counted(loss_result.losses.shape[1], "window")
    wide = table["perplexity"].max() > _WIDEST_LINEAR * table["perplexity"].min()
    styled(
        figure,
        title=f"Perplexity on held-out text when neurons are {verb}",
        subtitle=f"{loss_result.provenance.model['name']}, {windows} of text; untouched model {base:.2f}",
        x=f"neurons {verb}, k (logarithmic, 0 apart)",
        y="perplexity (logarithmic)" if wide else "perplexity",
    )
    _number_axis(figure, table["k"].tolist())
    return figure.update_yaxes(type="log" if wide else "linear")


def perplexity_summary(result: LossResult) -> pd.DataFrame:
    """One row per selection and k: perplexity of the mean loss over draws, and the interval that is drawn.

    Example:
        >>> import torch
        >>> from mechrep.provenance import Provenance
        >>> result = LossResult(Provenance({}, {}, {}), "zero", [["none", 0, 0], ["top", 1, 0]], torch.zeros(2, 3))
        >>> perplexity_summary(result)["perplexity"].tolist()
        [1.0, 1.0]
    """
    frame, rows = result.to_frame(), []
    base = float(frame["loss"].iloc[0])
    for (selection, k), cell in frame.groupby(["selection", "k"], sort=False):
        several = len(cell) > 1
        low = cell["loss"].min() if several else base + cell["low"].iloc[0]
        high = cell["loss"].max() if several else base + cell["high"].iloc[0]
        middle = float(cell["loss"].mean())
        row = {"selection": selection, "k": k, "draws": len(cell), "loss": middle, "rise": middle - base}
        rows.append(row | {"perplexity": math.exp(middle), "low": math.exp(low), "high": math.exp(high)})
        rows[-1]["over"] = "draws" if several else "windows"
    return pd.DataFrame(rows)


def number_positions(ks: Sequence[int]) -> dict[int, float]:
    """Where each k stands on the axis: its logarithm, and 0 a step to the left of the smallest.

    Example:
        >>> number_positions([0, 10, 100])
        {0: 0.5, 10: 1.0, 100: 2.0}
    """
    positive = sorted({k for k in ks if k > 0})
    first = math.log10(positive[0]) if positive else 0.0
    step = (math.log10(positive[-1]) - first) / (2 * (len(positive) - 1)) if len(positive) > 1 else 0.5
    return {0: first - max(step, 0.2)} | {k: math.log10(k) for k in positive}


def _draw_selections(figure: go.Figure, table: pd.DataFrame, column: str, hover: str) -> None:
    """A band and a line per selection; the controls first, so that the top neurons lie over them."""
    places, base = number_positions(table["k"].tolist()), table[table["selection"] == "none"]
    names = [name for name in table["selection"].unique() if name not in ("none", "top")]
    drawn = [*names, *(["top"] if (table["selection"] == "top").any() else [])]
    # Every line begins at the untouched model, whose own interval belongs to the top neurons' texts.
    for position, name in enumerate(drawn):
        part = pd.concat([base, table[table["selection"] == name]])
        if name != "top":
            part = part.assign(
                low=part["low"].mask(part["k"] == 0, part[column]), high=part["high"].mask(part["k"] == 0, part[column])
            )
        x, style = part["k"].map(places).to_numpy(), style_of(name, position)
        figure.add_scatter(
            **_band(x, part, style), legendgroup=name, showlegend=False, hoverinfo="skip", name=plain(style.label)
        )
        figure.add_scatter(
            x=x,
            y=part[column].to_numpy(),
            name=plain(style.label),
            legendgroup=name,
            legendrank=0 if name == "top" else 1000,
            mode="lines+markers",
            line={"color": style.colour, "dash": style.dash, "width": style.width},
            marker={
                "color": style.colour,
                "symbol": style.symbol,
                "size": 9 if name == "top" else 8,
                "line": {"color": style.colour, "width": 1.6},
            },
            customdata=part[["k", "low", "high", "over"]].to_numpy(),
            hovertemplate=hover,
        )
    if not drawn:
        figure.add_scatter(
            x=[places[0]],
            y=base[column].to_numpy(),
            name="untouched model",
            mode="markers",
            marker={"color": INK, "size": 9},
        )


def _band(x: np.ndarray, part: pd.DataFrame, style: Style) -> dict[str, object]:
    return {
        "x": np.concatenate([x, x[::-1]]),
        "y": np.concatenate([part["high"], part["low"][::-1]]),
        "mode": "lines",
        "line": {"width": 0},
        "fill": "toself",
        "fillcolor": translucent(style.colour, 0.16),
    }


def _number_axis(figure: go.Figure, ks: Sequence[int]) -> None:
    """Label the numbers that were tried, not the powers of ten between them."""
    places = number_positions(ks)
    figure.update_xaxes(tickmode="array", tickvals=list(places.values()), ticktext=[f"{k:,}" for k in places])
