"""A bit flips, or a file is cut, in all that mechrep writes and reads back: it is noticed, or changes nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from mechrep import disk
from mechrep.disk import write_record
from mechrep.errors import StoreError
from tests.faults.kinds import KINDS, Kind


def _damaged(whole: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return whole[: rng.randrange(len(whole))]
    place = rng.randrange(len(whole))
    return whole[:place] + bytes([whole[place] ^ (1 << rng.randrange(8))]) + whole[place + 1 :]


def _noticed(kind: Kind, folder: Path, times: int) -> tuple[int, int]:
    """Of so many damages of each file, how many were refused, and how many changed nothing; there is no third."""
    folder.mkdir()
    kind.write(folder)
    good, rng, refused, harmless = kind.read(folder), random.Random(0), 0, 0
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert files
    for path in files:
        whole = path.read_bytes()
        for _ in range(times):
            path.write_bytes(_damaged(whole, rng))
            try:
                assert kind.read(folder) == good, path
                harmless += 1
            except StoreError as error:
                refused += 1
                assert path.name in str(error) or path.parent.name in str(error) or folder.name in str(error)
        path.write_bytes(whole)
    assert kind.read(folder) == good
    return refused, harmless


@pytest.mark.parametrize("name", [name for name in KINDS if name != "written texts"])  # shards, too
def test_a_flipped_bit_is_noticed(name: str, tmp_path: Path) -> None:
    refused, harmless = _noticed(KINDS[name], tmp_path / "out", 3)
    assert refused > harmless


@pytest.mark.slow
def test_flipped_bits_and_cut_files_by_the_hundred(tmp_path: Path, trust: Callable[..., None]) -> None:
    counts = [_noticed(kind, tmp_path / name, 100) for name, kind in KINDS.items()]
    refused, harmless = (sum(numbers) for numbers in zip(*counts, strict=True))
    trust(
        section="faults",
        what=f"bits flipped and files cut, in {len(KINDS)} kinds of files: refused by name, or without any effect",
        asked="all",
        measured=f"{refused + harmless} of {refused + harmless} ({harmless} without effect)",
        holds=True,
    )


def test_what_a_newer_mechrep_wrote_is_refused_in_clear_words(tmp_path: Path) -> None:
    """Sums are right, the layout is unknown."""
    for name in ("result", "section", "circuit", "shard of a study", "list of parts"):
        folder = tmp_path / name
        folder.mkdir()
        KINDS[name].write(folder)
        for path in folder.rglob("*.json"):
            record = json.loads(path.read_text())
            if "sha256" in record:
                write_record(path, {key: one for key, one in record.items() if key != "sha256"} | {"version": 3})
            elif "version" in record:
                path.write_text(json.dumps(record | {"version": 3}))
                (path.parent / disk.SUMS).unlink()
                disk._write_sums(path.parent)
        with pytest.raises(StoreError, match=r"version 3 .*expected: version .*newer"):
            KINDS[name].read(folder)


def test_what_mechrep_0_1_wrote_can_be_read(tmp_path: Path) -> None:
    """It has neither sums nor versions."""
    for name in ("result", "section", "list of parts"):
        folder = tmp_path / name
        folder.mkdir()
        KINDS[name].write(folder)
        good = KINDS[name].read(folder)
        for sums in folder.rglob("SHA256SUMS"):
            sums.unlink()
        for path in [*folder.rglob("result.json"), *folder.rglob("section.json"), *folder.rglob("parts.json")]:
            record = json.loads(path.read_text())
            old = {key: value for key, value in record.items() if key not in ("version", "sha256")}
            path.write_text(json.dumps(old))
        assert KINDS[name].read(folder) == good
