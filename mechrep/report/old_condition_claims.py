"""What the sections on conditions may claim: concentration, sets of heads, and the published claims one by one."""

from __future__ import annotations

import pandas as pd

from mechrep.ablation.old_sweeps import Verdict
from mechrep.report.page import ReportTable, decimals, interval
from mechrep.studies.natural_vs_induced_study import BuilderContrast, ConditionStudy

CONDITIONS = ("induced", "natural")
_SHOWN = {"text": "texts shown again", "cycle": "cycles shown again"}
_FEW, _LEVEL = 8, 0.05  # texts below which an interval over texts means little


def enough(found: BuilderContrast) -> bool:
    """Whether both conditions have texts enough for an interval to mean something."""
    return min(found.cut.conditions.count(name) for name in CONDITIONS) >= _FEW


def concentration(found: BuilderContrast) -> str:
    """``"induced"`` or ``"natural"``: what fewer heads carry, beyond interval and placebo; else ``"neither"``."""
    row = found.compared("gini")
    if not enough(found) or row["p"] >= _LEVEL or row["low"] <= 0 <= row["high"]:
        return "neither"
    return "induced" if row["value"] > 0 else "natural"


def specialised_sentence(found: BuilderContrast) -> str:
    """Do fewer heads carry one of the conditions?"""
    gini, number = found.compared("gini"), found.compared("effective_heads")
    told = {
        "induced": "induced copying rests on fewer heads than loops do",
        "natural": "natural loops rest on fewer heads than induced copying does",
        "neither": "that one condition rests on fewer heads than the other was not found",
    }[concentration(found)]
    table = found.specialisation["ablation"].set_index(["condition", "measure"])
    heads = [table.loc[(name, "effective_heads")] for name in CONDITIONS]
    counts = " and ".join(interval(one["value"], one["low"], one["high"], 1) for one in heads)
    return (
        f"{told}: the effects are as concentrated as those of {counts} equally strong heads (induced and natural; "
        f"difference {interval(number['value'], number['low'], number['high'], 1, sign=True)}; difference of Gini "
        f"coefficients {interval(gini['value'], gini['low'], gini['high'], sign=True)}, labels swapped "
        f"{decimals(gini['null_low'])} to {decimals(gini['null_high'])}, p = {decimals(gini['p'], 3)})."
    )


def set_verdict(sets: pd.DataFrame, heads_of: str, condition: str) -> Verdict:
    """The rule of all cuts: the interval lies beyond every draw of every control, and beyond 0.

    Example:
        >>> rows = [("natural", s, "natural", *numbers, 12) for s, numbers in [
        ...     ("top", (-1.0, -1.2, -0.8)), ("random", (-0.1, -0.2, 0.0))]]
        >>> columns = ["heads_of", "selection", "condition", "effect", "low", "high", "n"]
        >>> set_verdict(pd.DataFrame(rows, columns=columns), "natural", "natural")
        'beyond controls'
    """
    rows = sets[(sets["heads_of"] == heads_of) & (sets["condition"] == condition)]
    top, draws = rows[rows["selection"] == "top"].iloc[0], rows[rows["selection"] != "top"]["effect"].tolist()
    if not draws:
        return "no controls"
    if not (top["high"] < min(0.0, *draws) or top["low"] > max(0.0, *draws)):
        return "not beyond controls"
    return "beyond controls" if top["n"] >= _FEW else "beyond controls, few texts"


def set_sentence(study: ConditionStudy, found: BuilderContrast) -> str:
    """What the leading heads of each condition do when they are cut together."""
    if found.sets is None:
        return "There were too few texts to find heads in some and cut them together in others."
    parts = []
    for owner in CONDITIONS:
        rows = found.sets[(found.sets["heads_of"] == owner) & (found.sets["selection"] == "top")]
        told = [
            f"{interval(row['effect'], row['low'], row['high'], sign=True)} nats when {row['condition']} "
            f"({set_verdict(found.sets, owner, row['condition'])}, n = {row['n']})"
            for row in rows.to_dict("records")
        ]
        parts.append(f"the {study.k} heads that lead when {owner}, cut together: {', '.join(told)}")
    same = (
        found.sets[found.sets["selection"] == "top"]
        .groupby("heads_of")["heads"]
        .agg(lambda one: set(one.iloc[0].split()))
    )
    shared = len(set.intersection(*same.tolist()))
    return f"In texts on which they were not found, {'; '.join(parts)}. {shared} of {study.k} are in both sets."


