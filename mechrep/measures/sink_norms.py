"""How large the residual stream is at the first position, elsewhere, and at the repeats of one token.

In a model with an attention sink one position, the first, lies far above all others from the sink layer on::

    ratio_d = mean_x |resid_d(x, 0)|  /  mean_{x, 0 < t < T_x} |resid_d(x, t)|
    J_l     = mean_x log |resid_post_l(x, 0)| - mean_x log |resid_pre_l(x, 0)|

(:class:`SinkNorms`).  Where the first layers tell the first token from the others by the presence of other tokens, a
token that is repeated many times ends up in the state of a first token and becomes a sink itself
(:class:`RepeatNorms`).

Where the ratio rises and falls again are its stages (:mod:`mechrep.measures.sink_stages`); how far the jump of each
layer lies from the layers' median is told in units of their median deviation (:func:`robust_z`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechrep.cache.corpus_cache import Analyzer, Batch
from mechrep.errors import InputError
from mechrep.figures import (
    ACCENT,
    DASHES,
    INK,
    SEQUENCE,
    counted,
    new_figure,
    shown_token,
    styled,
    tick_step,
    translucent,
)
from mechrep.guards import Count, Positive, Some, check_count, guarded, within
from mechrep.measures.sink_stages import NormStage, norm_stages
from mechrep.models.anatomy import Anatomy, Site
from mechrep.provenance import Provenance
from mechrep.results import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

CLEARLY_ABOVE = 2.0  # a BOS norm below so many times the typical one is no place that a norm could move to
MOVED = 0.5  # half-way from typical to BOS, on the log scale


@dataclass(frozen=True)
class Moved:
    """How far repeats have moved the norm from that of ordinary text (0) to that of BOS (1), on the log scale.

    Attributes:
        values: per token and number of repeats; NaN everywhere where the question has no answer.
        share: share of tokens that are at least half-way at the last repeat; NaN likewise.
        reason: why there is no answer: ``"no BOS"`` before the repeats, or ``"BOS is not large"``; else empty.
    """

    values: Float[Tensor, "text repeat"]
    share: float
    reason: str


@dataclass(frozen=True, eq=False)
class RepeatNormResult(Result):
    """Norms by number of repeats; depth 0 is the input of block 0, depth l + 1 the output of block l.

    Attributes:
        token_ids: the repeated tokens, one per text.
        repeats: numbers of repeats at which norms are kept (1, then in logarithmic steps, then all).
        bos: whether the repeats stand after BOS.
        norm: norm at the n-th repeat.
        bos_norm: norm at BOS; NaN without one.
        taus: shares of the BOS norm.
        reached: the first number of repeats whose norm is at least ``tau`` times the BOS norm, of all numbers and not
            only of those in ``repeats``; 0 where none does, that is: more than the last (never "no effect").
    """

    token_ids: Sequence[int]
    repeats: Sequence[int]
    bos: bool
    norm: Float[Tensor, "text depth repeat"]
    bos_norm: Float[Tensor, " depth"]
    taus: Sequence[float]
    reached: Float[Tensor, "text depth tau"]

    def _check_layer(self, layer: int) -> None:
        within("layer", layer, 0, self.norm.shape[1] - 2, "a layer")

    @guarded
    def moved(self, layer: int, typical_norm: Float[Tensor, " depth"]) -> Moved:
        """How far the norm after ``layer`` has moved from ordinary text to BOS::

            moved(n) = (log norm(n) - log typical) / (log BOS - log typical)

        Args:
            layer: the sink layer.
            typical_norm: mean norm at ordinary positions by depth, ``SinkNormResult.other_norm`` of the same model.

        Returns:
            The moves.  Where the BOS norm is not at least twice the typical one there is nowhere to move to: NaN and a
            reason, never a number.

        Raises:
            InputError: a layer that the model does not have, or typical norms of another model.
        """
        self._check_layer(layer)
        if len(typical_norm) != len(self.bos_norm):
            raise InputError(f"{len(typical_norm)} typical norms", f"{len(self.bos_norm)}, one per depth", "remeasure")
        typical, high = float(typical_norm[layer + 1]), float(self.bos_norm[layer + 1])
        norms = self.norm[:, layer + 1].double()
        reason = "no BOS" if not self.bos else "" if high >= CLEARLY_ABOVE * typical else "BOS is not large"
        if reason:
            return Moved(torch.full_like(norms, torch.nan).float(), float("nan"), reason)
        low, top = torch.tensor([typical, high], dtype=torch.float64).log()
        values = (norms.log() - low) / (top - low)
        return Moved(values.float(), float((values[:, -1] >= MOVED).double().mean()), "")

    @guarded
    def ranking(self, layer: int) -> list[int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Token ids, the largest norm at the last repeat first."""
        self._check_layer(layer)
        order = torch.argsort(self.norm[:, layer + 1, -1], descending=True, stable=True)
        return [self.token_ids[text] for text in order.tolist()]

    @guarded
    def top(self, k: int, layer: int | None = None) -> list[int]:
        """The ``k`` tokens whose last repeat is largest, after ``layer`` (default: the last one).

        Raises:
            InputError: ``k`` larger than the number of tokens, or a layer that the model does not have.
        """
        check_count(k, len(self.token_ids), "tokens")
        return self.ranking(self.norm.shape[1] - 2 if layer is None else layer)[:k]

    def to_frame(self) -> pd.DataFrame:
        """One row per token and layer: norm at the last repeat, BOS norm, and the repeats that each tau took.

        A missing number of repeats means more than ``n_max``.
        """
        texts, depths, _ = self.norm.shape
        layers = range(depths - 1)
        frame = pd.DataFrame(
            {
                "token_id": [token for token in self.token_ids for _ in layers],
                "layer": [*layers] * texts,
                "norm": self.norm[:, 1:, -1].flatten().numpy(),
                "bos_norm": self.bos_norm[1:].repeat(texts).numpy(),
                "n_max": self.repeats[-1],
            }
        )
        for index, tau in enumerate(self.taus):
            first = pd.Series(self.reached[:, 1:, index].flatten().int().tolist(), dtype="Int64")
            frame[f"n_{tau:g}"] = first.mask(first == 0)
        return frame


