"""The record that every detector returns; its public home is `mechrep.text.cycles`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np


@dataclass(frozen=True)
class Cycle:
    """Where a text repeats itself, in positions of the whole text (counted from 0, end exclusive).

    ``start`` is the first position of the first copy; ``onset = start + period`` is where the *second* copy
    begins, the onset that repetition neurons are defined by (Hiraoka and Inui 2025, arXiv 2410.13497).

    Attributes:
        start: first position of the first copy.
        period: length of one copy, in tokens.
        copies: span / period; 2.5 means two copies and half of a third.
        end: position behind the last token of the cycle.
        tokens: the ids of the first copy, ``x[start : start + period]``.
        detector: which detector or preset found it; two cycles that differ only in this are equal.

    Limits:
        A cycle of `ngram_triple` with a period above 10 promises only three equal 10-grams at equal distances:
        what stands between them may differ.  All other detectors promise ``x[i] == x[i + period]`` throughout.

    Example:
        >>> cycle = Cycle.of([9, 1, 2, 3, 1, 2, 3, 1], start=1, period=3, end=8, detector="by hand")
        >>> cycle.onset, cycle.span, cycle.tail, cycle.tokens
        (4, 7, 1, (1, 2, 3))
    """

    start: int
    period: int
    copies: float
    end: int
    tokens: tuple[int, ...]
    detector: str = field(compare=False)

    @classmethod
    def of(cls, tokens: Sequence[int] | np.ndarray, *, start: int, period: int, end: int, detector: str) -> Cycle:
        """Build the record from the text and the three numbers that fix it.

        Args:
            tokens: ids of the whole text, already checked.
            start: first position of the first copy.
            period: length of one copy.
            end: position behind the last token of the cycle.
            detector: name of the detector.
        """
        block = tuple(int(token) for token in tokens[start : start + period])
        return cls(start, period, (end - start) / period, end, block, detector)

    @property
    def onset(self) -> int:
        """Position at which the second copy begins."""
        return self.start + self.period

    @property
    def span(self) -> int:
        """Number of tokens from the start to the end of the cycle."""
        return self.end - self.start

    @property
    def tail(self) -> int:
        """Number of tokens of the last, unfinished copy."""
        return self.span % self.period

    def shifted(self, offset: int) -> Cycle:
        """Return the same cycle in a text that has ``offset`` more tokens in front.

        Args:
            offset: number of tokens put in front.
        """
        return replace(self, start=self.start + offset, end=self.end + offset)
