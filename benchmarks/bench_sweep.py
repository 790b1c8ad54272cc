"""A deactivation sweep against other ways of doing it, on the same texts and with the same counts.

    python benchmarks/bench_sweep.py
    python benchmarks/bench_sweep.py --model real-models/smollm2-135m --texts 8 --ks 50 --draws 1

*Published*: one text at a time, Hugging Face ``generate`` with a Python hook that zeroes the neurons at the last
position of every call, then the detector on the whole text.  *One batch*: the same with all texts of a condition in one
batch, padded on the left.  *TransformerLens*: its own ``generate`` with the same hooks, texts of one length in one
batch.  All run in this process, one after the other, on the same cores; the counts must agree.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

import mechrep
from mechrep.ablation.outcomes import LoopDecoding
from mechrep.ablation.run import Cell
from mechrep.ablation.study import Controls, ablation_cells
from mechrep.ablation.sweeps import NAME, deactivation_sweep, rankings
from mechrep.generation import collect_loops
from mechrep.interventions import Neurons
from mechrep.run import Run

DETECTOR = "hiraoka2025"


def zero_last(neurons: list[int]) -> Callable[..., torch.Tensor]:
    """A hook of torch that zeroes neurons at the last position."""

    def hook(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        output[:, -1, neurons] = 0
        return output

    return hook


@contextmanager
def without(model: mechrep.Model, by_layer: dict[int, list[int]]) -> Any:
    """While open, these neurons are zeroed at the last position of every call of the plain module."""
    assert model.handles is not None
    with ExitStack() as stack:
        for layer, neurons in by_layer.items():
            part: Any = model.handles.activations[layer]
            stack.callback(part.register_forward_hook(zero_last(neurons)).remove)
        yield


def lens_without(model: mechrep.Model, by_layer: dict[int, list[int]]) -> AbstractContextManager[Any]:
    """The same for its TransformerLens view, behind the product with the up-projection: zero either way."""

    def hook(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        activation[:, -1, by_layer[hook.layer()]] = 0
        return activation

    names = [(f"blocks.{layer}.mlp.hook_post", hook) for layer in by_layer]
    return model.tl.hooks(fwd_hooks=names) if names else nullcontext()


def one_by_one(model: mechrep.Model, prompts: Sequence[list[int]], tokens: int) -> list[list[int]]:
    """The published way."""
    return [row for prompt in prompts for row in one_batch(model, [prompt], tokens)]


def one_batch(model: mechrep.Model, prompts: Sequence[list[int]], tokens: int) -> list[list[int]]:
    """All texts together, padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    module: Any = model.plain
    rows = module.generate(ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, pad_token_id=0).tolist()
    ends = set(model.eos_ids)
    kept = []
    for row, prompt in zip(rows, prompts, strict=True):
        new = row[longest:]
        end = next((place for place, token in enumerate(new) if token in ends), len(new) - 1)
        kept.append([*prompt, *new[: end + 1]])
    return kept


def lens_batches(model: mechrep.Model, prompts: Sequence[list[int]], tokens: int) -> list[list[int]]:
    """TransformerLens' own ``generate``; texts of one length together, so that nothing is padded."""
    by_length: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(number)
    ends, found = set(model.eos_ids), dict[int, list[int]]()
    for numbers in by_length.values():
        ids = torch.tensor([prompts[number] for number in numbers])
        rows = model.tl.generate(
            ids, max_new_tokens=tokens, do_sample=False, stop_at_eos=False, return_type="tokens", verbose=False
        ).tolist()
        for number, row in zip(numbers, rows, strict=True):
            begin = len(prompts[number])
            end = next((place for place in range(begin, len(row)) if row[place] in ends), len(row) - 1)
            found[number] = row[: end + 1]
    return [found[number] for number in range(len(prompts))]


Way = Callable[[mechrep.Model, Sequence[list[int]], int], list[list[int]]]
WAYS: dict[str, tuple[Way, Callable[..., AbstractContextManager[Any]]]] = {
    "published": (one_by_one, without),
    "one batch": (one_batch, without),
    "TransformerLens": (lens_batches, lens_without),
}


@torch.no_grad()
def timed(
    model: mechrep.Model, way: str, prompts: Sequence[list[int]], cells: list[Cell], tokens: int
) -> tuple[list[int], float]:
    """Counts of texts that still repeat, one per condition, and the seconds of the processor."""
    write, edited = WAYS[way]
    counts, begin = [], time.process_time()
    for _, intervention in cells:
        by_layer: dict[int, list[int]] = {}
        for layer, neuron in intervention.units if isinstance(intervention, Neurons) else ():
            by_layer.setdefault(layer, []).append(neuron)
        with edited(model, by_layer):
            rows = write(model, prompts, tokens)
        counts.append(sum(mechrep.detect_cycle(ids, DETECTOR) is not None for ids in rows))
    return counts, time.process_time() - begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="benchmarks/bench_sweep.py: a deactivation sweep")
    parser.add_argument("--model", default="mechrep-tiny")
    parser.add_argument("--texts", type=int, default=60)
    parser.add_argument("--ks", default="10,50")
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--new-tokens", type=int, default=160)
    parser.add_argument("--ways", default=",".join(WAYS), help="with commas")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model, run = mechrep.load_model(arguments.model), Run(progress=False)
    corpus = collect_loops(model, arguments.texts, n_others=0, preset=DETECTOR, progress=False)
    result = mechrep.CorpusCache(model, corpus, progress=False).run(mechrep.RepetitionNeurons(DETECTOR))
    ks = [int(k) for k in arguments.ks.split(",")]
    controls = Controls(("random",), draws=arguments.draws)

    def swept(*, stop_early: bool) -> tuple[list[int], float]:
        """mechrep's way: the same counts, and the seconds that took."""
        how = LoopDecoding(DETECTOR, arguments.new_tokens, stop_early)
        begin = time.process_time()
        sweep = deactivation_sweep(model, corpus, neurons=result, ks=ks, controls=controls, decoding=how, run=run)
        return sweep.of("still_repeating").sum(-1).round().astype(int).tolist(), time.process_time() - begin

    ours, fast = swept(stop_early=True)
    _, whole = swept(stop_early=False)
    circuits = rankings(NAME, ks, neurons=result.ranking())
    cells, _ = ablation_cells(model, circuits, ops=["zero"], controls=controls, when="last", run=run)
    onsets = corpus.frame["onset"].astype(int).tolist()
    prompts = [corpus.row(number)[:onset] for number, onset in enumerate(onsets)]
    print(f"{model.name}: {len(corpus)} texts x {len(cells)} conditions = {len(cells) * len(corpus)} rows")
    print(f"mechrep {fast:.1f} s, without early stop {whole:.1f} s; counts {ours}", flush=True)
    rows: list[dict[str, Any]] = []
    for way in arguments.ways.split(","):
        counts, slow = timed(model, way, prompts, cells, arguments.new_tokens)
        same = "the same counts" if counts == ours else f"OTHER COUNTS {counts}"
        print(f"{way}: {slow:.1f} s, {slow / fast:.1f}x ({slow / whole:.1f}x without early stop); {same}", flush=True)
        rows.append({
            "figure": f"deactivation sweep, {way} over mechrep", "model": model.name, "ratio": round(slow / fast, 2),
            "without_early_stop": round(slow / whole, 2), "seconds": round(slow, 1), "mechrep_seconds": round(fast, 1),
            "same_counts": counts == ours, "texts": len(corpus), "conditions": len(cells),
        })  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
