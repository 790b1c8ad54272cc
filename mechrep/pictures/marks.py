"""What a still picture is drawn of: traces with their marks and bars, cells of heatmaps, lines and words, as SVG."""

from __future__ import annotations

import base64
import html
import math
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mechrep.colours import ACCENT, GRID, INK
from mechrep.pictures.axes import TEXT_SIZE, Axis, as_number, plain_label, values_of

_DASHES = {"dash": "7 4", "dot": "1.5 3.5", "dashdot": "7 3 1.5 3", "longdash": "11 4", "longdashdot": "11 3 1.5 3"}
_SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "triangle-down")
_CELLS = 600  # a heatmap of more cells is drawn as pixels
_LARGEST = 1600  # pixels of such an image, at most

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Box:
    """A panel's place in pixels."""

    left: float | int
    top: float | int
    width: float | int
    height: float | int


# --- traces -----------------------------------------------------------------------------------------------------------


def axes_of(trace: Record) -> tuple[str, str]:
    """The names of a trace's axes."""
    return trace.get("xaxis") or "x", trace.get("yaxis") or "y"


def extent_of(trace: Record, way: str) -> list[Any]:
    """The values of a trace along one axis, with the ends of its intervals."""
    values = values_of(trace.get(way))
    if trace.get("type") == "heatmap" and not values:
        rows = values_of(trace.get("z"))
        return list(range(len(rows) if way == "y" else len(rows[0]) if rows else 0))
    edge = as_number(trace.get("width", math.nan)) / 2 if way == "x" else math.nan
    if math.isfinite(edge):
        values = [*values, *(as_number(value) + sign * edge for value in values for sign in (-1, 1))]
    below, above = _errors(trace, way, len(values))
    ends = [as_number(v) - b for v, b in zip(values, below, strict=False)]
    return [*values, *ends, *(as_number(v) + a for v, a in zip(values, above, strict=False))]


def _errors(trace: Record, way: str, count: int) -> tuple[list[float], list[float]]:
    told = trace.get(f"error_{way}") or {}
    above = [as_number(one) for one in values_of(told.get("array"))][:count]
    below = [as_number(one) for one in values_of(told.get("arrayminus"))][:count]
    return (below or above), above


def as_bars(trace: Record) -> Record:
    """A histogram as bars."""
    if trace.get("type") != "histogram":
        return trace
    values = np.array([as_number(value) for value in values_of(trace.get("x"))])
    values = values[np.isfinite(values)]
    bins = trace.get("xbins", {})
    start, size = as_number(bins.get("start", math.nan)), as_number(bins.get("size", math.nan))
    if not (math.isfinite(start) and size > 0):
        start, size = (float(values.min()), float(np.ptp(values)) / 20 or 1.0) if len(values) else (0.0, 1.0)
    count = min(max(math.ceil((float(values.max(initial=start)) - start) / size - 1e-9), 1), 2000)
    counts, _ = np.histogram(values, bins=start + size * np.arange(count + 1))
    shown = counts / max(len(values), 1) if trace.get("histnorm") == "probability" else counts
    middles = (start + size * (np.arange(count) + 0.5)).tolist()
    return {**trace, "type": "bar", "x": middles, "y": shown.tolist(), "width": size}


def draw_trace(
    trace: Record, colour: str, x: Axis, y: Axis, box: Box, shift: float | int, layout: Record
) -> Iterator[str]:
    """The elements of one trace, inside its panel."""
    if trace.get("type") == "heatmap":
        yield from _heatmap(trace, x, y, box, layout)
        return
    lefts = [share * box.width for share in x.at(values_of(trace.get("x")), shift)]
    tops = [(1 - share) * box.height for share in y.at(values_of(trace.get("y")), shift)]
    opacity = f' opacity="{as_number(trace.get("opacity", 1)):.2g}"'
    yield f"<g{opacity}>"
    if trace.get("type") == "bar":
        yield from _bars(trace, colour, x, y, box, lefts, tops)
    else:
        yield from _points(trace, colour, (x, y), box, (lefts, tops))
    yield "</g>"


def _bars(trace: Record, colour: str, x: Axis, y: Axis, box: Box, lefts: Sequence[float], tops: Sequence[float]
          ) -> Iterator[str]:  # fmt: skip
    fill = fill_of(_colour_of(trace, colour))
    slot = box.width / max(abs(x.high - x.low), 1e-9)
    wide = max(slot * (as_number(trace["width"]) if "width" in trace else 0.65), 0.8)
    base = min(max((1 - y.at([0])[0]) * box.height, 0), box.height) if not y.log else box.height
    for left, top in zip(lefts, tops, strict=False):
        if math.isfinite(left) and math.isfinite(top) and abs(base - top) > 0.05:
            yield (f'<rect x="{left - wide / 2:.1f}" y="{min(top, base):.1f}" width="{wide:.1f}" '
                   f'height="{abs(base - top):.1f}" {fill}/>')  # fmt: skip


