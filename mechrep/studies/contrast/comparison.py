"""``compare_heads``: are the heads of two conditions other heads?  Beside what swapped labels of the conditions give.

Two samples of texts never rank heads alike, so a rank correlation below 1 says nothing by itself.  The placebo swaps
the labels of the conditions (within prompts that are in both, else among texts): whatever two *like* samples of this
size differ by is in it.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float

from mechrep.analyzers.conditions.design import ConditionDesign
from mechrep.analyzers.conditions.effects import FIRST, SECOND, HeadEffects, rank_correlation
from mechrep.analyzers.conditions.specialisation import effective_number, gini
from mechrep.stats import percentile_interval

LEVEL = 0.05
_DRAWS, _SWAPS, _TESTED = 2000, 1000, 10
_ROUNDING = 1e-5  # what float32 makes of a head that does nothing


def compare_heads(
    effects: HeadEffects, k: int, *, first: str = FIRST, second: str = SECOND, swaps: int = _SWAPS, seed: int = 0
) -> pd.DataFrame:
    """How far two conditions differ in their heads, with intervals and the placebo of swapped labels.

    One row per ``measure``, of the sizes ``a`` of the mean effects of all heads:

    * ``common``: ``sum_h min(s_h, t_h)`` of the shares ``s = a / sum a`` and ``t`` in both conditions: the part of the
      effect that the same heads carry, 1 if all have the same shares; ``p``: share of swaps in which it is as *low*.
      Heads that do little weigh little.
    * ``rank_correlation``: Spearman's, of ``a`` in both conditions; ``p`` as above.  Idle heads count as much.
    * ``shared_top``: heads that are among the first ``k`` in both; ``p`` as above.
    * ``gini``: ``gini(a_first) - gini(a_second)``, above 0 where the first is carried by fewer heads; ``p`` on two
      sides.
    * ``effective_heads``: the same of their effective numbers, below 0 where the first is carried by fewer heads.
    * ``differing_heads``: heads with FDR below 0.05 in ``effects.contrast``; the swaps are ten whole tests, ``p`` the
      share of them that find as many.

    Args:
        effects: of one measure.
        k: heads that lead.
        first: a condition.
        second: another.
        swaps: of the labels.
        seed: of draws and swaps.

    Returns:
        ``measure, value, low, high`` (95 %, bootstrap over prompts; NaN for ``differing_heads``), ``null, null_low,
        null_high`` (mean and central 95 % of the swaps; for ``differing_heads`` their range), ``p, swaps``.

    Raises:
        InputError: a condition without texts, ``k`` larger than the number of heads.

    Limits: with few heads ranks are coarse.  A swap that by chance leaves most labels as they are makes the two
    halves differ as the conditions do: with few texts the first three find little; ``differing_heads`` is sharper.

    Example:
        >>> values = np.random.default_rng(0).normal(size=(400, 1, 6)) + [3, 2, 1, 0, 0, 0]
        >>> values[200:] = values[200:, :, ::-1]
        >>> names = ["induced"] * 200 + ["natural"] * 200
        >>> table = compare_heads(HeadEffects(values, names, [str(i) for i in range(400)], "made up"), 2)
        >>> row = table.set_index("measure").loc["common"]
        >>> bool(row["high"] < 0.5 < row["null_low"]), bool(row["p"] < 0.05)
        (True, True)
    """
    effects.shared_top(k, first, second, draws=1)  # refuses what cannot be compared
    known = _known(effects, first, second)
    values = known.values.reshape(len(known.values), -1)
    design = ConditionDesign(known.conditions, known.prompts, first, second)
    means = design.mean(first), design.mean(second)
    times = design.draws(_DRAWS, seed)
    swapped = design.swaps(swaps, seed)
    # Twice the coefficients of D: positive ones are the mean of whatever is called the first condition.
    nulls = _measures(np.clip(2 * swapped, 0, None) @ values, np.clip(-2 * swapped, 0, None) @ values, k)
    observed = _measures(means[0][None] @ values, means[1][None] @ values, k)
    drawn = _measures((times * means[0]) @ values, (times * means[1]) @ values, k)
    rows = []
    for name, (number,) in observed.items():
        null, sample = (one[~np.isnan(one)] for one in (nulls[name], drawn[name]))
        far: np.ndarray = (
            np.abs(null) >= abs(number) - 1e-9 if name in ("gini", "effective_heads") else null <= number + 1e-9
        )
        p = 1.0 if np.isnan(number) else (1 + int(far.sum())) / (1 + swaps)
        mean = float(null.mean()) if len(null) else float("nan")
        ends = (*percentile_interval(sample.tolist()), mean, *percentile_interval(null.tolist()))
        rows.append((name, float(number), *ends, p, swaps))
    rows.append(_differing(known, first, second, seed))
    columns = ["measure", "value", "low", "high", "null", "null_low", "null_high", "p", "swaps"]
    return pd.DataFrame(rows, columns=columns)


def _known(effects: HeadEffects, first: str, second: str) -> HeadEffects:
    """The texts of both conditions that have a value."""
    missing = np.isnan(effects.values.reshape(len(effects.values), -1).sum(1)).tolist()
    chosen = [i for i, name in enumerate(effects.conditions) if name in (first, second) and not missing[i]]
    names, prompts = ([list(column)[i] for i in chosen] for column in (effects.conditions, effects.prompts))
    return HeadEffects(effects.values[chosen], names, prompts, effects.measure)


def _measures(
    one: Float[np.ndarray, "draw head"], other: Float[np.ndarray, "draw head"], k: int
) -> dict[str, Float[np.ndarray, " draw"]]:
    sizes = [np.where(np.abs(part) > _ROUNDING, np.abs(part), 0.0) for part in (one, other)]
    leading = [_leading(part, k) for part in sizes]
    return {
        "common": _common(*sizes),
        "rank_correlation": rank_correlation(*sizes),
        "shared_top": (leading[0] & leading[1]).sum(1).astype(float),
        "gini": gini(sizes[0]) - gini(sizes[1]),
        "effective_heads": effective_number(sizes[0]) - effective_number(sizes[1]),
    }


def _common(one: Float[np.ndarray, "draw head"], other: Float[np.ndarray, "draw head"]) -> Float[np.ndarray, " draw"]:
    """What the same heads carry in both: nothing where one of them needs no head; NaN where neither does."""
    totals = [part.sum(1, keepdims=True) for part in (one, other)]
    shares = [
        np.divide(part, total, out=np.zeros_like(part), where=total > 0)
        for part, total in zip((one, other), totals, strict=True)
    ]
    return np.where((totals[0] + totals[1])[:, 0] > 0, np.minimum(*shares).sum(1), np.nan)


def _leading(sizes: Float[np.ndarray, "draw head"], k: int) -> np.ndarray:
    """Which heads are the first ``k``, fewer where fewer do anything at all."""
    order = np.argsort(-sizes, axis=1, kind="stable")[:, :k]
    chosen = np.zeros(sizes.shape, dtype=bool)
    np.put_along_axis(chosen, order, True, axis=1)
    return chosen & (sizes > 0)


def _differing(effects: HeadEffects, first: str, second: str, seed: int) -> tuple:
    """Heads that a test finds, and what it finds in ten placebos."""
    found = int((effects.contrast(first, second)["fdr"] < LEVEL).sum())
    placebos = [effects.swapped(seed + number, first, second) for number in range(1, _TESTED + 1)]
    nulls = [int((one.contrast(first, second, draws=2)["fdr"] < LEVEL).sum()) for one in placebos]
    p = (1 + sum(number >= found for number in nulls)) / (1 + len(nulls))
    unknown = float("nan")
    ends = float(min(nulls)), float(max(nulls))
    return ("differing_heads", float(found), unknown, unknown, float(np.mean(nulls)), *ends, p, len(nulls))
