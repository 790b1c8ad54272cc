"""Still pictures hold what the figure holds, in its place, and nothing in a figure can break out of them."""

from __future__ import annotations

import base64
import json
import re
import struct
import zlib
from typing import Any
from xml.etree import ElementTree

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plotly.subplots import make_subplots

from mechrep.pictures.figure import picture_of

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12)
NUMBERS = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True), st.integers(-9, 9))


def drawn(figure: go.Figure, **options: Any) -> ElementTree.Element:
    return ElementTree.fromstring(picture_of(json.loads(str(figure.to_json())), **options))


def circles(tree: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(one.attrib["cx"]), float(one.attrib["cy"])) for one in tree.iter("circle")]


@given(st.lists(NUMBERS, max_size=5), st.lists(st.one_of(NUMBERS, TEXT), max_size=5), TEXT, st.sampled_from(
    ["lines", "markers", "lines+markers", "none"]), st.booleans(), st.booleans())  # fmt: skip
def test_whatever_a_figure_holds_is_escaped(
    x: list[Any], y: list[Any], name: str, mode: str, log: bool, small: bool
) -> None:
    record = {
        "data": [{"type": "scatter", "x": x, "y": y, "name": name, "mode": mode, "showlegend": True,
                  "error_x": {"array": y}, "fill": "toself", "marker": {"color": name, "size": 5}}],
        "layout": {"height": 300, "xaxis": {"title": {"text": name}, "type": "log" if log else None},
                   "annotations": [{"text": f"<script>{name}", "x": 0, "y": 1, "yref": "paper"}]},
    }  # fmt: skip
    tree = ElementTree.fromstring(picture_of(record, first=small))
    assert {one.tag for one in tree.iter()} <= {"svg", "g", "path", "rect", "circle", "text", "polyline", "polygon"}
    assert not any(key.startswith("on") or key == "href" for one in tree.iter() for key in one.attrib)
    assert not re.search(r"nan|inf", " ".join(v for one in tree.iter() for k, v in one.attrib.items() if k != "fill"))


def test_points_lie_where_their_axes_say() -> None:
    figure = go.Figure(go.Scatter(x=[1, 10, 100], y=[0, 1, 4], mode="markers"))
    places = circles(drawn(figure.update_xaxes(type="log")))
    lefts, tops = zip(*places, strict=True)
    assert lefts[2] - lefts[1] == pytest.approx(lefts[1] - lefts[0], abs=0.11)
    assert (tops[0] - tops[2]) / (tops[0] - tops[1]) == pytest.approx(4, rel=0.01)
    turned = circles(drawn(figure.update_yaxes(autorange="reversed")))
    assert turned[0][1] < turned[2][1]


@pytest.mark.parametrize("size", [1e-18, 1e-13, 1e-6, 1.0, 1e9])
def test_numbers_of_any_size_have_ticks_that_differ(size: float) -> None:
    written = [one.text for one in drawn(go.Figure(go.Scatter(x=[0, 1], y=[0, 3 * size]))).iter("text")]
    ticks = written[: written.index("0", 1)]  # those of y come first
    assert len(ticks) > 2 and len(set(ticks)) == len(ticks)


def test_packed_numbers_are_those_that_were_packed() -> None:
    values = np.array([[0.0, 1.0], [2.0, 3.0]], dtype="f4")
    for z in (values, values.tolist()):
        tree = drawn(go.Figure(go.Heatmap(z=z, text=values.tolist(), texttemplate="%{text}", showscale=False)))
        assert len(list(tree.iter("rect"))) == 4
        written = [one.text for one in tree.iter("text")]
        assert [text for text in written if text and "." in text and text.endswith(".0")] == [
            "0.0",
            "1.0",
            "2.0",
            "3.0",
        ]


def test_large_heatmaps_are_images_with_every_cell() -> None:
    z = np.arange(900.0).reshape(30, 30)
    scale = [[0, "#000000"], [1, "#ffffff"]]
    tree = drawn(go.Figure(go.Heatmap(z=z, zmin=0, zmax=899, colorscale=scale, showscale=False)))
    (image,) = tree.iter("image")
    data = base64.b64decode(image.attrib["href"].removeprefix("data:image/png;base64,"))
    width, height = struct.unpack(">II", data[16:24])
    body = zlib.decompress(data[data.index(b"IDAT") + 4 : -16])
    rows = np.frombuffer(body, np.uint8).reshape(height, 1 + 4 * width)[:, 1:].reshape(height, width, 4)
    step = height // 30
    cells = rows[step // 2 :: step, step // 2 :: step, 0]
    np.testing.assert_array_equal(cells[::-1], np.round(z / 899 * 255).astype(np.uint8))  # the first row is below


def test_a_small_picture_is_the_first_panel() -> None:
    figure = make_subplots(1, 2).add_scatter(x=[0, 1], y=[0, 1], mode="markers", row=1, col=1)
    figure.add_scatter(x=[5, 6, 7], y=[0, 1, 2], mode="markers", row=1, col=2)
    assert len(circles(drawn(figure))) == 5 and len(circles(drawn(figure, first=True))) == 2


def test_histograms_count() -> None:
    values = [0.1, 0.2, 0.3, 1.5]
    figure = go.Figure(go.Histogram(x=values, xbins={"start": 0, "end": 2, "size": 1}, histnorm="probability"))
    heights = [float(one.attrib["height"]) for one in drawn(figure).iter("rect")]
    assert len(heights) == 2 and heights[0] / heights[1] == pytest.approx(3, rel=0.02)
