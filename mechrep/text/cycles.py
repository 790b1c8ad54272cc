"""Presets: each published protocol for "does this text repeat, and from where?", and mechrep's own.

* ``mechrep`` looks at the continuation, up to its EOS: `tail_cycle`, it ends in 2 copies, 8 tokens, longest span.
* ``hiraoka2025`` looks at the whole text with BOS: `ngram_triple`, one 10-gram three times, equally spaced.
* ``mahaut2025`` looks at the continuation: `smallest_tail_block`, a block of 2 to 500 tokens that tiles the end.
* ``holtzman2020`` looks at 200 tokens of continuation: `repeated_phrase`, 2 or more tokens, 3 times.
* ``counting`` looks at the decoded continuation with its numbers masked: `mechrep.text.counters.counting_loop`.

mechrep's default differs from the published presets because each is blind somewhere: the first to periods above 45,
the second to the outer period of a loop whose end repeats, the third to everything behind 200 tokens.

Detectors of repetition in one finished text: functions from token ids to a `Cycle`, or None.

`tail_cycle` is mechrep's own: for every period, how long is the longest suffix that is periodic with it?  One
Z-array of the reversed text answers that for all periods in O(T).  Two published rules are this search with other
numbers: `smallest_tail_block` (Mahaut and Franzon) and `repeated_phrase` (Holtzman et al.).  `ngram_triple`
(Hiraoka and Inui) is another rule altogether.  All positions count from the first id handed in;
`mechrep.text.detect_cycle` adds each preset's region (prompt, EOS) around them.

A text of no or one token, or too short for the rule, has no cycle: None, never an error.

Does a text fall into a loop after its prompt?  The question of every sweep, answered once for all of them.

For a published preset the answer is its detector's.  For the default it is: at some point of the continuation the text
ended in a loop that was all but certain (:class:`~mechrep.text.watch.TailWatch`), or it ends in at least three copies.
The published answer of Hiraoka and Inui, and the default's first kind, stay true however the text goes on, so decoding
may stop there without changing them.  Three copies at the end are asked for only when the text is finished.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mechrep.errors import InputError
from mechrep.guards import Count, Several, Whole, guarded, one_of, within
from mechrep.text.counters import Decode, counting_loop, frame_loop
from mechrep.text.watch import WATCHES, Cycle, NgramTripleWatch, TailWatch, TokenSequence, eos_set, token_ids, up_to_eos


@guarded
def tail_cycle(
    tokens: TokenSequence,
    *,
    min_period: Count = 1,
    max_period: Count | None = None,
    min_copies: Several = 2,
    min_span: Whole = 8,
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
    one_of("select", select, ("longest_span", "smallest"))
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


@dataclass(frozen=True)
class _Preset:
    detector: Callable[..., Cycle | None]
    whole_text: bool = False
    ends_at_eos: bool = False
    skips_special_ids: bool = False


_PRESETS = {
    "mechrep": _Preset(tail_cycle, ends_at_eos=True, skips_special_ids=True),
    "hiraoka2025": _Preset(ngram_triple, whole_text=True),
    "mahaut2025": _Preset(smallest_tail_block, skips_special_ids=True),
    "holtzman2020": _Preset(repeated_phrase),
}
_OWN = frozenset(_PRESETS)
COUNTING = "counting"
_STEPS = 8  # tokens after which a growing text is looked at again by a detector that has no watch of its own
_OPTIONS = {"min_period", "max_period", "min_copies", "min_span", "select"}


@guarded
def detect_cycle(
    tokens: TokenSequence,
    preset: str = "mechrep",
    *,
    prompt_length: int = 0,
    eos_id: int | Collection[int] | None = None,
    special_ids: Collection[int] = (),
    decode: Decode | None = None,
    **options: Any,
) -> Cycle | None:
    """Find the repetition in one text by a named protocol.

    Args:
        tokens: ids of the whole text, prompt included, without padding, ``[pos]``.
        preset: ``"mechrep"``, ``"hiraoka2025"``, ``"mahaut2025"``, ``"holtzman2020"`` or ``"counting"``; see the list
            above.
        prompt_length: number of ids before the continuation; ``hiraoka2025`` looks at the prompt too.
        eos_id: end-of-sequence id or ids; ``mechrep`` ends the text at the first one in the continuation, the published
            presets do not treat it.
        special_ids: ids that are no cycle on their own (``mechrep``, ``mahaut2025``, ``counting``).
        decode: from ids to text, such as ``model.decode``; ``counting`` needs it, because ids cannot say what counts.
        **options: for ``mechrep`` only, options of `tail_cycle` (``min_span``, ``max_period``, ...).  A published
            preset has none: call its detector to change its numbers.

    Returns:
        The cycle in positions of the whole text, or None.

    Raises:
        InputError: for an unknown preset or option, ids that are not whole numbers, or a prompt longer than the
            text.

    Source:
        Hiraoka and Inui 2025 (arXiv 2410.13497), Mahaut and Franzon 2025 (2504.01100), Holtzman et al. 2020
        (1904.09751).

    Limits:
        Compares ids: a loop whose first copy is tokenised differently (no leading space) starts one token late.

    Example:
        >>> text = [0, 7, 8, 1, 2, 3, 1, 2, 3, 1, 2, 3, 99, 99]
        >>> cycle = detect_cycle(text, prompt_length=2, eos_id=99)
        >>> cycle.start, cycle.onset, cycle.end
        (3, 6, 12)
        >>> detect_cycle(text, "hiraoka2025") is None
        True
    """
    one_of("preset", preset, (*_PRESETS, COUNTING))
    allowed = _OPTIONS if preset == "mechrep" else set()
    if unknown := sorted(options.keys() - allowed):
        raise InputError(
            f"options {unknown} for preset {preset!r}",
            f"options among {sorted(allowed)}",
            "leave them out, or call the detector itself (mechrep.text.cycles)",
        )
    ids = token_ids(tokens)
    within("prompt_length", prompt_length, 0, len(ids), "a number of tokens")
    if preset == COUNTING:
        if decode is None:
            raise InputError("preset 'counting' for ids alone", "their text too", "pass decode=model.decode")
        loop = counting_loop(ids[prompt_length:], decode, eos_id=eos_id, special_ids=special_ids)
        return None if loop is None else loop.shifted(prompt_length)
    rule = _PRESETS[preset]
    first = 0 if rule.whole_text else prompt_length
    region = ids[first:]
    if rule.ends_at_eos:
        region = up_to_eos(region, eos_set(eos_id))
    special = {"special_ids": special_ids} if rule.skips_special_ids else {}
    cycle = rule.detector(region, **special, **options)
    if cycle is None:
        return None
    # With other numbers than the preset's it is no longer the preset, and keeps the detector's own name.
    return replace(cycle.shifted(first), detector=cycle.detector if options else preset)


def add_detector(name: str, detector: Callable[[list[int]], Cycle | None], *, whole_text: bool = False) -> None:
    """Make a detector of your own a preset, for everything that takes one by name.

    Args:
        name: of the preset; an own one of that name is replaced.
        detector: from token ids to a :class:`Cycle` (:meth:`Cycle.of` makes one), or ``None``.
        whole_text: it is given prompt and continuation; by default the continuation up to its EOS.

    Raises:
        InputError: the name of a preset that mechrep has.

    Limits: known in this process only.  Finished work in a store is told apart by the *name*: give a changed detector
    another one.

    Example:
        >>> def pairs(ids):  # the text ends in two equal tokens
        ...     two = len(ids) > 1 and ids[-1] == ids[-2]
        ...     return Cycle.of(ids, start=len(ids) - 2, period=1, end=len(ids), detector="pairs") if two else None
        >>> add_detector("pairs", pairs)
        >>> detect_cycle([5, 6, 7, 7], "pairs").onset
        3
    """
    if name in _OWN or name == COUNTING:
        raise InputError(f"name={name!r}", "a name that mechrep does not use itself", "choose another")
    _PRESETS[name] = _Preset(detector, whole_text=whole_text, ends_at_eos=not whole_text)
    WATCHES[name] = lambda prompt: _Rereading(name, prompt)


class _Rereading:
    """A growing text that is read again every few tokens."""

    def __init__(self, preset: str, prompt: TokenSequence) -> None:
        self.preset, self.ids, self.cycle = preset, list(token_ids(prompt)), None
        self.prompt_length = len(self.ids)

    cycle: Cycle | None

    def push(self, token: int) -> bool:
        self.ids.append(token)
        if self.cycle is None and (len(self.ids) - self.prompt_length) % _STEPS == 0:
            self.cycle = detect_cycle(self.ids, self.preset, prompt_length=self.prompt_length)
        return self.cycle is not None


MIN_COPIES = 3


def repeats_after_prompt(
    tokens: Sequence[int],
    prompt_length: int,
    preset: str = "mechrep",
    *,
    eos_id: int | Collection[int] | None = None,
    special_ids: Collection[int] = (),
    decode: Decode | None = None,
) -> Cycle | None:
    """The loop that a text falls into after its prompt, or ``None``.

    Args:
        tokens: prompt and continuation.
        prompt_length: tokens of the prompt.  Copies may lie in the prompt, but the loop must go on after it (default
            preset; the published ones look at the whole text).
        preset: of :func:`mechrep.detect_cycle`.
        eos_id: the continuation ends at its first one (default preset).
        special_ids: no cycle on their own (default preset).
        decode: from ids to text, such as ``model.decode``.  With it a loop whose copies differ in a counter is one too,
            whatever the preset (:func:`mechrep.text.counters.counting_loop`).  Ids cannot say what counts: without it
            copies that are equal but for a few tokens are a loop (:func:`mechrep.text.counters.frame_loop`).

    Raises:
        InputError: an unknown preset.

    Example:
        >>> repeats_after_prompt([5, 1, 2, 3, 1, 2, 3, 1, 2, 3], 4).period
        3
        >>> repeats_after_prompt([1, 2, 3] * 20 + [7, 8, 9, 10], 60) is None
        True
    """
    found = exact_loop(tokens, prompt_length, preset, eos_id=eos_id, special_ids=special_ids)
    if found is not None:
        return found
    if decode is None:
        return frame_loop(tokens, prompt_length, eos_id=eos_id)
    return counting_loop(tokens, decode, prompt_length, eos_id=eos_id, special_ids=special_ids)


def exact_loop(
    tokens: Sequence[int],
    prompt_length: int,
    preset: str = "mechrep",
    *,
    eos_id: int | Collection[int] | None = None,
    special_ids: Collection[int] = (),
) -> Cycle | None:
    """The loop of equal copies that a text falls into after its prompt, or ``None``: what outcomes of ablations count.

    Args:
        tokens: prompt and continuation.
        prompt_length: tokens of the prompt.
        preset: of :func:`mechrep.detect_cycle`.
        eos_id: the continuation ends at its first one (default preset).
        special_ids: no cycle on their own (default preset).

    Example:
        >>> exact_loop([5, 1, 2, 3, 1, 2, 3, 1, 2, 3], 4).period
        3
    """
    if preset != "mechrep":
        return detect_cycle(tokens, preset, prompt_length=prompt_length, eos_id=eos_id, special_ids=special_ids)
    ids = up_to_eos(list(tokens), eos_set(eos_id), prompt_length)
    watch = TailWatch(ids[:prompt_length])
    for token in ids[prompt_length:]:
        if watch.push(token) and watch.cycle is not None and not set(watch.cycle.tokens) <= set(special_ids):
            return watch.cycle
    if len(ids) == prompt_length:
        return None
    return detect_cycle(ids, "mechrep", special_ids=special_ids, min_copies=MIN_COPIES)
