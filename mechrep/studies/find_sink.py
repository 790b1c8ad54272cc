"""``find_sink``: does this model have an attention sink, in which layers is it made, and by which neurons?

1. Norms by depth and attention by head, over short windows of held-out text, with BOS and without.
2. The same on null models that know nothing.  How far the first position's norm rises above that of the others, and
   the attention of the head that gives it most, are judged beside all of them
   (:func:`~mechrep.ablation.effects.judge`).
3. The norm's *stages* (:mod:`mechrep.measures.sink_stages`): a model may write it, erase it and write it again.
4. For each stage its cause, judged by what is left at every later depth (:mod:`mechrep.studies.sink_cause`), and which
   repeated tokens turn into the same state (:mod:`mechrep.studies.sink_repeats`).

Published sink layers and sink neurons of large models, to compare one's own findings with, are in
:func:`~mechrep.studies.known_sinks.known_sinks`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.ablation.effects import SUPPORTED, detection, judge
from mechrep.ablation.forecast import say_forecast
from mechrep.ablation.outcomes import Cost
from mechrep.ablation.texts import null_models
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError, MissingPartError
from mechrep.guards import check_count, guarded
from mechrep.journal import Journal
from mechrep.measures.attention_sinks import AttentionSinkResult, AttentionSinks
from mechrep.measures.sink_neurons import begins_with_bos, spike_weights
from mechrep.measures.sink_norms import SinkNormResult, SinkNorms
from mechrep.measures.sink_stages import NormStage, norm_stages, stage_of_layer
from mechrep.models import tiny
from mechrep.models.model import Model
from mechrep.notation import listed_units, unit_name
from mechrep.progress import progress_bar
from mechrep.provenance import Provenance, provenance_of
from mechrep.results import Result
from mechrep.run import LARGE_WEIGHTS, Effort, Run
from mechrep.stats import known, largest
from mechrep.studies.sink_cause import NEURONS, SinkStage, stage_cause
from mechrep.studies.sink_repeats import ALL_KINDS, PER_KIND, RepeatedTokens, moved_rows, read_repeats
from mechrep.text.corpus import Corpus, CorpusLike
from mechrep.text.token_kinds import draw_tokens, ordinary_ids
from mechrep.text.windows import windows_of_text

NORM, HEADS, STAGE = "norm sink", "sink heads", "another stage"  # what is looked for: names of the claims


@dataclass(frozen=True, eq=False)
class SinkResult(Result):
    """Everything that :func:`find_sink` found, beside the same scores of null models.

    Attributes:
        norm_found: whether the claim of a norm sink is supported: the first position's norm rises above that of the
            others at least twice as far as in null models.
        heads_found: whether the claim of sink heads is supported: a head attends to the first position more than any
            head of a null model, and as far above a uniform head as the published threshold (0.3) is at T = 64.
        rows: what the verdicts rest on, see :attr:`claims`.
        first: what stands at the first position, in words.
        first_is_bos: whether it is BOS; otherwise it is the first token of each text.
        mean_length: tokens per text, T; attention scores fall with it.
        stages: the stages of the norm that stand out from null models, in the order of depth; none without a norm sink.
        ratio: norm at the first position over the mean of the others; depth 0 is the input of block 0.
        ratio_without: the same on the same texts without BOS, or with it where they have none; NaN for a model without.
        null_rises: the largest rise of each null model; at a named layer, there.
        alpha: attention of each head to the first position, ``alpha~_0``.
        alpha_without: the same under the other policy of BOS.
        null_alphas: the largest of each null model.
        uniform_alpha: of a head that attends uniformly.
        sink_heads: ``[layer, head]`` of the heads that count as sinks, the largest first.
        sink_share: ``Sink_1^0.3`` of Gu et al., in per cent.
        spikes: share of the spike weights (:func:`~mechrep.measures.sink_neurons.spike_weights`) whose neuron is one of
            the sink neurons; NaN where there is none.
        moved: rows of :func:`~mechrep.studies.sink_repeats.moved_rows`: which repeated tokens turn into a sink.
        repeats: how often these tokens were repeated after BOS.
    """

    norm_found: bool
    heads_found: bool
    rows: Sequence[Mapping[str, Any]]
    first: str
    first_is_bos: bool
    mean_length: float
    stages: Sequence[SinkStage]
    ratio: Float[Tensor, " depth"]
    ratio_without: Float[Tensor, " depth"]
    null_rises: Sequence[float]
    alpha: Float[Tensor, "layer head"]
    alpha_without: Float[Tensor, "layer head"]
    null_alphas: Sequence[float]
    uniform_alpha: float
    sink_heads: Sequence[Sequence[int]]
    sink_share: float
    spikes: float
    moved: Sequence[Mapping[str, Any]]
    repeats: int

    ranked_by: ClassVar[str] = "alpha"
    nested: ClassVar[Mapping[str, type]] = {"stages": SinkStage}

    @property
    def found(self) -> bool:
        """Whether anything exceeds the null models: the norm of the first position, or a head's attention to it."""
        return self.norm_found or self.heads_found

    @property
    def main(self) -> SinkStage | None:
        """The stage with the largest rise; ``None`` without a norm sink."""
        return max(self.stages, key=lambda stage: stage.norm.rise, default=None)

    @property
    def layer(self) -> int | None:
        """The last layer of the main stage's rise: after it the ratio is largest."""
        return None if self.main is None else self.main.layer

    @property
    def patch(self) -> tuple[int, list[int]] | None:
        """Layer and neurons for a :class:`~mechrep.SinkPatch`: those of the first sink neuron's layer."""
        if not self.neurons:
            return None
        layer = self.neurons[0][0]
        return layer, [unit for where, unit in self.neurons if where == layer]

    @property
    def neurons(self) -> list[tuple[int, int]]:
        """``(layer, neuron)`` that carry the main stage; empty where no small set does."""
        main = self.main
        return [] if main is None or not main.carried else [(layer, unit) for layer, unit in main.neurons]

    @property
    def found_neurons(self) -> list[tuple[int, int]]:
        """The first neuron of every stage that a small set carries."""
        return [(stage.neurons[0][0], stage.neurons[0][1]) for stage in self.stages if stage.carried]

    @property
    def largest_ratio(self) -> float:
        """The largest ratio at the output of a block."""
        return float(self.ratio[1:].max())

    @property
    def claims(self) -> pd.DataFrame:
        """One row per claim with its verdict; ``name``: ``"norm sink"``, ``"sink heads"``, ``"another stage"``, ..."""
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

    def _first(self) -> str:
        """What was found, for the line and the table that show the result."""
        if not self.found:
            return "; no sink stands out from null models"
        carried = f", carried by {listed_units('neuron', self.neurons)}" if self.neurons else ", by no small set"
        norm = f"norm sink behind layer {self.layer}{carried}" if self.norm_found else "no norm sink"
        heads = f"{len(self.sink_heads)} sink heads, first {unit_name('head', *self.best_head)}"
        return f"; {norm}; {heads if self.heads_found else 'no sink heads'}"

    @guarded
    def top(self, k: int) -> list[tuple[int, int]]:
        """The first ``k`` sink neurons of the main stage, as ``(layer, neuron)``: what :class:`mechrep.Neurons` takes.

        Raises:
            InputError: ``k`` larger than the number of sink neurons.
        """
        check_count(k, len(self.neurons), "sink neurons")
        return self.neurons[:k]

    def to_frame(self) -> pd.DataFrame:
        """One row per layer: ratio at its output, the stage that stands there, its best head and its sink heads."""
        alpha, layers = self.alpha.nan_to_num(-1.0), range(len(self.alpha))
        best, there = alpha.max(1), (alpha >= 0).any(1)
        standing = [
            next((n for n, one in enumerate(self.stages, 1) if one.norm.first <= layer + 1 <= one.norm.last), None)
            for layer in layers
        ]
        return pd.DataFrame(
            {
                "layer": layers,
                "ratio": self.ratio[1:].numpy(),
                "ratio_without": self.ratio_without[1:].numpy(),
                "stage": pd.array(standing, dtype="Int64"),
                "best_head": pd.Series(best.indices.numpy()).where(there.numpy()),
                "best_alpha": best.values.masked_fill(~there, float("nan")).numpy(),
                "sink_heads": [sum(layer == place for place, _ in self.sink_heads) for layer in layers],
            }
        )

    def stage_frame(self) -> pd.DataFrame:
        """One row per stage: where it rises, peaks and falls, which neurons were tried and what they remove."""
        rows = [
            {
                "stage": number,
                "rises_in": ", ".join(map(str, stage.norm.layers)),
                "peak_after": stage.norm.peak - 1,
                "ratio": stage.norm.ratio,
                "rise": stage.norm.rise,
                "stands_until": stage.norm.last - 1,
                "neurons": listed_units("neuron", [(x, y) for x, y in stage.neurons], len(stage.neurons)),
                "removed_at_peak": stage.removed_at_peak,
                "removed_later": stage.removed,
                "removed_by_random": stage.removed_by_random,
                "carried": stage.carried,
                "heads": len(stage.heads),
                "attention": stage.attention,
                "attention_without": stage.attention_without,
            }
            for number, stage in enumerate(self.stages, start=1)
        ]
        return pd.DataFrame(rows)

    def moved_frame(self) -> pd.DataFrame:
        """Which repeated tokens turn into the state of the first position: by stage, kind of token, and BOS."""
        return pd.DataFrame(self.moved)


