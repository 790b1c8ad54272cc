"""``SinkCutResult``: what a model loses without its sink neurons, beside what it loses without others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.errors import InputError
from mechrep.results import Result, check_count
from mechrep.stats import paired_bootstrap_interval, percentile_interval

UNTOUCHED, CUT = "none", "top"  # selections; every other one is a control
ALL, FIRST = "all", "first"  # cuts: all sink neurons, and the first of them alone
_SAME = 1e-4  # relative: texts that differ by less differ by rounding

# Field, and whether it is a norm, a share or a loss.
MEASURES: Mapping[str, str] = {
    "first_norm": "norm",
    "typical_norm": "norm",
    "attention": "share",
    "losses": "nats",
    "repeat_norm": "norm",
    "continued": "share",
    "p_next": "share",
}


@dataclass(frozen=True, eq=False)
class SinkCutResult(Result):
    """Measures under every condition; row 0 is the untouched model.

    Neurons are set to zero after the product, at every position, BOS included.  Norms are those after the sink layer.

    Attributes:
        layer: the sink layer.
        neurons: the sink neurons, the largest contribution first.
        cuts: per condition the cut that it is or is a control of: ``"all"`` sink neurons or the ``"first"`` alone (only
            where there are several); ``"none"`` for the untouched model.
        selections: ``"none"``, ``"top"`` (the sink neurons themselves) or the name of a control.
        seeds: of the control's draw; 0 where nothing is drawn.
        units: ``[layer, neuron]`` of the neurons set to zero.
        token_ids: the repeated tokens.
        repeats: how often they are repeated.
        bos: whether texts and repeats begin with BOS.
        head: ``[layer, head]`` that attends most to the first position in the untouched model.
        first_norm: norm at the first position of ordinary text.
        typical_norm: mean norm at the other positions.
        attention: mean attention of that head to the first position, over all queries but the first.
        losses: nats per token, all positions.
        repeat_norm: norm at the last copy of each token.
        continued: share of the second half of the copies after which the same token is the most probable next one.
        p_next: mean probability of the same token after a copy of the second half.
    """

    layer: int
    neurons: Sequence[int]
    cuts: Sequence[str]
    selections: Sequence[str]
    seeds: Sequence[int]
    units: Sequence[Sequence[Sequence[int]]]
    token_ids: Sequence[int]
    repeats: int
    bos: bool
    head: Sequence[int]
    first_norm: Float[Tensor, "condition text"]
    typical_norm: Float[Tensor, "condition text"]
    attention: Float[Tensor, "condition text"]
    losses: Float[Tensor, "condition text"]
    repeat_norm: Float[Tensor, "condition token"]
    continued: Float[Tensor, "condition token"]
    p_next: Float[Tensor, "condition token"]

    @property
    def cut_names(self) -> list[str]:
        """``"all"``, and ``"first"`` where it is another cut."""
        return [name for name in dict.fromkeys(self.cuts) if name != UNTOUCHED]

    def neurons_of(self, cut: str) -> list[int]:
        """The sink neurons that a cut sets to zero.

        Raises:
            InputError: no cut of this name.
        """
        if cut not in self.cut_names:
            raise InputError(f"cut {cut!r}", f"one of {self.cut_names}", "choose among these")
        return list(self.neurons if cut == ALL else self.neurons[:1])

    def to_frame(self) -> pd.DataFrame:
        """One row per condition, every measure as its mean over texts or tokens."""
        columns = {name: getattr(self, name).double().mean(1).tolist() for name in MEASURES}
        facts = {"cut": list(self.cuts), "selection": list(self.selections), "seed": list(self.seeds)}
        return pd.DataFrame({**facts, "neurons": [len(units) for units in self.units], **columns})

    def draws(self, cut: str, measure: str) -> dict[str, list[float]]:
        """Mean change of a measure under each draw of each control of a cut.

        Raises:
            InputError: no such cut or measure.
        """
        self.neurons_of(cut)
        values = self._values(measure).mean(1)
        drawn: dict[str, list[float]] = {}
        for row, (name, selection) in enumerate(zip(self.cuts, self.selections, strict=True)):
            if name == cut and selection != CUT:
                drawn.setdefault(selection, []).append(float(values[row] - values[0]))
        return drawn

    def summary(self) -> pd.DataFrame:
        """One row per cut and measure: the untouched value, the value under the cut, the change, and the controls.

        ``low`` and ``high`` are a 95 % bootstrap interval of the change over texts or tokens, paired, ``n`` of them.
        ``alike``: the change is the same in all of them up to rounding, as at BOS, where nothing else has been seen;
        the interval is then a point.  Of each control: the mean change over draws, and its central 95 % range.
        ``beyond``: the interval lies beyond every draw of every control and beyond 0; missing without controls.
        """
        rows = []
        for cut in self.cut_names:
            top = next(r for r, cell in enumerate(zip(self.cuts, self.selections, strict=True)) if cell == (cut, CUT))
            for measure in MEASURES:
                values = self._values(measure)
                change, drawn = (values[top] - values[0]).tolist(), self.draws(cut, measure)
                low, high = paired_bootstrap_interval(change)
                row = {"cut": cut, "measure": measure, "neurons": len(self.units[top])}
                row |= {"untouched": float(values[0].mean()), "value": float(values[top].mean())}
                row |= {"change": float(np.mean(change)), "low": low, "high": high, "n": len(change)}
                row |= {"alike": bool(np.ptp(change) <= _SAME * float(values[0].abs().mean()))}
                row |= {"beyond": beyond(low, high, [one for draws in drawn.values() for one in draws])}
                for control, draws in drawn.items():
                    row[control] = float(np.mean(draws))
                    row[f"{control}_low"], row[f"{control}_high"] = percentile_interval(draws)
                rows.append(row)
        return pd.DataFrame(rows).astype({"beyond": "boolean"})

    def top(self, k: int) -> list[tuple[int, int]]:
        """The first ``k`` sink neurons, as ``(layer, neuron)``.

        Raises:
            InputError: ``k`` larger than their number.
        """
        check_count(k, len(self.neurons), "sink neurons")
        return [(self.layer, neuron) for neuron in self.neurons[:k]]

    def _values(self, measure: str) -> Float[Tensor, "condition unit"]:
        if measure not in MEASURES:
            raise InputError(f"measure {measure!r}", f"one of {list(MEASURES)}", "choose among these")
        return torch.as_tensor(getattr(self, measure)).double()


def beyond(low: float, high: float, draws: Sequence[float]) -> bool | None:
    """Whether an interval of changes lies beyond every draw of every control, and beyond 0; ``None`` of no draws.

    Example:
        >>> beyond(-0.9, -0.5, [-0.4, 0.1]), beyond(-0.9, -0.3, [-0.4, 0.1]), beyond(-0.9, -0.5, [])
        (True, False, None)
    """
    if not draws:
        return None
    return high < min(0.0, *draws) or low > max(0.0, *draws)
