"""Presets: each published protocol for "does this text repeat, and from where?", and mechrep's own.

* ``mechrep`` looks at the continuation, up to its EOS: `tail_cycle`, it ends in 2 copies, 8 tokens, longest span.
* ``hiraoka2025`` looks at the whole text with BOS: `ngram_triple`, one 10-gram three times, equally spaced.
* ``mahaut2025`` looks at the continuation: `smallest_tail_block`, a block of 2 to 500 tokens that tiles the end.
* ``holtzman2020`` looks at 200 tokens of continuation: `repeated_phrase`, 2 or more tokens, 3 times.

mechrep's default differs from the published presets because each is blind somewhere: the first to periods above 45,
the second to the outer period of a loop whose end repeats, the third to everything behind 200 tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from mechrep.errors import InputError
from mechrep.text._cycle import Cycle as Cycle
from mechrep.text._tokens import TokenSequence, eos_set, token_ids, up_to_eos
from mechrep.text.detectors import ngram_triple, repeated_phrase, smallest_tail_block, tail_cycle


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
_OPTIONS = {"min_period", "max_period", "min_copies", "min_span", "select"}


def detect_cycle(
    tokens: TokenSequence,
    preset: str = "mechrep",
    *,
    prompt_length: int = 0,
    eos_id: int | Collection[int] | None = None,
    special_ids: Collection[int] = (),
    **options: Any,
) -> Cycle | None:
    """Find the repetition in one text by a named protocol.

    Args:
        tokens: ids of the whole text, prompt included, without padding, ``[pos]``.
        preset: ``"mechrep"``, ``"hiraoka2025"``, ``"mahaut2025"`` or ``"holtzman2020"``; see the list above.
        prompt_length: number of ids before the continuation; ``hiraoka2025`` looks at the prompt too.
        eos_id: end-of-sequence id or ids; ``mechrep`` ends the text at the first one in the continuation, the published
            presets do not treat it.
        special_ids: ids that are no cycle on their own (``mechrep``, ``mahaut2025``).
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
    if preset not in _PRESETS:
        raise InputError(f"preset {preset!r}", f"one of {', '.join(_PRESETS)}", "choose one of them")
    allowed = _OPTIONS if preset == "mechrep" else set()
    if unknown := sorted(options.keys() - allowed):
        raise InputError(
            f"options {unknown} for preset {preset!r}",
            f"options among {sorted(allowed)}",
            "leave them out, or call the detector itself (mechrep.text.detectors)",
        )
    ids = token_ids(tokens)
    if not 0 <= prompt_length <= len(ids):
        raise InputError(
            f"prompt_length = {prompt_length} for {len(ids)} tokens", "0 <= prompt_length <= length", "count again"
        )
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
