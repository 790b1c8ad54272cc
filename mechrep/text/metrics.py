"""How much of a text is repetition: the three numbers reported beside the share of texts with a cycle.

G_n = T - n + 1 is the number of n-grams of a text of T items (0 if T < n), U_n the number of distinct ones.  A
text that is periodic with p distinct items has ``min(p, G_n)`` of them, so both n-gram metrics have the closed form
``1 - min(p, G_n) / G_n``.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from mechrep.errors import InputError
from mechrep.text.watch import Cycle, TokenSequence, token_ids


def rep_n(texts: Sequence[Sequence[Hashable] | TokenSequence], n: int = 4) -> float:
    """Share of n-grams that are repeats, pooled over a corpus: 100 * sum(G_n - U_n) / sum(G_n).

    Long texts weigh more than short ones (micro average).

    Args:
        texts: strings, which are split into words at white space, or sequences of ids or words.
        n: length of the n-grams; 2, 3 and 4 are usual.

    Returns:
        Percent, 0 to 100; NaN if every text is shorter than n.

    Raises:
        InputError: if n < 1, or one string is passed in place of a list.

    Source:
        Li et al. 2023, arXiv 2310.10226 (released code ``gmftbyGMFTBY/Rep-Dropout``).

    Limits:
        Compare only at equal lengths: the longer a text, the more of its n-grams have been seen.

    Example:
        >>> rep_n(["the cat the cat the cat", "a dog"], n=2)
        50.0
    """
    _check_n(n)
    if isinstance(texts, str):
        raise InputError("one string", "a list of texts", "pass [text]")
    total = distinct = 0
    for text in texts:
        text_total, text_distinct = _count(_items(text), n)
        total += text_total
        distinct += text_distinct
    return 100 * (total - distinct) / total if total else math.nan


def seq_rep_n(tokens: TokenSequence, n: int = 4) -> float:
    """Share of n-grams that are repeats in one text: 1 - U_n / G_n.

    The published number is the mean over texts (macro average), on ids, over the continuation.

    Args:
        tokens: ids of one continuation, ``[pos]``.
        n: length of the n-grams; 4 is usual.

    Returns:
        A share, 0 to 1; NaN if the text is shorter than n.

    Raises:
        InputError: if n < 1, or the ids are not whole numbers.

    Source:
        Welleck et al. 2020, arXiv 1908.04319.  Their code divides by zero for short texts.

    Limits:
        Compare only at equal lengths, as for `rep_n`.

    Example:
        >>> seq_rep_n([1, 2, 3, 1, 2, 3, 1, 2], n=2)
        0.5714285714285714
    """
    _check_n(n)
    total, distinct = _count(token_ids(tokens), n)
    return (total - distinct) / total if total else math.nan


def loop_share(cycle: Cycle | None, length: int) -> float:
    """Share of a text that its cycle takes up: span / length.

    Args:
        cycle: what a detector found, or None.
        length: number of ids of the region that the detector looked at (for most presets the continuation).

    Returns:
        A share, 0 to 1; 0 without a cycle; NaN if ``length`` is 0.

    Raises:
        InputError: if the cycle is longer than the region.

    Source:
        Mahaut and Franzon 2025, arXiv 2504.01100 (count * size / length; the same number for their detector).

    Limits:
        A preset that looks at the prompt too (``hiraoka2025``) needs the length of the whole text.

    Example:
        >>> from mechrep.text.cycles import tail_cycle
        >>> loop_share(tail_cycle([5, 6, 1, 2, 1, 2, 1, 2, 1, 2]), length=10)
        0.8
    """
    span = 0 if cycle is None else cycle.span
    if span > length:
        raise InputError(
            f"a cycle of {span} tokens in {length}", "length >= span", "pass the length of the region searched"
        )
    return span / length if length else math.nan


def _items(text: Sequence[Hashable] | TokenSequence) -> Sequence[Hashable]:
    if isinstance(text, str):
        return text.split()
    return text if isinstance(text, Sequence) else token_ids(text)


def _count(items: Sequence[Hashable], n: int) -> tuple[int, int]:
    total = max(len(items) - n + 1, 0)
    return total, len({tuple(items[i : i + n]) for i in range(total)})


def _check_n(n: int) -> None:
    if n < 1:
        raise InputError(f"n = {n}", "n >= 1", "ask for n-grams of at least one token")