def _points(trace: Record, colour: str, axes: tuple[Axis, Axis], box: Box, places: tuple[list[float], list[float]]
            ) -> Iterator[str]:  # fmt: skip
    lefts, tops = places
    mode = str(trace.get("mode", "lines"))
    if trace.get("fill") in ("toself", "tozeroy", "tonexty"):
        points = [(a, b) for a, b in zip(lefts, tops, strict=False) if math.isfinite(a) and math.isfinite(b)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in _thinned(points))
        yield f'<polygon points="{path}" {fill_of(trace.get("fillcolor", colour))}/>'
    shade = trace.get("line", {}).get("color") or _colour_of(trace, colour)
    if "lines" in mode and as_number(trace.get("line", {}).get("width", 2)) > 0:
        yield from _lines(trace, shade, lefts, tops)
    yield from _error_bars(trace, shade, axes, box, places)
    if "markers" in mode:
        yield from _markers(trace, colour, lefts, tops)


def _lines(trace: Record, shade: str, lefts: Sequence[float], tops: Sequence[float]) -> Iterator[str]:
    line, piece = trace.get("line", {}), []
    for left, top in [*zip(lefts, tops, strict=False), (math.nan, math.nan)]:
        if math.isfinite(left) and math.isfinite(top):
            piece.append((left, top))
            continue
        if len(piece) > 1:
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in _thinned(piece))
            look = stroke_of(shade, line.get("width", 2), line.get("dash", "solid"))
            yield f'<polyline points="{path}" fill="none" {look}/>'
        piece = []


