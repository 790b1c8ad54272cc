"""How conditions are made: which detector, how much text, where natural prompts are cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mechrep.errors import InputError

Builder = Literal["text", "cycle"]
Cut = Literal["start", "onset"]


@dataclass(frozen=True)
class ConditionPreset:
    """How the texts of one model are made and told apart.

    Attributes:
        detector: preset of :func:`mechrep.detect_cycle`; it looks at the continuation only.
        new_tokens: greedy tokens after each prompt, or as many as fit into the context.
        stop_early: stop a text once its loop is all but certain (:class:`~mechrep.text.watch.TailWatch`).
        builder: what the induced condition shows.
        copies: how often.
        cut: where natural prompts end: before the first copy of the loop, or after it.
        padded_is_loop: published evaluation: a text that ended is padded with EOS, and the padding counts as a loop.
    """

    detector: str = "mechrep"
    new_tokens: int = 1000
    stop_early: bool = True
    builder: Builder = "text"
    copies: int = 2
    cut: Cut = "onset"
    padded_is_loop: bool = False


PRESETS = {
    "mechrep": ConditionPreset(),
    "mahaut2025": ConditionPreset("mahaut2025", stop_early=False, cut="start"),
    "mahaut2025_released": ConditionPreset("mahaut2025", stop_early=False, cut="start", padded_is_loop=True),
    "mahaut2025_v1": ConditionPreset("mahaut2025", stop_early=False, builder="cycle", cut="start"),
}


def condition_preset(name: str) -> ConditionPreset:
    """A preset by name.

    Raises:
        InputError: an unknown name.
    """
    if name not in PRESETS:
        raise InputError(f"preset {name!r}", f"one of {sorted(PRESETS)}", "choose one of these")
    return PRESETS[name]


def check_choice(name: str, value: str | None, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not among those allowed; ``None`` stands for the preset's.

    Raises:
        InputError: another value.
    """
    if value is not None and value not in allowed:
        raise InputError(f"{name}={value!r}", f"one of {allowed}", "choose one of these")
