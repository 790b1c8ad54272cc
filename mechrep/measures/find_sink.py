"""``find_sink``: does this model have an attention sink, in which layer is it made, and by which neurons?

1. Norms by depth and attention by head, over short windows of held-out text (:class:`SinkNorms`,
   :class:`AttentionSinks`).
2. The same on copies that know nothing: weights shuffled within each matrix, and weights drawn anew.  Only what
   exceeds every copy counts, and only if it also passes the usual thresholds: a ratio of 5, and attention as far above
   a uniform head's as the published epsilon of 0.3 is at T = 64 (in shorter texts 0.3 is nothing).
3. Where the norm counts: its cause (:mod:`mechrep.measures.sink_neurons`), which is the layer of its jump, the neurons
   of that layer, what cutting them removes, and whether repeated tokens turn into the same state.

``SinkResult``: whether a model has an attention sink, where it is made, and by what.

Published sink layers and sink neurons of large models, to compare one's own findings with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError
from mechrep.measures.attention_sinks import AttentionSinkResult, AttentionSinks
from mechrep.measures.sink_neurons import NO_CAUSE, begins_with_bos, sink_cause
from mechrep.measures.sink_norms import CLEARLY_ABOVE, SINK_RATIO, SinkNormResult, SinkNorms
from mechrep.models import tiny
from mechrep.models.load import reinitialised, shuffled
from mechrep.models.model import Model
from mechrep.provenance import provenance_of
from mechrep.results import Result, check_count
from mechrep.text.corpus import Corpus, windows_of_text


@dataclass(frozen=True, eq=False)
class SinkResult(Result):
    """Everything that :func:`mechrep.measures.find_sink.find_sink` found, beside the same scores of null models.

    Attributes:
        norm_found: the first position's norm exceeds 5 times that of the others (twice after a layer that was named),
            and every null model's ratio.
        heads_found: some head attends to the first position as far above a uniform head as the published threshold
            (0.3) is at T = 64, and more than any head of a null model.
        reason: in words, what was found, or why nothing counts as found.
        first_is_bos: whether the first position is BOS; otherwise it is the first token of each text.
        mean_length: tokens per text, T; attention scores fall with it.
        layer: the sink layer (largest excess jump of the norm, or the one that was named); ``None`` without a norm
            sink.
        neurons: ``[layer, neuron]`` of the sink neurons: the fewest, in the order of their contribution, that remove
            80 % of the excess norm, five where five do not; empty without a norm sink.
        agreement: share of ``neurons`` that the other scores have among as many first ones; under ``"spike"``, the
            share of spike weights whose neuron is one of ``neurons``.
        removed: share of the excess norm at the sink layer that each cut removes: ``"neurons"`` (those above),
            ``"random"`` (the largest of five draws of five) and ``"matched"`` (the five that follow in the ranking).
        profile: log-jump of the first position's norm over each block, J.
        excess_profile: the same beyond the jump of the other positions.
        profile_z: distance of the excess from the layers' median, see ``robust_z``.
        ratio: norm at the first position over the mean of the others; depth 0 is the input of block 0.
        bos_ratio: its largest value at the output of a block.
        null_ratios: the same of each null model.
        ratio_without_bos: the same on the texts without their BOS; NaN where there was none or nothing was found.
        alpha: attention of each head to the first position, ``alpha~_0``.
        null_alphas: the largest of each null model.
        uniform_alpha: of a head that attends uniformly.
        sink_heads: ``[layer, head]`` of the heads that count as sinks, the largest first.
        sink_share: ``Sink_1^0.3`` of Gu et al., in per cent.
        moved_share: share of repeated tokens whose norm has moved at least half-way to that of BOS; NaN with a reason.
        moved_reason: why ``moved_share`` is NaN, or empty.
        repeats: how often these tokens were repeated.
    """

    norm_found: bool
    heads_found: bool
    reason: str
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

    @property
    def found(self) -> bool:
        """Whether anything clears the null: the norm of the first position, or the attention of some head to it."""
        return self.norm_found or self.heads_found

    @property
    def best_head(self) -> tuple[int, int]:
        """The ``(layer, head)`` that attends most to the first position, whether it counts as a sink or not."""
        index, heads = int(self.alpha.nan_to_num(-1.0).argmax()), self.alpha.shape[1]
        return index // heads, index % heads

    @property
    def head_share(self) -> float:
        """Share of all heads that count as sinks."""
        return len(self.sink_heads) / self.alpha.numel()

    def top(self, k: int) -> list[tuple[int, int]]:
        """The first ``k`` sink neurons, as ``(layer, neuron)``: what :class:`mechrep.Neurons` takes.

        Raises:
            InputError: ``k`` larger than the number of sink neurons.
        """
        check_count(k, len(self.neurons), "sink neurons")
        return [(layer, neuron) for layer, neuron in self.neurons[:k]]

    def to_frame(self) -> pd.DataFrame:
        """One row per layer: jumps, ratio at its output, its best head and how many of its heads are sinks."""
        best = self.alpha.max(1)
        layers = range(len(self.profile))
        counted = [sum(layer == place for place, _ in self.sink_heads) for layer in layers]
        return pd.DataFrame(
            {
                "layer": layers,
                "is_sink_layer": [layer == self.layer for layer in layers],
                "ratio": self.ratio[1:].numpy(),
                "jump": self.profile.numpy(),
                "excess_jump": self.excess_profile.numpy(),
                "jump_z": self.profile_z.numpy(),
                "best_head": best.indices.numpy(),
                "best_alpha": best.values.numpy(),
                "sink_heads": counted,
            }
        )


_LENGTH, _WINDOWS = 64, 100  # of Gu et al. 2025
_SHUFFLES = 3


def find_sink(
    model: Model, *, texts: Corpus | Sequence[str] | None = None, layer: int | None = None, seed: int = 0
) -> SinkResult:
    """Looks for an attention sink at the first position, and for what makes it.

    Args:
        model: the model, unprocessed where its norm is LayerNorm.
        texts: a corpus, or texts.  By default up to 100 windows of 64 tokens of held-out English, with BOS by the
            model's habit; without that habit the first position is the first token, and the result says so.
        layer: a layer to take as the sink layer, where you have a reason to (several layers may write, and the one of
            the largest jump need not be the one that repeated tokens excite).  After a layer that was named, twice the
            norm of the others is enough, where the search asks for 5 times; the null models have to be exceeded either
            way.
        seed: of the null models and the controls.

    Returns:
        A result whose ``found`` is False where nothing clears the null.

    Raises:
        InputError: a corpus of another model, no tokenizer and no corpus, centred weights, or no such layer.

    Source: the chain first position -> neuron -> norm -> attention is Yona et al. 2025 (arXiv 2503.08908); attention
    scores and their threshold are Gu et al. 2025 (arXiv 2410.10781).  The null models, the decision and the repeated
    tokens (the 16 most frequent of the texts, up to 512 times) are mechrep's own.

    Limits: four null models bound the false findings at about one in five for a model that is a null itself; the two
    thresholds make them rarer.  One copy of the model is held in memory beside it.  Only the first position is asked
    about: sinks at delimiters in mid-text are not.  What cutting the neurons does to attention and loss is another
    study.

    Example:
        >>> import mechrep
        >>> from mechrep.models.load import reinitialised
        >>> untrained = reinitialised(mechrep.load_model("mechrep-tiny"))
        >>> result = find_sink(untrained, texts=["The sea was calm that day.", "It rained, and it rained."])
        >>> result.found, result.layer, result.first_is_bos
        (False, None, True)
    """
    if model.processed and model.anatomy.norm.startswith("LN"):
        raise InputError(
            f"{model.name} with processed weights",
            "the raw model: centred weights have other norms",
            "load it again and do not enable compatibility mode",
        )
    if layer is not None and not 0 <= layer < model.anatomy.n_layers:
        raise InputError(
            f"layer {layer} of {model.name}", f"a layer from 0 to {model.anatomy.n_layers - 1}", "count from 0"
        )
    corpus = _corpus_of(model, texts)
    seen = _measure(model, corpus)
    copies = [lambda i=i: shuffled(model, seed + i) for i in range(_SHUFFLES)]
    nulls = [_measure(copy(), corpus) for copy in [*copies, lambda: reinitialised(model, seed + 1)]]
    null_ratios = [null.norms.largest_ratio for null in nulls]
    null_alphas = [float(null.heads.alpha.max()) for null in nulls]
    ratio, needed = seen.norms.largest_ratio, SINK_RATIO
    if layer is not None:
        ratio, needed = float(seen.norms.ratio[layer + 1]), CLEARLY_ABOVE
    norm_found = ratio > max(needed, *null_ratios)
    where = seen.norms.ranking()[0] if layer is None else layer
    sink_heads = _sink_heads(seen.heads, max(null_alphas))
    made = sink_cause(model, corpus, seen.norms, where, seed) if norm_found else NO_CAUSE
    config = {"seed": seed, "shuffles": _SHUFFLES, "length": _LENGTH, "ratio": needed, "texts_given": bool(texts)}
    config |= {} if layer is None else {"layer": layer}
    return SinkResult(
        provenance_of(model, corpus, config),
        norm_found=norm_found,
        heads_found=bool(sink_heads),
        reason=_in_words(
            seen, (ratio, needed), begins_with_bos(model, corpus), norm_found, len(sink_heads), null_ratios, null_alphas
        ),
        first_is_bos=begins_with_bos(model, corpus),
        mean_length=seen.heads.mean_length,
        layer=where if norm_found else None,
        profile=seen.norms.jump,
        excess_profile=seen.norms.excess_jump,
        profile_z=seen.norms.jump_z,
        ratio=seen.norms.ratio,
        bos_ratio=seen.norms.largest_ratio,
        null_ratios=null_ratios,
        alpha=seen.heads.alpha,
        null_alphas=null_alphas,
        uniform_alpha=seen.heads.uniform_alpha,
        sink_heads=sink_heads,
        sink_share=seen.heads.sink_share,
        **made,
    )


class _Measured(NamedTuple):
    norms: SinkNormResult
    heads: AttentionSinkResult


def _corpus_of(model: Model, texts: Corpus | Sequence[str] | None) -> Corpus:
    if isinstance(texts, Corpus):
        texts.check_model(model)
        return texts
    if model.tokenizer is None:
        raise InputError(
            f"{model.name}, which has no tokenizer", "a corpus of ids", "pass texts=Corpus.from_tokens(...)"
        )
    if texts is not None:
        return Corpus.from_texts(texts, model=model)
    length = min(_LENGTH, model.anatomy.n_ctx)
    return windows_of_text(model, tiny.held_out_text(), length=length, limit=_WINDOWS)


def _measure(model: Model, corpus: Corpus) -> _Measured:
    norms, heads = CorpusCache(model, corpus, progress=False).run(SinkNorms(), AttentionSinks())
    assert isinstance(norms, SinkNormResult) and isinstance(heads, AttentionSinkResult)
    return _Measured(norms, heads)


def _sink_heads(heads: AttentionSinkResult, null: float) -> list[list[int]]:
    """Heads above the threshold and above every head of every null model, the largest first."""
    harmonic = sum(1 / t for t in range(1, _LENGTH + 1))
    uniform, published = (harmonic - 1) / (_LENGTH - 1), (_LENGTH * heads.epsilon - 1) / (_LENGTH - 1)
    lift = (published - uniform) / (1 - uniform)  # of the way from a uniform head to a perfect sink: 0.244
    needed = heads.uniform_alpha + lift * (1 - heads.uniform_alpha)
    return [[layer, head] for layer, head in heads.ranking() if heads.alpha[layer, head] > max(needed, null)]


def _in_words(
    seen: _Measured,
    norm: tuple[float, float],
    bos: bool,
    norm_found: bool,
    heads: int,
    null_ratios: Sequence[float],
    null_alphas: Sequence[float],
) -> str:
    (ratio, needed), alpha = norm, float(seen.heads.alpha.max())
    about_norm = (
        f"the norm at the first position ({'BOS' if bos else 'no BOS, so the first token'}) is {ratio:.3g} times that "
        "of the others "
        f"(null models at most {max(null_ratios):.3g}, needed more than {needed:g})"
    )
    about_heads = (
        f"{heads} of {seen.heads.alpha.numel()} heads attend to it as a sink, the best with {alpha:.2f} "
        f"(null models at most {max(null_alphas):.2f}, uniform {seen.heads.uniform_alpha:.2f})"
    )
    return f"{'norm sink' if norm_found else 'no norm sink'}: {about_norm}; {about_heads}"


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
        result: of :func:`~mechrep.measures.find_sink.find_sink`.

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
