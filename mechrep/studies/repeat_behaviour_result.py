"""``RepeatBehaviourResult``: how well a model goes on repeating a token, under every condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
from jaxtyping import Bool, Float
from torch import Tensor

from mechrep.errors import InputError
from mechrep.results import Result, check_count
from mechrep.stats import paired_bootstrap_interval, proportion_interval

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)
class RepeatBehaviourResult(Result):
    """What follows n copies of a token.

    Attributes:
        conditions: names of the interventions; the first is ``"none"``, the untouched model.
        token_ids: the repeated tokens.
        repeats: numbers of copies that were given.
        new_tokens: copies that were asked for.
        prompt: what stood before the copies: ``"bare"`` or ``"chat"``.
        p_next: probability that the token comes once more (teacher-forced).
        top_next: 1 where it is the most probable token.
        run: copies that the model writes greedily before another token, at most ``new_tokens``.
    """

    conditions: Sequence[str]
    token_ids: Sequence[int]
    repeats: Sequence[int]
    new_tokens: int
    prompt: str
    p_next: Float[Tensor, "condition token repeat"]
    top_next: Float[Tensor, "condition token repeat"]
    run: Float[Tensor, "condition token repeat"]

    @property
    def diverged(self) -> Bool[Tensor, "condition token repeat"]:
        """Whether the model left off before it had written all copies."""
        return self.run < self.new_tokens

    def of(self, condition: str) -> int:
        """The row of a condition.

        Raises:
            InputError: no condition of this name.
        """
        if condition not in self.conditions:
            raise InputError(f"condition {condition!r}", f"one of {list(self.conditions)}", "choose among these")
        return list(self.conditions).index(condition)

    def ranking(self, condition: str = "none") -> list[int]:
        """Token ids, those that are repeated least first: the smallest mean run over all numbers of copies."""
        runs = self.run[self.of(condition)].double().mean(1)
        return [self.token_ids[place] for place in runs.argsort(stable=True).tolist()]

    def top(self, k: int, condition: str = "none") -> list[int]:
        """The ``k`` tokens that the model repeats least.

        Raises:
            InputError: ``k`` larger than the number of tokens, or no such condition.
        """
        check_count(k, len(self.token_ids), "tokens")
        return self.ranking(condition)[:k]

    def to_frame(self) -> pd.DataFrame:
        """One row per condition and number of copies, over all tokens, with 95 % intervals.

        Columns: ``condition, repeats, tokens``; ``p_next`` (mean over tokens) with ``p_low, p_high`` (bootstrap over
        tokens); ``continues``, the share whose most probable next token is the same; ``run`` (mean) with ``run_low,
        run_high``; ``diverged`` (share) with ``diverged_low, diverged_high`` (Wilson); and paired differences from the
        untouched model, ``p_change`` and ``run_change``, with intervals (bootstrap over tokens; 0 in its own rows).
        """
        rows = []
        for index, condition in enumerate(self.conditions):
            for place, n in enumerate(self.repeats):
                p_next, run = self.p_next[index, :, place].double(), self.run[index, :, place].double()
                count = int(self.diverged[index, :, place].sum())
                row = {"condition": condition, "repeats": n, "tokens": len(p_next)}
                row |= _with_interval("p_next", "p", p_next)
                row |= {"continues": float(self.top_next[index, :, place].double().mean())}
                row |= _with_interval("run", "run", run) | {"diverged": count / len(run)}
                low, high = proportion_interval(count, len(run))
                row |= {"diverged_low": low, "diverged_high": high}
                row |= _with_interval("p_change", "p_change", p_next - self.p_next[0, :, place].double())
                row |= _with_interval("run_change", "run_change", run - self.run[0, :, place].double())
                rows.append(row)
        return pd.DataFrame(rows)

    def plot(self) -> go.Figure:
        """Probability of going on and share that diverge, against the number of copies."""
        from mechrep.views.repeat_plots import repeat_behaviour_figure

        return repeat_behaviour_figure(self)


def _with_interval(name: str, short: str, values: Float[Tensor, " token"]) -> dict[str, float]:
    low, high = paired_bootstrap_interval(values.tolist())
    return {name: float(values.mean()), f"{short}_low": low, f"{short}_high": high}
