"""How much attention every head gives to the first position, whatever stands there.

For a text of T tokens, head h and pattern A, rows are queries and columns keys, both from 0::

    alpha~_0 = mean_{0 < t < T} A[t, 0]             alpha_0 = (1 / T) sum_{t < T} A[t, 0]

The second is published; it counts the first query, which can attend to nothing else, so a head that never looks back
still has 1/T.  With the first query left out, a perfect sink is 1 and alpha_0 = (1 + (T - 1) alpha~_0) / T.

A text of 4,096 tokens has 16.8 million pairs of query and key per head; what is asked of them are sums over rows and
columns.  Long texts are therefore read by rows (:func:`mechrep.models.reading.read_attention_rows`), 128 queries at a
time, as the model itself computes them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrep.cache.corpus_cache import Analyzer, Batch, CorpusCache
from mechrep.figures import add_heads, counted, finished, panel_height, panels, plain
from mechrep.guards import Count, Share, guarded
from mechrep.models.anatomy import Anatomy, Site
from mechrep.models.attention import QUERIES, read_attention_column, read_attention_rows, rows_agree
from mechrep.models.model import Model
from mechrep.models.units import empty_table
from mechrep.provenance import Provenance, provenance_of
from mechrep.results import Result
from mechrep.text.corpus import Corpus, CorpusLike

if TYPE_CHECKING:
    import plotly.graph_objects as go

_ENOUGH_ROWS = 0.5  # a key competes for "best other key" if it is seen by half as many queries as the first


@dataclass(frozen=True, eq=False)
class AttentionSinkResult(Result):
    """Attention to the first position, head by head; means over texts, every text counting once.

    All numbers fall with the length of the texts: compare only at equal lengths, and with a null.

    Attributes:
        alpha: ``alpha~_0``, mean over queries t > 0 of A[t, 0]; a perfect sink is 1.  NaN without a text of two tokens.
        alpha_published: ``alpha_0`` of Gu et al., with the first query, whose attention is 1 in every model.
        rate: share of texts with ``alpha_0 > epsilon``.
        key_importance: mean over queries t > k of A[t, k] for the first keys, pooled over texts.
        key_rows: how many queries each of these means is made of.
        row_entropy: mean over t > 0 of the entropy of A[t, :] over log(t + 1): 0 for one key, 1 for uniform.
        column_entropy: largest entropy of a column, A[:, k] over its sum, over log(T - k): 1 for equal shares.
        learned_sink: mean over t > 0 of what a row leaves out, which a learned sink logit takes (gpt-oss); 0 in models
            without one.  It is the "+1" in the denominator of the softmax, and takes attention as the first position
            does elsewhere.
        uniform_alpha: what ``alpha`` would be if all heads attended uniformly to texts of these lengths.
        epsilon: the threshold of ``rate``.
        mean_length: mean number of tokens per text, T.
        length_sd: its standard deviation over texts; 0 where all texts are equally long.
        n_texts: texts.
    """

    alpha: Float[Tensor, "layer head"]
    alpha_published: Float[Tensor, "layer head"]
    rate: Float[Tensor, "layer head"]
    key_importance: Float[Tensor, "layer head key"]
    key_rows: Float[Tensor, " key"]
    row_entropy: Float[Tensor, "layer head"]
    column_entropy: Float[Tensor, "layer head"]
    learned_sink: Float[Tensor, "layer head"]
    uniform_alpha: float
    epsilon: float
    mean_length: float
    length_sd: float
    n_texts: int

    ranked_by: ClassVar[str] = "alpha"

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], provenance: Provenance, epsilon: float) -> AttentionSinkResult:
        """Turn sums into means; texts of one token have no query but their own and count in ``alpha_0`` only."""
        texts, longer = state["texts"], state["longer_texts"]
        length = float(state["length_sum"] / texts)
        variance = float(state["length_squares"] / texts) - length**2
        tensors = {
            "alpha": state["alpha_sum"] / longer,
            "alpha_published": state["published_sum"] / texts,
            "rate": state["above"] / texts,
            "key_importance": state["key_sum"] / state["key_rows"],
            "key_rows": state["key_rows"],
            "row_entropy": state["row_entropy_sum"] / longer,
            "column_entropy": state["column_entropy_sum"] / longer,
            "learned_sink": _without_rounding(state["learned_sum"] / longer),
        }
        return cls(
            provenance,
            **{name: value.float() for name, value in tensors.items()},
            uniform_alpha=float(state["uniform_sum"] / longer),
            epsilon=epsilon,
            mean_length=length,
            length_sd=max(variance, 0.0) ** 0.5,
            n_texts=int(texts),
        )

    @property
    def sink_share(self) -> float:
        """``Sink_1^epsilon`` of Gu et al. in per cent: mean over texts, layers and heads of ``alpha_0 > epsilon``."""
        return 100 * float(self.rate.double().nanmean())

    @property
    def best_other_key(self) -> Float[Tensor, "layer head key_and_importance"]:
        """Per head the position of the key after the first that gets most attention, and how much; NaN without one.

        Only keys that at least half as many queries see as the first: what the last tokens give to each other says
        little.
        """
        rivals = (self.key_rows >= _ENOUGH_ROWS * self.key_rows[0]) & (self.key_rows > 0)
        rivals[0] = False
        values = self.key_importance.masked_fill(~rivals, -torch.inf)
        best = values.max(-1)
        found = torch.stack([best.indices.float(), best.values], dim=-1)
        return found.masked_fill(~rivals.any() | best.values.isnan()[..., None], torch.nan)

    def plot(self) -> go.Figure:
        """Attention of every head to the first position: :func:`sink_heads_figure`."""
        return sink_heads_figure(self)

    def to_frame(self) -> pd.DataFrame:
        """One row per head, best first; ``other_key`` and ``other_alpha`` are :attr:`best_other_key`."""
        other = self.best_other_key.flatten(0, 1)[self._order(self.ranked_by)]
        return super().to_frame().assign(other_key=other[:, 0].numpy(), other_alpha=other[:, 1].numpy())


_SUMS = ("alpha_sum", "published_sum", "above", "row_entropy_sum", "column_entropy_sum", "learned_sum")
_HALF_PRECISION_ROUNDING = 1e-2  # of the sum of a row


def _without_rounding(missing: Float[Tensor, "layer head"]) -> Float[Tensor, "layer head"]:
    """Rows sum to 1 but for rounding unless there is a learned sink, which takes something somewhere."""
    return missing if bool((missing > _HALF_PRECISION_ROUNDING).any()) else missing * 0


class AttentionSinks(Analyzer[AttentionSinkResult]):
    """Measures attention to the first position, the published sink rate, and the entropy of rows and columns.

    Args:
        epsilon: a head has a sink in a text if ``alpha_0 > epsilon``, strictly as in the released code.
        keys: how many first key positions get an importance of their own (``key_importance``).

    Raises:
        InputError: ``epsilon`` outside [0, 1], or fewer than one key.

    Source: Gu et al. 2025 (arXiv 2410.10781): ``alpha_k`` and ``Sink_1^epsilon`` with epsilon 0.3, T = 64, 100 texts.
    Entropies: Guo et al. 2024 (arXiv 2410.13835), whose code counts the first row (entropy 0) in the mean of rows.

    Limits: every score falls with T (a uniform head has ``alpha~_0 = (H_T - 1) / (T - 1)``, H_T the harmonic number)
    and none is zero in a model that knows nothing: compare with :func:`mechrep.models.nulls.shuffled`.  Heads with a
    sliding window cannot see position 0 from far away.  Patterns are T x T per head: cut texts to T = 64
    (:func:`mechrep.text.windows.windows_of_text`), or use
    :func:`~mechrep.measures.attention_sinks.attention_sinks`, which reads long texts by rows.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea was calm.", "It rained all day."], model=model)
        >>> result = mechrep.CorpusCache(model, corpus).run(AttentionSinks())
        >>> len(result.top(2)), bool((result.alpha_published > result.alpha).all())
        (2, True)
    """

    sites: ClassVar[frozenset[Site]] = frozenset({Site.PATTERN})

    @guarded
    def __init__(self, epsilon: Share = 0.3, *, keys: Count = 64) -> None:
        self.epsilon, self.keys = float(epsilon), keys
        self.state = {}

    @property
    def config(self) -> dict[str, Any]:
        """Threshold and number of keys."""
        return {"epsilon": self.epsilon, "keys": self.keys}

    def prepare(self, anatomy: Anatomy, frame: pd.DataFrame) -> None:  # noqa: ARG002 - any corpus will do
        """Empty sums for this model's heads."""
        self.state = {name: empty_table(anatomy, "heads") for name in _SUMS}
        self.state["key_sum"] = empty_table(anatomy, "heads")[..., None].repeat(1, 1, self.keys)
        self.state["key_rows"] = torch.zeros(self.keys, dtype=torch.float64)
        for name in ("texts", "longer_texts", "length_sum", "length_squares", "uniform_sum"):
            self.state[name] = torch.zeros(1, dtype=torch.float64)

    def observe(self, activation: Tensor, site: Site, layer: int, batch: Batch) -> None:  # noqa: ARG002 - it has one
        """Add one layer of one batch."""
        self.observe_rows(activation, layer, batch, 0)

    def observe_rows(
        self, rows: Float[Tensor, "batch head query_pos key_pos"], layer: int, batch: Batch, first: int
    ) -> None:
        """Add some rows of one layer of one batch, in order; those with the batch's last query complete the layer.

        Args:
            rows: of the pattern; keys after the last of these queries may be left out.
            layer: the layer.
            batch: the texts.
            first: position of the first of these queries.
        """
        lengths, width = batch.lengths.to(rows.device), batch.tokens.shape[1]
        if first == 0:
            self._sums = _Sums.empty(rows, width)
        self._sums.add(rows, lengths, first)
        if first + rows.shape[2] == width:
            self._add_layer(layer, self._sums, lengths)

    def _add_layer(self, layer: int, sums: _Sums, lengths: Tensor) -> None:
        published = (sums.to_first + sums.first_to_itself) / lengths[:, None]
        later = (lengths - 1).clamp_min(1)[:, None]
        added = {
            "alpha_sum": sums.to_first / later,
            "published_sum": published,
            "above": (published > self.epsilon).to(published.dtype),
            "row_entropy_sum": sums.row_entropies / later,
            "column_entropy_sum": sums.column_entropy(lengths),
            "learned_sum": (lengths > 1).to(later.dtype)[:, None]
            - (sums.columns.sum(-1) - sums.first_to_itself) / later,
        }
        for name, values in added.items():
            self.state[name][layer] += values.sum(0).cpu()
        width = min(self.keys, sums.columns_below.shape[-1])
        self.state["key_sum"][layer, :, :width] += sums.columns_below[..., :width].sum(0).cpu()

    def finish_batch(self, batch: Batch) -> None:
        """Count texts, queries and lengths, once for all layers."""
        lengths = batch.lengths.cpu().double()
        harmonic = (1 / torch.arange(1, int(lengths.max()) + 1, dtype=torch.float64)).cumsum(0)
        longer = lengths[lengths > 1]
        added = {
            "texts": len(lengths),
            "longer_texts": len(longer),
            "length_sum": lengths.sum(),
            "length_squares": lengths.square().sum(),
            "uniform_sum": ((harmonic[longer.long() - 1] - 1) / (longer - 1)).sum(),
        }
        for name, value in added.items():
            self.state[name] += value
        rows = lengths[:, None] - 1 - torch.arange(self.keys)
        self.state["key_rows"] += rows.clamp_min(0).sum(0)

    def result(self, provenance: Provenance) -> AttentionSinkResult:
        """Means per head."""
        return AttentionSinkResult.from_state(self.state, provenance, self.epsilon)


