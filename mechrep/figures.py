"""One look for all figures: colours, fonts and grid that can be read on a white page and on a dark one.

Figures are transparent, because a notebook does not say whether its page is white or dark.  :data:`INK` and the colours
below have a contrast between 3.3 and 5.3 with both, which is what a single colour can have.  The report knows its page
and replaces :data:`INK`, :data:`GRID` and :data:`PAPER` by stronger ones.

Attention as colour, on one scale from 0 to 1: maps of single heads with their tokens, and what other maps share.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mechrep.colours import ACCENT as ACCENT
from mechrep.colours import DASHES as DASHES
from mechrep.colours import FONT as FONT
from mechrep.colours import GRID as GRID
from mechrep.colours import HEIGHT as HEIGHT
from mechrep.colours import INK as INK
from mechrep.colours import PAPER as PAPER
from mechrep.colours import PAPER_INK as PAPER_INK
from mechrep.colours import SEQUENCE as SEQUENCE
from mechrep.errors import InputError
from mechrep.guards import guarded

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from mechrep.drawn import Figure


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
        >>> import plotly.graph_objects as go
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
            "y": 1,  # from above, so that it stays at the top of a tall figure
            "pad": {"t": 13},
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


def new_figure() -> Figure:
    """An empty figure; it shows itself also where plotly's own code is missing (:mod:`mechrep.drawn`)."""
    from mechrep.drawn import Figure

    return Figure()


@guarded
def save_figure(figure: go.Figure, path: str | Path) -> Path:
    """Write a figure to a file: ``.svg``, ``.png``, ``.pdf`` as a picture, ``.html`` live and without network.

    Pictures need kaleido (``pip install 'mechrep[figures]'``) and Chrome or Chromium; ``.html`` needs nothing.

    Args:
        figure: what ``plot()`` gave.
        path: the file; its ending says how it is drawn.

    Returns:
        The path.

    Raises:
        InputError: an unknown ending, or no kaleido or no browser for it, with what to install.
        StoreError: the file cannot be written.

    Example:
        >>> save_figure(new_figure(), "loss.bmp")
        Traceback (most recent call last):
        mechrep.errors.InputError: given: 'loss.bmp'; expected: a file ending in .html, ...
    """
    from mechrep.drawn import save

    return save(figure, path)


def axes_figure(
    values: Shaped[Tensor, ...], axes: Sequence[str], *, name: str, subtitle: str, most: int = 256
) -> go.Figure:
    """Any table of numbers along one or two axes: a line, a map, or, where there are very many columns, their range.

    Args:
        values: the table.
        axes: names of its axes.
        name: what the numbers are.
        subtitle: of which model, on how many texts.
        most: columns that a map can show.

    Example:
        >>> figure = axes_figure(torch.eye(3), ["layer", "head"], name="score", subtitle="my model")
        >>> figure.data[0].type, len(axes_figure(torch.rand(2, 999), ["layer", "neuron"], name="d", subtitle="").data)
        ('heatmap', 3)
    """
    import plotly.graph_objects as go

    figure, numbers, words = new_figure(), values.detach().double().cpu().numpy(), [a.replace("_", " ") for a in axes]
    title = name.replace("_", " ")
    if numbers.ndim == 2 and numbers.shape[1] <= most:
        bar = {"title": {"text": plain(title), "side": "right"}, "thickness": 14, "outlinewidth": 0}
        figure.add_trace(go.Heatmap(z=numbers, colorscale=list(SHARES), colorbar=bar))
        return styled(figure, title=title, subtitle=subtitle, x=words[1], y=words[0])
    if numbers.ndim == 1:
        lines = {title: numbers}
    else:
        some = np.where(np.isnan(numbers).all(1, keepdims=True), 0.0, numbers)  # rows of nothing have no quantiles
        shares = {f"largest {words[1]}": 1.0, f"median {words[1]}": 0.5, f"smallest {words[1]}": 0.0}
        lines = {label: np.nanquantile(some, share, axis=1) for label, share in shares.items()}
    for (label, line), colour, dash in zip(lines.items(), SEQUENCE, DASHES, strict=False):
        pen = {"color": colour, "dash": dash}
        figure.add_trace(go.Scatter(y=line, name=plain(label), mode="lines+markers", line=pen))
    return styled(figure, title=title, subtitle=subtitle, x=words[0], y=title)


