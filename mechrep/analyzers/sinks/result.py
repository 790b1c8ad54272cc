"""``SinkResult``: whether a model has an attention sink, where it is made, and by what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from mechrep.results import Result, check_count


@dataclass(frozen=True, eq=False)
class SinkResult(Result):
    """Everything that :func:`mechrep.analyzers.sinks.find_sink.find_sink` found, beside the same scores of null models.

    Attributes:
        norm_found: the first position's norm exceeds 5 times that of the others (twice after a layer that was named),
            and every null model's ratio.
        heads_found: some head attends to the first position as far above a uniform head as the published threshold
            (0.3) is at T = 64, and more than any head of a null model.
        reason: in words, what was found, or why nothing counts as found.
        first_is_bos: whether the first position is BOS; otherwise it is the first token of each text.
        mean_length: tokens per text, T; attention scores fall with it.
        layer: the sink layer (largest excess jump of the norm, or the one that was named); ``None`` without a norm
            sink.
        neurons: ``[layer, neuron]`` of the sink neurons: the fewest, in the order of their contribution, that remove
            80 % of the excess norm, five where five do not; empty without a norm sink.
        agreement: share of ``neurons`` that the other scores have among as many first ones; under ``"spike"``, the
            share of spike weights whose neuron is one of ``neurons``.
        removed: share of the excess norm at the sink layer that each cut removes: ``"neurons"`` (those above),
            ``"random"`` (the largest of five draws of five) and ``"matched"`` (the five that follow in the ranking).
        profile: log-jump of the first position's norm over each block, J.
        excess_profile: the same beyond the jump of the other positions.
        profile_z: distance of the excess from the layers' median, see ``robust_z``.
        ratio: norm at the first position over the mean of the others; depth 0 is the input of block 0.
        bos_ratio: its largest value at the output of a block.
        null_ratios: the same of each null model.
        ratio_without_bos: the same on the texts without their BOS; NaN where there was none or nothing was found.
        alpha: attention of each head to the first position, ``alpha~_0``.
        null_alphas: the largest of each null model.
        uniform_alpha: of a head that attends uniformly.
        sink_heads: ``[layer, head]`` of the heads that count as sinks, the largest first.
        sink_share: ``Sink_1^0.3`` of Gu et al., in per cent.
        moved_share: share of repeated tokens whose norm has moved at least half-way to that of BOS; NaN with a reason.
        moved_reason: why ``moved_share`` is NaN, or empty.
        repeats: how often these tokens were repeated.
    """

    norm_found: bool
    heads_found: bool
    reason: str
    first_is_bos: bool
    mean_length: float
    layer: int | None
    neurons: Sequence[Sequence[int]]
    agreement: Mapping[str, float]
    removed: Mapping[str, float]
    profile: Float[Tensor, " layer"]
    excess_profile: Float[Tensor, " layer"]
    profile_z: Float[Tensor, " layer"]
    ratio: Float[Tensor, " depth"]
    bos_ratio: float
    null_ratios: Sequence[float]
    ratio_without_bos: float
    alpha: Float[Tensor, "layer head"]
    null_alphas: Sequence[float]
    uniform_alpha: float
    sink_heads: Sequence[Sequence[int]]
    sink_share: float
    moved_share: float
    moved_reason: str
    repeats: int

    @property
    def found(self) -> bool:
        """Whether anything clears the null: the norm of the first position, or the attention of some head to it."""
        return self.norm_found or self.heads_found

    @property
    def best_head(self) -> tuple[int, int]:
        """The ``(layer, head)`` that attends most to the first position, whether it counts as a sink or not."""
        index, heads = int(self.alpha.nan_to_num(-1.0).argmax()), self.alpha.shape[1]
        return index // heads, index % heads

    @property
    def head_share(self) -> float:
        """Share of all heads that count as sinks."""
        return len(self.sink_heads) / self.alpha.numel()

    def top(self, k: int) -> list[tuple[int, int]]:
        """The first ``k`` sink neurons, as ``(layer, neuron)``: what :class:`mechrep.Neurons` takes.

        Raises:
            InputError: ``k`` larger than the number of sink neurons.
        """
        check_count(k, len(self.neurons), "sink neurons")
        return [(layer, neuron) for layer, neuron in self.neurons[:k]]

    def to_frame(self) -> pd.DataFrame:
        """One row per layer: jumps, ratio at its output, its best head and how many of its heads are sinks."""
        best = self.alpha.max(1)
        layers = range(len(self.profile))
        counted = [sum(layer == place for place, _ in self.sink_heads) for layer in layers]
        return pd.DataFrame(
            {
                "layer": layers,
                "is_sink_layer": [layer == self.layer for layer in layers],
                "ratio": self.ratio[1:].numpy(),
                "jump": self.profile.numpy(),
                "excess_jump": self.excess_profile.numpy(),
                "jump_z": self.profile_z.numpy(),
                "best_head": best.indices.numpy(),
                "best_alpha": best.values.numpy(),
                "sink_heads": counted,
            }
        )
