"""What ablating heads of layer 0 takes from the mark of a first token: from the neuron, the state, and the norm.

Every head of layer 0 alone, and all of them, at every position.  All heads together show what attention carries at all:
learned positions need none.  Heads of later layers are no controls, as most of them cannot reach what is read: each
head's controls are the other heads of layer 0, from which words and texts tell it apart (peers, see
:mod:`mechrep.ablation.effects`).  All heads together have no peers; they, and the best head, are judged beside null
models by :func:`mechrep.studies.first_layer.find_first_token`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrep.ablation.effects import ABLATION, Condition, Effects, Measure
from mechrep.ablation.outcomes import Cost
from mechrep.ablation.run import Cell, measure_effects, stacked
from mechrep.ablation.sink_outcomes import SinkOnTexts
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.guards import guarded, some_of
from mechrep.interventions.ops import Heads, Intervention, Op, mean, zero
from mechrep.measures.first_token import (
    LAYER,
    WIDTH,
    Seen,
    check_patterns,
    corpus_of,
    detector_layer,
    read_triples,
    triples_of,
    windows,
)
from mechrep.measures.first_token_detectors import areas, state_scores
from mechrep.measures.sink_norms import CLEARLY_ABOVE, SinkNorms
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import read_activations
from mechrep.progress import progress_bar
from mechrep.run import Run
from mechrep.stats import area_parts
from mechrep.text.corpus import Corpus

OPS = ("zero", "mean")
ALL = "all heads"
PEERS = "other heads of layer 0"
_TEXTS_PER_BATCH = 64
_NORM_LENGTH = 32  # tokens; the first position stands out from the next few as from many


class FirstTokenMark:
    """How well first tokens are told from second and third ones, token by token of the held-out half.

    ``detector``: part of a token in the area under the ROC curve of the neuron that tells first tokens best in the
    whole model, see :func:`~mechrep.stats.area_parts`; the mean over tokens is the area.  ``state``: the same of one
    direction of the MLP's input, which is found anew under every intervention: is the mark gone, or elsewhere?

    Args:
        model: the model.
        corpus: texts, whose triples of consecutive tokens are read.
        layer: whose MLP is read; by default the first that sees the attention of layer 0.
        triples: at most so many.
        seed: of the halves.

    Raises:
        InputError: no such layer, or too few texts.
    """

    regenerates = False

    def __init__(
        self, model: Model, corpus: Corpus, *, layer: int | None = None, triples: int = 1000, seed: int = 0
    ) -> None:
        self.layer = detector_layer(model.anatomy) if layer is None else layer
        model.anatomy.check_layer(self.layer)
        self.model, self.stimulus = model, triples_of(model, corpus, limit=triples, seed=seed)
        seen, first, known = self._read(None), self.stimulus.places == 0, self.stimulus.selection
        chosen = areas(seen.neurons[known], first[known])
        self.neuron = int(np.abs(chosen - 0.5).argmax())
        self.sign = -1.0 if chosen[self.neuron] < 0.5 else 1.0
        self.area = self._area(seen.neurons, self.stimulus.test, first)
        tested = np.flatnonzero(self.stimulus.test)
        self.units = [f"triple {place // WIDTH}, place {place % WIDTH}" for place in tested]
        self.clusters = [str(token) for token in self.stimulus.ids[tested]]
        self.measures = [Measure(name, "score", over="token", direction=-1) for name in ("detector", "state")]
        digest = hashlib.sha256(self.stimulus.tokens.numpy().tobytes()).hexdigest()[:16]
        self.facts = {"triples": digest, "layer": self.layer, "neuron": self.neuron, "seed": seed}
        self.cost = Cost(read=self.stimulus.tokens.numel())

    def _read(self, intervention: Intervention | None) -> Seen:
        return read_triples(self.model, self.stimulus.tokens, intervention, self.layer)

    def _area(self, neurons: np.ndarray, test: np.ndarray, first: np.ndarray) -> float:
        return float(areas(self.sign * neurons[test, self.neuron, None], first[test])[0])

    def areas_under(self, interventions: Sequence[Intervention]) -> list[float]:
        """The neuron's area under each intervention, from the triples that have a token to judge it by.

        The mean of :meth:`values` is the same; this reads half as much.
        """
        rows = np.flatnonzero(self.stimulus.test.reshape(-1, WIDTH).any(1))
        places, tokens = (rows[:, None] * WIDTH + np.arange(WIDTH)).flatten(), self.stimulus.tokens[rows]
        test, first = self.stimulus.test[places], (self.stimulus.places == 0)[places]
        seen = (read_triples(self.model, tokens, one, self.layer).neurons for one in interventions)
        return [self._area(neurons, test, first) for neurons in seen]

    def values(
        self, interventions: Sequence[Intervention | None], progress: bool | None
    ) -> Float[Tensor, "measure intervention token"]:
        """The parts of both areas."""
        test, found = self.stimulus.test, []
        first = (self.stimulus.places == 0)[test]
        with progress_bar(len(interventions), "mark of first tokens", "condition", progress) as bar:
            for intervention in interventions:
                seen = self._read(intervention)
                both = self.sign * seen.neurons[test, self.neuron], state_scores(seen, self.stimulus)
                found.append(np.stack([area_parts(one, first) for one in both]))
                bar.update()
        return torch.from_numpy(np.stack(found, axis=1))


class FirstNorm:
    """How much larger the first position is than the others, text by text: ``norm``, the logarithm of the ratio.

    The residual norm at the first position over the mean at the others, after a layer.

    Args:
        model: the model.
        corpus: texts of at least two tokens.
        layer: after which norms are read.
    """

    regenerates = False

    def __init__(self, model: Model, corpus: Corpus, layer: int) -> None:
        self.norms = SinkOnTexts(model, corpus, layer, loss=False)
        self.units, self.clusters, self.cost = self.norms.units, self.norms.clusters, self.norms.cost
        self.measures = [Measure("norm", "score", direction=-1)]
        self.facts = self.norms.facts

    def values(
        self, interventions: Sequence[Intervention | None], progress: bool | None
    ) -> Float[Tensor, "measure intervention text"]:
        """The logarithms."""
        first, others = self.norms.values(interventions, progress)
        return (first / others).log()[None]


@guarded
def first_layer_heads(
    model: Model,
    texts: Corpus | Sequence[str] | None = None,
    *,
    layer: int | None = None,
    triples: int = 1000,
    ops: Sequence[str] = OPS,
    run: Run | None = None,
) -> Effects:
    """Ablates every head of layer 0 alone, and all together, and measures what is left of the first token's mark.

    Args:
        model: the model.
        texts: a corpus, or texts; held-out English by default.
        layer: whose MLP reads the mark, and after which norms are read; by default the first MLP that sees layer 0, and
            the layer of the largest jump.
        triples: at most so many triples of consecutive tokens for detector and state.
        ops: ``"zero"``, ``"mean"``: of the outputs of each head over the positions that are read.
        run: options.

    Returns:
        Effects; measures ``"detector"`` and ``"state"`` (:class:`FirstTokenMark`) and, where in texts without BOS the
        first position is clearly larger than the others, ``"norm"`` (:class:`FirstNorm`).  Conditions are named
        ``"L0H3"``, and ``"all heads"``; ``notes``: ``detector``, ``[layer, neuron]``; ``sink_layer`` or ``None``, and
        ``ratio`` there, or the largest.  The controls of a head are the other heads of layer 0.

    Raises:
        InputError: too few texts, another model's corpus, an unknown operation, no such layer, a model without
            attention patterns, or a parallel model of one layer.

    Source: that the first layer's attention marks the first token is Yona et al. 2025 (arXiv 2503.08908), whose release
    names no heads; these ablations are mechrep's own.  Zero and mean: Olsson et al. 2022 (arXiv 2209.11895), Wang et
    al. 2023 (arXiv 2211.00593).

    Limits: heads that do the same job hide each other: compare the sum of the losses with that of all heads.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> effects = first_layer_heads(model, triples=60)
        >>> len(effects.conditions) == 1 + 2 * (model.anatomy.n_heads + 1)  # zero and mean; each head, and all
        True
    """
    check_patterns(model.anatomy)
    some_of("ops", ops, OPS)
    options, corpus = run or Run(), corpus_of(model, texts)
    mark = FirstTokenMark(model, corpus, layer=layer, triples=triples, seed=options.seed)
    text = norm_texts(model, corpus, options)
    sink_layer, ratio = _sink_layer(model, text, layer)
    config = {"study": "heads of the first layer", "layer": layer}
    notes = {"peers": PEERS, "detector": [mark.layer, mark.neuron], "sink_layer": sink_layer, "ratio": ratio}
    effects = measure_effects(
        model, head_cells(model, ops, mark.stimulus.tokens), [mark], config=config, run=options, notes=notes
    )
    if sink_layer is None:
        return effects
    cells = head_cells(model, ops, text.tokens)  # other texts, other means
    norms = measure_effects(model, cells, [FirstNorm(model, text, sink_layer)], config=config, run=options)
    return replace(
        effects,
        measures=[*effects.measures, *norms.measures],
        units=[*effects.units, *norms.units],
        clusters=[*effects.clusters, *norms.clusters],
        values=stacked([effects.values, norms.values]),
    )


def norm_texts(model: Model, corpus: Corpus, run: Run) -> Corpus:
    """The beginnings of the windows that the first layer is read on: without BOS, of one length."""
    tokens = windows(model, corpus, limit=window_count(model, run))[:, :_NORM_LENGTH]
    return Corpus.from_tokens(tokens, model=model, attention_mask=True, bos_policy="absent")


def window_count(model: Model, run: Run) -> int:
    """How many windows the first layer is read on."""
    return 2 * run.sizes_on(model).windows


def head_cells(model: Model, ops: Sequence[str], tokens: Int[Tensor, "text pos"]) -> list[Cell]:
    """The baseline; every head of layer 0, and all, under each operation; means are those on these texts."""
    n = model.anatomy.n_heads
    sets = {f"L{LAYER}H{head}": [head] for head in range(n)} | {ALL: list(range(n))}
    done: dict[str, Op] = {op: zero() if op == "zero" else mean(_mean_outputs(model, tokens)) for op in ops}
    cells: list[Cell] = [(Condition(), None)]
    for op in ops:
        for name, heads in sets.items():
            units = [(LAYER, head) for head in heads]
            components = {"heads": [list(unit) for unit in units]}
            condition = Condition(name, ABLATION, len(units), op, components=components)
            cells.append((condition, Heads(units, done[op], when="all")))
    return cells


def _mean_outputs(model: Model, tokens: Int[Tensor, "text pos"]) -> Float[Tensor, "layer head d_head"]:
    """Mean output of every head of layer 0 over all positions; other layers, which are not ablated, are zero."""
    anatomy = model.anatomy
    total = torch.zeros(anatomy.n_layers, anatomy.n_heads, anatomy.d_head, dtype=torch.float64)

    def add(activation: Tensor, _site: Site, layer: int) -> None:
        total[layer] += activation.double().sum((0, 1)).cpu()

    for batch in tokens.split(_TEXTS_PER_BATCH):
        with model.each_alone(torch.full((len(batch),), batch.shape[1])):
            read_activations(model, batch.to(model.device), {Site.Z: [LAYER]}, add)
    return (total / tokens.numel()).float()


def _sink_layer(model: Model, text: Corpus, named: int | None) -> tuple[int | None, float]:
    """The layer after which the first position is clearly larger, if any, and its ratio there or at most."""
    norms = CorpusCache(model, text, progress=False).run(SinkNorms())
    if named is not None:
        ratio = float(norms.ratio[named + 1])
        return (named if ratio >= CLEARLY_ABOVE else None), ratio
    return norms.layer, norms.largest_ratio
