"""``AttentionSinks``: which heads attend to the first position, whatever stands there.

For a text of T tokens, head h and pattern A, rows are queries and columns keys, both from 0::

    alpha~_0 = mean_{0 < t < T} A[t, 0]             alpha_0 = (1 / T) sum_{t < T} A[t, 0]

The second is published; it counts the first query, which can attend to nothing else, so a head that never looks back
still has 1/T.  With the first query left out, a perfect sink is 1 and alpha_0 = (1 + (T - 1) alpha~_0) / T.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrep.analyzers.sinks.attention_sinks_result import AttentionSinkResult as AttentionSinkResult
from mechrep.cache.analyzer import Analyzer, Batch
from mechrep.errors import InputError
from mechrep.models.anatomy import Anatomy, Site
from mechrep.provenance import Provenance

_SUMS = ("alpha_sum", "published_sum", "above", "row_entropy_sum", "column_entropy_sum")


class AttentionSinks(Analyzer):
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
    :func:`~mechrep.analyzers.sinks.first_position.attention_sinks`, which reads long texts by rows.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea was calm.", "It rained all day."], model=model)
        >>> (result,) = mechrep.CorpusCache(model, corpus).run(AttentionSinks())
        >>> len(result.top(2)), bool((result.alpha_published > result.alpha).all())
        (2, True)
    """

    sites: ClassVar[frozenset[Site]] = frozenset({Site.PATTERN})

    def __init__(self, epsilon: float = 0.3, *, keys: int = 64) -> None:
        if not 0 <= epsilon <= 1 or keys < 1:
            raise InputError(f"epsilon={epsilon}, keys={keys}", "epsilon from 0 to 1, at least one key", "correct them")
        self.epsilon, self.keys = float(epsilon), keys
        self.state = {}

    @property
    def config(self) -> dict[str, Any]:
        """Threshold and number of keys."""
        return {"epsilon": self.epsilon, "keys": self.keys}

    def prepare(self, anatomy: Anatomy, frame: pd.DataFrame) -> None:  # noqa: ARG002 - any corpus will do
        """Empty sums for this model's heads."""
        heads = (anatomy.n_layers, anatomy.n_heads)
        self.state = {name: torch.zeros(heads, dtype=torch.float64) for name in _SUMS}
        self.state["key_sum"] = torch.zeros(*heads, self.keys, dtype=torch.float64)
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

    def load_result(self, folder: Path) -> AttentionSinkResult:
        """Read a stored result."""
        return AttentionSinkResult.load(folder)


@dataclass
class _Sums:
    """What is added up over the rows of one layer, text by text and head by head.

    Attributes:
        to_first: attention of the queries after the first to the first key.
        first_to_itself: of the first query; 1 in every model.
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
