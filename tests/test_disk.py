"""A file is written whole or not at all, whoever else writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mechrep.disk import write_whole


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