def sets_table(study: ConditionStudy, shown: str, sets: pd.DataFrame) -> ReportTable:
    """Sets of heads and their controls."""
    rows = []
    for (owner, condition), part in sets.groupby(["heads_of", "condition"], sort=False):
        top = part[part["selection"] == "top"].iloc[0]
        controls = part[part["selection"] != "top"]
        ranges = [
            f"{str(name).replace('_', '-')}: {decimals(draws['effect'].min(), 2, sign=True)} to "
            f"{decimals(draws['effect'].max(), 2, sign=True)} ({draws['heads'].nunique()} different)"
            for name, draws in controls.groupby("selection", sort=False)
        ]
        ends = interval(top["effect"], top["low"], top["high"], sign=True)
        verdict = set_verdict(sets, str(owner), str(condition))
        rows.append([owner, top["heads"], condition, ends, "; ".join(ranges) or "none", int(top["n"]), verdict])
    return ReportTable(
        f"The {study.k} heads that lead in one condition, cut together, {shown}",
        ["lead when", "heads", "measured when", "change [95 %] (nats)", "control heads", "texts", "verdict"],
        rows,
        "Heads are written layer.head. The halves of the prompts do not overlap.",
    )


def claims_table(study: ConditionStudy) -> ReportTable:
    """The published claims, and whether this model bears them out."""
    rows = [
        [_SHOWN[shown], claim, *judged]
        for shown, found in study.contrasts.items()
        for claim, judged in (
            ("loops and induced copying have different mechanisms", _different(found)),
            ("induced copying rests on few specialised heads, loops do not", _few_heads(found)),
            ("natural loops have no circuit of heads", _no_circuit(study, found)),
        )
    ]
    return ReportTable(
        "Beside Mahaut and Franzon 2025",
        ["induced condition", "they say", "here", "because"],
        rows,
        "Theirs are Pythia and OLMo, of about a billion parameters; others may do otherwise. The claims are those "
        "of the abstract. “Not found” is no proof of the contrary.",
    )


_OPEN = ("open", "too few texts")


def _different(found: BuilderContrast) -> tuple[str, str]:
    if not enough(found):
        return _OPEN
    common = found.compared("common")
    because = f"the same heads carry {interval(common['value'], common['low'], common['high'])} of the effect in both, "
    because += f"labels swapped {decimals(common['null'])}, p = {decimals(common['p'], 3)}"
    words = {
        "other heads": "as they say: different heads",
        "same heads": "differs from the paper: largely the same heads, to a different degree",
        "not found": "differs from the paper: no difference was found",
    }
    return words[found.answer], because


def _few_heads(found: BuilderContrast) -> tuple[str, str]:
    if not enough(found):
        return _OPEN
    gini = found.compared("gini")
    because = f"Gini, induced − natural: {interval(gini['value'], gini['low'], gini['high'], sign=True)}"
    words = {
        "induced": "as they say: fewer heads carry induced copying",
        "natural": "differs from the paper: fewer heads carry natural loops",
        "neither": "differs from the paper: no difference was found",
    }
    return words[concentration(found)], because


def _no_circuit(study: ConditionStudy, found: BuilderContrast) -> tuple[str, str]:
    if found.sets is None or not enough(found):
        return _OPEN
    verdict = set_verdict(found.sets, "natural", "natural")
    because = f"the {study.k} heads that lead in loops, cut together in other loops: {verdict}"
    if verdict == "beyond controls":
        return "differs from the paper: loops need these heads", because
    if verdict == "not beyond controls":
        return "as they say: no set of heads was found", because
    return "open", because