@dataclass
class _Sums:
    """What is added up over the rows of one layer, text by text and head by head.

    Attributes:
        to_first: attention of the queries after the first to the first key.
        first_to_itself: of the first query; 1 in every model without learned sinks.
        row_entropies: entropy of row t over the largest possible, log(t + 1), over t > 0.
        columns: attention to each key.
        columns_below: the same without that of the key's own position.
        column_entropies: sum of -A log A over the queries.
    """

    to_first: Float[Tensor, "batch head"]
    first_to_itself: Float[Tensor, "batch head"]
    row_entropies: Float[Tensor, "batch head"]
    columns: Float[Tensor, "batch head key_pos"]
    columns_below: Float[Tensor, "batch head key_pos"]
    column_entropies: Float[Tensor, "batch head key_pos"]

    @classmethod
    def empty(cls, rows: Tensor, width: int) -> _Sums:
        """Zeros for as many texts and heads as ``rows`` has, and ``width`` keys."""
        wide = torch.float32 if rows.device.type == "mps" else torch.float64
        texts = rows.new_zeros(3, *rows.shape[:2], dtype=wide)
        return cls(*texts, *rows.new_zeros(3, *rows.shape[:2], width, dtype=wide))

    def add(self, rows: Tensor, lengths: Int[Tensor, " batch"], first: int) -> None:
        """Add rows from query ``first`` on."""
        queries = torch.arange(first, first + rows.shape[2], device=rows.device)
        inside = torch.arange(rows.shape[3], device=rows.device) < lengths[:, None]
        real = (queries < lengths[:, None])[:, :, None] & inside[:, None]
        # Padded queries attend too, and nothing of them may count.  Half precision is too coarse for entropies.
        exact = rows.to(torch.promote_types(rows.dtype, torch.float32))
        pattern = exact.masked_fill(~real[:, None], 0)
        below = pattern.tril(first - 1)  # a position's attention to itself is no attention to a sink
        terms, wide, keys = torch.special.entr(pattern), self.columns.dtype, rows.shape[3]
        if first == 0:
            self.first_to_itself += pattern[:, :, 0, 0]
        most = (queries + 1).log()
        most[queries == 0] = 1  # the first row's entropy is 0
        self.row_entropies += (terms.sum(-1) / most).sum(-1, dtype=wide)
        self.to_first += below[..., 0].sum(-1, dtype=wide)
        self.columns[..., :keys] += pattern.sum(-2, dtype=wide)
        self.columns_below[..., :keys] += below.sum(-2, dtype=wide)
        self.column_entropies[..., :keys] += terms.sum(-2, dtype=wide)

    def column_entropy(self, lengths: Int[Tensor, " batch"]) -> Float[Tensor, "batch head"]:
        """Largest entropy of a column as shares of its sum, over the largest possible, log(T - k); 0 for one token.

        With S the column's sum, the entropy of A / S is log S + (entropy of A) / S, so no second pattern is made.
        """
        total = self.columns.clamp_min(torch.finfo(torch.float32).tiny)
        entropy = total.log() + self.column_entropies / total
        queries = lengths[:, None] - torch.arange(total.shape[-1], device=total.device)
        shares = entropy / queries.clamp_min(2)[:, None].log()
        return shares.masked_fill((queries < 2)[:, None], 0).clamp(0, 1).amax(-1)


