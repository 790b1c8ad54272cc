"""The stages of a norm sink: where the first position's norm rises above that of the others, and where it falls again.

With the ratio of norms by depth (:class:`~mechrep.measures.sink_norms.SinkNorms`) and ``e = log ratio``, every peak of
``e`` is a stage.  Its *rise* is how far ``e`` climbs to it from the lowest point since a higher peak, or since the
input; and where a higher peak follows, no more than it falls again before that one (topological persistence).  No
threshold is needed to tell stages apart, and how large a rise counts is told by null models.

A model may have several: one written in its first layers and erased again, and one that stands until the last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

_MOST = 0.9  # the layers named are the fewest that make so much of a rise


@dataclass(frozen=True)
class NormStage:
    """One stage; depth 0 is the input of block 0, depth ``l + 1`` the output of block ``l``.

    Attributes:
        since: depth of the lowest point that it rises from.
        peak: depth at which the ratio is largest.
        first: depth from which on more than half of the rise (log scale) stands.
        last: depth up to which it does.
        rise: by which factor the ratio rises.
        ratio: at the peak.
        shares: of the rise, by the layers ``since`` to ``peak - 1``; falls in between count as 0.
    """

    since: int
    peak: int
    first: int
    last: int
    rise: float
    ratio: float
    shares: Sequence[float]

    @property
    def layer(self) -> int:
        """The layer over which the ratio rises most."""
        return self.since + max(range(len(self.shares)), key=lambda place: self.shares[place])

    @property
    def layers(self) -> list[int]:
        """The fewest layers that make nine tenths of the rise, in their order."""
        order = sorted(range(len(self.shares)), key=lambda place: -self.shares[place])
        chosen, made = [], 0.0
        for place in order:
            if made < _MOST:
                chosen.append(self.since + place)
                made += self.shares[place]
        return sorted(chosen)

    def erased_in(self, n_layers: int) -> int | None:
        """The layer in which less than half of the rise is left; ``None``: it stands to the end."""
        return self.last if self.last < n_layers else None


def norm_stages(ratio: Float[Tensor, " depth"]) -> list[NormStage]:
    """All stages of a profile, in the order of depth; none where the ratio never rises, or is not known.

    Args:
        ratio: norm at the first position over the mean elsewhere, by depth.

    Source: persistence of peaks: Edelsbrunner, Letscher & Zomorodian 2002 (*Topological persistence and
    simplification*).  To see sinks as stages is mechrep's own.

    Example:
        >>> import torch
        >>> stages = norm_stages(torch.tensor([1.0, 2.0, 8.0, 8.0, 1.0, 100.0, 90.0, 4.0]))
        >>> [(stage.layers, round(stage.rise), stage.last) for stage in stages]
        [([0, 1], 8, 3), ([4], 100, 6)]
    """
    e = ratio.double().log().tolist()
    if len(e) < 2 or not all(map(math.isfinite, e)):
        return []
    found = []
    for peak in range(1, len(e)):
        before = [depth for depth in range(peak) if e[depth] >= e[peak]]
        start = before[-1] + 1 if before else 0
        after = next((depth for depth in range(peak + 1, len(e)) if e[depth] > e[peak]), None)
        since = min(range(start, peak + 1), key=lambda depth: (e[depth], -depth))
        rise = e[peak] - e[since]
        if after is not None:
            rise = min(rise, e[peak] - min(e[peak:after]))
        if rise > 0:
            found.append(_stage(e, since, peak, rise))
    return found


def stage_of_layer(ratio: Float[Tensor, " depth"], layer: int) -> NormStage:
    """The stage that a layer writes, or where it writes none, this layer's own rise (or fall) as one.

    Example:
        >>> import torch
        >>> stage_of_layer(torch.tensor([1.0, 2.0, 8.0, 8.0]), 0).peak, stage_of_layer(torch.tensor([8.0, 4.0]), 0).peak
        (2, 1)
    """
    for stage in norm_stages(ratio):
        if stage.since <= layer < stage.peak:
            return stage
    e = ratio.double().log().tolist()
    return _stage(e, layer, layer + 1, e[layer + 1] - e[layer])


def _stage(e: Sequence[float], since: int, peak: int, rise: float) -> NormStage:
    first = last = peak
    while last + 1 < len(e) and e[last + 1] > e[peak] - abs(rise) / 2:
        last += 1
    while first - 1 >= since and e[first - 1] > e[peak] - abs(rise) / 2:
        first -= 1
    jumps = [max(0.0, e[depth + 1] - e[depth]) for depth in range(since, peak)]
    whole = sum(jumps) or 1.0
    return NormStage(since, peak, first, last, math.exp(rise), math.exp(e[peak]), [jump / whole for jump in jumps])
