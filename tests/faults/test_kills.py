"""Killed at any moment, the same command goes on: equal numbers, nothing computed twice, nothing half left."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from signal import SIGINT, SIGTERM, Signals

import pandas as pd
import pytest
import torch

import mechrep
from tests.faults.runs import JOBS, Child, child

KEEPERS = ("reading", "effects", "written", "checkpoints", "report")


@pytest.fixture(scope="module")
def model() -> mechrep.Model:
    torch.set_num_threads(1)  # before a process is forked
    return mechrep.load_model("mechrep-tiny")


def remains(folder: Path) -> list[Path]:
    """What is half written."""
    return [path for path in folder.rglob("*") if path.name.endswith((".partial", ".before"))]


def survived(job: str, model: mechrep.Model, folder: Path, *, by_event: int, by_time: int) -> int:
    """Kill a run so many times, each time anew; how often it was really killed and went on as asked."""
    JOBS[job](model, folder / "first")  # what a model finds out about itself once is not counted
    whole = child(job, model, folder / "whole")
    again = child(job, model, folder / "whole")
    assert not whole.killed and whole.outcome and again.outcome == whole.outcome
    rng = random.Random(f"{job} {by_event}")
    places = sorted(rng.sample(range(1, whole.events + 1), by_event))
    count, tries = 0, itertools.count()
    while count < by_event + by_time:
        number = next(tries)
        assert number < 5 * (by_event + by_time), "it ends before it can be killed"
        at, after = (places[number], 0.0) if number < by_event else (0, rng.uniform(0.05, whole.seconds))
        place = folder / f"killed {number}"
        first = child(job, model, place, at=at, after=after)
        second = child(job, model, place)
        assert not second.killed and second.outcome == whole.outcome, (job, at, after)
        if first.killed:  # on a busy machine a moment can come after the end: then another one is drawn
            assert second.work <= whole.work - first.work + again.work, (job, at, after)
            count += 1
        assert not remains(place), (job, at, after)
        shutil.rmtree(place)
    return count


def test_a_killed_run_goes_on(model: mechrep.Model, tmp_path: Path) -> None:
    assert survived("effects", model, tmp_path, by_event=2, by_time=0) == 2


@pytest.mark.slow
@pytest.mark.parametrize("job", KEEPERS)
def test_ten_kills(
    job: str, model: mechrep.Model, tmp_path: Path, trust: Callable[..., None], small_effort: None
) -> None:
    killed = survived(job, model, tmp_path, by_event=8, by_time=2)
    trust(
        section="faults",
        what=f"{job}: killed with -9, then the same again: equal, nothing finished computed again, no half file",
        asked="10 of 10",
        measured=f"{killed} of 10 that came to be killed",
        holds=True,
    )


@pytest.mark.parametrize("job", [pytest.param("reading", marks=pytest.mark.slow), "effects"])
def test_two_at_the_same_time_share_a_store(job: str, model: mechrep.Model, tmp_path: Path) -> None:
    whole = child(job, model, tmp_path / "whole")
    both = [Child(job, model, tmp_path / "shared") for _ in range(2)]
    assert [one.ended().outcome for one in both] == [whole.outcome] * 2
    again = child(job, model, tmp_path / "shared")
    assert again.outcome == whole.outcome and again.work < whole.work / 10
    assert not remains(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("by", "code"), [(SIGINT, 130), (SIGTERM, 143)])
def test_an_interrupted_command_ends_in_order_and_goes_on(
    by: int, code: int, model: mechrep.Model, tmp_path: Path, small_effort: None, trust: Callable[..., None]
) -> None:
    whole, count = child("command", model, tmp_path / "whole"), 0
    assert whole.outcome == "0"
    for at in range(2, whole.events, max(1, whole.events // 5)):
        stopped = child("command", model, tmp_path / f"stopped {at}", at=at, by=by)
        assert not stopped.killed and stopped.outcome == str(code) and not remains(tmp_path)
        assert child("command", model, tmp_path / f"stopped {at}").outcome == "0"
        for table in (tmp_path / "whole").rglob("tables/*.parquet"):
            other = tmp_path / f"stopped {at}" / table.relative_to(tmp_path / "whole")
            assert pd.read_parquet(other).equals(pd.read_parquet(table))
        count += 1
    what = f"a command that gets {Signals(by).name}: exit code {code}, nothing half written, goes on, equal"
    trust(section="faults", what=what, asked="all", measured=f"{count} of {count}", holds=True)
