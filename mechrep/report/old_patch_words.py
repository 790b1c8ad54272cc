"""Changes under the patch in words: values, intervals and verdicts, the same in sentences and in tables."""

from __future__ import annotations

import math

from mechrep.ablation.old_sweeps import NO_BREAK, Verdict, percent
from mechrep.figures import counted
from mechrep.report.page import decimals, interval
from mechrep.studies.sink_patch import LOSS, Change, PatchStudyResult

CONTROLS = {"random": "random", "layer_matched": "layer-matched", "activation_matched": "activation-matched"}
_WORDS: dict[Verdict, str] = {
    "beyond controls": "beyond every control",
    "beyond controls, few texts": "beyond every control, but with few of them",
    "not beyond controls": "no more than controls explain",
    "no controls": "without controls this says nothing about these neurons",
}


def held(patch: PatchStudyResult) -> str:
    """Which neurons are held."""
    named = ", ".join(map(str, patch.neurons[:4])) + (f" and {len(patch.neurons) - 4} more" * (len(patch.neurons) > 4))
    return f"{'neuron' if len(patch.neurons) == 1 else 'neurons'} {named} of layer {patch.layer}"


def told(one: Change) -> str:
    """One measure as a sentence without its full stop."""
    before, after = value(one, one.original), value(one, one.patched)
    path = before if before == after else f"{before} → {after}"
    return f"{one.measure[0].upper()}{one.measure[1:]}: {path} ({measured(one)})"


def measured(one: Change) -> str:
    """Change, interval, number and controls, and the verdict where there can be one."""
    what = f"{'loss ' * (one.measure == LOSS)}{signed(one, one.change)}{_unit(one)}"
    if one.over:
        span = f"95{NO_BREAK}% {signed(one, one.low)} to {signed(one, one.high)}"
        what += f", {span}, {counted(one.n, one.over)}"
    return f"{what}; {_beside(one)}; {in_words(one)}"


def in_words(one: Change) -> str:
    """The verdict."""
    return "one number per model, so without an interval" if one.verdict is None else _WORDS[one.verdict]


def _beside(one: Change) -> str:
    draws = one.draws
    return f"controls {signed(one, min(draws))} to {signed(one, max(draws))}" if draws else "no controls"


def _unit(one: Change) -> str:
    return {"share": " points", "nats": " nats", "norm": ""}[one.unit]


def signed(one: Change, change: float) -> str:
    """A change in its unit: percentage points, nats, or as it is."""
    return decimals(100 * change, 1, sign=True) if one.unit == "share" else decimals(change, 3, sign=True)


def value(one: Change, number: float) -> str:
    """A value in its unit."""
    return "not known" if math.isnan(number) else percent(number) if one.unit == "share" else decimals(number)


def ends(one: Change) -> str:
    """The change with its interval, for a cell."""
    factor, places = (100.0, 1) if one.unit == "share" else (1.0, 3)
    if not one.over:
        return decimals(factor * one.change, places, sign=True)
    return interval(factor * one.change, factor * one.low, factor * one.high, places, sign=True)


def ranges(one: Change) -> list[str]:
    """Least and largest change over the draws of each control, for cells."""
    cells = []
    for changes in one.controls.values():
        low, high = signed(one, min(changes)), signed(one, max(changes))
        cells.append(low if low == high else f"{low} to {high}")
    return cells
