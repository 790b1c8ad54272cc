"""``find_first_token``: does layer 0 tell the first token from all others, with which neurons and heads, and what then?

1. Other-token masses of the heads of layer 0, and the identity behind them (:class:`FirstTokenDetection`).
2. Neurons that tell a first token whoever it is (:func:`first_token_detectors`); the same on copies of the model that
   know nothing.  Found is what clears both kinds of null.
3. Which heads carry that mark (:func:`first_layer_head_cuts`).
4. Whether copies of a token come to the state of the token alone, and how fast (:func:`first_layer_convergence`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mechrep.analyzers.first_token.convergence import ConvergenceResult, first_layer_convergence
from mechrep.analyzers.first_token.detectors import FirstDetectorResult, first_token_detectors
from mechrep.analyzers.first_token.head_cuts import HeadCutResult, first_layer_head_cuts
from mechrep.analyzers.first_token.other_tokens import FirstTokenDetection, OtherTokenResult
from mechrep.analyzers.first_token.result import FirstTokenResult as FirstTokenResult
from mechrep.analyzers.first_token.triples import corpus_of
from mechrep.analyzers.first_token.windows import windows
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.models.model import Model
from mechrep.models.nulls import reinitialised, shuffled
from mechrep.provenance import Provenance, provenance_of
from mechrep.text.corpus import Corpus

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
        >>> from mechrep.models.nulls import reinitialised
        >>> untrained = reinitialised(mechrep.load_model("mechrep-tiny"))
        >>> result = find_first_token(untrained, token_ids=[300], prefix=[301], triples=60, repeats=20)
        >>> result.found, result.theory
        (False, 'power')
    """
    given = {"texts": texts, "token_ids": token_ids, "prefix": prefix, "triples": triples, "repeats": repeats}
    given |= {"layer": layer}
    return first_token_parts(model, **given, seed=seed).summary()  # pyright: ignore[reportArgumentType]
