"""Figures of the section on cuts: every circuit beside its controls, and every head cut alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechrep.ablation.old_study import HeadSweepResult
from mechrep.figures import (
    AXIS,
    COLUMNS,
    INK,
    counted,
    finished,
    panel_height,
    panels,
    place_of,
    plain,
    style_of,
    styled,
    tick_step,
)
from mechrep.report.old_effects import OUTCOMES, Effect, effects_of
from mechrep.report.old_head_words import name_of
from mechrep.report.page import decimals
from mechrep.studies.heads import JOINT, CircuitCut

SELECTIONS = {
    "top": "the cut",
    "random": "random",
    "layer_matched": "layer-matched",
    "activation_matched": "activation-matched",
    "bos_matched": "BOS-matched",
}
# Lightest in the middle, and dark at both ends for every kind of colour blindness; opaque, so it reads on any page.
_CHANGES = [[0, "#8c3a0b"], [0.25, "#e39a4f"], [0.5, "#f6f4ef"], [0.75, "#7f9fcf"], [1, "#22417f"]]
_LINE, _BETWEEN = 50, 76  # pixels: a circuit in a panel; between panels
_WRITTEN = 32  # heads side by side, and layers, whose values fit into their cells
_SIGNIFICANT = 0.05


def cuts_figure(cuts: Sequence[CircuitCut], model_name: str) -> go.Figure:
    """One panel per outcome, one line per circuit: its change with a 95 % interval, and every draw of its controls.

    Args:
        cuts: at least one.
        model_name: for the subtitle.
    """
    lines = [(cut, part) for cut in cuts for part in _parts(cut)]
    effects = [
        {(one.outcome, one.copy): one for one in effects_of(cut.result, cut.circuit.name, part)} for cut, part in lines
    ]
    measured = {key: one for mine in reversed(effects) for key, one in mine.items()}  # some cuts measure less
    wanted = [measured[key] for key in OUTCOMES if key in measured and key[0] != "copy_loss_drop" and key[1] != 2]
    inside = len(lines) * _LINE
    height = len(wanted) * inside + (len(wanted) - 1) * _BETWEEN
    titles = [f"<b>{plain(OUTCOMES[one.outcome, one.copy][1])}</b>, {_unit(one)}" for one in wanted]
    figure = make_subplots(len(wanted), 1, subplot_titles=titles, vertical_spacing=_BETWEEN / max(height, 1))
    named: set[str] = set()
    for row, one in enumerate(wanted, start=1):
        for line, mine in enumerate(effects):
            if (one.outcome, one.copy) in mine:
                _add_line(figure, mine[one.outcome, one.copy], line, row, named)
        figure.add_vline(0, line={"color": INK, "dash": "dot", "width": 1.5}, row=row, col=1)  # type: ignore[arg-type]
    figure.update_annotations(font_size=13, x=0, xanchor="left")
    texts = counted(max(one.n for one in wanted), "text")
    styled(
        figure,
        title="What each cut changes, beside its controls",
        subtitle=f"{model_name}, up to {texts}",
        x="",
        y="",
    )
    labels = [_label(cut, part) for cut, part in lines]
    axis = {"tickvals": list(range(len(lines))), "ticktext": labels, "range": [len(lines) - 0.4, -0.6]}
    figure.update_xaxes(AXIS | {"showgrid": True})
    figure.update_yaxes(AXIS | axis | {"showgrid": False, "ticks": ""})
    figure.update_layout(height=height + 230, margin={"l": 180, "t": 170, "b": 60})
    return figure.update_layout(legend={"y": 1, "yref": "container", "yanchor": "top", "x": 0})


def single_heads_figure(sweep: HeadSweepResult, model_name: str) -> go.Figure:
    """What cutting each head alone changes: a panel per outcome, a cell per head, a star where Holm's p < 0.05."""
    measures = [m for m in sweep.measures if m["outcome"] != "copy_loss_drop" and m["copy"] in (None, 0, 1)]
    tables = [sweep.tests(m["outcome"], m["copy"]) for m in measures if _texts(sweep, m) > 1]
    measures = [m for m in measures if _texts(sweep, m) > 1]
    shape = (int(tables[0]["layer"].max()) + 1, int(tables[0]["head"].max()) + 1)
    titles = []
    for measure, table in zip(measures, tables, strict=True):
        widest = float(table["effect"].abs().max())
        name = OUTCOMES[measure["outcome"], measure["copy"]][1].replace("perplexity", "loss")
        unit = "share" if measure["trials"] else "nats"
        titles.append(f"<b>{plain(name)}</b><br>{unit}; colours from −{widest:.2g} to +{widest:.2g}")
    figure = panels(titles, panel_height(shape[0]))
    for index, table in enumerate(tables):
        _add_changes(figure, table, shape, index)
    finished(
        figure,
        title="What cutting each head alone changes",
        subtitle=f"{model_name}; * Holm’s p < {_SIGNIFICANT:g} over {shape[0] * shape[1]} heads",
        x="head",
        y="layer",
    )
    step = tick_step(shape[1] * min(COLUMNS, len(tables)))
    figure.update_xaxes(range=[-0.5, shape[1] - 0.5], dtick=step)
    return figure.update_yaxes(range=[-0.5, shape[0] - 0.5], dtick=tick_step(shape[0]))


