"""What a sweep says in one sentence, as far as its controls allow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pandas as pd

from mechrep.studies.loss import LossResult
from mechrep.studies.sweep_result import SweepResult
from mechrep.views.sweep_plots import perplexity_summary
from mechrep.views.theme import counted, style_of

NO_BREAK = "\u00a0"
Verdict = Literal["beyond controls", "beyond controls, few texts", "not beyond controls", "no controls"]


@dataclass(frozen=True)
class Finding:
    """A sentence and the verdict that it rests on.

    Attributes:
        verdict: ``"beyond controls"`` when the 95 % interval of the top neurons over texts lies beyond the interval of
            every control; ``"beyond controls, few texts"`` when only the share itself does; ``"not beyond controls"``;
            or ``"no controls"``.
        sentence: plain text.
    """

    verdict: Verdict
    sentence: str


def percent(share: float) -> str:
    """A share in whole percent, or with one decimal where whole ones would hide it.

    Example:
        >>> percent(0.25).replace("\\u00a0", " "), percent(0.004).replace("\\u00a0", " ")
        ('25 %', '0.4 %')
    """
    number = 100 * share
    whole = number == 0 or 1 <= number <= 99 or number == 100
    return f"{number:.0f}{NO_BREAK}%" if whole else f"{number:.1f}{NO_BREAK}%"


def percent_range(low: float, high: float) -> str:
    """Two shares as a range, or one where they look the same.

    Example:
        >>> percent_range(0.25, 0.5).replace("\\u00a0", " "), percent_range(1.0, 1.0).replace("\\u00a0", " ")
        ('25–50 %', '100 %')
    """
    first, second = percent(low), percent(high)
    return first if first == second else f"{first.split(NO_BREAK)[0]}–{second}"


def deactivation_finding(sweep: SweepResult, model_name: str) -> Finding:
    """What cutting the largest number of top neurons did, beside what the controls did.

    Example:
        >>> from mechrep.provenance import Provenance
        >>> outcomes = [
        ...     {"selection": s, "k": k, "seed": seed, "text": str(text), "repeating": s != "top",
        ...      "escaped_at": None, "relooped": False, "new_period": None}
        ...     for s, k, seed in [("none", 0, 0), ("top", 5, 0), ("random", 5, 0), ("random", 5, 1)]
        ...     for text in range(20)
        ... ]
        >>> sweep = SweepResult(Provenance({"name": "net"}, {}, {}), "deactivation", "mechrep", outcomes)
        >>> deactivation_finding(sweep, "net").verdict
        'beyond controls'
    """
    facts = _at_largest_k(sweep)
    if facts is None:
        return Finding("no controls", f"No neurons of {model_name} were cut, so nothing is known about what they do.")
    k, top, controls = facts
    cut = f"cutting the {_neurons(k)} that rise most at the onset"
    left = f"leaves {percent(top['share'])} of {counted(int(top['texts']), 'looping text')} repeating"
    if controls.empty:
        return Finding(
            "no controls", f"In {model_name}, {cut} {left}; without controls this says nothing about these neurons."
        )
    low, high = controls["low"].min(), controls["high"].max()
    others = f"as many control neurons leave {percent_range(low, high)}"
    if top["share"] >= low:
        same = controls[controls["low"] <= top["share"]]
        names = (
            _listed([style_of(name).label for name in same["selection"]])
            if len(same) < len(controls)
            else "control neurons"
        )
        span = percent_range(same["low"].min(), same["high"].max())
        return Finding(
            "not beyond controls", f"In {model_name}, {cut} {left}: no fewer than cutting as many {names} ({span})."
        )
    if top["high"] >= low:
        return Finding(
            "beyond controls, few texts",
            f"In {model_name}, {cut} {left}; {others}, but the interval over texts "
            f"({percent_range(top['low'], top['high'])}) reaches the controls': more texts are needed.",
        )
    return Finding("beyond controls", f"In {model_name}, {cut} {left}; {others}.")


def activation_finding(sweep: SweepResult | None) -> Finding:
    """What boosting the largest number of top neurons did on loop-free texts, beside what the controls did."""
    facts = None if sweep is None else _at_largest_k(sweep)
    if sweep is None or facts is None:
        return Finding(
            "no controls",
            "Boosting was not tested: the model wrote no loop-free text that is long enough to be continued.",
        )
    k, top, controls = facts
    base = sweep.summary().query("selection == 'none'")["share"].iloc[0]
    sentence = f"Boosting the same {_neurons(k)} starts a loop in {percent(top['share'])} of "
    sentence += f"{counted(int(top['texts']), 'loop-free text')} ({percent(base)} untouched)"
    if controls.empty:
        return Finding("no controls", f"{sentence}; no controls were run.")
    low, high = controls["low"].min(), controls["high"].max()
    sentence += f"; boosting as many control neurons does so in {percent_range(low, high)}"
    if top["share"] <= high:
        return Finding("not beyond controls", f"{sentence}: no more than controls.")
    if top["low"] <= high:
        return Finding("beyond controls, few texts", f"{sentence}; over texts the intervals overlap.")
    return Finding("beyond controls", f"{sentence}.")


def escape_sentence(sweep: SweepResult) -> str:
    """How many texts left the loop they were in, whether or not they fell into another one.

    Said for the fewest and the most neurons cut, wherever more is seen: choosing the k would choose the finding.

    Example:
        >>> from mechrep.provenance import Provenance
        >>> outcomes = [
        ...     {"selection": s, "k": k, "seed": 0, "text": str(text), "repeating": True,
        ...      "escaped_at": 3 if s == "top" and text < 7 else None, "relooped": s == "top", "new_period": 4}
        ...     for s, k in [("none", 0), ("top", 5), ("random", 5)]
        ...     for text in range(20)
        ... ]
        >>> escape_sentence(SweepResult(Provenance({"name": "net"}, {}, {}), "deactivation", "mechrep", outcomes))
        'Leaving a loop is not the end of looping: with 5 neurons cut, 7 of 20 texts leave theirs (controls 0 to 0).'
    """
    table = sweep.to_frame()
    top = table[table["selection"] == "top"]
    if top.empty:
        return ""
    parts = []
    for k in sorted({int(top["k"].min()), int(top["k"].max())}):
        cell = top[top["k"] == k].iloc[0]
        controls = table[(table["k"] == k) & ~table["selection"].isin(["none", "top"])]["escaped"]
        beside = f" (controls {controls.min()} to {controls.max()})" if len(controls) else ""
        leave = "texts leave theirs" if not parts else "do"
        parts.append(f"with {_neurons(k)} cut, {cell['escaped']} of {cell['texts']} {leave}{beside}")
    return f"Leaving a loop is not the end of looping: {'; '.join(parts)}."


def cost_sentence(result: LossResult) -> str:
    """What the same change does to perplexity on held-out text."""
    table = perplexity_summary(result)
    k = int(table["k"].max())
    base, last = float(table["perplexity"].iloc[0]), table[table["k"] == k]
    change = "the cut" if result.op == "zero" else "the boost"
    top, controls = last[last["selection"] == "top"], last[~last["selection"].isin(["top", "none"])]
    if top.empty:
        return f"Perplexity on held-out text is {base:.1f}."
    after = float(top["perplexity"].iloc[0])
    sentence = f"On held-out text {change} of {_neurons(k)} moves perplexity from {base:.1f} to {after:.1f}"
    if controls.empty:
        return f"{sentence}."
    return f"{sentence} (controls: {controls['perplexity'].min():.1f} to {controls['perplexity'].max():.1f})."


def _at_largest_k(sweep: SweepResult) -> tuple[int, pd.Series, pd.DataFrame] | None:
    """The largest k, the row of the top neurons and the rows of the controls there.

    An interval of few draws ends inside their range; here it reaches to the farthest draw, in favour of the controls.
    """
    table = sweep.summary()
    top = table[table["selection"] == "top"]
    if top.empty:
        return None
    row = top.loc[top["k"].idxmax()]
    here = table[table["k"] == row["k"]]
    controls = here[~here["selection"].isin(["top", "none"])]
    draws = sweep.to_frame().query("k == @row.k").groupby("selection")["share"]
    low, high = (controls["selection"].map(ends) for ends in (draws.min(), draws.max()))
    controls = controls.assign(low=controls["low"].clip(upper=low), high=controls["high"].clip(lower=high))
    return int(row["k"]), row, controls


def _neurons(k: int) -> str:
    return counted(k, "neuron")


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
