"""The card over training as a figure: what is drawn is what was measured."""

from __future__ import annotations

import json
import math

import pandas as pd
import plotly.graph_objects as go

from mechrep.studies.card import history_figure

REVISIONS = ["step0", "step8", "step64"]
TOKENS = {"step0": 0, "step8": 16_384, "step16": 32_768, "step64": 131_072}


def history(revisions: list[str] = REVISIONS) -> pd.DataFrame:
    rows = []
    for number, (measure, least, most) in enumerate([("a < b", 0.25, 0.85), ("open", math.nan, math.nan)]):
        for step, revision in enumerate(revisions):
            value = 0.1 * step + number
            low, high = (value - 0.05, value + 0.05) if number == 0 else (math.nan, math.nan)
            rows.append(("<b>loops</b>", measure, value, low, high, least, most, revision))
    columns = ["phenomenon", "measure", "value", "low", "high", "least", "most", "revision"]
    return pd.DataFrame(rows, columns=columns)


def lines(figure: go.Figure) -> list[go.Scatter]:
    return [trace for trace in figure.data if trace.mode == "lines+markers"]


def bars(figure: go.Figure) -> list[float]:
    return [trace.y[0] for trace in figure.data if trace.line.dash == "dot"]


def test_values_bars_and_places_are_those_of_the_table() -> None:
    figure = history_figure(history(), "my <model>", TOKENS)
    first, second = lines(figure)
    assert list(first.y) == [0.0, 0.1, 0.2] and list(second.y) == [1.0, 1.1, 1.2]
    assert list(first.x) == [8192.0, 16_384.0, 131_072.0], "nothing seen stands left of the first place, at half of it"
    assert bars(figure) == [0.25, 0.85]
    assert all(axis.type == "log" for axis in figure.select_xaxes())
    assert "<b>loops</b>" not in figure.to_json().replace("\\u003c", "<"), "markup in names is shown, not obeyed"
    assert figure.layout.title.subtitle.text == "my &lt;model&gt;"


def test_revisions_without_tokens_stand_side_by_side() -> None:
    figure = history_figure(history(["main", "<i>x</i>"]), "hub/model")
    assert list(lines(figure)[0].x) == ["main", "&lt;i&gt;x&lt;/i&gt;"]
    assert lines(figure)[0].customdata[1][0] == "&lt;i&gt;x&lt;/i&gt;"
    assert all(axis.type != "log" for axis in figure.select_xaxes())
    assert json.loads(figure.to_json())["data"]


def test_one_checkpoint_is_a_figure_too() -> None:
    figure = history_figure(history(["step0"]), "m", TOKENS)
    assert list(lines(figure)[0].x) == [8192.0]
