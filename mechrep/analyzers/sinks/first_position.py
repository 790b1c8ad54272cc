"""Attention to the first position of texts of any length: rows of patterns are read and forgotten block by block.

A text of 4,096 tokens has 16.8 million pairs of query and key per head; what is asked of them are sums over rows and
columns.  :func:`mechrep.models.attention_rows.read_attention_rows` gives rows of the pattern as the model itself
computes them (positions, grouped heads, scaling, sliding window, soft-capping), 128 queries at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.analyzers.sinks.attention_sinks import AttentionSinkResult, AttentionSinks
from mechrep.cache.analyzer import Batch
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.models.attention_rows import QUERIES, read_attention_rows, rows_agree
from mechrep.models.model import Model
from mechrep.provenance import provenance_of
from mechrep.text.corpus import Corpus

WHOLE = 512  # tokens: patterns of shorter texts are read whole, which is faster
_TOKENS_PER_BATCH = 4096


@torch.no_grad()
def first_position_attention(
    model: Model, corpus: Corpus, *, layers: Collection[int] | None = None, queries: int = QUERIES
) -> Float[Tensor, "text layer head pos"]:
    """How much every position attends to the first one: column 0 of every head's pattern.

    Args:
        model: a model with a plain view.
        corpus: texts of any length.
        layers: all by default; in this order, the lowest first.
        queries: rows of the pattern that exist at a time.

    Returns:
        ``A[t, 0]`` by query position t, on the CPU; NaN past the end of a text.

    Raises:
        InputError: a corpus of another model, a layer that the model does not have, or a model whose attention cannot
            be read by rows (BLOOM's, and models without a plain view).

    Source: the column is what Gu et al. 2025 (arXiv 2410.10781) call attention to the first token; that repeats change
    it is Yona et al. 2025 (arXiv 2503.08908).

    Limits: slower than fused attention, because every row is made once.  Heads with a sliding window of W give 0 from
    position W on.

    Example:
        >>> import mechrep
        >>> from mechrep.text.repeated import repeated_tokens
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> column = first_position_attention(model, repeated_tokens(model, [300], 300))
        >>> column.shape[0], column.shape[3], bool((column[..., 0] == 1).all())
        (1, 301, True)
    """
    corpus.check_model(model)
    chosen = list(range(model.anatomy.n_layers)) if layers is None else sorted(set(layers))
    longest = int(corpus.lengths.max())
    column = torch.full((len(corpus), len(chosen), model.anatomy.n_heads, longest), torch.nan)
    for batch in _batches(model, corpus):
        texts, lengths = list(batch.texts), batch.lengths.cpu()

        def keep(rows: Tensor, layer: int, first: int, texts: list[int] = texts, lengths: Tensor = lengths) -> None:
            end = first + rows.shape[2]
            real = torch.arange(first, end) < lengths[:, None, None]
            values = rows[..., 0].float().cpu().masked_fill(~real, torch.nan)
            column[texts, chosen.index(layer), :, first:end] = values

        read_attention_rows(model, batch.tokens, keep, layers=chosen, queries=queries)
    return column


@torch.no_grad()
def attention_sinks(
    model: Model, corpus: Corpus, *, epsilon: float = 0.3, keys: int = 64, queries: int = QUERIES
) -> AttentionSinkResult:
    """What :class:`AttentionSinks` measures, on texts of any length.

    Texts of up to 512 tokens, and models that cannot be read by rows, go through :class:`CorpusCache` with their whole
    patterns; the numbers are the same either way.

    Args:
        model: the model.
        corpus: the texts.
        epsilon: see :class:`AttentionSinks`.
        keys: see :class:`AttentionSinks`.
        queries: rows of the pattern that exist at a time, where texts are long.

    Raises:
        InputError: a corpus of another model, or settings out of range.

    Example:
        >>> import mechrep
        >>> from mechrep.text.repeated import repeated_tokens
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> result = attention_sinks(model, repeated_tokens(model, [300, 301], 100))
        >>> result.n_texts, result.mean_length
        (2, 101.0)
    """
    corpus.check_model(model)
    analyzer = AttentionSinks(epsilon, keys=keys)
    if int(corpus.lengths.max()) <= WHOLE or not rows_agree(model):
        (result,) = CorpusCache(model, corpus, progress=False).run(analyzer)
        assert isinstance(result, AttentionSinkResult)
        return result
    analyzer.prepare(model.anatomy, corpus.frame)
    for batch in _batches(model, corpus):
        read_attention_rows(
            model,
            batch.tokens,
            lambda rows, layer, first, batch=batch: analyzer.observe_rows(rows, layer, batch, first),
            queries=queries,
        )
        analyzer.finish_batch(batch)
    return analyzer.result(provenance_of(model, corpus, analyzer.config))


def _batches(model: Model, corpus: Corpus) -> Iterator[Batch]:
    """The corpus in its own order, as many texts at a time as are a few thousand tokens."""
    step = max(1, _TOKENS_PER_BATCH // int(corpus.lengths.max()))
    for texts in torch.arange(len(corpus)).split(step):
        lengths = corpus.lengths[texts]
        tokens = corpus.tokens[texts, : int(lengths.max())]
        numbers = tuple(texts.tolist())
        yield Batch(tokens.to(model.device), lengths.to(model.device), numbers, corpus.frame.iloc[list(numbers)])
