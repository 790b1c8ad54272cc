"""Attention as colour, on one scale from 0 to 1: maps of single heads with their tokens, and what other maps share."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from plotly.colors import sequential
from plotly.subplots import make_subplots
from torch import Tensor

from mechrep.errors import InputError
from mechrep.views.theme import AXIS, counted, plain, styled

# Opaque, because no number can be read on a translucent cell both over a white page and over a dark one; and rising in
# lightness for every kind of colour blindness.
SHARES = tuple(sequential.Viridis)
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
        >>> figure = attention_map_figure(pattern, ["<s>", " cat"], title="L0 H3", name="mechrep-tiny")
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
        ['L0 H3', 'L1 H2']
    """
    if not patterns:
        raise InputError("no attention patterns", "one per head to draw", "name some heads")
    titles = [f"L{layer} H{head}" for layer, head in patterns]
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
    columns = min(COLUMNS, len(titles))
    rows = -(-len(titles) // columns)
    inside = rows * height + (rows - 1) * _GAP
    figure = make_subplots(
        rows, columns, subplot_titles=list(titles), vertical_spacing=_GAP / inside, horizontal_spacing=0.12
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
    """Style all panels alike, as :func:`mechrep.views.theme.styled` does the first; the figure keeps its height.

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
