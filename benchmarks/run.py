"""Every benchmark one after the other, and one table: what was asked, what was measured.

    python benchmarks/run.py                      # or: make bench
    python benchmarks/run.py --only step,reading
    python benchmarks/run.py --table              # the table of what is there already

Each script runs in a process of its own and leaves its figures in ``benchmarks/results/NAME.json``; the table goes to
``benchmarks/results/table.md``.  Figures of what is not at hand (a pretrained model, a GPU, Ray) stay empty.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SMOL = Path("real-models/smollm2-135m")

# name: script, arguments, whether it needs the pretrained model
RUNS: dict[str, tuple[str, list[str], bool]] = {
    "step": ("bench_step.py", [], False),
    "sweep": ("bench_sweep.py", [], False),
    "sweep-smollm2": ("bench_sweep.py", ["--model", str(SMOL), "--texts", "8", "--ks", "50", "--draws", "1"], True),
    "reading": ("bench_reading.py", [], False),
    "reading-smollm2": ("bench_reading.py", ["--model", str(SMOL), "--texts", "64", "--repeats", "127"], True),
    "long-smollm2": ("bench_reading.py", ["--model", str(SMOL), "--rounds", "1"], True),
    "finding": ("bench_finding.py", [], False),
    "ray": ("bench_ray.py", [], False),
    "real": ("bench_real.py", [str(SMOL)], True),
    "gpu": ("gpu.py", [], False),
}


def _step(model: str, rows: int, kind: str) -> Callable[[Any], Any]:
    def take(found: Any) -> Any:
        (one,) = (step for step in found["models"][model]["steps"] if step["rows"] == rows)
        return one[kind]["clock"]

    return take


def _setting(model: str) -> Callable[[Any], Any]:
    return lambda found: found["models"][model]["setting"]["setting"]["clock"]


def _row(begin: str, column: str) -> Callable[[Any], Any]:
    def take(rows: Any) -> Any:
        return next(row[column] for row in rows if row.get("figure", "").startswith(begin))

    return take


def _over(begin: str, other: str, column: str) -> Callable[[Any], Any]:
    return lambda rows: _row(begin, column)(rows) / _row(other, column)(rows)


# figure, goal, which run, where in its file; "at least" goals are marked
GOALS: list[tuple[str, str, str, Callable[[Any], Any]]] = [
    *(
        (f"step with edits over generate, {name}, {rows} rows", goal, "step", _step(folder, rows, "step"))
        for name, folder, goals in (
            ("mechrep-tiny", "mechrep-tiny", ("0.4", "0.5", "0.6")),
            ("SmolLM2", "smollm2-135m", ("0.95", "0.9", "0.9")),
        )
        for rows, goal in zip((1, 16, 64), goals, strict=True)
    ),
    ("step over its matrix products, mechrep-tiny, 64 rows", "2.5", "step", _step("mechrep-tiny", 64, "products")),
    ("one setting, 64 texts, over generate with a hook, SmolLM2", "1", "step", _setting("smollm2-135m")),
    ("published one-text way over mechrep's sweep, mechrep-tiny", ">= 60", "sweep",
     _row("deactivation sweep, published", "ratio")),
    ("the same, SmolLM2", ">= 15", "sweep-smollm2", _row("deactivation sweep, published", "ratio")),
    ("TransformerLens' generate over mechrep's sweep, mechrep-tiny", ">= 8", "sweep",
     _row("deactivation sweep, TransformerLens", "ratio")),
    ("the same, SmolLM2", ">= 3", "sweep-smollm2", _row("deactivation sweep, TransformerLens", "ratio")),
    ("norms of all layers over plain transformers, time, SmolLM2", "0.9", "reading-smollm2",
     _over("norms", "transformers norms", "seconds")),
    ("attention of all heads to the first position, the same", "0.9", "reading-smollm2",
     _over("attention", "transformers attention", "seconds")),
    ("reading pass over the bare pass, time, random Llama", "1.05", "reading", _row("norms", "time_over_bare")),
    ("the same, memory", "1.1", "reading", _row("norms", "memory_over_bare")),
    ("reading pass over the bare pass, time, SmolLM2", "1.05", "long-smollm2", _row("norms", "time_over_bare")),
    ("the same, memory", "1.1", "long-smollm2", _row("norms", "memory_over_bare")),
    ("attention to the first position, 4,096 tokens, over SDPA, random Llama", "1.3", "reading",
     _row("attention", "time_over_bare")),
    ("the same, SmolLM2", "1.3", "long-smollm2", _row("attention", "time_over_bare")),
]  # fmt: skip


def machine() -> str:
    """What the figures were measured on."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{cores} cores ({platform.processor() or platform.machine()}), {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"
    )


def has_gpu() -> bool:
    """Whether torch sees one."""
    import torch

    return torch.cuda.is_available()


def table() -> str:
    """Asked and measured, in Markdown; empty where a run is missing."""
    lines = ["| figure | asked | measured |", "|---|---|---|"]
    for title, goal, run, take in GOALS:
        path = RESULTS / f"{run}.json"
        shown = ""
        if path.exists():
            try:
                shown = f"{take(json.loads(path.read_text(encoding='utf-8'))):.2f}"
            except (KeyError, StopIteration, ValueError):  # the run left this figure out
                shown = ""
        lines.append(f"| {title} | {goal} | {shown} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run, and write the table."""
    parser = argparse.ArgumentParser(description="benchmarks/run.py: every benchmark, one table")
    parser.add_argument("--only", help=f"with commas, some of {', '.join(RUNS)}")
    parser.add_argument("--table", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    chosen = list(RUNS) if arguments.only is None else arguments.only.split(",")
    unknown = sorted(set(chosen) - set(RUNS))
    if unknown:
        parser.error(f"--only {','.join(unknown)}: choose among {', '.join(RUNS)}")
    RESULTS.mkdir(exist_ok=True)
    failed = []
    for name in () if arguments.table else chosen:
        script, options, needs_model = RUNS[name]
        if needs_model and not SMOL.exists():
            print(f"{name}: left out, {SMOL} is not there (make real-models)")
            continue
        if name == "gpu" and not has_gpu():
            print("gpu: left out, there is none here")
            continue
        print(f"{name}: {script} {' '.join(options)}", flush=True)
        command = [sys.executable, str(HERE / script), *options, "--json", str(RESULTS / f"{name}.json")]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    text = f"Machine: {machine()}.\n\n{table()}"
    (RESULTS / "table.md").write_text(text, encoding="utf-8")
    print(text)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
