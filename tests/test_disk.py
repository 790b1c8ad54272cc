"""A file is written whole or not at all, whoever else writes it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mechrep import disk
from mechrep.disk import SUMS, check_folder, write_folder, write_whole
from mechrep.errors import StoreError


def test_two_who_write_one_file_at_the_same_time_both_write_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As two runs do that share a store: the second begins and ends before the first has moved its file."""
    move, target = Path.replace, tmp_path / "shard.json"

    def late(self: Path, to: Path) -> Path:
        monkeypatch.setattr(Path, "replace", move)
        write_whole(target, "second")
        assert target.read_text() == "second"
        return move(self, to)

    monkeypatch.setattr(Path, "replace", late)
    write_whole(target, "first")
    assert target.read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["shard.json"]


def test_two_who_make_one_folder_at_the_same_time_both_make_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    move, target = Path.rename, tmp_path / "result"

    def late(self: Path, to: Path) -> Path:
        monkeypatch.setattr(Path, "rename", move)
        write_folder(target, lambda new: (new / "x.json").write_text('{"by": 2}'), record="x.json")
        return move(self, to)

    for _ in range(2):  # where nothing stands, and where something does
        monkeypatch.setattr(Path, "rename", late)
        write_folder(target, lambda new: (new / "x.json").write_text('{"by": 1}'), record="x.json")
        assert check_folder(target, "x.json") == {"by": 1}
        assert [path.name for path in tmp_path.iterdir()] == ["result"]


def ended() -> int:
    """The number of a process that has ended."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    return gone.pid


def test_remains_of_a_killed_program_go_and_work_in_progress_stays(tmp_path: Path) -> None:
    other, mine, gone = "0" * 8, disk._machine(), ended()
    kept = [f"a.json.{mine}-{os.getpid()}-{'1' * 8}.partial", f"a.json.{other}-{gone}-{'1' * 8}.partial", "b.partial"]
    for name in [*kept, f"a.json.{mine}-{gone}-{'2' * 8}.partial", f"a.json.{other}-{gone}-{'3' * 8}.partial"]:
        (tmp_path / name).write_text("half")
    os.utime(tmp_path / f"a.json.{other}-{gone}-{'3' * 8}.partial", (0, 0))  # of another machine, and old
    write_whole(tmp_path / "a.json", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a.json", *kept])


def test_a_folder_that_a_killed_program_moved_aside_is_found_again(tmp_path: Path) -> None:
    write_folder(tmp_path / "one", lambda new: (new / "x.json").write_text('{"n": 1}'), record="x.json")
    (tmp_path / "one").rename(tmp_path / f"one.{disk._machine()}-{ended()}-{'1' * 8}.before")
    assert check_folder(tmp_path / "one", "x.json") == {"n": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_sums_can_be_checked_by_other_tools(tmp_path: Path) -> None:
    checker = shutil.which("sha256sum")
    if checker is None:
        pytest.skip("no sha256sum here")
    made = write_folder(tmp_path / "one", lambda new: (new / "é x.json").write_text("{}"), record="é x.json")
    assert subprocess.run([checker, "-c", "--status", SUMS], cwd=made).returncode == 0
    (made / "é x.json").write_text("[]")
    assert subprocess.run([checker, "-c", "--status", SUMS], cwd=made).returncode == 1
    with pytest.raises(StoreError, match=r"x\.json has changed"):
        check_folder(made, "é x.json")