def _thinned(points: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Without points that lie on the one before."""
    last = (math.nan, math.nan)
    for point in points:
        if not (abs(point[0] - last[0]) < 0.7 and abs(point[1] - last[1]) < 0.7):
            last = point
            yield point


def _error_bars(trace: Record, shade: str, axes: tuple[Axis, Axis], box: Box, places: tuple[list[float], list[float]]
                ) -> Iterator[str]:  # fmt: skip
    for way, axis in zip("xy", axes, strict=True):
        values = values_of(trace.get(way))
        below, above = _errors(trace, way, len(values))
        told = trace.get(f"error_{way}") or {}
        colour, thick = told.get("color", shade), told.get("thickness", 1.5)
        for value, low, high, left, top in zip(values, below, above, *places, strict=False):
            ends = axis.at([as_number(value) - low, as_number(value) + high])
            if all(map(math.isfinite, (*ends, left, top))):
                yield (
                    line_at(ends[0] * box.width, top, ends[1] * box.width, top, colour, thick) if way == "x"
                    else line_at(left, (1 - ends[0]) * box.height, left, (1 - ends[1]) * box.height, colour, thick)
                )  # fmt: skip


def _markers(trace: Record, colour: str, lefts: Sequence[float], tops: Sequence[float]) -> Iterator[str]:
    marker = trace.get("marker", {})
    sizes, shades = marker.get("size", 6), marker.get("color") or _colour_of(trace, colour)
    sizes = values_of(sizes) if isinstance(sizes, (list, Mapping)) else [sizes] * len(lefts)
    shades = values_of(shades) if isinstance(shades, (list, Mapping)) else [shades] * len(lefts)
    faint = as_number(marker.get("opacity", 1))
    symbol = marker.get("symbol", "circle")
    symbols = values_of(symbol) if isinstance(symbol, (list, Mapping)) else [symbol] * len(lefts)
    seen: set[tuple[int, int]] = set()
    for left, top, size, shade, kind in zip(lefts, tops, sizes, shades, symbols, strict=False):
        if math.isfinite(left) and math.isfinite(top) and (round(left * 2), round(top * 2)) not in seen:
            seen.add((round(left * 2), round(top * 2)))
            yield _mark(kind, left, top, as_number(size) / 2, shade if isinstance(shade, str) else ACCENT, faint)


def _mark(symbol: Any, x: float | int, y: float | int, r: float | int, colour: str, opacity: float | int = 1.0) -> str:
    if isinstance(symbol, (int, float)):
        symbol = _SYMBOLS[int(symbol) % 100 % len(_SYMBOLS)] + ("-open" if int(symbol) % 200 >= 100 else "")
    name = str(symbol)
    look = (
        f'fill="none" {stroke_of(colour, 1.4)}' if name.endswith("-open") or name in ("cross", "x") else fill_of(colour)
    )
    look += f' opacity="{opacity:.2g}"' if opacity < 1 else ""
    name = name.removesuffix("-open").removesuffix("-thin")
    tall = r * 1.25
    paths = {
        "square": f"M{x - r:.1f} {y - r:.1f}h{2 * r:.1f}v{2 * r:.1f}h{-2 * r:.1f}z",
        "diamond": f"M{x:.1f} {y - tall:.1f}l{r:.1f} {tall:.1f}l{-r:.1f} {tall:.1f}l{-r:.1f} {-tall:.1f}z",
        "triangle-up": f"M{x:.1f} {y - r:.1f}l{r:.1f} {1.7 * r:.1f}h{-2 * r:.1f}z",
        "triangle-down": f"M{x:.1f} {y + r:.1f}l{r:.1f} {-1.7 * r:.1f}h{-2 * r:.1f}z",
        "cross": f"M{x - r:.1f} {y:.1f}h{2 * r:.1f}M{x:.1f} {y - r:.1f}v{2 * r:.1f}",
        "x": f"M{x - r:.1f} {y - r:.1f}l{2 * r:.1f} {2 * r:.1f}M{x + r:.1f} {y - r:.1f}l{-2 * r:.1f} {2 * r:.1f}",
    }
    if name in paths:
        return f'<path d="{paths[name]}" {look}/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" {look}/>'


def swatch(trace: Record, colour: str, x: float | int, y: float | int) -> Iterator[str]:
    """What stands for a trace in the legend."""
    mode = str(trace.get("mode", "lines"))
    if trace.get("type") == "bar":
        yield f'<rect x="{x + 5}" y="{y - 5}" width="12" height="10" {fill_of(_colour_of(trace, colour))}/>'
        return
    shade = trace.get("line", {}).get("color") or _colour_of(trace, colour)
    if "lines" in mode:
        yield line_at(x, y, x + 20, y, shade, 2, trace.get("line", {}).get("dash", "solid"))
    elif trace.get("fill"):
        yield f'<rect x="{x + 2}" y="{y - 5}" width="16" height="10" {fill_of(trace.get("fillcolor", colour))}/>'
    if "markers" in mode:
        symbol = trace.get("marker", {}).get("symbol", "circle")
        yield _mark(symbol if isinstance(symbol, (str, int)) else "circle", x + 10, y, 4, _colour_of(trace, colour))


def _colour_of(trace: Record, colour: str) -> str:
    told = [trace.get(name, {}).get("color") for name in ("marker", "line")]
    return next((one for one in told if isinstance(one, str)), colour)


# --- heatmaps ---------------------------------------------------------------------------------------------------------


def _heatmap(trace: Record, x: Axis, y: Axis, box: Box, layout: Record) -> Iterator[str]:
    z = np.array([[as_number(one) for one in row] for row in values_of(trace.get("z"))], dtype=float)
    if z.ndim != 2 or not z.size:
        return
    scale = layout.get("coloraxis", {}) if "coloraxis" in trace else trace
    colours = coloured(z, *limits_of(scale, z), scale)
    lefts = [share * box.width for share in x.at(values_of(trace.get("x")) or range(z.shape[1]))]
    tops = [(1 - share) * box.height for share in y.at(values_of(trace.get("y")) or range(z.shape[0]))]
    wide = abs(lefts[1] - lefts[0]) if len(lefts) > 1 else box.width / max(abs(x.high - x.low), 1e-9)
    high = abs(tops[1] - tops[0]) if len(tops) > 1 else box.height / max(abs(y.high - y.low), 1e-9)
    if z.size > _CELLS:
        turned = colours[:: 1 if tops[-1] >= tops[0] else -1, :: 1 if lefts[-1] >= lefts[0] else -1]
        left, top = min(lefts[0], lefts[-1]) - wide / 2, min(tops[0], tops[-1]) - high / 2
        yield pixels(turned, Box(left, top, wide * z.shape[1], high * z.shape[0]))
        return
    gap = min(as_number(trace.get("xgap", 0)), wide / 8, high / 12)
    texts = values_of(trace.get("text")) if trace.get("texttemplate") else []
    size = min(TEXT_SIZE, high * 0.7, wide / 2.6)
    for row, top in enumerate(tops):
        for column, left in enumerate(lefts):
            red, green, blue, alpha = colours[row, column]
            if alpha:
                faint = f' fill-opacity="{alpha / 255:.2g}"' if alpha < 255 else ""
                yield (f'<rect x="{left - wide / 2 + gap / 2:.1f}" y="{top - high / 2 + gap / 2:.1f}" '
                       f'width="{wide - gap:.1f}" height="{high - gap:.1f}" '
                       f'fill="#{red:02x}{green:02x}{blue:02x}"{faint}/>')  # fmt: skip
            if texts and size >= 4.5 and texts[row][column] not in (None, ""):
                bright = 0.3 * red + 0.6 * green + 0.1 * blue > 130
                shade = INK if alpha < 128 else "#15181c" if bright else "#f7f8f9"
                yield text_at(left, top + size * 0.36, texts[row][column], "middle", size, shade)


def limits_of(scale: Record, z: Any) -> tuple[float, float]:
    """The values at both ends of a scale of colours: those that it tells, or else those of the cells."""
    values = np.asarray(z, dtype=float)
    values = values[np.isfinite(values)]
    low, high = (as_number(scale.get(f"c{end}", scale.get(f"z{end}"))) for end in ("min", "max"))
    low = low if math.isfinite(low) else float(values.min()) if values.size else 0.0
    return low, high if math.isfinite(high) else float(values.max()) if values.size else 1.0


def coloured(z: np.ndarray, low: float | int, high: float | int, scale: Record) -> np.ndarray:
    """Red, green, blue and opacity of every cell."""
    pairs = [pair for pair in values_of(scale.get("colorscale")) if isinstance(pair, (list, tuple))]
    stops = [(as_number(place), _rgba(colour)) for place, colour in pairs] or [
        (0.0, _rgba("#ffffff")),
        (1.0, _rgba(ACCENT)),
    ]
    shares = np.clip((z - low) / ((high - low) or 1.0), 0, 1)
    known = np.isfinite(shares)
    places = [place for place, _ in stops]
    channels = [np.interp(np.where(known, shares, 0), places, [colour[i] for _, colour in stops]) for i in range(4)]
    channels[3] = np.where(known, channels[3], 0)
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _rgba(colour: str) -> tuple[float, float, float, float]:
    text = str(colour).strip().lower()
    if re.fullmatch(r"#[0-9a-f]{6}", text):
        return float(int(text[1:3], 16)), float(int(text[3:5], 16)), float(int(text[5:7], 16)), 255.0
    numbers = [float(one) for one in re.findall(r"[\d.]+", text)] if text.startswith("rgb") else []
    if len(numbers) in (3, 4):
        return numbers[0], numbers[1], numbers[2], 255 * (numbers[3] if len(numbers) == 4 else 1.0)
    return 128.0, 128.0, 128.0, 255.0


def pixels(colours: np.ndarray, box: Box, most: int = _LARGEST) -> str:
    """Cells as an image inside the picture, so large that nothing blurs it, but of at most so many pixels."""
    rows, columns = colours.shape[:2]
    times = max(1, min(most // max(rows, columns, 1), 8))
    large = colours.repeat(times, axis=0).repeat(times, axis=1)
    source = "data:image/png;base64," + base64.b64encode(_png(large)).decode()
    return (
        f'<image x="{box.left:.1f}" y="{box.top:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" '
        f'preserveAspectRatio="none" style="image-rendering:pixelated" href="{source}"/>'
    )


def _png(colours: np.ndarray) -> bytes:
    """An image file: one block of rows, each with the filter "none" before it."""
    height, width = colours.shape[:2]
    rows = np.concatenate([np.zeros((height, 1), np.uint8), colours.reshape(height, width * 4)], axis=1)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    body = zlib.compress(rows.tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


# --- elements ---------------------------------------------------------------------------------------------------------


def text_at(
    x: float | int, y: float | int, text: Any, anchor: str = "start", size: float | int = TEXT_SIZE, colour: str = INK
) -> str:
    """A text, escaped."""
    own = f' font-size="{size:.1f}"' if size != TEXT_SIZE else ""
    where = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{where}{own} {fill_of(colour)}>{html.escape(plain_label(text))}</text>'


def line_at(
    x0: float | int,
    y0: float | int,
    x1: float | int,
    y1: float | int,
    colour: str,
    width: float | int = 1,
    dash: str = "solid",
) -> str:
    """A straight line."""
    return f'<path d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}" {stroke_of(colour, width, dash)}/>'


def _paint(colour: Any) -> tuple[str, float]:
    """A colour that may stand in an attribute, and how opaque it is."""
    if colour == INK:
        return "currentColor", 1.0
    if colour == GRID:
        return "currentColor", 0.2
    if colour == "none":
        return "none", 1.0
    red, green, blue, alpha = _rgba(colour)
    return f"#{int(red):02x}{int(green):02x}{int(blue):02x}", alpha / 255


def fill_of(colour: Any) -> str:
    """Attributes that fill with a colour of plotly's."""
    shade, alpha = _paint(colour)
    return f'fill="{shade}"' + (f' fill-opacity="{alpha:.2g}"' if alpha < 1 else "")


def stroke_of(colour: Any, width: Any = 1, dash: str = "solid") -> str:
    """Attributes that draw a line in a colour of plotly's."""
    shade, alpha = _paint(colour)
    pattern = f' stroke-dasharray="{_DASHES[dash]}"' if dash in _DASHES else ""
    faint = f' stroke-opacity="{alpha:.2g}"' if alpha < 1 else ""
    return f'stroke="{shade}" stroke-width="{as_number(width):.2g}"{pattern}{faint}'
