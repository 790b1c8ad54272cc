"""One look for all figures: colours, fonts and grid that can be read on a white page and on a dark one.

Figures are transparent, because a notebook does not say whether its page is white or dark.  :data:`INK` and the colours
below have a contrast between 3.3 and 5.3 with both, which is what a single colour can have.  The report knows its page
and replaces :data:`INK`, :data:`GRID` and :data:`PAPER` by stronger ones.
"""

from __future__ import annotations

import html
from dataclasses import dataclass

import plotly.graph_objects as go

INK = "#747c88"  # text, axes and reference lines
GRID = "rgba(116,124,136,0.22)"
PAPER = "#20242b"  # background of hover labels, which lie over the page
PAPER_INK = "#f2f3f5"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
HEIGHT = 420

ACCENT = "#e8420f"
# One colour per neuron, where several neurons are drawn; line styles differ too.
SEQUENCE = (ACCENT, "#3b82c4", "#b0862a", "#c455b8", "#5d8a3a", "#7a74e6")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


@dataclass(frozen=True)
class Style:
    """How one selection of neurons is drawn, the same in every figure.

    Attributes:
        label: what it is called in legends and tables.
        colour: of line, marker and band.
        dash: of the line.
        symbol: of the markers; controls have open ones.
        width: of the line.
    """

    label: str
    colour: str
    dash: str
    symbol: str
    width: float = 1.6


# Four colours that stay apart for the three kinds of colour blindness (smallest CIE76 distance 16, between two controls
# whose line styles and markers differ too).
STYLES = {
    "top": Style("top neurons", ACCENT, "solid", "circle", 3.0),
    "random": Style("random neurons", "#2a9396", "dash", "square-open"),
    "layer_matched": Style("layer-matched neurons", "#7a74e6", "dot", "diamond-open"),
    "activation_matched": Style("activation-matched neurons", "#c0706e", "dashdot", "triangle-up-open"),
}
AXIS = {
    "gridcolor": GRID,
    "gridwidth": 1,
    "zeroline": False,
    "linecolor": INK,
    "ticks": "outside",
    "ticklen": 4,
    "tickcolor": GRID,
    "automargin": True,
    "title": {"standoff": 12},
}
_OTHERS = ("#5d8a3a", "#b0862a", "#c455b8", "#3b82c4")


def style_of(selection: str, position: int = 0) -> Style:
    """The style of a selection; one that mechrep does not know takes its colour from its position among them.

    Example:
        >>> style_of("top").label, style_of("my own set").label
        ('top neurons', 'my own set')
    """
    known = STYLES.get(selection)
    return known or Style(selection, _OTHERS[position % len(_OTHERS)], "longdash", "cross-open")


def plain(text: object) -> str:
    """Text that plotly shows as it is: labels of a figure may hold markup, and names come from files and models.

    Example:
        >>> plain("<b>net</b> & co")
        '&lt;b&gt;net&lt;/b&gt; &amp; co'
    """
    return html.escape(str(text), quote=False)


def translucent(colour: str, alpha: float) -> str:
    """A ``#rrggbb`` colour as the fill of a band.

    Example:
        >>> translucent("#ff8000", 0.5)
        'rgba(255,128,0,0.5)'
    """
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


def styled(figure: go.Figure, *, title: str, subtitle: str, x: str, y: str) -> go.Figure:
    """Give a figure its title, axis titles and the look of the house; no global template is touched.

    Args:
        figure: changed in place.
        title: what is measured.
        subtitle: of which model, on how many texts.
        x: title of the x axis, with its unit.
        y: title of the y axis, with its unit.

    Returns:
        The same figure.

    Example:
        >>> figure = styled(go.Figure(), title="Loss", subtitle="a < b", x="k (neurons)", y="nats")
        >>> figure.layout.title.subtitle.text, figure.layout.height
        ('a &lt; b', 420)
    """
    # "none" is plotly's own empty template: what other code has made the default does not shine through.
    return figure.update_layout(
        template="none",
        title={
            "text": plain(title),
            "subtitle": {"text": plain(subtitle), "font": {"size": 13, "color": INK}},
            "font": {"size": 17},
            "x": 0,
            "xref": "paper",
            "xanchor": "left",
            "yref": "container",
            "y": 0.97,
            "yanchor": "top",
        },
        font={"family": FONT, "size": 13, "color": INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        height=HEIGHT,
        autosize=True,
        margin={"l": 64, "r": 20, "t": 104, "b": 60},
        hoverlabel={
            "bgcolor": PAPER,
            "bordercolor": PAPER,
            "font": {"family": FONT, "color": PAPER_INK},
            "align": "left",
        },
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": INK, "activecolor": ACCENT},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "title": {"text": ""}},
        xaxis=AXIS | {"title": {"text": plain(x), "standoff": 12}, "showgrid": False, "showline": True},
        yaxis=AXIS | {"title": {"text": plain(y), "standoff": 12}},
        bargap=0.35,
    )


def counted(number: int, what: str) -> str:
    """A number and its noun, with the plural where it belongs.

    Example:
        >>> counted(1, "text"), counted(1408, "neuron")
        ('1 text', '1,408 neurons')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"
