"""Loops with a counter: copies that are equal but for what counts (``test_1 test_2``, ``1. 2. 3.``, dates, months).

No rule on ids sees them, and ids alone cannot tell what counts: a number is one token or several, and 9 and 10 may be
of different length.  So the text itself is looked at, with everything masked that counts:

* runs of digits, of any script, and of other numerals (circled, raised, Roman in one sign, Chinese);
* letters and Roman numerals that mark items: behind a blank, a bracket or the beginning of a line, and in front of
  ``)``, ``]``, ``.`` or ``:``;
* English names that have an order, in capitals or not: months, weekdays, number words.

Of the masked text the same is asked as the default detector asks of ids: does it, at some point after the prompt, end
in 4 copies and 64 characters, or does it end in 3 copies and 16 characters?  A copy in which fewer than 8 letters are
left (``x1, x2,``) counts only where a number of it goes on by equal steps, and one without letters only where all do: a
table of numbers is no loop, nor are names such as ``w12 w5 w33``.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mechrep.text.watch import Cycle, eos_set, token_ids, up_to_eos

Decode = Callable[[list[int]], str]

MASK = "\0"
COPIES, SPAN = 3, 16  # at the end of a text; copies and characters
CERTAIN_COPIES, CERTAIN_SPAN = 4, 64  # anywhere in it
LETTERS = 8  # in a copy: enough that equal copies are no accident of numbers
_NAMES = (
    "january february march april may june july august september october november december "
    "jan feb mar apr jun jul aug sep sept oct nov dec "
    "monday tuesday wednesday thursday friday saturday sunday mon tue wed thu fri sat sun "
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety "
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth "
    "sixteenth seventeenth eighteenth nineteenth twentieth"
)
_NUMERALS = (
    "\u00b2\u00b3\u00b9\u2070-\u2089\u2160-\u2188\u2460-\u249b\u24ea-\u24ff\u2776-\u2793\u3007一二三四五六七八九十百千"
)
_COUNTS = re.compile(
    rf"\d+|[{_NUMERALS}]+|(?<![^\s(\[])(?:[ivxlc]+|[IVXLC]+|[A-Za-z])(?=[).:\]])|\b(?i:{'|'.join(_NAMES.split())})\b"
)


@dataclass(frozen=True)
class Masked:
    """A text with one sign for everything that counts.

    Attributes:
        text: the masked text.
        places: where in it each sign stands.
        values: what stood there; a number where it has one.
        origins: for each run of text without a sign: where it begins in the masked text and in the real one.
    """

    text: str
    places: list[int]
    values: list[int | None]
    origins: list[tuple[int, int]]

    @classmethod
    def of(cls, text: str) -> Masked:
        """Mask a text.

        Example:
            >>> masked = Masked.of("test_9 test_10 May")
            >>> masked.text.replace(MASK, "#"), masked.values, masked.real(7)
            ('test_# test_# #', [9, 10, None], 7)
        """
        parts, places, values, origins = [], [], [], [(0, 0)]
        length = done = 0
        for match in _COUNTS.finditer(text):
            before = text[done : match.start()]
            places.append(length + len(before))
            values.append(_value(match.group()))
            parts += [before, MASK]
            length, done = length + len(before) + 1, match.end()
            origins.append((length, done))
        return cls("".join([*parts, text[done:]]), places, values, origins)

    def real(self, place: int) -> int:
        """Where in the real text a place of the masked text is; a sign is where what it stands for begins."""
        at = bisect_right(self.origins, (place, 1 << 60)) - 1
        begin, origin = self.origins[at]
        return origin + place - begin

    def place(self, real: int) -> int:
        """Where in the masked text a place of the real text is; inside of what a sign stands for, behind the sign."""
        at = bisect_right([origin for _, origin in self.origins], real) - 1
        begin, origin = self.origins[at]
        ends = self.origins[at + 1][0] if at + 1 < len(self.origins) else len(self.text)
        return min(begin + real - origin, ends)


def longest_repeat(masked: Masked, after: int = 0) -> tuple[int, int, int] | None:
    """The longest stretch of copies with a counter: its start, the length of a copy, and its end; or ``None``.

    Args:
        masked: the text.
        after: the stretch must reach beyond this place.

    Example:
        >>> longest_repeat(Masked.of("So: a8 b, a9 b, a10 b, a11 b"))
        (3, 6, 26)
    """
    codes = np.frombuffer(masked.text.encode("utf-32-le", "surrogatepass"), dtype=np.int32)
    total, best, found = len(codes), 0, None
    for period in range(1, total // COPIES + 1):
        edges = np.concatenate([[-1], np.flatnonzero(codes[period:] != codes[:-period]), [total - period]])
        spans, ends = np.diff(edges) - 1 + period, edges[1:] + period
        needed = np.where(ends == total, max(COPIES * period, SPAN), max(CERTAIN_COPIES * period, CERTAIN_SPAN))
        for i in np.flatnonzero((spans >= needed) & (spans > best) & (ends > after)):
            start, end = int(edges[i]) + 1, int(ends[i])
            if spans[i] > best and _has_counter(masked, start, period, end):
                best, found = int(spans[i]), (start, period, end)
    return found


def _has_counter(masked: Masked, start: int, period: int, end: int) -> bool:
    """Whether something counts in the copies; where few letters are left, by equal steps."""
    signs = [i for i, place in enumerate(masked.places) if start <= place < end]
    block = masked.text[start : start + period]
    letters = sum(character.isalpha() for character in block)
    if not signs or letters >= LETTERS:
        return bool(signs)
    if (block + block).find(block, 1) < period:
        return False  # several copies taken for one: its numbers are to go on one by one
    copies = (end - start) // period
    width = sum(1 for i in signs if masked.places[i] < start + period)
    slots = [[masked.values[i] for i in signs[slot : copies * width : width]] for slot in range(width)]
    steady = [_goes_on(values) for values in slots]
    return any(steady) if letters else all(steady)


def _goes_on(values: Sequence[int | None]) -> bool:
    """Whether values have equal steps in half of the places, and in three; names always do."""
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return True
    steps = [after - before for before, after in pairwise(numbers)]
    longest = run = 0
    for before, after in pairwise(steps):
        run = run + 1 if before == after else 0
        longest = max(longest, run)
    return longest + 2 >= max(COPIES, len(values) / 2)


def _value(text: str) -> int | None:
    if text.isdecimal():
        return int(text) if len(text) <= 18 else None
    return int(unicodedata.numeric(text, ord(text))) if len(text) == 1 else None


def counting_loop(
    tokens: Sequence[int],
    decode: Decode,
    prompt_length: int = 0,
    *,
    eos_id: int | Collection[int] | None = None,
    special_ids: Collection[int] = (),
) -> Cycle | None:
    """The loop with a counter that a text falls into after its prompt, or ``None``.

    Args:
        tokens: prompt and continuation.
        decode: from ids to their text, as :meth:`mechrep.Model.decode`.
        prompt_length: tokens of the prompt; copies may lie in it, but the loop must go on after it.
        eos_id: the continuation ends at its first one.
        special_ids: are left out before the text is read.

    Returns:
        The longest such loop.  Its copies may differ in tokens, and in their number: ``period`` is that of the first
        copy, ``onset`` the token with which the second begins, ``copies`` counts in characters.

    Limits:
        Copies that differ in more than what is masked are not seen, nor names in other languages than English.

    Example:
        >>> text = "".join(f"He went to door {n}. " for n in range(8, 13))
        >>> loop = counting_loop(list(text.encode()), lambda ids: bytes(ids).decode())
        >>> loop.start, loop.onset, round(loop.copies, 1)
        (0, 19, 5.0)
    """
    ids = up_to_eos(token_ids(tokens), eos_set(eos_id), prompt_length)
    kept = [i for i, token in enumerate(ids) if token not in special_ids]
    words = [ids[i] for i in kept]
    prompt = decode(words[: bisect_right(kept, prompt_length - 1)])
    masked = Masked.of(decode(words))
    if len(masked.places) < COPIES or len(words) <= bisect_right(kept, prompt_length - 1):
        return None
    found = longest_repeat(masked, masked.place(len(prompt)))
    if found is None:
        return None
    start, period, end = found

    def token_at(character: int) -> int:
        """The first token that writes a character of the text."""
        low, high = 0, len(words) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if len(decode(words[: middle + 1])) > character else (middle + 1, high)
        return kept[low]

    first, onset = token_at(masked.real(start)), token_at(masked.real(start + period))
    last = token_at(masked.real(end) - 1)
    # A character may be written by several tokens.
    behind = kept.index(token_at(masked.real(end))) if end < len(masked.text) else len(kept)
    last = max(last, kept[behind - 1])
    block = tuple(ids[first:onset])
    return Cycle(first, max(1, onset - first), (end - start) / period, last + 1, block, "counting")


FRAME = 0.75  # share of a copy that is the same in three copies in a row
FEWEST = 8  # tokens of it


def frame_loop(
    tokens: Sequence[int],
    prompt_length: int = 0,
    *,
    eos_id: int | Collection[int] | None = None,
) -> Cycle | None:
    """Copies that are equal but for a few tokens, told by ids alone: the first three in a row, or ``None``.

    Positions ``t`` of a copy of length ``p`` belong to its frame where ``x[t] = x[t + p] = x[t + 2 p]``.  Three copies
    whose frame has at least 8 tokens and three quarters of the copy are a loop with something that changes: a counter,
    mostly, whose tokens ids cannot tell.  Exact loops are found too.

    Args:
        tokens: prompt and continuation.
        prompt_length: tokens of the prompt; two copies may lie in it, the third stands behind it.
        eos_id: the continuation ends at its first one.

    Limits:
        Copies of different length are not seen (9 and 10 written with one token and two); :func:`counting_loop` reads
        the text and sees them.  Refrains and tables with three equal frames are taken for loops.

    Example:
        >>> copies = [[*range(10, 20), number] for number in (3, 4, 5)]
        >>> loop = frame_loop([7, 8, *copies[0], *copies[1], *copies[2]])
        >>> loop.start, loop.period, loop.onset
        (2, 11, 13)
    """
    ids = up_to_eos(token_ids(tokens), eos_set(eos_id), prompt_length)
    x = np.asarray(ids)
    found: tuple[int, int, int] | None = None
    for period in range(FEWEST, len(x) // COPIES + 1):
        kept = (x[: -2 * period] == x[period:-period]) & (x[period:-period] == x[2 * period :])
        upto = np.concatenate([[0], kept.cumsum()])
        frame = upto[period:] - upto[:-period]  # tokens of the frame of copies that begin there
        starts = np.nonzero(frame >= max(FEWEST, FRAME * period))[0]
        starts = starts[starts + (COPIES - 1) * period >= prompt_length]
        if len(starts) and (found is None or (int(starts[0]), period) < (found[0], found[1])):
            near = starts[
                starts < starts[0] + period
            ]  # the same copies, begun elsewhere: where most is frame, and so is the first token
            found = int(starts[0]), period, int(near[(2 * frame + kept[: len(frame)])[near].argmax()])
    if found is None:
        return None
    _, period, start = found
    end = start + COPIES * period
    return Cycle(start, period, float(COPIES), end, tuple(ids[start : start + period]), "frame")
