"""Builds the release, and tries it where nothing of this tree is: in an empty environment, in an empty folder.

    python .ci/release.py                            # wheel and sdist into dist/, both installed and tried
    python .ci/release.py --python python3.13        # in another Python
    python .ci/release.py --constraints constraints-lowest.txt

What is built is what git has, committed or not; nothing else can slip in.  The wheel is made from the sdist, so the
sdist is whole.  Exit status 1: something does not work.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMOKE = """
import pathlib, tempfile, mechrep
assert "site-packages" in mechrep.__file__, mechrep.__file__
model = mechrep.load_model("mechrep-tiny")
sinks = mechrep.attention_sinks(model, ["It was the best of times, it was the worst of times"])
with tempfile.TemporaryDirectory() as folder:
    sinks.save(pathlib.Path(folder) / "sinks")
    back = mechrep.load(pathlib.Path(folder) / "sinks")
assert back.top(3) == sinks.top(3) and back.provenance == sinks.provenance
print(mechrep.__version__, sinks)
"""


def say(text: str) -> None:
    """One line of progress, at once."""
    print(f"release: {text}", flush=True)


def run(*command: object, cwd: Path) -> str:
    """Run a program; what it printed.

    Raises:
        SystemExit: it failed.
    """
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(done.stdout[-4000:] + done.stderr[-4000:])
        raise SystemExit(f"release: {' '.join(map(str, command))[:200]} failed with {done.returncode}")
    return done.stdout


def environment(python: str, folder: Path) -> Path:
    """The Python of a new virtual environment."""
    run(python, "-m", "venv", folder, cwd=folder.parent)
    return folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"


def build(python: str, scratch: Path) -> list[Path]:
    """Build sdist and wheel from what git has."""
    tree = scratch / "tree"
    for name in run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines():
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    builder = environment(python, scratch / "builder")
    run(builder, "-m", "pip", "install", "--quiet", "build", cwd=scratch)
    run(builder, "-m", "build", "--outdir", scratch / "dist", tree, cwd=scratch)
    return sorted((scratch / "dist").iterdir())


def install(python: Path, package: str, constraints: Path, cwd: Path) -> None:
    """Install torch first, alone, as in the Makefile, and then the package."""
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", constraints)
    run(*pip, "torch", cwd=cwd)
    run(*pip, package, cwd=cwd)


def smoke(python: Path, cwd: Path) -> None:
    """The first things that somebody tries."""
    program = python.with_name("mechrep")
    said = run(program, "--version", cwd=cwd).strip()
    if said != version():
        raise SystemExit(f"release: mechrep --version says {said}, expected {version()}")
    run(program, "doctor", cwd=cwd)
    run(program, "report", "mechrep-tiny", "--effort", "quick", "--only", "first-layer", "--out", "report", cwd=cwd)
    for name in ("report.html", "report.json"):
        if not (cwd / "report" / name).is_file():
            raise SystemExit(f"release: the report has no {name}")
    say(run(python, "-c", SMOKE, cwd=cwd).strip())


def version() -> str:
    """The version that the package has in this tree."""
    line = next(one for one in (ROOT / "mechrep" / "__init__.py").read_text().splitlines() if "__version__ =" in one)
    return line.split('"')[1]


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="to try it in; by default the one that runs this")
    parser.add_argument("--constraints", type=Path, default=ROOT / "constraints.txt", help="versions to install")
    parser.add_argument("--wheel-only", action="store_true", help="do not try the sdist")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="release-") as folder:
        scratch, begun = Path(folder), time.monotonic()
        packages = build(chosen.python, scratch)
        say(f"built {', '.join(path.name for path in packages)}")
        python = environment(chosen.python, scratch / "empty")
        for package in sorted(packages, key=lambda path: path.suffix != ".whl")[: 1 if chosen.wheel_only else 2]:
            if package.suffix != ".whl":  # what it needs is there already
                run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "mechrep", cwd=scratch)
            install(python, str(package), chosen.constraints.resolve(), scratch)
            place = scratch / f"tried {package.suffix}"
            place.mkdir()
            smoke(python, place)
            say(f"{package.name} works in {run(python, '--version', cwd=scratch).strip()}")
        (ROOT / "dist").mkdir(exist_ok=True)
        for package in packages:
            shutil.copy2(package, ROOT / "dist" / package.name)
            say(f"dist/{package.name}: {package.stat().st_size / 1e6:.1f} MB")
        say(f"{time.monotonic() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
