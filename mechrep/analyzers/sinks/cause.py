"""What makes a sink, once it is known to be there: neurons, what cutting them removes, and what repeats do."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from mechrep.analyzers.sinks.ablation import sink_neuron_ablation
from mechrep.analyzers.sinks.neurons import SinkNeuronResult, sink_neurons, spike_weights
from mechrep.analyzers.sinks.norms import SinkNormResult, SinkNorms
from mechrep.analyzers.sinks.repeat_norms import RepeatNormResult, RepeatNorms
from mechrep.analyzers.sinks.repeat_norms_result import MOVED, Moved
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.models.model import Model
from mechrep.text.corpus import Corpus
from mechrep.text.repeated import repeated_tokens

_ABLATION_TEXTS = 16
_TOP = 5
_CARRIED = 0.8  # the sink neurons are the fewest that remove so much of the excess norm
_REPEATED_TOKENS, _REPEATS = 16, 512

NO_CAUSE: dict[str, Any] = {
    "neurons": [],
    "agreement": {},
    "removed": {},
    "ratio_without_bos": float("nan"),
    "moved_share": float("nan"),
    "moved_reason": "no norm sink was found, so repeats have nowhere to move to",
    "repeats": 0,
}


def begins_with_bos(model: Model, corpus: Corpus) -> bool:
    """Whether position 0 of every text is BOS; where the corpus does not say, its ids do."""
    if corpus.bos_policy == "as given":
        return model.bos_id is not None and bool((corpus.tokens[:, 0] == model.bos_id).all())
    return corpus.bos_policy == "prepended"


def sink_cause(model: Model, corpus: Corpus, norms: SinkNormResult, layer: int, seed: int) -> dict[str, Any]:
    """Everything of a :class:`~mechrep.analyzers.sinks.result.SinkResult` that needs a sink layer, by field.

    Args:
        model: the model.
        corpus: the texts in which the sink was found.
        norms: what was found in them.
        layer: the sink layer.
        seed: of the random neurons that are cut as a control.
    """
    moved, repeats, stimulus = _repeat(model, corpus, norms, layer)
    neurons = sink_neurons(model, corpus if stimulus is None else stimulus, layer)
    top = min(_TOP, model.anatomy.d_mlp // 2)
    few = corpus.select((corpus.lengths > 1).nonzero().flatten()[:_ABLATION_TEXTS])
    cut = sink_neuron_ablation(model, few, neurons, k=top, seed=seed)
    removed = [float(cut.removed_by(f"top {n}")[0]) for n in range(1, top + 1)]
    count = next((n for n, share in enumerate(removed, start=1) if share >= _CARRIED), top)
    return {
        "neurons": [list(unit) for unit in neurons.top(count)],
        "agreement": neurons.agreement(count) | _spikes(model, neurons, count),
        "removed": {
            "neurons": removed[count - 1],
            "random": float(cut.removed_by("random").max()),
            "matched": float(cut.removed_by("matched")[0]),
        },
        "ratio_without_bos": _ratio_without_bos(model, corpus),
        "moved_share": moved.share,
        "moved_reason": moved.reason,
        "repeats": repeats,
    }


def _repeat(model: Model, corpus: Corpus, norms: SinkNormResult, layer: int) -> tuple[Moved, int, Corpus | None]:
    """What the texts' most frequent tokens do when repeated; a corpus of the one that moves most, if any does."""
    bos = begins_with_bos(model, corpus)
    counted = Counter(token for text in range(len(corpus)) for token in corpus.row(text))
    tokens = [token for token, _ in counted.most_common() if token not in model.special_ids][:_REPEATED_TOKENS]
    repeats = min(model.anatomy.n_ctx - 1, _REPEATS)
    (result,) = CorpusCache(model, repeated_tokens(model, tokens, repeats, bos), progress=False).run(RepeatNorms())
    assert isinstance(result, RepeatNormResult)
    moved = result.moved(layer, norms.other_norm)
    last = moved.values[:, -1]
    best = int(last.nan_to_num(-torch.inf).argmax())
    stimulus = repeated_tokens(model, [tokens[best]], repeats, bos) if bool(last[best] >= MOVED) else None
    return moved, repeats, stimulus


def _spikes(model: Model, neurons: SinkNeuronResult, top: int) -> dict[str, float]:
    """Share of the spike weights whose neuron is among the top ones; nothing where there is no spike to agree with."""
    spikes = [] if model.tokenizer is None else spike_weights(model)
    units = set(neurons.top(top))
    return {"spike": sum((layer, neuron) in units for layer, _, neuron in spikes) / len(spikes)} if spikes else {}


def _ratio_without_bos(model: Model, corpus: Corpus) -> float:
    """The largest ratio on the same texts without their BOS: is it the token or the place that makes the sink?"""
    rows = [corpus.row(text)[1:] for text in range(len(corpus)) if corpus.lengths[text] > 1]
    if not begins_with_bos(model, corpus) or not rows:
        return float("nan")
    bare = Corpus.from_tokens(rows, model=model, bos_policy="absent")
    (norms,) = CorpusCache(model, bare, progress=False).run(SinkNorms())
    assert isinstance(norms, SinkNormResult)
    return norms.largest_ratio
