"""``find_sink``: does this model have an attention sink, in which layer is it made, and by which neurons?

1. Norms by depth and attention by head, over short windows of held-out text (:class:`SinkNorms`,
   :class:`AttentionSinks`).
2. The same on copies that know nothing: weights shuffled within each matrix, and weights drawn anew.  Only what
   exceeds every copy counts, and only if it also passes the usual thresholds: a ratio of 5, and attention as far above
   a uniform head's as the published epsilon of 0.3 is at T = 64 (in shorter texts 0.3 is nothing).
3. Where the norm counts: its cause (:mod:`mechrep.analyzers.sinks.cause`), which is the layer of its jump, the neurons
   of that layer, what cutting them removes, and whether repeated tokens turn into the same state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mechrep.analyzers.sinks.attention_sinks import AttentionSinkResult, AttentionSinks
from mechrep.analyzers.sinks.cause import NO_CAUSE, begins_with_bos, sink_cause
from mechrep.analyzers.sinks.norms import SinkNormResult, SinkNorms
from mechrep.analyzers.sinks.norms_result import SINK_RATIO
from mechrep.analyzers.sinks.repeat_norms_result import CLEARLY_ABOVE
from mechrep.analyzers.sinks.result import SinkResult as SinkResult
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError
from mechrep.models import tiny
from mechrep.models.model import Model
from mechrep.models.nulls import reinitialised, shuffled
from mechrep.provenance import provenance_of
from mechrep.text.corpus import Corpus
from mechrep.text.windows import windows_of_text

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
        >>> from mechrep.models.nulls import reinitialised
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
