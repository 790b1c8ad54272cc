"""The two figures of a table of effects: the forest plot, and the curve over sizes or training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechrep.errors import InputError
from mechrep.figures import AXIS, INK, plain, style_of, styled, translucent
from mechrep.run import one_of

if TYPE_CHECKING:
    from mechrep.ablation.effects import Effects

_LINE, _PANEL = 34, 70  # pixels of one line, and of the frame of a panel


def forest(effects: Effects, measures: Sequence[str] | None = None) -> go.Figure:
    """One panel per measure, one line per ablation: its effect with a 95 % interval, every control draw an open mark.

    Args:
        effects: the table.
        measures: names of measures; by default all.

    Example:
        >>> from mechrep.ablation.effects import example_effects
        >>> len(forest(example_effects()).data)
        2
    """
    from mechrep.ablation.effects import UNITS

    table = effects.select(measures=measures)
    rows, draws = table.summary(), _drawn(table)
    panels = list(dict.fromkeys(zip(rows["measure"], rows["copy"], strict=True)))
    heights = [len(_panel(rows, panel)) * _LINE + _PANEL for panel in panels]
    titles = [plain(_title(panel)) for panel in panels]
    spacing = 0.55 * _PANEL / sum(heights)
    figure = make_subplots(len(panels), 1, subplot_titles=titles, vertical_spacing=spacing, row_heights=heights)
    seen: set[str] = set()
    for number, panel in enumerate(panels, 1):
        here = _panel(rows, panel)
        unit = UNITS[here["unit"].iloc[0]]
        controls = _panel(draws, panel)
        for kind, part in controls.groupby("selection", sort=False):
            marks = part.assign(label=[_label(row) for row in part.to_dict("records")])
            style = style_of(str(kind), len(seen))
            figure.add_scatter(
                x=unit.scale * marks["effect"], y=marks["label"], mode="markers", name=plain(style.label),
                legendgroup=kind, showlegend=kind not in seen, row=number, col=1,
                marker={"color": style.colour, "symbol": style.symbol, "size": 6, "opacity": 0.45},
                hovertemplate="%{x:.4g}<extra>" + plain(style.label) + "</extra>",
            )  # fmt: skip
            seen.add(str(kind))
        style = style_of("top")
        spread = {"type": "data", "symmetric": False, "thickness": 2.5, "color": style.colour,
                  "array": unit.scale * (here["high"] - here["effect"]).fillna(0),
                  "arrayminus": unit.scale * (here["effect"] - here["low"]).fillna(0)}  # fmt: skip
        figure.add_scatter(
            x=unit.scale * here["effect"], y=[_label(row) for row in here.to_dict("records")], mode="markers",
            error_x=spread, name="ablation", legendgroup="ablation", showlegend="ablation" not in seen, row=number,
            col=1, marker={"color": style.colour, "symbol": style.symbol, "size": 10},
            customdata=here[["verdict", "q", "m", "n"]].to_numpy(),
            hovertemplate="%{x:.4g}<br>%{customdata[0]}, q = %{customdata[1]:.3g}<br>"
            "%{customdata[2]} draws, %{customdata[3]} independent units<extra></extra>",
        )  # fmt: skip
        seen.add("ablation")
        figure.add_vline(0, line={"color": INK, "dash": "dot", "width": 1}, row=number, col=1)  # pyright: ignore[reportArgumentType]
        figure.update_xaxes(title_text=plain(f"change ({unit.label})"), row=number, col=1)
    figure = styled(
        figure, title="Effect of each ablation, beside its controls", subtitle=_subtitle(effects), x="", y=""
    )
    figure.update_xaxes(AXIS).update_yaxes(AXIS | {"showgrid": False, "autorange": "reversed"})
    for number, panel in enumerate(panels, 1):
        unit = UNITS[_panel(rows, panel)["unit"].iloc[0]]
        figure.update_xaxes(title_text=plain(f"change ({unit.label})"), row=number, col=1)
    return figure.update_layout(height=sum(heights) + 150)


def curve(effects: Effects, x: str = "k", measures: Sequence[str] | None = None) -> go.Figure:
    """The mean of each measure over ``k`` or ``step``: ablations with their intervals, controls with their range.

    Raises:
        InputError: another ``x``, or a table with one value of it.

    Example:
        >>> from mechrep.ablation.effects import example_effects
        >>> curve(example_effects()).data[0].name
        'baseline'
    """
    one_of("x", x, ("k", "step"))
    table = effects.select(measures=measures)
    frame = table.to_frame()
    panels = list(dict.fromkeys(zip(frame["measure"], frame["copy"], strict=True)))
    if frame[x].notna().sum() == 0:
        raise InputError(f"x={x!r} of conditions without one", "conditions with several values of it", "plot() instead")
    figure = make_subplots(len(panels), 1, subplot_titles=[plain(_title(panel)) for panel in panels], shared_xaxes=True)
    for number, panel in enumerate(panels, 1):
        _draw_curves(figure, _panel(frame, panel), x, number)
    title = "Measures over numbers of components" if x == "k" else "Measures over training"
    figure = styled(figure, title=title, subtitle=_subtitle(effects), x="", y="")
    figure.update_xaxes(AXIS | {"showgrid": False}).update_yaxes(AXIS)
    figure.update_xaxes(title_text="components" if x == "k" else "training step", row=len(panels), col=1)
    return figure.update_layout(height=260 * len(panels) + 150)


def _draw_curves(figure: go.Figure, part: pd.DataFrame, x: str, number: int) -> None:
    from mechrep.ablation.effects import ABLATION, BASELINE, UNITS

    unit = UNITS[part["unit"].iloc[0]]
    lines = part.groupby(["name", "op", "part", "selection"], sort=False)
    for place, ((name, op, kind, selection), line) in enumerate(lines):
        style = style_of("top" if selection == ABLATION else str(selection), place)
        label = str(selection) if selection == BASELINE else f"{name} {op} {kind} {selection}".replace(" whole", "")
        drawn = line.groupby(x, sort=True)["value"] if line[x].notna().any() else None
        if drawn is None:
            continue
        low, high = (line.groupby(x)[end].min() for end in ("value_low", "value_high"))
        if selection not in (BASELINE, ABLATION):
            low, high = drawn.min(), drawn.max()
        at, middle = drawn.mean().index.to_numpy(), unit.scale * drawn.mean()
        common: dict[str, Any] = {"legendgroup": label, "row": number, "col": 1}
        band = np.concatenate([unit.scale * high.to_numpy(), unit.scale * low.to_numpy()[::-1]])
        if len(at) > 1 and not np.isnan(band).any():
            figure.add_scatter(x=np.concatenate([at, at[::-1]]), y=band, fill="toself", mode="none", hoverinfo="skip",
                               fillcolor=translucent(style.colour, 0.15), showlegend=False, **common)  # fmt: skip
        figure.add_scatter(
            x=at, y=middle, mode="lines+markers", name=plain(label), showlegend=number == 1,
            line={"color": style.colour, "dash": style.dash, "width": style.width},
            marker={"symbol": style.symbol, "size": 7}, **common,
        )  # fmt: skip
    figure.update_yaxes(title_text=plain("%" if unit.scale == 100 else unit.label), row=number, col=1)


def _drawn(effects: Effects) -> pd.DataFrame:
    from mechrep.ablation.effects import ABLATION, BASELINE

    frame = effects.to_frame()
    return frame[~frame["selection"].isin([BASELINE, ABLATION])]


def _panel(frame: pd.DataFrame, panel: tuple[str, Any]) -> pd.DataFrame:
    measure, repetition = panel
    same = frame["copy"].isna() if pd.isna(repetition) else frame["copy"] == repetition
    return frame[(frame["measure"] == measure) & same]


def _title(panel: tuple[str, Any]) -> str:
    measure, repetition = panel
    name = str(measure).replace("_", " ")
    return name if pd.isna(repetition) else f"{name}, repetition {repetition}"


def _label(row: dict[str, Any]) -> str:
    facts = [str(row["k"])] if row["k"] else []
    facts += [str(row[name]) for name in ("op", "part", "model") if row[name] and row[name] != "whole"]
    return plain(f"{row['name']} ({', '.join(facts)})" if facts else row["name"])


def _subtitle(effects: Effects) -> str:
    units = max((len(ids) for ids in effects.units), default=0)
    return f"{effects.provenance.model.get('name', '')}, {units} units"
