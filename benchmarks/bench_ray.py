"""Two workers of a Ray cluster on this machine against one, of one thread each, and against this process alone.

    python benchmarks/bench_ray.py
    python benchmarks/bench_ray.py real-models/smollm2-135m --json ray.json

Two jobs: a reading pass (norms and attention to the first position), and a table (heads zeroed, loss on windows).
Workers are started, and have the model, before the clock runs; the three ways are measured one after the other, since
workers hold cores, and medians are compared.  So is what comes out.

It needs two idle cores: a ratio on a busy machine says what the others were doing.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import mechrep
from mechrep.ablation.effects import Condition
from mechrep.ablation.outcomes import HeldOutLoss
from mechrep.ablation.run import measure_effects
from mechrep.interventions.ops import Heads
from mechrep.measures.attention_sinks import AttentionSinks
from mechrep.measures.sink_norms import SinkNorms
from mechrep.run import Run

WAYS = {"here": None, "1 worker": 1, "2 workers": 2}


def texts_of(model: mechrep.Model, number: int, length: int) -> mechrep.Corpus:
    """Random texts of one length."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, model.anatomy.d_vocab, (number, length), generator=generator)
    return mechrep.Corpus.from_tokens(ids.tolist(), model=model, attention_mask=True)


def reading(model: mechrep.Model, number: int) -> Callable[[Run], torch.Tensor]:
    """Norms and attention of texts."""
    texts = texts_of(model, number, 128)

    def job(run: Run) -> torch.Tensor:
        analyzers = SinkNorms(), AttentionSinks()
        mechrep.CorpusCache(model, texts, batch_size=8, run=run).run(*analyzers)
        return torch.cat([value.flatten().double() for one in analyzers for value in one.state.values()])

    return job


def table(model: mechrep.Model, number: int, heads: int) -> Callable[[Run], torch.Tensor]:
    """Heads zeroed alone, loss on windows."""
    outcome = HeldOutLoss(model, texts_of(model, number, 64))
    units = [(layer, head) for layer in model.anatomy.attention_layers for head in range(model.anatomy.n_heads)]
    cells: list[Any] = [(Condition(), None)]
    cells += [(Condition(f"L{u[0]}H{u[1]}", "ablation", 1), Heads([u], when="all")) for u in units[:heads]]

    def job(run: Run) -> torch.Tensor:
        return measure_effects(model, cells, [outcome], config={}, run=run).values.flatten()

    return job


def another(run: Run) -> Run:
    """The same workers, and nothing measured yet."""
    engines = {key: value for key, value in run.made.items() if isinstance(key, tuple) and key[0] == "engine"}
    return Run(engine=run.engine, workers=run.workers, progress=False, made={**engines})


def measured(job: Callable[[Run], torch.Tensor], rounds: int) -> dict[str, Any]:
    """Seconds of every way in every round, ratios, and the largest difference in what came out."""
    import ray

    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    found: dict[str, torch.Tensor] = {}
    for way, workers in WAYS.items():
        if workers is not None:  # a cluster of as many cores, so that each worker has one thread
            ray.init(
                "local", num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
            )
        run = Run(progress=False) if workers is None else Run(engine="ray", workers=workers, progress=False)
        found[way] = job(run)  # the first time brings model and job to the workers
        for _ in range(rounds):
            begun = time.perf_counter()
            job(another(run))
            seconds[way].append(time.perf_counter() - begun)
        if workers is not None:
            ray.shutdown()
    middle = {way: statistics.median(some) for way, some in seconds.items()}
    return {
        "seconds": {way: round(value, 3) for way, value in middle.items()},
        "1 worker over 2": round(middle["1 worker"] / middle["2 workers"], 3),
        "here over 2 workers": round(middle["here"] / middle["2 workers"], 3),
        "largest difference": float((found["here"] - found["2 workers"]).nan_to_num().abs().max()),
    }


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(prog="bench_ray.py", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", nargs="?", default="mechrep-tiny")
    parser.add_argument("--texts", type=int, default=1024, help="of the reading pass; windows: a quarter of them")
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    model = mechrep.load_model(options.model)
    jobs = {"reading": reading(model, options.texts), "table": table(model, options.texts // 4, options.heads)}
    record: dict[str, Any] = {"model": model.name, "machine": platform.processor() or platform.machine()}
    record |= {"cores": os.cpu_count(), "goal": 1.8}
    for name, job in jobs.items():
        record[name] = measured(job, options.rounds)
        print(f"{name}: {json.dumps(record[name])}", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
