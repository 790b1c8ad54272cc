"""Runs the tests of every mutant on a copy of the package that has its fault: ``python -m tests.mutants.run``.

A mutant is *killed* where a test fails or cannot be collected; it *survives* where all pass. Tests that do not end in
time have said nothing: such a mutant is *timed out*, and not counted as killed. On the package as it is, all tests must
pass, which is seen first. Where MECHREP_TRUST names a folder, a run of all mutants writes its row for docs/trust.md.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = "output.txt"
_IMPORTED = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"
# Without the checking of shapes: it takes most of the time, and what a test says is to be enough.
_PLAIN = "addopts=--doctest-modules --import-mode=importlib --strict-markers -m 'not slow and not real and not ray'"
_SECONDS = 300  # of the processor, for one mutant; the clock says nothing on a machine that is busy
_TICK = 0.05  # seconds
_WAITING = 6  # times as long by the clock, for tests that wait and compute nothing
_SLOW_TO_IMPORT = ("torch", "transformers", "pandas", "scipy.stats", "pyarrow.parquet")
_PASSED, _FAILED, _INTERRUPTED = 0, 1, 2  # of pytest; interrupted: a file could not be imported
_BROKEN = 70
SURVIVED, KILLED, TIMED_OUT = "survived", "killed", "timed out"


def main() -> int:
    """Run all mutants, or those whose words or file hold a piece of text; how many were not killed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.run", description=__doc__)
    parser.add_argument("some", nargs="*", help="only mutants whose file or words hold one of these")
    parser.add_argument("--out", type=Path, help="a JSON file for what became of each")
    parser.add_argument("--unchecked", action="store_true", help="do not first see that all pass as it is")
    parser.add_argument("--go-on", action="store_true", help="only mutants that the JSON file does not call killed")
    given = parser.parse_args()
    if given.go_on and not (given.out and given.out.is_file()):
        parser.error("--go-on needs --out FILE, and the file of the run before")
    from tests.mutants.table import MUTANTS

    found: dict[str, str] = json.loads(given.out.read_text(encoding="utf-8")) if given.go_on else {}
    found = {mutant.name: found[mutant.name] for mutant in MUTANTS if mutant.name in found}
    chosen = [m for m in MUTANTS if not given.some or any(one in m.name for one in given.some)]
    chosen = [mutant for mutant in chosen if found.get(mutant.name) != KILLED]
    for name in _SLOW_TO_IMPORT:  # once, not once for each mutant
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as name:
        folder = copied(Path(name))
        files = sorted({test for mutant in chosen for test in mutant.tests})
        if files and not given.unchecked and outcome(folder, files) != SURVIVED:
            print((folder / OUTPUT).read_text(encoding="utf-8")[-3000:], "the tests fail on the package as it is")
            return 1
        for number, mutant in enumerate(chosen, 1):
            begun = time.monotonic()
            with mutated(folder, mutant.file, mutant.before, mutant.after, number):
                end = found[mutant.name] = outcome(folder, mutant.tests)
            print(f"{number:{len(str(len(chosen)))}} of {len(chosen)}  {end if end == KILLED else end.upper()}  "
                  f"{time.monotonic() - begun:4.0f} s  {mutant.name}", flush=True)  # fmt: skip
            if given.out:
                given.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    if len(found) == len(MUTANTS):
        from tests.conftest import hand_over

        hand_over(**figure(found))
    print(figure(found)["measured"])
    return sum(end != KILLED for end in found.values())


def figure(found: dict[str, str]) -> dict[str, Any]:
    """The row for docs/trust.md: how many were killed, and the names of the others."""
    ends = {end: [name for name, one in found.items() if one == end] for end in (KILLED, SURVIVED, TIMED_OUT)}
    measured = f"{len(ends[KILLED])} of {len(found)} seen by the fast tests"
    for end, words in {SURVIVED: "not seen", TIMED_OUT: "tests that did not end"}.items():
        if ends[end]:
            measured += f"; {words}: " + "; ".join(ends[end])
    return {"section": "mutants", "what": "faults made in the measuring code, one at a time", "asked": "all seen",
            "measured": measured, "holds": len(ends[KILLED]) == len(found)}  # fmt: skip


def copied(folder: Path) -> Path:
    """The package as a copy, its tests as a link."""
    shutil.copytree(ROOT / "mechrep", folder / "mechrep", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("tests", "scripts", "conftest.py", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def applied(source: str, before: str, after: str) -> str:
    """A source with the fault.

    Raises:
        ValueError: the fragment does not stand there exactly once.
    """
    if source.count(before) != 1:
        raise ValueError(f"{before!r} stands there {source.count(before)} times, not once: correct the table")
    return source.replace(before, after)


@contextlib.contextmanager
def mutated(folder: Path, file: str, before: str, after: str, number: int) -> Iterator[None]:
    """While open, a file of the copy has a fault."""
    path = folder / file
    source, times = path.read_text(encoding="utf-8"), path.stat()
    path.write_text(applied(source, before, after), encoding="utf-8")
    # Python tells an old compilation by whole seconds and size.
    os.utime(path, (times.st_atime, times.st_mtime + 10 * number))
    try:
        yield
    finally:
        path.write_text(source, encoding="utf-8")
        os.utime(path, (times.st_atime, times.st_mtime))


def outcome(folder: Path, tests: Sequence[str], seconds: float = _SECONDS) -> str:
    """Whether these tests of the copy see a fault, in a process of their own.

    Raises:
        RuntimeError: pytest could not run them.
    """
    seconds *= 1 if len(tests) < 9 else 9
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + seconds), resource.RLIM_INFINITY))
            os._exit(_run(folder, tests))
        finally:  # whatever is raised: the parent's folder is not this process' to remove
            traceback.print_exc()
            os._exit(_BROKEN)
    for _ in range(int(seconds * _WAITING / _TICK)):  # counted, so that the time while this program is halted is not
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return _told(os.waitstatus_to_exitcode(status), folder)
        time.sleep(_TICK)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return TIMED_OUT


def _told(code: int, folder: Path) -> str:
    ends = {_PASSED: SURVIVED, _FAILED: KILLED, _INTERRUPTED: KILLED, -signal.SIGXCPU: TIMED_OUT}
    if code not in ends:  # another signal, as where memory runs out, says nothing of the tests
        raise RuntimeError(f"pytest ended with {code}: {(folder / OUTPUT).read_text(encoding='utf-8')[-2000:]}")
    return ends[code]


def _run(folder: Path, tests: Sequence[str]) -> int:
    with (folder / OUTPUT).open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        os.chdir(folder)
        sys.path[:] = [str(folder), *(place for place in sys.path if Path(place or ".").resolve() != ROOT)]
        for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "mechrep")]:
            del sys.modules[name]
        import pytest

        options = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", _IMPORTED, "-o", _PLAIN]
        return int(pytest.main([*options, *tests]))


if __name__ == "__main__":
    sys.exit(main())
