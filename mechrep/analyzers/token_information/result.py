"""``TokenInformationResult``: attention by information, with intervals over texts and contrasts between conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.analyzers.token_information.facts import GROUPS, QUANTITIES
from mechrep.errors import InputError
from mechrep.provenance import Provenance
from mechrep.results import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

_TAIL = 2.5  # per cent on each side: intervals are 95 %


@dataclass(frozen=True, eq=False)
class TokenInformationResult(Result):
    """Sums over the queries of each text; every number is a ratio of these, summed over texts.

    Axis ``feature`` runs over ``groups``, shares of keys, and then ``quantities``, information in nats.

    Attributes:
        attended: of what the head attends to.
        visible: of what it could attend to: all visible keys alike.
        matched: the same with keys weighted by distance as the head usually does; NaN without a profile.
        queries: queries behind each sum.
        dropped: queries without a visible key, or with less than 1e-6 of their attention on visible keys.
        on_first: attention to the first position, summed over all queries.
        on_sinks: the same to other sinks.
        ids: of the texts.
        conditions: of the texts.
        prompts: what each text is from; intervals draw these.
        groups: names.
        quantities: names.
    """

    attended: Float[Tensor, "text layer head feature"]
    visible: Float[Tensor, "text layer head feature"]
    matched: Float[Tensor, "text layer head feature"]
    queries: Float[Tensor, "text layer head"]
    dropped: Float[Tensor, "text layer head"]
    on_first: Float[Tensor, "text layer head"]
    on_sinks: Float[Tensor, "text layer head"]
    ids: Sequence[str]
    conditions: Sequence[str]
    prompts: Sequence[str]
    groups: Sequence[str]
    quantities: Sequence[str]

    @classmethod
    def from_state(
        cls, state: Mapping[str, Tensor], frame: pd.DataFrame, provenance: Provenance
    ) -> TokenInformationResult:
        """Sums with the names of their texts."""
        ids = frame["id"].astype(str).tolist()
        conditions = frame["condition"] if "condition" in frame else pd.Series(["all"] * len(frame))
        prompts = frame["prompt"].astype(str).tolist() if "prompt" in frame else ids
        return cls(
            provenance,
            **{name: value.clone() for name, value in state.items()},
            ids=ids,
            conditions=conditions.fillna("all").astype(str).tolist(),
            prompts=prompts,
            groups=list(GROUPS),
            quantities=list(QUANTITIES),
        )

    def share_att(self, condition: str | None = None) -> Float[Tensor, "layer head feature"]:
        """Share of a head's attention to visible keys that goes to each group; its mean attended information.

        Args:
            condition: texts of one condition; all by default.
        """
        return self._mean("attended", self._ones(condition))

    def share_vis(self, condition: str | None = None, *, matched: bool = False) -> Float[Tensor, "layer head feature"]:
        """The same for a reader that takes all visible keys alike, or by distance as the head usually does.

        Args:
            condition: texts of one condition; all by default.
            matched: by distance.
        """
        return self._mean("matched" if matched else "visible", self._ones(condition))

    def bias(self, condition: str | None = None, *, matched: bool = False) -> Float[Tensor, "layer head group"]:
        """``share_att / share_vis``: above 1, a head looks at the group more than such a reader; NaN without one.

        Args:
            condition: texts of one condition; all by default.
            matched: compare with the reader by distance.
        """
        return self._ratio(self._ones(condition), matched)

    def to_frame(self, *, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
        """One row per condition, head and feature, with 95 % bootstrap intervals over prompts.

        Groups have ``bias`` and ``bias_matched``; for quantities these columns hold *differences*, in nats: attended
        minus visible information.

        Args:
            draws: of the bootstrap.
            seed: of the draws.
        """
        parts = []
        layers, heads = self.attended.shape[1:3]
        index = pd.MultiIndex.from_product(
            [range(layers), range(heads), [*self.groups, *self.quantities]], names=["layer", "head", "group"]
        )
        for condition in dict.fromkeys(self.conditions):
            ones, counts = self._ones(condition), self._counts(condition, draws, seed)
            columns: dict[str, Tensor] = {
                "share_att": self._mean("attended", ones),
                "share_vis": self._mean("visible", ones),
            }
            for name, matched in (("bias", False), ("bias_matched", True)):
                low, high = _interval(self._contrast(counts, matched))
                columns |= {name: self._contrast(ones, matched), f"{name}_low": low, f"{name}_high": high}
            table = pd.DataFrame({name: value.flatten().numpy() for name, value in columns.items()}, index=index)
            n_texts = int((self.queries[self._of(condition)].sum((1, 2)) > 0).sum())
            parts.append(table.reset_index().assign(condition=condition, n_texts=n_texts))
        frame = pd.concat(parts, ignore_index=True)
        return frame[["condition", *[name for name in frame.columns if name != "condition"]]]

    def summary(self, *, matched: bool = False, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
        """The mean over heads for each condition and group: ``bias`` with its interval over prompts.

        Args:
            matched: compare with the reader by distance.
            draws: of the bootstrap.
            seed: of the draws.
        """
        rows = []
        for condition in dict.fromkeys(self.conditions):
            value = self._over_heads(self._ones(condition), matched)
            low, high = _interval(self._over_heads(self._counts(condition, draws, seed), matched))
            att, vis = (self._mean(name, self._ones(condition)).nanmean((0, 1)) for name in ("attended", "visible"))
            for place, group in enumerate(self.groups):
                numbers = (att[place], vis[place], value[place], low[place], high[place])
                rows.append((condition, group, *map(float, numbers)))
        return pd.DataFrame(rows, columns=["condition", "group", "share_att", "share_vis", "bias", "low", "high"])

    def compare(
        self, first: str, second: str, *, matched: bool = False, draws: int = 2000, seed: int = 0
    ) -> pd.DataFrame:
        """Does one condition look at a group more than another?  ``log2`` of the quotient of their mean biases.

        Prompts are drawn once for both conditions, so what a prompt adds to both cancels.

        Args:
            first: a condition.
            second: another.
            matched: compare with the reader by distance.
            draws: of the bootstrap.
            seed: of the draws.

        Returns:
            ``group, first, second, log2_ratio, low, high``; an interval without 0 is a difference.

        Raises:
            InputError: a condition that no text has.
        """
        ones = [self._over_heads(self._ones(name), matched) for name in (first, second)]
        drawn = [self._over_heads(self._counts(name, draws, seed), matched) for name in (first, second)]
        low, high = _interval((drawn[0] / drawn[1]).log2())
        columns = {"first": ones[0], "second": ones[1], "log2_ratio": (ones[0] / ones[1]).log2()}
        columns |= {"low": low, "high": high}
        frame = pd.DataFrame({name: value.numpy() for name, value in columns.items()})
        frame.insert(0, "group", list(self.groups))
        return frame

    def sinks(self) -> pd.DataFrame:
        """Share of attention on the first position and on other sinks, by condition and head."""
        rows = []
        for condition in dict.fromkeys(self.conditions):
            ones = self._ones(condition)
            all_queries = torch.tensordot(ones, self.queries + self.dropped, 1)
            shares = [torch.tensordot(ones, part, 1) / all_queries for part in (self.on_first, self.on_sinks)]
            rows += [
                (condition, layer, head, float(shares[0][layer, head]), float(shares[1][layer, head]))
                for layer in range(shares[0].shape[0])
                for head in range(shares[0].shape[1])
            ]
        return pd.DataFrame(rows, columns=["condition", "layer", "head", "first_position", "other_sinks"])

    def top(self, k: int, group: str = "low_surprisal") -> list[tuple[int, int]]:
        """The ``k`` heads with the largest position-matched bias (plain without a profile) towards a group.

        Args:
            k: how many.
            group: the group.
        """
        place, matched = list(self.groups).index(group), not bool(self.matched.isnan().any())
        values = self.bias(matched=matched)[..., place].nan_to_num(-torch.inf)
        order = values.flatten().argsort(descending=True, stable=True)[:k].tolist()
        return [(index // values.shape[1], index % values.shape[1]) for index in order]

    def plot(self) -> go.Figure:
        """Bias by group, condition by condition."""
        from mechrep.views.token_information_plots import information_figure

        return information_figure(self)

    def _of(self, condition: str | None) -> Tensor:
        chosen = torch.tensor([condition in (None, own) for own in self.conditions])
        if not bool(chosen.any()):
            raise InputError(
                f"condition {condition!r}", f"one of {sorted(set(self.conditions))}", "name one that the texts have"
            )
        return chosen

    def _ones(self, condition: str | None) -> Float[Tensor, " text"]:
        return self._of(condition).double()

    def _counts(self, condition: str, draws: int, seed: int) -> Float[Tensor, "draw text"]:
        """How often each text of a condition is in each draw of prompts; the same draw for every condition."""
        names = sorted(set(self.prompts))
        counts = np.random.default_rng(seed).multinomial(len(names), [1 / len(names)] * len(names), size=draws)
        column = {name: place for place, name in enumerate(names)}
        return torch.from_numpy(counts[:, [column[name] for name in self.prompts]]).double() * self._of(condition)

    def _mean(self, name: str, counts: Tensor) -> Tensor:
        """Mean over queries for each row of counts, ``[... layer head feature]``."""
        queries = torch.tensordot(counts, self.queries, 1)
        return torch.tensordot(counts, getattr(self, name), 1) / queries[..., None]

    def _ratio(self, counts: Tensor, matched: bool) -> Tensor:
        n = len(self.groups)
        above, below = self._mean("attended", counts), self._mean("matched" if matched else "visible", counts)
        ratio = above[..., :n] / below[..., :n]
        return ratio.masked_fill(below[..., :n] == 0, torch.nan)

    def _contrast(self, counts: Tensor, matched: bool) -> Tensor:
        """Ratios of groups, and differences of quantities."""
        n = len(self.groups)
        above, below = self._mean("attended", counts), self._mean("matched" if matched else "visible", counts)
        return torch.cat([self._ratio(counts, matched), (above - below)[..., n:]], dim=-1)

    def _over_heads(self, counts: Tensor, matched: bool) -> Tensor:
        return self._ratio(counts, matched).nanmean((-3, -2))


def _interval(drawn: Float[Tensor, "draw ..."]) -> tuple[Tensor, Tensor]:
    """Percentiles over draws; NaN where every draw is."""
    values = drawn.numpy()
    empty = np.isnan(values).all(0)
    low, high = np.nanpercentile(np.where(empty, 0.0, values), [_TAIL, 100 - _TAIL], axis=0)
    return torch.from_numpy(np.where(empty, np.nan, low)), torch.from_numpy(np.where(empty, np.nan, high))