_MAD_OF_NORMAL = 0.6744897501960817  # median absolute deviation of a standard normal


def robust_z(values: Float[Tensor, " layer"]) -> Float[Tensor, " layer"]:
    """Distance of each value from the median, in standard deviations as the median absolute deviation estimates them.

    Unlike a z-score, one or two outliers do not raise the scale that they are measured with.  Where more than half of
    the values are equal the scale is zero: the equal ones get 0 and the others an infinite distance.

    Example:
        >>> robust_z(torch.tensor([0.0, 1.0, 2.0, 3.0, 100.0])).round(decimals=1).tolist()
        [-1.3, -0.7, 0.0, 0.7, 66.1]
    """
    offset = values.double() - values.double().quantile(0.5)  # not median(): that is no mean of the middle two
    scale = offset.abs().quantile(0.5) / _MAD_OF_NORMAL
    return torch.where(offset == 0, 0.0, offset / scale)


@dataclass(frozen=True, eq=False)
class SinkNormResult(Result):
    """Norms of the residual stream by depth; depth 0 is the input of block 0, depth l + 1 the output of block l.

    Attributes:
        first_norm: mean over texts of the norm at position 0.
        other_norm: mean over all other real positions of all texts; NaN where no text has a second token.
        other_sd: standard deviation over those positions.
        by_position: mean over texts of the norm at each of the first positions; NaN where no text is that long.
        jump: ``J_l = log |resid_post_l[0]| - log |resid_pre_l[0]|``, mean over texts.
        other_jump: the same for the other positions.
        n_texts: texts.
        n_others: other positions.
    """

    first_norm: Float[Tensor, " depth"]
    other_norm: Float[Tensor, " depth"]
    other_sd: Float[Tensor, " depth"]
    by_position: Float[Tensor, "depth pos"]
    jump: Float[Tensor, " layer"]
    other_jump: Float[Tensor, " layer"]
    n_texts: int
    n_others: int

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], provenance: Provenance) -> SinkNormResult:
        """Turn sums into means."""
        texts, others = state["texts"], state["others"]
        mean = state["other_sum"] / others
        variance = (state["other_squares"] / others - mean.square()).clamp_min(0)
        tensors = {
            "first_norm": state["first_sum"] / texts,
            "other_norm": mean,
            "other_sd": variance.sqrt(),
            "by_position": state["position_sum"] / state["position_count"],
            "jump": (state["first_log_sum"] / texts).diff(),
            "other_jump": (state["other_log_sum"] / others).diff(),
        }
        return cls(
            provenance,
            **{name: value.float() for name, value in tensors.items()},
            n_texts=int(texts),
            n_others=int(others),
        )

    @property
    def ratio(self) -> Float[Tensor, " depth"]:
        """The BOS ratio: norm at position 0 over the mean norm elsewhere."""
        return self.first_norm / self.other_norm

    @property
    def excess_jump(self) -> Float[Tensor, " layer"]:
        """``jump`` minus ``other_jump``: growth that the first position does not share with the others.

        Where embeddings are small, every position grows many times in block 0, and the raw jump would point there.
        """
        return self.jump - self.other_jump

    @property
    def jump_z(self) -> Float[Tensor, " layer"]:
        """Distance of each layer's excess jump from the layers' median; see :func:`robust_z`."""
        return robust_z(self.excess_jump).float()

    @property
    def largest_ratio(self) -> float:
        """Largest BOS ratio at the output of any block; NaN where no text has a second token."""
        return float(self.ratio[1:].max())

    @property
    def stages(self) -> list[NormStage]:
        """Every rise of the ratio, in the order of depth; which of them count, null models tell (``find_sink``)."""
        return norm_stages(self.ratio)

    @property
    def layer(self) -> int | None:
        """The layer after which the stage with the largest rise peaks; ``None`` where no rise doubles the ratio."""
        main = max(self.stages, key=lambda stage: stage.rise, default=None)
        return None if main is None or main.rise < CLEARLY_ABOVE else main.peak - 1

    @property
    def layer_of_jump(self) -> int:
        """The layer of the largest raw jump at the first position, whether it is a sink or not."""
        return int(self.jump.argmax())

    def ranking(self) -> list[int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Layers, largest excess jump first."""
        values = torch.nan_to_num(self.excess_jump, nan=-torch.inf)
        return torch.argsort(values, descending=True, stable=True).tolist()

    @guarded
    def top(self, k: int) -> list[int]:
        """The ``k`` layers with the largest excess jump: with several writing layers, there are several peaks.

        Raises:
            InputError: ``k`` larger than the number of layers.
        """
        check_count(k, len(self.jump), "layers")
        return self.ranking()[:k]

    def plot(self) -> go.Figure:
        """Norms layer by layer: :func:`norms_by_layer_figure`."""
        return norms_by_layer_figure(self)

    def to_frame(self) -> pd.DataFrame:
        """One row per layer, in order: norms at its output, ratio, jumps and the distance of its jump."""
        columns = {
            "first_norm": self.first_norm[1:],
            "other_norm": self.other_norm[1:],
            "other_sd": self.other_sd[1:],
            "ratio": self.ratio[1:],
            "jump": self.jump,
            "other_jump": self.other_jump,
            "jump_z": self.jump_z,
        }
        values = {name: value.numpy() for name, value in columns.items()}
        return pd.DataFrame({"layer": range(len(self.jump)), **values})


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


class SinkNorms(Analyzer[SinkNormResult]):
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
        >>> result = mechrep.CorpusCache(model, corpus).run(SinkNorms())
        >>> len(result.ratio) - 1 == len(result.jump) == model.anatomy.n_layers
        True
    """

    sites: ClassVar[frozenset[Site]] = frozenset({Site.RESID_PRE, Site.RESID_POST})

    @guarded
    def __init__(self, positions: Count = 64) -> None:
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


_COLUMNS = ("token_id", "repeats", "bos")
_POINTS = 24  # numbers of repeats on the logarithmic grid


def repeat_grid(n: int) -> list[int]:
    """Numbers of repeats from 1 to ``n`` in logarithmic steps.

    Example:
        >>> repeat_grid(5), repeat_grid(1000)[-2:]
        ([1, 2, 3, 4, 5], [741, 1000])
    """
    return np.unique(np.geomspace(1, n, _POINTS).round().astype(int)).tolist()


class RepeatNorms(Analyzer[RepeatNormResult]):
    """Measures how the norm of a repeated token grows, for many tokens at once.

    Runs on corpora of :func:`mechrep.text.stimuli.repeated_tokens`.

    Args:
        taus: shares of the BOS norm whose first crossing is reported, ``n*(tau)``.

    Raises:
        InputError: a tau that is no positive number; when run, texts that are no repeated tokens, or of several kinds.

    Source: Yona et al. 2025 (arXiv 2503.08908): the curve of one prompt.  Building repeats from ids, the crossings
    ``n*`` and the share of tokens that move are mechrep's own.

    Limits: without BOS all repeats are the same first token to a rotary model, and nothing can grow.  ``n*`` is one
    crossing; norms may fall again.

    Example:
        >>> import mechrep
        >>> from mechrep.text.stimuli import repeated_tokens
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> result = mechrep.CorpusCache(model, repeated_tokens(model, [300, 301], 40)).run(RepeatNorms())
        >>> result.token_ids, result.repeats[-1]
        ([300, 301], 40)
    """

    sites: ClassVar[frozenset[Site]] = frozenset({Site.RESID_PRE, Site.RESID_POST})

    @guarded
    def __init__(self, taus: Some[Positive] = (0.25, 0.5, 0.75)) -> None:
        self.taus = tuple(float(tau) for tau in taus)
        self.state = {}

    @property
    def config(self) -> dict[str, Any]:
        """The shares of the BOS norm."""
        return {"taus": list(self.taus)}

    def layers(self, anatomy: Anatomy, site: Site) -> range:
        """All blocks' outputs, and the input of the first."""
        return range(1 if site is Site.RESID_PRE else anatomy.n_layers)

    def prepare(self, anatomy: Anatomy, frame: pd.DataFrame) -> None:
        """An empty row per text; refuses a corpus of other texts than repeated tokens of one kind."""
        if not set(_COLUMNS) <= set(frame.columns) or len(frame[["repeats", "bos"]].drop_duplicates()) > 1:
            raise InputError(
                "texts that are not all one token repeated equally often, all with BOS or all without",
                f"a corpus with the columns {', '.join(_COLUMNS)}, the last two equal in every row",
                "build it with mechrep.text.stimuli.repeated_tokens",
            )
        self._tokens = [int(token) for token in frame["token_id"]]
        self._grid, self._bos = repeat_grid(int(frame["repeats"].iloc[0])), bool(frame["bos"].iloc[0])
        texts, depths = len(frame), anatomy.n_layers + 1
        self.state = {
            "norm": torch.zeros(texts, depths, len(self._grid), dtype=torch.float64),
            "bos_norm": torch.zeros(texts, depths, dtype=torch.float64),
            "reached": torch.zeros(texts, depths, len(self.taus), dtype=torch.float64),
        }

    def observe(self, activation: Tensor, site: Site, layer: int, batch: Batch) -> None:
        """Fill one depth of the rows of one batch."""
        depth, rows = 0 if site is Site.RESID_PRE else layer + 1, list(batch.texts)
        norms = norms_of(activation).cpu().double()
        repeats = norms[:, int(self._bos) : int(self._bos) + self._grid[-1]]
        self.state["norm"][rows, depth] = repeats[:, [n - 1 for n in self._grid]]
        if self._bos:
            self.state["bos_norm"][rows, depth] = norms[:, 0]
            self.state["reached"][rows, depth] = _first_crossings(repeats, norms[:, 0], self.taus)

    def merge(self, other: Analyzer) -> None:
        """Add what another analyzer saw of the same texts, or append its texts where they are others.

        Raises:
            InputError: other settings, another model, other numbers of repeats, or texts that are partly the same.
        """
        if not isinstance(other, RepeatNorms) or other._tokens == self._tokens:
            super().merge(other)
            return
        same_kind = (other.config, other._grid, other._bos) == (self.config, self._grid, self._bos)
        depths = [analyzer.state["norm"].shape[1] for analyzer in (self, other)]
        if not same_kind or set(self._tokens) & set(other._tokens) or depths[0] != depths[1]:
            raise InputError(
                f"repeats of {other._tokens[:3]} ..., {other._grid[-1]} times",
                f"other tokens than {self._tokens[:3]} ..., {self._grid[-1]} times, in the same model",
                "merge like with like",
            )
        self.state = {name: torch.cat([value, other.state[name]]) for name, value in self.state.items()}
        self._tokens = [*self._tokens, *other._tokens]

    def result(self, provenance: Provenance) -> RepeatNormResult:
        """Norms by number of repeats, and crossings."""
        bos_norm = self.state["bos_norm"].mean(0)
        return RepeatNormResult(
            provenance,
            token_ids=self._tokens,
            repeats=self._grid,
            bos=self._bos,
            norm=self.state["norm"].float(),
            bos_norm=(bos_norm if self._bos else torch.full_like(bos_norm, torch.nan)).float(),
            taus=list(self.taus),
            reached=self.state["reached"].float(),
        )


def _first_crossings(
    norms: Float[Tensor, "batch pos"], bos: Float[Tensor, " batch"], taus: Sequence[float]
) -> Float[Tensor, "batch tau"]:
    """Number of the first repeat whose norm is at least ``tau`` times that of BOS; 0 where none is."""
    above = norms[..., None] >= bos[:, None, None] * torch.tensor(taus, dtype=norms.dtype)
    first = above.int().argmax(1) + 1
    return torch.where(above.any(1), first, 0).to(norms.dtype)


_BOS = "#2a9396"
_REST = translucent(INK, 0.45)  # tokens that have no colour of their own
_DECADES = {"type": "log", "dtick": 1, "tickformat": ",", "minor": {"ticks": "outside", "ticklen": 2, "dtick": "D1"}}


def norms_by_layer_figure(result: SinkNormResult) -> go.Figure:
    """Norm of the residual stream at the first position and elsewhere, from the input of the first layer on.

    Args:
        result: what was measured.

    Source: Yona et al. 2025 (arXiv 2503.08908), figure 1; that the first token's state is massive is Sun et al. 2024
        (arXiv 2402.17762).

    Example:
        >>> import mechrep
        >>> from mechrep.measures.sink_norms import SinkNorms
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea was calm.", "It rained all day."], model=model)
        >>> result = mechrep.CorpusCache(model, corpus).run(SinkNorms())
        >>> [line.name for line in norms_by_layer_figure(result).data]
        ['first position', 'other positions']
    """

    figure, n_layers = new_figure(), len(result.jump)
    depths = ["input of layer 0", *(f"output of layer {layer}" for layer in range(n_layers))]
    ratios = [f"{ratio:.3g} times the other positions" for ratio in result.ratio.tolist()]
    spreads = [f"± {sd:.3g} (standard deviation over positions)" for sd in result.other_sd.tolist()]
    several = result.n_others > 0
    _add_depths(
        figure, result.first_norm, "first position", ACCENT, 0, depths, ratios if several else [""] * len(depths)
    )
    if several:
        _add_depths(figure, result.other_norm, "other positions", INK, 1, depths, spreads)
    counts = f"{counted(result.n_texts, 'text')}, {counted(result.n_others, 'other position')}"
    styled(
        figure,
        title="Size of the residual stream at the first position",
        subtitle=f"{result.provenance.model['name']}, {counts}; {_sink_layer(result)}",
        x="layer whose output is read (in: input of layer 0)",
        y="mean Euclidean norm (logarithmic)",
    )
    if result.layer is not None:
        figure.add_vline(x=result.layer, line={"color": INK, "width": 1.5, "dash": "dot"}, layer="below")
    layers = range(0, n_layers, tick_step(n_layers))
    ticks = {"tickvals": [-1, *layers], "ticktext": ["in", *map(str, layers)]}
    figure.update_xaxes(tickmode="array", range=[-1.3, n_layers - 0.7], **ticks)
    return figure.update_yaxes(type="log")


def norms_vs_repeats_figure(
    result: RepeatNormResult,
    layer: int,
    typical_norm: Float[Tensor, " depth"],
    *,
    names: Mapping[int, str] | None = None,
) -> go.Figure:
    """Norm of repeated tokens against the number of repeats, beside BOS and the typical norm of other positions.

    The largest tokens after the last repeat have a colour and a name each, the rest is drawn in grey.

    Args:
        result: what was measured.
        layer: the sink layer; norms are those of its output.
        typical_norm: mean norm at ordinary positions by depth, ``SinkNormResult.other_norm`` of the same model.
        names: tokens as text, by id; ids without one stand as numbers.

    Raises:
        InputError: a layer that the model does not have, or typical norms of another model.

    Source: Yona et al. 2025 (arXiv 2503.08908), the curve of one prompt, here for many tokens.

    Example:
        >>> import mechrep
        >>> from mechrep.measures.sink_norms import RepeatNorms
        >>> from mechrep.measures.sink_norms import SinkNorms
        >>> from mechrep.text.stimuli import repeated_tokens
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> norms = mechrep.CorpusCache(model, repeated_tokens(model, [300, 301], 40)).run(RepeatNorms())
        >>> text = mechrep.Corpus.from_texts(["The sea was calm."], model=model)
        >>> typical = mechrep.CorpusCache(model, text).run(SinkNorms())
        >>> figure = norms_vs_repeats_figure(norms, 1, typical.other_norm)
        >>> len(figure.data), figure.layout.yaxis.type
        (4, 'log')
    """

    moved, rows = result.moved(layer, typical_norm), {token: row for row, token in enumerate(result.token_ids)}
    typical = float(typical_norm[layer + 1])
    if not 0 < typical < math.inf:
        raise InputError(f"a typical norm of {typical}", "a positive number", "measure it on texts of several tokens")
    figure, last, ranking = new_figure(), result.repeats[-1], result.ranking(layer)
    # The largest are drawn last, so that they lie over the others.
    for place, token in reversed(list(enumerate(ranking))):
        label = f"{shown_token(names[token])} ({token})" if names and token in names else f"token {token}"
        figure.add_scatter(
            x=list(result.repeats),
            y=result.norm[rows[token], layer + 1].numpy(),
            mode="lines+markers",
            # Not in the template, in which a token could be taken for a variable.
            customdata=[label] * len(result.repeats),
            hovertemplate="%{customdata}<br>repeat %{x:,}: norm %{y:.3g}<extra></extra>",
            **_token_style(place, len(ranking), label),
        )
    references = {"typical": (typical, INK, "dot")}
    if result.bos:
        references["BOS"] = (float(result.bos_norm[layer + 1]), _BOS, "dash")
    for name, (value, colour, dash) in references.items():
        figure.add_scatter(
            x=[1, max(2, last)],  # a line even where there is one repeat only
            y=[value, value],
            name=f"{name}: {value:.3g}",
            mode="lines",
            line={"color": colour, "dash": dash, "width": 2},
            hoverinfo="skip",
        )
    ended = "" if moved.reason else f"; {moved.share:.0%} end at least half-way from typical to BOS"
    about = f"{counted(len(rows), 'token')}, repeats 1 to {last:,}"
    styled(
        figure,
        title=f"Size of repeated tokens after layer {layer}",
        subtitle=f"{result.provenance.model['name']}, {about}{ended}",
        x="number of the repeat (logarithmic)",
        y="Euclidean norm of the residual stream (logarithmic)",
    )
    # Beside the plot: so many names do not fit between it and its title.
    figure.update_layout(legend={"orientation": "v", "x": 1.02, "y": 1, "yanchor": "top"})
    return figure.update_xaxes(**_DECADES).update_yaxes(type="log")


def _add_depths(
    figure: go.Figure,
    norms: Float[Tensor, " depth"],
    name: str,
    colour: str,
    place: int,
    depths: list[str],
    details: list[str],
) -> None:
    figure.add_scatter(
        x=np.arange(-1, len(norms) - 1),
        y=norms.numpy(),
        name=name,
        mode="lines+markers",
        line={"color": colour, "dash": DASHES[place], "width": 3 - place},
        marker={"size": 7, "symbol": ("circle", "square-open")[place]},
        customdata=np.column_stack([depths, details]),
        hovertemplate=f"{name}, %{{customdata[0]}}<br>norm %{{y:.4g}}<br>%{{customdata[1]}}<extra></extra>",
    )


def _sink_layer(result: SinkNormResult) -> str:
    if result.n_others == 0:
        return "no text has a second token"
    ratio = f"first position up to {result.largest_ratio:.3g} times the others"
    return f"no sink layer, {ratio}" if result.layer is None else f"sink layer {result.layer}, {ratio}"


def _token_style(place: int, n: int, label: str) -> dict[str, Any]:
    """The first tokens of the ranking look each their own way, all others alike with one entry in the legend."""
    named = len(SEQUENCE)
    if place < named:
        line = {"color": SEQUENCE[place], "dash": DASHES[place], "width": 2}
        return {"name": label, "line": line, "marker": {"size": 4}, "legendrank": place}
    legend = {"legendgroup": "rest", "showlegend": place == named, "legendrank": named}
    look = {"line": {"color": _REST, "width": 1}, "marker": {"size": 2}}
    return {"name": counted(n - named, "other token"), **legend, **look}
