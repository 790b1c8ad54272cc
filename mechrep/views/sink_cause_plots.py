"""What sink neurons cause: every measure's change without them, beside the same cut of other neurons."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechrep.studies.sink_ablation_result import ALL, CUT, MEASURES, SinkCutResult
from mechrep.views.theme import AXIS, INK, counted, plain, style_of, styled

# What is measured, in a few words.
LABELS = {
    "first_norm": "norm at the first position",
    "typical_norm": "norm at the other positions",
    "attention": "attention to the first position, best head",
    "losses": "loss on ordinary text",
    "repeat_norm": "norm at the last copy of a repeated token",
    "continued": "repeats continued",
    "p_next": "probability of one more copy",
}
_UNITS = {"norm": "units of the norm", "share": "share", "nats": "nats per token"}
_LINE, _BETWEEN = 54, 76  # pixels: a cut in a panel; between panels


def sink_cause_figure(result: SinkCutResult) -> go.Figure:
    """One panel per measure, one line per cut: its change with a 95 % interval, and every draw of its controls.

    Args:
        result: what was measured.

    Source: Yona et al. 2025 (arXiv 2503.08908), figure 5, draw norms only; measures and controls are mechrep's.

    Example:
        >>> import torch
        >>> from mechrep.provenance import Provenance
        >>> values = torch.tensor([[9.0, 9.0], [1.0, 1.0], [8.0, 9.0]])
        >>> result = SinkCutResult(
        ...     Provenance({"name": "net"}, {}, {}), layer=0, neurons=[3], cuts=["none", "all", "all"],
        ...     selections=["none", "top", "random"], seeds=[0, 0, 0], units=[[], [[0, 3]], [[0, 5]]],
        ...     token_ids=[7, 8], repeats=9, bos=True, head=[1, 0], **{name: values for name in LABELS},
        ... )
        >>> sink_cause_figure(result).data[0].x
        (-8.0,)
    """
    cuts, summary = result.cut_names, result.summary().set_index(["cut", "measure"])
    height = len(MEASURES) * len(cuts) * _LINE + (len(MEASURES) - 1) * _BETWEEN
    titles = [f"<b>{plain(LABELS[name])}</b>, change in {_UNITS[kind]}" for name, kind in MEASURES.items()]
    figure = make_subplots(len(MEASURES), 1, subplot_titles=titles, vertical_spacing=_BETWEEN / height)
    named: set[str] = set()
    for panel, measure in enumerate(MEASURES, start=1):
        for line, cut in enumerate(cuts):
            row: pd.Series = summary.loc[(cut, measure)]
            _add_line(figure, row, result.draws(cut, measure), line, panel, named)
        figure.add_vline(0, line={"color": INK, "dash": "dot", "width": 1.5}, row=panel, col=1)  # type: ignore[arg-type]
    figure.update_annotations(font_size=13, x=0, xanchor="left")
    texts, tokens = counted(result.losses.shape[1], "text"), counted(len(result.token_ids), "token")
    styled(
        figure,
        title="What is lost without the sink neurons",
        subtitle=f"{result.provenance.model['name']}, layer {result.layer}; {texts}, {tokens} {result.repeats:,} times",
        x="",
        y="",
    )
    labels = [_label(result, cut) for cut in cuts]
    axis = {"tickvals": list(range(len(cuts))), "ticktext": labels, "range": [len(cuts) - 0.4, -0.6]}
    figure.update_xaxes(AXIS | {"showgrid": True})
    figure.update_yaxes(AXIS | axis | {"showgrid": False, "ticks": ""})
    figure.update_layout(height=height + 230, margin={"l": 150, "t": 170, "b": 60})
    return figure.update_layout(legend={"y": 1, "yref": "container", "yanchor": "top", "x": 0})


def _add_line(
    figure: go.Figure, row: pd.Series, draws: dict[str, list[float]], line: int, panel: int, named: set[str]
) -> None:
    change = float(row["change"])
    selections = {CUT: [change], **draws}
    offsets = np.linspace(-0.3, 0.3, max(2, len(selections)))
    bars = {"type": "data", "symmetric": False, "thickness": 1.6, "width": 4}
    bars |= {"array": [max(0.0, row["high"] - change)], "arrayminus": [max(0.0, change - row["low"])]}
    for (selection, changes), offset in zip(selections.items(), offsets, strict=False):
        style, top = style_of(selection), selection == CUT
        name = "the sink neurons" if top else plain(style.label)
        figure.add_scatter(
            x=changes,
            y=[line + offset] * len(changes),
            mode="markers",
            name=name,
            legendgroup=selection,
            showlegend=selection not in named,
            marker={"color": style.colour, "symbol": style.symbol, "size": 10 if top else 7},
            error_x=bars if top else None,
            hovertemplate=f"{name}: %{{x:+.3g}}<extra></extra>",
            row=panel,
            col=1,
        )
        named.add(selection)


def _label(result: SinkCutResult, cut: str) -> str:
    n = len(result.neurons_of(cut))
    if len(result.cut_names) == 1:
        return f"{counted(n, 'sink neuron')}"
    return f"all {n:,} of them" if cut == ALL else "the first alone"
