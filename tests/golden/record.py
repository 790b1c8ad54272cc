"""The golden record: what every analyzer and study computes today, at the smallest settings that say something.

``python -m tests.golden.record --write [entries]`` records anew, all entries or the named ones.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import time
import traceback
import warnings

from tests.golden.flat import FRAMES, Record
from tests.golden.registry import GOLDEN, MODELS, ONLY, SHARED, has, is_slow, load, path_of, recorded

for _module in (
    "texts",
    "neurons",
    "heads",
    "sinks",
    "first_token",
    "ablation",
    "kinds",
    "information",
    "training",
    "components",
):
    importlib.import_module(f"tests.golden.entries.{_module}")


def cases() -> list[tuple[str, str]]:
    """Every model with every entry that it has."""
    return [(name, entry) for name in MODELS for entry in GOLDEN if name in ONLY[entry]]


def run(name: str, entry: str) -> Record:
    """Compute an entry as JSON would give it back."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return json.loads(json.dumps(GOLDEN[entry](load(name)), allow_nan=False))


def write(name: str, found: dict[str, Record]) -> None:
    """Put entries into a model's file, one name a line, and leave the others as they are."""
    record = recorded(name)
    for entry, values in found.items():
        record["values"][entry] = {key: one for key, one in values.items() if not key.startswith(FRAMES)}
        record["frames"][entry] = {key: one for key, one in values.items() if key.startswith(FRAMES)}
    parts = []
    for part, entries in record.items():
        kept = {entry: entries[entry] for entry in GOLDEN if entry in entries and name in ONLY[entry]}
        inner = ",\n".join(f"{json.dumps(entry)}: {_lines(values)}" for entry, values in kept.items())
        parts.append(f"{json.dumps(part)}: {{\n{inner}\n}}")
    text = "{\n" + ",\n".join(parts) + "\n}\n"
    assert str(SHARED.parent) not in text, f"the record of {name} names a folder of this machine"
    path_of(name).write_text(text, encoding="utf-8")


def _lines(values: Record) -> str:
    compact = functools.partial(json.dumps, separators=(",", ":"), ensure_ascii=False)
    return "{\n" + ",\n".join(f" {json.dumps(key)}:{compact(value)}" for key, value in sorted(values.items())) + "\n}"


def main() -> None:
    """Record entries, or say how long they take."""
    parser = argparse.ArgumentParser(description="Record what today's code computes.")
    parser.add_argument("entries", nargs="*", help="by default all")
    parser.add_argument("--write", action="store_true", help="write the record; without it only compute")
    parser.add_argument("--model", action="append", choices=MODELS, help="by default all")
    parser.add_argument("--missing", action="store_true", help="only what is not recorded yet")
    options = parser.parse_args()
    for name, entry in cases():
        wanted = name in (options.model or MODELS) and has(name) and (not options.entries or entry in options.entries)
        if not wanted or (options.missing and entry in recorded(name)["values"]):
            continue
        begun = time.perf_counter()
        try:
            found = run(name, entry)
        except Exception:  # the others can be recorded all the same
            print(f"{name} {entry} failed:\n{traceback.format_exc(limit=-3)}", flush=True)
            continue
        took = time.perf_counter() - begun
        size = len(json.dumps(found)) / 1024
        print(f"{took:7.2f} s {size:7.1f} KiB {name} {entry}{' (slow)' if is_slow(name, entry) else ''}", flush=True)
        if options.write:
            write(name, {entry: found})


if __name__ == "__main__":
    main()
