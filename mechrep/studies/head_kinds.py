"""Which heads count as what, and by which rule: a score becomes a kind only through a threshold, which is named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mechrep.analyzers.heads.copying_result import HeadCopyingResult
from mechrep.analyzers.heads.induction import induction_heads
from mechrep.analyzers.heads.result import PUBLISHED_THRESHOLD, HeadScoreResult
from mechrep.studies.head_controls import INDUCTION

Unit = tuple[int, int]

ON_REPEATS, ON_LOOPS, PUBLISHED = "random repeats", "natural loops", "natural loops, published rule"


@dataclass(frozen=True)
class HeadKind:
    """Heads of one kind by one rule.

    Attributes:
        kind: name of the score that decides: ``"induction"``, ``"self_finding"``, ``"previous_token"`` or
            ``"first_token"`` (sink).
        measured_on: ``"random repeats"`` or ``"natural loops"``, or ``"natural loops, published rule"``.
        rule: in words.
        heads: ``(layer, head)`` pairs that meet it, highest score first.
        counts: whether its heads count as found; the published rule knows no chance, and is there to be compared with.
    """

    kind: str
    measured_on: str
    rule: str
    heads: tuple[Unit, ...]
    counts: bool = True


def head_kinds(
    scores: HeadScoreResult, copying: HeadCopyingResult, loops: HeadScoreResult, *, threshold: float = INDUCTION
) -> list[HeadKind]:
    """Sort heads into kinds; a head can be of several, or of none.

    On random repeats a head is of a kind whose score, adjusted for chance, is at least ``threshold``; an induction head
    must also raise the logit of what it looks at (:func:`mechrep.analyzers.heads.induction.induction_heads`).  On
    natural loops the published rule for self-finding heads asks for more than half of the attention.  In loops of short
    period even attention reaches that, so heads of random models meet it: here the score must also lie ``threshold``
    above chance, and what the published rule alone finds is listed beside it.

    Args:
        scores: on random repeats.
        copying: on the same texts.
        loops: on natural loops, with ``HeadScores("hiraoka2025")``.
        threshold: on random repeats; a convention of this package.

    Returns:
        One :class:`HeadKind` per rule; self-finding and induction have three.

    Raises:
        InputError: scores and copying of two models.

    Source: self-finding on loops: Hiraoka & Inui 2025 (arXiv 2410.13497).

    Example:
        >>> import mechrep
        >>> from mechrep.analyzers.heads.copying import score_copying
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> scores = mechrep.score_heads(model, n=20, sequences=4)
        >>> kinds = head_kinds(scores, score_copying(model, n=20, sequences=4), scores)
        >>> [kind.kind for kind in kinds if kind.measured_on == "random repeats"]
        ['induction', 'self_finding', 'previous_token', 'first_token']
    """
    enough = f"attention at least {threshold:g} above chance"
    found = [
        HeadKind(
            "induction",
            ON_REPEATS,
            f"{enough}, direct effect on the copied token at least 0.05, both above the 99 % band of their nulls",
            tuple(induction_heads(scores, copying, prefix=threshold)),
        )
    ]
    for kind in ("self_finding", "previous_token", "first_token"):
        adjusted = scores.adjusted[list(scores.names).index(kind)]
        heads = tuple(unit for unit in scores.ranking(kind) if adjusted[unit] >= threshold)
        found.append(HeadKind(kind, ON_REPEATS, enough, heads))
    rule = f"more than {PUBLISHED_THRESHOLD:g} of the attention after the onset"
    for kind in ("induction", "self_finding"):
        heads, adjusted = loops.above(PUBLISHED_THRESHOLD, kind), loops.adjusted[list(loops.names).index(kind)]
        clear = tuple(unit for unit in heads if adjusted[unit] >= threshold)
        found.append(HeadKind(kind, ON_LOOPS, f"{rule}, at least {threshold:g} above chance", clear))
        found.append(HeadKind(kind, PUBLISHED, f"{rule} (even attention may reach it)", tuple(heads), counts=False))
    return found


def heads_of(kinds: Sequence[HeadKind], kind: str, measured_on: str | None = None) -> list[Unit]:
    """Heads of a kind by any of its rules that count, or by one rule; those of the first rule first.

    Example:
        >>> kinds = [HeadKind("a", "x", "", ((1, 0),)), HeadKind("a", "y", "", ((0, 2), (1, 0)))]
        >>> heads_of(kinds, "a"), heads_of(kinds, "a", "y")
        ([(1, 0), (0, 2)], [(0, 2), (1, 0)])
    """
    rows = [
        one
        for one in kinds
        if one.kind == kind and (one.counts if measured_on is None else one.measured_on == measured_on)
    ]
    return list(dict.fromkeys(unit for one in rows for unit in one.heads))
