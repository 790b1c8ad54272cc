"""What a sink patch changed, beside what the same patch on other neurons changed: numbers for figures and sections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mechrep.studies.benchmarks.result import UNTOUCHED, BenchmarkResult
from mechrep.studies.patch_result import ORIGINAL, PATCHED, PatchStudyResult
from mechrep.views.finding import Verdict

_FEW = 8  # tokens or texts below which an interval over them means little
_OVER = {  # what the interval of a measure is over; the others are one number per model
    "norm at the last repeat": "token",
    "share of tokens that drift": "token",
    "repeats continued": "token",
    "loss": "text",
}
_SHARES = ("drift", "attention", "continued")

DRIFT, LOSS = "share of tokens that drift", "loss"


@dataclass(frozen=True)
class Change:
    """One measure, before and after.

    Attributes:
        measure: its name in the result.
        unit: ``"share"``, ``"norm"`` or ``"nats"``.
        original: of the untouched model.
        patched: under the patch.
        change: the difference.
        low: lower end of its 95 % interval (paired bootstrap); NaN where there is one number per model.
        high: upper end.
        n: how many tokens, texts or questions the interval is over; 0 without one.
        over: what these are; empty without an interval.
        controls: name of each control with the changes of its draws.
        verdict: ``"beyond controls"`` when the interval lies beyond every draw of every control, and beyond 0 (with
            ``"few texts"`` when it is over fewer than eight); ``None`` without an interval, which cannot be judged.
    """

    measure: str
    unit: Literal["share", "norm", "nats"]
    original: float
    patched: float
    change: float
    low: float
    high: float
    n: int
    over: str
    controls: dict[str, list[float]]
    verdict: Verdict | None

    @property
    def draws(self) -> list[float]:
        """The changes of all draws of all controls."""
        return [change for changes in self.controls.values() for change in changes]


def patch_changes(result: PatchStudyResult) -> dict[str, Change]:
    """Every measure of a patch by its name, perplexity left out: it is the exponential of the loss."""
    frame, summary = result.to_frame(), result.summary().set_index("measure")
    controls = [name for name in dict.fromkeys(result.selections) if name not in (ORIGINAL, PATCHED)]
    sizes = {"token": len(result.token_ids), "text": result.losses.shape[1]}
    found = {}
    for measure in summary.index.drop("perplexity"):
        row, values = summary.loc[measure], frame[measure]
        draws = {name: (values[frame["selection"] == name] - values[0]).tolist() for name in controls}
        low, high = float(row["low"]), float(row["high"])
        over = "" if math.isnan(low) else _OVER[measure]
        n = sizes.get(over, 0)
        found[str(measure)] = Change(
            measure=str(measure),
            unit="nats" if measure == LOSS else "share" if any(word in measure for word in _SHARES) else "norm",
            original=float(row["original"]),
            patched=float(row["patched"]),
            change=float(row["difference"]),
            low=low,
            high=high,
            n=n,
            over=over,
            controls=draws,
            verdict=judged(low, high, n, [draw for changes in draws.values() for draw in changes]) if over else None,
        )
    return found


def benchmark_changes(result: BenchmarkResult) -> list[Change]:
    """Every measure of every benchmark under the first intervention, named by the title of the benchmark."""
    frame = result.to_frame()
    name = next(one["condition"] for one in result.conditions if one["condition"] != UNTOUCHED)
    found = []
    for (title, metric), rows in frame.groupby(["title", "metric"], sort=False):
        own = rows[rows["condition"] == name]
        cut = own[own["selection"] == "intervention"].iloc[0]
        controls = own[own["selection"] != "intervention"].groupby("selection", sort=False)["difference"]
        draws = {str(kind): differences.tolist() for kind, differences in controls}
        low, high, n = float(cut["difference_low"]), float(cut["difference_high"]), int(cut["n"])
        found.append(
            Change(
                measure=f"{title}, {metric}",
                unit="nats" if metric == "margin" else "share",
                original=float(rows[rows["condition"] == UNTOUCHED]["value"].iloc[0]),
                patched=float(cut["value"]),
                change=float(cut["difference"]),
                low=low,
                high=high,
                n=n,
                over="question",
                controls=draws,
                verdict=judged(low, high, n, [draw for changes in draws.values() for draw in changes]),
            )
        )
    return found


def judged(low: float, high: float, n: int, draws: Sequence[float]) -> Verdict:
    """Whether an interval lies beyond every draw and beyond 0.

    Example:
        >>> judged(0.1, 0.2, 16, [0.0, 0.05]), judged(0.1, 0.2, 16, [0.0, 0.15]), judged(-0.2, -0.1, 4, [0.0])
        ('beyond controls', 'not beyond controls', 'beyond controls, few texts')
    """
    if not draws:
        return "no controls"
    if not (high < min(0.0, *draws) or low > max(0.0, *draws)):
        return "not beyond controls"
    return "beyond controls" if n >= _FEW else "beyond controls, few texts"
