"""``MassiveActivations``: single entries of the residual stream that are hundreds of times larger than the rest.

An entry a of the hidden states of one text after one block is massive if::

    |a| > 100    and    |a| > 1000 * median of |a| over all positions and dimensions of that text and block

Both comparisons are strict.  The state counts texts, so batches and workers add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechrep.cache.analyzer import Analyzer, Batch
from mechrep.models.anatomy import Anatomy, Site
from mechrep.provenance import Provenance
from mechrep.results import Result, check_count

_SIZE, _TIMES = 100.0, 1000.0


def massive(states: Float[Tensor, "pos d_model"]) -> Bool[Tensor, "pos d_model"]:
    """Which entries of one text's hidden states are massive.

    Args:
        states: residual stream after one block, real positions only.

    Example:
        >>> states = torch.full((3, 4), 0.05)
        >>> states[0, 2], states[0, 3] = -101.0, 100.0
        >>> massive(states).nonzero().tolist()
        [[0, 2]]
    """
    sizes = states.abs().to(torch.promote_types(states.dtype, torch.float32))
    return (sizes > _SIZE) & (sizes > _TIMES * sizes.median())


@dataclass(frozen=True, eq=False)
class MassiveActivationResult(Result):
    """How many texts have massive activations, where, and how large the largest entries are.

    Attributes:
        share: share of texts with a massive activation after each block.
        share_first: share of texts with one at position 0.
        share_other: share of texts with one elsewhere.
        dimensions: share of texts in which the dimension is massive at some position.
        largest: mean over texts of the largest absolute entry.
        median: mean over texts of the median absolute entry.
        n_texts: texts.
    """

    share: Float[Tensor, " layer"]
    share_first: Float[Tensor, " layer"]
    share_other: Float[Tensor, " layer"]
    dimensions: Float[Tensor, "layer d_model"]
    largest: Float[Tensor, " layer"]
    median: Float[Tensor, " layer"]
    n_texts: int

    @property
    def n_massive(self) -> int:
        """Pairs of block and dimension that are massive in at least one text."""
        return int((self.dimensions > 0).sum())

    def top(self, k: int) -> list[tuple[int, int]]:
        """The ``k`` pairs ``(layer, dimension)`` that are massive in most texts.

        Raises:
            InputError: ``k`` larger than ``n_massive``.
        """
        check_count(k, self.n_massive, "massive dimensions")
        order = torch.argsort(self.dimensions.flatten(), descending=True, stable=True)[:k].tolist()
        width = self.dimensions.shape[1]
        return [(index // width, index % width) for index in order]

    def to_frame(self) -> pd.DataFrame:
        """One row per block, in order."""
        names = ("share", "share_first", "share_other", "largest", "median")
        columns = {name: getattr(self, name).numpy() for name in names}
        return pd.DataFrame({"layer": range(len(self.share)), **columns})


class MassiveActivations(Analyzer):
    """Counts massive activations after every block.

    Source: the rule is Sun et al. 2024 (arXiv 2402.17762) as coded by Owen et al. 2025 (arXiv 2503.22329).

    Limits: two fixed thresholds; a small model can have a sink without a single entry above 100.  Blocks are raw:
    processed weights have other entries.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea was calm.", "It rained all day."], model=model)
        >>> (result,) = mechrep.CorpusCache(model, corpus).run(MassiveActivations())
        >>> len(result.to_frame()) == model.anatomy.n_layers, bool((result.largest > result.median).all())
        (True, True)
    """

    sites: ClassVar[frozenset[Site]] = frozenset({Site.RESID_POST})

    def __init__(self) -> None:
        self.state = {}

    @property
    def config(self) -> dict[str, Any]:
        """There is nothing to set."""
        return {}

    def prepare(self, anatomy: Anatomy, frame: pd.DataFrame) -> None:  # noqa: ARG002 - any corpus will do
        """Empty counts for this model's blocks."""
        names = ("share", "share_first", "share_other", "largest", "median")
        self.state = {name: torch.zeros(anatomy.n_layers, dtype=torch.float64) for name in names}
        self.state["dimensions"] = torch.zeros(anatomy.n_layers, anatomy.d_model, dtype=torch.float64)
        self.state["texts"] = torch.zeros(1, dtype=torch.float64)

    def observe(self, activation: Tensor, site: Site, layer: int, batch: Batch) -> None:  # noqa: ARG002 - it has one
        """Add one block of one batch, text by text: the median is that of the text."""
        for states, length in zip(activation, batch.lengths.tolist(), strict=True):
            real = states[:length]
            found, sizes = massive(real), real.abs()
            added = {
                "share": found.any(),
                "share_first": found[0].any(),
                "share_other": found[1:].any(),
                "largest": sizes.max(),
                "median": sizes.median(),
            }
            for name, value in added.items():
                self.state[name][layer] += float(value)
            self.state["dimensions"][layer] += found.any(0).cpu()

    def finish_batch(self, batch: Batch) -> None:
        """Count texts, once for all blocks."""
        self.state["texts"] += len(batch.lengths)

    def result(self, provenance: Provenance) -> MassiveActivationResult:
        """Shares and means over texts."""
        means = {name: (value / self.state["texts"]).float() for name, value in self.state.items() if name != "texts"}
        return MassiveActivationResult(provenance, **means, n_texts=int(self.state["texts"]))

    def load_result(self, folder: Path) -> MassiveActivationResult:
        """Read a stored result."""
        return MassiveActivationResult.load(folder)