def counted(number: int, what: str) -> str:
    """A number and its noun, with the plural where it belongs.

    Example:
        >>> counted(1, "text"), counted(1408, "neuron")
        ('1 text', '1,408 neurons')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


# Opaque, because no number can be read on a translucent cell both over a white page and over a dark one; and rising in
# lightness for every kind of colour blindness.
SHARES = (
    "#440154",
    "#482878",
    "#3e4989",
    "#31688e",
    "#26828e",
    "#1f9e89",
    "#35b779",
    "#6ece58",
    "#b5de2b",
    "#fde725",
)  # plotly's Viridis
COLUMNS = 2  # panels side by side
_GAP = 128  # pixels between rows of panels: axis titles of one, two lines of title of the next
_TOP = 140  # title, subtitle and the first panels' titles
_MARGIN = 200  # pixels above and below all panels
_TICKS = 48  # tokens that an axis names; more of them stand in the labels under the pointer only
_LONGEST = 16  # characters of a token
_ROUNDING = 1e-2  # of half precision
_MARKS = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥"}


def attention_map_figure(
    pattern: Float[Tensor, "query_pos key_pos"], tokens: Sequence[str], *, title: str, name: str
) -> go.Figure:
    """What one head looks at: queries downwards, keys across, both with their tokens.

    Args:
        pattern: attention of one head on one text.
        tokens: of the text, decoded one by one.
        title: which head this is.
        name: of the model.

    Raises:
        InputError: a pattern of another length than the tokens, with numbers that are no attention, or with attention
            to later tokens (queries are rows, keys are columns).

    Example:
        >>> import torch
        >>> pattern = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
        >>> figure = attention_map_figure(pattern, ["<s>", " cat"], title="L0H3", name="mechrep-tiny")
        >>> figure.data[0].z.tolist(), list(figure.layout.xaxis.labelalias.values())
        ([[1.0, nan], [0.25, 0.75]], ['&lt;s&gt;', '␣cat'])
    """
    return _maps([pattern], [""], tokens, title=title, name=name)


def attention_maps_figure(
    patterns: Mapping[tuple[int, int], Float[Tensor, "query_pos key_pos"]], tokens: Sequence[str], *, name: str
) -> go.Figure:
    """What some heads look at on one text, a panel each; see :func:`attention_map_figure`.

    Args:
        patterns: attention by ``(layer, head)``, in the order of the panels.
        tokens: of the text, decoded one by one.
        name: of the model.

    Raises:
        InputError: no pattern, or one that :func:`attention_map_figure` would refuse.

    Example:
        >>> import torch
        >>> patterns = {(0, 3): torch.eye(2), (1, 2): torch.tensor([[1.0, 0.0], [1.0, 0.0]])}
        >>> figure = attention_maps_figure(patterns, ["a", "b"], name="mechrep-tiny")
        >>> [panel.text for panel in figure.layout.annotations]
        ['L0H3', 'L1H2']
    """
    if not patterns:
        raise InputError("no attention patterns", "one per head to draw", "name some heads")
    titles = [f"L{layer}H{head}" for layer, head in patterns]
    return _maps(list(patterns.values()), titles, tokens, title="What these heads look at", name=name)


def shown_token(token: str) -> str:
    """A token for a figure: blanks are marked, what cannot be seen is written out, and nothing acts as markup.

    Example:
        >>> [shown_token(token) for token in (" <b>", "\\n\\n", "\\u202e", "$x$", "")]
        ['␣&lt;b&gt;', '↵↵', '\\\\u202e', '&#36;x&#36;', '∅']
    """
    whole = "".join(
        _MARKS.get(character)
        # Controls, formats (which can turn the order of letters round), lone surrogates, other blanks.
        or (character.encode("unicode_escape").decode() if unicodedata.category(character)[0] in "CZ" else character)
        for character in token
    )
    short = whole if len(whole) <= _LONGEST else whole[: _LONGEST - 1] + "…"
    return plain(short).replace("$", "&#36;") or "∅"  # plotly would set what stands between dollars as TeX


def panels(titles: Sequence[str], height: int) -> go.Figure:
    """An empty figure with a panel per title, :data:`COLUMNS` side by side.

    Args:
        titles: of the panels, ready for plotly (names in them escaped).
        height: of one panel, in pixels.

    Example:
        >>> panels(["a", "b", "c"], 200).layout.height
        728
    """
    from plotly.subplots import make_subplots

    columns = min(COLUMNS, len(titles))
    rows = -(-len(titles) // columns)
    inside = rows * height + (rows - 1) * _GAP
    figure = make_subplots(
        rows,
        columns,
        subplot_titles=list(titles),
        vertical_spacing=_GAP / inside,
        horizontal_spacing=0.12,
        figure=new_figure(),
    )
    return figure.update_annotations(font_size=12).update_layout(height=inside + _MARGIN)


def place_of(index: int) -> dict[str, int]:
    """Row and column of a panel of :func:`panels`, as plotly counts them.

    Example:
        >>> place_of(2)
        {'row': 2, 'col': 1}
    """
    return {"row": index // COLUMNS + 1, "col": index % COLUMNS + 1}


def finished(figure: go.Figure, *, title: str, subtitle: str, x: str, y: str, share: str = "") -> go.Figure:
    """Style all panels alike, as :func:`mechrep.figures.styled` does the first; the figure keeps its height.

    Args:
        figure: of :func:`panels`, changed in place.
        title: what is measured.
        subtitle: of which model, on how much.
        x: title of the x axes.
        y: title of the y axes.
        share: what the colours from 0 to 1 mean; without it there is no scale.

    Returns:
        The same figure.
    """
    height: Any = figure.layout["height"]
    styled(figure, title=title, subtitle=subtitle, x=x, y=y)
    axis = AXIS | {"showgrid": False}
    figure.update_xaxes(axis | {"title": {"text": plain(x), "standoff": 8}, "showline": True})
    figure.update_yaxes(axis | {"title": {"text": plain(y), "standoff": 8}})
    if share:
        bar = {"title": {"text": share, "side": "right"}, "thickness": 14, "outlinewidth": 0, "ticks": "outside"}
        size = {"lenmode": "pixels", "len": min(260, height - _MARGIN), "y": 1, "yanchor": "top"}
        figure.update_layout(coloraxis={"cmin": 0, "cmax": 1, "colorscale": list(SHARES), "colorbar": bar | size})
    return figure.update_layout(height=height, margin={"t": _TOP})


def tick_step(n: int, most: int = 16) -> int:
    """Every how many places an axis of ``n`` places gets a tick, for ``most`` ticks.

    Example:
        >>> tick_step(12), tick_step(100)
        (1, 7)
    """
    return max(1, -(-n // most))


def _maps(
    patterns: Sequence[Float[Tensor, "_ _"]],
    titles: Sequence[str],
    tokens: Sequence[str],
    *,
    title: str,
    name: str,
) -> go.Figure:
    n = len(tokens)
    figure = panels(titles, min(max(14 * n, 260), 620))
    future = torch.ones(n, n, dtype=torch.bool).triu(1)
    for index, pattern in enumerate(patterns):
        _check(pattern, n)
        figure.add_heatmap(
            x=list(range(n)),
            y=list(range(n)),
            z=pattern.detach().cpu().float().masked_fill(future, torch.nan).numpy(),
            coloraxis="coloraxis",
            hoverongaps=False,
            # With a format plotly writes the number of the place, without one the name that the axis has for it.
            hovertemplate="query %{y:d}: %{y}<br>key %{x:d}: %{x}<br>attention %{z:.3f}<extra></extra>",
            **place_of(index),
        )
    subtitle = f"{name}, {counted(n, 'token')}"
    finished(figure, title=title, subtitle=subtitle, x="key (token)", y="query (token)", share="attention")
    # Not tickvals and ticktext: names of all places reach the pointer, but the axis shows those it has room for.
    names = {str(place): shown_token(token) for place, token in enumerate(tokens)}
    step = tick_step(n, _TICKS // min(COLUMNS, len(patterns)))
    axis = {"labelalias": names, "tickformat": "d", "tick0": 0, "dtick": step}
    figure.update_xaxes(axis | {"range": [-0.5, n - 0.5], "tickangle": -90})
    return figure.update_yaxes(axis | {"range": [n - 0.5, -0.5]})


def _check(pattern: Float[Tensor, "query_pos key_pos"], n: int) -> None:
    if n < 1 or tuple(pattern.shape) != (n, n):
        raise InputError(
            f"a pattern of {' x '.join(map(str, pattern.shape))} with {counted(n, 'token')}",
            "as many queries and keys as tokens, and at least one",
            "give the tokens that the pattern was made from",
        )
    low, high = (float(value) for value in pattern.aminmax())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # NaN is neither
        raise InputError(f"numbers from {low:.3g} to {high:.3g}", "attention, from 0 to 1", "take patterns, not scores")
    later = float(pattern.triu(1).max())
    if later > _ROUNDING:
        raise InputError(
            f"attention of {later:.3g} to a later token", "a causal pattern [query_pos key_pos]", "transpose it"
        )


UNKNOWN = translucent(INK, 0.18)  # a cell without a value: grey, which the scale of colours does not contain
_WRITTEN = 32  # heads side by side, over all panels, and layers, whose values fit into their cells


def add_heads(
    figure: go.Figure,
    values: Float[Tensor, "layer head"],
    details: Sequence[Sequence[str]],
    *,
    reason: str,
    index: int = 0,
) -> None:
    """Draw a value per head into one panel of :func:`panels`; values that are NaN are not drawn as numbers.

    Args:
        figure: changed in place.
        values: numbers for the scale from 0 to 1.
        details: what stands under the pointer, per layer and head, ready for plotly.
        reason: why values are missing, where they are; ready for plotly.
        index: of the panel.
    """
    z = values.numpy()
    n_layers, n_heads = z.shape
    place, abreast = place_of(index), min(COLUMNS, len(list(figure.select_xaxes())))
    axes: dict[str, Any] = {"x": np.arange(n_heads), "y": np.arange(n_layers)}
    fits = n_heads * abreast <= _WRITTEN and n_layers <= _WRITTEN
    gap, known = int(fits), ~np.isnan(z)
    figure.add_heatmap(
        **axes,
        z=z,
        coloraxis="coloraxis",
        xgap=gap,
        ygap=gap,
        # Strings and not a format of z: plotly would format the nothing of an empty cell, too.
        text=[["" if np.isnan(value) else f"{value:.2f}" for value in row] for row in z] if fits else None,
        texttemplate="%{text}" if fits else None,
        hovertext=details,
        hoverongaps=False,
        hovertemplate="L%{y}H%{x}: %{z:.3f}<br>%{hovertext}<extra></extra>",
        **place,
    )
    if not known.all():
        figure.add_heatmap(
            **axes,
            z=np.where(known, np.nan, 1.0),
            zmin=0,
            zmax=1,
            colorscale=[[0, UNKNOWN], [1, UNKNOWN]],
            showscale=False,
            xgap=gap,
            ygap=gap,
            name="no value",
            text=[["" if value else "–" for value in row] for row in known] if fits else None,
            texttemplate="%{text}" if fits else None,
            textfont={"color": INK},
            hoverongaps=False,
            hovertemplate=f"L%{{y}} H%{{x}}: no value<br>{reason}<extra></extra>",
            **place,
        )
    figure.update_xaxes(
        {"range": [-0.5, n_heads - 0.5], "dtick": tick_step(n_heads * abreast)}, row=place["row"], col=place["col"]
    )
    figure.update_yaxes(
        {"range": [-0.5, n_layers - 0.5], "dtick": tick_step(n_layers)}, row=place["row"], col=place["col"]
    )


def panel_height(n_layers: int) -> int:
    """Pixels of a panel with a row per layer, between what can be read and what fits on a screen.

    Example:
        >>> panel_height(1), panel_height(12), panel_height(100)
        (150, 360, 640)
    """
    return min(max(30 * n_layers, 150), 640)
