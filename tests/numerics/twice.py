"""Run by test_same_bytes in a process of its own: everything that can be saved, into a folder.

PYTHONHASHSEED=1 python -m tests.numerics.twice FOLDER
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import mechrep
from mechrep.ablation.first_token_outcomes import first_layer_heads
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.generation import collect_loops, sample_prompts
from mechrep.generation.decode import generate
from mechrep.models.load import load_model
from mechrep.models.nulls import shuffled
from mechrep.run import Run
from tests.families.zoo import build, families
from tests.numerics.analyzers import MAKERS, TINY

TIMES = "made"  # the field of a result's provenance that says when it was made; nothing else may differ


def write(folder: Path) -> None:
    """Every analyzer, texts that were written and drawn, loops, a study, a null model, a report."""
    model = load_model(TINY)
    for name, make in MAKERS.items():
        own = load_model(build(families()["Mixtral"]), check=False) if name == "RouterShift" else model
        corpus, analyzer = make(own)
        CorpusCache(own, corpus, progress=False).run(analyzer).save(folder / name)
    prompts = sample_prompts(model, 8)
    generate(model, prompts, max_new_tokens=40, progress=False).save(folder / "greedy.parquet")
    drawn = {"temperature": 1.0, "top_k": 50, "seed": 3}
    generate(model, prompts, max_new_tokens=40, progress=False, **drawn).save(folder / "sampled.parquet")
    collect_loops(model, 6, progress=False).save(folder / "loops.parquet")
    mechrep.compare(model, prompts, "L2H0", max_new_tokens=12, progress=False).save(folder / "compare")
    study = first_layer_heads(model, triples=60, run=Run(store=folder / "store", progress=False))
    study.save(folder / "study")
    study.summary().to_csv(folder / "study.csv")
    (folder / "null.txt").write_text(shuffled(model, seed=5).fingerprint(), encoding="utf-8")


def sums(folder: Path) -> dict[str, str]:
    """Of every file its sum, of JSON without the times; of ``SHA256SUMS`` none, since it holds that of the JSON."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "SHA256SUMS":
            text = path.read_bytes()
            if path.suffix == ".json":
                text = json.dumps(_timeless(json.loads(text))).encode()
            found[str(path.relative_to(folder))] = hashlib.sha256(text).hexdigest()
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(one) for key, one in value.items() if key not in (TIMES, "sha256")}
    return [_timeless(one) for one in value] if isinstance(value, list) else value


if __name__ == "__main__":
    write(Path(sys.argv[1]))