def _texts(sweep: HeadSweepResult, measure: dict) -> int:
    return len(sweep.texts[list(sweep.measures).index(measure)])


def _add_changes(figure: go.Figure, table, shape: tuple[int, int], index: int) -> None:
    z, stars = np.full(shape, np.nan), np.full(shape, False)
    hover = np.full(shape, "", dtype=object)
    for row in table.itertuples(index=False):
        z[row.layer, row.head], stars[row.layer, row.head] = row.effect, row.holm < _SIGNIFICANT
        ends = f"{row.effect_low:.3f} to {row.effect_high:.3f}"
        hover[row.layer, row.head] = f"95 %: {ends}<br>p = {row.p:.2g}, Holm {row.holm:.2g}"
    fits = shape[1] * 2 <= _WRITTEN and shape[0] <= _WRITTEN
    text = [
        [(decimals(value, sign=True) if fits else "") + "*" * bool(star) for value, star in zip(*rows, strict=True)]
        for rows in zip(z, stars, strict=True)
    ]
    widest = float(np.nanmax(np.abs(z))) or 1.0
    figure.add_heatmap(
        x=np.arange(shape[1]),
        y=np.arange(shape[0]),
        z=z,
        zmin=-widest,
        zmax=widest,
        colorscale=_CHANGES,
        showscale=False,
        xgap=int(fits),
        ygap=int(fits),
        text=text,
        texttemplate="%{text}",
        hovertext=hover,
        hovertemplate="L%{y} H%{x}: %{z:+.3f}<br>%{hovertext}<extra></extra>",
        **place_of(index),
    )


def _add_line(figure: go.Figure, effect: Effect, line: int, row: int, named: set[str]) -> None:
    factor = effect.scale.factor
    selections = {"top": [effect.change], **effect.controls}
    offsets = np.linspace(-0.3, 0.3, max(2, len(selections)))
    for (selection, changes), offset in zip(selections.items(), offsets, strict=False):
        style, name, top = style_of(selection, 1), SELECTIONS.get(selection, plain(selection)), selection == "top"
        bars = {"symmetric": False, "array": [factor * (effect.high - effect.change)], "thickness": 1.6, "width": 4}
        bars |= {"type": "data", "arrayminus": [factor * (effect.change - effect.low)]}
        figure.add_scatter(
            x=[factor * change for change in changes],
            y=[line + offset] * len(changes),
            mode="markers",
            name=name,
            legendgroup=selection,
            showlegend=selection not in named,
            marker={"color": style.colour, "symbol": style.symbol, "size": 10 if top else 7},
            error_x=bars if top else None,
            hovertemplate=f"{name}: %{{x:+.3g}} {effect.scale.unit}<extra></extra>",
            row=row,
            col=1,
        )
        named.add(selection)


def _parts(cut: CircuitCut) -> list[str]:
    return ["whole", *(cut.circuit.kinds if len(cut.circuit.kinds) > 1 else ())]


def _label(cut: CircuitCut, part: str) -> str:
    if part != "whole":
        return f"these {part} alone<br>{counted(len(getattr(cut.circuit, part)), part.removesuffix('s'))}"
    circuit = cut.circuit
    few = not circuit.neurons and len(circuit.heads) <= 2
    what = ", ".join(name_of(head) for head in circuit.heads) if few else _contents(cut)
    name = "heads and neurons" if circuit.name == JOINT else plain(circuit.name)
    return f"{name}<br>{what}{', everywhere' * (cut.when == 'all')}"


def _contents(cut: CircuitCut) -> str:
    numbers = [(len(cut.circuit.heads), "head"), (len(cut.circuit.neurons), "neuron")]
    return ", ".join(counted(number, what) for number, what in numbers if number)


def _unit(effect: Effect) -> str:
    if effect.outcome == "loss":
        return "change of the loss in nats"
    return "change in points" if effect.is_share else "change in nats"
