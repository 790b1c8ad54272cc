"""The table of entries, and the models that they are run on."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mechrep
from tests.golden.flat import Record

FOLDER = Path(__file__).parent
SHARED = Path(os.environ.get("MECHREP_SHARED", FOLDER.parents[2] / "shared")) / "models"
TINY, REPEATS, STORIES = "mechrep-tiny", "mechrep-tiny-repeats", "stories260K"
MODELS = (TINY, REPEATS, STORIES)
EMBEDDED = (TINY, REPEATS)

GOLDEN: dict[str, Callable[[mechrep.Model], dict[str, Any]]] = {}
SLOW: set[str] = set()
ONLY: dict[str, Sequence[str]] = {}

Entry = Callable[[mechrep.Model], Record]


def golden(*, slow: bool = False, models: Sequence[str] = MODELS) -> Callable[[Entry], Entry]:
    """Put a function into the table under its own name."""

    def register(function: Entry) -> Entry:
        name = function.__name__
        assert name not in GOLDEN, name
        GOLDEN[name], ONLY[name] = function, models
        if slow:
            SLOW.add(name)
        return function

    return register


def is_slow(name: str, entry: str) -> bool:
    """Whether only the slow tests run an entry on a model: the fast ones have what takes little, on one model."""
    return entry in SLOW or name != TINY


@functools.cache
def load(name: str) -> mechrep.Model:
    """A model of the record, once per process."""
    return mechrep.load_model(str(SHARED / name) if name == STORIES else name)


def known(model: mechrep.Model) -> str:
    """The name under which a model is recorded."""
    return Path(model.name).name


def has(name: str) -> bool:
    """Whether a model is there: one of them lies beside the repository."""
    return name != STORIES or (SHARED / name).is_dir()


def path_of(name: str) -> Path:
    """The file with a model's record."""
    return FOLDER / f"{name}.json"


@functools.cache
def recorded(name: str) -> dict[str, dict[str, Record]]:
    """A model's record, ``{"values": {entry: ...}, "frames": {entry: ...}}``."""
    if not path_of(name).is_file():
        return {"values": {}, "frames": {}}
    return json.loads(path_of(name).read_text(encoding="utf-8"))


def expected(name: str, entry: str) -> Record | None:
    """The raw values that are recorded of an entry; None where there is nothing."""
    record = recorded(name)
    if entry not in record["values"]:
        return None
    return record["values"][entry]
