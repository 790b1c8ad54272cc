"""Figures of a :class:`~mechrep.analyzers.neuron_result.RepetitionNeuronResult`: round the onset, sorted, by layer."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float, Int

from mechrep.analyzers.neuron_result import RepetitionNeuronResult
from mechrep.errors import InputError
from mechrep.views.theme import ACCENT, DASHES, INK, SEQUENCE, counted, styled, translucent

_DRAWN_POINTS = 20_000  # more make a figure slow without showing more
_LABELLED_LAYERS = 16  # depth stands under the layer while there is room for it


def plot_onset_profile(result: RepetitionNeuronResult, k: int = 4) -> go.Figure:
    """Mean activation of the top ``k`` neurons round the onset of loops.

    Offset 0 is the position that predicts the first token of the second copy; from there on the model repeats.

    Args:
        result: what was found.
        k: how many neurons.

    Raises:
        InputError: ``k`` below 1 or larger than the number of neurons.

    Source: Figure 1 of Hiraoka & Inui 2025 (arXiv 2410.13497).

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> texts = [[0, *range(9, 49), *[40, 41, 42, 43] * 9], [0, *range(60, 99), *[7, 8, 9] * 12]]
        >>> corpus = mechrep.Corpus.from_tokens(texts, model=model).with_cycles()
        >>> (result,) = mechrep.CorpusCache(model, corpus).run(mechrep.RepetitionNeurons())
        >>> len(plot_onset_profile(result, k=3).data)
        3
    """
    if k < 1:
        raise InputError(f"k = {k}", "at least 1 neuron", "ask for more")
    figure, offsets = go.Figure(), np.arange(-result.r, result.r + 1)
    for place, (layer, neuron) in enumerate(result.top(k)):
        name = f"L{layer} N{neuron}"
        figure.add_scatter(
            x=offsets,
            y=result.profile[layer, :, neuron].numpy(),
            name=name,
            mode="lines",
            line={
                "color": SEQUENCE[place % len(SEQUENCE)],
                "dash": DASHES[place % len(DASHES)],
                "width": 3 if place == 0 else 2,
            },
            hovertemplate=f"{name}, rank {place + 1}<br>offset %{{x}}: %{{y:.3f}}<extra></extra>",
        )
    figure.add_vrect(x0=0, x1=result.r - 1, fillcolor=translucent(ACCENT, 0.06), line_width=0, layer="below")
    figure.add_vline(x=0, line={"color": INK, "width": 1.5, "dash": "dot"})
    figure.add_annotation(
        x=0,
        y=1,
        yref="paper",
        text="onset",
        showarrow=False,
        xanchor="left",
        yanchor="top",
        xshift=5,
        font={"color": INK},
    )
    return styled(
        figure,
        title=f"Activation of the top {counted(k, 'neuron')} round the onset of a loop",
        subtitle=_subtitle(result),
        x="offset from the onset (tokens)",
        y="mean activation",
    )


def plot_sorted_delta(result: RepetitionNeuronResult) -> go.Figure:
    """Rise of every neuron, in the order of the ranking, with the published share marked.

    The band is one standard error of the mean over texts.  Of more than 20,000 neurons a part is drawn: all of the
    first, fewer and fewer of the following, as the logarithmic axis needs.

    Args:
        result: what was found.

    Source: Hiraoka & Inui 2025 (arXiv 2410.13497).

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_tokens([[0, *range(9, 49), *[40, 41, 42, 43] * 9]], model=model).with_cycles()
        >>> (result,) = mechrep.CorpusCache(model, corpus).run(mechrep.RepetitionNeurons())
        >>> len(plot_sorted_delta(result).data[-1].x)
        1408
    """
    ranks = drawn_ranks(result.n_neurons)
    units = np.array(result.ranking())[ranks - 1]
    delta = result.delta.numpy()[units[:, 0], units[:, 1]]
    error = result.standard_error.numpy()[units[:, 0], units[:, 1]]
    figure = go.Figure()
    if np.isfinite(error).all():
        figure.add_scatter(
            **_band(ranks, delta - error, delta + error), name="± 1 standard error", fillcolor=translucent(ACCENT, 0.22)
        )
    figure.add_scatter(
        x=ranks,
        y=delta,
        name="one neuron",
        mode="lines+markers",
        line={"color": ACCENT, "width": 1},
        marker={"color": ACCENT, "size": 4},
        customdata=np.column_stack([units, error]),
        hovertemplate="rank %{x}: L%{customdata[0]} N%{customdata[1]}"
        "<br>Δ = %{y:.4f} ± %{customdata[2]:.4f}<extra></extra>",
    )
    figure.add_hline(y=0, line={"color": INK, "width": 1})
    if result.published_k:
        # Shapes on a logarithmic axis take the number itself, annotations its logarithm.
        figure.add_vline(x=result.published_k, line={"color": INK, "width": 1.5, "dash": "dot"})
        figure.add_annotation(
            x=float(np.log10(result.published_k)),
            y=1,
            yref="paper",
            text=f"published share: top 0.5 % = {result.published_k:,}",
            showarrow=False,
            xanchor="left",
            yanchor="top",
            xshift=5,
            font={"color": INK},
        )
    styled(
        figure,
        title="How much every neuron rises when a loop begins",
        subtitle=f"{_subtitle(result)}, {counted(result.n_neurons, 'neuron')}",
        x="rank of the neuron (logarithmic)",
        y="Δ: repetition − normal mean activation",
    )
    return figure.update_xaxes(
        type="log", dtick=1, tickformat=",", minor={"ticks": "outside", "ticklen": 2, "dtick": "D1"}
    )


def plot_layer_distribution(result: RepetitionNeuronResult, k: int | None = None) -> go.Figure:
    """How many of the top ``k`` neurons lie in each layer, beside what an even spread would give.

    Neurons of the set whose activation falls are skipped, as published.

    Args:
        result: what was found.
        k: size of the set; by default the published share, ``int(0.005 N)``.

    Raises:
        InputError: ``k`` larger than the number of neurons.

    Source: Hiraoka & Inui 2025 (arXiv 2410.13497).

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_tokens([[0, *range(9, 49), *[40, 41, 42, 43] * 9]], model=model).with_cycles()
        >>> (result,) = mechrep.CorpusCache(model, corpus).run(mechrep.RepetitionNeurons())
        >>> list(plot_layer_distribution(result, k=10).data[0].y) == result.layer_counts(10)
        True
    """
    k = result.published_k if k is None else k
    counts, n_layers = result.layer_counts(k), result.delta.shape[0]
    layers = np.arange(n_layers)
    depth = layers / (n_layers - 1) if n_layers > 1 else np.ones(1)
    figure = go.Figure()
    figure.add_bar(
        x=layers,
        y=counts,
        name="top neurons",
        marker={"color": ACCENT},
        customdata=depth,
        hovertemplate="layer %{x}, relative depth %{customdata:.2f}<br>%{y} neurons<extra></extra>",
    )
    expected = k / n_layers
    figure.add_scatter(
        x=[-0.5, n_layers - 0.5],
        y=[expected, expected],
        name=f"evenly spread: {expected:.3g} per layer",
        mode="lines",
        line={"color": INK, "dash": "dash", "width": 2},
        hoverinfo="skip",
    )
    styled(
        figure,
        title=f"Where the top {counted(k, 'neuron')} lie",
        subtitle=_subtitle(result),
        x="layer (below it: relative depth, 0 first, 1 last)" if n_layers <= _LABELLED_LAYERS else "layer",
        y="neurons of the set",
    )
    figure.update_xaxes(range=[-0.6, n_layers - 0.4])
    if n_layers <= _LABELLED_LAYERS:
        labels = [f"{layer}<br>{place:.2f}" for layer, place in zip(layers, depth, strict=True)]
        figure.update_xaxes(tickmode="array", tickvals=layers, ticktext=labels)
    return figure.update_yaxes(rangemode="tozero")


def drawn_ranks(n: int, most: int = _DRAWN_POINTS) -> Int[np.ndarray, " rank"]:
    """Ranks 1 to ``n``; of more than ``most`` those that a logarithmic axis can show apart, and both ends.

    Example:
        >>> drawn_ranks(4).tolist(), len(drawn_ranks(300_000)) <= 20_000
        ([1, 2, 3, 4], True)
    """
    if n <= most:
        return np.arange(1, n + 1)
    return np.unique(np.concatenate([np.geomspace(1, n, most // 2), np.linspace(1, n, most // 2)]).round().astype(int))


def _band(x: Int[np.ndarray, " x"], low: Float[np.ndarray, " x"], high: Float[np.ndarray, " x"]) -> dict[str, object]:
    """The outline of a band as one trace: out along its upper edge, back along its lower one."""
    return {
        "x": np.concatenate([x, x[::-1]]),
        "y": np.concatenate([high, low[::-1]]),
        "mode": "lines",
        "line": {"width": 0},
        "fill": "toself",
        "hoverinfo": "skip",
    }


def _subtitle(result: RepetitionNeuronResult) -> str:
    return f"{result.provenance.model['name']}, {counted(result.n_texts, 'looping text')}"
