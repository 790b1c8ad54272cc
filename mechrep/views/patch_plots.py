"""What the sink patch changes: every measure with its interval, beside the same patch on other neurons."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechrep.studies.patch_result import PatchStudyResult
from mechrep.views.patch_changes import Change, patch_changes
from mechrep.views.theme import AXIS, INK, counted, plain, style_of, styled

_LINE, _BETWEEN = 66, 76  # pixels: a panel; between panels
_UNITS = {"share": "change in points", "norm": "change of the norm", "nats": "change in nats"}
_TITLES = {"loss": "loss on ordinary text"}


def patch_figure(result: PatchStudyResult) -> go.Figure:
    """One panel per measure: its change under the patch, with a 95 % interval where there is one, and every control.

    Filled is the patch, open are the same patch on other neurons; the dotted line is the untouched model.

    Args:
        result: of :func:`mechrep.studies.run_patch_study`.

    Source: mechrep's own; the questions are those of Yona et al. 2025 (arXiv 2503.08908).

    Limits: norms of ordinary positions and attention are one number per model, and have no interval.

    Example:
        >>> import torch
        >>> from mechrep.provenance import Provenance
        >>> two = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
        >>> result = PatchStudyResult(
        ...     Provenance({"name": "a model"}, {"texts": 2}, {}), layer=0, neurons=[3],
        ...     selections=["original", "patched", "random"], seeds=[0, 0, 0], units=[[], [[0, 3]], [[1, 2]]],
        ...     token_ids=[7, 8], repeats=9, bos=True, first_norm=two[:, 0], typical_norm=two[:, 0], repeat_norm=two,
        ...     moved=two, moved_reason="", head=[0, 0], attention=two[:, 0], mean_attention=two[:, 0], continued=two,
        ...     losses=two,
        ... )
        >>> sorted({part.name for part in patch_figure(result).data})
        ['random neurons', 'the patch']
    """
    changes = [change for change in patch_changes(result).values() if not np.isnan(change.change)]
    titles = [f"<b>{plain(_TITLES.get(one.measure, one.measure))}</b>, {_UNITS[one.unit]}" for one in changes]
    height = len(changes) * _LINE + (len(changes) - 1) * _BETWEEN
    figure = make_subplots(len(changes), 1, subplot_titles=titles, vertical_spacing=_BETWEEN / height)
    named: set[str] = set()
    for row, one in enumerate(changes, start=1):
        _add_change(figure, one, row, named)
        figure.add_vline(0, line={"color": INK, "dash": "dot", "width": 1.5}, row=row, col=1)  # type: ignore[arg-type]
    figure.update_annotations(font_size=13, x=0, xanchor="left")
    neurons = counted(len(result.neurons), "neuron")
    tokens = f"{result.repeats:,} repeats of {counted(len(result.token_ids), 'token')}"
    styled(
        figure,
        title="What the patch changes, beside the same patch on other neurons",
        subtitle=f"{result.provenance.model['name']}, {neurons} of layer {result.layer}; {tokens}",
        x="",
        y="",
    )
    figure.update_xaxes(AXIS | {"showgrid": True})
    figure.update_yaxes(AXIS | {"showgrid": False, "showticklabels": False, "ticks": "", "range": [0.5, -0.5]})
    figure.update_layout(height=height + 230, margin={"l": 20, "t": 170, "b": 60})
    return figure.update_layout(legend={"y": 1, "yref": "container", "yanchor": "top", "x": 0})


def _add_change(figure: go.Figure, one: Change, row: int, named: set[str]) -> None:
    scale = 100.0 if one.unit == "share" else 1.0
    shown = {"top": [one.change], **one.controls}
    offsets = np.linspace(-0.35, 0.35, max(2, len(shown)))
    for (selection, changes), offset in zip(shown.items(), offsets, strict=False):
        top = selection == "top"
        style, name = style_of(selection, 1), "the patch" if top else style_of(selection, 1).label
        bars = {"type": "data", "symmetric": False, "thickness": 1.6, "width": 4}
        bars |= {"array": [scale * (one.high - one.change)], "arrayminus": [scale * (one.change - one.low)]}
        figure.add_scatter(
            x=[scale * change for change in changes],
            y=[offset] * len(changes),
            mode="markers",
            name=plain(name),
            legendgroup=selection,
            showlegend=selection not in named,
            marker={"color": style.colour, "symbol": style.symbol, "size": 10 if top else 7},
            error_x=bars if top and one.over else None,
            hovertemplate=f"{plain(name)}: %{{x:+.3g}}<extra></extra>",
            row=row,
            col=1,
        )
        named.add(selection)
