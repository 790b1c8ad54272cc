"""Heads as cells of a heat map, heads across and layers upwards; and where heads and neurons lie, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from mechrep.analyzers.heads.result import HeadScoreResult
from mechrep.analyzers.neuron_result import RepetitionNeuronResult
from mechrep.errors import InputError
from mechrep.views.attention_plots import COLUMNS, finished, panels, place_of, tick_step
from mechrep.views.theme import ACCENT, INK, SEQUENCE, counted, plain, translucent

UNKNOWN = translucent(INK, 0.18)  # a cell without a value: grey, which the scale of colours does not contain
_WRITTEN = 32  # heads side by side, over all panels, and layers, whose values fit into their cells
_PROFILE = 256  # pixels

_LABELS = {
    "induction": "induction (prefix matching)",
    "self_finding": "self-finding (duplicate token)",
    "previous_token": "previous token",
    "current_token": "current token",
    "first_token": "first token (sink)",
}
_REASONS = {
    "period-1": "every loop has period 1: all targets are the same keys",
    "period-2": "every loop has period 2: the target is the previous token",
    "no query": "no text has a query with such a target",
}


def head_scores_figure(result: HeadScoreResult, score: str | None = None) -> go.Figure:
    """Scores of all heads, a cell each, on one scale of colours from 0 to 1 (a variant below 0 has the colour of 0).

    Values stand in the cells while they fit, and always in the labels under the pointer, with standard error, chance
    and numbers of queries and texts.  Cells without a value are grey, and say why.

    Args:
        result: what was measured.
        score: one of the result's scores or variants; by default its five scores, a panel each.

    Raises:
        InputError: a score that is not in this result.

    Source: the scores are those of :mod:`mechrep.analyzers.heads.scores`.

    Example:
        >>> import mechrep
        >>> from mechrep.analyzers.heads.scores import score_heads
        >>> result = score_heads(mechrep.load_model("mechrep-tiny"), n=10, sequences=2)
        >>> len(head_scores_figure(result).data)
        5
        >>> bool((head_scores_figure(result, "induction").data[0].z == result.induction.numpy()).all())
        True
    """
    names = list(result.names) if score is None else [score]
    n_layers = result.of(names[0]).shape[0]
    figure = panels([_panel_title(result, name) for name in names], panel_height(n_layers))
    for index, name in enumerate(names):
        add_heads(figure, result.of(name), _details(result, name), index=index, reason=_reason(result, name))
    texts = counted(max(result.n_texts.values()), "text")
    label = "What every attention head looks at" if score is None else f"Heads by {_label(score)}"
    return finished(
        figure,
        title=label,
        subtitle=f"{result.provenance.model['name']}, {texts}",
        x="head",
        y="layer",
        share="share of texts" if result.provenance.config.get("average") == "threshold" else "share of attention",
    )


def layer_profile_figure(
    neurons: RepetitionNeuronResult,
    heads: HeadScoreResult,
    *,
    k_neurons: int | None = None,
    k_heads: int | None = None,
    score: str = "induction",
) -> go.Figure:
    """Where the top neurons and the top heads of one model lie, side by side.

    Left, the share of the top neurons in each layer (those of the set that fall are skipped, as published); right, the
    share of each layer in the sum of the top heads' scores.  The dashed line is an even spread.

    Args:
        neurons: repetition neurons.
        heads: scores of the same model's heads.
        k_neurons: size of the set of neurons; by default the published share, ``int(0.005 N)``.
        k_heads: number of heads; by default as many as there are layers.
        score: which score ranks and weighs the heads.

    Raises:
        InputError: results of two models; empty or too large sets; an unknown score, or one without values.

    Source: the profile of neurons is that of Hiraoka and Inui 2025 (arXiv 2410.13497); that of heads is mechrep's own.

    Example:
        >>> import mechrep
        >>> from mechrep.analyzers.heads.scores import score_heads
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_tokens([[0, *range(9, 49), *[40, 41, 42, 43] * 9]], model=model).with_cycles()
        >>> (neurons,) = mechrep.CorpusCache(model, corpus).run(mechrep.RepetitionNeurons())
        >>> figure = layer_profile_figure(neurons, score_heads(model, n=10, sequences=2))
        >>> round(sum(figure.data[2].y), 6)
        1.0
    """
    _check_one_model(neurons, heads)
    n_layers = neurons.delta.shape[0]
    k_neurons = neurons.published_k if k_neurons is None else k_neurons
    k_heads = n_layers if k_heads is None else k_heads
    if min(k_neurons, k_heads) < 1:
        raise InputError(f"{k_neurons} neurons and {k_heads} heads", "at least one of each", "ask for more")
    counts = neurons.layer_counts(k_neurons)
    chosen = _chosen_heads(heads, k_heads, score)
    total = sum(value for layer in chosen for _, value in layer)
    details = [
        f"{len(layer)} of {counted(k_heads, 'head')}"
        + "".join(f"<br>H{head}: {value:.3f}" for head, value in layer)  # best first
        for layer in chosen
    ]
    figure = panels([f"top {counted(k_neurons, 'neuron')}", f"top {counted(k_heads, 'head')}"], _PROFILE)
    of_neurons = [f"{count} of {counted(k_neurons, 'neuron')}" for count in counts]
    _add_profile(figure, [count / k_neurons for count in counts], of_neurons, ACCENT, 0)
    _add_profile(figure, [sum(value for _, value in layer) / total for layer in chosen], details, SEQUENCE[1], 1)
    texts = [
        counted(neurons.n_texts, "looping text"),
        counted(heads.n_texts.get(score, max(heads.n_texts.values())), "text"),
    ]
    finished(
        figure,
        title="Where repetition neurons and heads lie",
        subtitle=f"{neurons.provenance.model['name']}; {texts[0]}; heads by {_label(score)}, {texts[1]}",
        x="layer",
        y="share of the neurons",
    )
    figure.update_yaxes(tickformat=".0%", rangemode="tozero", showgrid=True)
    figure.update_yaxes(title_text="share of the heads' summed score", matches="y", col=2)
    figure.update_layout(legend={"y": 1.1})  # above the titles of the panels
    return figure.update_xaxes(range=[-0.6, n_layers - 0.4], dtick=tick_step(n_layers))


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
        hovertemplate="L%{y} H%{x}: %{z:.3f}<br>%{hovertext}<extra></extra>",
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


def _add_profile(figure: go.Figure, shares: Sequence[float], details: Sequence[str], colour: str, index: int) -> None:
    n_layers, place = len(shares), place_of(index)
    depth = np.arange(n_layers) / (n_layers - 1) if n_layers > 1 else np.ones(1)
    figure.add_bar(
        x=np.arange(n_layers),
        y=list(shares),
        marker={"color": colour},
        showlegend=False,
        customdata=depth,
        hovertext=list(details),
        hovertemplate="layer %{x}, relative depth %{customdata:.2f}<br>%{y:.1%}: %{hovertext}<extra></extra>",
        **place,
    )
    figure.add_scatter(
        x=[-0.5, n_layers - 0.5],
        y=[1 / n_layers, 1 / n_layers],
        name=f"evenly spread: {1 / n_layers:.1%} per layer",
        mode="lines",
        line={"color": INK, "dash": "dash", "width": 2},
        showlegend=index == 0,
        hoverinfo="skip",
        **place,
    )


def _chosen_heads(heads: HeadScoreResult, k: int, score: str) -> list[list[tuple[int, float]]]:
    """The top heads of each layer with their scores, best first."""
    values = heads.of(score)
    chosen: list[list[tuple[int, float]]] = [[] for _ in values]
    for layer, head in heads.top(k, score):
        chosen[layer].append((head, float(values[layer, head])))
    if not all(value > 0 for layer in chosen for _, value in layer):  # NaN is not larger than 0 either
        raise InputError(
            f"{counted(k, 'head')} of which some have no {score} above 0",
            "heads with scores to share out among the layers",
            "ask for fewer heads, or another score",
        )
    return chosen


def _check_one_model(neurons: RepetitionNeuronResult, heads: HeadScoreResult) -> None:
    models = [(r.provenance.model["name"], r.provenance.model.get("revision")) for r in (neurons, heads)]
    layers = (neurons.delta.shape[0], heads.unexplained.shape[0])
    if models[0] != models[1] or layers[0] != layers[1]:
        raise InputError(
            f"neurons of {models[0]} with {counted(layers[0], 'layer')}, heads of {models[1]} with {layers[1]}",
            "two results of one model",
            "measure both on the same model and revision",
        )


def _label(score: str) -> str:
    return _LABELS.get(score, score)


def _panel_title(result: HeadScoreResult, name: str) -> str:
    title = f"<b>{plain(_label(name))}</b>"
    if name not in result.names:
        return title
    if name in result.missing:
        return f"{title}<br>no value: {_reason(result, name)}"
    return f"{title}<br>chance {_chance(result, name):.3f}, {counted(result.n_texts[name], 'text')}"


def _reason(result: HeadScoreResult, name: str) -> str:
    why = result.missing.get(name, "not defined on these texts")
    return plain(_REASONS.get(why, why))


def _chance(result: HeadScoreResult, name: str) -> float:
    return float(result.chance[list(result.names).index(name)])


def _details(result: HeadScoreResult, name: str) -> list[list[str]]:
    """What a pointer on a head shows below its score."""
    if name not in result.names:
        about = f"{plain(name)}, a published normalisation"
        return [[about] * result.of(name).shape[1] for _ in result.of(name)]
    errors = result.standard_errors[list(result.names).index(name)].tolist()
    counts = f"queries: {result.n_queries[name]:,}, texts: {result.n_texts[name]:,}"
    about = f"{plain(_label(name))}<br>chance {_chance(result, name):.3f}<br>{counts}"
    return [[f"{_error(value)}<br>{about}" for value in row] for row in errors]


def _error(value: float) -> str:
    return "no standard error (one text)" if np.isnan(value) else f"± {value:.3f} (standard error)"
