"""Measures a table on two workers of a Ray cluster of its own: ``python -m tests.faults.ray_driver FOLDER``.

It prints how many conditions it has measured itself, and the table.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import mechrep
from mechrep.ablation import run as ablation_run
from mechrep.ablation.effects import Condition
from mechrep.ablation.outcomes import HeldOutLoss
from mechrep.ablation.run import Shard, measure_effects
from mechrep.run import Run


def main(folder: Path) -> None:
    """The program."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    ablation_run._ROWS_PER_SHARD = ablation_run._FIRST_SHARD = 8
    model = mechrep.load_model("mechrep-tiny")
    windows = mechrep.Corpus.from_tokens([[0, *range(20 + i, 52 + i)] for i in range(4)], model=model)
    heads = [mechrep.Heads([(layer, head)]) for layer in range(4) for head in range(2)]
    cells: list[Any] = [(Condition(), None)]
    cells += [(Condition(f"h{i}", "ablation", 1), head) for i, head in enumerate(heads)]
    asked: list[int] = []
    take = ablation_run._Shards.take

    def counting(self: Any, shard: Shard, found: Any, seconds: float) -> None:
        asked.extend(shard.places)
        take(self, shard, found, seconds)

    ablation_run._Shards.take = counting
    run = Run(store=folder, engine="ray", workers=2, progress=False)
    effects = measure_effects(model, cells, [HeldOutLoss(model, windows)], config={}, run=run)
    print(json.dumps({"measured": len(asked), "values": effects.values.tolist()}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
