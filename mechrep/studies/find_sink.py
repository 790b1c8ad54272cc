"""``find_sink``: does this model have an attention sink, in which layer is it made, and by which neurons?

1. Norms by depth and attention by head, over short windows of held-out text (:class:`SinkNorms`,
   :class:`AttentionSinks`).
2. The same on null models that know nothing: weights shuffled within each matrix, and weights drawn anew.  The first
   position's norm, and the attention of the head that gives it most, are judged beside all of them
   (:func:`~mechrep.ablation.effects.judge`).
3. Where the norm counts: its cause, which is the layer of its jump, the neurons of that layer, what ablating them
   removes beside random neurons of the layer, and whether repeated tokens turn into the same state.

Published sink layers and sink neurons of large models, to compare one's own findings with, are in :func:`known_sinks`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from mechrep.ablation.controls import draw_controls
from mechrep.ablation.effects import SUPPORTED, detection, judge
from mechrep.ablation.sink_outcomes import excess_removed
from mechrep.ablation.texts import null_models
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError, MissingPartError
from mechrep.interventions.ops import Neurons
from mechrep.measures.attention_sinks import AttentionSinkResult, AttentionSinks
from mechrep.measures.sink_neurons import SinkNeuronResult, begins_with_bos, sink_neurons, spike_weights
from mechrep.measures.sink_norms import MOVED, Moved, RepeatNorms, SinkNormResult, SinkNorms
from mechrep.models import tiny
from mechrep.models.model import Model
from mechrep.progress import progress_bar
from mechrep.provenance import Provenance, provenance_of
from mechrep.results import Result, check_count
from mechrep.run import Run
from mechrep.stats import known, largest
from mechrep.store import Journal
from mechrep.text.corpus import Corpus, CorpusLike, windows_of_text
from mechrep.text.stimuli import repeated_tokens

NORM, HEADS, NEURONS = "norm sink", "sink heads", "sink neurons"  # what is looked for: names of the claims


@dataclass(frozen=True, eq=False)
class SinkResult(Result):
    """Everything that :func:`find_sink` found, beside the same scores of null models.

    Attributes:
        norm_found: whether the claim of a norm sink is supported: the first position is larger than in null models.
        heads_found: whether the claim of sink heads is supported: a head attends to the first position more than any
            head of a null model, and as far above a uniform head as the published threshold (0.3) is at T = 64.
        rows: what the verdicts rest on, see :attr:`claims`.
        first_is_bos: whether the first position is BOS; otherwise it is the first token of each text.
        mean_length: tokens per text, T; attention scores fall with it.
        layer: the sink layer (largest excess jump of the norm, or the one that was named); ``None`` without a norm
            sink.
        neurons: ``[layer, neuron]`` of the sink neurons: the fewest, in the order of their contribution, that remove
            80 % of the excess norm, five where five do not; empty without a norm sink.
        agreement: share of ``neurons`` that the other scores have among as many first ones; under ``"spike"``, the
            share of spike weights whose neuron is one of ``neurons``.
        removed: share of the excess norm at the sink layer that ablations remove: ``"neurons"`` (those above), and
            ``"random"`` (the largest of all draws of as many others of the layer).
        profile: log-jump of the first position's norm over each block, J.
        excess_profile: the same beyond the jump of the other positions.
        profile_z: distance of the excess from the layers' median, see ``robust_z``.
        ratio: norm at the first position over the mean of the others; depth 0 is the input of block 0.
        bos_ratio: its largest value at the output of a block.
        null_ratios: the same of each null model; after a named layer, there.
        ratio_without_bos: the same on the texts without their BOS; NaN where there was none or nothing was found.
        alpha: attention of each head to the first position, ``alpha~_0``.
        null_alphas: the largest of each null model.
        uniform_alpha: of a head that attends uniformly.
        sink_heads: ``[layer, head]`` of the heads that count as sinks, the largest first.
        sink_share: ``Sink_1^0.3`` of Gu et al., in per cent.
        moved_share: share of repeated tokens whose norm has moved at least half-way to that of BOS; NaN with a reason.
        moved_reason: why ``moved_share`` is NaN, see :class:`~mechrep.measures.sink_norms.Moved`; or empty.
        repeats: how often these tokens were repeated.
    """

    norm_found: bool
    heads_found: bool
    rows: Sequence[Mapping[str, Any]]
    first_is_bos: bool
    mean_length: float
    layer: int | None
    neurons: Sequence[Sequence[int]]
    agreement: Mapping[str, float]
    removed: Mapping[str, float]
    profile: Float[Tensor, " layer"]
    excess_profile: Float[Tensor, " layer"]
    profile_z: Float[Tensor, " layer"]
    ratio: Float[Tensor, " depth"]
    bos_ratio: float
    null_ratios: Sequence[float]
    ratio_without_bos: float
    alpha: Float[Tensor, "layer head"]
    null_alphas: Sequence[float]
    uniform_alpha: float
    sink_heads: Sequence[Sequence[int]]
    sink_share: float
    moved_share: float
    moved_reason: str
    repeats: int

    ranked_by: ClassVar[str] = "alpha"

    @property
    def found(self) -> bool:
        """Whether anything exceeds the null models: the norm of the first position, or a head's attention to it."""
        return self.norm_found or self.heads_found

    @property
    def claims(self) -> pd.DataFrame:
        """One row per claim with its verdict; ``name``: ``"norm sink"``, ``"sink heads"`` or ``"sink neurons"``."""
        return _judged(self.rows)

    @property
    def facts(self) -> str:
        """Verdicts and numbers in one line, for messages."""
        told = [
            f"{row['name']} {row['verdict']} ({row['value']:.3g}; {row['controls']} up to "
            f"{row['baseline'] + row['control_high']:.3g})"
            for row in self.claims.to_dict("records")
        ]
        return "; ".join(told)

    @property
    def best_head(self) -> tuple[int, int]:
        """The ``(layer, head)`` that attends most to the first position, whether it counts as a sink or not."""
        return self.ranking()[0]

    @property
    def head_share(self) -> float:
        """Share of all heads that count as sinks."""
        return len(self.sink_heads) / len(known(self.alpha))

    def top(self, k: int) -> list[tuple[int, int]]:
        """The first ``k`` sink neurons, as ``(layer, neuron)``: what :class:`mechrep.Neurons` takes.

        Raises:
            InputError: ``k`` larger than the number of sink neurons.
        """
        check_count(k, len(self.neurons), "sink neurons")
        return [(layer, neuron) for layer, neuron in self.neurons[:k]]

    def to_frame(self) -> pd.DataFrame:
        """One row per layer: jumps, ratio at its output, its best head and how many of its heads are sinks."""
        known, layers = self.alpha.nan_to_num(-1.0), range(len(self.profile))
        best, there = known.max(1), (known >= 0).any(1)
        return pd.DataFrame(
            {
                "layer": layers,
                "is_sink_layer": [layer == self.layer for layer in layers],
                "ratio": self.ratio[1:].numpy(),
                "jump": self.profile.numpy(),
                "excess_jump": self.excess_profile.numpy(),
                "jump_z": self.profile_z.numpy(),
                "best_head": pd.Series(best.indices.numpy()).where(there.numpy()),
                "best_alpha": best.values.masked_fill(~there, float("nan")).numpy(),
                "sink_heads": [sum(layer == place for place, _ in self.sink_heads) for layer in layers],
            }
        )


