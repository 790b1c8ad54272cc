"""A disk that is full, and one that nobody may write to: one clear error, and what was there before stays whole."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mechrep.errors import StoreError
from tests.faults.kinds import KINDS


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own; only root may have one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], capture_output=True)
    if not made or made.returncode:
        pytest.skip("no disk of one's own can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def _remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


def _fill(place: Path) -> Path:
    """Take all space but a few kilobytes."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass
    return ballast


@pytest.mark.slow
def test_full_and_forbidden_disks(small_disk: Path, trust: Callable[..., None]) -> None:
    for name, kind in KINDS.items():
        good = small_disk / f"{name} good"
        good.mkdir()
        kind.write(good)
        before = kind.read(good)
        (small_disk / f"{name} new").mkdir()
        ballast = _fill(small_disk)
        for folder in (good, small_disk / f"{name} new"):
            if name in ("sums of a pass", "written texts", "shard of a study") and folder == good:
                continue  # they are there, and not written again
            with pytest.raises(StoreError, match=r"(?s)No space left.*free space"):
                kind.write(folder)
        ballast.unlink()
        assert kind.read(good) == before
        assert not [path for path in small_disk.rglob("*") if path.name.endswith((".partial", ".before"))]
        _remount(small_disk, "ro")
        assert kind.read(good) == before
        with pytest.raises(StoreError, match="Read-only"):
            kind.write(small_disk / f"{name} new")
        _remount(small_disk, "rw")
        kind.write(small_disk / f"{name} new")
        shutil.rmtree(good)
    for what in ("a full disk", "a folder that is read-only"):
        trust(
            section="faults",
            what=f"{what}: one error that names the file, what was there before is whole",
            asked="every kind of file",
            measured=f"{len(KINDS)} of {len(KINDS)}",
            holds=True,
        )
