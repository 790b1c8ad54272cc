"""Mutants of the measuring code: each stands in the table once, and none survives its tests."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mutants.run import KILLED, ROOT, SURVIVED, TIMED_OUT, applied, figure
from tests.mutants.table import MUTANTS

LEAST = 60


def test_every_mutant_is_another_program_with_tests_to_kill_it() -> None:
    assert len({(m.file, m.before, m.after) for m in MUTANTS}) == len(MUTANTS) >= LEAST
    for mutant in MUTANTS:
        source = (ROOT / mutant.file).read_text(encoding="utf-8")
        compile(applied(source, mutant.before, mutant.after), mutant.file, "exec")
        assert mutant.before != mutant.after and mutant.tests and all((ROOT / test).is_file() for test in mutant.tests)


def test_a_fragment_that_is_no_longer_there_is_an_error() -> None:
    for source in ("a = 1", "a = 2; b = 2"):
        with pytest.raises(ValueError, match="not once"):
            applied(source, "= 2", "= 3")


def test_tests_that_do_not_end_have_seen_nothing() -> None:
    row = figure({"a": KILLED, "b": TIMED_OUT, "c": SURVIVED, "d": KILLED})
    assert row["measured"] == "2 of 4 seen by the fast tests; not seen: c; tests that did not end: b"
    assert not row["holds"] and figure({"a": KILLED})["holds"] and not figure({"a": TIMED_OUT})["holds"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "end"),
    [
        ("pass", SURVIVED),
        ("assert False", KILLED),
        ("import nothing_of_this_name", KILLED),
        ("\n  while True: pass", TIMED_OUT),
        ("import time; time.sleep(1000)", TIMED_OUT),
    ],
)
def test_what_becomes_of_a_mutant(tmp_path: Path, body: str, end: str) -> None:
    (tmp_path / "test_it.py").write_text(f"def test_it(): {body}\n", encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  slow\n  real\n  ray\n", encoding="utf-8")
    call = f"from tests.mutants.run import *; print(outcome(Path({str(tmp_path)!r}), ['test_it.py'], 3))"
    told = subprocess.run([sys.executable, "-c", call], cwd=ROOT, check=True, capture_output=True, text=True)
    assert told.stdout.splitlines()[-1] == end


@pytest.mark.slow
def test_mutants_are_killed(tmp_path: Path, trust: Callable[..., None]) -> None:
    out = tmp_path / "mutants.json"
    run = [sys.executable, "-m", "tests.mutants.run", "--out", str(out)]
    told = subprocess.run(run, cwd=ROOT, check=False, capture_output=True, text=True).stdout
    assert out.is_file(), told
    found = json.loads(out.read_text(encoding="utf-8"))
    trust(**figure(found))
    left = {name: end for name, end in found.items() if end != KILLED}
    assert len(found) == len(MUTANTS) and len(found) - len(left) >= LEAST, left
