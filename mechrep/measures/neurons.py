"""``RepetitionNeurons``: which neurons rise when a loop begins.

For neuron n, over texts x with windows N_x (normal) and R_x (repetition) around the onset, see
:mod:`mechrep.measures.neurons`::

    delta_n = sum_x sum_{i in R_x} a_n(x, i) / sum_x |R_x|  -  sum_x sum_{i in N_x} a_n(x, i) / sum_x |N_x|

The state is sums over texts, so texts stream through and any split of the corpus gives the same numbers.

``RepetitionNeuronResult``: what a run of :class:`~mechrep.measures.neurons.RepetitionNeurons` found.

Which positions of a looping text count as normal and which as repetition.

``s`` is the onset (start of the second copy), ``first`` the start of the first copy, ``r`` the width.

=============  ====================  ======================  =============================================
window         normal                repetition              note
=============  ====================  ======================  =============================================
published      [s-1-r, s-1)          [s-1, s-1+r)            released code: from the position predicting s
paper_form     [s-r, s)              [s, s+r)                as printed
clean          [first-r, first)      [s-1, s-1+r)            before the *first* copy
=============  ====================  ======================  =============================================

The published normal window usually holds the first copy of the loop itself; the clean one never does.  Windows are
clipped at the ends of the text.

Figures of a :class:`~mechrep.measures.neurons.RepetitionNeuronResult`: round the onset, sorted, by layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechrep.cache.corpus_cache import Analyzer, Batch
from mechrep.errors import InputError, NothingFoundError
from mechrep.figures import ACCENT, DASHES, INK, SEQUENCE, counted, new_figure, styled, translucent
from mechrep.guards import Count, check_count, guarded, one_of, within
from mechrep.models.anatomy import Anatomy, Site
from mechrep.models.units import empty_table
from mechrep.provenance import Provenance
from mechrep.results import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

Score = Literal["delta", "t", "dprime"]
PUBLISHED_SHARE = 0.005  # the published set: the first int(0.005 N) neurons of the ranking


@dataclass(frozen=True, eq=False)
class RepetitionNeuronResult(Result):
    """Rise of every neuron at the onset of loops, with its uncertainty.

    Attributes:
        delta: repetition mean minus normal mean, in units of the activation, pooled over positions.
        normal_mean: mean activation in the normal window.
        repetition_mean: mean activation in the repetition window.
        normal_sd: standard deviation over positions of the normal window.
        repetition_sd: the same for the repetition window.
        delta_published: ``delta`` with the published normal window.
        delta_clean: ``delta`` with the window before the first copy.
        standard_error: of the mean over texts of the per-text difference (the text is the unit).
        t: that mean over its standard error; infinite where all texts agree exactly.
        dprime: ``delta`` over the root mean of the two variances: an effect size without unit.
        profile: mean activation at offsets ``-r .. r`` from the position that predicts the onset token.
        n_texts: texts used.
        n_dropped: texts of the corpus that had no onset or no normal window.
        r: width of the windows.
        texts: ids of the texts used; tests of these neurons must use other texts.
        normal_routed: in mixtures of experts, the share of the normal window's tokens that each expert is sent.
        repetition_routed: the same of the repetition window.
        d_expert: neurons of one routed expert; 0 in dense models.  Neuron ``n`` of expert ``e`` is number
            ``e * d_expert + n`` of its layer, and 0 where a token is not sent to the expert: all means above are over
            all tokens.
    """

    delta: Float[Tensor, "layer neuron"]
    normal_mean: Float[Tensor, "layer neuron"]
    repetition_mean: Float[Tensor, "layer neuron"]
    normal_sd: Float[Tensor, "layer neuron"]
    repetition_sd: Float[Tensor, "layer neuron"]
    delta_published: Float[Tensor, "layer neuron"]
    delta_clean: Float[Tensor, "layer neuron"]
    standard_error: Float[Tensor, "layer neuron"]
    t: Float[Tensor, "layer neuron"]
    dprime: Float[Tensor, "layer neuron"]
    profile: Float[Tensor, "layer offset neuron"]
    n_texts: int
    n_dropped: int
    r: int
    texts: Sequence[str]
    normal_routed: Float[Tensor, "mixture expert"] = field(default_factory=lambda: torch.zeros(0, 0))
    repetition_routed: Float[Tensor, "mixture expert"] = field(default_factory=lambda: torch.zeros(0, 0))
    d_expert: int = 0

    component: ClassVar[str] = "neurons"
    ranked_by: ClassVar[str] = "delta"

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, Tensor],
        provenance: Provenance,
        r: int,
        texts: Sequence[str],
        dropped: int,
        d_expert: int = 0,
    ) -> RepetitionNeuronResult:
        """Turn sums into means; a window without a single position gives NaN."""
        counts = state["counts"]
        normal, repetition, published, clean = (
            state[f"{name}_sum"] / counts[i] for i, name in enumerate(("normal", "repetition", "published", "clean"))
        )
        variances = [
            (state[f"{name}_squares"] / counts[i] - mean.square()).clamp_min(0)
            for i, (name, mean) in enumerate((("normal", normal), ("repetition", repetition)))
        ]
        n = state["texts"].item()
        mean = state["text_sum"] / n
        # Bessel's correction; below rounding error the texts agree exactly and the variance is zero.
        spread = (state["text_squares"] / n - mean.square()).clamp_min(0)
        spread = torch.where(spread < 1e-12 * (state["text_squares"] / n), 0.0, spread)
        error = (spread / (n - 1)).sqrt() if n > 1 else torch.full_like(mean, torch.nan)
        delta = repetition - normal
        profile = state["profile_sum"] / state["profile_count"][None, :, None]
        tensors = {
            "delta": delta,
            "normal_mean": normal,
            "repetition_mean": repetition,
            "normal_sd": variances[0].sqrt(),
            "repetition_sd": variances[1].sqrt(),
            "delta_published": repetition - published,
            "delta_clean": repetition - clean,
            "standard_error": error,
            "t": _ratio(mean, error),
            "dprime": _ratio(delta, ((variances[0] + variances[1]) / 2).sqrt()),
            "profile": profile,
        }
        if d_expert:
            tensors |= {name: state[name] / counts[i] for i, name in enumerate(("normal_routed", "repetition_routed"))}
        floats = {name: value.float() for name, value in tensors.items()}
        facts: dict[str, Any] = {"n_texts": int(n), "n_dropped": dropped, "r": r, "texts": list(texts)}
        return cls(provenance, **floats, **facts, d_expert=d_expert)

    @property
    def n_neurons(self) -> int:
        """Neurons in the whole model."""
        return int((~self.delta.isnan()).sum()) or self.delta.numel()

    @property
    def published_k(self) -> int:
        """Size of the published set, ``int(0.005 N)``."""
        return int(PUBLISHED_SHARE * self.n_neurons)

    @guarded
    def ranking(self, by: str = "delta") -> list[tuple[int, int]]:
        """All ``(layer, neuron)`` pairs, highest score first; ties keep the order of the flat index.

        Raises:
            InputError: another score than ``"delta"`` (published), ``"t"`` or ``"dprime"``.
        """
        one_of("score", by, ("delta", "t", "dprime"))
        return super().ranking(by)

    @guarded
    def top(self, k: int, score: Score = "delta") -> list[tuple[int, int]]:
        """The ``k`` neurons that rise most.

        Args:
            k: how many.
            score: ``"delta"`` (published), ``"t"`` or ``"dprime"``.

        Raises:
            InputError: ``k`` larger than the number of neurons.
        """
        check_count(k, self.n_neurons, "neurons")
        return self.ranking(score)[:k]

    @guarded
    def routed(self, window: Literal["normal", "repetition"]) -> Float[Tensor, "layer neuron"]:
        """Share of a window's tokens that go through each neuron: 1, less for neurons of routed experts.

        The mean activation over the share is the mean *where routed*: over the tokens that the expert is sent.

        Args:
            window: which.
        """
        share = torch.where(self.delta.isnan(), torch.nan, 1.0)
        table = self.normal_routed if window == "normal" else self.repetition_routed
        for layer in range(len(table)):
            own = table[layer][~table[layer].isnan()].repeat_interleave(self.d_expert)
            share[layer, : len(own)] = own
        return share

    def to_frame(self) -> pd.DataFrame:
        """One row per neuron, the one that rises most first.

        In mixtures of experts also ``expert`` (-1 for neurons that every token goes through), ``neuron_of_expert``, and
        for both windows ``routed``, the share of tokens that the expert is sent, and the mean ``where_routed``.
        """
        frame = super().to_frame()
        frame = frame[frame["delta"].notna()] if frame["delta"].notna().any() else frame
        if not self.d_expert:
            return frame.reset_index(drop=True)
        layers, neurons = frame["layer"].to_numpy(), frame["neuron"].to_numpy()
        routed = neurons < self.d_expert * (~self.normal_routed.isnan()).sum(1).numpy()[layers]
        frame["expert"] = np.where(routed, neurons // self.d_expert, -1)
        frame["neuron_of_expert"] = np.where(routed, neurons % self.d_expert, neurons)
        for window in ("normal", "repetition"):
            share = self.routed(window).numpy()[layers, neurons]
            frame[f"{window}_routed"] = share
            frame[f"{window}_where_routed"] = np.where(
                share > 0, frame[f"{window}_mean"] / np.maximum(share, 1e-30), np.nan
            )
        return frame.reset_index(drop=True)

    @guarded
    def layer_counts(self, k: int | None = None) -> list[int]:
        """How many of the top ``k`` (default: the published share) lie in each layer; those that fall are skipped."""
        counts = [0] * self.delta.shape[0]
        for layer, neuron in self.top(self.published_k if k is None else k):
            if self.delta[layer, neuron] >= 0:
                counts[layer] += 1
        return counts

    @guarded
    def plot(self, k: int = 4) -> go.Figure:
        """Activation of the top ``k`` neurons round the onset."""
        return plot_onset_profile(self, k=k)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """``above / below``; 0 where both vanish, signed infinity where only the divisor does."""
    return torch.where(above == 0, torch.where(below.isnan(), below, 0.0), above / below)


Window = Literal["published", "paper_form", "clean"]


@dataclass(frozen=True)
class WindowPositions:
    """Positions of a batch that are looked at, and what each counts for.

    Columns are first ``2 r + 1`` offsets from ``s - 1`` (``-r .. r``), then the ``r`` positions before ``first``.

    Attributes:
        index: positions ``[text column]``, clamped into the text.
        valid: whether the position exists in the text.
        normal: weight 1 where the column belongs to the normal window of the text.
        repetition: the same for the repetition window.
        published: the same for the published normal window.
        clean: the same for the clean normal window.
    """

    index: Int[Tensor, "text column"]
    valid: Bool[Tensor, "text column"]
    normal: Float[Tensor, "text column"]
    repetition: Float[Tensor, "text column"]
    published: Float[Tensor, "text column"]
    clean: Float[Tensor, "text column"]


def window_positions(
    onset: Int[Tensor, " text"], first: Int[Tensor, " text"], lengths: Int[Tensor, " text"], r: int, window: Window
) -> WindowPositions:
    """Positions and weights of a batch; see the table at the top of this module.

    Example:
        >>> onset, first, length = torch.tensor([5]), torch.tensor([2]), torch.tensor([9])
        >>> positions = window_positions(onset, first, length, 2, "published")
        >>> positions.index[0][positions.normal[0] > 0].tolist()
        [2, 3]
        >>> positions.index[0][positions.repetition[0] > 0].tolist()
        [4, 5]
    """
    offsets = torch.arange(-r, r + 1, device=onset.device)
    before_first = torch.arange(-r, 0, device=onset.device)
    index = torch.cat([(onset - 1)[:, None] + offsets, first[:, None] + before_first], dim=1)
    valid = (index >= 0) & (index < lengths[:, None])
    from_onset = torch.cat([offsets, torch.full_like(before_first, 2 * r)])  # 2 r: in no window counted from s - 1
    is_clean = torch.cat([torch.zeros_like(offsets), torch.ones_like(before_first)]).bool()
    shift = 1 if window == "paper_form" else 0
    repetition = (from_onset >= shift) & (from_onset < r + shift)
    published = (from_onset >= -r) & (from_onset < 0)
    normal = is_clean if window == "clean" else (from_onset >= shift - r) & (from_onset < shift)
    weights = [(valid & columns[None]).float() for columns in (normal, repetition, published, is_clean)]
    return WindowPositions(index.clamp(min=0).minimum(lengths[:, None] - 1), valid, *weights)


def check_onsets(frame: pd.DataFrame, lengths: Int[Tensor, " text"]) -> None:
    """Refuse loops that do not lie in their texts; the facts may come from the user.

    Raises:
        InputError: naming the first text without ``0 <= start < onset < length``.
    """
    facts = zip(frame["id"], frame["start"], frame["onset"], lengths.tolist(), strict=True)
    for name, first, onset, length in facts:
        if not 0 <= first < onset < length:
            raise InputError(
                f"text {name!r} of {length} tokens with a loop from {first} and onset {onset}",
                "0 <= start < onset < length",
                "mark cycles with corpus.with_cycles()",
            )


def usable_texts(frame: pd.DataFrame, window: Window) -> np.ndarray:
    """Texts with an onset and at least one position in their normal window, as a boolean mask.

    A text that begins with its loop (``first = 0``) has no clean window; one whose onset is at position 1 or earlier
    has no published one.
    """
    if "onset" not in frame or "start" not in frame:
        return np.zeros(len(frame), dtype=bool)
    onset = frame["onset"].astype("Float64").fillna(-1).to_numpy(dtype=float)
    first = frame["start"].astype("Float64").fillna(-1).to_numpy(dtype=float)
    begins = first if window == "clean" else onset - (0 if window == "paper_form" else 1)
    return (onset >= 1) & (first >= 0) & (begins >= 1)


_PRESET_WINDOWS: dict[str, Window] = {"hiraoka2025": "published", "mechrep": "clean"}


class RepetitionNeurons(Analyzer[RepetitionNeuronResult]):
    """Finds repetition neurons: for each neuron the rise of its activation when the loop begins.

    Args:
        preset: ``"hiraoka2025"`` takes the normal window of the released code, which usually contains the first copy
            of the loop; ``"mechrep"`` (default) takes the positions before the first copy.  Both report the other
            window's difference beside their own, standard errors and effect sizes.
        window: overrides the preset's window.
        r: width of the windows in tokens.
        site: ``GATE_ACT`` (default, as in the paper) or ``MLP_POST``.

    Raises:
        InputError: an unknown preset, window or site, or ``r`` below 1.
        NothingFoundError: when run on a corpus in which no text has an onset and a normal window.

    Source: Hiraoka & Inui 2025, *Repetition Neurons* (arXiv 2410.13497).

    Limits: the windows see ``r`` tokens; a neuron that rises later is not found.  A rise is a correlation: what the
    neuron does is shown by :func:`mechrep.studies.deactivation_sweep`.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> texts = [[0, *range(9, 29), *[40, 41, 42, 43] * 5], [0, *range(60, 90), *[7, 8, 9] * 6]]
        >>> corpus = mechrep.Corpus.from_tokens(texts, model=model).with_cycles()
        >>> result = mechrep.CorpusCache(model, corpus).run(RepetitionNeurons())
        >>> len(result.top(5)), result.delta.shape
        (5, torch.Size([4, 352]))
    """

    sites: ClassVar[frozenset[Site]] = frozenset({Site.GATE_ACT})

    @guarded
    def __init__(
        self, preset: str = "mechrep", *, window: Window | None = None, r: Count = 30, site: Site | str = Site.GATE_ACT
    ) -> None:
        one_of("preset", preset, _PRESET_WINDOWS)
        if site not in (Site.GATE_ACT, Site.MLP_POST):  # a Site equals its own value
            raise InputError(f"site {str(site)!r}", "gate_act or mlp_post", "choose one of these")
        self.preset, self.r, self.site = preset, r, Site(site)
        self.window: Window = window or _PRESET_WINDOWS[preset]
        self.sites = frozenset({self.site})  # pyright: ignore[reportAttributeAccessIssue]
        self.state = {}

    @property
    def config(self) -> dict[str, Any]:
        """Preset, window, width and site."""
        return {"preset": self.preset, "window": self.window, "r": self.r, "site": self.site.value}

    def prepare(self, anatomy: Anatomy, frame: pd.DataFrame) -> None:
        """Empty sums for this model's neurons; refuses a corpus without a usable looping text."""
        usable = usable_texts(frame, self.window)
        if not usable.any():
            raise NothingFoundError(
                f"{len(frame)} texts, none with an onset and a {self.window} window before it",
                "looping texts that are longer than the window's edge",
                "mark cycles with corpus.with_cycles(), collect loops with mechrep.generation.collect_loops, or choose "
                "another window",
            )
        self._ids = dict.fromkeys(frame["id"][usable])
        self._dropped = set(frame["id"][~usable])
        columns = 2 * self.r + 1
        names = ("normal_sum", "repetition_sum", "published_sum", "clean_sum", "normal_squares", "repetition_squares")
        self.state = {name: empty_table(anatomy, "neurons") for name in (*names, "text_sum", "text_squares")}
        self.state["profile_sum"] = empty_table(anatomy, "neurons")[:, None].repeat(1, columns, 1)
        self.state["profile_count"] = torch.zeros(columns, dtype=torch.float64)
        self.state["counts"] = torch.zeros(4, dtype=torch.float64)  # positions: normal, repetition, published, clean
        self.state["texts"] = torch.zeros(1, dtype=torch.float64)
        self._d_expert = anatomy.d_expert if anatomy.has(Site.ROUTER) else 0
        if self._d_expert:
            self.sites = frozenset({self.site, Site.ROUTER})  # pyright: ignore[reportAttributeAccessIssue]
            absent = torch.arange(max(anatomy.experts)) >= torch.tensor(anatomy.experts)[:, None]
            for name in ("normal_routed", "repetition_routed"):
                self.state[name] = torch.zeros(absent.shape, dtype=torch.float64).masked_fill(absent, torch.nan)
        self._positions: tuple[Batch, Tensor, WindowPositions] | None = None

    def _windows(self, batch: Batch) -> tuple[Tensor, WindowPositions]:
        """Rows of the batch that count, and their positions; worked out once per batch, not once per layer."""
        if self._positions is None or self._positions[0] is not batch:
            mask = usable_texts(batch.frame, self.window)
            rows = torch.from_numpy(mask.nonzero()[0]).to(batch.tokens.device)
            facts = batch.frame.loc[mask]
            check_onsets(facts, batch.lengths[rows])
            onset, first = (
                torch.tensor(facts[column].astype(int).to_numpy(), device=rows.device) for column in ("onset", "start")
            )
            self._positions = (batch, rows, window_positions(onset, first, batch.lengths[rows], self.r, self.window))
        return self._positions[1], self._positions[2]

    def observe(self, activation: Tensor, site: Site, layer: int, batch: Batch) -> None:
        """Add one layer of one batch."""
        rows, at = self._windows(batch)
        if not len(rows):
            return
        if site is Site.ROUTER:
            sent = (activation[rows.to(activation.device)[:, None], at.index.to(activation.device)] != 0).double().cpu()
            for name, weights in (("normal_routed", at.normal), ("repetition_routed", at.repetition)):
                self.state[name][layer] += torch.einsum("tc,tce->e", weights.double().cpu(), sent)
            return
        device = activation.device  # the layers of a spread model lie on several
        # [text column neuron]: only what the windows need; in float64, so that equal values have no variance (Apple's
        # GPUs have none).
        wide = torch.float32 if device.type == "mps" else torch.float64
        seen = activation[rows.to(device)[:, None], at.index.to(device)].to(wide)
        weights = torch.stack([at.normal, at.repetition, at.published, at.clean], dim=1).to(seen)
        sums = torch.bmm(weights, seen)  # [text window neuron]
        state, columns = self.state, 2 * self.r + 1
        for window, name in enumerate(("normal", "repetition", "published", "clean")):
            state[f"{name}_sum"][layer] += sums[:, window].sum(0).cpu()
        squares = (weights[:, :2].transpose(0, 1).flatten(1) @ seen.square().flatten(0, 1)).cpu()
        state["normal_squares"][layer] += squares[0]
        state["repetition_squares"][layer] += squares[1]
        counts = weights[:, :2].sum(-1)
        differences = sums[:, 1] / counts[:, 1:2] - sums[:, 0] / counts[:, 0:1]
        state["text_sum"][layer] += differences.sum(0).cpu()
        state["text_squares"][layer] += differences.square().sum(0).cpu()
        profile = torch.einsum("tc,tcn->cn", at.valid[:, :columns].to(seen), seen[:, :columns])
        state["profile_sum"][layer] += profile.cpu()

    def finish_batch(self, batch: Batch) -> None:
        """Count the texts and positions of the batch, once for all layers."""
        rows, at = self._windows(batch)
        self.state["texts"] += len(rows)
        self.state["profile_count"] += at.valid[:, : 2 * self.r + 1].sum(0).cpu().double()
        for window, weights in enumerate((at.normal, at.repetition, at.published, at.clean)):
            self.state["counts"][window] += weights.sum().cpu().double()

    def merge(self, other: Analyzer) -> None:
        """Add the state of another analyzer with the same settings, and the names of its texts."""
        super().merge(other)
        assert isinstance(other, RepetitionNeurons)
        self._ids |= other._ids
        self._dropped |= other._dropped

    def result(self, provenance: Provenance) -> RepetitionNeuronResult:
        """Means, differences, their errors and the profile round the onset."""
        texts = list(self._ids)
        return RepetitionNeuronResult.from_state(
            self.state, provenance, self.r, texts, len(self._dropped), self._d_expert
        )


