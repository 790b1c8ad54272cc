"""``FirstTokenDetection``: how much of the first layer's attention lies on other tokens than the own one.

For head h of layer 0, pattern A, values v and head output z at query t, in every model whose rows of A sum to 1::

    z_t - v_t = sum_j A[t, j] (v_j - v_t)                                    the exact identity
              = sum_{j: id_j != id_t} A[t, j] (v_j - v_t)                    where equal tokens have equal values
    w_t       = sum_{j: id_j != id_t} A[t, j]                                the other-token mass
    |z_t - v_t| <= w_t max_j |v_j - v_t|

At the first position w = 0, and so it is at every position of a run of one token: layer 0 can say "not the first" only
through w > 0.  The second line fails where the position is part of the value (learned positions).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrep.analyzers.first_token.other_tokens_result import LARGEST
from mechrep.analyzers.first_token.other_tokens_result import OtherTokenResult as OtherTokenResult
from mechrep.cache.analyzer import Analyzer, Batch
from mechrep.errors import InputError
from mechrep.models.anatomy import Anatomy, Site
from mechrep.models.model import Model
from mechrep.provenance import Provenance

LAYER = 0  # the first layer; later ones read states that attention has mixed already


def check_patterns(anatomy: Anatomy) -> None:
    """Refuse a model whose heads cannot be looked at.

    Raises:
        InputError: no attention patterns, values or head outputs.
    """
    absent = [site.value for site in (Site.PATTERN, Site.V, Site.Z) if not anatomy.has(site)]
    if absent:
        raise InputError(
            f"{anatomy.architecture}, without {', '.join(absent)}",
            "attention with a pattern, values and an output of each head",
            "first-token detection by attention cannot be measured on this model",
        )


class FirstTokenDetection(Analyzer):
    """Measures the other-token mass of every head of layer 0 by position, and checks the identity on the model.

    Args:
        positions: how many first positions get a mean of their own.
        outputs: ``W_O`` of layer 0, to give shifts in the units of the residual stream too; :meth:`of` takes it from
            a model.  Without it they are NaN.

    Raises:
        InputError: fewer than one position; when run, a model without attention patterns, values or head outputs.

    Source: that the first layer detects other tokens is Yona et al. 2025 (arXiv 2503.08908); the identity, the mass and
    the bound are mechrep's own.

    Limits: a mass is no use of it: what the model makes of the shift is shown by
    :func:`mechrep.analyzers.first_token.head_cuts.first_layer_head_cuts`.  With BOS in front every later token has
    another token before it; compare with ``uniform_mass``.  Read from the TransformerLens view, the slower one.
    Where a norm follows the attention (Gemma 2), shifts are those before it.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea was calm.", "It rained all day."], model=model)
        >>> (result,) = mechrep.CorpusCache(model, corpus).run(FirstTokenDetection.of(model))
        >>> float(result.by_position[:, 0].max()), bool((result.identity_error < 1e-4).all())
        (0.0, True)
    """

    sites: ClassVar[frozenset[Site]] = frozenset({Site.PATTERN, Site.V, Site.Z})

    def __init__(self, positions: int = 64, *, outputs: Float[Tensor, "head d_head d_model"] | None = None) -> None:
        if positions < 1:
            raise InputError(f"positions={positions}", "at least one", "raise it")
        self.positions = positions
        self.outputs = None if outputs is None else outputs.detach().cpu().double()
        self.state = {}
        self._values: Tensor | None = None
        self._predicted: list[tuple[Tensor, Tensor, Tensor]] = []

    @classmethod
    def of(cls, model: Model, positions: int = 64) -> FirstTokenDetection:
        """The analyzer with the model's own ``W_O``, which gives shifts in the units of the residual stream.

        Raises:
            InputError: a model without attention patterns, values or head outputs.
        """
        check_patterns(model.anatomy)
        return cls(positions, outputs=model.blocks[LAYER].attn.W_O)

    @property
    def config(self) -> dict[str, Any]:
        """How many positions are followed one by one, and whose ``W_O``."""
        outputs = None if self.outputs is None else hashlib.sha256(self.outputs.numpy().tobytes()).hexdigest()[:16]
        return {"positions": self.positions, "outputs": outputs}

    def layers(self, anatomy: Anatomy, site: Site) -> range:  # noqa: ARG002 - the same for all sites
        """The first layer."""
        return range(LAYER, LAYER + 1)

    def prepare(self, anatomy: Anatomy, frame: pd.DataFrame) -> None:  # noqa: ARG002 - any corpus will do
        """Empty sums for this model's heads."""
        check_patterns(anatomy)
        self._heads, self._kv_heads = anatomy.n_heads, anatomy.n_kv_heads
        tables = {
            "mass_by_position": (self._heads, self.positions),
            "shift_by_position": (self.positions,),
            "position_count": (self.positions,),
            **dict.fromkeys(("mass", "value_norm", "value_shift", "head_shift", *LARGEST), (self._heads,)),
            **dict.fromkeys(("texts", "tokens", "queries", "uniform_mass"), (1,)),
        }
        self.state = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in tables.items()}
        self.state["bound_excess"] -= torch.inf

    def observe(self, activation: Tensor, site: Site, layer: int, batch: Batch) -> None:  # noqa: ARG002 - there is one
        """Add one site of one batch: values come first, then the pattern, then what the heads made of both."""
        if site is Site.V:
            # Some views repeat each key-value head for the query heads that share it, others do not.
            values = activation[:, :, :: activation.shape[2] // self._kv_heads]
            self._values = values.repeat_interleave(self._heads // self._kv_heads, dim=2).cpu().double()
        elif site is Site.PATTERN:
            assert self._values is not None, "values are computed before the pattern is used"
            self._predicted = [
                self._predict(activation[row], self._values[row], batch.tokens[row, :length].cpu())
                for row, length in enumerate(batch.lengths.tolist())
            ]
            self._values = None
        else:
            for (values, moved, others), heads in zip(self._predicted, activation, strict=True):
                self._compare(heads[: len(values)].cpu().double() - values, values, moved, others)
            self._predicted = []

    def _predict(
        self, pattern: Float[Tensor, "head query_pos key_pos"], values: Float[Tensor, "pos head d_head"], ids: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Count the masses of one text; its values, what the identity predicts, and the same from other tokens only."""
        length = len(ids)
        exact, values = pattern[:, :length, :length].cpu().double(), values[:length]
        differs = ids[:, None] != ids[None, :]
        to_others, mass = exact * differs, other_token_mass(exact, ids)
        self._count(mass, differs)
        moved = torch.einsum("hqk,khd->qhd", exact, values) - exact.sum(-1).T[..., None] * values
        others = torch.einsum("hqk,khd->qhd", to_others, values) - mass.T[..., None] * values
        by_head = values.transpose(0, 1)
        farthest = torch.cdist(by_head, by_head).masked_fill(~differs.tril(), 0).amax(-1)
        self._raise("bound_excess", (others.norm(dim=-1).T - mass * farthest).amax(-1))
        return values, moved, others

    def _count(self, mass: Float[Tensor, "head query_pos"], differs: Tensor) -> None:
        length, width = mass.shape[1], min(self.positions, mass.shape[1])
        seen = torch.arange(1, length + 1, dtype=torch.float64)
        self.state["mass_by_position"][:, :width] += mass[:, :width]
        self.state["position_count"][:width] += 1
        self.state["mass"] += mass[:, 1:].sum(-1)
        self.state["uniform_mass"] += (differs.tril().sum(-1) / seen)[1:].sum()
        for name, count in (("texts", 1), ("tokens", length), ("queries", length - 1)):
            self.state[name] += count

    def _compare(self, shift: Tensor, values: Tensor, moved: Tensor, others: Tensor) -> None:
        """Add what the heads of one text really did, ``z_t - v_t`` ``[pos head d_head]``."""
        self._raise("identity_error", (shift - moved).norm(dim=-1).amax(0))
        self._raise("same_value_error", (shift - others).norm(dim=-1).amax(0))
        self.state["value_norm"] += values.norm(dim=-1).sum(0)
        self.state["value_shift"] += shift[1:].norm(dim=-1).sum(0)
        if self.outputs is not None:
            written = torch.einsum("phd,hdm->phm", shift, self.outputs)
            width = min(self.positions, len(shift))
            self.state["head_shift"] += written[1:].norm(dim=-1).sum(0)
            self.state["shift_by_position"][:width] += written.sum(1).norm(dim=-1)[:width]

    def _raise(self, name: str, values: Float[Tensor, " head"]) -> None:
        self.state[name] = torch.maximum(self.state[name], values)

    def merge(self, other: Analyzer) -> None:
        """Add the sums of another analyzer with the same settings; of largest errors the larger one counts."""
        mine = {name: self.state[name] for name in LARGEST}
        super().merge(other)
        for name, values in mine.items():
            self.state[name] = torch.maximum(values, other.state[name])

    def result(self, provenance: Provenance) -> OtherTokenResult:
        """Means per head and position, and the largest errors."""
        return OtherTokenResult.from_state(self.state, provenance, residual=self.outputs is not None)

    def load_result(self, folder: Path) -> OtherTokenResult:
        """Read a stored result."""
        return OtherTokenResult.load(folder)


def other_token_mass(
    pattern: Float[Tensor, "*batch query_pos key_pos"],
    ids: Int[Tensor, " key_pos"],
    queries: Int[Tensor, " query_pos"] | None = None,
) -> Float[Tensor, "*batch query_pos"]:
    """``w_t``: attention that queries give to keys of another token than their own.

    Args:
        pattern: of one text, rows are queries.
        ids: the text's tokens.
        queries: positions of the rows; all of the text by default.

    Example:
        >>> pattern = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.25, 0.25, 0.5]])
        >>> other_token_mass(pattern, torch.tensor([7, 8, 8])).tolist()
        [0.0, 0.25, 0.25]
    """
    own = ids if queries is None else ids[queries]
    return (pattern * (own[:, None] != ids[None, :])).sum(-1)
