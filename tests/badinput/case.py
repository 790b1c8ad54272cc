"""A wrong call, and what it must give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechrep.errors import InputError, MechrepError
from tests.badinput.world import World


@dataclass(frozen=True)
class Case:
    """A wrong call.

    Attributes:
        who: the public name that is called.
        number: which of its wrong calls.
        call: the call.
        word: stands in ``given`` or ``expected`` (or, of a nearest name, in what is to be done).
        error: its class.
    """

    who: str
    number: int
    call: Callable[[World], Any]
    word: str
    error: type[MechrepError] = InputError

    def __str__(self) -> str:
        return f"{self.who}-{self.word}-{self.number}"


CASES: list[Case] = []


def wrong(who: str, word: str, *calls: Callable[[World], Any], error: type[MechrepError] = InputError) -> None:
    """Enter wrong calls of one function that give one kind of message."""
    begin = len(CASES)
    CASES.extend(Case(who, begin + number, call, word, error) for number, call in enumerate(calls))


def file(w: World, name: str, content: str | bytes = "") -> Path:
    """A file of this content."""
    path = w.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def folder(w: World, name: str) -> Path:
    """An empty folder."""
    path = w.folder / name
    path.mkdir(parents=True, exist_ok=True)
    return path
