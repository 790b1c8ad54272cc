"""Detectors for a text that is still growing: one object per text, one call per token.

Both hold exactly what their rule needs and are tested, prefix by prefix, against the detectors for finished texts:

* `NgramTripleWatch` keeps the places of every n-gram inside the last r tokens.  It *is* the rule of Hiraoka and
  Inui: `mechrep.text.cycles.ngram_triple` pushes a finished text through it.
* `TailWatch` keeps, for every period p at once, how long the newest tokens have agreed with those p before them.

The record that every detector returns; its public home is `mechrep.text.cycles`.

Token ids as they arrive: one check, used by every detector, watch and corpus.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Protocol, SupportsIndex, TypeAlias

import numpy as np
from jaxtyping import Int64, Shaped
from torch import Tensor

from mechrep.errors import InputError
from mechrep.guards import one_of


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

    def __repr__(self) -> str:
        tokens = f"{list(self.tokens[:8])}"[:-1] + (", ...]" if len(self.tokens) > 8 else "]")
        at = f"start={self.start}, period={self.period}, copies={self.copies:.3g}, end={self.end}"
        return f"Cycle({at}, tokens={tokens}, detector={self.detector!r})"

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
        if not (start >= 0 and 1 <= period <= end - start and end <= len(tokens)):
            raise InputError(
                f"start={start}, period={period}, end={end} in {len(tokens)} tokens",
                "a whole copy, of at least one token, within the text",
                "count positions from 0; the end is behind the last token",
            )
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


# `Shaped`, not `Int`: ids of a wrong type are refused below, with a message that says what to do.  `_`, not `pos`: the
# texts of one list differ in length.
TokenSequence: TypeAlias = Sequence[int] | Shaped[np.ndarray, " _"] | Shaped[Tensor, " _"]


def eos_set(eos_id: int | Collection[int] | None) -> frozenset[int]:
    """End-of-sequence ids as a set; a model may have one, several or none.

    Example:
        >>> sorted(eos_set([7, 2])), sorted(eos_set(7)), sorted(eos_set(None))
        ([2, 7], [7], [])
    """
    if eos_id is None:
        return frozenset()
    return frozenset([eos_id] if isinstance(eos_id, int) else eos_id)


def up_to_eos(ids: Sequence[int], eos_ids: Collection[int], first: int = 0) -> list[int]:
    """``ids`` cut before the first end-of-sequence id at or after position ``first``."""
    ends = (place for place in range(first, len(ids)) if ids[place] in eos_ids)
    return list(ids[: next(ends, len(ids))])


def token_array(tokens: object, name: str = "tokens") -> Int64[np.ndarray, " pos"]:
    """Check a sequence of token ids and return it as a one-dimensional int64 array.

    Args:
        tokens: a list or tuple of ints, or a one-dimensional numpy array or torch tensor of any integer type.
        name: what to call it in the error, for example ``"text 3"``.

    Returns:
        The ids; no range is checked.

    Raises:
        InputError: if the ids are not whole numbers or not one-dimensional.

    Example:
        >>> token_array([5, 6, 5]).tolist()
        [5, 6, 5]
    """
    if isinstance(tokens, Tensor):
        if tokens.is_floating_point():  # numpy does not have all of these types
            tokens = tokens.double()
        tokens = tokens.detach().cpu().numpy()
    if isinstance(tokens, str | bytes) or not isinstance(tokens, Sequence | np.ndarray):
        raise _not_ids(f"{name} is a {type(tokens).__name__}")
    try:
        array = np.asarray(tokens)
    except (ValueError, OverflowError) as error:  # ragged lists, numbers beyond 64 bits
        raise _not_ids(f"{name} cannot be read as ids ({error})") from error
    if array.ndim != 1:
        raise _not_ids(f"{name} has {array.ndim} dimensions")
    if array.size == 0:
        return np.zeros(0, dtype=np.int64)
    if array.dtype.kind not in "iu":
        raise _not_ids(f"{name} holds {_first_odd_one(tokens, array)}")
    return array.astype(np.int64)


def token_ids(tokens: object, name: str = "tokens") -> list[int]:
    """Check a sequence of token ids and return it as a list of ints; see `token_array`."""
    return token_array(tokens, name).tolist()


def _first_odd_one(tokens: Sequence[object] | np.ndarray, array: np.ndarray) -> str:
    plain = tokens.tolist() if isinstance(tokens, np.ndarray) else tokens
    for position, token in enumerate(plain):
        if isinstance(token, bool) or not isinstance(token, Integral):
            return f"{token!r} at position {position}"
    return f"numbers of type {array.dtype}"


def _not_ids(given: str) -> InputError:
    return InputError(given, "a one-dimensional sequence of token ids (whole numbers)", "pass the ids of one text")


class NgramTripleWatch:
    """Fires when one n-gram stands three times, at equal distances, inside the last r tokens.

    The onset rule of repetition neurons.  Each new n-gram is compared with its earlier places inside the window
    ``[max(0, i + n - r), i + n)``; with k or more places, the first three f < s < t decide: s - f == t - s.

    Args:
        tokens: ids to begin with, as if each had been pushed.
        n: length of the n-gram.
        r: length of the window, at least n.
        k: number of places asked for, at least 3; for any k only the first three are compared, as in the paper.

    Raises:
        InputError: if n, r or k make no sense together.

    Source:
        Hiraoka and Inui 2025, arXiv 2410.13497 (released code ``tatHi/repetition_neuron``), on exact ids.

    Limits:
        Blind to periods above (r - n) / 2, that is 46 and more with the published numbers.

    Example:
        >>> watch = NgramTripleWatch([7, 7, 7])
        >>> [watch.push(token) for token in range(5)] + [any(watch.push(9) for _ in range(12))]
        [False, False, False, False, False, True]
        >>> watch.cycle.start, watch.cycle.onset, watch.cycle.end
        (8, 9, 20)
    """

    def __init__(self, tokens: TokenSequence = (), n: int = 10, r: int = 100, k: int = 3) -> None:
        if not 1 <= n <= r or k < 3:
            raise InputError(f"n = {n}, r = {r}, k = {k}", "1 <= n <= r and k >= 3", "keep the published 10, 100, 3")
        self.n, self.r, self.k = n, r, k
        self.cycle: Cycle | None = None
        self._tokens: list[int] = []
        self._places: dict[tuple[int, ...], deque[int]] = {}
        for token in token_ids(tokens):
            self.push(token)

    def push(self, token: SupportsIndex) -> bool:
        """Add the next id; return whether the rule has fired, now or earlier.  Costs O(n), whatever came before.

        Args:
            token: the next id of the text.
        """
        if self.cycle is not None:
            return True
        self._tokens.append(int(token))
        newest = len(self._tokens) - self.n
        if newest < 0:
            return False
        places = self._places.setdefault(self._ngram(newest), deque())
        places.append(newest)
        self._forget(len(self._tokens) - self.r - 1)
        if len(places) >= self.k and places[1] - places[0] == places[2] - places[1]:
            self.cycle = Cycle.of(
                self._tokens,
                start=places[0],
                period=places[1] - places[0],
                end=places[2] + self.n,
                detector="ngram_triple",
            )
        return self.cycle is not None

    def _ngram(self, place: int) -> tuple[int, ...]:
        return tuple(self._tokens[place : place + self.n])

    def _forget(self, place: int) -> None:
        # Exactly one n-gram leaves the window with each token, and it is the oldest of its kind.
        if place < 0:
            return
        ngram = self._ngram(place)
        self._places[ngram].popleft()
        if not self._places[ngram]:
            del self._places[ngram]


class TailWatch:
    """True while the newest tokens form a cycle that is all but certain: span >= max(copies * period, 32).

    For every period p it counts ``run[p]``, the newest tokens x[t] with x[t] == x[t - p]; the longest p-periodic
    suffix has p + run[p] tokens.  All periods are updated at once, so a push costs O(t) in numpy, and periods
    have no upper limit.

    Args:
        tokens: ids to begin with, as if each had been pushed.
        copies: copies asked for; of fewer than 4 it is not certain that the text goes on so.

    Source:
        The rule ``certain`` for the default detector; a heuristic of ours for stopping generation early.

    Limits:
        Greedy decoding may still leave such a loop.  Special ids are not treated: end the text at its EOS.

    Example:
        >>> watch = TailWatch()
        >>> [t for t in range(40) if watch.push(t % 5)][0]
        31
        >>> watch.cycle.period, watch.cycle.start, watch.push(99)
        (5, 0, False)
    """

    _SPAN = 32

    def __init__(self, tokens: TokenSequence = (), copies: int = 4) -> None:
        self._copies = copies
        self._length = 0
        self._tokens = np.zeros(64, dtype=np.int64)
        self._runs = np.zeros(64, dtype=np.int64)  # at index p - 1: run[p]
        self._needed = self._run_needed(64)
        for token in token_ids(tokens):
            self.push(token)

    def push(self, token: SupportsIndex) -> bool:
        """Add the next id; return whether the text now ends in a certain cycle.

        Args:
            token: the next id of the text.
        """
        value, length = int(token), self._length
        if length == len(self._tokens):
            self._grow()
        runs = self._runs[:length]
        runs += 1
        runs *= self._tokens[:length][::-1] == value
        self._tokens[length] = value
        self._length = length + 1
        periods = self._length // self._copies
        return bool((self._runs[:periods] >= self._needed[:periods]).any())

    @property
    def cycle(self) -> Cycle | None:
        """The certain cycle that the text ends in, longest span first, or None."""
        periods = self._length // self._copies
        runs = self._runs[:periods]
        spans = np.where(runs >= self._needed[:periods], runs + np.arange(1, periods + 1), 0)
        if not spans.any():
            return None
        best = int(spans.argmax())  # the first of equals, which is the smallest period
        start = self._length - int(spans[best])
        return Cycle.of(self._tokens, start=start, period=best + 1, end=self._length, detector="tail_cycle")

    def _run_needed(self, capacity: int) -> np.ndarray:
        periods = np.arange(1, capacity + 1)
        return np.maximum(self._copies * periods, self._SPAN) - periods

    def _grow(self) -> None:
        # Doubling keeps the copying at a constant share of the work.
        self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)])
        self._runs = np.concatenate([self._runs, np.zeros_like(self._runs)])
        self._needed = self._run_needed(len(self._tokens))


class GrowingText(Protocol):
    """Looks at one text as it grows."""

    @property
    def cycle(self) -> Cycle | None:
        """What was found when it fired."""
        ...

    def push(self, token: int) -> bool:
        """Take the next token; true once there is a cycle."""
        ...


WATCHES: dict[str, Callable[[TokenSequence], GrowingText]] = {"hiraoka2025": NgramTripleWatch, "mechrep": TailWatch}


def watch_for(preset: str) -> Callable[[TokenSequence], GrowingText]:
    """Return the watch that follows a preset while the text is growing.

    Args:
        preset: ``"hiraoka2025"`` (fires exactly when the preset does; feed it the whole text with BOS) or
            ``"mechrep"`` (the stricter rule ``certain``; feed it the continuation); or one that was added with
            :func:`mechrep.text.cycles.add_detector` (fires when it finds a cycle; feed it the whole text).

    Raises:
        InputError: for a preset without a watch.

    Example:
        >>> watch_for("mechrep").__name__
        'TailWatch'
    """
    one_of("preset", preset, WATCHES)
    return WATCHES[preset]
