"""``SinkNorms``: the norm of the residual stream by position and depth.

In a model with an attention sink one position, the first, lies far above all others from the sink layer on::

    ratio_d = mean_x |resid_d(x, 0)|  /  mean_{x, 0 < t < T_x} |resid_d(x, t)|
    J_l     = mean_x log |resid_post_l(x, 0)| - mean_x log |resid_pre_l(x, 0)|

The state is sums over texts and positions; padding never enters one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechrep.analyzers.sinks.norms_result import SinkNormResult as SinkNormResult
from mechrep.cache.analyzer import Analyzer, Batch
from mechrep.errors import InputError
from mechrep.models.anatomy import Anatomy, Site
from mechrep.provenance import Provenance

_POSITIONS = 256  # of which norms are taken at a time
_SMALLEST = 1e-30  # a state of exactly zero has no logarithm


def norms_of(activation: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos"]:
    """Euclidean norms, added up in float64 whatever the model computes in (float32 on Apple's GPUs)."""
    wide = torch.float32 if activation.device.type == "mps" else torch.float64
    # Some positions at a time: on a CPU the wide copy of a long text would be twice the text.
    parts = [torch.linalg.vector_norm(part, dim=-1, dtype=wide) for part in activation.split(_POSITIONS, dim=1)]
    return torch.cat(parts, dim=1)


def other_positions(lengths: Int[Tensor, " batch"], width: int) -> Bool[Tensor, "batch pos"]:
    """True at every real position but the first."""
    places = torch.arange(width, device=lengths.device)
    return (places > 0) & (places < lengths[:, None])


class SinkNorms(Analyzer):
    """Measures the residual norm at the first position and elsewhere, at the input of block 0 and after every block.

    Args:
        positions: how many first positions get a mean of their own (``by_position``).

    Raises:
        InputError: fewer than one position.

    Source: the ratio and the jump are those of Yona et al. 2025 (arXiv 2503.08908), figures 1 and 2, as numbers; that
    the state of the first token is massive is Sun et al. 2024 (arXiv 2402.17762).

    Limits: whether the first position is BOS is the corpus' choice, and the two differ in some families (Mistral's is
    massive for BOS or a delimiter only).  Centred weights (TransformerLens' compatibility mode of a LayerNorm model)
    have other norms: measure raw models.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea was calm.", "It rained all day."], model=model)
        >>> (result,) = mechrep.CorpusCache(model, corpus).run(SinkNorms())
        >>> len(result.ratio) - 1 == len(result.jump) == model.anatomy.n_layers
        True
    """

    sites: ClassVar[frozenset[Site]] = frozenset({Site.RESID_PRE, Site.RESID_POST})

    def __init__(self, positions: int = 64) -> None:
        if positions < 1:
            raise InputError(f"positions={positions}", "at least one", "raise it")
        self.positions = positions
        self.state = {}

    @property
    def config(self) -> dict[str, Any]:
        """How many positions are followed one by one."""
        return {"positions": self.positions}

    def layers(self, anatomy: Anatomy, site: Site) -> range:
        """All blocks' outputs, and the input of the first."""
        return range(1 if site is Site.RESID_PRE else anatomy.n_layers)

    def prepare(self, anatomy: Anatomy, frame: pd.DataFrame) -> None:  # noqa: ARG002 - any corpus will do
        """Empty sums for this model's depths."""
        depths = anatomy.n_layers + 1
        names = ("first_sum", "first_log_sum", "other_sum", "other_squares", "other_log_sum")
        self.state = {name: torch.zeros(depths, dtype=torch.float64) for name in names}
        self.state["position_sum"] = torch.zeros(depths, self.positions, dtype=torch.float64)
        self.state["position_count"] = torch.zeros(self.positions, dtype=torch.float64)
        self.state["texts"] = torch.zeros(1, dtype=torch.float64)
        self.state["others"] = torch.zeros(1, dtype=torch.float64)

    def observe(self, activation: Tensor, site: Site, layer: int, batch: Batch) -> None:
        """Add one depth of one batch."""
        depth = 0 if site is Site.RESID_PRE else layer + 1
        norms = norms_of(activation)
        lengths = batch.lengths.to(norms.device)
        others = norms[other_positions(lengths, norms.shape[1])]
        first = norms[:, 0]
        sums = {
            "first_sum": first,
            "first_log_sum": first.clamp_min(_SMALLEST).log(),
            "other_sum": others,
            "other_squares": others.square(),
            "other_log_sum": others.clamp_min(_SMALLEST).log(),
        }
        for name, values in sums.items():
            self.state[name][depth] += values.sum().cpu()
        width = min(self.positions, norms.shape[1])
        real = torch.arange(width, device=norms.device) < lengths[:, None]
        self.state["position_sum"][depth, :width] += norms[:, :width].masked_fill(~real, 0).sum(0).cpu()

    def finish_batch(self, batch: Batch) -> None:
        """Count texts and positions, once for all depths."""
        lengths = batch.lengths.cpu()
        self.state["texts"] += len(lengths)
        self.state["others"] += int((lengths - 1).sum())
        self.state["position_count"] += (torch.arange(self.positions)[:, None] < lengths).sum(1)

    def result(self, provenance: Provenance) -> SinkNormResult:
        """Means, ratios and jumps."""
        return SinkNormResult.from_state(self.state, provenance)

    def load_result(self, folder: Path) -> SinkNormResult:
        """Read a stored result."""
        return SinkNormResult.load(folder)
