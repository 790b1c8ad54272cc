"""The two detectors for growing texts, for many texts at once: tensors on whatever device the texts are written on.

Both rules ask how long the newest tokens have agreed with those some *lag* before them.  So one table
``runs[text lag]`` is carried on, by a block of tokens of every text at a time, and both are read off it.  Tested token
by token against :class:`~mechrep.text.watch.TailWatch` and :class:`~mechrep.text.watch.NgramTripleWatch`.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechrep.text.watch import WATCHES, NgramTripleWatch, TailWatch

_NGRAM, _WINDOW = 10, 100  # as published, see NgramTripleWatch
_COPIES, _SPAN = 4, 32  # see TailWatch
_AT_ONCE = 2**21  # comparisons of a token with one before it


def watched_in_rows(preset: str) -> bool:
    """Whether :class:`RowWatches` knows the rule of a preset: those added later are a function of one text.

    Example:
        >>> watched_in_rows("mechrep"), watched_in_rows("no such rule")
        (True, False)
    """
    return WATCHES.get(preset) in (TailWatch, NgramTripleWatch)


class RowWatches:
    """One row for each of many texts; says after which token a text may end.

    Args:
        presets: by which rules, see :func:`watched_in_rows`; a text may end by any of them.
        rows: texts at a time.
        longest: tokens of the longest text that will be watched.
        device: of the texts.

    Example:
        >>> watches = RowWatches(["mechrep"], rows=1, longest=40, device=torch.device("cpu"))
        >>> text = torch.arange(40)[None] % 5
        >>> fired = watches.advance(text, torch.tensor([0]), 40)
        >>> int(fired[0].nonzero()[0])
        31
    """

    def __init__(self, presets: Collection[str], rows: int, longest: int, device: torch.device) -> None:
        kinds = {WATCHES[preset] for preset in presets}
        self.tail, self.triple = TailWatch in kinds, NgramTripleWatch in kinds
        most = max(longest // _COPIES if self.tail else 1, _WINDOW - _NGRAM if self.triple else 1)
        self.lags: Int[Tensor, " lag"] = torch.arange(1, most + 1, device=device)
        self.runs: Int[Tensor, "row lag"] = torch.zeros(rows, most, dtype=torch.long, device=device)
        self.fired: Bool[Tensor, " row"] = torch.zeros(rows, dtype=torch.bool, device=device)  # for good

    def begin(self, row: int, text: Int[Tensor, " pos"]) -> None:
        """Watch another text in a row; what stands there already is not what ends it, unless its rule fires for good.

        Args:
            row: the row.
            text: its tokens so far.
        """
        self.runs[row], self.fired[row] = 0, False
        some = torch.tensor([row], device=self.runs.device)
        step = max(1, _AT_ONCE // len(self.lags))
        for first in range(0, len(text), step):
            place = torch.tensor([first], device=text.device)
            self._advance(text[None], place, min(step, len(text) - first), some)

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Drop the other rows."""
        self.runs, self.fired = self.runs[rows], self.fired[rows]

    def advance(
        self, texts: Int[Tensor, "row pos"], firsts: Int[Tensor, " row"], number: int
    ) -> Bool[Tensor, "row token"]:
        """Look at the next tokens of every text; true where it may end with that token.

        Args:
            texts: ids of all texts.
            firsts: position of the first of these tokens in each text; all before it must have been looked at.
            number: of tokens.
        """
        return self._advance(texts, firsts, number, torch.arange(len(self.runs), device=self.runs.device))

    def _advance(self, texts: Tensor, firsts: Tensor, number: int, rows: Tensor) -> Bool[Tensor, "row token"]:
        places = torch.arange(number, device=texts.device)
        newest = firsts[:, None] + places  # [row token]
        earlier = newest[..., None] - self.lags  # [row token lag]
        before = texts.gather(1, earlier.clamp_min(0).flatten(1)).view_as(earlier)
        same = (before == texts.gather(1, newest)[..., None]) & (earlier >= 0)
        broken = places[:, None].expand_as(same).masked_fill(same, -1).cummax(1).values
        unbroken = self.runs[rows][:, None] + places[:, None] + 1
        runs = torch.where(broken < 0, unbroken, places[:, None] - broken)
        self.runs[rows] = runs[:, -1]
        fired = torch.zeros_like(newest, dtype=torch.bool)
        if self.tail:
            needed = (_COPIES * self.lags).clamp_min(_SPAN) - self.lags
            fired |= ((runs >= needed) & (_COPIES * self.lags <= newest[..., None] + 1)).any(-1)
        if self.triple:
            # The newest n-gram stands a lag before, too, where so many tokens agree; the three oldest places decide.
            found = (runs >= _NGRAM) & (self.lags <= _WINDOW - _NGRAM)
            oldest, middle, last = torch.where(found, self.lags, 0).topk(3).values.unbind(-1)
            thrice = (middle > 0) & (oldest - middle == middle - last)
            thrice = thrice.cummax(1).values | self.fired[rows][:, None]
            self.fired[rows] = thrice[:, -1]
            fired |= thrice
        return fired
