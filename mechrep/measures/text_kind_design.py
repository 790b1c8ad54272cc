"""How two kinds of text are compared head by head: clusters of texts are the unit, swapped labels are the placebo.

``S = (mean_1 + mean_2) / 2`` is what two kinds share, ``D = (mean_1 - mean_2) / 2`` what tells them apart; with induced
texts first, ``D > 0`` means larger there.  Texts of one prompt or of one family of loops are one cluster.  An interval
draws clusters anew.  A swap gives a cluster that has both kinds its two labels the other way round with chance 1/2, and
shuffles the labels of the others among them: whatever two *like* samples of this size differ by is in the swaps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from torch import Tensor

from mechrep.errors import InputError
from mechrep.figures import AXIS, counted, new_figure, plain, styled
from mechrep.guards import check_count
from mechrep.stats import percentile_interval

if TYPE_CHECKING:
    import plotly.graph_objects as go

Head = tuple[int, int]
Weights = Float[np.ndarray, "draw text"]
FIRST, SECOND = "induced", "natural"
LEVEL = 0.05
DRAWS, SWAPS = 2000, 10_000
_ROUNDING = 1e-5  # what float32 makes of a head that does nothing
_CELL = 34  # pixels per layer


class KindDesign:
    """Weights of texts in the means of two kinds: observed, of bootstrap samples, and with swapped labels.

    Args:
        text_kinds: kind of each text.
        clusters: cluster of each text.
        first: the kind that counts positive in a difference.
        second: the other.

    Raises:
        InputError: a kind without texts, or one kind twice.

    Example:
        >>> design = KindDesign(["a", "a", "b", "b"], ["p", "q", "p", "r"], "a", "b")
        >>> design.mean("a").tolist(), design.n
        ([0.5, 0.5, 0.0, 0.0], {'a': 2, 'b': 2})
    """

    def __init__(self, text_kinds: Sequence[str], clusters: Sequence[str], first: str, second: str) -> None:
        self.first, self.second = first, second
        self.labels = np.array(text_kinds, dtype=object)
        self.n = {name: int((self.labels == name).sum()) for name in (first, second)}
        if first == second or not all(self.n.values()):
            raise InputError(
                f"text kinds {first!r} and {second!r} among {sorted(set(text_kinds))}",
                "two kinds, each with at least one text",
                "build both from the same list of prompts, and compare one builder at a time",
            )
        self.is_first, used = np.asarray(self.labels == first), np.isin(self.labels, (first, second))
        names, self.cluster = np.unique(np.array(clusters, dtype=object).astype(str), return_inverse=True)
        has = np.zeros((2, len(names)), dtype=bool)
        has[0, self.cluster[self.is_first]] = has[1, self.cluster[used & ~self.is_first]] = True
        self.used, (ours, theirs) = used, has
        self.both, self.only_first, self.only_second = np.asarray(ours & theirs), ours & ~theirs, theirs & ~ours

    def mean(self, text_kind: str) -> Float[np.ndarray, " text"]:
        """Weights of the mean over a kind."""
        return np.asarray(self.labels == text_kind) / self.n[text_kind]

    def draws(self, draws: int = DRAWS, seed: int = 0) -> tuple[Weights, Weights]:
        """Weights of both means in bootstrap samples: as many clusters with both kinds, with the first, the second."""
        generator, times = np.random.default_rng(seed), np.zeros((draws, len(self.both)))
        for members in (self.both, self.only_first, self.only_second):
            n = int(members.sum())
            if n:
                times[:, members] = generator.multinomial(n, np.full(n, 1 / n), size=draws)
        counts = times[:, self.cluster]
        return _shares(counts * self.is_first), _shares(counts * (self.used & ~self.is_first))

    def swaps(self, swaps: int = SWAPS, seed: int = 0) -> tuple[Weights, Weights]:
        """Weights of both means with swapped labels."""
        first = self._swapped(swaps, seed)
        return _shares(first.astype(float)), _shares((self.used & ~first).astype(float))

    def swapped(self, seed: int = 0) -> list[str]:
        """The labels of all texts after one swap; those of other kinds are kept."""
        (first,) = self._swapped(1, seed)
        labels = self.labels.copy()
        labels[first], labels[self.used & ~first] = self.first, self.second
        return labels.tolist()

    def _swapped(self, swaps: int, seed: int) -> Bool[np.ndarray, "draw text"]:
        generator = np.random.default_rng(seed)
        turned = generator.integers(0, 2, (swaps, len(self.both))).astype(bool)
        alone = self.only_first | self.only_second
        given = np.zeros((swaps, len(self.both)), dtype=bool)
        given[:, alone] = generator.permuted(np.tile(self.only_first[alone], (swaps, 1)), axis=1)
        labels = np.where(self.both[self.cluster], self.is_first ^ turned[:, self.cluster], given[:, self.cluster])
        return labels & self.used


def _shares(counts: Weights) -> Weights:
    return counts / counts.sum(1, keepdims=True)


# --- numbers of all heads ---------------------------------------------------------------------------------------------


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


def common_part(
    one: Float[np.ndarray, "draw head"], other: Float[np.ndarray, "draw head"]
) -> Float[np.ndarray, " draw"]:
    """Part of the effect that the same heads carry: ``sum_h min(s_h, t_h)`` of the heads' shares ``s`` and ``t``.

    1 if all heads have the same shares of the summed sizes in both; 0 where one of the two needs no head; NaN where
    neither does.

    Example:
        >>> common_part(np.array([[3.0, 1.0]]), np.array([[0.0, -2.0]])).tolist()
        [0.25]
    """
    sizes = [np.abs(one), np.abs(other)]
    totals = [part.sum(1, keepdims=True) for part in sizes]
    shares = [
        np.divide(part, total, out=np.zeros_like(part), where=total > 0)
        for part, total in zip(sizes, totals, strict=True)
    ]
    return np.where((totals[0] + totals[1])[:, 0] > 0, np.minimum(*shares).sum(1), np.nan)


def leading(sizes: Float[np.ndarray, "draw head"], k: int) -> Bool[np.ndarray, "draw head"]:
    """Which heads are the first ``k``; fewer where fewer do anything at all."""
    order = np.argsort(-sizes, axis=1, kind="stable")[:, :k]
    chosen = np.zeros(sizes.shape, dtype=bool)
    np.put_along_axis(chosen, order, True, axis=1)
    return chosen & (sizes > _ROUNDING)


def _audible(effects: Float[np.ndarray, "draw head"]) -> Float[np.ndarray, "draw head"]:
    """Sizes, with what is mere rounding set to zero."""
    return np.where(np.abs(effects) > _ROUNDING, np.abs(effects), 0.0)


def _swap_p_values(
    difference: Float[np.ndarray, "draw head"], silent: Bool[np.ndarray, " head"]
) -> Float[np.ndarray, "draw head"]:
    """For every row its rank in size among all rows: the p-value it would have if it were the observed one."""
    from scipy.stats import rankdata

    sizes = np.abs(difference).round(12)
    return np.where(silent, 1.0, rankdata(-sizes, method="max", axis=0) / len(sizes))


def _rejected(p_values: Float[np.ndarray, "draw head"]) -> Float[np.ndarray, " draw"]:
    """How many heads Benjamini and Hochberg's procedure finds in each row."""
    n = p_values.shape[1]
    below = np.sort(p_values, axis=1) <= LEVEL * np.arange(1, n + 1) / n
    return np.where(below.any(1), n - np.argmax(below[:, ::-1], axis=1), 0).astype(float)


