"""``HeadEffects``: what every head does in every text of several conditions, and the tables made from it.

``S = (mean_1 + mean_2) / 2`` is what two conditions share, ``D = (mean_1 - mean_2) / 2`` what tells them apart; with
the induced condition first ``D > 0`` means larger there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Float

from mechrep.analyzers.conditions.design import ConditionDesign
from mechrep.analyzers.conditions.specialisation import effective_number, gini
from mechrep.analyzers.heads.result import HeadScoreResult
from mechrep.errors import InputError
from mechrep.results import check_count
from mechrep.stats import percentile_interval

Unit = tuple[int, int]
FIRST, SECOND = "induced", "natural"
OVERLAP_SCORES = ("induction", "self_finding", "previous_token", "first_token")
_DRAWS, _SWAPS = 2000, 10_000
_ROUNDING = 1e-5  # what float32 makes of a head that does nothing


@dataclass(frozen=True, eq=False)
class HeadEffects:
    """One number per text and head.

    Attributes:
        values: the effects ``[text layer head]``, in the unit of the measure; NaN for a text that has none.
        conditions: condition of each text.
        prompts: prompt that each text is from.
        measure: what the values are.

    Example:
        >>> values = np.array([[[3.0, 0.0]], [[3.1, 0.1]], [[0.0, 0.2]], [[0.1, 0.1]]])
        >>> names = ["induced", "induced", "natural", "natural"]
        >>> effects = HeadEffects(values, names, ["p", "q", "p", "q"], "made up")
        >>> effects.top(1, "induced"), float(effects.contrast()["D"][0].round(3))
        ([(0, 0)], 1.5)
    """

    values: Float[np.ndarray, "text layer head"]
    conditions: Sequence[str]
    prompts: Sequence[str]
    measure: str

    def mean(self, condition: str) -> Float[np.ndarray, "layer head"]:
        """Mean over the texts of a condition.

        Raises:
            InputError: a condition without texts.
        """
        return self._of(condition).mean(0)

    def ranking(self, condition: str) -> list[Unit]:
        """All heads, the largest mean effect of either sign first."""
        sizes = np.abs(self.mean(condition))
        order = np.argsort(-sizes, axis=None, kind="stable")
        return [divmod(int(place), sizes.shape[1]) for place in order]

    def top(self, k: int, condition: str) -> list[Unit]:
        """The first ``k`` of :meth:`ranking`.

        Raises:
            InputError: ``k`` larger than the number of heads, or a condition without texts.
        """
        ranking = self.ranking(condition)
        check_count(k, len(ranking), "heads")
        return ranking[:k]

    def contrast(self, first: str = FIRST, second: str = SECOND, *, draws: int = _DRAWS, seed: int = 0) -> pd.DataFrame:
        """One row per head, the largest ``|D|`` first.

        Columns: ``layer, head``; the mean in either condition, ``S`` and ``D``, each with its 95 % interval
        (``_low``, ``_high``: bootstrap over prompts); ``p`` of ``D``, the share of 10,000 swaps of the conditions'
        labels in which it is as large (the observed one among them), 1 where nothing exceeds rounding; ``fdr``, the
        same for having looked at all heads (Benjamini and Hochberg); ``n_<condition>``, texts.

        Args:
            first: the condition that counts positive in ``D``.
            second: the other.
            draws: of the bootstrap.
            seed: of draws and swaps.

        Raises:
            InputError: a condition without texts.
        """
        from scipy.stats import false_discovery_control

        values, design = self._known(first, second)
        times = design.draws(draws, seed)
        parts = {
            first: design.mean(first),
            second: design.mean(second),
            "S": design.half_sum(),
            "D": design.half_difference(),
        }
        heads = [divmod(place, self.values.shape[2]) for place in range(values.shape[1])]
        frame = pd.DataFrame(heads, columns=["layer", "head"])
        for name, coefficients in parts.items():
            frame[name] = coefficients @ values
            low, high = np.percentile((times * coefficients) @ values, [2.5, 97.5], axis=0)
            frame[f"{name}_low"], frame[f"{name}_high"] = low, high
        frame["p"] = _swap_p_values(design, values, seed)
        frame["fdr"] = false_discovery_control(frame["p"].to_numpy(), method="bh")
        for name in (first, second):
            frame[f"n_{name}"] = design.n[name]
        return frame.iloc[np.argsort(-frame["D"].abs().to_numpy(), kind="stable")].reset_index(drop=True)

    def specialisation(self, *, draws: int = _DRAWS, seed: int = 0) -> pd.DataFrame:
        """How concentrated the mean effects are: one row per condition and measure, with a bootstrap interval.

        Columns: ``condition, measure`` (``gini``, ``effective_heads``, ``effective_share`` of all heads), ``value, low,
        high, n``.  Noise of few texts spreads effects over heads: compare conditions of like ``n``.
        """
        rows = []
        for condition in dict.fromkeys(self.conditions):
            texts = self._of(condition).reshape(-1, self.values[0].size)
            n, heads = texts.shape
            times = np.random.default_rng(seed).multinomial(n, [1 / n] * n, size=draws)
            for name, function, scale in (
                ("gini", gini, 1.0),
                ("effective_heads", effective_number, 1.0),
                ("effective_share", effective_number, 1 / heads),
            ):
                low, high = _ends(function(_audible(times @ texts / n)) * scale)
                value = float(function(_audible(texts.mean(0)))) * scale
                rows.append((condition, name, value, low, high, n))
        return pd.DataFrame(rows, columns=["condition", "measure", "value", "low", "high", "n"])

    def shared_top(
        self, k: int, first: str = FIRST, second: str = SECOND, *, draws: int = _DRAWS, seed: int = 0
    ) -> dict[str, int | float]:
        """How many of the first ``k`` heads two conditions share, and how alike their means are over all heads.

        A head that does nothing is in no condition's first ``k``.

        Returns:
            ``shared`` of ``k``, with the ``low`` and ``high`` of a bootstrap over prompts; ``chance``, what two draws
            of ``k`` heads would share; ``rank_correlation`` (Spearman's, of the sizes), with its ``_low``, ``_high``.

        Raises:
            InputError: ``k`` larger than the number of heads, or a condition without texts.
        """
        values, design = self._known(first, second)
        check_count(k, values.shape[1], "heads")
        times = design.draws(draws, seed)
        means = [
            np.abs(np.vstack([c @ values, (times * c) @ values])) for c in (design.mean(first), design.mean(second))
        ]
        shared = [len(_top(one, k) & _top(other, k)) for one, other in zip(*means, strict=True)]
        ranks = rank_correlation(means[0], means[1])
        low, high = _ends(np.array(shared[1:], dtype=float))
        rank_low, rank_high = _ends(ranks[1:])
        return {
            "k": k,
            "shared": shared[0],
            "low": low,
            "high": high,
            "chance": k * k / values.shape[1],
            "rank_correlation": float(ranks[0]),
            "rank_correlation_low": rank_low,
            "rank_correlation_high": rank_high,
        }

    def overlap(self, scores: HeadScoreResult, k: int) -> pd.DataFrame:
        """Are the first ``k`` heads of each condition induction, self-finding, previous-token or sink heads?

        Columns: ``condition, score, shared`` (of the first ``k`` by effect and the first ``k`` by score), ``chance``,
        ``rank_correlation`` (Spearman's, of the sizes of the effects with the scores of all heads).

        Args:
            scores: of :func:`mechrep.score_heads`, of the same model.
            k: how many.

        Raises:
            InputError: scores of another model, ``k`` larger than the number of heads.
        """
        if tuple(scores.induction.shape) != self.values.shape[1:]:
            raise InputError(
                f"scores of {tuple(scores.induction.shape)} heads for effects of {self.values.shape[1:]}",
                "scores of the same model",
                "measure both on one model",
            )
        rows = []
        for condition in dict.fromkeys(self.conditions):
            sizes = np.abs(self.mean(condition)).ravel()
            for score in OVERLAP_SCORES:
                high = {layer * self.values.shape[2] + head for layer, head in scores.top(k, score)}
                shared = len(_top(sizes, k) & high)
                (ranks,) = rank_correlation(sizes[None], scores.of(score).numpy().ravel()[None])
                rows.append((condition, score, shared, k * k / sizes.size, float(ranks)))
        return pd.DataFrame(rows, columns=["condition", "score", "shared", "chance", "rank_correlation"])

    def swapped(self, seed: int = 0, first: str = FIRST, second: str = SECOND) -> HeadEffects:
        """The same effects with the labels of two conditions swapped at random: every contrast should vanish."""
        return replace(
            self, conditions=ConditionDesign(self.conditions, self.prompts, first, second).swapped(seed)
        )  # fmt: skip

    def _of(self, condition: str) -> Float[np.ndarray, "text layer head"]:
        chosen = self.values[np.array(self.conditions, dtype=object) == condition]
        chosen = chosen[~np.isnan(chosen).any((1, 2))]
        if not len(chosen):
            raise InputError(
                f"condition {condition!r} without texts that have a value",
                f"one of {sorted(set(self.conditions))}",
                "add texts of that condition, or look at fewer copies",
            )
        return chosen

    def _known(self, first: str, second: str) -> tuple[Float[np.ndarray, "text unit"], ConditionDesign]:
        """The texts of two conditions that have a value."""
        flat = self.values.reshape(len(self.values), self.values[0].size)
        missing = np.isnan(flat.sum(1)).tolist()
        chosen = [i for i, name in enumerate(self.conditions) if name in (first, second) and not missing[i]]
        names, prompts = ([list(column)[i] for i in chosen] for column in (self.conditions, self.prompts))
        return flat[chosen], ConditionDesign(names, prompts, first, second)


def _top(sizes: Float[np.ndarray, " unit"], k: int) -> set[int]:
    """The ``k`` largest, fewer where fewer do anything at all."""
    return {int(place) for place in np.argsort(-sizes, kind="stable")[:k] if sizes[place] > _ROUNDING}


def _audible(effects: Float[np.ndarray, "*draw unit"]) -> Float[np.ndarray, "*draw unit"]:
    """Effects with what is mere rounding set to zero."""
    return np.where(np.abs(effects) > _ROUNDING, effects, 0.0)


def _ends(draws: Float[np.ndarray, " draw"]) -> tuple[float, float]:
    return percentile_interval(draws[~np.isnan(draws)].tolist())


def _swap_p_values(
    design: ConditionDesign, values: Float[np.ndarray, "text unit"], seed: int
) -> Float[np.ndarray, " unit"]:
    observed = np.abs(design.half_difference() @ values)
    swapped = np.abs(design.swaps(_SWAPS, seed) @ values)
    p_values = (1 + (swapped >= observed - 1e-12).sum(0)) / (1 + _SWAPS)
    return np.where(np.abs(values).max(0) < _ROUNDING, 1.0, p_values)


def rank_correlation(
    one: Float[np.ndarray, "row unit"], other: Float[np.ndarray, "row unit"]
) -> Float[np.ndarray, " row"]:
    """Spearman's correlation of each pair of rows; NaN where one of them is flat.

    Example:
        >>> rank_correlation(np.array([[1.0, 2.0, 3.0]]), np.array([[10.0, 30.0, 20.0]])).tolist()
        [0.5]
    """
    from scipy.stats import rankdata

    ranks = [rankdata(values, axis=1) for values in (one, other)]
    centred = [values - values.mean(1, keepdims=True) for values in ranks]
    lengths = np.sqrt(np.prod([(values**2).sum(1) for values in centred], axis=0))
    return np.divide((centred[0] * centred[1]).sum(1), lengths, out=np.full(len(one), np.nan), where=lengths > 0)
