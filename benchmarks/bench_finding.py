"""What finding repetition neurons costs over the bare forward pass; time per text and peak memory as the corpus grows.

    python benchmarks/bench_finding.py

Each ratio is taken in one run, measurements alternating (A B A B ...), medians reported.  Peak memory and seconds per
text are measured in fresh processes, memory over what the process held before the pass.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import mechrep
from mechrep.models.reading import View

LENGTH, PERIOD = 211, 12


def synthetic_loops(model: mechrep.Model, n: int) -> mechrep.Corpus:
    """Random texts of 211 ids that loop with period 12 from position 90 on: finding does not care what they say."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, model.anatomy.d_vocab, (n, LENGTH), generator=generator)
    for position in range(90 + PERIOD, LENGTH):
        ids[:, position] = ids[:, position - PERIOD]
    corpus = mechrep.Corpus.from_tokens(ids, model=model)
    return corpus.with_columns(start=[90] * n, onset=[90 + PERIOD] * n, period=[PERIOD] * n)


def forward_only(model: mechrep.Model, cache: mechrep.CorpusCache, view: View) -> None:
    """The same batches through the bare model, logits and all."""
    run = model.plain_logits if view == "plain" else model.tl
    with torch.no_grad():
        for texts in cache.batches(cache.order()):
            run(cache.corpus.tokens[texts])


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def measure_time(model: mechrep.Model, view: View, n: int, repeats: int) -> dict[str, float]:
    """Median time ratio of finding over the bare forward pass in one view."""
    corpus = synthetic_loops(model, n)
    cache = mechrep.CorpusCache(model, corpus, view=view)
    pairs = []
    for _ in range(repeats + 1):
        bare = seconds(lambda: forward_only(model, cache, view))
        finding = seconds(lambda: cache.run(mechrep.RepetitionNeurons("hiraoka2025")))
        pairs.append((bare, finding))
    pairs = pairs[1:]  # the first pair warms up
    ratios = [finding / bare for bare, finding in pairs]
    return {
        "bare_s": statistics.median(bare for bare, _ in pairs),
        "finding_s": statistics.median(finding for _, finding in pairs),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def alone(what: str, view: View, n: int) -> dict[str, float]:
    """Rise of the peak resident set over the pass, in MiB, and its seconds, in a process of its own."""
    command = [sys.executable, __file__, "--child", what, "--view", view, "--texts", str(n)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def child(what: str, view: View, n: int) -> None:
    """Measure one pass in this process."""
    model = mechrep.load_model("mechrep-tiny")
    cache = mechrep.CorpusCache(model, synthetic_loops(model, n), view=view)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading (Linux)
    before, begin = status_mib("VmRSS"), time.process_time()
    forward_only(model, cache, view) if what == "bare" else cache.run(mechrep.RepetitionNeurons("hiraoka2025"))
    print(json.dumps({"peak_mib": status_mib("VmHWM") - before, "seconds": time.process_time() - begin}))


def status_mib(field: str) -> float:
    """A memory figure of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=(100, 1000, 10_000), help="texts, for the peaks")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child")
    parser.add_argument("--view", default="plain")
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.view, arguments.texts)
        return
    model = mechrep.load_model("mechrep-tiny")
    rows: list[dict[str, object]] = []
    for view in ("plain", "transformer_lens"):
        figures = measure_time(model, view, arguments.texts, arguments.repeats)
        print(f"time {view:16} {arguments.texts} texts x {LENGTH}:", {k: round(v, 3) for k, v in figures.items()})
        rows.append({"figure": f"finding, {view}", "time_over_bare": round(figures["ratio"], 3)})
        bare = alone("bare", view, arguments.texts)["peak_mib"]
        print(f"peak {view:16} bare forward, {arguments.texts} texts: {bare:.0f} MiB")
        for n in arguments.sizes:
            found = alone("finding", view, n)
            peak, each = found["peak_mib"], 1000 * found["seconds"] / n
            rows.append({"figure": f"finding, {view}, {n} texts", "memory_over_bare": round(peak / bare, 3),
                         "milliseconds_per_text": round(each, 3)})  # fmt: skip
            print(f"peak {view:16} finding, {n} texts: {peak:.0f} MiB, {peak / bare:.2f} of the bare pass; "
                  f"{each:.2f} ms a text", flush=True)  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
