"""What change points say: which mechanism appears, which of two comes first, and what was there from the start."""

from __future__ import annotations

import pandas as pd

APPEARS, BY_ONE, FADES, UNSURE, NO_STEP = (
    "appears",
    "appears, by one checkpoint",
    "fades",
    "no more than shuffled checkpoints",
    "no clear step",
)
APPEARING = (APPEARS, BY_ONE)
EARLIER, SAME, UNDECIDED = "earlier", "same checkpoints", "not decided"
_LEVEL = 0.05
_THERE = 0.5  # of its largest value: what has so much at the first checkpoint did not appear during training


def judged_points(points: pd.DataFrame, values: pd.DataFrame) -> pd.DataFrame:
    """Change points with a ``verdict`` on each.

    :data:`APPEARS` or :data:`FADES` where the step is clear and shuffled orders of the checkpoints seldom have one like
    it (p < 0.05).  One checkpoint apart from all others is at an end in ``2 / K`` of the orders of K checkpoints, so p
    cannot be small for a step next to an end: there a clear step upwards is :data:`BY_ONE`, as sure as the texts at
    that one checkpoint.  Any other clear step is :data:`UNSURE`; the rest is :data:`NO_STEP`.

    Args:
        points: of :meth:`~mechrep.studies.checkpoints.CheckpointResult.change_points`.
        values: of :meth:`~mechrep.studies.checkpoints.CheckpointResult.to_frame`.

    Example:
        >>> columns = ["measure", "before", "after", "size", "p", "clear"]
        >>> points = pd.DataFrame([("loops", "step1", "step2", 0.5, 0.01, True)], columns=columns)
        >>> values = pd.DataFrame({"measure": "loops", "revision": ["step1", "step2", "step3"], "n": 8})
        >>> judged_points(points, values)["verdict"].tolist()
        ['appears']
    """
    known = values[values["n"] > 0].groupby("measure")["revision"].agg(["first", "last"])
    verdicts = []
    for point in points.to_dict("records"):
        first, last = known.loc[point["measure"]]
        verdict = APPEARS if point["size"] > 0 else FADES
        if not point["clear"]:
            verdict = NO_STEP
        elif not point["p"] < _LEVEL:
            at_end = (point["before"] == first) != (point["after"] == last)  # both: two checkpoints, no order at all
            verdict = BY_ONE if verdict == APPEARS and at_end else UNSURE
        verdicts.append(verdict)
    return points.assign(verdict=verdicts)


def judged_order(order: pd.DataFrame) -> pd.DataFrame:
    """Pairs of measures with a ``verdict`` on each; what is more often earlier stands first.

    Args:
        order: of :meth:`~mechrep.studies.checkpoints.CheckpointResult.order`.

    Example:
        >>> columns = ["first", "second", "earlier", "same", "later"]
        >>> judged_order(pd.DataFrame([("a", "b", 0.5, 0.3, 0.2)], columns=columns))["verdict"].tolist()
        ['not decided']
    """
    verdicts = []
    for pair in order.to_dict("records"):
        sure = {EARLIER: pair["earlier"], SAME: pair["same"]}
        verdicts.append(next((name for name, share in sure.items() if share >= 1 - _LEVEL), UNDECIDED))
    return order.assign(verdict=verdicts)


def starts_of(values: pd.DataFrame) -> pd.DataFrame:
    """What each measure is at the first checkpoint, and whether it was there from the start.

    Args:
        values: of :meth:`~mechrep.studies.checkpoints.CheckpointResult.to_frame`.
    """
    rows = []
    for measure, part in values.groupby("measure", sort=False):
        first, largest = part.iloc[0], float(part["value"].max())
        there = bool(first["low"] > 0 and first["low"] >= _THERE * largest)  # False where nothing is known
        rows.append((measure, first["value"], first["low"], first["high"], largest, int(first["n"]), there))
    return pd.DataFrame(rows, columns=["measure", "first", "low", "high", "largest", "n", "there"])
