"""``find_first_token``: does layer 0 tell the first token from all others, with which neurons and heads, and what then?

1. Other-token masses of the heads of layer 0, and the identity behind them (:class:`FirstTokenDetection`).
2. Neurons that tell a first token whoever it is (:func:`first_token_detectors`); the same on copies of the model that
   know nothing.  Found is what clears both kinds of null.
3. Which heads carry that mark (:func:`first_layer_head_cuts`).
4. Whether copies of a token come to the state of the token alone, and how fast (:func:`first_layer_convergence`).

``FirstTokenResult``: whether layer 0 tells the first token from others, with what, and what follows for repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.cache.corpus_cache import CorpusCache
from mechrep.figures import ACCENT, INK, SEQUENCE, styled
from mechrep.measures.first_token_detectors import (
    ConvergenceResult,
    FirstDetectorResult,
    first_layer_convergence,
    first_token_detectors,
)
from mechrep.measures.first_token_heads import LOSSES, HeadCutResult, first_layer_head_cuts
from mechrep.measures.first_token_mass import FirstTokenDetection, OtherTokenResult, corpus_of, windows
from mechrep.models.load import reinitialised, shuffled
from mechrep.models.model import Model
from mechrep.provenance import Provenance, provenance_of
from mechrep.results import Result, check_count
from mechrep.text.corpus import Corpus

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)
class FirstTokenResult(Result):
    """The short form of the four measurements; each has a result of its own, with everything in it.

    Attributes:
        found: some neuron tells first tokens better than anything does under shuffled places, on other words than it
            was chosen with, and better than the best neuron of every null model.
        reason: in words, what was found, or why nothing counts as found.
        layer: whose MLP holds the detectors: 0, or 1 in parallel blocks.
        neurons: ``[layer, neuron]`` of the detectors, most telling first; empty where nothing was found.
        auroc: held-out area of the best neuron, found or not.
        interval: 95 % of it.
        state_auroc: the same for one direction of the MLP's input.
        shuffled_auroc: the largest area under shuffled places.
        null_aurocs: area of the best neuron of every null model.
        heads: ``[layer, head]`` of layer 0 that carry the mark: cutting them costs clearly more than cutting others.
        needs_attention: whether the mark goes with the attention of layer 0; ``False`` where positions are learned.
        detector_loss: what cutting each head to zero costs the best neuron, in area; the last for all heads.
        norm_loss: what it costs the log ratio of the first position's norm; NaN without a norm sink in texts without
            BOS.
        mass: other-token mass of each head of layer 0 on ordinary text.
        uniform_mass: of a head that attends uniformly.
        identity_error: largest error of the exact identity over the heads, in units of their mean value norm.
        same_value_error: the same if equal tokens are taken to have equal values.
        pure_deviation: largest relative distance between positions of a run of one token without BOS.
        theory: the law by which the share of other tokens is expected to fall with copies of a token.
        law: the law that was measured.
        slope: measured exponent, median over heads and tokens; -1 is 1/n.
        agrees: whether the two agree.
        last_distance: median relative distance of the last copy from the token alone, after layer 0.
        repeats: number of copies.
    """

    found: bool
    reason: str
    layer: int
    neurons: Sequence[Sequence[int]]
    auroc: float
    interval: Sequence[float]
    state_auroc: float
    shuffled_auroc: float
    null_aurocs: Sequence[float]
    heads: Sequence[Sequence[int]]
    needs_attention: bool
    detector_loss: Float[Tensor, " head_and_all"]
    norm_loss: Float[Tensor, " head_and_all"]
    mass: Float[Tensor, " head"]
    uniform_mass: float
    identity_error: float
    same_value_error: float
    pure_deviation: float
    theory: str
    law: str
    slope: float
    agrees: bool
    last_distance: float
    repeats: int

    def top(self, k: int) -> list[tuple[int, int]]:
        """The first ``k`` detectors, as ``(layer, neuron)``: what :class:`mechrep.Neurons` takes.

        Raises:
            InputError: ``k`` larger than the number of detectors.
        """
        check_count(k, len(self.neurons), "first-token detectors")
        return [(layer, neuron) for layer, neuron in self.neurons[:k]]

    def to_frame(self) -> pd.DataFrame:
        """One row per head of layer 0, in order: its mass, what cutting it costs, and whether it carries the mark."""
        heads = range(len(self.mass))
        carriers = {head for _, head in self.heads}
        return pd.DataFrame(
            {
                "layer": 0,
                "head": heads,
                "mass": self.mass.numpy(),
                "detector_loss": self.detector_loss[:-1].numpy(),
                "norm_loss": self.norm_loss[:-1].numpy(),
                "carries": [head in carriers for head in heads],
            }
        )

    def plot(self) -> go.Figure:
        """What cutting each head of layer 0 costs, beside its other-token mass."""
        return first_token_figure(self)

    @property
    def lost_together(self) -> float:
        """What cutting all heads of layer 0 costs the best neuron, in area; NaN where there is no area."""
        return float(torch.as_tensor(self.detector_loss)[-1])


_SHUFFLES = 3


class FirstTokenParts(NamedTuple):
    """The four measurements behind a :class:`FirstTokenResult`, to be saved and drawn one by one.

    Attributes:
        mass: other-token masses.
        detectors: neurons.
        cuts: heads.
        convergence: copies.
        null_aurocs: held-out area of the best neuron of every null model.
        provenance: of the whole.
    """

    mass: OtherTokenResult
    detectors: FirstDetectorResult
    cuts: HeadCutResult
    convergence: ConvergenceResult
    null_aurocs: Sequence[float]
    provenance: Provenance

    def summary(self) -> FirstTokenResult:
        """The short form, with the decision."""
        detectors, cuts, copies = self.detectors, self.cuts, self.convergence
        clear = [
            neuron
            for neuron, (low, _) in zip(detectors.neurons, detectors.intervals.tolist(), strict=True)
            if low > max(detectors.null_auroc, *self.null_aurocs)
        ]
        found = detectors.neurons[0] in clear
        neurons = [[detectors.layer, neuron] for neuron in clear] if found else []
        return FirstTokenResult(
            self.provenance,
            found=found,
            reason=self._in_words(found, len(neurons)),
            layer=detectors.layer,
            neurons=neurons,
            auroc=detectors.best_auroc,
            interval=detectors.intervals[0].tolist(),
            state_auroc=detectors.state_auroc,
            shuffled_auroc=detectors.null_auroc,
            null_aurocs=list(self.null_aurocs),
            heads=[list(head) for head in cuts.carriers()] if found else [],
            needs_attention=cuts.needs_attention,
            detector_loss=cuts.detector_loss[0],
            norm_loss=cuts.norm_loss[0],
            mass=self.mass.mass,
            uniform_mass=self.mass.uniform_mass,
            identity_error=float(self.mass.identity_error.max()),
            same_value_error=float(self.mass.same_value_error.max()),
            pure_deviation=float(copies.pure_deviation.max()),
            theory=copies.theory,
            law=copies.law if copies.theory == "none" else copies.mass_law,
            slope=copies.median_slope,
            agrees=copies.agrees,
            last_distance=float(copies.relative("layer")[:, -1].median()),
            repeats=copies.repeats[-1],
        )

    def _in_words(self, found: bool, neurons: int) -> str:
        best, (low, high) = self.detectors.best_auroc, self.detectors.intervals[0].tolist()
        counted = f"neurons of layer {self.detectors.layer} that tell a first token from a second or third: {neurons}"
        return (
            f"{counted if found else 'no neuron tells a first token from a second or third'}; on other words the best "
            f"has an area of {best:.3f} ({low:.3f} to {high:.3f}) under the ROC curve, with shuffled places at most "
            f"{self.detectors.null_auroc:.3f}, in null models at most {max(self.null_aurocs):.3f}"
        )


def first_token_parts(
    model: Model,
    *,
    texts: Corpus | Sequence[str] | None = None,
    token_ids: Sequence[int] | None = None,
    prefix: Sequence[int] | None = None,
    layer: int | None = None,
    triples: int = 1000,
    repeats: int | None = None,
    seed: int = 0,
) -> FirstTokenParts:
    """The four measurements of :func:`find_first_token`, each whole; its arguments are the same."""
    corpus = corpus_of(model, texts)
    text = Corpus.from_tokens(windows(model, corpus), model=model, bos_policy="absent")
    (mass,) = CorpusCache(model, text, progress=False).run(FirstTokenDetection.of(model))
    assert isinstance(mass, OtherTokenResult)
    copies = [lambda i=i: shuffled(model, seed + i) for i in range(_SHUFFLES)]
    nulls = [
        first_token_detectors(c(), corpus, layer=layer, triples=triples, k=1, shuffles=1, seed=seed)
        for c in [*copies, lambda: reinitialised(model, seed + 1)]
    ]
    return FirstTokenParts(
        mass,
        first_token_detectors(model, corpus, layer=layer, triples=triples, seed=seed, k=min(10, model.anatomy.d_mlp)),
        first_layer_head_cuts(model, corpus, layer=layer, triples=triples, seed=seed),
        first_layer_convergence(model, token_ids, prefix=prefix, repeats=repeats),
        [null.best_auroc for null in nulls],
        provenance_of(model, corpus, {"seed": seed, "shuffles": _SHUFFLES, "triples": triples}),
    )


def find_first_token(
    model: Model,
    *,
    texts: Corpus | Sequence[str] | None = None,
    token_ids: Sequence[int] | None = None,
    prefix: Sequence[int] | None = None,
    layer: int | None = None,
    triples: int = 1000,
    repeats: int | None = None,
    seed: int = 0,
) -> FirstTokenResult:
    """Looks for a mark of the first token in layer 0: by whom it is made, by whom it is read, what copies do to it.

    Args:
        model: the model, in float32.
        texts: a corpus, or texts; held-out English by default.  BOS takes no part: it is told by its identity.
        token_ids: tokens that are repeated; the most frequent of held-out English by default.
        prefix: ids in front of the copies; ``"some prefix: "`` by default.
        layer: whose MLP reads the mark; by default the first that sees the attention of layer 0, as published.  A model
            may read it later: name the layer of its sink.
        triples: at most so many triples of consecutive tokens.
        repeats: number of copies; by default 500, or what the model reads.
        seed: of halves, nulls and bootstrap samples.

    Returns:
        A result whose ``found`` is False where nothing clears the nulls.

    Raises:
        InputError: see :func:`first_token_detectors` and :func:`first_layer_convergence`.

    Source: the first layer's "detect other tokens" is Yona et al. 2025 (arXiv 2503.08908).  The decision, its nulls
    and the cuts are mechrep's own.

    Limits: a model may mark BOS by its identity and not by its place, as small models do; then nothing is found here
    although there is a sink (:func:`mechrep.find_sink`).  One copy of the model is held in memory beside it.

    Example:
        >>> import mechrep
        >>> from mechrep.models.load import reinitialised
        >>> untrained = reinitialised(mechrep.load_model("mechrep-tiny"))
        >>> result = find_first_token(untrained, token_ids=[300], prefix=[301], triples=60, repeats=20)
        >>> result.found, result.theory
        (False, 'power')
    """
    given = {"texts": texts, "token_ids": token_ids, "prefix": prefix, "triples": triples, "repeats": repeats}
    given |= {"layer": layer}
    return first_token_parts(model, **given, seed=seed).summary()  # pyright: ignore[reportArgumentType]


_SECOND = SEQUENCE[1]


def first_token_figure(result: FirstTokenResult) -> go.Figure:
    """What cutting each head of layer 0 costs, against its attention to other tokens.

    Args:
        result: the short form of all measurements.

    Source: mechrep's own.

    Example:
        >>> import mechrep
        >>> from mechrep.measures.first_token import find_first_token
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> result = find_first_token(model, token_ids=[300], prefix=[301], triples=60, repeats=20)
        >>> len(first_token_figure(result).data[0].x) == model.anatomy.n_heads
        True
    """
    import plotly.graph_objects as go

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
        y=LOSSES["detector"],
    )
    return figure
