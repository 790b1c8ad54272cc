"""What each part of the report costs on a pretrained model, over the bare cost of the tokens that it reads and writes.

    python benchmarks/bench_real.py real-models/smollm2-135m
    python benchmarks/bench_real.py real-models/smollm2-135m --parts sinks,heads --effort quick --json costs.json

Every part runs in a process of its own.  There plain transformers is timed first: batched passes over texts without
logits, rows of logits, and batched greedy generation.  Then the part runs under a meter that counts the tokens read and
written and the rows of logits, and its time is divided by what plain transformers needs for as many.  Seconds are those
of the processor, with one thread, so that other work on the machine changes little.  Peak memory is that of the
process, over what the weights and the bare passes took; both without what was there before the model was loaded.
The part "report" is all parts in one process, sharing texts and null models.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

PARTS = "sinks,heads,neurons,patch,text-kinds,information,first-layer"
ROWS, LENGTH = 16, 64  # of the texts that are read
WRITTEN_ROWS, PROMPT, WRITTEN = 32, 8, 24
MIB = 2**20


def memory() -> float:
    """Peak of this process so far, MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024


def seconds(work: Callable[[], Any], repeats: int = 2) -> float:
    """Least time of the processor over some calls."""
    taken = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        taken.append(time.process_time() - begin)
    return min(taken)


@torch.no_grad()
def bare_costs(module: Any, d_vocab: int) -> dict[str, float]:
    """Seconds of plain transformers for one token read, one row of logits, and one token written."""
    draw = torch.Generator().manual_seed(0)
    texts = torch.randint(10, min(d_vocab, 30_000), (ROWS, LENGTH), generator=draw)
    prompts = texts[:1, :PROMPT].repeat(WRITTEN_ROWS, 1)
    head = module.get_output_embeddings()
    states = module.base_model(input_ids=texts, use_cache=False).last_hidden_state.flatten(0, 1)[:256]
    settings = {"do_sample": False, "eos_token_id": -1, "pad_token_id": 0, "attention_mask": torch.ones_like(prompts)}
    return {
        "read": seconds(lambda: module.base_model(input_ids=texts, use_cache=False)) / texts.numel(),
        "logits": seconds(lambda: head(states)) / len(states),
        "written": seconds(lambda: module.generate(prompts, max_new_tokens=WRITTEN, min_new_tokens=WRITTEN, **settings))
        / (WRITTEN_ROWS * WRITTEN),
    }


def measure(folder: str, part: str, effort: str) -> dict[str, Any]:
    """One part in this process."""
    import mechrep
    from mechrep.models.meter import metered
    from mechrep.report.build import build_report
    from mechrep.run import Run

    before, begin = memory(), time.process_time()
    model = mechrep.load_model(folder)
    loading = time.process_time() - begin
    bare = bare_costs(model.plain, model.anatomy.d_vocab)
    least, begin = memory(), time.process_time()
    with tempfile.TemporaryDirectory() as out, metered(model) as meter:
        only = None if part == "report" else [part]
        build_report(model, out, only=only, run=Run(effort=effort, store=Path(out) / "store", progress=False))
    taken = time.process_time() - begin
    expected = (
        meter.read * bare["read"]
        + max(meter.logits - meter.written, 0) * bare["logits"]  # generation makes its own rows
        + meter.written * bare["written"]
    )
    return {
        "part": part,
        "cpu_s": round(taken, 1),
        "load_s": round(loading, 1),
        "read": meter.read,
        "written": meter.written,
        "logits": meter.logits,
        "bare_s": round(expected, 1),
        "time_over_bare": round(taken / max(expected, 1e-9), 2),
        "peak_mib": round(memory()),
        "memory_over_bare": round((memory() - before) / (least - before), 2),
        "tokens_per_second": {name: round(1 / cost, 1) for name, cost in bare.items()},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Aligned columns."""
    columns = [name for name in rows[0] if name != "tokens_per_second"]
    cells = [columns, *([f"{row[name]:,}" if name != "part" else row[name] for name in columns] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="real-models/smollm2-135m", help="folder of the model")
    parser.add_argument("--parts", default=PARTS, help="with commas; report: all in one process")
    parser.add_argument("--effort", default="quick")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if not (Path(chosen.model) / "config.json").is_file():
        print(f"{chosen.model} is not there: make real-models")
        return
    if chosen.here:
        torch.set_num_threads(1)
        print(json.dumps(measure(chosen.model, chosen.parts, chosen.effort)))
        return
    rows = []
    for part in chosen.parts.split(","):
        command = [sys.executable, __file__, chosen.model, "--parts", part, "--effort", chosen.effort, "--here"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{part}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}", flush=True)
            continue
        rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
        if chosen.json is not None:
            chosen.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if rows:
        print(table(rows))


if __name__ == "__main__":
    main()
