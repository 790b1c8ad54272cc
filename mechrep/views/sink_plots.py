"""Attention sinks: which heads make them, at which layer the first position grows, and what repeats do to a token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from mechrep.analyzers.sinks.attention_sinks_result import AttentionSinkResult
from mechrep.analyzers.sinks.norms_result import SinkNormResult
from mechrep.analyzers.sinks.repeat_norms_result import RepeatNormResult
from mechrep.errors import InputError
from mechrep.views.attention_plots import finished, panels, shown_token, tick_step
from mechrep.views.head_plots import add_heads, panel_height
from mechrep.views.theme import ACCENT, DASHES, INK, SEQUENCE, counted, plain, styled, translucent

_BOS = "#2a9396"
_REST = translucent(INK, 0.45)  # tokens that have no colour of their own
_DECADES = {"type": "log", "dtick": 1, "tickformat": ",", "minor": {"ticks": "outside", "ticklen": 2, "dtick": "D1"}}


def sink_heads_figure(result: AttentionSinkResult) -> go.Figure:
    """How much attention every head gives to the first position, on one scale of colours from 0 to 1.

    Args:
        result: what was measured; drawn is its ``alpha``, which leaves the first query out.

    Source: Gu et al. 2025 (arXiv 2410.10781), their heat maps of heads.

    Limits: all numbers fall with the length of the texts; the subtitle says what a uniform head would have.

    Example:
        >>> import mechrep
        >>> from mechrep.analyzers.sinks.attention_sinks import AttentionSinks
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea was calm.", "It rained all day."], model=model)
        >>> (result,) = mechrep.CorpusCache(model, corpus).run(AttentionSinks())
        >>> bool((sink_heads_figure(result).data[0].z == result.alpha.numpy()).all())
        True
    """
    threshold = f"α₀ > {result.epsilon:g}"
    share = f"sink rate: {threshold} in {result.sink_share:.1f} % of texts, layers and heads"
    figure = panels([plain(share)], panel_height(result.alpha.shape[0]))
    add_heads(figure, result.alpha, _sink_details(result, plain(threshold)), reason="no text has a second token")
    length = f"{'about ' if result.length_sd > 0 else ''}{result.mean_length:.0f}"
    uniform = "" if math.isnan(result.uniform_alpha) else f"; a uniform head has {result.uniform_alpha:.2f}"
    texts = counted(result.n_texts, "text")
    return finished(
        figure,
        title="Attention of every head to the first position",
        subtitle=f"{result.provenance.model['name']}, {texts} of {length} tokens{uniform}",
        x="head",
        y="layer",
        share="share of attention",
    )


def norms_by_layer_figure(result: SinkNormResult) -> go.Figure:
    """Norm of the residual stream at the first position and elsewhere, from the input of the first layer on.

    Args:
        result: what was measured.

    Source: Yona et al. 2025 (arXiv 2503.08908), figure 1; that the first token's state is massive is Sun et al. 2024
        (arXiv 2402.17762).

    Example:
        >>> import mechrep
        >>> from mechrep.analyzers.sinks.norms import SinkNorms
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea was calm.", "It rained all day."], model=model)
        >>> (result,) = mechrep.CorpusCache(model, corpus).run(SinkNorms())
        >>> [line.name for line in norms_by_layer_figure(result).data]
        ['first position', 'other positions']
    """
    figure, n_layers = go.Figure(), len(result.jump)
    depths = ["input of layer 0", *(f"output of layer {layer}" for layer in range(n_layers))]
    ratios = [f"{ratio:.3g} times the other positions" for ratio in result.ratio.tolist()]
    spreads = [f"± {sd:.3g} (standard deviation over positions)" for sd in result.other_sd.tolist()]
    several = result.n_others > 0
    _add_depths(
        figure, result.first_norm, "first position", ACCENT, 0, depths, ratios if several else [""] * len(depths)
    )
    if several:
        _add_depths(figure, result.other_norm, "other positions", INK, 1, depths, spreads)
    counts = f"{counted(result.n_texts, 'text')}, {counted(result.n_others, 'other position')}"
    styled(
        figure,
        title="Size of the residual stream at the first position",
        subtitle=f"{result.provenance.model['name']}, {counts}; {_sink_layer(result)}",
        x="layer whose output is read (in: input of layer 0)",
        y="mean Euclidean norm (logarithmic)",
    )
    if result.layer is not None:
        figure.add_vline(x=result.layer, line={"color": INK, "width": 1.5, "dash": "dot"}, layer="below")
    layers = range(0, n_layers, tick_step(n_layers))
    ticks = {"tickvals": [-1, *layers], "ticktext": ["in", *map(str, layers)]}
    figure.update_xaxes(tickmode="array", range=[-1.3, n_layers - 0.7], **ticks)
    return figure.update_yaxes(type="log")


def norms_vs_repeats_figure(
    result: RepeatNormResult,
    layer: int,
    typical_norm: Float[Tensor, " depth"],
    *,
    names: Mapping[int, str] | None = None,
) -> go.Figure:
    """Norm of repeated tokens against the number of repeats, beside BOS and the typical norm of other positions.

    The largest tokens after the last repeat have a colour and a name each, the rest is drawn in grey.

    Args:
        result: what was measured.
        layer: the sink layer; norms are those of its output.
        typical_norm: mean norm at ordinary positions by depth, ``SinkNormResult.other_norm`` of the same model.
        names: tokens as text, by id; ids without one stand as numbers.

    Raises:
        InputError: a layer that the model does not have, or typical norms of another model.

    Source: Yona et al. 2025 (arXiv 2503.08908), the curve of one prompt, here for many tokens.

    Example:
        >>> import mechrep
        >>> from mechrep.analyzers.sinks.repeat_norms import RepeatNorms
        >>> from mechrep.analyzers.sinks.norms import SinkNorms
        >>> from mechrep.text.repeated import repeated_tokens
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> (norms,) = mechrep.CorpusCache(model, repeated_tokens(model, [300, 301], 40)).run(RepeatNorms())
        >>> text = mechrep.Corpus.from_texts(["The sea was calm."], model=model)
        >>> (typical,) = mechrep.CorpusCache(model, text).run(SinkNorms())
        >>> figure = norms_vs_repeats_figure(norms, 1, typical.other_norm)
        >>> len(figure.data), figure.layout.yaxis.type
        (4, 'log')
    """
    moved, rows = result.moved(layer, typical_norm), {token: row for row, token in enumerate(result.token_ids)}
    typical = float(typical_norm[layer + 1])
    if not 0 < typical < math.inf:
        raise InputError(f"a typical norm of {typical}", "a positive number", "measure it on texts of several tokens")
    figure, last, ranking = go.Figure(), result.repeats[-1], result.ranking(layer)
    # The largest are drawn last, so that they lie over the others.
    for place, token in reversed(list(enumerate(ranking))):
        label = f"{shown_token(names[token])} ({token})" if names and token in names else f"token {token}"
        figure.add_scatter(
            x=list(result.repeats),
            y=result.norm[rows[token], layer + 1].numpy(),
            mode="lines+markers",
            # Not in the template, in which a token could be taken for a variable.
            customdata=[label] * len(result.repeats),
            hovertemplate="%{customdata}<br>copy %{x:,}: norm %{y:.3g}<extra></extra>",
            **_token_style(place, len(ranking), label),
        )
    references = {"typical": (typical, INK, "dot")}
    if result.bos:
        references["BOS"] = (float(result.bos_norm[layer + 1]), _BOS, "dash")
    for name, (value, colour, dash) in references.items():
        figure.add_scatter(
            x=[1, max(2, last)],  # a line even where there is one copy only
            y=[value, value],
            name=f"{name}: {value:.3g}",
            mode="lines",
            line={"color": colour, "dash": dash, "width": 2},
            hoverinfo="skip",
        )
    ended = "" if moved.reason else f"; {moved.share:.0%} end at least half-way from typical to BOS"
    about = f"{counted(len(rows), 'token')}, copies 1 to {last:,}"
    styled(
        figure,
        title=f"Size of repeated tokens after layer {layer}",
        subtitle=f"{result.provenance.model['name']}, {about}{ended}",
        x="number of the copy (logarithmic)",
        y="Euclidean norm of the residual stream (logarithmic)",
    )
    # Beside the plot: so many names do not fit between it and its title.
    figure.update_layout(legend={"orientation": "v", "x": 1.02, "y": 1, "yanchor": "top"})
    return figure.update_xaxes(**_DECADES).update_yaxes(type="log")


def _add_depths(
    figure: go.Figure,
    norms: Float[Tensor, " depth"],
    name: str,
    colour: str,
    place: int,
    depths: list[str],
    details: list[str],
) -> None:
    figure.add_scatter(
        x=np.arange(-1, len(norms) - 1),
        y=norms.numpy(),
        name=name,
        mode="lines+markers",
        line={"color": colour, "dash": DASHES[place], "width": 3 - place},
        marker={"size": 7, "symbol": ("circle", "square-open")[place]},
        customdata=np.column_stack([depths, details]),
        hovertemplate=f"{name}, %{{customdata[0]}}<br>norm %{{y:.4g}}<br>%{{customdata[1]}}<extra></extra>",
    )


def _sink_layer(result: SinkNormResult) -> str:
    if result.n_others == 0:
        return "no text has a second token"
    ratio = f"first position up to {result.largest_ratio:.3g} times the others"
    return f"no sink layer, {ratio}" if result.layer is None else f"sink layer {result.layer}, {ratio}"


def _token_style(place: int, n: int, label: str) -> dict[str, Any]:
    """The first tokens of the ranking look each their own way, all others alike with one entry in the legend."""
    named = len(SEQUENCE)
    if place < named:
        line = {"color": SEQUENCE[place], "dash": DASHES[place], "width": 2}
        return {"name": label, "line": line, "marker": {"size": 4}, "legendrank": place}
    legend = {"legendgroup": "rest", "showlegend": place == named, "legendrank": named}
    look = {"line": {"color": _REST, "width": 1}, "marker": {"size": 2}}
    return {"name": counted(n - named, "other token"), **legend, **look}


def _sink_details(result: AttentionSinkResult, threshold: str) -> list[list[str]]:
    """What a pointer on a head shows below its attention to the first position."""
    texts = counted(result.n_texts, "text")
    tables = (result.alpha_published, result.rate, result.best_other_key[..., 0], result.best_other_key[..., 1])
    return [
        [
            f"with the first query (α₀): {published:.3f}<br>{threshold} in {rate:.0%} of {texts}"
            + ("" if math.isnan(key) else f"<br>next key: position {key:.0f}, {importance:.3f}")
            for published, rate, key, importance in zip(*rows, strict=True)
        ]
        for rows in zip(*(table.tolist() for table in tables), strict=True)
    ]
