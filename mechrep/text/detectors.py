"""Detectors of repetition in one finished text: functions from token ids to a `Cycle`, or None.

`tail_cycle` is mechrep's own: for every period, how long is the longest suffix that is periodic with it?  One
Z-array of the reversed text answers that for all periods in O(T).  Two published rules are this search with other
numbers: `smallest_tail_block` (Mahaut and Franzon) and `repeated_phrase` (Holtzman et al.).  `ngram_triple`
(Hiraoka and Inui) is another rule altogether.  All positions count from the first id handed in;
`mechrep.text.detect_cycle` adds each preset's region (prompt, EOS) around them.

A text of no or one token, or too short for the rule, has no cycle: None, never an error.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from mechrep.errors import InputError
from mechrep.text._cycle import Cycle
from mechrep.text._tokens import TokenSequence, token_ids
from mechrep.text.watch import NgramTripleWatch


def tail_cycle(
    tokens: TokenSequence,
    *,
    min_period: int = 1,
    max_period: int | None = None,
    min_copies: int = 2,
    min_span: int = 8,
    select: str = "longest_span",
    special_ids: Collection[int] = (),
) -> Cycle | None:
    """Find the cycle that a text ends in, from its earliest periodic position.

    With z the Z-array of the reversed ids, ``span(p) = p + z[p]`` is the length of the longest p-periodic suffix.
    Candidates are the periods with ``span(p) >= max(min_copies * p, min_span)``; the cycle starts at T - span.

    Args:
        tokens: ids of one text, ``[pos]``.
        min_period: shortest period to consider, in tokens.
        max_period: longest period to consider; None for no limit but the text.
        min_copies: copies asked for, at least 2.
        min_span: tokens asked for from start to end.
        select: ``"longest_span"`` takes the largest span, ties to the smallest period; ``"smallest"`` takes the
            smallest period, the rule of the published detectors, which reports the inner period of a cycle whose
            own end repeats (``3 1 1 3 1 1`` has period 1 for it).
        special_ids: ids (BOS, EOS, padding) that are no cycle on their own.

    Returns:
        The cycle, with a primitive block if ``min_period`` is 1, or None.

    Raises:
        InputError: for ids that are not whole numbers, or options that make no sense.

    Limits:
        A loop that the model left again is not at the end and is not seen.  A token before the loop that happens
        to equal the loop's last one moves the start one step left: the text *is* periodic from there.

    Example:
        >>> cycle = tail_cycle([9, 8, 1, 2, 3, 1, 2, 3, 1, 2])
        >>> cycle.start, cycle.period, cycle.onset, round(cycle.copies, 2)
        (2, 3, 5, 2.67)
    """
    if min_period < 1 or min_copies < 2 or select not in ("longest_span", "smallest"):
        raise InputError(
            f"min_period = {min_period}, min_copies = {min_copies}, select = {select!r}",
            "min_period >= 1, min_copies >= 2, select 'longest_span' or 'smallest'",
            "correct the option",
        )
    ids = token_ids(tokens)
    matches = z_array(ids[::-1])
    last_period = len(ids) - 1 if max_period is None else min(max_period, len(ids) - 1)
    # A periodic suffix consists of special ids only if it lies inside the special ids that end the text.
    best_period, best_span = 0, _special_tail(ids, special_ids)
    for period in range(min_period, last_period + 1):
        span = period + matches[period]
        if span >= max(min_copies * period, min_span) and span > best_span:
            best_period, best_span = period, span
            if select == "smallest":
                break
    if best_period == 0:
        return None
    return Cycle.of(ids, start=len(ids) - best_span, period=best_period, end=len(ids), detector="tail_cycle")


def smallest_tail_block(
    tokens: TokenSequence, *, max_size: int = 500, special_ids: Collection[int] = ()
) -> Cycle | None:
    """Find the smallest block of two or more ids that tiles the end of the text, as Mahaut and Franzon do.

    Sizes s = 2, 3, ... up to ``max_size`` and T / 2; the block is the last s ids; the first size with at least two
    copies wins.  The start is that of the first *full* copy, so the block is the cycle of `tail_cycle` rotated by
    its tail, and the number of copies is whole.

    Args:
        tokens: ids of one text, ``[pos]``.
        max_size: longest block, in tokens.
        special_ids: blocks made only of these ids (padding) are skipped.

    Returns:
        The cycle, ending where the text ends, or None.

    Raises:
        InputError: for ids that are not whole numbers.

    Source:
        Mahaut and Franzon 2025, arXiv 2504.01100 (released code ``mahautm/mechanisms-of-repetition``).

    Limits:
        ``5 6 5 6`` at the end is enough for it; five equal ids have period 2; a loop followed by one EOS is missed.

    Example:
        >>> cycle = smallest_tail_block([8, 9, 1, 2, 3, 1, 2, 3, 1])
        >>> cycle.tokens, cycle.start, cycle.copies
        ((2, 3, 1), 3, 2.0)
    """
    cycle = tail_cycle(
        tokens, min_period=2, max_period=max_size, min_span=0, select="smallest", special_ids=special_ids
    )
    if cycle is None:
        return None
    block = cycle.tokens[cycle.tail :] + cycle.tokens[: cycle.tail]
    copies = float(cycle.span // cycle.period)
    return replace(cycle, start=cycle.start + cycle.tail, copies=copies, tokens=block, detector="smallest_tail_block")


def repeated_phrase(tokens: TokenSequence, *, window: int = 200) -> Cycle | None:
    """Find a phrase of two or more ids that stands at least three times at the end of the first ``window`` ids.

    Args:
        tokens: ids of one continuation, ``[pos]``.
        window: how many of them are looked at.

    Returns:
        The cycle with the smallest period, or None.

    Raises:
        InputError: for ids that are not whole numbers.

    Source:
        Holtzman et al. 2020, arXiv 1904.09751, as cited by later work; we have not seen their code.

    Limits:
        Sees periods 2 to 66.

    Example:
        >>> repeated_phrase([4, 1, 2, 1, 2, 1, 2]).start
        1
    """
    ids = token_ids(tokens)[:window]
    cycle = tail_cycle(ids, min_period=2, min_copies=3, min_span=0, select="smallest")
    return None if cycle is None else replace(cycle, detector="repeated_phrase")


def ngram_triple(tokens: TokenSequence, *, n: int = 10, r: int = 100, k: int = 3) -> Cycle | None:
    """Find the first n-gram that stands three times, at equal distances, inside a window of r ids.

    The published onset of repetition neurons: with the three places f < s < t, ``start = f``, ``onset = s``,
    ``period = s - f`` and ``end = t + n``.  Pushes the text through a `NgramTripleWatch`: O(T n).

    Args:
        tokens: ids of one whole text with its BOS, ``[pos]``.
        n: length of the n-gram.
        r: length of the window.
        k: places asked for; the first three are compared.

    Returns:
        The cycle, which need not reach the end of the text, or None.

    Raises:
        InputError: for ids that are not whole numbers, or n, r, k that make no sense.

    Source:
        Hiraoka and Inui 2025, arXiv 2410.13497, on exact ids (their code compares joined strings, where an id 4
        also matches inside 45).

    Limits:
        Not a cycle detector: periods of 46 and more are invisible, a run needs 12 equal ids, and with a period
        above 10 templates whose fillers differ are accepted.

    Example:
        >>> cycle = ngram_triple([50, 51, *range(6), *range(6), *range(6), *range(6)])
        >>> cycle.start, cycle.onset, cycle.end
        (2, 8, 24)
    """
    watch = NgramTripleWatch(n=n, r=r, k=k)
    for token in token_ids(tokens):
        if watch.push(token):
            break
    return watch.cycle


def z_array(values: Sequence[int]) -> list[int]:
    """Return z with z[i] = length of the longest common prefix of ``values`` and ``values[i:]``, in O(T).

    Args:
        values: any sequence of ids.

    Source:
        The Z-algorithm as in Gusfield 1997, Algorithms on Strings, Trees and Sequences, section 1.4.

    Example:
        >>> z_array([1, 1, 2, 1, 1])
        [5, 1, 0, 2, 1]
    """
    total = len(values)
    z = [total] * min(total, 1) + [0] * (total - 1)
    left = right = 0  # the match [left, right) that reaches furthest to the right so far
    for i in range(1, total):
        length = min(right - i, z[i - left]) if i < right else 0
        while i + length < total and values[length] == values[i + length]:
            length += 1
        z[i] = length
        if i + length > right:
            left, right = i, i + length
    return z


def _special_tail(ids: Sequence[int], special_ids: Collection[int]) -> int:
    count = 0
    while count < len(ids) and ids[-1 - count] in special_ids:
        count += 1
    return count
