"""How conditions are compared: the prompt is the unit, whatever the conditions it takes part in.

Every number that is reported is a sum over texts, ``sum_i c_i v_i``: a mean has ``c_i = 1 / n`` in its condition, half
the difference of two means has ``+1 / 2n`` and ``-1 / 2n``.  An interval draws prompts anew, a test swaps the labels of
the conditions; both only change the coefficients, so thousands of draws for all heads at once are one product.

Prompts that take part in both conditions stay together when drawn, and their two labels are swapped; of those that take
part in one only, as many are drawn as there are, and their labels are shuffled among them.

``HeadEffects``: what every head does in every text of several conditions, and the tables made from it.

``S = (mean_1 + mean_2) / 2`` is what two conditions share, ``D = (mean_1 - mean_2) / 2`` what tells them apart; with
the induced condition first ``D > 0`` means larger there.

How concentrated effects are on few heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float

from mechrep.errors import InputError
from mechrep.figures import AXIS, counted, plain, styled
from mechrep.measures.head_scores import HeadScoreResult
from mechrep.results import check_count
from mechrep.stats import percentile_interval

if TYPE_CHECKING:
    import plotly.graph_objects as go


class ConditionDesign:
    """Coefficients of means and contrasts over texts of two conditions.

    Args:
        conditions: condition of each text.
        prompts: prompt that each text is from; a prompt stands at most once in each condition.
        first: the condition that counts positive in a difference.
        second: the other.

    Raises:
        InputError: a condition without texts, one prompt twice in a condition, one condition twice.

    Example:
        >>> design = ConditionDesign(["a", "a", "b", "b"], ["p", "q", "p", "r"], "a", "b")
        >>> design.mean("a").tolist(), design.half_difference().tolist()
        ([0.5, 0.5, 0.0, 0.0], [0.25, 0.25, -0.25, -0.25])
    """

    def __init__(self, conditions: Sequence[str], prompts: Sequence[str], first: str, second: str) -> None:
        self.first, self.second = first, second
        self.labels = np.array(conditions, dtype=object)
        self.n = {name: int((self.labels == name).sum()) for name in (first, second)}
        if first == second or not all(self.n.values()):
            raise InputError(
                f"conditions {first!r} and {second!r} among {sorted(set(conditions))}",
                "two conditions, each with at least one text",
                "build both from the same list of prompts and join them with Corpus.concatenate",
            )
        places: dict[str, dict[str, int]] = {}
        for place, (condition, prompt) in enumerate(zip(conditions, prompts, strict=True)):
            if condition in self.n and places.setdefault(prompt, {}).setdefault(condition, place) != place:
                raise InputError(
                    f"prompt {prompt!r} twice in {condition!r}", "each prompt once", "compare one builder at a time"
                )
        pairs = [(found[first], found[second]) for found in places.values() if len(found) == 2]
        self.pairs = np.array(pairs, dtype=int).reshape(-1, 2)
        self.alone = {
            name: np.array([f[name] for f in places.values() if len(f) == 1 and name in f], dtype=int)
            for name in (first, second)
        }

    def mean(self, condition: str) -> Float[np.ndarray, " text"]:
        """Coefficients of the mean over a condition."""
        return (self.labels == condition) / self.n[condition]

    def half_sum(self) -> Float[np.ndarray, " text"]:
        """Coefficients of ``S``, half the sum of the two means: what the conditions share."""
        return (self.mean(self.first) + self.mean(self.second)) / 2

    def half_difference(self) -> Float[np.ndarray, " text"]:
        """Coefficients of ``D``, half the difference of the two means: what tells them apart."""
        return (self.mean(self.first) - self.mean(self.second)) / 2

    def draws(self, draws: int = 2000, seed: int = 0) -> Float[np.ndarray, "draw text"]:
        """How often each text is drawn, for a bootstrap over prompts: multiply with any coefficients."""
        generator = np.random.default_rng(seed)
        counts = np.zeros((draws, len(self.labels)))
        for group in (self.pairs, self.alone[self.first], self.alone[self.second]):
            if len(group):
                times = generator.multinomial(len(group), [1 / len(group)] * len(group), size=draws)
                for column in group.reshape(len(group), -1).T:
                    counts[:, column] = times
        return counts

    def swaps(self, draws: int = 2000, seed: int = 0) -> Float[np.ndarray, "draw text"]:
        """Coefficients of ``D`` after the labels were swapped: what it would be if they meant nothing."""
        generator = np.random.default_rng(seed)
        coefficients = np.tile(self.half_difference(), (draws, 1))
        if len(self.pairs):
            kept = generator.integers(0, 2, (draws, len(self.pairs))).astype(bool)
            one, other = self.half_difference()[self.pairs].T
            coefficients[:, self.pairs[:, 0]] = np.where(kept, one, other)
            coefficients[:, self.pairs[:, 1]] = np.where(kept, other, one)
        alone = np.concatenate([self.alone[self.first], self.alone[self.second]])
        if len(alone):
            labels = np.tile(self.half_difference()[alone], (draws, 1))
            coefficients[:, alone] = generator.permuted(labels, axis=1)
        return coefficients

    def swapped(self, seed: int = 0) -> list[str]:
        """The labels of all texts after one such swap; those of other conditions are kept."""
        (coefficients,) = self.swaps(1, seed)
        labels = self.labels.copy()
        labels[coefficients > 0], labels[coefficients < 0] = self.first, self.second
        return labels.tolist()


def gini(effects: Float[np.ndarray, "*draw head"]) -> Float[np.ndarray, "*draw"]:
    """Gini coefficient of the sizes of the effects: 0 if all heads have the same, ``1 - 1 / H`` if one has all.

    With the sizes in rising order ``a_1 <= ... <= a_H``: ``sum_i (2 i - H - 1) a_i / (H sum_i a_i)``; NaN if all
    are zero.

    Example:
        >>> gini(np.array([[1.0, -1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 5.0]])).tolist()
        [0.0, 0.75]
    """
    sizes = np.sort(np.abs(np.asarray(effects, dtype=float)), axis=-1)
    n, total = sizes.shape[-1], np.asarray(sizes.sum(-1))
    ranks = 2 * np.arange(1, n + 1) - n - 1
    return np.divide(np.asarray(sizes @ ranks), n * total, out=np.full_like(total, np.nan), where=total > 0)


def effective_number(effects: Float[np.ndarray, "*draw head"]) -> Float[np.ndarray, "*draw"]:
    """Number of equally strong heads that would be as concentrated: ``exp(-sum_h p_h log p_h)``.

    ``p_h`` is the head's share of the summed sizes; NaN if all are zero.

    Example:
        >>> effective_number(np.array([[1.0, -1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 5.0]])).round(6).tolist()
        [4.0, 1.0]
    """
    sizes = np.abs(np.asarray(effects, dtype=float))
    total = sizes.sum(-1, keepdims=True)
    shares = np.divide(sizes, total, out=np.full_like(sizes, np.nan), where=total > 0)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.asarray(np.exp(-(shares * logs).sum(-1)))


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


_CELL = 34  # pixels per layer


def head_contrast_figure(effects: HeadEffects, first: str = FIRST, second: str = SECOND) -> go.Figure:
    """Maps of all heads: the mean effect in either condition, and ``D``, half of what they differ by.

    Args:
        effects: of a result's ``head_effects()``.
        first: the condition that counts positive in ``D``.
        second: the other.

    Raises:
        InputError: a condition without texts.

    Example:
        >>> values = np.array([[[3.0, 0.0]], [[0.0, 0.2]]])
        >>> figure = head_contrast_figure(HeadEffects(values, ["induced", "natural"], ["p", "p"], "made up"))
        >>> [trace.z.shape for trace in figure.data]
        [(1, 2), (1, 2), (1, 2)]
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    contrast = effects.contrast(first, second)
    shape = effects.values.shape[1:]
    maps = {first: effects.mean(first), second: effects.mean(second)}
    maps["D"], found = np.zeros(shape), np.zeros((*shape, 4))
    for row in contrast.to_dict("records"):
        place = (row["layer"], row["head"])
        maps["D"][place] = row["D"]
        found[place] = [row["D_low"], row["D_high"], row["fdr"], row["D"]]
    scale = max(float(np.abs(values).max()) for values in maps.values()) or 1.0
    titles = [first, second, f"D: half of ({first} - {second})"]
    figure = make_subplots(1, 3, subplot_titles=[plain(title) for title in titles], horizontal_spacing=0.07)
    for column, (name, values) in enumerate(maps.items(), start=1):
        extra = "; %{customdata[0]:.3f} to %{customdata[1]:.3f}, FDR %{customdata[2]:.3f}" if name == "D" else ""
        trace = go.Heatmap(
            z=values,
            zmin=-scale,
            zmax=scale,
            colorscale="RdBu",
            showscale=column == len(maps),
            customdata=found,
            hovertemplate="layer %{y}, head %{x}: %{z:.3f}" + extra + "<extra></extra>",
        )
        figure.add_trace(trace, row=1, col=column)
    figure.update_annotations(font_size=13)
    n = int(contrast[f"n_{first}"].iloc[0]), int(contrast[f"n_{second}"].iloc[0])
    titled = styled(
        figure,
        title=f"Heads in {first} and {second} repetition",
        subtitle=f"{effects.measure}; {counted(n[0], 'text')} and {counted(n[1], 'text')}",
        x="head",
        y="layer",
    )
    titled.update_xaxes(AXIS | {"title": {"text": "head"}, "dtick": 1, "showgrid": False})
    titled.update_yaxes(AXIS | {"dtick": 1, "showgrid": False})
    return titled.update_layout(height=max(320, shape[0] * _CELL + 200), margin={"t": 130})