# --- one number per text and head -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """One number of how two kinds of text differ in their heads.

    Attributes:
        value: observed.
        draws: of bootstrap samples; none where there is no interval.
        swaps: with swapped labels.
    """

    value: float
    draws: Float[np.ndarray, " draw"]
    swaps: Float[np.ndarray, " swap"]

    @property
    def interval(self) -> tuple[float, float]:
        """Central 95 % of the bootstrap samples."""
        return percentile_interval(self.draws[~np.isnan(self.draws)].tolist())


@dataclass(frozen=True, eq=False)
class HeadEffects:
    """One number per text and head.

    Attributes:
        values: the effects ``[text layer head]``, in the unit of the measure; NaN for a text that has none.
        text_kinds: kind of each text.
        clusters: cluster of each text.
        measure: what the values are.
        ids: of the texts, where they are known.

    Example:
        >>> values = np.array([[[3.0, 0.0]], [[3.1, 0.1]], [[0.0, 0.2]], [[0.1, 0.1]]])
        >>> effects = HeadEffects(values, ["induced"] * 2 + ["natural"] * 2, ["p", "q", "p", "q"], "made up")
        >>> effects.top(1, "induced"), float(effects.contrast()["D"][0].round(3))
        ([(0, 0)], 1.5)
    """

    values: Float[np.ndarray, "text layer head"]
    text_kinds: Sequence[str]
    clusters: Sequence[str]
    measure: str
    ids: Sequence[str] = ()

    def mean(self, text_kind: str) -> Float[np.ndarray, "layer head"]:
        """Mean over the texts of a kind.

        Raises:
            InputError: a kind without texts.
        """
        chosen = self.values[np.array(self.text_kinds, dtype=object) == text_kind]
        chosen = chosen[~np.isnan(chosen).any((1, 2))]
        if not len(chosen):
            raise InputError(
                f"text kind {text_kind!r} without texts that have a value",
                f"one of {sorted(set(self.text_kinds))}",
                "add texts of that kind, or look at fewer repetitions",
            )
        return chosen.mean(0)

    def top(self, k: int, text_kind: str) -> list[Head]:
        """The ``k`` heads of the largest mean effect of either sign.

        Raises:
            InputError: ``k`` larger than the number of heads, or a kind without texts.
        """
        sizes = np.abs(self.mean(text_kind))
        check_count(k, sizes.size, "heads")
        order = np.argsort(-sizes, axis=None, kind="stable")[:k]
        return [divmod(int(place), sizes.shape[1]) for place in order]

    def select(self, ids: Sequence[str]) -> HeadEffects:
        """The texts of these ids, in their order; ids that are not there are left out."""
        place = {name: number for number, name in enumerate(self.ids)}
        keep = [place[name] for name in ids if name in place]
        kinds, clusters, names = ([list(c)[i] for i in keep] for c in (self.text_kinds, self.clusters, self.ids))
        return replace(self, values=self.values[keep], text_kinds=kinds, clusters=clusters, ids=names)

    def contrast(self, first: str = FIRST, second: str = SECOND, *, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
        """One row per head, the largest ``|D|`` first.

        Columns: ``layer, head``; the mean in either kind, ``S`` and ``D``, each with its 95 % interval (``_low``,
        ``_high``: bootstrap over clusters); ``p`` of ``D``, the share of 10,000 swaps in which it is as large (the
        observed one among them), 1 where nothing exceeds rounding; ``q``, the same for having looked at all heads
        (Benjamini and Hochberg); ``n_<kind>``, texts.

        Args:
            first: the kind that counts positive in ``D``.
            second: the other.
            draws: of the bootstrap.
            seed: of draws and swaps.

        Raises:
            InputError: a kind without texts.
        """
        from scipy.stats import false_discovery_control

        values, design = self._known(first, second)
        means = [np.vstack([design.mean(kind) @ values, drawn @ values]) for kind, drawn in
                 zip((first, second), design.draws(draws, seed), strict=True)]  # fmt: skip
        frame = pd.DataFrame(
            [divmod(place, self.values.shape[2]) for place in range(values.shape[1])], columns=["layer", "head"]
        )
        parts = {first: means[0], second: means[1], "S": (means[0] + means[1]) / 2, "D": (means[0] - means[1]) / 2}
        for name, table in parts.items():
            low, high = np.percentile(table[1:], [2.5, 97.5], axis=0)
            frame[name], frame[f"{name}_low"], frame[f"{name}_high"] = table[0], low, high
        swapped = [weights @ values for weights in design.swaps(seed=seed)]
        difference = np.vstack([parts["D"][:1], (swapped[0] - swapped[1]) / 2])
        frame["p"] = _swap_p_values(difference, np.abs(values).max(0) < _ROUNDING)[0]
        frame["q"] = false_discovery_control(frame["p"].to_numpy(), method="bh")
        for name in (first, second):
            frame[f"n_{name}"] = design.n[name]
        return frame.iloc[np.argsort(-frame["D"].abs().to_numpy(), kind="stable")].reset_index(drop=True)

    def compare(
        self, k: int, first: str = FIRST, second: str = SECOND, *, swaps: int = SWAPS, seed: int = 0
    ) -> dict[str, Compared]:
        """How far two kinds differ in their heads, by the sizes of the mean effects of all heads.

        ``common``: :func:`common_part`.  ``rank_correlation``: Spearman's; idle heads count as much as those that work.
        ``shared_top``: heads among the first ``k`` in both.  ``gini`` and ``effective_heads``: of the first kind minus
        of the second.  ``differing_heads``: heads with ``q`` below 0.05 in :meth:`contrast`.

        Args:
            k: heads that lead.
            first: a kind.
            second: the other.
            swaps: of the labels.
            seed: of draws and swaps.

        Raises:
            InputError: a kind without texts, ``k`` larger than the number of heads.
        """
        values, design = self._known(first, second)
        check_count(k, values.shape[1], "heads")
        means = [[weights @ values for weights in pair] for pair in (
            [design.mean(first)[None], design.mean(second)[None]], design.draws(seed=seed), design.swaps(swaps, seed)
        )]  # fmt: skip
        observed, drawn, swapped = (_numbers(one, other, k) for one, other in means)
        found = {name: Compared(float(value[0]), drawn[name], swapped[name]) for name, value in observed.items()}
        difference = np.vstack([(one - other) / 2 for one, other in (means[0], means[2])])
        counts = _rejected(_swap_p_values(difference, np.abs(values).max(0) < _ROUNDING))
        return found | {"differing_heads": Compared(float(counts[0]), np.empty(0), counts[1:])}

    def concentration(self, *, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
        """How concentrated the mean effects are: one row per kind and measure, with a bootstrap interval.

        Columns: ``text_kind, measure`` (``gini``, ``effective_heads``, ``effective_share`` of all heads), ``value, low,
        high, n``.  Noise of few texts spreads effects over heads: compare kinds of like ``n``.
        """
        rows = []
        for kind in dict.fromkeys(self.text_kinds):
            self.mean(kind)  # refuses a kind without a value
            flat = self.values.reshape(len(self.values), -1)
            here = np.asarray(np.array(self.text_kinds, dtype=object) == kind) & ~np.isnan(flat).any(1)
            texts, own = flat[here], np.unique(np.array(self.clusters)[here], return_inverse=True)[1]
            n = int(own.max()) + 1
            times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)[:, own]
            means = _audible(np.vstack([texts.mean(0)[None], _shares(times.astype(float)) @ texts]))
            for name, function, scale in (
                ("gini", gini, 1.0),
                ("effective_heads", effective_number, 1.0),
                ("effective_share", effective_number, 1 / flat.shape[1]),
            ):
                one = function(means) * scale
                found = Compared(float(one[0]), one[1:], np.empty(0))
                rows.append((kind, name, found.value, *found.interval, len(texts)))
        return pd.DataFrame(rows, columns=["text_kind", "measure", "value", "low", "high", "n"])

    def overlap(self, scores: Mapping[str, Float[Tensor, "layer head"]], k: int) -> pd.DataFrame:
        """Are the first ``k`` heads of each kind those that score highest, for instance on induction?

        Columns: ``text_kind, score, shared`` (of the first ``k`` by effect and the first ``k`` by score), ``chance``,
        ``rank_correlation`` (Spearman's, of the sizes of the effects with the scores of all heads).

        Args:
            scores: of all heads of the same model, by name.
            k: how many.

        Raises:
            InputError: scores of another number of heads, ``k`` larger than that number.
        """
        rows = []
        for kind in dict.fromkeys(self.text_kinds):
            sizes = np.abs(self.mean(kind)).reshape(1, -1)
            check_count(k, sizes.size, "heads")
            for name, score in scores.items():
                if tuple(score.shape) != self.values.shape[1:]:
                    raise InputError(
                        f"scores of {tuple(score.shape)} heads for effects of {self.values.shape[1:]}",
                        "scores of the same model", "measure both on one model",
                    )  # fmt: skip
                other = score.double().numpy().reshape(1, -1)
                best = np.argsort(-np.nan_to_num(other[0], nan=-np.inf), kind="stable")[:k]
                shared = int(leading(sizes, k)[0, best].sum())
                rows.append((kind, name, shared, k * k / sizes.size, float(rank_correlation(sizes, other)[0])))
        return pd.DataFrame(rows, columns=["text_kind", "score", "shared", "chance", "rank_correlation"])

    def swapped(self, seed: int = 0, first: str = FIRST, second: str = SECOND) -> HeadEffects:
        """The same effects with the labels of two kinds swapped at random: every contrast should vanish."""
        return replace(self, text_kinds=KindDesign(self.text_kinds, self.clusters, first, second).swapped(seed))

    def _known(self, first: str, second: str) -> tuple[Float[np.ndarray, "text head"], KindDesign]:
        """The texts of two kinds that have a value."""
        flat = self.values.reshape(len(self.values), -1)
        missing = np.asarray(np.isnan(flat).any(1))
        keep = [i for i, kind in enumerate(self.text_kinds) if kind in (first, second) and not missing[i]]
        kinds, clusters = ([list(column)[i] for i in keep] for column in (self.text_kinds, self.clusters))
        return flat[keep], KindDesign(kinds, clusters, first, second)


def _numbers(
    one: Float[np.ndarray, "draw head"], other: Float[np.ndarray, "draw head"], k: int
) -> dict[str, Float[np.ndarray, " draw"]]:
    sizes = [_audible(one), _audible(other)]
    return {
        "common": common_part(*sizes),
        "rank_correlation": rank_correlation(*sizes),
        "shared_top": (leading(sizes[0], k) & leading(sizes[1], k)).sum(1).astype(float),
        "gini": gini(sizes[0]) - gini(sizes[1]),
        "effective_heads": effective_number(sizes[0]) - effective_number(sizes[1]),
    }


def agreement(one: HeadEffects, other: HeadEffects, *, k: int = 3) -> pd.DataFrame:
    """Do two ways of measuring heads rank and sign them alike?  On the texts that both have.

    Columns: ``text_kind``; ``rank_correlation``, Spearman's, over all heads, of the effects with their signs;
    ``top_shared`` of the first ``k`` by size; ``signs``, the share of the ``k`` largest of the first way whose sign is
    the same; ``n``.

    Raises:
        InputError: no text in common.
    """
    first, second = one.select(other.ids), other.select(one.ids)
    if not first.ids:
        raise InputError("two tables without a text in common", "the same texts", "measure both on them")
    rows = []
    for kind in dict.fromkeys(second.text_kinds):
        means = [table.mean(kind).reshape(1, -1) for table in (first, second)]
        tops = [set(np.argsort(-np.abs(mean[0]), kind="stable")[:k].tolist()) for mean in means]
        same = [np.sign(means[0][0, place]) == np.sign(means[1][0, place]) for place in tops[0]]
        (ranks,) = rank_correlation(*means)
        rows.append((kind, float(ranks), len(tops[0] & tops[1]), float(np.mean(same)), second.text_kinds.count(kind)))
    return pd.DataFrame(rows, columns=["text_kind", "rank_correlation", "top_shared", "signs", "n"])


def head_contrast_figure(effects: HeadEffects, first: str = FIRST, second: str = SECOND) -> go.Figure:
    """Maps of all heads: the mean effect in either kind, and ``D``, half of what they differ by.

    Args:
        effects: of all heads.
        first: the kind that counts positive in ``D``.
        second: the other.

    Raises:
        InputError: a kind without texts.

    Example:
        >>> values = np.array([[[3.0, 0.0]], [[0.0, 0.2]]])
        >>> figure = head_contrast_figure(HeadEffects(values, ["induced", "natural"], ["p", "p"], "made up"))
        >>> [trace.z.shape for trace in figure.data]
        [(1, 2), (1, 2), (1, 2)]
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    contrast = effects.contrast(first, second).sort_values(["layer", "head"])
    shape = effects.values.shape[1:]
    maps = {name: contrast[name].to_numpy().reshape(shape) for name in (first, second, "D")}
    found = contrast[["D_low", "D_high", "q"]].to_numpy().reshape(*shape, 3)
    scale = max(float(np.abs(values).max()) for values in maps.values()) or 1.0
    titles = [plain(first), plain(second), plain(f"D: half of ({first} - {second})")]
    figure = make_subplots(1, 3, subplot_titles=titles, horizontal_spacing=0.07, figure=new_figure())
    for column, (name, values) in enumerate(maps.items(), start=1):
        extra = "; %{customdata[0]:.3f} to %{customdata[1]:.3f}, q = %{customdata[2]:.3f}" if name == "D" else ""
        trace = go.Heatmap(
            z=values, zmin=-scale, zmax=scale, colorscale="RdBu", showscale=column == len(maps), customdata=found,
            hovertemplate="layer %{y}, head %{x}: %{z:.3f}" + extra + "<extra></extra>",
        )  # fmt: skip
        figure.add_trace(trace, row=1, col=column)
    figure.update_annotations(font_size=13)
    texts = " and ".join(counted(int(contrast[f"n_{name}"].iloc[0]), f"{name} text") for name in (first, second))
    title = f"Heads in {first} and {second} repetition"
    titled = styled(figure, title=title, subtitle=f"{effects.measure}; {texts}", x="head", y="layer")
    titled.update_xaxes(AXIS | {"title": {"text": "head"}, "dtick": 1, "showgrid": False})
    titled.update_yaxes(AXIS | {"dtick": 1, "showgrid": False})
    return titled.update_layout(height=max(320, shape[0] * _CELL + 200), margin={"t": 130})
