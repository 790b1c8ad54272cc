"""Runs the tests of every mutant on a copy of the package that has its fault: ``python -m tests.mutants.run``.

A mutant is *killed* where a test fails, cannot be collected, or does not end in time; it *survives* where all pass.  On
the package as it is, all of them must pass, which is seen first.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = "output.txt"
_IMPORTED = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"
# Without the checking of shapes: it takes most of the time, and what a test says is to be enough.
_PLAIN = "addopts=--doctest-modules --import-mode=importlib --strict-markers -m 'not slow and not real and not ray'"
_SECONDS = 300  # for one mutant
_SLOW_TO_IMPORT = ("torch", "transformers", "pandas", "scipy.stats", "pyarrow.parquet")
PASSED, FAILED, INTERRUPTED, BROKEN = 0, 1, 2, 70  # of pytest, but the last; interrupted: a file could not be imported


def main() -> int:
    """Run all mutants, or those whose words or file hold a piece of text; how many survive."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.run", description=__doc__)
    parser.add_argument("some", nargs="*", help="only mutants whose file or words hold one of these")
    parser.add_argument("--out", type=Path, help="a JSON file for what became of each")
    parser.add_argument("--unchecked", action="store_true", help="do not first see that all pass as it is")
    given = parser.parse_args()
    from tests.mutants.table import MUTANTS

    chosen = [m for m in MUTANTS if not given.some or any(one in f"{m.file} {m.what}" for one in given.some)]
    for name in _SLOW_TO_IMPORT:  # once, not once for each mutant
        importlib.import_module(name)
    found, width = {}, len(str(len(chosen)))
    with tempfile.TemporaryDirectory() as name:
        folder = copied(Path(name))
        files = sorted({test for mutant in chosen for test in mutant.tests})
        if not given.unchecked and outcome(folder, files) != PASSED:
            print((folder / OUTPUT).read_text(encoding="utf-8")[-3000:], "the tests fail on the package as it is")
            return 1
        for number, mutant in enumerate(chosen, 1):
            begun = time.monotonic()
            with mutated(folder, mutant.file, mutant.before, mutant.after, number):
                survived = outcome(folder, mutant.tests) == PASSED
            found[f"{mutant.file}: {mutant.what}"] = "survived" if survived else "killed"
            seconds = time.monotonic() - begun
            print(f"{number:{width}} of {len(chosen)}  {'SURVIVED' if survived else 'killed'}  {seconds:4.0f} s  "
                  f"{mutant.file}: {mutant.what}", flush=True)  # fmt: skip
    if given.out:
        given.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    left = [name for name, end in found.items() if end == "survived"]
    print(f"{len(found) - len(left)} of {len(found)} killed")
    return len(left)


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


def outcome(folder: Path, tests: Sequence[str]) -> int:
    """pytest's exit code for these tests of the copy, in a process of their own; a hanging one has failed.

    Raises:
        RuntimeError: pytest could not run them.
    """
    child = os.fork()
    if child == 0:
        try:
            os._exit(_run(folder, tests))
        finally:  # whatever is raised: the parent's folder is not this process' to remove
            traceback.print_exc()
            os._exit(BROKEN)
    end = time.monotonic() + _SECONDS * (1 if len(tests) < 9 else 9)
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            if code not in (
                PASSED,
                FAILED,
                INTERRUPTED,
            ):  # a signal, as where memory runs out, says nothing of the tests
                raise RuntimeError(f"pytest ended with {code} for {tests}: {(folder / OUTPUT).read_text()[-2000:]}")
            return code
        time.sleep(0.05)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return FAILED


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
