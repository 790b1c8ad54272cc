"""Put a finished training run into the package: ``python -m mechrep.models.tiny.publish --run DIR --data FILE``.

Copies weights, configuration, tokenizer, recipe and history beside this file, and cuts a held-out text from
documents that the run never saw (books in the public domain only).
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mechrep.models.tiny import FOLDER
from mechrep.models.tiny.recipe import Recipe

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "recipe.json", "history.jsonl")
PUBLIC_DOMAIN = ("standardebooks/", "gitenberg/")


def held_out_text(data: Path, recipe: Recipe, characters: int) -> str:
    """The beginnings of held-out public-domain documents, ``characters`` in all, documents in their order."""
    with gzip.open(data, "rt", encoding="utf-8") as lines:
        documents = [json.loads(line) for line in lines]
    held = np.random.default_rng([recipe.seed, 1]).random(len(documents)) < recipe.held_out_share
    books = [d["text"] for d, out in zip(documents, held, strict=True) if out and d["source"].startswith(PUBLIC_DOMAIN)]
    each = characters // len(books) + 1
    return "\n\n".join(text[:each].rsplit("\n", 1)[0] for text in books)[:characters]


def publish(run: Path, data: Path, steps: Sequence[int] = (), folder: Path = FOLDER, characters: int = 60_000) -> None:
    """Copy a run's files and the revisions of some steps into ``folder`` and write its held-out text."""
    (folder / "revisions").mkdir(parents=True, exist_ok=True)
    for step in steps:
        shutil.copyfile(run / "revisions" / f"step{step}.safetensors", folder / "revisions" / f"step{step}.safetensors")
    stored = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    recipe = Recipe(seed=stored["seed"], held_out_share=stored["held_out_share"])
    for name in FILES:
        shutil.copyfile(run / name, folder / name)
    (folder / "held_out.txt").write_text(held_out_text(data, recipe, characters), encoding="utf-8")


def main() -> None:
    """Command line of the publishing script."""
    parser = argparse.ArgumentParser(prog="python -m mechrep.models.tiny.publish", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="--out folder of a finished training run")
    parser.add_argument("--data", type=Path, required=True, help="the run's .jsonl.gz with fields source and text")
    parser.add_argument("--steps", type=int, nargs="*", default=[], help="kept steps to publish as revisions")
    arguments = parser.parse_args()
    publish(arguments.run, arguments.data, arguments.steps)


if __name__ == "__main__":
    main()
