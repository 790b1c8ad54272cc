"""Prints constraints that pin what mechrep itself needs to the lowest versions that pyproject.toml allows.

python .ci/lowest.py > constraints-lowest.txt
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def main() -> int:
    """The program."""
    without = []
    for need in tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]:
        found = re.fullmatch(r"([\w.-]+)>=([\w.]+)(,<[\w.]+)?", need)
        if found:
            print(f"{found[1]}=={found[2]}")
        else:
            without.append(need)
    if without:
        sys.stderr.write(f"without a lowest version: {', '.join(without)}\n")
    return bool(without)


if __name__ == "__main__":
    raise SystemExit(main())
