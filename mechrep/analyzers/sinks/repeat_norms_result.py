"""``RepeatNormResult``: how the norm of a repeated token grows with the number of repeats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.errors import InputError
from mechrep.results import Result, check_count

CLEARLY_ABOVE = 2.0  # a BOS norm below so many times the typical one is no place that a norm could move to
MOVED = 0.5  # half-way from typical to BOS, on the log scale


@dataclass(frozen=True)
class Moved:
    """How far repeats have moved the norm from that of ordinary text (0) to that of BOS (1), on the log scale.

    Attributes:
        values: per token and number of repeats; NaN everywhere where the question has no answer.
        share: share of tokens that are at least half-way at the last repeat; NaN likewise.
        reason: why there is no answer, or empty.
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
        norm: norm at the n-th copy.
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
        layers = self.norm.shape[1] - 1
        if not 0 <= layer < layers:
            raise InputError(f"layer {layer}", f"a layer from 0 to {layers - 1}", "count layers from 0")

    def moved(self, layer: int, typical_norm: Float[Tensor, " depth"]) -> Moved:
        """How far the norm after ``layer`` has moved from ordinary text to BOS::

            moved(n) = (log norm(n) - log typical) / (log BOS - log typical)

        Args:
            layer: the sink layer.
            typical_norm: mean norm at ordinary positions by depth, ``SinkNormResult.other_norm`` of the same model.

        Returns:
            The moves.  Where the BOS norm is not at least twice the typical one there is nowhere to move to: NaN, with
            the reason, and never a number.

        Raises:
            InputError: a layer that the model does not have, or typical norms of another model.
        """
        self._check_layer(layer)
        if len(typical_norm) != len(self.bos_norm):
            raise InputError(f"{len(typical_norm)} typical norms", f"{len(self.bos_norm)}, one per depth", "remeasure")
        typical, high = float(typical_norm[layer + 1]), float(self.bos_norm[layer + 1])
        norms = self.norm[:, layer + 1].double()
        reason = ""
        if not self.bos:
            reason = "the repeats stand without BOS, so there is no BOS norm to move to"
        elif not high >= CLEARLY_ABOVE * typical:
            reason = (
                f"the BOS norm after layer {layer} ({high:.3g}) is not {CLEARLY_ABOVE:g} times the typical one "
                f"({typical:.3g}), so there is nowhere to move to"
            )
        if reason:
            return Moved(torch.full_like(norms, torch.nan).float(), float("nan"), reason)
        low, top = torch.tensor([typical, high], dtype=torch.float64).log()
        values = (norms.log() - low) / (top - low)
        return Moved(values.float(), float((values[:, -1] >= MOVED).double().mean()), "")

    def ranking(self, layer: int) -> list[int]:
        """Token ids, the largest norm at the last repeat first."""
        self._check_layer(layer)
        order = torch.argsort(self.norm[:, layer + 1, -1], descending=True, stable=True)
        return [self.token_ids[text] for text in order.tolist()]

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
