"""Damaged files, made from whole ones by a seed: flipped bytes, cut ends, other JSON, sizes that cannot be."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

LEAVES: list[Any] = [None, True, -1, 0, 3, 2**40, 2**70, 1.5, float("nan"), "", "x" * 50, [], {}, [[]], {"a": {}}]


def flipped(data: bytes, draw: random.Random) -> bytes:
    """A few bytes are other ones."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 8)):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def cut(data: bytes, draw: random.Random) -> bytes:
    """The end is missing."""
    return data[: draw.randrange(len(data))]


def swollen(data: bytes, draw: random.Random) -> bytes:
    """Eight bytes near the beginning, where sizes stand, say something huge."""
    place = draw.randrange(max(1, min(len(data), 400) - 8))
    return data[:place] + struct.pack("<Q", draw.choice([2**62, 2**40, 2**63 + 1, 2**32])) + data[place + 8 :]


def other_json(data: bytes, draw: random.Random) -> bytes:
    """Some value in it is of another kind, missing, or nested without end; mostly without the sum that would tell."""
    record = json.loads(data)
    if draw.random() < 0.7:
        for name in ("version", "sha256"):
            record.pop(name, None)
    if draw.random() < 0.05:
        return b"[" * 100_000
    if draw.random() < 0.1:
        return json.dumps(draw.choice(LEAVES)).encode()
    holder, key = draw.choice(list(_places(record)))
    if draw.random() < 0.2:
        del holder[key]
    else:
        holder[key] = draw.choice(LEAVES)
    return json.dumps(record).encode()


def _places(value: Any) -> Any:
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def damaged(path: Path, seed: int) -> str:
    """Damage a file in place; what was done."""
    draw = random.Random(seed)
    ways: list[Callable[[bytes, random.Random], bytes]] = [flipped, cut, swollen]
    ways += [other_json] * 3 if path.suffix == ".json" else []
    way = draw.choice(ways)
    path.write_bytes(way(path.read_bytes(), draw))
    return way.__name__
