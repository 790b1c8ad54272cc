"""The still picture of a view holds what the view holds, in its colours, and is only a picture."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import mechrep
from mechrep.viewer import still
from mechrep.viewer.assets import viewer_script

SVG = "{http://www.w3.org/2000/svg}"
LOOP = [0, *range(30, 44), *[50, 51, 52, 53, 54] * 6]
HOSTILE = "</svg><script>alert(1)</script>\x00\x1b\ud800\u202e"


@pytest.fixture(scope="module")
def model() -> mechrep.Model:
    return mechrep.load_model("mechrep-tiny")


@pytest.fixture(scope="module")
def looked(model: mechrep.Model) -> Any:
    return mechrep.view(model, LOOP, ["surprisal", "L2N5", "L2H0"])


def test_colours_and_rows_are_those_of_the_script(looked: Any) -> None:
    light = viewer_script().split("light: {")[1].split("dark: {")[0]
    for name, stops in still.RAMPS.items():
        assert re.findall("#[0-9a-f]{6}", light.split(f"{name}: [")[1].split("]")[0]) == list(stops)
    rows = still.loop_rows(looked.payload()["cycle"])
    assert [list(looked.corpus.row(0)[row.start : row.stop]) for row in rows[:2]] == [LOOP[15:20]] * 2


def test_every_token_is_there_in_the_colour_of_its_number(looked: Any) -> None:
    tree = ElementTree.fromstring(looked.to_svg())
    words = [one for one in tree.iter(f"{SVG}text") if one.get("textLength")]
    assert [one.text for one in words] == [still._shown(token) for token in looked.tokens if token.strip()]
    backs = [one.attrib for one in tree.iter(f"{SVG}rect") if one.get("rx") == "2" and one.get("height") == "19.0"]
    values = looked.values["surprisal"]
    assert len(backs) == int(np.isfinite(values).sum())
    strongest = backs[int(np.nanargmax(values[1:]))]["fill"]
    assert sum(int(strongest[at : at + 2], 16) for at in (1, 3, 5)) == min(
        sum(int(one["fill"][at : at + 2], 16) for at in (1, 3, 5)) for one in backs
    )


@pytest.mark.parametrize("quantities", [(), "L1H1", ["L2N5"], {"mine": [float("nan")] * len(LOOP)}])
def test_anything_that_can_be_viewed_can_be_drawn(model: mechrep.Model, quantities: Any, tmp_path: Path) -> None:
    view = mechrep.view(model, LOOP, quantities, cycle=None if quantities == "L1H1" else "auto")
    view.save(tmp_path / "x.svg")
    tree = ElementTree.fromstring((tmp_path / "x.svg").read_text(encoding="utf-8"))
    assert float(tree.get("height", 0)) > 60 and not re.search("nan|inf", "".join(map(str, tree.attrib.values())))


def test_wide_loops_become_cells_and_long_ones_are_folded(model: mechrep.Model) -> None:
    wide = [0, *(list(range(100, 160)) * 3)]
    tree = ElementTree.fromstring(mechrep.view(model, wide).to_svg())
    assert not [one for one in tree.iter(f"{SVG}text") if one.get("textLength") and float(one.get("y", 0)) > 150]
    many = mechrep.view(model, [0, *[50, 51, 52, 53, 54] * 40])
    assert "more repetitions" in many.to_svg() and float(ElementTree.fromstring(many.to_svg()).get("height", 0)) < 400


def test_nothing_in_a_text_can_break_out(looked: Any) -> None:
    payload = looked.payload() | {"tokens": [HOSTILE] * len(LOOP), "model": HOSTILE, "under": HOSTILE}
    payload["quantities"] = [one | {"name": HOSTILE, "unit": HOSTILE} for one in payload["quantities"]]
    tree = ElementTree.fromstring(still.still_of(payload))
    assert {one.tag.removeprefix(SVG) for one in tree.iter()} <= {"svg", "rect", "text", "tspan", "path", "image"}
    assert not any(key.startswith("on") for one in tree.iter() for key in one.attrib)


def test_attention_is_that_of_the_script(looked: Any) -> None:
    payload = looked.payload()
    pattern = still._pattern(still._levels(payload["maps"][0]["data"]), len(LOOP))
    np.testing.assert_array_equal(pattern, looked.attention(2, 0))
    pooled = still._pooled(pattern, 7)
    assert pooled.max() == pattern.max() and pooled.shape == (7, 7)
    alone = still._Still(looked.payload() | {"quantities": [payload["quantities"][2]]}, 860)
    focus, shades = alone.colours.focus, alone.colours.shades
    assert focus == payload["cycle"]["start"] + 5
    top = still._top(pattern)
    for place, shade in enumerate(shades):
        assert shade is not None
        expected = pattern[focus, place] if place <= focus else pattern[place, focus]
        assert shade[1] == pytest.approx(np.sqrt(expected / top)) and shade[0] == ("warm" if place <= focus else "cool")
