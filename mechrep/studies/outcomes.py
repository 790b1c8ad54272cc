"""What became of a text: does it still repeat, when did it leave its loop, has it found another one?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mechrep.text.repeats import repeats_after_prompt


@dataclass(frozen=True)
class OldLoop:
    """The loop a text was in when it was cut at its onset.

    Attributes:
        start: first position of the first copy.
        onset: start of the second copy; the prompt ends here.
        cycle: ids of one copy.
    """

    start: int
    onset: int
    cycle: tuple[int, ...]

    def escape(self, ids: Sequence[int]) -> int | None:
        """How many tokens of the loop came after the onset before another one; ``None`` if no other one came."""
        for position in range(self.onset, len(ids)):
            if ids[position] != self.cycle[(position - self.start) % len(self.cycle)]:
                return position - self.onset
        return None


def outcome_of(
    ids: Sequence[int],
    prompt_length: int,
    *,
    preset: str,
    old: OldLoop | None,
    eos_id: int | None = None,
    special_ids: Sequence[int] = (),
) -> dict[str, Any]:
    """Facts about one text after an edit.

    Args:
        ids: prompt and continuation.
        prompt_length: tokens of the prompt.
        preset: see :func:`mechrep.text.repeats.repeats_after_prompt`.
        old: the loop before the edit; ``None`` for a text that had none.
        eos_id: cut the text there (default detector).
        special_ids: no cycle on their own.

    Returns:
        ``repeating``; ``escaped_at`` (tokens after the onset, ``None`` while in the loop); ``relooped`` (in a loop that
        reaches beyond its escape, or was free before); ``new_period`` of that loop; ``new_tokens``.
    """
    cycle = repeats_after_prompt(ids, prompt_length, preset, eos_id=eos_id, special_ids=special_ids)
    escaped_at = None if old is None else old.escape(ids)
    # A loop that ends before the escape is the old one.
    relooped = cycle is not None and (old is None or (escaped_at is not None and cycle.end > old.onset + escaped_at))
    return {
        "repeating": cycle is not None,
        "escaped_at": escaped_at,
        "relooped": relooped,
        "new_period": cycle.period if relooped and cycle is not None else None,
        "new_tokens": len(ids) - prompt_length,
    }
