"""``HeadScoreResult``: what a run of :class:`~mechrep.analyzers.heads.scores.HeadScores` measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrep.analyzers.heads.targets import EXPLAINED, SCORES
from mechrep.errors import InputError
from mechrep.provenance import Provenance
from mechrep.results import Result, check_count

if TYPE_CHECKING:
    import plotly.graph_objects as go

PUBLISHED_THRESHOLD = 0.5  # of Hiraoka and Inui 2025, for their own score


@dataclass(frozen=True, eq=False)
class HeadScoreResult(Result):
    """How much of its attention every head gives to the targets of each kind of head; a perfect head scores 1.0.

    Axis ``score`` runs over ``names``: induction (prefix matching), self_finding (duplicate token), previous_token,
    current_token, first_token.  ``result.induction`` and so on are its rows, ``[layer head]``.

    Attributes:
        scores: mean attention on the targets.
        standard_errors: of the scores, with the text as the unit.
        chance: score of a head that attends to all keys up to its own alike; the same for all heads.
        without_sink: the scores with the first position left out, as a target and as a sink, and the rest of each row
            scaled to 1.  Never to be read alone: a head with 0.99 on the first token and 0.01 on targets has 1.0 here.
        sink_rows_dropped: queries that are not in ``without_sink`` because less than 1e-6 of the row was left.
        unexplained: attention on no target of any of the five.
        variants: published normalisations of prefix matching, in the order of ``variant_names``.
        variant_names: see :mod:`mechrep.analyzers.heads.variants`.
        names: the scores.
        n_queries: queries behind each score.
        n_texts: texts behind each score.
        not_used: texts that could not be used for a repetition score, by reason.
        missing: why a score is NaN, by its name.
    """

    scores: Float[Tensor, "score layer head"]
    standard_errors: Float[Tensor, "score layer head"]
    chance: Float[Tensor, " score"]
    without_sink: Float[Tensor, "score layer head"]
    sink_rows_dropped: Int[Tensor, "score layer head"]
    unexplained: Float[Tensor, "layer head"]
    variants: Float[Tensor, "variant layer head"]
    variant_names: Sequence[str]
    names: Sequence[str]
    n_queries: Mapping[str, int]
    n_texts: Mapping[str, int]
    not_used: Mapping[str, int]
    missing: Mapping[str, str]

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, Tensor],
        provenance: Provenance,
        variant_names: Sequence[str],
        not_used: Mapping[str, int],
        missing: Mapping[str, str],
    ) -> HeadScoreResult:
        """Turn sums into means; a score without a query is NaN."""
        weight, n = state["weight"], state["texts"]
        means = state["sum"] / weight[:, None, None]
        # A ratio of sums over texts: its variance is that of the residuals y - mean * w.
        wide = (slice(None), None, None)
        spread = state["squares"] - 2 * means * state["cross"] + means.square() * state["weight_squares"][wide]
        spread = torch.where(spread < 1e-12 * state["squares"], 0.0, spread)  # below rounding error the texts agree
        errors = (spread * (n / (n - 1))[wide]).sqrt() / weight[wide]
        errors = torch.where((n > 1)[wide], errors, torch.nan)
        tensors = {
            "scores": means[:EXPLAINED],
            "standard_errors": errors[:EXPLAINED],
            "chance": (state["chance"] / weight)[:EXPLAINED],
            "without_sink": (state["sink_sum"] / state["sink_weight"])[:EXPLAINED],
            "unexplained": 1 - means[EXPLAINED],
            "variants": state["variants"] / state["observed"],
        }
        counts = {
            name: dict(zip(SCORES, map(int, state[name].tolist()), strict=False)) for name in ("queries", "texts")
        }
        return cls(
            provenance,
            **{name: value.float() for name, value in tensors.items()},
            sink_rows_dropped=state["sink_dropped"][:EXPLAINED].long(),
            variant_names=list(variant_names),
            names=list(SCORES),
            n_queries=counts["queries"],
            n_texts=counts["texts"],
            not_used=dict(not_used),
            missing=dict(missing),
        )

    @property
    def induction(self) -> Float[Tensor, "layer head"]:
        """Attention on tokens that follow earlier copies of the current one (prefix matching)."""
        return self.of("induction")

    @property
    def self_finding(self) -> Float[Tensor, "layer head"]:
        """Attention on earlier copies of the current token (duplicate-token head)."""
        return self.of("self_finding")

    @property
    def previous_token(self) -> Float[Tensor, "layer head"]:
        """Attention on the position before."""
        return self.of("previous_token")

    @property
    def current_token(self) -> Float[Tensor, "layer head"]:
        """Attention on the query's own position."""
        return self.of("current_token")

    @property
    def first_token(self) -> Float[Tensor, "layer head"]:
        """Attention on position 0 (sink)."""
        return self.of("first_token")

    @property
    def adjusted(self) -> Float[Tensor, "score layer head"]:
        """``(score - chance) / (1 - chance)``: 0 for uniform attention, 1 for a perfect head."""
        chance = self.chance[:, None, None]
        return (self.scores - chance) / (1 - chance)

    def of(self, score: str) -> Float[Tensor, "layer head"]:
        """One of the scores, or of the published variants, by its name.

        Raises:
            InputError: a name that is not in this result.
        """
        if score in self.names:
            return self.scores[list(self.names).index(score)]
        if score in self.variant_names:
            return self.variants[list(self.variant_names).index(score)]
        raise InputError(f"score {score!r}", f"one of {[*self.names, *self.variant_names]}", "choose one of these")

    def ranking(self, score: str = "induction") -> list[tuple[int, int]]:
        """All ``(layer, head)`` pairs, highest score first; ties keep the order of layers and heads, NaN comes last."""
        values = self.of(score)
        order = torch.argsort(torch.nan_to_num(values.flatten(), nan=-torch.inf), descending=True, stable=True)
        width = values.shape[1]
        return [(index // width, index % width) for index in order.tolist()]

    def top(self, k: int, score: str = "induction") -> list[tuple[int, int]]:
        """The ``k`` heads that score highest.

        Args:
            k: how many.
            score: one of ``names`` or of ``variant_names``.

        Raises:
            InputError: ``k`` larger than the number of heads, or an unknown score.
        """
        check_count(k, self.of(score).numel(), "heads")
        return self.ranking(score)[:k]

    def above(self, threshold: float = PUBLISHED_THRESHOLD, score: str = "self_finding") -> list[tuple[int, int]]:
        """Heads whose score *exceeds* the threshold, highest first.

        The default is the published rule for self-finding heads; for it, run the analyzer with
        ``preset="hiraoka2025"``.  No threshold means the same for two scores or two stimuli.

        Args:
            threshold: exclusive.
            score: as in :meth:`top`.
        """
        values = self.of(score)
        return [unit for unit in self.ranking(score) if values[unit] > threshold]

    def to_frame(self, score: str = "induction") -> pd.DataFrame:
        """One row per head, highest ``score`` first.

        Columns: rank, layer, head; for each score its value, ``_error`` (standard error), ``_adjusted`` and
        ``_without_sink``; unexplained; the published variants.
        """
        units = self.ranking(score)
        layers, heads = torch.tensor(units, dtype=torch.long).reshape(-1, 2).T
        columns: dict[str, Any] = {}
        tables = {"": self.scores, "_error": self.standard_errors, "_adjusted": self.adjusted}
        for number, name in enumerate(self.names):
            for suffix, table in (tables | {"_without_sink": self.without_sink}).items():
                columns[name + suffix] = table[number, layers, heads].numpy()
        columns["unexplained"] = self.unexplained[layers, heads].numpy()
        columns |= {name: self.of(name)[layers, heads].numpy() for name in self.variant_names}
        return pd.DataFrame({"rank": range(len(units)), "layer": layers.numpy(), "head": heads.numpy(), **columns})

    def plot(self) -> go.Figure:
        """All scores of all heads."""
        from mechrep.views.head_plots import head_scores_figure

        return head_scores_figure(self)
