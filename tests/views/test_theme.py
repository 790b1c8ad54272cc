"""The look: legible on white and on dark, distinct, and without markup from names."""

from __future__ import annotations

import itertools

import plotly.graph_objects as go
import plotly.io
import pytest

from mechrep.ablation.controls import CONTROLS
from mechrep.figures import ACCENT, INK, SEQUENCE, STYLES, style_of, styled

PAGES = ("#ffffff", "#15181d")


def luminance(colour: str) -> float:
    """Relative luminance, by the definition of WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("page", PAGES)
def test_colours_are_legible_on_white_and_on_dark(page: str) -> None:
    drawn = {ACCENT, *SEQUENCE, *(style.colour for style in STYLES.values())}
    assert min(contrast(colour, page) for colour in drawn) >= 3  # WCAG for graphics
    assert contrast(INK, page) >= 4


def test_every_selection_has_its_own_colour_dash_and_symbol() -> None:
    assert set(STYLES) - {"top"} <= set(CONTROLS)
    for one, other in itertools.combinations(STYLES.values(), 2):
        assert one.colour != other.colour and one.dash != other.dash and one.symbol != other.symbol
    for style in STYLES.values():
        parts = [int(style.colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert max(parts) - min(parts) > 60  # none is grey


def test_unknown_selections_are_told_apart() -> None:
    assert style_of("mine", 0).colour != style_of("yours", 1).colour


def test_styling_one_figure_leaves_the_default_of_others() -> None:
    before = plotly.io.templates.default
    figure = styled(go.Figure(), title="<b>x</b>", subtitle="", x="<i>", y="&")
    assert plotly.io.templates.default == before
    assert figure.layout.paper_bgcolor == "rgba(0,0,0,0)"
    assert (figure.layout.title.text, figure.layout.xaxis.title.text) == ("&lt;b&gt;x&lt;/b&gt;", "&lt;i&gt;")
