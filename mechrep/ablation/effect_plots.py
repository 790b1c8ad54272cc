"""The figures of a table of effects: the forest plot, the curve over sizes or training, the map of single heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechrep.ablation.conditions import ABLATION, BASELINE, CHECKPOINT, SUPPORTED, UNITS, Measure
from mechrep.ablation.screening import Screening, screening_of
from mechrep.errors import InputError
from mechrep.figures import (
    AXIS,
    COLUMNS,
    INK,
    finished,
    new_figure,
    panel_height,
    panels,
    place_of,
    plain,
    style_of,
    styled,
    tick_step,
    translucent,
)
from mechrep.guards import guarded, one_of

if TYPE_CHECKING:
    from mechrep.ablation.effects import Effects

_LINE, _CURVE = 34, 180  # pixels of one line, of one curve
_GAP, _SMALL_GAP = 92, 62  # between two panels; where only the last has a title below
# Lightest in the middle, and dark at both ends for every kind of colour blindness; opaque, so it reads on any page.
CHANGES = [[0, "#8c3a0b"], [0.25, "#e39a4f"], [0.5, "#f6f4ef"], [0.75, "#7f9fcf"], [1, "#22417f"]]
WRITTEN = 32  # heads side by side, and layers, whose values fit into their cells


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
    table = effects.select(measures=measures)
    rows, draws = table.summary(), _drawn(table)
    panels = list(dict.fromkeys(zip(rows["measure"], rows["copy"], strict=True)))
    heights = [max(len(_panel(rows, panel)) * _LINE, 2 * _LINE) for panel in panels]
    figure = _stacked(panels, heights, _GAP)
    seen: set[str] = set()
    for number, panel in enumerate(panels, 1):
        _draw_effects(figure, _panel(rows, panel), _panel(draws, panel), number, seen)
    title = "Effect of each ablation, beside its controls"
    y = AXIS | {"showgrid": False, "autorange": "reversed"}
    return _finished(figure, sum(heights) + _GAP * (len(panels) - 1), AXIS, y, title, effects)


def _draw_effects(figure: go.Figure, here: pd.DataFrame, draws: pd.DataFrame, number: int, seen: set[str]) -> None:
    """One panel of the forest plot; ``seen`` are the entries that the legend has already."""
    unit, varying = UNITS[here["unit"].iloc[0]], _varying(here)
    for kind, part in draws.groupby("selection", sort=False):
        marks = part.assign(label=[_label(row, varying) for row in part.to_dict("records")])
        style = style_of(str(kind), len(seen))
        figure.add_scatter(
            x=unit.scale * marks["effect"], y=marks["label"], mode="markers",
            name=plain(f"{_control(str(kind))} draws"), legendgroup=kind,
            showlegend=kind not in seen, row=number, col=1,
            marker={"color": style.colour, "symbol": style.symbol, "size": 7, "opacity": 0.5},
            hovertemplate="%{x:.4g}<extra>" + plain(_control(str(kind))) + "</extra>",
        )  # fmt: skip
        seen.add(str(kind))
    style = style_of("top")
    spread = {"type": "data", "symmetric": False, "thickness": 2, "width": 0, "color": style.colour,
              "array": unit.scale * (here["high"] - here["effect"]).fillna(0),
              "arrayminus": unit.scale * (here["effect"] - here["low"]).fillna(0)}  # fmt: skip
    figure.add_scatter(
        x=unit.scale * here["effect"], y=[_label(row, varying) for row in here.to_dict("records")],
        mode="markers", error_x=spread, name="effect, 95 % interval", legendgroup="ablation",
        showlegend="ablation" not in seen, row=number, col=1,
        marker={"color": style.colour, "symbol": style.symbol, "size": 10},
        customdata=here[["p", "m", "n"]].to_numpy(),
        hovertemplate="%{x:.4g}<br>p = %{customdata[0]:.3g} (one test alone)<br>"
        "%{customdata[1]} draws, %{customdata[2]} independent units<extra></extra>",
    )  # fmt: skip
    seen.add("ablation")
    figure.add_vline(0, line={"color": INK, "dash": "dot", "width": 1}, row=number, col=1)  # pyright: ignore[reportArgumentType]
    figure.update_xaxes(title_text=plain(f"change ({unit.label})"), row=number, col=1)


def _stacked(panels: Sequence[tuple[str, Any]], heights: Sequence[int], gap: int) -> go.Figure:
    """Panels of these heights in pixels, one below the other, with room for titles of panels and of axes."""
    whole = sum(heights) + gap * (len(panels) - 1)
    titles = [plain(_title(panel)) for panel in panels]
    return make_subplots(
        len(panels),
        1,
        subplot_titles=titles,
        vertical_spacing=gap / whole if len(panels) > 1 else 0.0,
        row_heights=list(heights),
        figure=new_figure(),
    )


def _finished(
    figure: go.Figure, whole: int, x: dict[str, Any], y: dict[str, Any], title: str, effects: Effects
) -> go.Figure:
    """The look of the house for stacked panels; the titles of their axes stay."""
    drawn: Any = figure  # plotly makes the axes when it runs
    names = [axis.title.text for axis in drawn.select_xaxes()], [axis.title.text for axis in drawn.select_yaxes()]
    figure.update_annotations(x=0, xanchor="left", font={"size": 14})
    figure = styled(figure, title=title, subtitle=_subtitle(effects), x="", y="")
    for axis, name in zip(figure.select_xaxes(), names[0], strict=True):
        axis.update(x | {"title": {"text": name or "", "standoff": 4}})
    for axis, name in zip(figure.select_yaxes(), names[1], strict=True):
        axis.update(y | {"title": {"text": name or "", "standoff": 8}})
    # The legend stands above the title of the first panel.
    return figure.update_layout(legend={"y": 1 + 28 / whole}, margin={"t": 120}, height=whole + 120 + 60)


def curve(effects: Effects, x: str = "k", measures: Sequence[str] | None = None) -> go.Figure:
    """The mean of each measure over ``k`` or ``step``: ablations with their intervals, controls with their range.

    Steps of training stand on a logarithmic axis, the untrained model half of the first step before it; checkpoints
    whose steps are not known stand side by side.

    Raises:
        InputError: another ``x``, or a table with one value of it.

    Example:
        >>> from mechrep.ablation.effects import example_effects
        >>> curve(example_effects()).data[0].name
        'baseline'
    """
    one_of("x", x, ("k", "step"))
    table = effects.select(measures=measures)
    frame, ticks = _placed(table.to_frame(), x)
    panels = list(dict.fromkeys(zip(frame["measure"], frame["copy"], strict=True)))
    if frame[x].notna().sum() == 0:
        raise InputError(f"x={x!r} of conditions without one", "conditions with several values of it", "plot() instead")
    heights = [_CURVE] * len(panels)
    figure = _stacked(panels, heights, _SMALL_GAP)
    for number, panel in enumerate(panels, 1):
        _draw_curves(figure, _panel(frame, panel), x, number)
    title = "Measures over numbers of components" if x == "k" else "Measures over training"
    below = "components" if x == "k" else "checkpoint" if ticks else "training step"
    figure.update_xaxes(title_text=below, row=len(panels), col=1)
    whole = sum(heights) + _SMALL_GAP * (len(panels) - 1)
    figure = _finished(figure, whole, AXIS | {"showgrid": False}, AXIS, title, effects)
    if ticks:
        figure.update_xaxes(tickvals=list(range(len(ticks))), ticktext=[plain(name) for name in ticks])
    elif CHECKPOINT in set(frame["selection"]):
        figure.update_xaxes(type="log", dtick=1)
    elif x == "k":
        figure.update_xaxes(tickvals=sorted({int(k) for k in frame["k"] if k > 0}))
    return figure


def _placed(frame: pd.DataFrame, x: str) -> tuple[pd.DataFrame, list[str]]:
    """Places of checkpoints on the axis of steps; names for its ticks where steps are not known."""
    if x != "step" or not (frame["selection"] == CHECKPOINT).any():
        return frame, []
    places, ticks = training_axis(frame)
    merged = frame["selection"].replace({BASELINE: CHECKPOINT})
    return frame.assign(selection=merged, step=frame["model"].map(places)), ticks


def training_axis(frame: pd.DataFrame) -> tuple[dict[str, float], list[str]]:
    """Where each checkpoint stands on the axis of training, and the names of its ticks where steps are not known.

    Args:
        frame: :meth:`Effects.to_frame` of a table over checkpoints.
    """
    known = frame.drop_duplicates("model")
    steps, names = known["step"].to_numpy(float), known["model"].tolist()
    if np.isnan(steps).any() or len(set(steps)) < len(steps) or not (steps > 0).any():
        return {name: float(place) for place, name in enumerate(names)}, names
    least = steps[steps > 0].min() / 2  # the untrained model, which a logarithmic axis cannot show at 0
    return {name: float(step) if step > 0 else least for name, step in zip(names, steps, strict=True)}, []


def single_heads_figure(effects: Effects) -> go.Figure:
    """What ablating each head alone changes: a panel per measure, a cell per head, a star where it is supported.

    Where heads were screened, the first panels show the estimates of all heads; cells without an exact value are empty.

    Args:
        effects: of :func:`mechrep.ablation.study.single_head_sweep`.
    """
    measures = [one for one in effects.measures if one.copy in (None, 1)]
    tables = [single_head_frame(effects, one.name, one.copy) for one in measures]
    screening = screening_of(effects.notes)
    if screening is not None:
        return _screened_figure(effects, measures, tables, screening)
    titles = []
    for measure, table in zip(measures, tables, strict=True):
        widest = UNITS[measure.unit].scale * float(table["effect"].abs().max())
        title, unit = _title((measure.name, measure.copy)), UNITS[measure.unit].label
        titles.append(f"<b>{plain(title)}</b><br>{plain(unit)}; colours from −{widest:.2g} to +{widest:.2g}")
    n_layers = int(tables[0]["layer"].max()) + 1
    figure = panels(titles, panel_height(n_layers))
    for index, (measure, table) in enumerate(zip(measures, tables, strict=True)):
        _draw_heads(figure, table, UNITS[measure.unit].scale, index)
    finished(figure, title="Each head ablated alone", subtitle=_subtitle(effects), x="head", y="layer")
    width = int(tables[0]["head"].max()) + 1
    figure.update_xaxes(range=[-0.5, width - 0.5], dtick=tick_step(width * min(COLUMNS, len(tables))))
    return figure.update_yaxes(range=[-0.5, n_layers - 0.5], dtick=tick_step(n_layers))


def _screened_figure(
    effects: Effects, measures: Sequence[Measure], tables: Sequence[pd.DataFrame], screening: Screening
) -> go.Figure:
    """Estimates of all heads, and what the heads that were ablated do."""
    units = {one.label: one.unit for one in measures if one.label in screening.estimates}
    estimates = {label: screening.estimates[label].double().numpy() for label in units}
    panel_of = {f"{label}: estimate": UNITS[units[label]] for label in units}
    panel_of |= {measure.label: UNITS[measure.unit] for measure in measures}
    n_layers, width = next(iter(screening.estimates.values())).shape
    figure = panels([f"<b>{plain(name)}</b><br>{plain(unit.label)}" for name, unit in panel_of.items()],
                    panel_height(n_layers))  # fmt: skip
    for index, (label, table) in enumerate(estimates.items()):
        values = UNITS[units[label]].scale * table
        widest = float(np.nanmax(np.abs(values))) or 1.0
        figure.add_heatmap(
            x=np.arange(width), y=np.arange(n_layers), z=values, zmin=-widest, zmax=widest, colorscale=CHANGES,
            showscale=False, hovertemplate="L%{y}H%{x}, estimate: %{z:+.3g}<extra></extra>", **place_of(index),
        )  # fmt: skip
    for index, (measure, table) in enumerate(zip(measures, tables, strict=True), len(estimates)):
        every = pd.MultiIndex.from_product([range(n_layers), range(width)], names=["layer", "head"])
        whole = table.set_index(["layer", "head"]).reindex(every).reset_index()
        _draw_heads(figure, whole, UNITS[measure.unit].scale, index)
    finished(figure, title="Heads ablated alone", subtitle=_subtitle(effects), x="head", y="layer")
    figure.update_xaxes(range=[-0.5, width - 0.5], dtick=tick_step(width * min(COLUMNS, len(panel_of))))
    return figure.update_yaxes(range=[-0.5, n_layers - 0.5], dtick=tick_step(n_layers))


@guarded
def single_head_frame(effects: Effects, measure: str | None = None, copy: int | None = None) -> pd.DataFrame:
    """Heads ablated one at a time, the one that changes a measure most first; the family of tests is all heads.

    Args:
        effects: of :func:`single_head_sweep`.
        measure: by default the first.
        copy: of the loop, by default the first that has several tokens.

    Returns:
        ``layer, head, effect, low, high, p, q, verdict``, and ``measure, copy``.

    Raises:
        InputError: a measure or copy that is not there.

    Example:
        >>> import mechrep
        >>> from mechrep.studies import single_head_sweep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> loop = mechrep.Corpus.from_tokens([[0, *range(30, 50), *[9, 8, 7, 6, 5] * 4]], model=model).with_cycles()
        >>> single_head_frame(single_head_sweep(model, texts=loop)).shape
        (8, 10)
    """
    place = effects.number(measure, copy)
    chosen = effects.measures[place]
    one = replace(
        effects, measures=[chosen], units=[effects.units[place]], clusters=[effects.clusters[place]],
        values=effects.values[place : place + 1],
    )  # fmt: skip
    rows = one.summary(family="heads ablated alone")
    units = {condition.name: condition.components["heads"][0] for condition in one.conditions[1:]}
    order = rows["effect"].abs().sort_values(ascending=False, kind="stable").index
    heads = pd.DataFrame([units[name] for name in rows["name"]], columns=["layer", "head"])
    table = heads.join(rows[["effect", "low", "high", "p", "q", "verdict", "measure", "copy"]])
    return table.loc[order].reset_index(drop=True)


def _draw_heads(figure: go.Figure, table: pd.DataFrame, scale: float, index: int) -> None:
    wide = table.assign(effect=scale * table["effect"]).pivot(index="layer", columns="head")
    z, stars = wide["effect"].to_numpy(dtype=float), (wide["verdict"] == SUPPORTED).to_numpy()
    fits = 2 * z.shape[1] <= WRITTEN and len(z) <= WRITTEN
    text = [
        [
            (f"{value:+.2g}" if fits and value == value else "") + "*" * bool(star)
            for value, star in zip(*rows, strict=True)
        ]
        for rows in zip(z, stars, strict=True)
    ]
    widest = float(np.nanmax(np.abs(z))) or 1.0
    figure.add_heatmap(
        x=np.arange(z.shape[1]), y=np.arange(len(z)), z=z, zmin=-widest, zmax=widest, colorscale=CHANGES,
        showscale=False, xgap=int(fits), ygap=int(fits), text=text, texttemplate="%{text}",
        customdata=np.stack([scale * wide["low"], scale * wide["high"], wide["p"], wide["q"]], axis=-1),
        hovertemplate="L%{y}H%{x}: %{z:+.3g}<br>95 %: %{customdata[0]:.3g} to %{customdata[1]:.3g}<br>"
        "p = %{customdata[2]:.2g}, q = %{customdata[3]:.2g}<extra></extra>",
        **place_of(index),
    )  # fmt: skip


def _draw_curves(figure: go.Figure, part: pd.DataFrame, x: str, number: int) -> None:
    unit = UNITS[part["unit"].iloc[0]]
    keys = ["name", "op", "part"]
    sets = list(dict.fromkeys(part.loc[part["selection"] == ABLATION, keys].itertuples(index=False, name=None)))
    for (*key, selection), line in part[part[x].notna()].groupby([*keys, "selection"], sort=False):
        own = tuple(key) in sets and len(sets) > 1  # with several sets, colours tell the sets apart
        style = style_of("top" if selection in (ABLATION, CHECKPOINT) else str(selection))
        colour = style_of(str(key[0]), sets.index(tuple(key))).colour if own else style.colour
        control = selection not in (BASELINE, ABLATION, CHECKPOINT)
        drawn = line.groupby(x, sort=True)["value"]
        low, high = (line.groupby(x)[end].min() for end in ("value_low", "value_high"))
        if control:
            low, high = drawn.min(), drawn.max()
        at, middle, label = drawn.mean().index.to_numpy(), unit.scale * drawn.mean(), _curve_label(key, str(selection))
        common: dict[str, Any] = {"legendgroup": label, "row": number, "col": 1}
        band = np.concatenate([unit.scale * high.to_numpy(), unit.scale * low.to_numpy()[::-1]])
        if len(at) > 1 and not np.isnan(band).any() and not (own and control):
            figure.add_scatter(x=np.concatenate([at, at[::-1]]), y=band, fill="toself", mode="none", hoverinfo="skip",
                               fillcolor=translucent(colour, 0.13), showlegend=False, **common)  # fmt: skip
        if selection == BASELINE:  # a line across, whatever its size
            figure.add_hline(float(middle.iloc[0]), line={"color": INK, "dash": "dot", "width": 1}, row=number, col=1)  # pyright: ignore[reportArgumentType]
        figure.add_scatter(
            x=at, y=middle, mode="lines+markers", name=plain(label), showlegend=number == 1 and selection != CHECKPOINT,
            line={"color": colour, "dash": style.dash, "width": style.width},
            marker={"symbol": style.symbol, "size": 7}, **common,
        )  # fmt: skip
    figure.update_yaxes(title_text=plain("%" if unit.scale == 100 else unit.label), row=number, col=1)


def _curve_label(key: Sequence[Any], selection: str) -> str:
    if selection in (BASELINE, CHECKPOINT):
        return selection
    facts = " ".join(str(part) for part in key if part not in ("", "whole"))
    return facts if selection == ABLATION else f"{facts}, {_control(selection)} controls"


def _control(kind: str) -> str:
    return kind.replace("_", "-")


def _drawn(effects: Effects) -> pd.DataFrame:
    frame = effects.to_frame()
    return frame[~frame["selection"].isin([BASELINE, ABLATION, CHECKPOINT])]


def _panel(frame: pd.DataFrame, panel: tuple[str, Any]) -> pd.DataFrame:
    measure, repetition = panel
    same = frame["copy"].isna() if pd.isna(repetition) else frame["copy"] == repetition
    return frame[(frame["measure"] == measure) & same]


def _title(panel: tuple[str, Any]) -> str:
    measure, repetition = panel
    name = str(measure).replace("_", " ")
    return name if pd.isna(repetition) else f"{name}, repetition {repetition}"


def _varying(rows: pd.DataFrame) -> set[str]:
    """What tells the rows of one name apart."""
    return {name for name in ("k", "op", "part", "model") if (rows.groupby("name")[name].nunique() > 1).any()}


def _label(row: dict[str, Any], varying: set[str]) -> str:
    facts = [f"k = {row['k']:,}"] if "k" in varying else []
    facts += [str(row[name]) for name in ("op", "part", "model") if name in varying and row[name] not in ("", "whole")]
    return plain(f"{row['name']} ({', '.join(facts)})" if facts else row["name"])


def _subtitle(effects: Effects) -> str:
    sizes: dict[str, int] = {}
    for measure, ids in zip(effects.measures, effects.units, strict=True):
        sizes[measure.over] = max(sizes.get(measure.over, 0), len(ids))
    units = [f"{over}s: {size:,}" for over, size in sizes.items() if over != "model"]
    return "; ".join([str(effects.provenance.model.get("name", "")), *units])