WHOLE = 512  # tokens: patterns of shorter texts are read whole, which is faster
_TOKENS_PER_BATCH = 4096


@torch.no_grad()
@guarded
def first_position_attention(
    model: Model, corpus: CorpusLike, *, layers: Collection[int] | None = None
) -> Float[Tensor, "text layer head pos"]:
    """How much every position attends to the first one: column 0 of every head's pattern.

    Args:
        model: a model with a plain view.
        corpus: texts of any length.
        layers: all by default; in this order, the lowest first.

    Returns:
        ``A[t, 0]`` by query position t, on the CPU; NaN past the end of a text, and in layers without attention.

    Raises:
        InputError: a corpus of another model, a layer that the model does not have, or a model whose attention cannot
            be read by rows (BLOOM's, and models without a plain view).

    Source: the column is what Gu et al. 2025 (arXiv 2410.10781) call attention to the first token; that repeats change
    it is Yona et al. 2025 (arXiv 2503.08908).

    Limits: heads with a sliding window of W give 0 from position W on.

    Example:
        >>> import mechrep
        >>> from mechrep.text.stimuli import repeated_tokens
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> column = first_position_attention(model, repeated_tokens(model, [300], 300))
        >>> column.shape[0], column.shape[3], bool((column[..., 0] == 1).all())
        (1, 301, True)
    """
    corpus = Corpus.of(corpus, model)
    corpus.check_model(model)
    chosen = list(range(model.anatomy.n_layers)) if layers is None else sorted(set(layers))
    longest = int(corpus.lengths.max())
    column = torch.full((len(corpus), len(chosen), model.anatomy.n_heads, longest), torch.nan)
    for batch in _batches(model, corpus):
        texts, lengths = list(batch.texts), batch.lengths.cpu()

        def keep(given: Tensor, layer: int, texts: list[int] = texts, lengths: Tensor = lengths) -> None:
            real = torch.arange(given.shape[2]) < lengths[:, None, None]
            column[texts, chosen.index(layer), :, : given.shape[2]] = given.float().cpu().masked_fill(~real, torch.nan)

        there = model.anatomy.attention_layers if layers is None else chosen
        with model.each_alone(batch.lengths):
            read_attention_column(model, batch.tokens, keep, layers=there)
    return column