_DRAWN_POINTS = 20_000  # more make a figure slow without showing more
_LABELLED_LAYERS = 16  # depth stands under the layer while there is room for it


def plot_onset_profile(result: RepetitionNeuronResult, k: int = 4) -> go.Figure:
    """Mean activation of the top ``k`` neurons round the onset of loops.

    Offset 0 is the position that predicts the first token of the second copy; from there on the model repeats.  Of one
    neuron alone, dashed lines show its means over the normal and the repetition window.

    Args:
        result: what was found.
        k: how many neurons.

    Raises:
        InputError: ``k`` below 1 or larger than the number of neurons.

    Source: Figure 1 of Hiraoka & Inui 2025 (arXiv 2410.13497).

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> texts = [[0, *range(9, 49), *[40, 41, 42, 43] * 9], [0, *range(60, 99), *[7, 8, 9] * 12]]
        >>> corpus = mechrep.Corpus.from_tokens(texts, model=model).with_cycles()
        >>> result = mechrep.CorpusCache(model, corpus).run(mechrep.RepetitionNeurons())
        >>> len(plot_onset_profile(result, k=3).data)
        3
    """

    within("k", k, 1, result.n_neurons, "a number of neurons")
    figure, offsets = new_figure(), np.arange(-result.r, result.r + 1)
    for place, (layer, neuron) in enumerate(result.top(k)):
        name = f"L{layer}N{neuron}"
        figure.add_scatter(
            x=offsets,
            y=result.profile[layer, :, neuron].numpy(),
            name=name,
            mode="lines",
            line={
                "color": SEQUENCE[place % len(SEQUENCE)],
                "dash": DASHES[place % len(DASHES)],
                "width": 3 if place == 0 else 2,
            },
            hovertemplate=f"{name}, rank {place + 1}<br>offset %{{x}}: %{{y:.3f}}<extra></extra>",
        )
    if k == 1:  # one alone varies from token to token by more than it rises
        ((layer, neuron),) = result.top(1)
        mean = {"color": INK, "width": 2, "dash": "dash"}
        for ends, table in (((-result.r, 0), result.normal_mean), ((0, result.r - 1), result.repetition_mean)):
            level = float(table[layer, neuron])
            figure.add_shape(type="line", x0=ends[0], x1=ends[1], y0=level, y1=level, line=mean)
    figure.add_vrect(x0=0, x1=result.r - 1, fillcolor=translucent(ACCENT, 0.06), line_width=0, layer="below")
    figure.add_vline(x=0, line={"color": INK, "width": 1.5, "dash": "dot"})
    figure.add_annotation(
        x=0,
        y=1,
        yref="paper",
        text="onset",
        showarrow=False,
        xanchor="left",
        yanchor="top",
        xshift=5,
        font={"color": INK},
    )
    return styled(
        figure,
        title=f"Activation of the top {counted(k, 'neuron')} round the onset of a loop",
        subtitle=_subtitle(result),
        x="offset from the onset (tokens)",
        y="mean activation",
    )


