"""A deactivation sweep against the published way of doing it, on the same texts and with the same counts.

    python benchmarks/bench_sweep.py

The published way: one text at a time, Hugging Face ``generate`` with a Python hook that zeroes the neurons at the
last position of every call, then the detector on the whole text.  Both ways run in this process, one after the other,
on the same cores; the counts must agree.
"""

from __future__ import annotations

import argparse
import time

import torch

import mechrep
from mechrep import studies
from mechrep.ablation.old_controls import sweep_conditions
from mechrep.generation import collect_loops


def published_way(
    model: mechrep.Model, corpus: mechrep.Corpus, conditions: list, new_tokens: int = 160
) -> tuple[dict[tuple[str, int, int], int], float]:
    """Counts of texts that still repeat, and the seconds that took."""
    assert model.plain is not None and model.handles is not None
    counts = {}
    begin = time.perf_counter()
    for condition in conditions:
        by_layer: dict[int, list[int]] = {}
        for layer, neuron in condition.units:
            by_layer.setdefault(layer, []).append(neuron)

        def zero_last(neurons: list[int]):
            def hook(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
                output[:, -1, neurons] = 0
                return output

            return hook

        handles = [
            model.handles.activations[layer].register_forward_hook(zero_last(neurons))
            for layer, neurons in by_layer.items()
        ]
        still = 0
        for text in range(len(corpus)):
            prompt = torch.tensor([corpus.row(text)[: int(corpus.frame["onset"].iloc[text])]])
            ids = model.plain.generate(  # pyright: ignore
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new_tokens, do_sample=False
            )[0].tolist()
            still += mechrep.detect_cycle(ids, "hiraoka2025") is not None
        for handle in handles:
            handle.remove()
        counts[condition.selection, condition.k, condition.seed] = still
    return counts, time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=100)
    parser.add_argument("--ks", default="10,50")
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    model = mechrep.load_model("mechrep-tiny")
    corpus = collect_loops(model, arguments.texts, n_others=0, preset="hiraoka2025", progress=False)
    (result,) = mechrep.CorpusCache(model, corpus).run(mechrep.RepetitionNeurons("hiraoka2025"))
    ks = [int(k) for k in arguments.ks.split(",")]
    settings = {"neurons": result, "ks": ks, "controls": ["random"], "seeds": arguments.seeds}
    begin = time.perf_counter()
    sweep = studies.deactivation_sweep(model, corpus, preset="hiraoka2025", progress=False, **settings)
    fast = time.perf_counter() - begin
    begin = time.perf_counter()
    studies.deactivation_sweep(model, corpus, preset="hiraoka2025", progress=False, stop_early=False, **settings)
    whole = time.perf_counter() - begin
    conditions = sweep_conditions(model, result, ks, ["random"], range(arguments.seeds))
    counts, slow = published_way(model, corpus, conditions)
    rows = len(conditions) * len(corpus)
    print(f"{len(corpus)} texts x {len(conditions)} conditions = {rows} rows of up to 160 new tokens")
    print(f"published way {slow:.1f} s; mechrep {fast:.1f} s: {slow / fast:.1f}x")
    print(f"mechrep without early stop {whole:.1f} s: {slow / whole:.1f}x")
    same = True
    for row in sweep.to_frame().itertuples():
        published = counts[row.selection, row.k, row.seed]  # pyright: ignore
        same &= published == row.still_repeating
        print(f"  {row.selection:8} k={row.k:<4} seed={row.seed}: published {published}, mechrep {row.still_repeating}")
    print("counts agree" if same else "COUNTS DIFFER")


if __name__ == "__main__":
    main()
