"""``HeadCutResult``: what is left of the first token's mark when heads of layer 0 are cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.errors import InputError
from mechrep.results import Result, check_count

if TYPE_CHECKING:
    import plotly.graph_objects as go

OPS = ("zero", "mean")
Mark = Literal["detector", "state", "norm"]
MARKS: tuple[Mark, ...] = ("detector", "state", "norm")


@dataclass(frozen=True, eq=False)
class HeadCutResult(Result):
    """Losses under cuts, in rows ``("zero", "mean")`` and a column per head of layer 0, the last for all heads.

    Attributes:
        detector: ``[layer, neuron]`` that tells first tokens best in the whole model.
        detector_auroc: its held-out area under the ROC curve in the whole model.
        state_auroc: that of one direction of the MLP's input.
        sink_layer: layer after which norms are read; ``None`` without a norm sink in texts without BOS.
        sink_reason: why there is none, or empty.
        log_ratio: mean over texts of log (norm at the first position over the mean elsewhere), in the whole model.
        detector_loss: area that the detector loses under the cut; at most ``detector_auroc - 0.5`` is a mark lost, and
            more a mark turned round.
        state_loss: area that the best direction loses; it is found anew under every cut.
        norm_loss: of the log ratio; NaN without a norm sink.
        detector_interval: 95 %, bootstrap over words, paired.
        state_interval: 95 %, bootstrap over words, paired.
        norm_interval: 95 %, bootstrap over texts, paired.
    """

    detector: Sequence[int]
    detector_auroc: float
    state_auroc: float
    sink_layer: int | None
    sink_reason: str
    log_ratio: float
    detector_loss: Float[Tensor, "op head"]
    state_loss: Float[Tensor, "op head"]
    norm_loss: Float[Tensor, "op head"]
    detector_interval: Float[Tensor, "op head 2"]
    state_interval: Float[Tensor, "op head 2"]
    norm_interval: Float[Tensor, "op head 2"]

    @property
    def n_heads(self) -> int:
        """Heads of layer 0."""
        return self.detector_loss.shape[1] - 1

    @property
    def needs_attention(self) -> bool:
        """Whether the mark goes when all heads of layer 0 are cut: the state then loses most of what it tells."""
        told, lost = self.state_auroc - 0.5, float(self.state_loss[0, -1])
        return told > 0 and lost > 0.5 * told and float(self.state_interval[0, -1, 0]) > 0

    def loss(self, mark: Mark = "detector") -> Float[Tensor, "op head"]:
        """One of the three losses by name.

        Raises:
            InputError: another name.
        """
        if mark not in MARKS:
            raise InputError(f"mark={mark!r}", f"one of {MARKS}", "choose one of these")
        return getattr(self, f"{mark}_loss")

    def interval(self, mark: Mark = "detector") -> Float[Tensor, "op head 2"]:
        """Its interval.

        Raises:
            InputError: another name.
        """
        self.loss(mark)
        return getattr(self, f"{mark}_interval")

    def carriers(self, mark: Mark = "detector") -> list[tuple[int, int]]:
        """Heads whose cut costs clearly more than that of a typical other head, in both kinds of cut, largest first.

        Clearly: the lower end of its interval lies above 0 and above the median of the others' upper ends.

        Raises:
            InputError: another name of a mark.
        """
        ends = self.interval(mark)[:, :-1]
        found = []
        for head in range(self.n_heads):
            others = [other for other in range(self.n_heads) if other != head]
            control = ends[:, others, 1].median(1).values.clamp_min(0) if others else torch.zeros(len(OPS))
            if bool((ends[:, head, 0] > control).all()):
                found.append(head)
        return [(0, head) for head in sorted(found, key=lambda head: -float(self.loss(mark)[0, head]))]

    def ranking(self, mark: Mark = "detector", op: str = "zero") -> list[int]:
        """Heads of layer 0, those whose cut costs most first.

        Raises:
            InputError: another mark or kind of cut.
        """
        if op not in OPS:
            raise InputError(f"op={op!r}", f"one of {OPS}", "choose one of these")
        values = torch.nan_to_num(self.loss(mark)[OPS.index(op), :-1], nan=-torch.inf)
        return torch.argsort(values, descending=True, stable=True).tolist()

    def top(self, k: int, mark: Mark = "detector") -> list[tuple[int, int]]:
        """The ``k`` heads whose zeroing costs most, as ``(layer, head)``: what :class:`mechrep.Heads` takes.

        Raises:
            InputError: ``k`` larger than the number of heads, or another mark.
        """
        check_count(k, self.n_heads, "heads")
        return [(0, head) for head in self.ranking(mark)[:k]]

    def to_frame(self) -> pd.DataFrame:
        """One row per mark, kind of cut and head; ``"all"`` stands for all heads together."""
        rows = []
        for mark in MARKS:
            losses, ends = self.loss(mark), self.interval(mark)
            for row, op in enumerate(OPS):
                for head in range(self.n_heads + 1):
                    name = "all" if head == self.n_heads else str(head)
                    rows.append((mark, op, name, float(losses[row, head]), *ends[row, head].tolist()))
        return pd.DataFrame(rows, columns=["mark", "op", "head", "loss", "low", "high"])

    def plot(self) -> go.Figure:
        """Losses of every head, a panel per mark."""
        from mechrep.views.first_token_plots import head_cuts_figure

        return head_cuts_figure(self)