def _judged(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Each claim is a family of its own: another question is asked."""
    return judge(rows, within=["name"], family="this claim alone")


LENGTH, WINDOWS = 64, 100  # of Gu et al. 2025
_NULL_TOKENS = 128  # that every null model of a large model reads; 16 texts of small ones
_LEAST = 2.0  # times as far as null models the norm must rise


@guarded
def find_sink(
    model: Model, *, texts: Corpus | Sequence[str] | None = None, layer: int | None = None, run: Run | None = None
) -> SinkResult:
    """Looks for an attention sink at the first position, for its stages, and for what makes each.

    Verdicts are those of :func:`~mechrep.ablation.effects.judge`, each claim beside ``run.sizes.nulls`` null models
    (sink neurons: beside ``run.sizes.draws`` random sets of the same layers) and beyond a size of its own:

    * *norm sink*: by which factor the ratio of the norm at the first position to that of the others rises over some
      layers; at least twice the mean of the null models' largest rises.  *another stage*: each further rise, likewise.
    * *sink heads*: the attention of the best head; as far above a uniform head as the published epsilon of 0.3 is at
      T = 64 (in shorter texts 0.3 is nothing).
    * *sink neurons*: a small set removes 80 % of the excess wherever the stage stands.

    Args:
        model: the model, unprocessed where its norm is LayerNorm.
        texts: a corpus, or texts.  By default up to 100 windows of 64 tokens of held-out English (16 for models of more
            than 20 million weights), with BOS by the model's habit.  Where the model has a BOS, norms and attention are
            read with it and without, whatever the habit.
        layer: take the stage that this layer writes as the only one, where you have a reason to.
        run: options: the store keeps what null models gave, the seed is theirs and the controls', the effort says how
            many.

    Returns:
        A result whose ``found`` is False where nothing exceeds the null models.

    Raises:
        InputError: a corpus of another model, no tokenizer and no corpus, centred weights, or no such layer.

    Source: the chain first position -> neuron -> norm -> attention is Yona et al. 2025 (arXiv 2503.08908); attention
    scores and their threshold are Gu et al. 2025 (arXiv 2410.10781).  Stages, null models, the decision and the kinds
    of repeated tokens are mechrep's own.

    Limits: only the first position is asked about: sinks at delimiters in mid-text are not.  What ablating the neurons
    does to loss and repetition is :func:`~mechrep.studies.sink_ablation.sink_ablation`.

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
    options = run or Run()
    corpus = ordinary_texts(model, texts)
    key = ("find_sink", model.fingerprint(), corpus.fingerprint(), layer, options.seed, options.effort)
    return options.once(key, lambda: _find(model, corpus, layer, options))


def sink_windows(model: Model) -> int:
    """Windows of text by default: as many as published, and fewer where one costs more."""
    return WINDOWS if model.n_weights <= LARGE_WEIGHTS else 16


def ordinary_texts(model: Model, texts: CorpusLike | None, held_out_text: str | None = None) -> Corpus:
    """A corpus, or texts; by default windows of 64 tokens of held-out text, English unless given: the same for all.

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
    return windows_of_text(model, held_out_text or tiny.held_out_text(), length=length, limit=sink_windows(model))


@dataclass(frozen=True, eq=False)
class SinkReading:
    """Norms and attention of ordinary texts, with BOS (``True``) and without; one of them for a model without BOS.

    Attributes:
        corpus: the texts that were asked for.
        bos: whether they begin with BOS.
        norms: by policy.
        heads: by policy.
    """

    corpus: Corpus
    bos: bool
    norms: Mapping[bool, SinkNormResult]
    heads: Mapping[bool, AttentionSinkResult]


def read_sink(model: Model, corpus: Corpus, run: Run) -> SinkReading:
    """One pass over the texts as they are, and one under the other policy of BOS; once per run."""
    bos = begins_with_bos(model, corpus)

    def read() -> SinkReading:
        found = {bos: _measure(model, corpus)}
        rows = [corpus.row(text)[1:] if bos else [model.bos_id, *corpus.row(text)][: model.anatomy.n_ctx]
                for text in range(len(corpus))]  # fmt: skip
        rows = [row for row in rows if row]
        if model.bos_id is not None and rows:
            policy = "absent" if bos else "prepended"
            other = Corpus.from_tokens(rows, model=model, attention_mask=True, bos_policy=policy)
            found[not bos] = _measure(model, other)
        norms = {policy: pair[0] for policy, pair in found.items()}
        return SinkReading(corpus, bos, norms, {policy: pair[1] for policy, pair in found.items()})

    return run.once(("sink reading", model.fingerprint(), corpus.fingerprint()), read)


def read_moved(model: Model, run: Run, per_kind: int | None = None, repeats: int | None = None) -> RepeatedTokens:
    """Repeated tokens of every kind; once per run.

    Args:
        model: the model.
        run: options: the seed, and how many tokens.
        per_kind: tokens of each kind.
        repeats: how often after BOS; by default 512 times, 192 for a large model, or as often as the context holds.
    """
    sizes = run.sizes_on(model)
    often = _often(model, sizes) if repeats is None else repeats
    number = _per_kind(sizes) if per_kind is None else per_kind
    drawn = [] if model.tokenizer is None else draw_tokens(model, number, run.seed)
    if not drawn:  # nobody knows what kind a token is
        ordinary = ordinary_ids(model)
        some = np.random.default_rng(run.seed).choice(ordinary, min(4 * number, len(ordinary)), replace=False)
        drawn = [(int(token), ALL_KINDS) for token in sorted(some.tolist())]
    key = ("repeated tokens", model.fingerprint(), run.seed, often, number)
    return run.once(key, lambda: read_repeats(model, drawn, often))


_REPEATS, _LARGE_REPEATS = 512, 192


def _often(model: Model, sizes: Effort) -> int:
    most = _REPEATS if model.n_weights <= LARGE_WEIGHTS else max(_LARGE_REPEATS, sizes.repeats)
    return min(model.anatomy.n_ctx - 1, most)


def _per_kind(sizes: Effort) -> int:
    return max(PER_KIND, sizes.tokens // 2)


def _cost(model: Model, corpus: Corpus, run: Run) -> Cost:
    """What is read at most: the texts under both policies of BOS, by null models too, and repeated tokens."""
    sizes, texts, nulls = run.sizes_on(model), int(corpus.lengths.sum()), _for_nulls(model, corpus)
    policies = 1 if model.bos_id is None else 2
    repeated = 4 * _per_kind(sizes) * _often(model, sizes) * policies
    return Cost(policies * texts + sizes.nulls * int(nulls.lengths.sum()) + repeated)


def _find(model: Model, corpus: Corpus, layer: int | None, run: Run) -> SinkResult:
    say_forecast(model, _cost(model, corpus, run), "find sink", run.progress)
    reading = read_sink(model, corpus, run)
    norms, heads = reading.norms[reading.bos], reading.heads[reading.bos]
    config = {"study": "find sink", "seed": run.seed, "nulls": run.sizes_on(model).nulls,
              "draws": run.sizes_on(model).draws, "layer": layer}  # fmt: skip
    provenance = provenance_of(model, corpus, config)
    nulls = _nulls(model, corpus, provenance, run)
    rises = [_rise(torch.tensor(null["ratio"]), layer) for null in nulls]
    alphas = [null["alpha"] for null in nulls]
    candidates = norm_stages(norms.ratio) if layer is None else [stage_of_layer(norms.ratio, layer)]
    rows, stages = _stage_rows(candidates, rises, 1.0 if bool(norms.ratio.isfinite().all()) else float("nan"))
    needed = _needed(heads)
    heads_row = detection(HEADS, "attention of the best head", largest(heads.alpha), alphas, unit="share")
    rows.insert(1, heads_row | {"floor": needed - heads_row["baseline"]})
    heads_found = bool(_judged(rows[1:2])["verdict"].iloc[0] == SUPPORTED)
    least = max([needed, *alphas])
    resting = [head for head in heads.ranking() if heads_found and heads.alpha[head] >= least]
    causes = [stage_cause(model, corpus, stage, resting, run) for stage in stages]
    largest_first = sorted(causes, key=lambda pair: -pair[0].norm.rise)
    rows += [row | {"name": NEURONS if not n else f"{NEURONS}, {STAGE}"} for n, (_, row) in enumerate(largest_first)]
    repeated = read_moved(model, run) if stages else None
    moved = [] if repeated is None else moved_rows(repeated, stages, reading.norms)
    other, unknown = not reading.bos, float("nan")
    missing = other not in reading.norms
    return SinkResult(
        provenance,
        norm_found=bool(stages),
        heads_found=heads_found,
        rows=rows,
        first=first_in_words(model, corpus),
        first_is_bos=reading.bos,
        mean_length=heads.mean_length,
        stages=[stage for stage, _ in causes],
        ratio=norms.ratio,
        ratio_without=norms.ratio * unknown if missing else reading.norms[other].ratio,
        null_rises=rises,
        alpha=heads.alpha,
        alpha_without=heads.alpha * unknown if missing else reading.heads[other].alpha,
        null_alphas=alphas,
        uniform_alpha=heads.uniform_alpha,
        sink_heads=[list(head) for head in resting],
        sink_share=heads.sink_share,
        spikes=_spikes(model, [unit for stage, _ in causes if stage.carried for unit in stage.neurons]),
        moved=moved,
        repeats=0 if repeated is None else repeated.main.repeats[-1],
    )


_BY_TOKENIZER, _BY_MECHREP = "which the tokenizer adds", "which mechrep put there: the tokenizer adds none"


def first_in_words(model: Model, corpus: Corpus) -> str:
    """What stands at the first position: the name of BOS and who put it there, or that it is each text's own token."""
    if not begins_with_bos(model, corpus):
        return "the first token of each text"
    assert model.bos_id is not None
    name = model.decode([model.bos_id]) or str(model.bos_id)
    adds = model.tokenizer is not None and [model.bos_id] == list(model.tokenizer("a")["input_ids"])[:1]
    return f"{name} (id {model.bos_id}), {_BY_TOKENIZER if adds else _BY_MECHREP}"


def _stage_rows(
    candidates: Sequence[NormStage], rises: Sequence[float], without: float
) -> tuple[list[dict[str, Any]], list[NormStage]]:
    """Rows of the claims on the norm, the largest rise first, and the stages that are supported, in their order."""
    order = sorted(candidates, key=lambda stage: -stage.rise)
    values = [stage.rise for stage in order] or [without]
    rows = [detection(NORM if not n else STAGE, "rise of the norm ratio", rise, rises, unit="ratio")
            for n, rise in enumerate(values)]  # fmt: skip
    rows = [row | {"floor": max(row["floor"], (_LEAST - 1) * row["baseline"])} for row in rows]
    # Every draw is the largest rise of a null model, so having looked at several is part of each p-value.
    supported = [bool(_judged([row])["verdict"].iloc[0] == SUPPORTED) for row in rows]
    kept = [row for row, is_one in zip(rows, supported, strict=True) if is_one or row["name"] == NORM]
    stages = [stage for stage, is_one in zip(order, supported, strict=False) if is_one]
    return kept, sorted(stages, key=lambda stage: stage.peak)


def _rise(ratio: Float[Tensor, " depth"], layer: int | None) -> float:
    """The largest rise of a profile; after a named layer, how far it has risen there."""
    if layer is None:
        return max((stage.rise for stage in norm_stages(ratio)), default=1.0)
    return float(ratio[layer + 1] / ratio[: layer + 2].min())


def _measure(model: Model, corpus: Corpus) -> tuple[SinkNormResult, AttentionSinkResult]:
    return CorpusCache(model, corpus, progress=False).run(SinkNorms(), AttentionSinks())


def _nulls(model: Model, corpus: Corpus, provenance: Provenance, run: Run) -> list[dict[str, Any]]:
    """Ratios by depth and the best head's attention of null models, shuffled and re-initialised ones in turn."""
    few = _for_nulls(model, corpus)
    journal = None if run.store is None else Journal(Path(run.store), provenance)
    kept, makers = [], null_models(model, run)
    with progress_bar(len(makers), "null models", "model", run.progress) as bar:
        for number, make in enumerate(makers):
            one = None if journal is None else journal.find(number)
            if one is None:
                one = [_null(make, few)]
                if journal is not None:
                    journal.keep(number, one)
            kept += one
            bar.update()
    return kept


def _for_nulls(model: Model, corpus: Corpus) -> Corpus:
    """The texts that null models read."""
    most = 16 if model.n_weights <= LARGE_WEIGHTS else max(2, _NULL_TOKENS // corpus.tokens.shape[1])
    return corpus.select(range(min(len(corpus), most)))


def _null(make: Callable[[], AbstractContextManager[Model]], few: Corpus) -> dict[str, Any]:
    with make() as null:
        norms, heads = _measure(null, few)
    return {"ratio": norms.ratio.tolist(), "alpha": largest(heads.alpha)}


def _needed(heads: AttentionSinkResult) -> float:
    """Attention that is as far above a uniform head's as the published threshold is in texts of 64 tokens."""
    harmonic = sum(1 / t for t in range(1, LENGTH + 1))
    uniform, published = (harmonic - 1) / (LENGTH - 1), (LENGTH * heads.epsilon - 1) / (LENGTH - 1)
    lift = (published - uniform) / (1 - uniform)  # of the way from a uniform head to a perfect sink: 0.244
    return heads.uniform_alpha + lift * (1 - heads.uniform_alpha)


def frequent_tokens(model: Model, corpus: Corpus, most: int = 16) -> list[int]:
    """The most frequent tokens of texts, special ones left out."""
    counted, special = Counter(token for text in range(len(corpus)) for token in corpus.row(text)), model.special_ids
    return [token for token, _ in counted.most_common() if token not in special][:most]


def _spikes(model: Model, neurons: Sequence[Sequence[int]]) -> float:
    """Share of the spike weights whose neuron is among these; NaN where there is no spike to agree with."""
    spikes = [] if model.tokenizer is None or not neurons else spike_weights(model)
    units = set(map(tuple, neurons))
    return sum((layer, neuron) in units for layer, _, neuron in spikes) / len(spikes) if spikes else float("nan")