@torch.no_grad()
@guarded
def attention_sinks(
    model: Model, corpus: CorpusLike, *, epsilon: Share = 0.3, keys: Count = 64, queries: Count = QUERIES
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
        >>> from mechrep.text.stimuli import repeated_tokens
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> result = attention_sinks(model, repeated_tokens(model, [300, 301], 100))
        >>> result.n_texts, result.mean_length
        (2, 101.0)
    """
    corpus = Corpus.of(corpus, model)
    corpus.check_model(model)
    analyzer = AttentionSinks(epsilon, keys=keys)
    if int(corpus.lengths.max()) <= WHOLE or not rows_agree(model):
        result = CorpusCache(model, corpus, progress=False).run(analyzer)
        assert isinstance(result, AttentionSinkResult)
        return result
    analyzer.prepare(model.anatomy, corpus.frame)
    for batch in _batches(model, corpus):
        with model.each_alone(batch.lengths):
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


def sink_heads_figure(result: AttentionSinkResult) -> go.Figure:
    """How much attention every head gives to the first position, on one scale of colours from 0 to 1.

    Args:
        result: what was measured; drawn is its ``alpha``, which leaves the first query out.

    Source: Gu et al. 2025 (arXiv 2410.10781), their heat maps of heads.

    Limits: all numbers fall with the length of the texts; the subtitle says what a uniform head would have.

    Example:
        >>> import mechrep
        >>> from mechrep.measures.attention_sinks import AttentionSinks
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea was calm.", "It rained all day."], model=model)
        >>> result = mechrep.CorpusCache(model, corpus).run(AttentionSinks())
        >>> bool((sink_heads_figure(result).data[0].z == result.alpha.numpy()).all())
        True
    """
    threshold = f"α₀ > {result.epsilon:g}"
    share = f"over {result.epsilon:g} (Gu et al. 2025) in {result.sink_share:.1f} % of texts, layers and heads"
    figure = panels([plain(share)], panel_height(result.alpha.shape[0]))
    add_heads(figure, result.alpha, _sink_details(result, plain(threshold)), reason="no text has a second token")
    length = f"{'about ' if result.length_sd > 0 else ''}{result.mean_length:.0f}"
    uniform = "" if math.isnan(result.uniform_alpha) else f"; a uniform head has {result.uniform_alpha:.2f}"
    texts = counted(result.n_texts, "text")
    return finished(
        figure,
        title="Attention of every head to the first position",
        subtitle=f"{result.provenance.model['name']}, {texts} of {length} tokens{uniform}",
        x="head",
        y="layer",
        share="share of attention",
    )


def _sink_details(result: AttentionSinkResult, threshold: str) -> list[list[str]]:
    """What a pointer on a head shows below its attention to the first position."""
    texts = counted(result.n_texts, "text")
    tables = (result.alpha_published, result.rate, result.best_other_key[..., 0], result.best_other_key[..., 1])
    return [
        [
            f"with the first query (α₀): {published:.3f}<br>{threshold} in {rate:.0%} of {texts}"
            + ("" if math.isnan(key) else f"<br>next key: position {key:.0f}, {importance:.3f}")
            for published, rate, key, importance in zip(*rows, strict=True)
        ]
        for rows in zip(*(table.tolist() for table in tables), strict=True)
    ]
