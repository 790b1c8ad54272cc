"""Does a text fall into a loop after its prompt?  The question of every sweep, answered once for all of them.

For a published preset the answer is its detector's.  For the default it is: at some point of the continuation the text
ended in a loop that was all but certain (:class:`~mechrep.text.watch.TailWatch`), or it ends in at least three copies.
The published answer of Hiraoka and Inui, and the default's first kind, stay true however the text goes on, so decoding
may stop there without changing them.  Three copies at the end are asked for only when the text is finished.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mechrep.text._tokens import eos_set, up_to_eos
from mechrep.text.cycles import Cycle, detect_cycle
from mechrep.text.watch import TailWatch

MIN_COPIES = 3


def repeats_after_prompt(
    tokens: Sequence[int],
    prompt_length: int,
    preset: str = "mechrep",
    *,
    eos_id: int | Collection[int] | None = None,
    special_ids: Collection[int] = (),
) -> Cycle | None:
    """The loop that a text falls into after its prompt, or ``None``.

    Args:
        tokens: prompt and continuation.
        prompt_length: tokens of the prompt.  Copies may lie in the prompt, but the loop must go on after it (default
            preset; the published ones look at the whole text).
        preset: of :func:`mechrep.detect_cycle`.
        eos_id: the continuation ends at its first one (default preset).
        special_ids: no cycle on their own (default preset).

    Raises:
        InputError: an unknown preset.

    Example:
        >>> repeats_after_prompt([5, 1, 2, 3, 1, 2, 3, 1, 2, 3], 4).period
        3
        >>> repeats_after_prompt([1, 2, 3] * 20 + [7, 8, 9, 10], 60) is None
        True
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
