"""Which neurons of the first MLP tell a first token from a second or third, whoever it is?

1. Triples of consecutive tokens without BOS (:mod:`mechrep.measures.first_token`); every token of the text is seen at
   all three places, so its identity says nothing.
2. Neurons are chosen with one half of the text and of the vocabulary, and judged by the other half: the area under the
   ROC curve of first against the rest, first against second, second against third.  The area is the chance that a first
   token's number is larger than another's, ties counting half: 0.5 tells nothing, 1 everything.
3. The same for one direction of the MLP's input, the difference between the means of first tokens and others.
4. What chance gives: the whole of it with places shuffled within every triple, and neurons chosen blindly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechrep.errors import InputError
from mechrep.figures import SEQUENCE, new_figure, styled
from mechrep.guards import Count, Seed, check_count, guarded, one_of, within
from mechrep.measures.first_token import WIDTH, Seen, Triples, corpus_of, detector_layer, read_triples, triples_of
from mechrep.models.model import Model
from mechrep.provenance import provenance_of
from mechrep.results import Result
from mechrep.stats import area_parts, cluster_intervals
from mechrep.text.corpus import Corpus

if TYPE_CHECKING:
    import plotly.graph_objects as go

Score = Literal["auroc", "published"]


@dataclass(frozen=True, eq=False)
class FirstDetectorResult(Result):
    """Areas under the ROC curve of neurons of the first MLP behind the attention of layer 0.

    Held-out areas are signed by the selection half: 1 tells first tokens perfectly, 0.5 not at all, and below 0.5 what
    was chosen does not hold on other tokens.

    Attributes:
        layer: whose MLP: 0, or 1 in parallel blocks.
        score: the published one, mean of first minus second token, all triples.
        selection_auroc: first against second and third in the selection half; below 0.5: lower at first tokens.
        auroc: the same held out.
        first_second: first against second, held out.
        second_third: second against third, held out; 0.5 where a neuron says "first" and counts no further.
        neurons: the best by the selection half, most telling first.
        intervals: 95 % of the held-out area of each of these, bootstrap over words.
        values: what goes into their activation function at the first, second and third token of every triple.
        state_auroc: held-out area of one direction of the MLP's input, from the mean of others to that of first tokens.
        state_interval: 95 % of it.
        shuffled_aurocs: held-out area of the best neuron when places are shuffled, one per shuffle.
        random_aurocs: held-out areas of neurons chosen blindly.
        n_selection: tokens that neurons are chosen with.
        n_test: tokens that they are judged by.
    """

    layer: int
    score: Float[Tensor, " neuron"]
    selection_auroc: Float[Tensor, " neuron"]
    auroc: Float[Tensor, " neuron"]
    first_second: Float[Tensor, " neuron"]
    second_third: Float[Tensor, " neuron"]
    neurons: Sequence[int]
    intervals: Float[Tensor, "top 2"]
    values: Float[Tensor, "triple 3 top"]
    state_auroc: float
    state_interval: Sequence[float]
    shuffled_aurocs: Sequence[float]
    random_aurocs: Sequence[float]
    n_selection: int
    n_test: int

    @property
    def best_auroc(self) -> float:
        """Held-out area of the neuron that the selection half chose."""
        return float(self.auroc[self.neurons[0]])

    @guarded
    def ranking(self, score: Score = "auroc") -> list[int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """All neurons, the most telling of the selection half first, or by the published score (largest first).

        Raises:
            InputError: another score.
        """
        one_of("score", score, ("auroc", "published"))
        values = (self.selection_auroc - 0.5).abs() if score == "auroc" else self.score
        return torch.argsort(values, descending=True, stable=True).tolist()

    @guarded
    def top(self, k: int, score: Score = "auroc") -> list[tuple[int, int]]:
        """The first ``k`` of a ranking, as ``(layer, neuron)``: what :class:`mechrep.Neurons` takes.

        Raises:
            InputError: ``k`` larger than the number of neurons, or another score.
        """
        check_count(k, len(self.auroc), "neurons")
        return [(self.layer, neuron) for neuron in self.ranking(score)[:k]]

    def to_frame(self) -> pd.DataFrame:
        """One row per neuron, most telling first; intervals of the best ones only."""
        order = self.ranking()
        ends = torch.full((len(order), 2), torch.nan)
        ends[list(self.neurons)] = self.intervals
        columns = {"auroc": self.auroc, "low": ends[:, 0], "high": ends[:, 1]}
        columns |= {name: getattr(self, name) for name in (*_PAIRS, "selection_auroc", "score")}
        values = {name: value[order].numpy() for name, value in columns.items()}
        return pd.DataFrame({"layer": self.layer, "neuron": order, **values})

    def plot(self) -> go.Figure:
        """Histograms of the best neuron at the three places."""
        return detector_figure(self)


_PAIRS = {"first_second": (0, 1), "second_third": (1, 2)}
_RANDOM = 100


@guarded
def first_token_detectors(
    model: Model,
    texts: Corpus | Sequence[str] | None = None,
    *,
    layer: int | None = None,
    triples: Count = 1000,
    k: int = 10,
    shuffles: Count = 20,
    seed: Seed = 0,
) -> FirstDetectorResult:
    """Looks for neurons that tell the first token of a text from the second and third.

    Args:
        model: the model.
        texts: a corpus, or texts; held-out English by default.
        layer: whose MLP is read; by default the first that sees the attention of layer 0, as published.  A model may
            need the attention of more layers to tell.
        triples: at most so many triples of consecutive tokens.
        k: neurons that are kept with intervals and values.
        shuffles: how often the places are shuffled for the null.
        seed: of halves, shuffles and bootstrap samples.

    Returns:
        Areas per neuron, with nulls; a best neuron whose ``best_auroc`` does not clear ``shuffled_aurocs`` tells
        nothing.

    Raises:
        InputError: no such layer, too few texts, another model's corpus, no neurons or shuffles asked for, or a
            parallel model of one layer.

    Source: the published score, ``mean((Q_0 - Q_1) W_gate)`` over 1000 triples, is Yona et al. 2025 (arXiv 2503.08908).
    Held-out halves, areas, intervals and nulls are mechrep's own.

    Limits: read is what goes into the activation function (``GATE_PRE``), as published.  In parallel blocks (GPT-NeoX)
    the MLP of layer 0 cannot see attention 0, so layer 1 is read.  Learned positions tell places apart without any
    attention: ablate the heads (:func:`mechrep.ablation.first_token_outcomes.first_layer_heads`).

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> result = first_token_detectors(model, triples=60, k=2, shuffles=2)
        >>> len(result.top(2)), result.auroc.shape[0] == model.anatomy.d_mlp
        (2, True)
    """
    within("k", k, 1, model.anatomy.d_mlp, "a number of neurons")
    read = detector_layer(model.anatomy) if layer is None else layer
    model.anatomy.check_layer(read)
    corpus = corpus_of(model, texts)
    stimulus = triples_of(model, corpus, limit=triples, seed=seed)
    seen = read_triples(model, stimulus.tokens, layer=read)
    places, selection, test = stimulus.places, stimulus.selection, stimulus.test
    first, ids = places == 0, stimulus.ids[test]
    chosen = areas(seen.neurons[selection], first[selection])
    oriented = seen.neurons[test] * np.where(chosen < 0.5, -1.0, 1.0).astype(np.float32)
    held_out, top = areas(oriented, first[test]), _ranking(chosen)[:k]
    state = state_scores(seen, stimulus)
    generator = np.random.default_rng(seed)
    blind = generator.choice(len(chosen), min(_RANDOM, len(chosen)), replace=False)
    config = {"triples": len(stimulus.tokens), "k": k, "shuffles": shuffles, "seed": seed}
    config |= {} if layer is None else {"layer": layer}
    intervals = np.stack([_interval(values, first[test], ids) for values in (*oriented[:, top].T, state)])
    return FirstDetectorResult(
        provenance_of(model, corpus, config),
        layer=read,
        score=torch.from_numpy((seen.neurons[first] - seen.neurons[places == 1]).mean(0)),
        selection_auroc=torch.from_numpy(chosen).float(),
        auroc=torch.from_numpy(held_out).float(),
        **{name: _pair(oriented, places[test], *pair) for name, pair in _PAIRS.items()},
        neurons=top,
        intervals=torch.from_numpy(intervals[:-1]).float(),
        values=torch.from_numpy(seen.neurons[:, top].reshape(-1, WIDTH, k)),
        state_auroc=float(areas(state[:, None], first[test])[0]),
        state_interval=intervals[-1].tolist(),
        shuffled_aurocs=_shuffled(seen.neurons, stimulus, shuffles, generator),
        random_aurocs=held_out[blind].tolist(),
        n_selection=int(selection.sum()),
        n_test=int(test.sum()),
    )


def areas(values: Float[np.ndarray, "token unit"], first: Bool[np.ndarray, " token"]) -> Float[np.ndarray, " unit"]:
    """Area under the ROC curve of every unit: Mann and Whitney's U over the number of pairs, ties counting half.

    Example:
        >>> areas(np.array([[3.0, 1.0], [2.0, 1.0], [1.0, 1.0]]), np.array([True, False, False])).tolist()
        [1.0, 0.5]
    """
    from scipy.stats import rankdata

    n = int(first.sum())
    ranks = rankdata(values, axis=0)[first].sum(0)
    return (ranks - n * (n + 1) / 2) / (n * (len(first) - n))


def state_scores(seen: Seen, triples: Triples) -> Float[np.ndarray, " token"]:
    """The test observations along the direction from the mean of the others to the mean of first tokens.

    The direction is that of the selection half.
    """
    first = triples.places == 0
    means = [seen.state[triples.selection & label].mean(0) for label in (first, ~first)]
    return seen.state[triples.test] @ (means[0] - means[1])


def _ranking(selection: Float[np.ndarray, " neuron"]) -> list[int]:
    """Neurons, those that tell first tokens best in the selection half first, in either direction."""
    return np.argsort(-np.abs(selection - 0.5), kind="stable").tolist()


def _pair(values: Float[np.ndarray, "token neuron"], places: np.ndarray, one: int, other: int) -> Tensor:
    among = (places == one) | (places == other)
    return torch.from_numpy(areas(values[among], places[among] == one)).float()


def _interval(
    values: Float[np.ndarray, " token"], first: Bool[np.ndarray, " token"], ids: np.ndarray
) -> Float[np.ndarray, " end"]:
    """95 % of an area: all places at which a word stands are drawn together."""
    return cluster_intervals(area_parts(values, first)[None], ids)[0].clip(0, 1)


def _shuffled(
    neurons: Float[np.ndarray, "token neuron"], triples: Triples, shuffles: int, generator: np.random.Generator
) -> list[float]:
    """Held-out area of the best neuron where places are permuted within each triple, so that no neuron can know them.

    A value whose place is shuffled keeps its neuron's distribution, and the choice of the best is made anew.  Ranks do
    not depend on the places: the sums of all shuffles are one matrix product.
    """
    from scipy.stats import rankdata

    places = np.tile(np.arange(WIDTH), (len(triples.tokens), 1))
    first = np.stack([generator.permuted(places, axis=1).flatten() == 0 for _ in range(shuffles)])

    def shuffled_areas(half: Bool[np.ndarray, " token"]) -> Float[np.ndarray, "shuffle neuron"]:
        labels = first[:, half].astype(float)
        n = labels.sum(1, keepdims=True)
        return (labels @ rankdata(neurons[half], axis=0) - n * (n + 1) / 2) / (n * (half.sum() - n))

    chosen, held_out = shuffled_areas(triples.selection), shuffled_areas(triples.test)
    best = np.abs(chosen - 0.5).argmax(1)
    rows = np.arange(shuffles)
    signed = np.where(chosen[rows, best] >= 0.5, held_out[rows, best], 1 - held_out[rows, best])
    return signed.tolist()


_PLACES = ("first token", "second token", "third token")


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
        >>> from mechrep.measures.first_token_detectors import first_token_detectors
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
    figure = new_figure()
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
    name, blind = result.provenance.model["name"], max(result.shuffled_aurocs)
    area = f"area first against rest {float(result.auroc[chosen]):.3f} ({low_end:.3f} to {high_end:.3f}) on other words"
    styled(
        figure,
        title=f"Neuron {chosen} of layer {result.layer} at the first three tokens",
        subtitle=f"{name}; {area}, shuffled places at most {blind:.3f}",
        x="what goes into the neuron's activation function",
        y="share of tokens",
    )
    return figure.update_layout(barmode="overlay", bargap=0)
