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
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrep.analyzers.heads.circuits import HeadCircuits
from mechrep.analyzers.heads.copying_result import HeadCopyingResult as HeadCopyingResult
from mechrep.analyzers.heads.frozen_norm import exact
from mechrep.analyzers.heads.logits import DirectLogits
from mechrep.analyzers.heads.targets import earlier_copies, one_later
from mechrep.cache.analyzer import Analyzer, Batch
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import NothingFoundError
from mechrep.models.anatomy import Anatomy, Site
from mechrep.models.model import Model
from mechrep.provenance import Provenance
from mechrep.text.random_repeats import random_repeats

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


class HeadCopying(Analyzer):
    """Scores every head by what it adds to the logit of the token that comes next in a repeat.

    Beside ``functional`` and ``dla`` it measures ``prefix``, the attention on induction targets at the same queries, so
    that both have a null of their own; see :func:`mechrep.analyzers.heads.induction.induction_heads`.

    Args:
        model: the model that will be read; its weights turn the heads' outputs into logits.

    Raises:
        ModelError: a model without separate heads, see :class:`~mechrep.analyzers.heads.circuits.HeadCircuits`.
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
        >>> (result,) = mechrep.CorpusCache(model, corpus).run(HeadCopying(model))
        >>> result.n_queries, bool(result.functional.max() <= 1)
        (20, True)
    """

    sites: ClassVar[frozenset[Site]] = frozenset({Site.PATTERN, Site.Z, Site.RESID_POST})

    def __init__(self, model: Model) -> None:
        self.circuits = HeadCircuits(model)
        self.direct = DirectLogits(self.circuits.unembed)
        self.state = {}

    @property
    def config(self) -> dict[str, Any]:
        """The id that is no copy of anything where it begins a text; weights are part of a result's fingerprint."""
        return {"bos_id": self.circuits.model.bos_id}

    def layers(self, anatomy: Anatomy, site: Site) -> range:
        """All; of the residual stream only the end."""
        return range(anatomy.n_layers - 1 if site is Site.RESID_POST else 0, anatomy.n_layers)

    def prepare(self, anatomy: Anatomy, frame: pd.DataFrame) -> None:  # noqa: ARG002 - any text may have repeats
        """Empty sums for this model's heads."""
        shape = (anatomy.n_layers, anatomy.n_heads)
        names = ("functional", "prefix", "functional_null", "prefix_null", "functional_spread", "prefix_spread")
        self.state = {name: torch.zeros(shape, dtype=torch.float64) for name in (*names, "dla", "flat")}
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

    def load_result(self, folder: Path) -> HeadCopyingResult:
        """Read a stored result."""
        return HeadCopyingResult.load(folder)


def score_copying(
    model: Model, *, n: int = 50, copies: int = 2, sequences: int = 32, seed: int = 0, bos: bool | None = None
) -> HeadCopyingResult:
    """Score all heads of a model on random repeated tokens: ``random_repeats`` read by :class:`HeadCopying`.

    Args:
        model: the model.
        n: period of the repeats.
        copies: copies of each.
        sequences: texts.
        seed: of the draw; with the same numbers :func:`~mechrep.analyzers.heads.score_heads` reads the same texts.
        bos: whether texts begin with BOS; by default if the model has one.

    Raises:
        InputError: texts that cannot be made, see :func:`mechrep.text.random_repeats.random_repeats`.
        ModelError: a model without separate heads.

    Example:
        >>> import mechrep
        >>> result = score_copying(mechrep.load_model("mechrep-tiny"), n=20, sequences=4)
        >>> len(result.top(3)), result.functional_band.shape == (2, *result.functional.shape)
        (3, True)
    """
    corpus = random_repeats(model, n=n, copies=copies, sequences=sequences, seed=seed, bos=bos)
    batch_size = max(1, _TOKENS_PER_BATCH // corpus.tokens.shape[1])
    (result,) = CorpusCache(model, corpus, batch_size=batch_size, progress=False).run(HeadCopying(model))
    assert isinstance(result, HeadCopyingResult)
    return result
