"""Mutants of the measuring code: each stands in the table once, and none survives its tests."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mutants.run import ROOT, applied
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


@pytest.mark.slow
def test_mutants_are_killed(tmp_path: Path, trust: Callable[..., None]) -> None:
    out = tmp_path / "mutants.json"
    run = [sys.executable, "-m", "tests.mutants.run", "--out", str(out)]
    told = subprocess.run(run, cwd=ROOT, check=False, capture_output=True, text=True).stdout
    assert out.is_file(), told
    found = json.loads(out.read_text(encoding="utf-8"))
    left = [name for name, end in found.items() if end != "killed"]
    killed = f"{len(found) - len(left)} of {len(found)} seen by the fast tests"
    trust(
        section="mutants", what="faults made in the measuring code, one at a time", asked="all seen",
        measured="; not: ".join([killed, *left]), holds=not left,
    )  # fmt: skip
    assert len(found) - len(left) >= LEAST, left
