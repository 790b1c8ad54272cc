"""``SinkStates``: the sink's keys and values, beside those of the other positions.

A head that rests on the first position must not be disturbed by what it reads there: sinks are found to have small
value states ("value drain") and small keys that the queries nevertheless align with.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.analyzers.sinks.norms import norms_of, other_positions
from mechrep.cache.analyzer import Analyzer, Batch
from mechrep.models.anatomy import Anatomy, Site
from mechrep.provenance import Provenance
from mechrep.results import Result, check_count

_NAMES = {Site.K: "key", Site.V: "value"}


@dataclass(frozen=True, eq=False)
class SinkStateResult(Result):
    """Norms of keys and values at the first position and elsewhere, by key-value head.

    Attributes:
        first_key: mean over texts of the norm of the key at position 0.
        other_key: mean over all other real positions; NaN where no text has a second token.
        first_value: the same for values.
        other_value: the same for values.
    """

    first_key: Float[Tensor, "layer kv_head"]
    other_key: Float[Tensor, "layer kv_head"]
    first_value: Float[Tensor, "layer kv_head"]
    other_value: Float[Tensor, "layer kv_head"]

    @property
    def key_ratio(self) -> Float[Tensor, "layer kv_head"]:
        """Norm of the first key over the mean of the others."""
        return self.first_key / self.other_key

    @property
    def value_ratio(self) -> Float[Tensor, "layer kv_head"]:
        """Norm of the first value over the mean of the others: small where the sink's value is drained."""
        return self.first_value / self.other_value

    def top(self, k: int) -> list[tuple[int, int]]:
        """The ``k`` key-value heads with the most drained first value.

        Raises:
            InputError: ``k`` larger than the number of key-value heads.
        """
        check_count(k, self.first_value.numel(), "key-value heads")
        order = torch.argsort(torch.nan_to_num(self.value_ratio.flatten(), nan=torch.inf), stable=True).tolist()
        width = self.first_value.shape[1]
        return [(index // width, index % width) for index in order[:k]]

    def to_frame(self) -> pd.DataFrame:
        """One row per key-value head, in order."""
        layers, heads = self.first_key.shape
        columns = {
            name: getattr(self, name).flatten().numpy()
            for name in ("first_key", "other_key", "key_ratio", "first_value", "other_value", "value_ratio")
        }
        places = {"layer": [i for i in range(layers) for _ in range(heads)], "kv_head": [*range(heads)] * layers}
        return pd.DataFrame({**places, **columns})


class SinkStates(Analyzer):
    """Measures norms of keys and values at the first position and elsewhere.

    Query head h uses key-value head ``h // (n_heads / n_kv_heads)``.  Keys are read before rotary positions, which do
    not change their norm.

    Source: Guo et al. 2024 (arXiv 2410.13835) for values; Gu et al. 2025 (arXiv 2410.10781) for keys.

    Limits: read from the TransformerLens view, the slower one.  A norm is no direction: that queries align with the
    first key is not seen here.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea was calm.", "It rained all day."], model=model)
        >>> (result,) = mechrep.CorpusCache(model, corpus).run(SinkStates())
        >>> result.value_ratio.shape == (model.anatomy.n_layers, model.anatomy.n_kv_heads)
        True
    """

    sites: ClassVar[frozenset[Site]] = frozenset(_NAMES)

    def __init__(self) -> None:
        self.state = {}

    @property
    def config(self) -> dict[str, Any]:
        """There is nothing to set."""
        return {}

    def prepare(self, anatomy: Anatomy, frame: pd.DataFrame) -> None:  # noqa: ARG002 - any corpus will do
        """Empty sums for this model's key-value heads."""
        self._heads = anatomy.n_kv_heads
        shape = (anatomy.n_layers, self._heads)
        names = [f"{place}_{name}" for place in ("first", "other") for name in _NAMES.values()]
        self.state = {name: torch.zeros(shape, dtype=torch.float64) for name in names}
        self.state["texts"] = torch.zeros(1, dtype=torch.float64)
        self.state["others"] = torch.zeros(1, dtype=torch.float64)

    def observe(self, activation: Tensor, site: Site, layer: int, batch: Batch) -> None:
        """Add one site of one layer of one batch."""
        # Where a view repeats each key-value head for the query heads that share it, one of each is enough.
        states = activation[:, :, :: activation.shape[2] // self._heads]
        norms = norms_of(states.flatten(0, 1)).unflatten(0, states.shape[:2])  # [text pos kv_head]
        others = other_positions(batch.lengths.to(norms.device), norms.shape[1])
        self.state[f"first_{_NAMES[site]}"][layer] += norms[:, 0].sum(0).cpu()
        self.state[f"other_{_NAMES[site]}"][layer] += norms[others].sum(0).cpu()

    def finish_batch(self, batch: Batch) -> None:
        """Count texts and positions, once for all layers."""
        self.state["texts"] += len(batch.lengths)
        self.state["others"] += int((batch.lengths - 1).sum())

    def result(self, provenance: Provenance) -> SinkStateResult:
        """Means per key-value head."""
        means = {
            name: (self.state[name] / self.state["texts" if name.startswith("first") else "others"]).float()
            for name in ("first_key", "other_key", "first_value", "other_value")
        }
        return SinkStateResult(provenance, **means)

    def load_result(self, folder: Path) -> SinkStateResult:
        """Read a stored result."""
        return SinkStateResult.load(folder)
