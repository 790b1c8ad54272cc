"""Heads that are called something in models that have learned nothing: how often, and how near the others come.

    python benchmarks/false_positives_heads.py

Null models: mechrep-tiny with the entries of every weight shuffled, and with weights drawn anew; 20 seeds of each, all
heads.  Each is scored on the same random repeats as a model of one's own would be, and on loops that the trained model
wrote.  Thresholds are those by which mechrep calls a head something.  Nothing is timed here.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd

import mechrep
from mechrep.generation import collect_loops
from mechrep.measures.head_copying import score_copying
from mechrep.measures.head_scores import CLEAR as INDUCTION
from mechrep.measures.head_scores import PUBLISHED_THRESHOLD, HeadScoreResult, HeadScores, induction_heads
from mechrep.models.nulls import reinitialised, shuffled

NULLS: dict[str, Callable[..., mechrep.Model]] = {"shuffled": shuffled, "drawn anew": reinitialised}
ON_LOOPS = ("induction", "duplicate_token")
GROUP = ["weights", "texts", "kind"]


def scored(model: mechrep.Model, loops: mechrep.Corpus, sequences: int, seed: int) -> Iterator[dict[str, Any]]:
    """One record per kind of head and kind of text."""
    repeats = mechrep.score_heads(model, sequences=sequences, seed=seed)
    copying = induction_heads(repeats, score_copying(model, sequences=sequences, seed=seed))
    for number, kind in enumerate(repeats.names):
        found = int((repeats.adjusted[number] >= INDUCTION).sum())
        yield record("repeats", kind, repeats, found) | ({"copies too": len(copying)} if kind == "induction" else {})
    natural = mechrep.CorpusCache(model, loops, progress=False).run(HeadScores("hiraoka2025", bos_id=model.bos_id))
    assert isinstance(natural, HeadScoreResult)
    for kind in ON_LOOPS:
        yield record("loops", kind, natural, len(natural.above(PUBLISHED_THRESHOLD, kind)))


def record(texts: str, kind: str, result: HeadScoreResult, found: int) -> dict[str, Any]:
    """What one model gives for one kind."""
    values = result.of(kind)
    return {
        "texts": texts,
        "kind": kind,
        "heads": values.numel(),
        "found": found,
        "models": int(found > 0),
        "largest": float(values.max()),
        "chance": float(result.chance[list(result.names).index(kind)]),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--loops", type=int, default=32)
    arguments = parser.parse_args()
    model = mechrep.load_model("mechrep-tiny")
    loops = collect_loops(model, arguments.loops, n_others=0, preset="hiraoka2025", progress=False)
    rows = [{"weights": "as trained", **row} for row in scored(model, loops, arguments.sequences, 0)]
    for (name, null), seed in itertools.product(NULLS.items(), range(arguments.seeds)):
        rows += [{"weights": name, **row} for row in scored(null(model, seed), loops, arguments.sequences, seed)]
    sums = {"heads": "sum", "found": "sum", "copies too": "sum", "models": "sum", "largest": "max", "chance": "mean"}
    table = pd.DataFrame(rows).groupby(GROUP, sort=False).agg(sums).reset_index()  # pyright: ignore
    table.loc[(table["texts"] != "repeats") | (table["kind"] != "induction"), "copies too"] = float("nan")
    print(f"on repeats: at least {INDUCTION} above chance; on loops: more than {PUBLISHED_THRESHOLD}")
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3g}", na_rep=""))


if __name__ == "__main__":
    main()
