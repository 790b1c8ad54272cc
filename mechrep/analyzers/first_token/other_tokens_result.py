"""``OtherTokenResult``: other-token masses of the first layer's heads, and whether the identity holds on this model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.provenance import Provenance
from mechrep.results import Result, check_count

if TYPE_CHECKING:
    import plotly.graph_objects as go

LARGEST = ("identity_error", "same_value_error", "bound_excess")  # largest values; all other state is sums


@dataclass(frozen=True, eq=False)
class OtherTokenResult(Result):
    """Attention of layer 0 to other tokens than the own one; means over all positions but the first of each text.

    Errors are the largest over all texts and positions, in units of the head's mean value norm.

    Attributes:
        mass: ``w``, per head; NaN where no text has a second token.
        by_position: mean over texts of ``w_t`` at each of the first positions; NaN where no text is that long.
        uniform_mass: what ``w`` would be if a head attended uniformly to these texts.
        identity_error: of ``z_t - v_t = sum_j A[t, j] (v_j - v_t)``: rounding, in every model whose rows sum to 1.
        same_value_error: of the same sum over other tokens only: rounding where equal tokens have equal values,
            large where the position is part of the value.
        bound_excess: the largest of ``|sum over others| - w_t max |v_j - v_t|``, which is never above rounding.
        value_shift: mean of ``|z_t - v_t|``, in units of the mean value norm.
        head_shift: mean of ``|(z_t - v_t) W_O|``, in units of the residual stream; NaN without ``W_O``.
        shift_by_position: mean over texts of ``|sum_h (z_t - v_t) W_O|`` at each of the first positions.
        n_texts: texts.
        n_queries: positions after the first of each text.
    """

    mass: Float[Tensor, " head"]
    by_position: Float[Tensor, "head pos"]
    uniform_mass: float
    identity_error: Float[Tensor, " head"]
    same_value_error: Float[Tensor, " head"]
    bound_excess: Float[Tensor, " head"]
    value_shift: Float[Tensor, " head"]
    head_shift: Float[Tensor, " head"]
    shift_by_position: Float[Tensor, " pos"]
    n_texts: int
    n_queries: int

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], provenance: Provenance, residual: bool) -> OtherTokenResult:
        """Turn sums into means."""
        queries, norm = state["queries"], state["value_norm"] / state["tokens"]
        known = 1.0 if residual else torch.nan
        tensors = {
            "mass": state["mass"] / queries,
            "by_position": state["mass_by_position"] / state["position_count"],
            # 0 over 0 is a head without values, which is without error too.
            **{name: (state[name] / norm).masked_fill(state[name] == 0, 0) for name in LARGEST},
            "value_shift": state["value_shift"] / queries / norm,
            "head_shift": known * state["head_shift"] / queries,
            "shift_by_position": known * state["shift_by_position"] / state["position_count"],
        }
        return cls(
            provenance,
            **{name: value.float() for name, value in tensors.items()},
            uniform_mass=float(state["uniform_mass"] / queries),
            n_texts=int(state["texts"]),
            n_queries=int(queries),
        )

    def ranking(self) -> list[int]:
        """Heads of layer 0, those that look most at other tokens first."""
        return torch.argsort(torch.nan_to_num(self.mass, nan=-torch.inf), descending=True, stable=True).tolist()

    def top(self, k: int) -> list[tuple[int, int]]:
        """The ``k`` heads with the largest other-token mass, as ``(layer, head)``.

        Raises:
            InputError: ``k`` larger than the number of heads.
        """
        check_count(k, len(self.mass), "heads")
        return [(0, head) for head in self.ranking()[:k]]

    def to_frame(self) -> pd.DataFrame:
        """One row per head, the largest mass first."""
        order = self.ranking()
        names = ("mass", "value_shift", "head_shift", "identity_error", "same_value_error", "bound_excess")
        columns = {name: getattr(self, name)[order].numpy() for name in names}
        return pd.DataFrame({"layer": 0, "head": order, **columns})

    def plot(self) -> go.Figure:
        """Mass by position, a line per head."""
        from mechrep.views.first_token_plots import other_token_mass_figure

        return other_token_mass_figure(self)
