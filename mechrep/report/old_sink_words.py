"""What the section on sinks says about a cut: sentences and verdicts, each from the numbers that it rests on."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from mechrep.ablation.old_sweeps import NO_BREAK, Verdict, percent
from mechrep.figures import counted
from mechrep.report.old_head_words import name_of
from mechrep.report.page import decimals
from mechrep.studies.sink_ablation import ALL, CUT, LABELS, MEASURES, UNTOUCHED, SinkCutResult

_FEW = 8  # texts or tokens below which an interval over them means little
_TOKENS = ("repeat_norm", "continued", "p_next")
_NAMED = 6  # neurons in a sentence


def neuron_name(unit: Sequence[int]) -> str:
    """A neuron in words.

    Example:
        >>> neuron_name((1, 7890)).replace("\\u00a0", " ")
        'L1 N7890'
    """
    return f"L{unit[0]}{NO_BREAK}N{unit[1]}"


def named_neurons(units: Sequence[Sequence[int]]) -> str:
    """Neurons in a sentence, the first six by name.

    Example:
        >>> named_neurons([(1, 2), (1, 3)]).replace("\\u00a0", " ")
        'L1 N2, L1 N3'
    """
    names = [neuron_name(unit) for unit in units[:_NAMED]]
    return ", ".join(names) + (f" and {len(units) - _NAMED} more" if len(units) > _NAMED else "")


def verdict_of(row: pd.Series) -> Verdict:
    """The verdict of one row of ``SinkCutResult.summary``: beyond every draw of every control, and beyond 0, or not."""
    if pd.isna(row["beyond"]):
        return "no controls"
    if not row["beyond"]:
        return "not beyond controls"
    # Where all texts are alike, as at BOS, more of them would say nothing more.
    return "beyond controls" if row["n"] >= _FEW or row["alike"] else "beyond controls, few texts"


def measure_name(result: SinkCutResult, measure: str) -> str:
    """What is measured, with the head where there is one."""
    if measure == "attention":
        return f"attention of {name_of(result.head)} to the first position"
    return LABELS[measure]


def shown_value(measure: str, value: float) -> str:
    """A value in its unit.

    Example:
        >>> shown_value("p_next", 0.25).replace("\\u00a0", " "), shown_value("losses", 2.5)
        ('25 %', '2.50')
    """
    return percent(value) if MEASURES[measure] == "share" else decimals(value, 2)


def shown_change(measure: str, change: float) -> str:
    """A change, signed, in points of a share or in its unit; with one decimal more where it would vanish.

    Example:
        >>> shown_change("p_next", -0.25), shown_change("losses", 0.002)
        ('−25', '+0.002')
    """
    number = 100 * change if MEASURES[measure] == "share" else change
    places = 0 if MEASURES[measure] == "share" else 2
    return decimals(number, places + int(0 < abs(number) < 10**-places), sign=True)


def controls_text(result: SinkCutResult, cut: str, measure: str) -> str:
    """The range of all draws of all controls."""
    draws = [draw for changes in result.draws(cut, measure).values() for draw in changes]
    if not draws:
        return "no controls"
    return f"controls {shown_change(measure, min(draws))} to {shown_change(measure, max(draws))}"


def effect_sentence(result: SinkCutResult, row: pd.Series) -> str:
    """One measure under one cut, with everything that it must be judged by."""
    measure, cut = str(row["measure"]), str(row["cut"])
    before, after = shown_value(measure, row["untouched"]), shown_value(measure, row["value"])
    path = f"{before}, unchanged" if before == after else f"from {before} to {after}"
    unit = {"norm": "", "share": " points", "nats": " nats"}[MEASURES[measure]]
    change = f"{shown_change(measure, row['change'])}{unit}"
    if row["alike"]:
        ends = "the same in every text" if measure not in _TOKENS else "the same for every token"
    else:
        ends = f"95{NO_BREAK}% {shown_change(measure, row['low'])} to {shown_change(measure, row['high'])}"
    n = counted(int(row["n"]), "token" if measure in _TOKENS else "text")
    words = {
        "beyond controls": "beyond every control",
        "beyond controls, few texts": "beyond controls, but few to judge by",
        "not beyond controls": "not beyond controls",
        "no controls": "nothing to compare with",
    }[verdict_of(row)]
    beside = controls_text(result, cut, measure)
    return f"{measure_name(result, measure)} {path} ({change}, {ends}, {n}; {beside}): {words}"


def cut_words(result: SinkCutResult, cut: str) -> str:
    """What is set to zero."""
    if cut != ALL:
        return f"the first alone ({neuron_name(result.units[_row(result, cut)][0])})"
    n = len(result.neurons)
    return f"the {'sink neuron' if n == 1 else f'{n} sink neurons'}"


def _row(result: SinkCutResult, cut: str) -> int:
    return list(zip(result.cuts, result.selections, strict=True)).index((cut, CUT))


def control_draws(result: SinkCutResult) -> int:
    """How many draws each control has."""
    names = {name for name in result.selections if name not in (UNTOUCHED, CUT)}
    return max((list(result.selections).count(name) // len(result.cut_names) for name in names), default=0)