def plot_sorted_delta(result: RepetitionNeuronResult) -> go.Figure:
    """Rise of every neuron, in the order of the ranking, with the published share (Hiraoka and Inui) marked.

    The band is one standard error of the mean over texts.  Of more than 20,000 neurons a part is drawn: all of the
    first, fewer and fewer of the following, as the logarithmic axis needs.

    Args:
        result: what was found.

    Source: Hiraoka & Inui 2025 (arXiv 2410.13497).

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_tokens([[0, *range(9, 49), *[40, 41, 42, 43] * 9]], model=model).with_cycles()
        >>> result = mechrep.CorpusCache(model, corpus).run(mechrep.RepetitionNeurons())
        >>> len(plot_sorted_delta(result).data[-1].x)
        1408
    """

    ranks = drawn_ranks(result.n_neurons)
    units = np.array(result.ranking())[ranks - 1]
    delta = result.delta.numpy()[units[:, 0], units[:, 1]]
    error = result.standard_error.numpy()[units[:, 0], units[:, 1]]
    figure = new_figure()
    if np.isfinite(error).all():
        figure.add_scatter(
            **_band(ranks, delta - error, delta + error), name="± 1 standard error", fillcolor=translucent(ACCENT, 0.22)
        )
    figure.add_scatter(
        x=ranks,
        y=delta,
        name="one neuron",
        mode="lines+markers",
        line={"color": ACCENT, "width": 1},
        marker={"color": ACCENT, "size": 4},
        customdata=np.column_stack([units, error]),
        hovertemplate="rank %{x}: L%{customdata[0]}N%{customdata[1]}"
        "<br>Δ = %{y:.4f} ± %{customdata[2]:.4f}<extra></extra>",
    )
    figure.add_hline(y=0, line={"color": INK, "width": 1})
    if result.published_k:
        # Shapes on a logarithmic axis take the number itself, annotations its logarithm.
        figure.add_vline(x=result.published_k, line={"color": INK, "width": 1.5, "dash": "dot"})
        figure.add_annotation(
            x=float(np.log10(result.published_k)),
            y=1,
            yref="paper",
            text=f"Hiraoka and Inui: top 0.5 % = {result.published_k:,}",
            showarrow=False,
            xanchor="left",
            yanchor="top",
            xshift=5,
            font={"color": INK},
        )
    styled(
        figure,
        title="How much every neuron rises when a loop begins",
        subtitle=f"{_subtitle(result)}, {counted(result.n_neurons, 'neuron')}",
        x="rank of the neuron (logarithmic)",
        y="Δ: repetition − normal mean activation",
    )
    return figure.update_xaxes(
        type="log", dtick=1, tickformat=",", minor={"ticks": "outside", "ticklen": 2, "dtick": "D1"}
    )


