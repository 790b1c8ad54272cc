"""Do the top neurons and the top heads lie in the same layers?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mechrep.errors import InputError, NothingFoundError
from mechrep.figures import ACCENT, INK, SEQUENCE, counted, finished, panels, place_of, tick_step
from mechrep.guards import Count, Seed, guarded
from mechrep.measures.head_scores import HeadScoreResult, check_one_model, label_of
from mechrep.measures.neurons import RepetitionNeuronResult
from mechrep.stats import percentile_interval

if TYPE_CHECKING:
    import plotly.graph_objects as go

_PROFILE = 256  # pixels


@guarded
def layer_profiles(
    neurons: RepetitionNeuronResult,
    heads: HeadScoreResult,
    *,
    k_neurons: Count | None = None,
    k_heads: Count | None = None,
    score: str = "induction",
    draws: Count = 2000,
    seed: Seed = 0,
) -> pd.DataFrame:
    """Share of the top neurons and of the top heads in each layer, and how far the two profiles overlap.

    With the shares ``p`` of neurons and ``q`` of heads::

        overlap = sum over layers of min(p_l, q_l)            0: no layer in common;  1: the same profile

    The null shuffles the layers of the heads' profile: as concentrated as it is, but anywhere.

    Args:
        neurons: a ranking of neurons.
        heads: scores of heads of the same model.
        k_neurons: the first so many; by default the published share of 0.5 %.  Neurons that fall are left out.
        k_heads: the first so many; by default all that score clearly above chance.
        score: of the heads.
        draws: of the null.
        seed: of the draws.

    Returns:
        One row per layer: ``layer``, the counts ``neurons`` and ``heads``, ``neuron_share`` and ``head_share``; and,
        the same in every row, ``overlap``, the mean ``null`` with its central 95 % ``null_low``/``null_high``, and
        ``p``, the share of draws (the observed one among them) that overlap at least as much.

    Raises:
        InputError: results of two models, a ``k`` larger than there are, or fewer than one draw.
        NothingFoundError: no neuron that rises among the first, or no such head.

    Source: the question is Hiraoka & Inui 2025's (arXiv 2410.13497), section 5; overlap and null are mechrep's own.

    Limits: neighbouring layers count as different, and with few layers the null is coarse.

    Example:
        >>> import mechrep
        >>> from mechrep.measures.head_scores import score_heads
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> rows = [[0, *range(30 + i, 60 + i), *[9, 8, 7, 6, 5] * 8] for i in range(3)]
        >>> texts = mechrep.Corpus.from_tokens(rows, model=model).with_cycles()
        >>> neurons = mechrep.CorpusCache(model, texts).run(mechrep.RepetitionNeurons("hiraoka2025", r=10))
        >>> profiles = layer_profiles(neurons, score_heads(model, n=10, sequences=4), k_neurons=50, k_heads=2)
        >>> float(profiles["head_share"].sum())
        1.0
    """
    n_layers = _layers_of(neurons, heads)
    units = heads.clear(score) if k_heads is None else heads.top(k_heads, score)
    head_counts = np.bincount([layer for layer, _ in units], minlength=n_layers)
    neuron_counts = np.array(neurons.layer_counts(k_neurons))
    if not neuron_counts.sum() or not head_counts.sum():
        raise NothingFoundError(
            f"{neuron_counts.sum()} neurons that rise and {head_counts.sum()} heads",
            "at least one of each",
            "pass k_neurons= and k_heads=",
        )
    shares = neuron_counts / neuron_counts.sum(), head_counts / head_counts.sum()
    overlap = float(np.minimum(*shares).sum())
    generator = np.random.default_rng(seed)
    null = np.array([np.minimum(shares[0], generator.permutation(shares[1])).sum() for _ in range(draws)])
    low, high = percentile_interval(null.tolist())
    columns = {"neurons": neuron_counts, "heads": head_counts, "neuron_share": shares[0], "head_share": shares[1]}
    p = (1 + int((null >= overlap - 1e-12).sum())) / (1 + draws)
    facts = {"overlap": overlap, "null": null.mean(), "null_low": low, "null_high": high, "p": p}
    return pd.DataFrame({"layer": range(n_layers), **columns}).assign(**facts)


def _layers_of(neurons: RepetitionNeuronResult, heads: HeadScoreResult) -> int:
    check_one_model(neurons, heads)
    of_neurons, of_heads = len(neurons.delta), len(heads.unexplained)
    if of_neurons != of_heads:
        given = f"neurons of {of_neurons} layers, heads of {of_heads}"
        raise InputError(given, "two results of one model", "measure both on one model")
    return of_neurons


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
        >>> from mechrep.measures.head_scores import score_heads
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_tokens([[0, *range(9, 49), *[40, 41, 42, 43] * 9]], model=model).with_cycles()
        >>> neurons = mechrep.CorpusCache(model, corpus).run(mechrep.RepetitionNeurons())
        >>> figure = layer_profile_figure(neurons, score_heads(model, n=10, sequences=2))
        >>> round(sum(figure.data[2].y), 6)
        1.0
    """
    n_layers = _layers_of(neurons, heads)
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
        subtitle=f"{neurons.provenance.model['name']}; {texts[0]}; heads by {label_of(score)}, {texts[1]}",
        x="layer",
        y="share of the neurons",
    )
    figure.update_yaxes(tickformat=".0%", rangemode="tozero", showgrid=True)
    figure.update_yaxes(title_text="share of the heads' summed score", matches="y", col=2)
    figure.update_layout(legend={"y": 1.1})  # above the titles of the panels
    return figure.update_xaxes(range=[-0.6, n_layers - 0.4], dtick=tick_step(n_layers))


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
