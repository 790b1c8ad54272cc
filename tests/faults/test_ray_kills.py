"""The program that drives workers of Ray is killed: the same command goes on from the shards that are there."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.faults.test_kills import remains

pytest.importorskip("ray", reason="Ray is not installed: pip install 'mechrep[ray]'")
pytestmark = [pytest.mark.ray, pytest.mark.slow]
_CELLS, _PATIENCE = 9, 900.0


def started(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults.ray_driver", str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip


def finished(folder: Path) -> dict[str, Any]:
    said, complained = (running := started(folder)).communicate(timeout=_PATIENCE)
    assert running.returncode == 0, complained[-2000:]
    return json.loads(said.splitlines()[-1])


def test_a_killed_driver_goes_on(tmp_path: Path, trust: Callable[..., None]) -> None:
    whole, rng, survived = finished(tmp_path / "whole"), random.Random(0), 0
    assert whole["measured"] == _CELLS
    for number in range(3):
        folder, shards = tmp_path / f"killed {number}", rng.randrange(1, 4)
        running, begun = started(folder), time.monotonic()
        while len(list(folder.rglob("shard-*.json"))) < shards and running.poll() is None:
            assert time.monotonic() - begun < _PATIENCE
            time.sleep(0.002)
        running.kill()
        running.wait()
        for pipe in (running.stdout, running.stderr):
            assert pipe is not None
            pipe.close()
        kept = [json.loads(path.read_text())["records"] for path in folder.rglob("shard-*.json")]
        done = sum(len(records[0]["places"]) for records in kept)
        again = finished(folder)
        assert again["measured"] == _CELLS - done and not remains(folder)
        np.testing.assert_allclose(again["values"], whole["values"], rtol=1e-5, atol=1e-6)
        survived += running.returncode < 0
    what = "a driver of Ray workers killed with -9, then the same again: equal, nothing finished computed again"
    trust(section="faults", what=what, asked="all", measured=f"{survived} of {survived}", holds=survived > 0)