def plot_layer_distribution(result: RepetitionNeuronResult, k: int | None = None) -> go.Figure:
    """How many of the top ``k`` neurons lie in each layer, beside what an even spread would give.

    Neurons of the set whose activation falls are skipped, as published.

    Args:
        result: what was found.
        k: size of the set; by default the published share, ``int(0.005 N)``.

    Raises:
        InputError: ``k`` larger than the number of neurons.

    Source: Hiraoka & Inui 2025 (arXiv 2410.13497).

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_tokens([[0, *range(9, 49), *[40, 41, 42, 43] * 9]], model=model).with_cycles()
        >>> result = mechrep.CorpusCache(model, corpus).run(mechrep.RepetitionNeurons())
        >>> list(plot_layer_distribution(result, k=10).data[0].y) == result.layer_counts(10)
        True
    """

    k = result.published_k if k is None else k
    counts, n_layers = result.layer_counts(k), result.delta.shape[0]
    layers = np.arange(n_layers)
    depth = layers / (n_layers - 1) if n_layers > 1 else np.ones(1)
    figure = new_figure()
    figure.add_bar(
        x=layers,
        y=counts,
        name="top neurons",
        marker={"color": ACCENT},
        customdata=depth,
        hovertemplate="layer %{x}, relative depth %{customdata:.2f}<br>%{y} neurons<extra></extra>",
    )
    expected = k / n_layers
    figure.add_scatter(
        x=[-0.5, n_layers - 0.5],
        y=[expected, expected],
        name=f"evenly spread: {expected:.3g} per layer",
        mode="lines",
        line={"color": INK, "dash": "dash", "width": 2},
        hoverinfo="skip",
    )
    styled(
        figure,
        title=f"Where the top {counted(k, 'neuron')} lie",
        subtitle=_subtitle(result),
        x="layer (below it: relative depth, 0 first, 1 last)" if n_layers <= _LABELLED_LAYERS else "layer",
        y="neurons of the set",
    )
    figure.update_xaxes(range=[-0.6, n_layers - 0.4])
    if n_layers <= _LABELLED_LAYERS:
        labels = [f"{layer}<br>{place:.2f}" for layer, place in zip(layers, depth, strict=True)]
        figure.update_xaxes(tickmode="array", tickvals=layers, ticktext=labels)
    return figure.update_yaxes(rangemode="tozero")


def drawn_ranks(n: int, most: int = _DRAWN_POINTS) -> Int[np.ndarray, " rank"]:
    """Ranks 1 to ``n``; of more than ``most`` those that a logarithmic axis can show apart, and both ends.

    Example:
        >>> drawn_ranks(4).tolist(), len(drawn_ranks(300_000)) <= 20_000
        ([1, 2, 3, 4], True)
    """
    if n <= most:
        return np.arange(1, n + 1)
    return np.unique(np.concatenate([np.geomspace(1, n, most // 2), np.linspace(1, n, most // 2)]).round().astype(int))


def _band(x: Int[np.ndarray, " x"], low: Float[np.ndarray, " x"], high: Float[np.ndarray, " x"]) -> dict[str, object]:
    """The outline of a band as one trace: out along its upper edge, back along its lower one."""
    return {
        "x": np.concatenate([x, x[::-1]]),
        "y": np.concatenate([high, low[::-1]]),
        "mode": "lines",
        "line": {"width": 0},
        "fill": "toself",
        "hoverinfo": "skip",
    }


def _subtitle(result: RepetitionNeuronResult) -> str:
    return f"{result.provenance.model['name']}, {counted(result.n_texts, 'looping text')}"
