"""``SinkNormResult``: how large the residual stream is at the first position, and how large elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.analyzers.sinks.layer import robust_z
from mechrep.provenance import Provenance
from mechrep.results import Result, check_count

SINK_RATIO = 5.0  # "no sink layer" where the first position never exceeds the others so many times; our convention


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
    def layer(self) -> int | None:
        """The sink layer, that of the largest excess jump; ``None`` where the ratio never exceeds 5 (no sink)."""
        return int(self.excess_jump.argmax()) if self.largest_ratio > SINK_RATIO else None

    @property
    def layer_of_jump(self) -> int:
        """The layer of the largest raw jump at the first position, whether it is a sink or not."""
        return int(self.jump.argmax())

    def ranking(self) -> list[int]:
        """Layers, largest excess jump first."""
        values = torch.nan_to_num(self.excess_jump, nan=-torch.inf)
        return torch.argsort(values, descending=True, stable=True).tolist()

    def top(self, k: int) -> list[int]:
        """The ``k`` layers with the largest excess jump: with several writing layers, there are several peaks.

        Raises:
            InputError: ``k`` larger than the number of layers.
        """
        check_count(k, len(self.jump), "layers")
        return self.ranking()[:k]

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