def _judged(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Each claim is a family of its own: another question is asked."""
    return judge(rows, within=["name"], family="this claim alone")


LENGTH, WINDOWS = 64, 100  # of Gu et al. 2025
_NULL_TEXTS = 16  # that null models read
_LEAST, _LEAST_NAMED = 1.0, 0.5  # typical norms by which the first position must exceed that of null models


def find_sink(
    model: Model, *, texts: Corpus | Sequence[str] | None = None, layer: int | None = None, run: Run | None = None
) -> SinkResult:
    """Looks for an attention sink at the first position, and for what makes it.

    Verdicts are those of :func:`~mechrep.ablation.effects.judge`, each claim beside ``run.sizes.nulls`` null models
    (sink neurons: beside ``run.sizes.draws`` random sets of the sink layer) and beyond a size of its own.  *norm sink*:
    the ratio of the norm at the first position to that of the others, the largest over layers, exceeds that of null
    models by 1 (after a layer that was named: there, by 0.5).  *sink heads*: the attention of the best head, as far
    above a uniform head as the published epsilon of 0.3 is at T = 64 (in shorter texts 0.3 is nothing).  No size
    decides alone.

    Args:
        model: the model, unprocessed where its norm is LayerNorm.
        texts: a corpus, or texts.  By default up to 100 windows of 64 tokens of held-out English, with BOS by the
            model's habit; without that habit the first position is the first token, and the result says so.  Null
            models read the first 16.
        layer: a layer to take as the sink layer, where you have a reason to: several layers may write, and the one of
            the largest jump need not be the one that repeated tokens excite.
        run: options: the store keeps what null models gave, the seed is theirs and the controls', the effort says how
            many.

    Returns:
        A result whose ``found`` is False where nothing exceeds the null models.

    Raises:
        InputError: a corpus of another model, no tokenizer and no corpus, centred weights, or no such layer.

    Source: the chain first position -> neuron -> norm -> attention is Yona et al. 2025 (arXiv 2503.08908); attention
    scores and their threshold are Gu et al. 2025 (arXiv 2410.10781).  The null models, the decision and the repeated
    tokens (the 16 most frequent of the texts, up to 512 times) are mechrep's own.

    Limits: one copy of the model at a time is held in memory beside it.  Only the first position is asked about: sinks
    at delimiters in mid-text are not.  Sink neurons are chosen by what they do to the norm.  What ablating them does to
    attention and loss is :func:`~mechrep.studies.sink_ablation.sink_ablation`.

    Example:
        >>> import mechrep
        >>> from mechrep.models.nulls import reinitialised
        >>> untrained = reinitialised(mechrep.load_model("mechrep-tiny"))
        >>> result = find_sink(untrained, texts=["The sea was calm that day.", "It rained, and it rained."])
        >>> result.found, result.layer, result.claims["verdict"].tolist()
        (False, None, ['not supported', 'not supported'])
    """
    if model.processed and model.anatomy.norm.startswith("LN"):
        raise InputError(
            f"{model.name} with processed weights",
            "the raw model: centred weights have other norms",
            "load it again and do not enable compatibility mode",
        )
    if layer is not None:
        model.anatomy.check_layer(layer)
    options, corpus = run or Run(), ordinary_texts(model, texts)
    key = ("find_sink", model.fingerprint(), corpus.fingerprint(), layer, options.seed, options.effort)
    return options.once(key, lambda: _find(model, corpus, layer, options))


def ordinary_texts(model: Model, texts: CorpusLike | None, held_out_text: str | None = None) -> Corpus:
    """A corpus, or texts; by default up to 100 windows of 64 tokens of held-out text, English unless given.

    Raises:
        InputError: a corpus of another model, or no tokenizer for texts.
    """
    if texts is not None:
        corpus = Corpus.of(texts, model)
        corpus.check_model(model)
        return corpus
    if model.tokenizer is None:
        raise MissingPartError(
            f"{model.name}, which has no tokenizer", "a corpus of ids", "pass texts=Corpus.from_tokens(...)"
        )
    length = min(LENGTH, model.anatomy.n_ctx)
    return windows_of_text(model, held_out_text or tiny.held_out_text(), length=length, limit=WINDOWS)


def _find(model: Model, corpus: Corpus, layer: int | None, run: Run) -> SinkResult:
    norms, heads = _measure(model, corpus)
    where = norms.ranking()[0] if layer is None else layer
    config = {
        "study": "find sink",
        "seed": run.seed,
        "nulls": run.sizes_on(model).nulls,
        "draws": run.sizes_on(model).draws,
        "layer": layer,
    }
    provenance = provenance_of(model, corpus, config)
    nulls = _nulls(model, corpus, provenance, run)
    null_ratios = [max(null["ratio"][1:]) if layer is None else null["ratio"][layer + 1] for null in nulls]
    null_alphas = [null["alpha"] for null in nulls]
    needed = _needed(heads)
    best = largest(heads.alpha)
    ratio = norms.largest_ratio if layer is None else float(norms.ratio[layer + 1])
    rows = [
        detection(NORM, "norm ratio", ratio, null_ratios, unit="ratio")
        | {"floor": _LEAST if layer is None else _LEAST_NAMED},
        detection(HEADS, "attention of the best head", best, null_alphas, unit="share"),
    ]
    rows[1] |= {"floor": needed - rows[1]["baseline"]}
    norm_found, heads_found = (verdict == SUPPORTED for verdict in _judged(rows)["verdict"])
    least = max(needed, *null_alphas)
    resting = [list(head) for head in heads.ranking() if heads_found and heads.alpha[head] >= least]
    cause, more = _cause(model, corpus, norms, where, run) if norm_found else (_NO_CAUSE, [])
    return SinkResult(
        provenance,
        norm_found=norm_found,
        heads_found=heads_found,
        rows=[*rows, *more],
        first_is_bos=begins_with_bos(model, corpus),
        mean_length=heads.mean_length,
        layer=where if norm_found else None,
        profile=norms.jump,
        excess_profile=norms.excess_jump,
        profile_z=norms.jump_z,
        ratio=norms.ratio,
        bos_ratio=norms.largest_ratio,
        null_ratios=null_ratios,
        alpha=heads.alpha,
        null_alphas=null_alphas,
        uniform_alpha=heads.uniform_alpha,
        sink_heads=resting,
        sink_share=heads.sink_share,
        **cause,
    )


def _measure(model: Model, corpus: Corpus) -> tuple[SinkNormResult, AttentionSinkResult]:
    return CorpusCache(model, corpus, progress=False).run(SinkNorms(), AttentionSinks())


def _nulls(model: Model, corpus: Corpus, provenance: Provenance, run: Run) -> list[dict[str, Any]]:
    """Ratios by depth and the best head's attention of null models, shuffled and re-initialised ones in turn."""
    few = corpus.select(range(min(len(corpus), _NULL_TEXTS)))
    journal = None if run.store is None else Journal(Path(run.store), provenance)
    kept, makers = [], null_models(model, run)
    with progress_bar(len(makers), "null models", "model", run.progress) as bar:
        for number, make in enumerate(makers):
            one = None if journal is None else journal.find(number)
            if one is None:
                with make() as null:
                    norms, heads = _measure(null, few)
                one = [{"ratio": norms.ratio.tolist(), "alpha": largest(heads.alpha)}]
                if journal is not None:
                    journal.keep(number, one)
            kept += one
            bar.update()
    return kept


def _needed(heads: AttentionSinkResult) -> float:
    """Attention that is as far above a uniform head's as the published threshold is in texts of 64 tokens."""
    harmonic = sum(1 / t for t in range(1, LENGTH + 1))
    uniform, published = (harmonic - 1) / (LENGTH - 1), (LENGTH * heads.epsilon - 1) / (LENGTH - 1)
    lift = (published - uniform) / (1 - uniform)  # of the way from a uniform head to a perfect sink: 0.244
    return heads.uniform_alpha + lift * (1 - heads.uniform_alpha)


# --- the cause ------------------------------------------------------------------------------------------------------

_ABLATION_TEXTS = 16
_TOP = 5
_CARRIED = 0.8  # the sink neurons are the fewest that remove so much of the excess norm
_REPEATED_TOKENS, _REPEATS = 16, 512

_NO_CAUSE: dict[str, Any] = {
    "neurons": [],
    "agreement": {},
    "removed": {},
    "ratio_without_bos": float("nan"),
    "moved_share": float("nan"),
    "moved_reason": "no norm sink",
    "repeats": 0,
}


def _cause(
    model: Model, corpus: Corpus, norms: SinkNormResult, layer: int, run: Run
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a :class:`SinkResult` has only with a sink layer, by field; and the row of the claim on its neurons."""
    moved, repeats, stimulus = _repeat(model, corpus, norms, layer)
    neurons = sink_neurons(model, corpus if stimulus is None else stimulus, layer)
    few = corpus.select((corpus.lengths > 1).nonzero().flatten()[:_ABLATION_TEXTS])
    ranking = neurons.top(min(_TOP, model.anatomy.neurons[layer] // 2))
    removed = excess_removed(model, few, layer, [_zero(ranking[:n]) for n in range(1, len(ranking) + 1)])
    count = next((n for n, share in enumerate(removed.tolist(), start=1) if share >= _CARRIED), len(ranking))
    own, share = ranking[:count], float(removed[count - 1])
    sets = draw_controls(
        "layer_matched", own, layers=model.anatomy.n_layers, width=model.anatomy.neurons, 
        draws=run.sizes_on(model).draws,
        seed=run.seed,
    )  # fmt: skip
    draws = excess_removed(model, few, layer, [_zero(one) for one in sets]).tolist()
    row = detection(NEURONS, "share of the excess norm removed", share, draws, unit="share")
    fields = {
        "neurons": [list(unit) for unit in own],
        "agreement": neurons.agreement(count) | _spikes(model, neurons, count),
        "removed": {"neurons": share, "random": max(draws)},
        "ratio_without_bos": _ratio_without_bos(model, corpus),
        "moved_share": moved.share,
        "moved_reason": moved.reason,
        "repeats": repeats,
    }
    return fields, [row | {"controls": "layer_matched"}]


def _zero(units: Sequence[tuple[int, int]]) -> Neurons:
    return Neurons(units, "zero", when="all")


def frequent_tokens(model: Model, corpus: Corpus, most: int = _REPEATED_TOKENS) -> list[int]:
    """The most frequent tokens of texts, special ones left out."""
    counted = Counter(token for text in range(len(corpus)) for token in corpus.row(text))
    return [token for token, _ in counted.most_common() if token not in model.special_ids][:most]


def _repeat(model: Model, corpus: Corpus, norms: SinkNormResult, layer: int) -> tuple[Moved, int, Corpus | None]:
    """What the texts' most frequent tokens do when repeated; a corpus of the one that moves most, if any does."""
    bos, tokens = begins_with_bos(model, corpus), frequent_tokens(model, corpus)
    repeats = min(model.anatomy.n_ctx - 1, _REPEATS)
    (result,) = CorpusCache(model, repeated_tokens(model, tokens, repeats, bos), progress=False).run(RepeatNorms())
    moved = result.moved(layer, norms.other_norm)
    last = moved.values[:, -1]
    best = int(last.nan_to_num(-float("inf")).argmax())
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
    bare = Corpus.from_tokens(rows, model=model, attention_mask=True, bos_policy="absent")
    (norms,) = CorpusCache(model, bare, progress=False).run(SinkNorms())
    return norms.largest_ratio


# --- published sinks ------------------------------------------------------------------------------------------------

_YONA = "Yona et al. 2025 (arXiv 2503.08908), poster"
_OH = "Oh et al. 2024 (arXiv 2410.01866), table 7"
_YU = "Yu et al. 2024 (arXiv 2411.07191), super weights"


class KnownSink(NamedTuple):
    """One published finding; layers count from 0, neurons as their source orders them.

    ``repeats`` is how often a token was repeated, missing where nothing was.
    """

    model: str
    layer: int
    neurons: tuple[int, ...]
    repeats: int | None
    source: str


_TABLE = (
    KnownSink("LLaMA-1-7B", 2, (7003,), 450, _YONA),
    KnownSink("Llama-2-7b", 1, (7890, 10411), 1000, _YONA),
    KnownSink("Llama-3-8B-Instruct", 1, (198, 2427), 4000, _YONA),
    KnownSink("Mistral-7B-Instruct-v0.1", 1, (7310, 8572), 1200, _YONA),
    KnownSink("Llama-2-7b", 1, (7890, 10411, 1192, 8731, 5843), None, _OH),
    KnownSink("Llama-3-8B", 1, (2427, 198, 6412, 12657, 591), None, _OH),
    KnownSink("Mistral-7B-v0.1", 1, (7310, 8572, 2514, 1878, 8693), None, _OH),
    KnownSink("gemma-2-2b", 1, (1257, 2896, 6954, 8624, 7118), None, _OH),
    KnownSink("Phi-3-mini", 2, (808, 340, 3644, 2473, 2987), None, _OH),
    KnownSink("LLaMA-1-7B", 2, (7003,), None, _YU),
    KnownSink("Mistral-7B-v0.1", 1, (7310,), None, _YU),
    KnownSink("Llama-3-8B", 1, (2427,), None, _YU),
    KnownSink("OLMo-1B-0724", 1, (1710,), None, _YU),
    KnownSink("OLMo-1B-0724", 2, (8041,), None, _YU),
)
_ALIASES = {"llama-7b": "llama-1-7b", "phi-3-mini-4k-instruct": "phi-3-mini", "phi-3-mini-128k-instruct": "phi-3-mini"}


def known_sinks() -> pd.DataFrame:
    """Published sink layers and neurons, one row per model, layer and source.

    Sources: Yona et al. 2025 (arXiv 2503.08908), poster; Oh et al. 2024 (arXiv 2410.01866), whose layers count from 1
    and are given from 0 here; Yu et al. 2024 (arXiv 2411.07191), columns of "super weights".

    Limits: transcribed from a poster and from tables; not measured again by mechrep.

    Example:
        >>> table = known_sinks()
        >>> table.neurons[table.model == "Llama-2-7b"].tolist()[0]
        (7890, 10411)
    """
    frame = pd.DataFrame(_TABLE, columns=list(KnownSink._fields))
    return frame.astype({"repeats": "Int64"})


def is_known(model_name: str) -> bool:
    """Whether a sink of this model is published, as far as the table knows.

    Example:
        >>> is_known("meta-llama/Llama-2-7b-hf"), is_known("mechrep-tiny")
        (True, False)
    """
    return any(_plain(row.model) == _plain(model_name) for row in _TABLE)


def matches_known(model_name: str, result: SinkResult) -> bool:
    """Whether a finding agrees with a published one: the same layer, and a published neuron comes first.

    Args:
        model_name: as on the hub or in the table; owner, case and the endings ``-hf`` do not matter.
        result: of :func:`find_sink`.

    Raises:
        InputError: nothing is published on this model, as far as the table knows.
    """
    name = _plain(model_name)
    rows = [row for row in _TABLE if _plain(row.model) == name]
    if not rows:
        known = ", ".join(sorted({row.model for row in _TABLE}))
        raise InputError(f"model {model_name!r}", f"a model of known_sinks(): {known}", "compare by hand")
    first = tuple(result.neurons[0]) if result.neurons else None
    return any(first in {(row.layer, neuron) for neuron in row.neurons} for row in rows)


def _plain(name: str) -> str:
    """A hub name without what differs between copies of the same weights."""
    short = re.sub(r"^meta-|-hf$", "", name.split("/")[-1].lower())
    return _ALIASES.get(short, short)
