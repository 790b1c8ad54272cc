"""``CopySuppression``: heads that look at what the model is about to say, and make it less likely.

The logit lens before layer ``l`` gives the ``m`` most probable next tokens at each position.  ``D[i, j] = 1`` iff the
token at key ``j <= i`` is one of them (a BOS at position 0 is no key)::

    qk          = mean over queries with a target of  sum_j A[i, j] D[i, j]           (a perfect head: 1.0)
    qk_adjusted = (qk - chance) / (1 - chance),   chance: the same for A[i, j] = 1 / (i + 1)
    ov          = suppress_topk of mechrep.analyzers.heads.ov: tokens whose own logit the head lowers most
    cs          = sqrt(qk_adjusted * ov),  0 where qk_adjusted is negative
    functional  = mean over the same queries and their targets of
                  -(correlation of the head's direct logits at i with the one-hot of tok[j])
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechrep.analyzers.heads.circuits import HeadCircuits
from mechrep.analyzers.heads.frozen_norm import exact
from mechrep.analyzers.heads.logits import DirectLogits
from mechrep.analyzers.heads.ov import Embedding, check_settings, ov_scores
from mechrep.analyzers.heads.suppression_result import CopySuppressionResult as CopySuppressionResult
from mechrep.cache.analyzer import Analyzer, Batch
from mechrep.errors import InputError, NothingFoundError
from mechrep.models.anatomy import Anatomy, Site
from mechrep.models.model import Model
from mechrep.provenance import Provenance


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


class CopySuppression(Analyzer):
    """Scores every head as a suppressor of copies, on any texts.

    Args:
        model: the model that will be read.
        m: tokens of the logit lens that count as predicted.
        k: for ``suppress_topk``.
        embed: for ``suppress_topk``, as in :func:`mechrep.analyzers.heads.ov.ov_scores`.
        sample: for ``suppress_topk``: tokens that its share is taken over; all by default.

    Raises:
        InputError: a setting out of range.
        ModelError: a model without separate heads, see :class:`~mechrep.analyzers.heads.circuits.HeadCircuits`.
        NothingFoundError: texts in which no predicted token stands anywhere before.

    Source: McDougall et al. 2023 (*Copy Suppression*, arXiv 2310.04625), whose own test ablates; this one does not.

    Limits: the logit lens is a poor guide to early layers.  Predicted tokens are often recent ones, so a head that
    looks at its neighbours has some ``qk`` too; ``ov`` and ``functional`` tell what it does there.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_tokens([[0, *range(9, 29), *range(9, 29)]], model=model)
        >>> (result,) = mechrep.CorpusCache(model, corpus).run(CopySuppression(model))
        >>> bool((result.cs >= 0).all()), result.m
        (True, 10)
    """

    sites: ClassVar[frozenset[Site]] = frozenset({Site.RESID_PRE, Site.PATTERN, Site.Z})

    def __init__(
        self, model: Model, *, m: int = 10, k: int = 10, embed: Embedding = "mlp0", sample: int | None = None
    ) -> None:
        if not 1 <= m <= model.anatomy.d_vocab:
            raise InputError(f"m={m}", f"1 to {model.anatomy.d_vocab} predicted tokens", "correct it")
        check_settings(model, embed, k, sample)
        self.m, self.k, self.sample = m, k, sample
        self.embed: Embedding = embed
        self.circuits = HeadCircuits(model)
        self.direct = DirectLogits(self.circuits.unembed)
        self.state = {}

    @property
    def config(self) -> dict[str, Any]:
        """All settings."""
        bos_id = self.circuits.model.bos_id
        return {"m": self.m, "k": self.k, "embed": self.embed, "sample": self.sample, "bos_id": bos_id}

    def prepare(self, anatomy: Anatomy, frame: pd.DataFrame) -> None:  # noqa: ARG002 - any text will do
        """Empty sums for this model's heads."""
        heads = (anatomy.n_layers, anatomy.n_heads)
        shapes = {"attention": heads, "correlation": heads, "counted": heads}
        shapes |= dict.fromkeys(("queries", "chance"), (anatomy.n_layers,))
        self.state = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}

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
        lens = [model.unembed(model.ln_final(row[None])).topk(self.m).indices for row in stream]
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

    def load_result(self, folder: Path) -> CopySuppressionResult:
        """Read a stored result."""
        return CopySuppressionResult.load(folder)
