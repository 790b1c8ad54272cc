"""``AttentionSinks``: which heads attend to the first position, whatever stands there.

For a text of T tokens, head h and pattern A, rows are queries and columns keys, both from 0::

    alpha~_0 = mean_{0 < t < T} A[t, 0]             alpha_0 = (1 / T) sum_{t < T} A[t, 0]

The second is published; it counts the first query, which can attend to nothing else, so a head that never looks back
still has 1/T.  With the first query left out, a perfect sink is 1 and alpha_0 = (1 + (T - 1) alpha~_0) / T.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
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
    (:func:`mechrep.text.windows.windows_of_text`).

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
        wide = torch.float32 if activation.device.type == "mps" else torch.float64
        lengths = batch.lengths.to(activation.device)
        real = _real_pairs(lengths, activation.shape[-1])
        # Padded queries attend too, and nothing of them may count.  Half precision is too coarse for entropies.
        exact = activation.to(torch.promote_types(activation.dtype, torch.float32))
        pattern = exact.masked_fill(~real[:, None], 0)
        below = pattern.tril(-1)  # a position's attention to itself is no attention to a sink
        later = (lengths - 1).clamp_min(1)[:, None]
        to_first = below[..., 0].sum(-1, dtype=wide)  # [text head]
        published = (to_first + pattern[:, :, 0, 0]) / lengths[:, None]
        width = min(self.keys, pattern.shape[-1])
        added = {
            "alpha_sum": to_first / later,
            "published_sum": published,
            "above": (published > self.epsilon).to(wide),
            "row_entropy_sum": _row_entropy(pattern, lengths).to(wide),
            "column_entropy_sum": _column_entropy(pattern, lengths).to(wide),
        }
        for name, values in added.items():
            self.state[name][layer] += values.sum(0).cpu()
        self.state["key_sum"][layer, :, :width] += below[..., :width].sum((0, 2), dtype=wide).cpu()

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


def _real_pairs(lengths: Int[Tensor, " batch"], width: int) -> Bool[Tensor, "batch query_pos key_pos"]:
    """True where query and key are both inside the text."""
    real = torch.arange(width, device=lengths.device) < lengths[:, None]
    return real[:, :, None] & real[:, None, :]


def _row_entropy(
    pattern: Float[Tensor, "batch head query_pos key_pos"], lengths: Int[Tensor, " batch"]
) -> Float[Tensor, "batch head"]:
    """Mean over queries t > 0 of the entropy of their row, over the largest possible, log(t + 1); 0 for one token."""
    most = torch.arange(1, pattern.shape[-1] + 1, device=pattern.device).log()
    entropy = torch.special.entr(pattern).sum(-1)[..., 1:] / most[1:]
    return entropy.sum(-1) / (lengths - 1).clamp_min(1)[:, None]


def _column_entropy(
    pattern: Float[Tensor, "batch head query_pos key_pos"], lengths: Int[Tensor, " batch"]
) -> Float[Tensor, "batch head"]:
    """Largest entropy of a column as shares of its sum, over the largest possible, log(T - k); 0 for one token.

    With S the column's sum, the entropy of A / S is log S + (entropy of A) / S, so no second pattern is made.
    """
    total = pattern.sum(-2).clamp_min(torch.finfo(pattern.dtype).tiny)
    entropy = total.log() + torch.special.entr(pattern).sum(-2) / total
    queries = lengths[:, None] - torch.arange(pattern.shape[-1], device=pattern.device)
    shares = entropy / queries.clamp_min(2)[:, None].log()
    return shares.masked_fill((queries < 2)[:, None], 0).clamp(0, 1).amax(-1)
