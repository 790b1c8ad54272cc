"""How heads are named and listed in the report."""

from __future__ import annotations

from collections.abc import Sequence

from mechrep.ablation.old_sweeps import NO_BREAK
from mechrep.measures.head_scores import HeadScoreResult
from mechrep.report.page import decimals

Unit = tuple[int, int]

KINDS = {
    "induction": "induction head",
    "self_finding": "self-finding head",
    "previous_token": "previous-token head",
    "first_token": "sink head",
}
_NORMAL = 1.96  # standard errors on either side that hold 95 %


def name_of(unit: Sequence[int]) -> str:
    """A head in words.

    Example:
        >>> name_of((3, 1)).replace("\\u00a0", " ")
        'L3 H1'
    """
    return f"L{unit[0]}{NO_BREAK}H{unit[1]}"


def listed(units: Sequence[Sequence[int]], most: int = 4) -> str:
    """Heads in a sentence, the first so many by name.

    Example:
        >>> listed([(0, 1), (2, 3)]).replace("\\u00a0", " "), listed([(0, 1)] * 3, 1).replace("\\u00a0", " ")
        ('L0 H1 and L2 H3', 'L0 H1 and 2 more')
    """
    names = [name_of(unit) for unit in units[:most]]
    if len(units) > most:
        names.append(f"{len(units) - most} more")
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def scored(result: HeadScoreResult, score: str, unit: Unit, places: int = 2) -> str:
    """A head's score with its 95 % interval, the number of texts, and what even attention would score.

    Example:
        >>> import mechrep
        >>> result = mechrep.score_heads(mechrep.load_model("mechrep-tiny"), n=10, sequences=2)
        >>> "2 texts; even attention" in scored(result, "induction", (0, 0))
        True
    """
    number = list(result.names).index(score)
    value, error = (float(table[number][unit]) for table in (result.scores, result.standard_errors))
    chance, n = float(result.chance[number]), result.n_texts[score]
    ends = f"95{NO_BREAK}% {decimals(value - _NORMAL * error, places)} to {decimals(value + _NORMAL * error, places)}, "
    known = ends if error == error else ""  # one text has no standard error
    return f"{decimals(value, places)} ({known}{n:,} texts; even attention {decimals(chance, places)})"
