"""First-detector neurons: which neurons of the first MLP tell a first token from a second or third, whoever it is?

1. Triples of consecutive tokens without BOS (:mod:`mechrep.analyzers.first_token.triples`); every token of the text is
   seen at all three places, so its identity says nothing.
2. Neurons are chosen with one half of the text and of the vocabulary, and judged by the other half: the area under the
   ROC curve of first against the rest, first against second, second against third.
3. The same for one direction of the MLP's input, the difference between the means of first tokens and others.
4. Nulls: the whole of it with places shuffled within every triple, and neurons chosen blindly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float

from mechrep.analyzers.first_token.auroc import areas_of_ranks, auroc_draws, aurocs
from mechrep.analyzers.first_token.detectors_result import FirstDetectorResult as FirstDetectorResult
from mechrep.analyzers.first_token.reading import Seen, detector_layer, read_triples
from mechrep.analyzers.first_token.triples import WIDTH, Triples, corpus_of, triples_of
from mechrep.errors import InputError
from mechrep.models.model import Model
from mechrep.provenance import provenance_of
from mechrep.stats import percentile_interval
from mechrep.text.corpus import Corpus

_PAIRS = {"first_second": (0, 1), "second_third": (1, 2)}
_RANDOM = 100


def first_token_detectors(
    model: Model,
    texts: Corpus | Sequence[str] | None = None,
    *,
    layer: int | None = None,
    triples: int = 1000,
    k: int = 10,
    shuffles: int = 20,
    seed: int = 0,
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
        Areas per neuron, with nulls; ``found`` is False where the best neuron does not clear them.

    Raises:
        InputError: no such layer, too few texts, another model's corpus, no neurons or shuffles asked for, or a
            parallel model of one layer.

    Source: the published score, ``mean((Q_0 - Q_1) W_gate)`` over 1000 triples, is Yona et al. 2025 (arXiv 2503.08908).
    Held-out halves, areas, intervals and nulls are mechrep's own.

    Limits: read is what goes into the activation function (``GATE_PRE``), as published.  In parallel blocks (GPT-NeoX)
    the MLP of layer 0 cannot see attention 0, so layer 1 is read.  Learned positions tell places apart without any
    attention: cut the heads and see (:func:`mechrep.analyzers.first_token.head_cuts.first_layer_head_cuts`).

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> result = first_token_detectors(model, triples=60, k=2, shuffles=2)
        >>> len(result.top(2)), result.auroc.shape[0] == model.anatomy.d_mlp
        (2, True)
    """
    if not 1 <= k <= model.anatomy.d_mlp or shuffles < 1:
        raise InputError(
            f"k={k}, shuffles={shuffles}", f"1 to {model.anatomy.d_mlp} neurons, at least one shuffle", "correct them"
        )
    read = detector_layer(model.anatomy) if layer is None else layer
    if not 0 <= read < model.anatomy.n_layers:
        raise InputError(f"layer {read}", f"a layer from 0 to {model.anatomy.n_layers - 1}", "count layers from 0")
    corpus = corpus_of(model, texts)
    stimulus = triples_of(model, corpus, limit=triples, seed=seed)
    seen = read_triples(model, stimulus.tokens, layer=read)
    places, ids = stimulus.places, stimulus.ids
    selection, test, first = stimulus.selection, stimulus.test, stimulus.places == 0
    chosen = aurocs(seen.neurons[selection], first[selection])
    signs = np.where(chosen < 0.5, -1.0, 1.0).astype(np.float32)
    oriented = seen.neurons[test] * signs
    areas = aurocs(oriented, first[test])
    ranking = _ranking(chosen)
    top = ranking[:k]
    generator = np.random.default_rng(seed)
    blind = generator.choice(len(chosen), min(_RANDOM, len(chosen)), replace=False)
    state = state_scores(seen, stimulus)
    config = {"triples": len(stimulus.tokens), "k": k, "shuffles": shuffles, "seed": seed}
    config |= {} if layer is None else {"layer": layer}
    return FirstDetectorResult(
        provenance_of(model, corpus, config),
        layer=read,
        score=torch.from_numpy((seen.neurons[places == 0] - seen.neurons[places == 1]).mean(0)),
        selection_auroc=torch.from_numpy(chosen).float(),
        auroc=torch.from_numpy(areas).float(),
        **{name: torch.from_numpy(_pair(oriented, places[test], *pair)).float() for name, pair in _PAIRS.items()},
        neurons=top,
        intervals=torch.tensor([_interval(oriented[:, n], first[test], ids[test], seed) for n in top]),
        values=torch.from_numpy(seen.neurons[:, top].reshape(-1, WIDTH, k)),
        state_auroc=float(aurocs(state[:, None], first[test])[0]),
        state_interval=list(_interval(state, first[test], ids[test], seed)),
        shuffled_aurocs=_shuffled(seen.neurons, stimulus, shuffles, generator),
        random_aurocs=areas[blind].tolist(),
        n_selection=int(selection.sum()),
        n_test=int(test.sum()),
    )


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


def _pair(
    values: Float[np.ndarray, "token neuron"], places: np.ndarray, one: int, other: int
) -> Float[np.ndarray, " neuron"]:
    among = (places == one) | (places == other)
    return aurocs(values[among], places[among] == one)


def _interval(
    values: Float[np.ndarray, " token"], first: Bool[np.ndarray, " token"], ids: np.ndarray, seed: int
) -> tuple[float, float]:
    """Bootstrap over words: all places at which a word stands are drawn together."""
    draws = auroc_draws(values, first, ids, seed=seed)
    return percentile_interval(draws[np.isfinite(draws)].tolist())


def _shuffled(
    neurons: Float[np.ndarray, "token neuron"], triples: Triples, shuffles: int, generator: np.random.Generator
) -> list[float]:
    """Held-out area of the best neuron where places are permuted within each triple, so that no neuron can know them.

    A value whose place is shuffled keeps its neuron's distribution, and the choice of the best is made anew.
    """
    from scipy.stats import rankdata

    halves = [(mask, rankdata(neurons[mask], axis=0)) for mask in (triples.selection, triples.test)]
    found: list[float] = []
    for _ in range(shuffles):
        places = generator.permuted(np.tile(np.arange(WIDTH), (len(triples.tokens), 1)), axis=1).flatten()
        chosen, held_out = (areas_of_ranks(ranks, places[mask] == 0) for mask, ranks in halves)
        best = _ranking(chosen)[0]
        found.append(float(held_out[best] if chosen[best] >= 0.5 else 1 - held_out[best]))
    return found
