"""The first token's mark: attention to other tokens, the neuron that tells, the heads that carry it, and copies."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.analyzers.first_token.convergence_result import ConvergenceResult
from mechrep.analyzers.first_token.detectors_result import FirstDetectorResult
from mechrep.analyzers.first_token.head_cuts_result import MARKS, OPS, HeadCutResult, Mark
from mechrep.analyzers.first_token.other_tokens_result import OtherTokenResult
from mechrep.analyzers.first_token.result import FirstTokenResult
from mechrep.errors import InputError
from mechrep.views.theme import ACCENT, DASHES, INK, SEQUENCE, counted, styled, translucent

_REST = translucent(INK, 0.45)
_SECOND = SEQUENCE[1]
_PLACES = ("first token", "second token", "third token")
_LOSSES = {
    "detector": "area under the ROC curve that the detector loses",
    "state": "area under the ROC curve that the MLP's input loses",
    "norm": "log of the first position's norm ratio that is lost",
}


def other_token_mass_figure(result: OtherTokenResult) -> go.Figure:
    """Share of attention on other tokens by position, a line per head of layer 0.

    Args:
        result: what was measured.

    Source: Yona et al. 2025 (arXiv 2503.08908) for the idea; the mass is mechrep's own.

    Example:
        >>> import mechrep
        >>> from mechrep.analyzers.first_token import FirstTokenDetection
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea was calm.", "It rained all day."], model=model)
        >>> (result,) = mechrep.CorpusCache(model, corpus).run(FirstTokenDetection())
        >>> len(other_token_mass_figure(result).data) == model.anatomy.n_heads
        True
    """
    known = int((~result.by_position.isnan().any(0)).sum())
    figure = go.Figure()
    for place, head in enumerate(result.ranking()):
        coloured = place < len(SEQUENCE)
        look = (
            {"color": SEQUENCE[place], "dash": DASHES[place], "width": 2} if coloured else {"color": _REST, "width": 1}
        )
        figure.add_scatter(
            x=list(range(known)),
            y=result.by_position[head, :known].numpy(),
            name=f"head {head}" if coloured else f"{len(result.mass) - len(SEQUENCE)} other heads",
            legendgroup="" if coloured else "rest",
            showlegend=place <= len(SEQUENCE),
            mode="lines",
            line=look,
            hovertemplate=f"head {head}, position %{{x}}<br>%{{y:.3f}} on other tokens<extra></extra>",
        )
    about = f"{counted(result.n_texts, 'text')}; a uniform head has {result.uniform_mass:.2f} on average"
    styled(
        figure,
        title="Attention of layer 0 to other tokens",
        subtitle=f"{result.provenance.model['name']}, {about}",
        x="position",
        y="share of attention on other tokens",
    )
    return figure.update_yaxes(range=[0, 1.02])


def detector_figure(result: FirstDetectorResult, neuron: int | None = None) -> go.Figure:
    """What one neuron is at the first, second and third token, as three histograms.

    Args:
        result: what was measured.
        neuron: one of the result's ``neurons``; the most telling by default.

    Raises:
        InputError: a neuron whose values were not kept.

    Source: Yona et al. 2025 (arXiv 2503.08908), the histogram of the first-detector neuron.

    Example:
        >>> import mechrep
        >>> from mechrep.analyzers.first_token import first_token_detectors
        >>> result = first_token_detectors(mechrep.load_model("mechrep-tiny"), triples=60, k=2, shuffles=1)
        >>> [part.name for part in detector_figure(result).data]
        ['first token', 'second token', 'third token']
    """
    chosen = result.neurons[0] if neuron is None else neuron
    if chosen not in result.neurons:
        raise InputError(f"neuron {chosen}", f"one of {list(result.neurons)}", "ask for more neurons (k)")
    values = result.values[:, :, list(result.neurons).index(chosen)]
    low, high = float(values.min()), float(values.max())
    bins = {"start": low, "end": high, "size": max((high - low) / 40, 1e-9)}
    figure = go.Figure()
    for place, name in enumerate(_PLACES):
        figure.add_histogram(
            x=values[:, place].numpy(),
            xbins=bins,
            autobinx=False,
            histnorm="probability",
            name=name,
            marker={"color": SEQUENCE[place], "pattern": {"shape": ("", "/", "\\")[place]}},
            opacity=0.6,
            hovertemplate=f"{name}, %{{x}}<br>%{{y:.1%}} of its values<extra></extra>",
        )
    low_end, high_end = result.intervals[list(result.neurons).index(chosen)].tolist()
    areas = (
        f"area first against rest {float(result.auroc[chosen]):.3f} ({low_end:.3f} to {high_end:.3f}) on other words"
    )
    styled(
        figure,
        title=f"Neuron {chosen} of layer {result.layer} at the first three tokens",
        subtitle=f"{result.provenance.model['name']}; {areas}, shuffled places at most {result.null_auroc:.3f}",
        x="what goes into the neuron's activation function",
        y="share of tokens",
    )
    return figure.update_layout(barmode="overlay", bargap=0)


def head_cuts_figure(result: HeadCutResult, mark: Mark = "detector") -> go.Figure:
    """What cutting each head of layer 0 costs, and all of them together; bars are 95 % intervals.

    Args:
        result: what was measured.
        mark: ``"detector"``, ``"state"`` or ``"norm"``.

    Raises:
        InputError: another mark, or the norm of a model without a norm sink.

    Source: mechrep's own.

    Example:
        >>> import mechrep
        >>> from mechrep.analyzers.first_token import first_layer_head_cuts
        >>> result = first_layer_head_cuts(mechrep.load_model("mechrep-tiny"), triples=60)
        >>> [line.name for line in head_cuts_figure(result).data]
        ['set to zero', 'held at its mean']
    """
    losses, ends = result.loss(mark), result.interval(mark)
    if bool(losses.isnan().all()):
        raise InputError(f"losses of the {mark}", f"one of {MARKS} that was measured", result.sink_reason)
    figure, heads = go.Figure(), [*map(str, range(result.n_heads)), "all"]
    for row, name in enumerate(("set to zero", "held at its mean")):
        _add_losses(figure, heads, losses[row], ends[row], name, row)
    whole = {"detector": result.detector_auroc, "state": result.state_auroc, "norm": result.log_ratio}[mark]
    layer, neuron = result.detector
    about = {
        "detector": f"detector L{layer} N{neuron}, area {whole:.3f} in the whole model",
        "state": f"area {whole:.3f} in the whole model",
        "norm": f"after layer {result.sink_layer}, log ratio {whole:.2f} in the whole model",
    }[mark]
    styled(
        figure,
        title="What cutting a head of layer 0 takes from the first token's mark",
        subtitle=f"{result.provenance.model['name']}; {about}",
        x="head of layer 0",
        y=_LOSSES[mark],
    )
    figure.add_hline(y=0, line={"color": INK, "width": 1}, layer="below")
    return figure.update_xaxes(type="category", categoryorder="array", categoryarray=heads)


def _add_losses(
    figure: go.Figure,
    heads: list[str],
    losses: Float[Tensor, " head"],
    ends: Float[Tensor, "head 2"],
    name: str,
    row: int,
) -> None:
    assert row < len(OPS)
    figure.add_scatter(
        x=heads,
        y=losses.numpy(),
        error_y={
            "type": "data",
            "array": (ends[:, 1] - losses).clamp_min(0).numpy(),
            "arrayminus": (losses - ends[:, 0]).clamp_min(0).numpy(),
            "thickness": 1.5,
        },
        name=name,
        mode="markers",
        marker={"color": (ACCENT, _SECOND)[row], "size": 9, "symbol": ("circle", "square-open")[row]},
        customdata=ends.numpy(),
        hovertemplate=f"head %{{x}} {name}<br>%{{y:.3f}} lost (%{{customdata[0]:.3f}} to %{{customdata[1]:.3f}})"
        "<extra></extra>",
    )


def convergence_figure(result: ConvergenceResult, place: str = "layer") -> go.Figure:
    """Relative distance of copies from the token alone, against the number of copies; both axes logarithmic.

    Args:
        result: what was measured.
        place: ``"attention"`` or ``"layer"``: the output of layer 0's attention, or of layer 0.

    Raises:
        InputError: another place.

    Source: Yona et al. 2025 (arXiv 2503.08908), the convergence curve of one token.

    Example:
        >>> import mechrep
        >>> from mechrep.analyzers.first_token import first_layer_convergence
        >>> result = first_layer_convergence(mechrep.load_model("mechrep-tiny"), [300, 301], repeats=40)
        >>> convergence_figure(result).layout.yaxis.type
        'log'
    """
    distances, figure, names = result.relative(place), go.Figure(), len(SEQUENCE)
    for text, token in enumerate(result.token_ids):
        coloured = text < names
        figure.add_scatter(
            x=list(result.repeats),
            y=np.where(distances[text] > 0, distances[text], np.nan),  # exactly 0 has no place on this axis
            name=f"token {token}" if coloured else counted(len(result.token_ids) - names, "other token"),
            legendgroup="" if coloured else "rest",
            showlegend=text <= names,
            mode="lines+markers",
            marker={"size": 4},
            line={"color": SEQUENCE[text], "dash": DASHES[text], "width": 2}
            if coloured
            else {"color": _REST, "width": 1},
            hovertemplate=f"token {token}, copy %{{x:,}}<br>distance %{{y:.3g}}<extra></extra>",
        )
    fit = f"share of the prefix: slope {result.median_slope:.2f}, expected {result.theory}"
    agreed = "agrees" if result.agrees else "does not agree"
    styled(
        figure,
        title="Copies of a token approach the token alone",
        subtitle=f"{result.provenance.model['name']}, {counted(result.prefix_length, 'token')} before; {fit}: {agreed}",
        x="number of the copy (logarithmic)",
        y=f"distance from the token alone, over its norm, after {_where(place)}",
    )
    return figure.update_xaxes(type="log", dtick=1).update_yaxes(type="log")


def _where(place: str) -> str:
    return "attention 0" if place == "attention" else "layer 0"


def first_token_figure(result: FirstTokenResult) -> go.Figure:
    """What cutting each head of layer 0 costs, against its attention to other tokens.

    Args:
        result: the short form of all measurements.

    Source: mechrep's own.

    Example:
        >>> import mechrep
        >>> from mechrep.analyzers.first_token import find_first_token
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> result = find_first_token(model, token_ids=[300], prefix=[301], triples=60, repeats=20)
        >>> len(first_token_figure(result).data[0].x) == model.anatomy.n_heads
        True
    """
    carriers = {head for _, head in result.heads}
    heads = list(range(len(result.mass)))
    figure = go.Figure()
    figure.add_scatter(
        x=result.mass.numpy(),
        y=torch.as_tensor(result.detector_loss)[:-1].numpy(),
        mode="markers+text",
        text=[str(head) for head in heads],
        textposition="top center",
        marker={
            "size": 10,
            "color": [ACCENT if head in carriers else _SECOND for head in heads],
            "symbol": ["circle" if head in carriers else "circle-open" for head in heads],
        },
        hovertemplate="head %{text}<br>%{x:.3f} on other tokens<br>%{y:.3f} lost<extra></extra>",
        showlegend=False,
    )
    figure.add_vline(x=result.uniform_mass, line={"color": INK, "width": 1, "dash": "dot"}, layer="below")
    styled(
        figure,
        title="Heads of layer 0: attention to other tokens, and what the detector loses without them",
        subtitle=f"{result.provenance.model['name']}; detector area {result.auroc:.3f}, "
        f"{'found' if result.found else 'nothing found'}; dotted: a uniform head",
        x="mean share of attention on other tokens",
        y=_LOSSES["detector"],
    )
    return figure
