"""Put a finished training run into the package: ``python -m scripts.train_tiny.publish --run DIR --data FILE``.

Copies weights, configuration, tokenizer, recipe and history, and measures the card at every published checkpoint.  For
the first embedded model it also cuts a held-out text from documents that the run never saw (books in the public domain
only), and measures on it what a 5-gram model of the same tokens can do; the others share both.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from mechrep.models import tiny
from mechrep.models.load import load_model
from mechrep.run import Run
from mechrep.studies.card import card_history, loss_windows, measure_card
from scripts.train_tiny.ngram import NgramModel
from scripts.train_tiny.recipe import Recipe

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "recipe.json", "history.jsonl")
MARKS = ("<!-- measured by `mechrep card` -->", "<!-- end -->")
PROMPTS = 256
PUBLIC_DOMAIN = ("standardebooks/", "gitenberg/")


def copy_run(run: Path, steps: Sequence[int], folder: Path) -> None:
    """Copy a run's files and the weights of some steps."""
    shutil.rmtree(folder / "revisions", ignore_errors=True)
    (folder / "revisions").mkdir(parents=True)
    for step in steps:
        shutil.copyfile(run / "revisions" / f"step{step}.safetensors", folder / "revisions" / f"step{step}.safetensors")
    for name in FILES:
        shutil.copyfile(run / name, folder / name)


def held_out_text(data: Path, recipe: Recipe, characters: int = 60_000) -> str:
    """The beginnings of held-out public-domain documents, ``characters`` in all, documents in their order."""
    with gzip.open(data, "rt", encoding="utf-8") as lines:
        documents = [json.loads(line) for line in lines]
    held = np.random.default_rng([recipe.seed, 1]).random(len(documents)) < recipe.held_out_share
    books = [d["text"] for d, out in zip(documents, held, strict=True) if out and d["source"].startswith(PUBLIC_DOMAIN)]
    each = characters // len(books) + 1
    return "\n\n".join(text[:each].rsplit("\n", 1)[0] for text in books)[:characters]


def ngram_losses(run: Path, folder: Path) -> list[float]:
    """Mean loss of a 5-gram model of the run's training tokens on each of the card's windows of the published text."""
    stream = load_file(run / "streams.safetensors")["training"].numpy().astype(np.uint16)
    model = load_model(str(folder))
    rows = loss_windows(model, (folder / "held_out.txt").read_text(encoding="utf-8")).tokens.numpy()
    return (-NgramModel.fit(stream, d_vocab=model.anatomy.d_vocab).log_probabilities(rows).mean(1)).tolist()


def publish_text(run: Path, data: Path, folder: Path) -> None:
    """Write the held-out text, and what counts of the training tokens make of it."""
    stored = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    recipe = Recipe.from_dict({name: stored[name] for name in ("seed", "held_out_share")})
    (folder / "held_out.txt").write_text(held_out_text(data, recipe), encoding="utf-8")
    (folder / "ngram_losses.json").write_text(json.dumps(ngram_losses(run, folder)), encoding="utf-8")


def write_table(card: Path, table: str) -> None:
    """Put the table between the two marks of the model card."""
    before, rest = card.read_text(encoding="utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    card.write_text(f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{after}", encoding="utf-8")


def main() -> None:
    """Command line of the publishing script."""
    parser = argparse.ArgumentParser(prog="python -m scripts.train_tiny.publish", description=__doc__)
    parser.add_argument("--name", choices=tiny.NAMES, default=tiny.DEFAULT, help="the embedded model to replace")
    parser.add_argument("--run", type=Path, required=True, help="--out folder of a finished training run")
    parser.add_argument("--data", type=Path, required=True, help="the run's .jsonl.gz with fields source and text")
    parser.add_argument("--steps", type=int, nargs="*", default=[], help="kept steps to publish as revisions")
    parser.add_argument(
        "--sink-layer", type=int, help="where the card compares norms; that of the largest jump otherwise"
    )
    arguments = parser.parse_args()
    name, folder = arguments.name, tiny.folder(arguments.name)
    copy_run(arguments.run, arguments.steps, folder)
    if name == tiny.DEFAULT:
        publish_text(arguments.run, arguments.data, folder)
    options = {"prompts": PROMPTS, "sink_layer": arguments.sink_layer}
    run = Run(store=arguments.run / "card-store")
    history = card_history(name, tiny.revisions(name), run=run, **options)
    history.to_json(folder / "phenomena.jsonl", orient="records", lines=True)
    write_table(folder / "MODEL_CARD.md", measure_card(load_model(name), run=run, **options).to_markdown())


if __name__ == "__main__":
    main()
