"""``OVClusterResult``: what texts of one cluster of tokens do, beside texts of random sets and plain repeats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.errors import InputError
from mechrep.results import Result, check_count
from mechrep.stats import percentile_interval

KINDS = ("cluster", "random", "repeat")


@dataclass(frozen=True, eq=False)
class OVClusterResult(Result):
    """Texts of three kinds, all ending in the same token; depth 0 is the input of block 0.

    Attributes:
        cluster: the cluster's tokens, in the order in which it grew.
        random_sets: tokens of the random sets.
        length: tokens per text, without BOS.
        bos: whether texts begin with BOS.
        kinds: of each text: ``"cluster"``, ``"random"`` or ``"repeat"`` (the token alone, over and over).
        sets: number of each text's set among those of its kind.
        diameter: of the cluster, and the mean of the random sets'; distance in the residual stream.
        signal: distance of layer 0's attention output at the last position from the token's own value.
        norm: residual norm at the last position.
        bos_norm: residual norm at BOS; NaN without one.
    """

    cluster: Sequence[int]
    random_sets: Sequence[Sequence[int]]
    length: int
    bos: bool
    kinds: Sequence[str]
    sets: Sequence[int]
    diameter: Mapping[str, float]
    signal: Float[Tensor, " text"]
    norm: Float[Tensor, "text depth"]
    bos_norm: Float[Tensor, " depth"]

    def by_set(self, values: Float[Tensor, " text"], kind: str) -> Float[Tensor, " set"]:
        """Means of one number per text over the orders of each set.

        Args:
            values: one number per text, for instance ``signal`` or ``norm[:, depth]``.
            kind: ``"cluster"``, ``"random"`` or ``"repeat"``.

        Raises:
            InputError: another kind.
        """
        if kind not in KINDS:
            raise InputError(f"kind {kind!r}", f"one of {KINDS}", "choose among these")
        here = [(text, number) for text, number in enumerate(self.sets) if self.kinds[text] == kind]
        groups = [[text for text, own in here if own == number] for number in sorted({own for _, own in here})]
        return torch.stack([values[group].double().mean() for group in groups])

    @property
    def p_signal(self) -> float:
        """How often a random set has a signal as small as the cluster's: (1 + such sets) / (1 + random sets)."""
        return _share(self.by_set(self.signal, "random") <= self.by_set(self.signal, "cluster"))

    def p_norm(self, layer: int) -> float:
        """How often a random set comes to a norm as large as the cluster's after ``layer``; counted in the same way.

        Raises:
            InputError: a layer that the model does not have.
        """
        values = self.norm[:, self._depth(layer)]
        return _share(self.by_set(values, "random") >= self.by_set(values, "cluster"))

    def _depth(self, layer: int) -> int:
        if not 0 <= layer < self.norm.shape[1] - 1:
            raise InputError(f"layer {layer}", f"a layer from 0 to {self.norm.shape[1] - 2}", "count layers from 0")
        return layer + 1

    def top(self, k: int) -> list[int]:
        """The first ``k`` tokens of the cluster, as it grew.

        Raises:
            InputError: ``k`` larger than the cluster.
        """
        check_count(k, len(self.cluster), "tokens of the cluster")
        return list(self.cluster[:k])

    def to_frame(self, layer: int | None = None) -> pd.DataFrame:
        """One row per kind: mean signal and norm with 95 % intervals.

        Intervals are over orders for the cluster and over sets for random ones: a set is one draw.

        Args:
            layer: whose output the norms are of; the last by default.
        """
        norms = self.norm[:, -1 if layer is None else self._depth(layer)]
        rows = []
        for kind in KINDS:
            texts = [text for text, name in enumerate(self.kinds) if name == kind]
            row = {"kind": kind, "texts": len(texts), "diameter": self.diameter.get(kind, 0.0)}
            for name, values in (("signal", self.signal), ("norm", norms)):
                draws = self.by_set(values, kind) if kind == "random" else values[texts].double()
                low, high = percentile_interval(draws.tolist())
                row |= {name: float(draws.mean()), f"{name}_low": low, f"{name}_high": high}
            rows.append(row)
        return pd.DataFrame(rows)


def _share(as_extreme: Tensor) -> float:
    return (1 + int(as_extreme.sum())) / (1 + as_extreme.numel())
