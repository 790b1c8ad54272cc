"""What makes a stage of a sink: its neurons, judged by what is left of the stage at every later depth.

A neuron that makes the norm right after its own layer need not be the cause of what later layers see: they may write it
again.  So a set of neurons counts by the share of the excess that it removes *where it removes least*, from the peak of
the stage to the last depth at which it stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.ablation.controls import draw_controls
from mechrep.ablation.effects import detection
from mechrep.ablation.norm_profiles import excess_removed, norm_profiles
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.interventions.ops import Neurons
from mechrep.measures.attention_sinks import AttentionSinks
from mechrep.measures.sink_neurons import sink_neurons
from mechrep.measures.sink_stages import NormStage
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.run import Run
from mechrep.text.corpus import Corpus

NEURONS = "sink neurons"  # name of the claim
_TEXTS, _LENGTH = 6, 16  # to choose with, and as many to test on
_SIZES = (1, 2, 3, 5, 8)
_CARRIED = 0.8  # the sink neurons are the fewest that remove so much of the excess


@dataclass(frozen=True)
class SinkStage:
    """A stage, and what makes it.

    Attributes:
        norm: where it rises, peaks and falls.
        neurons: ``[layer, neuron]``: the fewest, in the order of what they add at the first position, that remove 80 %
            of the excess at every depth at which the stage stands; all that were tried where none do.
        removed_at_peak: share of the excess that they remove at the peak.
        removed: the share where they remove least, from the peak to the last depth of the stage.
        removed_by_random: the largest of all draws of as many other neurons of the same layers, likewise.
        carried: whether they remove 80 % there and more than all draws: a small set of neurons carries the stage.
        heads: ``[layer, head]`` that rest on the first position while the stage stands.
        attention: mean attention of these heads to the first position; NaN where there are none.
        attention_without: the same without the neurons.
    """

    norm: NormStage
    neurons: Sequence[Sequence[int]]
    removed_at_peak: float
    removed: float
    removed_by_random: float
    carried: bool
    heads: Sequence[Sequence[int]]
    attention: float
    attention_without: float

    @property
    def layer(self) -> int:
        """The last layer of the rise: after it the ratio is largest."""
        return self.norm.peak - 1

    @classmethod
    def made_by(cls, units: Sequence[tuple[int, int]]) -> SinkStage:
        """A stage of one's own: these neurons are taken for what carries it.

        Example:
            >>> SinkStage.made_by([(1, 7890), (1, 10411)]).layer
            1
        """
        layer, unknown = units[0][0], float("nan")
        norm = NormStage(layer, layer + 1, layer + 1, layer + 1, unknown, unknown, [1.0])
        return cls(norm, [list(unit) for unit in units], unknown, unknown, unknown, True, [], unknown, unknown)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> SinkStage:
        """The stage as a file keeps it."""
        return cls(**{**record, "norm": NormStage(**record["norm"])})


def stage_cause(
    model: Model, corpus: Corpus, stage: NormStage, heads: Sequence[tuple[int, int]], run: Run
) -> tuple[SinkStage, dict[str, Any]]:
    """Neurons of a stage, and the row of the claim that they carry it.

    They are chosen with some texts and tested on others.

    Args:
        model: the model.
        corpus: ordinary texts, which begin as those in which the stage was seen.
        stage: the stage.
        heads: that rest on the first position.
        run: options: seed and number of draws.
    """
    choose, test = _short(model, corpus, 0), _short(model, corpus, _TEXTS)
    ranking = _candidates(model, choose, stage)
    resting = [[layer, head] for layer, head in heads if stage.peak <= layer <= stage.last]
    if not ranking:  # layers without an MLP write it
        unknown = float("nan")
        nothing = SinkStage(stage, [], unknown, unknown, unknown, False, resting, unknown, unknown)
        return nothing, detection(NEURONS, "share of the excess norm removed", float("nan"), [], unit="share")
    sizes = [size for size in _SIZES if size <= len(ranking)]
    tried = _removed(model, choose, [ranking[:n] for n in sizes], stage)
    size = next((n for n, left in zip(sizes, tried, strict=True) if float(left.min()) >= _CARRIED), sizes[-1])
    chosen = ranking[:size]
    drawn = draw_controls(
        "layer_matched", chosen, layers=model.anatomy.n_layers, width=model.anatomy.neurons,
        draws=run.sizes_on(model).draws, seed=run.seed, exclude=ranking,
    )  # fmt: skip
    removed = _removed(model, test, [chosen, *drawn], stage)
    own, *others = removed.amin(1).tolist()
    row = detection(NEURONS, "share of the excess norm removed at every later depth", own, others, unit="share")
    before, after = (_attention(model, test, resting, change) for change in (None, _zero(chosen)))
    found = SinkStage(
        stage, [list(unit) for unit in chosen], float(removed[0, 0]), own, max(others, default=float("nan")),
        own >= _CARRIED and own > max(others, default=0.0), resting, before, after,
    )  # fmt: skip
    return found, row | {"controls": "layer_matched", "floor": max(row["floor"], _CARRIED - row["baseline"])}


def _removed(
    model: Model, corpus: Corpus, sets: Sequence[Sequence[tuple[int, int]]], stage: NormStage
) -> Float[Tensor, "set depth"]:
    """Share of the excess that each set removes, at the depths at which the stage stands from its peak on."""
    ratios = norm_profiles(model, corpus, [None, *map(_zero, sets)], stage.last)
    return excess_removed(ratios)[:, stage.peak :]


def _short(model: Model, corpus: Corpus, first: int) -> Corpus:
    """A few texts from a place on, cut to a few tokens; the first ones where there are no more."""
    usable = (corpus.lengths > 1).nonzero().flatten().tolist()
    rows = [corpus.row(text)[:_LENGTH] for text in usable[first : first + _TEXTS] or usable[:_TEXTS]]
    return Corpus.from_tokens(rows, model=model, attention_mask=True, bos_policy=corpus.bos_policy)


def _zero(units: Sequence[tuple[int, int]]) -> Neurons:
    return Neurons(units, "zero", when="all")


def _candidates(model: Model, corpus: Corpus, stage: NormStage) -> list[tuple[int, int]]:
    """Neurons of the layers of the rise, by the length of what they add at the first position."""
    scored: list[tuple[float, tuple[int, int]]] = []
    for layer in stage.layers:
        if layer not in model.anatomy.layers_with(Site.MLP_POST):
            continue
        scores = sink_neurons(model, corpus, layer).scores()
        most = scores.nan_to_num(-1.0).topk(min(max(_SIZES), len(scores) // 2))
        scored += [
            (value, (layer, unit)) for value, unit in zip(most.values.tolist(), most.indices.tolist(), strict=True)
        ]
    return [unit for _, unit in sorted(scored, key=lambda pair: -pair[0])][: max(_SIZES)]


def _attention(model: Model, corpus: Corpus, heads: Sequence[Sequence[int]], change: Neurons | None) -> float:
    if not heads:
        return float("nan")
    seen = CorpusCache(model, corpus, intervention=change, progress=False).run(AttentionSinks())
    return float(torch.stack([seen.alpha[layer, head] for layer, head in heads]).mean())
