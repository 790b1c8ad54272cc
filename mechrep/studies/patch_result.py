"""``PatchStudyResult``: what a sink patch changes, beside the same patch on other neurons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.errors import InputError
from mechrep.results import Result, check_count
from mechrep.stats import paired_bootstrap_interval, percentile_interval

if TYPE_CHECKING:
    import plotly.graph_objects as go

ORIGINAL, PATCHED = "original", "patched"


@dataclass(frozen=True, eq=False)
class PatchStudyResult(Result):
    """Measures of a model under every condition; row 0 is the untouched model, row 1 the patch, then the controls.

    Norms are those after the sink layer.

    Attributes:
        layer: the sink layer.
        neurons: the patched neurons in it.
        selections: ``"original"``, ``"patched"`` or the name of a control, per condition.
        seeds: of the control's draw; 0 where nothing is drawn.
        units: ``[layer, neuron]`` of the neurons held in each condition.
        token_ids: the repeated tokens.
        repeats: how often they are repeated.
        bos: whether texts and repeats begin with BOS.
        first_norm: mean norm at the first position of ordinary text.
        typical_norm: mean norm at the other positions.
        repeat_norm: norm at the last copy of each token.
        moved: how far that norm has moved from the typical (0) to the BOS norm (1) of the untouched model, on the log
            scale; NaN where these two do not differ clearly.
        moved_reason: why ``moved`` is NaN, or empty.
        head: ``[layer, head]`` that attends most to the first position of ordinary text in the untouched model.
        attention: mean attention of that head to the first position, per condition.
        mean_attention: the same over all heads.
        continued: share of the second half of the copies after which the same token is the most probable next one:
            greedy decoding goes on repeating there.
        losses: nats per token on ordinary text, all positions.
    """

    layer: int
    neurons: Sequence[int]
    selections: Sequence[str]
    seeds: Sequence[int]
    units: Sequence[Sequence[Sequence[int]]]
    token_ids: Sequence[int]
    repeats: int
    bos: bool
    first_norm: Float[Tensor, " condition"]
    typical_norm: Float[Tensor, " condition"]
    repeat_norm: Float[Tensor, "condition token"]
    moved: Float[Tensor, "condition token"]
    moved_reason: str
    head: Sequence[int]
    attention: Float[Tensor, " condition"]
    mean_attention: Float[Tensor, " condition"]
    continued: Float[Tensor, "condition token"]
    losses: Float[Tensor, "condition text"]

    @property
    def drifted(self) -> Float[Tensor, "condition token"]:
        """1 where a token's last copy has moved at least half-way to BOS, else 0; NaN where ``moved`` is."""
        return torch.where(self.moved.isnan(), torch.nan, (self.moved >= 0.5).float())

    def _measures(self) -> dict[str, Tensor]:
        """Per condition one value, or one per token or text."""
        return {
            "norm of the first position": self.first_norm[:, None],
            "typical norm": self.typical_norm[:, None],
            "norm at the last repeat": self.repeat_norm,
            "share of tokens that drift": self.drifted,
            "attention to the first position, best head": self.attention[:, None],
            "attention to the first position, all heads": self.mean_attention[:, None],
            "repeats continued": self.continued,
            "loss": self.losses,
        }

    def to_frame(self) -> pd.DataFrame:
        """One row per condition, every measure as its mean; perplexity beside the loss."""
        columns: dict[str, list[float]] = {
            name: values.double().mean(1).tolist() for name, values in self._measures().items()
        }
        frame = pd.DataFrame({"selection": list(self.selections), "seed": list(self.seeds), **columns})
        return frame.assign(perplexity=np.exp(frame["loss"]))

    def summary(self) -> pd.DataFrame:
        """One row per measure: original, patched, their difference, and the same difference under each control.

        ``low`` and ``high`` are a 95 % bootstrap interval of the difference over tokens or texts, paired; a single
        number per model has none.  Of a control: the mean of the difference over draws, and its central 95 % range.
        """
        controls = [name for name in dict.fromkeys(self.selections) if name not in (ORIGINAL, PATCHED)]
        measures: list[tuple[str, Tensor, Callable[[float], float]]] = [
            (name, values, float) for name, values in self._measures().items()
        ]
        measures.append(("perplexity", self.losses, lambda value: float(np.exp(value))))
        rows = []
        for name, values, shown in measures:
            means = [shown(value) for value in values.double().mean(1).tolist()]
            row: dict[str, object] = {"measure": name, "original": means[0], "patched": means[1]}
            row |= {"difference": means[1] - means[0], "low": float("nan"), "high": float("nan")}
            if values.shape[1] > 1 and shown is float and not bool(values[:2].isnan().any()):
                row["low"], row["high"] = paired_bootstrap_interval((values[1] - values[0]).tolist())
            for control in controls:
                drawn = [means[i] - means[0] for i, selection in enumerate(self.selections) if selection == control]
                row[control] = float(np.mean(drawn))
                row[f"{control}_low"], row[f"{control}_high"] = percentile_interval(drawn)
            rows.append(row)
        return pd.DataFrame(rows)

    def top(self, k: int) -> list[int]:
        """The ``k`` tokens whose norm at the last repeat the patch lowers most.

        Raises:
            InputError: ``k`` larger than the number of tokens.
        """
        check_count(k, len(self.token_ids), "tokens")
        fall = self.repeat_norm[0] - self.repeat_norm[1]
        return [self.token_ids[token] for token in torch.argsort(fall, descending=True, stable=True).tolist()[:k]]

    def of(self, selection: str) -> list[int]:
        """Conditions of this name.

        Raises:
            InputError: there is none.
        """
        found = [row for row, name in enumerate(self.selections) if name == selection]
        if not found:
            raise InputError(f"selection {selection!r}", f"one of {sorted(set(self.selections))}", "choose among these")
        return found

    def plot(self) -> go.Figure:
        """What the patch changes, beside the same patch on other neurons (:mod:`mechrep.views.patch_plots`)."""
        from mechrep.views.patch_plots import patch_figure

        return patch_figure(self)
