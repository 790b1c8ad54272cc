"""``HeadCopying``: whether a head says what comes next in a repeat, and not only looks at it.

At a query ``i`` whose token stood before, ``e`` is the token that followed its newest copy.  The head's direct logits
are ``l = (r / s_i) U``: what it adds to the residual stream, ``r`` (value biases left out), over the final norm's
scale, times the unembedding with that norm's gains, centred over the vocabulary of ``V`` tokens::

    functional = mean over i of  (l_e - mean l) / (sd l * sqrt(V - 1))        (a head that says e and nothing else: 1.0)
    dla        = mean over i of  (l_e - mean l)                               (in logits)

``functional`` is Pearson's correlation of ``l`` with the one-hot of ``e``.  Logits are never made for the whole
vocabulary: ``|l|`` is ``sqrt(r U U^T r)``.

**The null, head by head.**  Within a text, the queries' targets are permuted: the head at one query is asked for the
target of another.  Mean and variance of the score over all permutations are exact (Hoeffding 1951), so nothing is
drawn.

``CopySuppression``: heads that look at what the model is about to say, and make it less likely.

The logit lens before layer ``l`` gives the ``m`` most probable next tokens at each position.  ``D[i, j] = 1`` iff the
token at key ``j <= i`` is one of them (a BOS at position 0 is no key)::

    qk          = mean over queries with a target of  sum_j A[i, j] D[i, j]           (a perfect head: 1.0)
    qk_adjusted = (qk - chance) / (1 - chance),   chance: the same for A[i, j] = 1 / (i + 1)
    ov          = suppress_topk of mechrep.measures.head_circuits: tokens whose own logit the head lowers most
    cs          = sqrt(qk_adjusted * ov),  0 where qk_adjusted is negative
    functional  = mean over the same queries and their targets of
                  -(correlation of the head's direct logits at i with the one-hot of tok[j])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechrep.cache.corpus_cache import Analyzer, Batch, CorpusCache
from mechrep.errors import NothingFoundError
from mechrep.guards import Count, Seed, Several, guarded, within
from mechrep.measures.head_circuits import Embedding, HeadCircuits, check_settings, ov_scores
from mechrep.measures.head_targets import HeadTableResult, earlier_copies, one_later
from mechrep.models.anatomy import Anatomy, Site
from mechrep.models.model import Model
from mechrep.models.stream import exact
from mechrep.models.units import empty_table
from mechrep.provenance import Provenance
from mechrep.text.stimuli import random_repeats

_BAND = NormalDist().inv_cdf(0.995)  # standard deviations on either side that hold 99 %


@dataclass(frozen=True, eq=False)
class HeadCopyingResult(HeadTableResult):
    """How much every head says the token that comes next in a repeat.

    Attributes:
        functional: correlation of the head's direct logits with the one-hot of that token, in [-1, 1]; NaN for a head
            whose direct logits are always flat.
        dla: the direct logit of that token, less the mean of all; in logits.
        prefix: attention on the tokens that follow earlier copies, at the same queries.
        functional_null: mean of ``functional`` when a text's queries swap their targets, over all permutations.
        functional_null_sd: its standard deviation over the permutations.
        prefix_null: the same for ``prefix``.
        prefix_null_sd: the same for ``prefix``.
        flat: queries that are not in ``functional`` because the head's logits there are all the same.
        n_queries: queries.
        n_texts: texts with a query.
    """

    names: ClassVar[tuple[str, ...]] = ("functional", "dla", "prefix")

    functional: Float[Tensor, "layer head"]
    dla: Float[Tensor, "layer head"]
    prefix: Float[Tensor, "layer head"]
    functional_null: Float[Tensor, "layer head"]
    functional_null_sd: Float[Tensor, "layer head"]
    prefix_null: Float[Tensor, "layer head"]
    prefix_null_sd: Float[Tensor, "layer head"]
    flat: Int[Tensor, "layer head"]
    n_queries: int
    n_texts: int

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], provenance: Provenance) -> HeadCopyingResult:
        """Turn sums into means."""
        queries = state["queries"]
        counted = {"functional": queries - state["flat"], "prefix": queries}
        tables = {"dla": state["dla"] / queries}
        for name, count in counted.items():
            tables[name] = state[name] / count
            tables[f"{name}_null"] = state[f"{name}_null"] / count
            tables[f"{name}_null_sd"] = state[f"{name}_spread"].sqrt() / count
        return cls(
            provenance,
            **{name: table.float() for name, table in tables.items()},
            flat=state["flat"].long(),
            n_queries=int(queries),
            n_texts=int(state["texts"]),
        )

    @property
    def functional_band(self) -> Float[Tensor, "2 layer head"]:
        """Lower and upper end of the 99 % band of ``functional`` under its null; the many queries make it normal."""
        return _band(self.functional_null, self.functional_null_sd)

    @property
    def prefix_band(self) -> Float[Tensor, "2 layer head"]:
        """Lower and upper end of the 99 % band of ``prefix`` under its null."""
        return _band(self.prefix_null, self.prefix_null_sd)


def _band(mean: Tensor, sd: Tensor) -> Tensor:
    return torch.stack([mean - _BAND * sd, mean + _BAND * sd])


@dataclass(frozen=True, eq=False)
class CopySuppressionResult(HeadTableResult):
    """How much every head looks at what the model is about to say, and makes it less likely.

    Attributes:
        cs: ``sqrt(qk_adjusted * ov)``; 1.0 for a pure suppressor.
        qk: attention on tokens that the logit lens before the layer predicts.
        qk_adjusted: ``qk``, with uniform attention at 0 and a perfect head at 1.
        ov: share of tokens whose own logit is among the ``k`` that the head lowers most (``suppress_topk``).
        functional: correlation of the head's direct logits with the one-hot of a predicted token before, sign turned;
            NaN for a head whose direct logits are always flat.
        chance: ``qk`` of uniform attention.
        n_queries: queries with a predicted token before them, by layer.
        m: tokens of the logit lens that count as predicted.
    """

    names: ClassVar[tuple[str, ...]] = ("cs", "qk", "qk_adjusted", "ov", "functional")

    cs: Float[Tensor, "layer head"]
    qk: Float[Tensor, "layer head"]
    qk_adjusted: Float[Tensor, "layer head"]
    ov: Float[Tensor, "layer head"]
    functional: Float[Tensor, "layer head"]
    chance: Float[Tensor, " layer"]
    n_queries: Sequence[int]
    m: int

    @classmethod
    def from_state(
        cls, state: Mapping[str, Tensor], provenance: Provenance, ov: Float[Tensor, "layer head"], m: int
    ) -> CopySuppressionResult:
        """Turn sums into means; a layer without a query has NaN."""
        queries = state["queries"]
        qk, chance = state["attention"] / queries[:, None], state["chance"] / queries
        adjusted = (qk - chance[:, None]) / (1 - chance[:, None])
        tables = {
            "cs": (adjusted.clamp_min(0) * ov).sqrt(),
            "qk": qk,
            "qk_adjusted": adjusted,
            "ov": ov,
            "functional": -state["correlation"] / state["counted"],
            "chance": chance,
        }
        n_queries = [int(n) for n in queries.tolist()]
        return cls(provenance, **{name: table.float() for name, table in tables.items()}, n_queries=n_queries, m=m)


# Of the squared logits that a vector of this length has on average: less is rounding error, so the logits are flat.
_FLAT = 1e-12


class DirectLogits:
    """Logits of vectors of the residual stream, centred over the vocabulary, without making all of them.

    Args:
        unembed: unembedding, centred over the vocabulary.

    Example:
        >>> eye = torch.eye(5)
        >>> logits, correlation = DirectLogits(eye - eye.mean(1, keepdim=True)).of(eye[:2], torch.tensor([0, 3]))
        >>> correlation.round(decimals=3).tolist()
        [[1.0, -0.25], [-0.25, -0.25]]
    """

    def __init__(self, unembed: Float[Tensor, "d_model d_vocab"]) -> None:
        self.unembed = unembed
        self.gram = exact(torch.zeros(len(unembed), len(unembed), device=unembed.device))
        for columns in unembed.split(4096, dim=1):
            self.gram += exact(columns) @ exact(columns).T

    def of(
        self, vectors: Float[Tensor, "*batch d_model"], tokens: Int[Tensor, " token"]
    ) -> tuple[Float[Tensor, "*batch token"], Float[Tensor, "*batch token"]]:
        """Logits of some tokens, and the correlation of all logits with the one-hot of each of them.

        The correlation is NaN for a vector whose logits are all the same.
        """
        vectors, vocabulary = exact(vectors).to(self.gram.device), self.unembed.shape[1]
        logits = vectors @ exact(self.unembed[:, tokens.to(self.gram.device)])
        squares = ((vectors @ self.gram) * vectors).sum(-1, keepdim=True)
        typical = vectors.square().sum(-1, keepdim=True) * self.gram.diagonal().mean()
        spread = torch.where(squares <= _FLAT * typical, torch.nan, squares).sqrt()
        return logits, logits / spread * (vocabulary / (vocabulary - 1)) ** 0.5


_TOKENS_PER_BATCH = 2048


@dataclass(frozen=True)
class RepeatQueries:
    """Queries of one text whose token stood before.

    Attributes:
        row: the text's place in the batch.
        positions: the queries.
        expected: the token that followed the newest earlier copy of each query's own.
        targets: 1 at the keys that follow an earlier copy, and 0 elsewhere.
    """

    row: int
    positions: Int[Tensor, " query"]
    expected: Int[Tensor, " query"]
    targets: Float[Tensor, "query key_pos"]


def repeat_queries(batch: Batch, bos_id: int | None) -> list[RepeatQueries]:
    """The queries of every text of a batch that has any."""
    tokens = batch.tokens
    has_bos = tokens[:, 0] == (-1 if bos_id is None else bos_id)
    every = one_later(earlier_copies(tokens, has_bos))
    newest = one_later(earlier_copies(tokens, has_bos, "newest")).to(torch.uint8).argmax(-1)
    found = []
    for row, length in enumerate(batch.lengths.tolist()):
        positions = every[row, :length].any(-1).nonzero().flatten()
        if len(positions):
            expected = tokens[row, newest[row, positions]]
            found.append(RepeatQueries(row, positions, expected, exact(every[row, positions])))
    return found


def permutation_moments(table: Float[Tensor, "*unit query target"]) -> tuple[Tensor, Tensor]:
    """Mean and variance of ``sum_i table[i, p(i)]`` over all permutations ``p``, each as likely as any other.

    Source: Hoeffding 1951 (*A Combinatorial Central Limit Theorem*).

    Example:
        >>> mean, variance = permutation_moments(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        >>> float(mean), float(variance)  # the sum is 2 or 0
        (1.0, 1.0)
    """
    n = table.shape[-1]
    mean = table.sum((-2, -1)) / n
    rows, columns = table.mean(-1, keepdim=True), table.mean(-2, keepdim=True)
    rest = table - rows - columns + table.mean((-2, -1), keepdim=True)
    return mean, rest.square().sum((-2, -1)) / max(n - 1, 1)


class HeadCopying(Analyzer[HeadCopyingResult]):
    """Scores every head by what it adds to the logit of the token that comes next in a repeat.

    Beside ``functional`` and ``dla`` it measures ``prefix``, the attention on induction targets at the same queries, so
    that both have a null of their own; see :func:`mechrep.measures.head_scores.induction_heads`.

    Args:
        model: the model that will be read; its weights turn the heads' outputs into logits.

    Raises:
        ModelError: a model without separate heads, see :class:`~mechrep.measures.head_circuits.HeadCircuits`.
        NothingFoundError: a corpus without a single repeated token.

    Source: direct logit attribution: Elhage et al. 2021; heads that attend but do not copy: McDougall et al. 2023
    (arXiv 2310.04625).

    Limits: direct effects only; a head that copies through a later head or MLP scores low.  A soft cap on the logits is
    left out.  The permutation null takes the queries of a text for exchangeable: on stimuli other than random repeats,
    targets that lie behind a query count as attention 0.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_tokens([[0, *range(9, 29), *range(9, 29)]], model=model)
        >>> result = mechrep.CorpusCache(model, corpus).run(HeadCopying(model))
        >>> result.n_queries, bool(result.functional.max() <= 1)
        (20, True)
    """

    sites: ClassVar[frozenset[Site]] = frozenset({Site.PATTERN, Site.Z, Site.RESID_POST})

    @guarded
    def __init__(self, model: Model) -> None:
        self.circuits = HeadCircuits(model, readers=("V",))
        self.direct = DirectLogits(self.circuits.unembed)
        self.state = {}

    @property
    def config(self) -> dict[str, Any]:
        """The id that is no copy of anything where it begins a text; weights are part of a result's fingerprint."""
        return {"bos_id": self.circuits.model.bos_id}

    def layers(self, anatomy: Anatomy, site: Site) -> Sequence[int]:
        """All that have heads; of the residual stream only the end."""
        return (anatomy.n_layers - 1,) if site is Site.RESID_POST else anatomy.layers_with(site)

    def prepare(self, anatomy: Anatomy, frame: pd.DataFrame) -> None:  # noqa: ARG002 - any text may have repeats
        """Empty sums for this model's heads."""
        names = ("functional", "prefix", "functional_null", "prefix_null", "functional_spread", "prefix_spread")
        self.state = {name: empty_table(anatomy, "heads") for name in (*names, "dla")}
        self.state["flat"] = torch.zeros(anatomy.n_layers, anatomy.n_heads, dtype=torch.float64)
        self.state |= {name: torch.zeros(1, dtype=torch.float64) for name in ("queries", "texts")}
        self._known: tuple[Batch, list[RepeatQueries]] | None = None

    def _queries(self, batch: Batch) -> list[RepeatQueries]:
        if self._known is None or self._known[0] is not batch:
            self._known = (batch, repeat_queries(batch, self.circuits.model.bos_id))
            self._logits: dict[int, list[Tensor]] = {}  # by layer, until the final norm's scale is known
        return self._known[1]

    def observe(self, activation: Tensor, site: Site, layer: int, batch: Batch) -> None:
        """Add one layer of one batch."""
        texts = self._queries(batch)
        if site is Site.PATTERN:
            for text in texts:
                rows = exact(activation[text.row][:, text.positions.to(activation.device)])
                self._add("prefix", layer, rows @ text.targets.to(rows).T)
        elif site is Site.Z and texts:
            z = torch.cat([activation[text.row, text.positions.to(activation.device)] for text in texts])
            written = self.circuits.head_outputs(layer, z).split([len(text.positions) for text in texts])
            parts = zip(written, texts, strict=True)
            self._logits[layer] = [self._add_copying(part.transpose(0, 1), layer, text) for part, text in parts]
        elif site is Site.RESID_POST:
            self._add_dla(activation, texts)

    def _add_copying(
        self, written: Float[Tensor, "head query d_model"], layer: int, text: RepeatQueries
    ) -> Float[Tensor, "head query"]:
        """Add one text's correlations; returns the expected tokens' logits, before the final norm's scale."""
        logits, correlation = self.direct.of(written, text.expected)
        self.state["flat"][layer] += correlation[..., 0].isnan().sum(-1).cpu()
        self._add("functional", layer, correlation.nan_to_num(0.0))
        return logits.diagonal(dim1=-2, dim2=-1)

    def _add(self, name: str, layer: int, table: Float[Tensor, "head query target"]) -> None:
        """Add a score's sum over one text's queries, and the moments of that sum under its null."""
        mean, variance = permutation_moments(table)
        self.state[name][layer] += table.diagonal(dim1=-2, dim2=-1).sum(-1).cpu()
        self.state[f"{name}_null"][layer] += mean.cpu()
        self.state[f"{name}_spread"][layer] += variance.cpu()

    def _add_dla(self, stream: Tensor, texts: Sequence[RepeatQueries]) -> None:
        scales = [
            self.circuits.final_norm.scale(stream[text.row, text.positions.to(stream.device)]).flatten()
            for text in texts
        ]
        for layer, logits in self._logits.items():
            for scale, expected in zip(scales, logits, strict=True):
                self.state["dla"][layer] += (expected / scale.to(expected)).sum(-1).cpu()

    def finish_batch(self, batch: Batch) -> None:
        """Count texts and queries."""
        texts = self._queries(batch)
        self.state["texts"] += len(texts)
        self.state["queries"] += sum(len(text.positions) for text in texts)
        self._known = None

    def result(self, provenance: Provenance) -> HeadCopyingResult:
        """Means, and their nulls.

        Raises:
            NothingFoundError: no token was repeated.
        """
        if not self.state["queries"]:
            raise NothingFoundError(
                "texts in which no query repeats an earlier token",
                "texts with repeats",
                "make some with mechrep.text.random_repeats",
            )
        return HeadCopyingResult.from_state(self.state, provenance)


@guarded
def score_copying(
    model: Model, *, n: Count = 50, copies: Several = 2, sequences: Count = 32, seed: Seed = 0, bos: bool | None = None
) -> HeadCopyingResult:
    """Score all heads of a model on random repeated tokens: ``random_repeats`` read by :class:`HeadCopying`.

    Args:
        model: the model.
        n: period of the repeats.
        copies: copies of each.
        sequences: texts.
        seed: of the draw; with the same numbers :func:`~mechrep.measures.head_scores.score_heads` reads the same texts.
        bos: whether texts begin with BOS; by default if the model has one.

    Raises:
        InputError: texts that cannot be made, see :func:`mechrep.text.stimuli.random_repeats`.
        ModelError: a model without separate heads.

    Example:
        >>> import mechrep
        >>> result = score_copying(mechrep.load_model("mechrep-tiny"), n=20, sequences=4)
        >>> len(result.top(3)), result.functional_band.shape == (2, *result.functional.shape)
        (3, True)
    """
    corpus = random_repeats(model, n=n, copies=copies, sequences=sequences, seed=seed, bos=bos)
    batch_size = max(1, _TOKENS_PER_BATCH // corpus.tokens.shape[1])
    return CorpusCache(model, corpus, batch_size=batch_size, progress=False).run(HeadCopying(model))


def predicted_keys(
    predicted: Int[Tensor, "batch query_pos rank"],
    tokens: Int[Tensor, "batch pos"],
    lengths: Int[Tensor, " batch"],
    has_bos: Bool[Tensor, " batch"],
) -> Bool[Tensor, "batch query_pos key_pos"]:
    """The keys, up to each query, that hold one of the tokens predicted there: ``D`` of this module.

    Args:
        predicted: most probable next tokens at each position.
        tokens: right-padded ids.
        lengths: real positions of each row.
        has_bos: whether position 0 is a BOS, which is no target.

    Example:
        >>> predicted = torch.tensor([[[7], [7], [8]]])
        >>> mask = predicted_keys(predicted, torch.tensor([[7, 8, 9]]), torch.tensor([3]), torch.tensor([False]))
        >>> mask[0].nonzero().tolist()
        [[0, 0], [1, 0], [2, 1]]
    """
    position = torch.arange(tokens.shape[1], device=tokens.device)
    mask = torch.zeros(*tokens.shape, tokens.shape[1], dtype=torch.bool, device=tokens.device)
    for rank in range(predicted.shape[-1]):  # one at a time: together they are as many times larger
        mask |= predicted[:, :, rank, None] == tokens[:, None]
    real = position < lengths[:, None]
    usable = real & (position >= has_bos.long()[:, None])
    return mask & (position <= position[:, None]) & real[:, :, None] & usable[:, None]


class CopySuppression(Analyzer[CopySuppressionResult]):
    """Scores every head as a suppressor of copies, on any texts.

    Args:
        model: the model that will be read.
        m: tokens of the logit lens that count as predicted.
        k: for ``suppress_topk``.
        embed: for ``suppress_topk``, as in :func:`mechrep.measures.head_circuits.ov_scores`.
        sample: for ``suppress_topk``: tokens that its share is taken over; all by default.

    Raises:
        InputError: a setting out of range.
        ModelError: a model without separate heads, see :class:`~mechrep.measures.head_circuits.HeadCircuits`.
        NothingFoundError: texts in which no predicted token stands anywhere before.

    Source: McDougall et al. 2023 (*Copy Suppression*, arXiv 2310.04625), whose own test ablates; this one does not.

    Limits: the logit lens is a poor guide to early layers.  Predicted tokens are often recent ones, so a head that
    looks at its neighbours has some ``qk`` too; ``ov`` and ``functional`` tell what it does there.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_tokens([[0, *range(9, 29), *range(9, 29)]], model=model)
        >>> result = mechrep.CorpusCache(model, corpus).run(CopySuppression(model))
        >>> bool((result.cs >= 0).all()), result.m
        (True, 10)
    """

    sites: ClassVar[frozenset[Site]] = frozenset({Site.RESID_PRE, Site.PATTERN, Site.Z})

    @guarded
    def __init__(
        self, model: Model, *, m: int = 10, k: int = 10, embed: Embedding = "mlp0", sample: int | None = None
    ) -> None:
        m = within("m", m, 1, model.anatomy.d_vocab, "a number of predicted tokens")
        check_settings(model, embed, k, sample)
        self.m, self.k, self.sample = m, k, sample
        self.embed: Embedding = embed
        self.circuits = HeadCircuits(model, readers=("V",))
        self.direct = DirectLogits(self.circuits.unembed)
        self.state = {}

    @property
    def config(self) -> dict[str, Any]:
        """All settings."""
        bos_id = self.circuits.model.bos_id
        return {"m": self.m, "k": self.k, "embed": self.embed, "sample": self.sample, "bos_id": bos_id}

    def prepare(self, anatomy: Anatomy, frame: pd.DataFrame) -> None:  # noqa: ARG002 - any text will do
        """Empty sums for this model's heads."""
        self.state = {name: empty_table(anatomy, "heads") for name in ("attention", "correlation", "counted")}
        for name in ("queries", "chance"):
            self.state[name] = torch.zeros(anatomy.n_layers, dtype=torch.float64)

    def layers(self, anatomy: Anatomy, site: Site) -> Sequence[int]:  # noqa: ARG002 - the same for all sites
        """All that have heads."""
        return anatomy.attention_layers

    def observe(self, activation: Tensor, site: Site, layer: int, batch: Batch) -> None:
        """Add one layer of one batch; its residual stream comes before its heads."""
        if site is Site.RESID_PRE:
            self._targets = (layer, self._lens_targets(activation, batch))
            self._add_chance(self._targets[1], layer)
            return
        known, targets = self._targets
        assert known == layer
        if site is Site.PATTERN:
            for row, mask in enumerate(targets):
                self.state["attention"][layer] += exact(activation[row] * mask.to(activation)).sum((-2, -1)).cpu()
        else:
            for row, mask in enumerate(targets):
                self._add_correlation(activation[row], batch.tokens[row], mask, layer)

    def _lens_targets(self, stream: Tensor, batch: Batch) -> Bool[Tensor, "batch query_pos key_pos"]:
        model = self.circuits.model
        # Text by text: all logits of a batch may be larger than the model.
        lens = [self.circuits.stream.lens(row[None]).topk(self.m).indices for row in stream]
        bos_id = model.bos_id
        has_bos = batch.tokens[:, 0] == (-1 if bos_id is None else bos_id)
        return predicted_keys(torch.cat(lens).to(batch.tokens.device), batch.tokens, batch.lengths, has_bos)

    def _add_chance(self, targets: Tensor, layer: int) -> None:
        counts = targets.sum(-1)
        uniform = counts / torch.arange(1, targets.shape[1] + 1, device=targets.device)
        self.state["queries"][layer] += (counts > 0).sum().cpu()
        self.state["chance"][layer] += exact(uniform).sum().cpu()

    def _add_correlation(
        self,
        z: Float[Tensor, "pos head d_head"],
        tokens: Int[Tensor, " pos"],
        targets: Bool[Tensor, "query_pos key_pos"],
        layer: int,
    ) -> None:
        queries = targets.any(-1).nonzero().flatten()
        if not len(queries):
            return
        written = self.circuits.head_outputs(layer, z[queries.to(z.device)]).transpose(0, 1)
        _, correlation = self.direct.of(written, tokens)  # [head query key]
        weights = targets[queries].to(correlation)
        means = (correlation.nan_to_num(0.0) * weights).sum(-1) / weights.sum(-1)
        self.state["correlation"][layer] += means.sum(-1).cpu()
        self.state["counted"][layer] += (~correlation[..., 0].isnan()).sum(-1).cpu()

    def result(self, provenance: Provenance) -> CopySuppressionResult:
        """Means, and the heads' weights beside them.

        Raises:
            NothingFoundError: no predicted token stands anywhere before.
        """
        if not self.state["queries"].any():
            raise NothingFoundError(
                f"texts in which none of the {self.m} most probable next tokens stands before",
                "texts with predictable repeats",
                "use longer texts, or a larger m",
            )
        weights = ov_scores(self.circuits.model, embed=self.embed, k=self.k, sample=self.sample, draws=0)
        return CopySuppressionResult.from_state(self.state, provenance, weights.suppress_topk, self.m)
