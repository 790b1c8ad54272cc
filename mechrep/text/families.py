"""Families of loops: texts that loop in the same words are not independent of each other."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from mechrep.text.corpus import Corpus

_GRAM, _SHARED = 6, 0.5


def loop_families(corpus: Corpus) -> list[str]:
    """The family of every text: loops that are equal up to rotation, or share half of their 6-grams, are one.

    Sharing counts on the loop written out in a ring, against the loop that has fewer 6-grams, and is passed on: if a
    and b are of one family, and b and c, then a and c are.  A text without a loop is a family of its own.

    Args:
        corpus: texts; with ``start`` and ``onset`` where they loop.

    Returns:
        One name per text: the id of the family's first text.

    Limits: compares ids; the same words in other tokens are another loop.

    Example:
        >>> texts = Corpus.from_tokens([[0, *[5, 6, 7] * 4], [0, 1, *[6, 7, 5] * 4], [0, *[8, 9] * 6]]).with_cycles()
        >>> loop_families(texts)
        ['tokens-0', 'tokens-0', 'tokens-2']
    """
    ids = [str(name) for name in corpus.frame["id"]]
    grams = [_grams(cycle) for cycle in _cycles(corpus)]
    groups = _Groups(len(ids))
    owners: dict[tuple[int, ...], list[int]] = {}
    for text, own in enumerate(grams):
        shared: dict[int, int] = {}
        for gram in own:
            for other in owners.setdefault(gram, []):
                shared[other] = shared.get(other, 0) + 1
            owners[gram].append(text)
        for other, number in shared.items():
            if number >= _SHARED * min(len(own), len(grams[other])):
                groups.join(text, other)
    return [ids[groups.root(text)] for text in range(len(ids))]


def linked(*columns: Sequence[object]) -> list[str]:
    """Clusters of texts that share a value in any of several columns, such as their prompt or their family.

    Args:
        *columns: one value per text each.

    Returns:
        One name per text: the value of the cluster's first text in the first column.

    Example:
        >>> linked(["a", "a", "b", "c"], ["p", "q", "q", "r"])
        ['a', 'a', 'a', 'c']
    """
    groups = _Groups(len(columns[0]))
    for column in columns:
        firsts: dict[object, int] = {}
        for text, value in enumerate(column):
            groups.join(firsts.setdefault(value, text), text)
    return [str(columns[0][groups.root(text)]) for text in range(len(columns[0]))]


class _Groups:
    """Numbers that are joined to groups; each group is known by its smallest number."""

    def __init__(self, size: int) -> None:
        self.parents = list(range(size))

    def root(self, number: int) -> int:
        while self.parents[number] != number:
            self.parents[number] = self.parents[self.parents[number]]
            number = self.parents[number]
        return number

    def join(self, one: int, other: int) -> None:
        first, last = sorted((self.root(one), self.root(other)))
        self.parents[last] = first


def _cycles(corpus: Corpus) -> list[tuple[int, ...] | None]:
    if not {"start", "onset"} <= set(corpus.frame):
        return [None] * len(corpus)
    places = zip(corpus.frame["start"], corpus.frame["onset"], strict=True)
    found: list[tuple[int, ...] | None] = []
    for text, (start, onset) in enumerate(places):
        known = not (pd.isna(start) or pd.isna(onset))
        found.append(tuple(corpus.row(text)[int(start) : int(onset)]) if known else None)
    return found


def _grams(cycle: Sequence[int] | None) -> set[tuple[int, ...]]:
    """All 6-grams of a loop that goes on for ever."""
    if not cycle:
        return set()
    ring = list(cycle) * (_GRAM // len(cycle) + 2)
    return {tuple(ring[place : place + _GRAM]) for place in range(len(cycle))}
