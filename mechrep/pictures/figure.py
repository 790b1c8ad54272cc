"""A figure as a still picture: small SVG, for the first screen, for paper, and where no script runs.

It knows the kinds of traces that mechrep's figures are made of: lines, points and bands, bars, histograms and heatmaps,
in one or several panels.  Everything is drawn again from the figure's own data; nothing is loaded.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from mechrep.colours import FONT, GRID, INK, SEQUENCE
from mechrep.pictures.axes import TEXT_SIZE, Axis, as_number, axis_of, plain_label, text_width
from mechrep.pictures.marks import (
    Box,
    Record,
    as_bars,
    axes_of,
    coloured,
    draw_trace,
    extent_of,
    fill_of,
    limits_of,
    line_at,
    pixels,
    swatch,
    text_at,
)

WIDTH = 760
_KINDS = ("scatter", "bar", "histogram", "heatmap")
_HEAD = 50  # pixels of title and subtitle


def can_picture(figure: Record) -> bool:
    """Whether all traces of a figure are of the kinds that can be drawn here.

    Example:
        >>> can_picture({"data": [{"type": "heatmap"}, {}], "layout": {}}), can_picture({"data": [{"type": "pie"}]})
        (True, False)
    """
    return all(trace.get("type", "scatter") in _KINDS for trace in figure["data"])


def picture_of(
    figure: Record, *, width: int = WIDTH, height: int | None = None, first: bool = False, titled: bool = False
) -> str:
    """Draw a figure.

    Args:
        figure: data and layout, as plotly writes them as JSON.
        width: pixels.
        height: pixels; by default what the layout says.
        first: only the first panel, without legend and scale, as a small picture.
        titled: with title and subtitle above, for where nothing around it says what it is.

    Returns:
        An ``<svg>`` element; text in it is escaped.

    Example:
        >>> import json, plotly.graph_objects as go
        >>> record = json.loads(go.Figure(go.Scatter(x=[0, 1], y=[2, 3], name="<b>")).to_json())
        >>> picture_of(record)[:4], "<b>" in picture_of(record)
        ('<svg', False)
    """
    tall = height or int(figure["layout"].get("height", 420))
    inside = _Picture(figure, width, tall - _HEAD * titled, first).svg()
    return _under_title(inside, figure["layout"].get("title", {}), width, tall) if titled else inside


def _under_title(picture: str, title: Record, width: int, height: int) -> str:
    """A picture below the title of its figure, in an element of its own."""
    first = text_at(2, 17, _fitting(plain_label(title.get("text", "")), width, 15), size=15)
    second = text_at(2, 36, _fitting(plain_label(title.get("subtitle", {}).get("text", "")), width, 12), size=12)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'color="{INK}" font-family="{html.escape(FONT)}">{first}{second}'
        f'<g transform="translate(0 {_HEAD})">{picture}</g></svg>'
    )


class _Picture:
    """One drawing; its parts are lists of elements in the order in which they lie over each other."""

    def __init__(self, figure: Record, width: int, height: int, first: bool) -> None:
        self.layout, self.width, self.height, self.first = figure["layout"], width, height, first
        traces = [as_bars(trace) for trace in figure["data"] if trace.get("visible", True) is True]
        names = list(dict.fromkeys(axes_of(trace) for trace in traces)) or [("x", "y")]
        self.panels = names[:1] if first else names
        self.traces = [trace for trace in traces if axes_of(trace) in self.panels]
        self.colours = [SEQUENCE[place % len(SEQUENCE)] for place in range(len(self.traces))]
        self.axes = {name: self._axis(name) for pair in self.panels for name in pair}
        self.area = self._area()

    # --- where things lie ---------------------------------------------------------------------------------------------

    def _record(self, name: str) -> Record:
        record = dict(self.layout.get(f"{name[0]}axis{name[1:]}", {}))
        return record | {"domain": [0.0, 1.0]} if self.first else record

    def _axis(self, name: str) -> Axis:
        way = name[0]
        values: list[Any] = []
        zero = cells = False
        for trace in self.traces:
            if name not in axes_of(trace):
                continue
            values += extent_of(trace, way)
            zero |= trace.get("type") == "bar" and way == "y"
            cells |= trace.get("type") == "heatmap"
        for shape in self.layout.get("shapes", []):
            if shape.get(f"{way}ref", way) == name:
                values += [shape.get(f"{way}0"), shape.get(f"{way}1")]
        return axis_of(self._record(name), values, zero=zero, cells=cells)

    def _area(self) -> Box:
        edge = [axis for name, axis in self.axes.items() if name[0] == "y" and axis.domain[0] >= 0]
        outer = [self.axes[y] for x, y in self.panels if self.axes[x].domain[0] <= 0.01]
        most = max((text_width(label) for axis in outer for _, label in axis.ticks(self._most(axis, "y"))), default=0.0)
        titled = any(axis.title and (not self.first or text_width(axis.title) < self.height - 30) for axis in edge)
        left = min(most + 10 + (18 if titled else 0), self.width * 0.45)
        bottom = 40 + max((self._tallest(name) for name in self.axes if name[0] == "x"), default=0.0)
        rows = self._legend_rows(left)
        annotated = bool(self._panel_title()) or any(
            one.get("yref") == "paper" and one.get("y", 0) >= 0.99 for one in self._annotations()
        )
        top = 10.0 + 18 * rows + (18 if annotated else 0)
        right = 12.0 if self.first or not self._scale() else 74.0
        return Box(left, top, self.width - left - right, self.height - top - bottom)

    def _most(self, axis: Axis, way: str) -> int:
        share = axis.domain[1] - axis.domain[0]
        if way == "y":
            return max(2, int((self.height - 70) * share / (TEXT_SIZE + 5)) if axis.words else 6)
        return max(2, int(self.width * 0.8 * share / (14 if self._turned(axis) else 56)))

    def _turned(self, axis: Axis) -> bool:
        return "labelalias" in axis.record or (len(axis.words) > 3 and max(map(len, axis.words)) > 6)

    def _tallest(self, name: str) -> float:
        axis = self.axes[name]
        if not self._turned(axis) or axis.domain[0] > 1 or self._shares(name).domain[0] > 0.01:
            return 0.0
        return max((text_width(label) for _, label in axis.ticks(self._most(axis, "x"))), default=0.0)

    def _shares(self, name: str) -> Axis:
        return next(self.axes[y] for x, y in self.panels if x == name)

    def box(self, x: Axis, y: Axis) -> Box:
        """Of one panel."""
        area = self.area
        return Box(
            area.left + x.domain[0] * area.width,
            area.top + (1 - y.domain[1]) * area.height,
            max((x.domain[1] - x.domain[0]) * area.width, 1.0),
            max((y.domain[1] - y.domain[0]) * area.height, 1.0),
        )

    # --- parts --------------------------------------------------------------------------------------------------------

    def svg(self) -> str:
        """The whole."""
        inside = [*self._legend(), *self._colour_bar()]
        for names in self.panels:
            inside += self._panel(*names)
        inside += [text_at(self.area.left, 18, self._panel_title())] if self._panel_title() else []
        inside += [part for one in self._annotations() for part in self._annotation(one)]
        return (
            f'<svg class="still" viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}" '
            f'color="{INK}" font-size="{TEXT_SIZE}" aria-hidden="true">{"".join(inside)}</svg>'
        )

    def _panel(self, x_name: str, y_name: str) -> Iterator[str]:
        x, y = self.axes[x_name], self.axes[y_name]
        box = self.box(x, y)
        yield from _axis_lines(x, y, box, self._most(x, "x"), self._most(y, "y"), self._turned(x))
        shapes = [one for one in self.layout.get("shapes", []) if _on(one, x_name, y_name)]
        traces = [(one, colour) for one, colour in zip(self.traces, self.colours, strict=True)
                  if axes_of(one) == (x_name, y_name)]  # fmt: skip
        yield f'<svg x="{box.left:.1f}" y="{box.top:.1f}" width="{box.width:.1f}" height="{box.height:.1f}">'
        for shape in sorted(shapes, key=lambda one: one.get("layer") != "below"):
            if shape.get("layer") == "below":
                yield _shape(shape, x, y, box)
        grouped = self.layout.get("scattermode") == "group"
        for place, (trace, colour) in enumerate(traces):
            shift = (place - (len(traces) - 1) / 2) * 0.6 / len(traces) if grouped else 0.0
            yield from draw_trace(trace, colour, x, y, box, shift, self.layout)
        for shape in shapes:
            if shape.get("layer") != "below":
                yield _shape(shape, x, y, box)
        yield "</svg>"

    def _panel_title(self) -> str:
        """Of the first panel, where it is drawn alone."""
        titles = [
            one["text"] for one in self.layout.get("annotations", []) if one.get("yref") == one.get("xref") == "paper"
        ]
        return plain_label(titles[0]) if self.first and len(titles) > 1 and not self._entries() else ""

    def _annotations(self) -> list[Record]:
        shown = [one for one in self.layout.get("annotations", []) if one.get("text")]
        return [one for one in shown if one.get("xref", "x") in self.axes or one.get("yref", "y") in self.axes] if (
            self.first
        ) else shown  # fmt: skip

    def _annotation(self, one: Record) -> Iterator[str]:
        left = self._position(one.get("x"), one.get("xref", "x"), "x")
        top = self._position(one.get("y"), one.get("yref", "y"), "y")
        if math.isfinite(left) and math.isfinite(top):
            anchor = {"left": "start", "right": "end"}.get(one.get("xanchor", ""), "middle")
            down = {"top": 12.0, "bottom": -5.0}.get(one.get("yanchor", ""), 4.0)
            size = min(as_number(one.get("font", {}).get("size", TEXT_SIZE)), 12.0)
            yield text_at(left + one.get("xshift", 0), top + down - one.get("yshift", 0), one["text"], anchor, size)

    def _position(self, value: Any, reference: str, way: str) -> float:
        area, name = self.area, reference.removesuffix(" domain")
        start, length = (area.left, area.width) if way == "x" else (area.top, area.height)
        if name == "paper" or name not in self.axes:
            share = as_number(value)
            return start + (share if way == "x" else 1 - share) * length
        pair = next(pair for pair in self.panels if name in pair)
        box, axis = self.box(self.axes[pair[0]], self.axes[pair[1]]), self.axes[name]
        share = as_number(value) if reference.endswith(" domain") else axis.at([value])[0]
        return box.left + share * box.width if way == "x" else box.top + (1 - share) * box.height

    # --- legend and scale ---------------------------------------------------------------------------------------------

    def _entries(self) -> list[tuple[Record, str]]:
        seen: set[Any] = set()
        entries: list[tuple[Record, str]] = []
        for trace, colour in zip(self.traces, self.colours, strict=True):
            key = trace.get("legendgroup") or object()
            if trace.get("name") and trace.get("showlegend", trace.get("type") != "heatmap") and key not in seen:
                seen.add(key)
                entries.append((trace, colour))
        told = any(trace.get("showlegend") is True for trace, _ in entries)
        shown = self.layout.get("showlegend", len(entries) > 1 or told)
        return entries if shown and not (self.first and len(entries) > 3) else []

    def _placed_entries(self, left: float | int) -> list[tuple[Record, str, float, int]]:
        placed, x, row = [], left, 0
        for trace, colour in self._entries():
            width = 26 + text_width(plain_label(trace["name"])) + 14
            if x > left and x + width > self.width:
                x, row = left, row + 1
            placed.append((trace, colour, x, row))
            x += width
        return placed

    def _legend_rows(self, left: float | int) -> int:
        return max((row + 1 for *_, row in self._placed_entries(left)), default=0)

    def _legend(self) -> Iterator[str]:
        for trace, colour, x, row in self._placed_entries(self.area.left):
            y = 10 + 18 * row
            yield from swatch(trace, colour, x, y)
            yield text_at(x + 26, y + 4, trace["name"])

    def _scale(self) -> Record | None:
        """The scale of colours that all heatmaps share, or that of the first one."""
        for trace in self.traces:
            if trace.get("type") == "heatmap" and trace.get("showscale", True):
                shared = self.layout.get("coloraxis")
                return shared if "coloraxis" in trace and shared else trace
        return None

    def _colour_bar(self) -> Iterator[str]:
        scale = None if self.first else self._scale()
        if scale is None:
            return
        low, high = limits_of(scale, [])
        left, height = self.area.left + self.area.width + 16, min(self.area.height, 180)
        stops = np.linspace(high, low, 64)[:, None]
        yield pixels(coloured(stops, low, high, scale), Box(left, self.area.top, 12, height))
        for share in (0.0, 0.5, 1.0):
            value = f"{low + share * (high - low):.3g}".replace("-", "−")
            yield text_at(left + 17, self.area.top + (1 - share) * height + 4, value)
        title = plain_label(scale.get("colorbar", {}).get("title", {}).get("text", ""))
        if title:
            middle = self.area.top + height / 2
            x = left + 50
            yield (f'<text x="{x:.1f}" y="{middle:.1f}" transform="rotate(90 {x:.1f} {middle:.1f})" '
                   f'text-anchor="middle" fill="currentColor">{html.escape(title)}</text>')  # fmt: skip


# --- axes and shapes --------------------------------------------------------------------------------------------------


def _axis_lines(x: Axis, y: Axis, box: Box, most_x: int, most_y: int, turned: bool) -> Iterator[str]:
    bottom, right = box.top + box.height, box.left + box.width
    for share, label in y.ticks(most_y):
        top = bottom - share * box.height
        if y.record.get("showgrid", True):
            yield line_at(box.left, top, right, top, GRID)
        yield text_at(box.left - 6, top + 4, _fitting(label, box.left - 8 if x.domain[0] <= 0.01 else box.width), "end")
    for share, label in x.ticks(most_x):
        left = box.left + share * box.width
        if x.record.get("showgrid", True):
            yield line_at(left, box.top, left, bottom, GRID)
        yield line_at(left, bottom, left, bottom + 4, INK)
        if turned:
            place = f"{left + 4:.1f} {bottom + 8:.1f}"
            yield (f'<text x="{left + 4:.1f}" y="{bottom + 8:.1f}" transform="rotate(-90 {place})" text-anchor="end" '
                   f'fill="currentColor">{html.escape(label)}</text>')  # fmt: skip
        else:
            yield text_at(left, bottom + 16, label, "middle")
    yield line_at(box.left, bottom, right, bottom, INK)
    if x.title and x.domain[1] > 0:
        deep = max((text_width(label) for _, label in x.ticks(most_x)), default=0.0) - 4 if turned else 0
        yield text_at((box.left + right) / 2, bottom + 32 + deep, x.title, "middle")
    if y.title and x.domain[0] <= 0.01 and text_width(y.title) < box.height + 60:
        middle = box.top + box.height / 2
        yield (f'<text x="11" y="{middle:.1f}" transform="rotate(-90 11 {middle:.1f})" text-anchor="middle" '
               f'fill="currentColor">{html.escape(y.title)}</text>')  # fmt: skip


def _fitting(label: str, width: float | int, size: float | int = TEXT_SIZE) -> str:
    """A label that is not wider than its place."""
    most = max(int(width / text_width("x", size)), 2)
    return label if len(label) <= most else label[: most - 1] + "…"


def _on(shape: Record, x_name: str, y_name: str) -> bool:
    x, y = (str(shape.get(f"{way}ref", way)).removesuffix(" domain") for way in "xy")
    return (x, y) in ((x_name, y_name), (x_name, "paper"), ("paper", y_name), ("paper", "paper"))


def _shape(shape: Record, x: Axis, y: Axis, box: Box) -> str:
    def place(axis: Axis, way: str) -> list[float]:
        ends = [shape.get(f"{way}0"), shape.get(f"{way}1")]
        inside = str(shape.get(f"{way}ref", way)).endswith(("domain", "paper"))
        return [as_number(end) for end in ends] if inside else axis.at(ends)

    across, up = place(x, "x"), place(y, "y")
    corners = [across[0] * box.width, (1 - up[0]) * box.height, across[1] * box.width, (1 - up[1]) * box.height]
    if not all(map(math.isfinite, corners)):
        return ""
    line = shape.get("line", {})
    if shape.get("type") == "rect":
        left, top = min(corners[0], corners[2]), min(corners[1], corners[3])
        return (f'<rect x="{left:.1f}" y="{top:.1f}" width="{abs(corners[2] - corners[0]):.1f}" '
                f'height="{abs(corners[3] - corners[1]):.1f}" {fill_of(shape.get("fillcolor", "none"))}/>')  # fmt: skip
    x0, y0, x1, y1 = corners
    return line_at(x0, y0, x1, y1, line.get("color", INK), line.get("width", 1), line.get("dash", "solid"))
