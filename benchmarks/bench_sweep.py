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
from mechrep.ablation.outcomes import LoopDecoding
from mechrep.ablation.run import Cell
from mechrep.ablation.study import Controls, ablation_cells
from mechrep.ablation.sweeps import NAME, deactivation_sweep, rankings
from mechrep.generation import collect_loops
from mechrep.interventions import Neurons
from mechrep.run import Run


def published_way(
    model: mechrep.Model, corpus: mechrep.Corpus, cells: list[Cell], new_tokens: int
) -> tuple[list[int], float]:
    """Counts of texts that still repeat, one per condition, and the seconds that took."""
    assert model.plain is not None and model.handles is not None
    counts = []
    begin = time.perf_counter()
    for _, intervention in cells:
        by_layer: dict[int, list[int]] = {}
        for layer, neuron in intervention.units if isinstance(intervention, Neurons) else ():
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
        counts.append(still)
    return counts, time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=100)
    parser.add_argument("--ks", default="10,50")
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--new-tokens", type=int, default=160)
    arguments = parser.parse_args()
    model, run = mechrep.load_model("mechrep-tiny"), Run(progress=False)
    corpus = collect_loops(model, arguments.texts, n_others=0, preset="hiraoka2025", progress=False)
    result = mechrep.CorpusCache(model, corpus, progress=False).run(mechrep.RepetitionNeurons("hiraoka2025"))
    ks = [int(k) for k in arguments.ks.split(",")]
    controls = Controls(("random",), draws=arguments.draws)

    def swept(*, stop_early: bool) -> tuple[list[int], float]:
        """mechrep's way: the same counts, and the seconds that took."""
        how = LoopDecoding("hiraoka2025", arguments.new_tokens, stop_early)
        begin = time.perf_counter()
        sweep = deactivation_sweep(model, corpus, neurons=result, ks=ks, controls=controls, decoding=how, run=run)
        return sweep.of("still_repeating").sum(-1).round().astype(int).tolist(), time.perf_counter() - begin

    ours, fast = swept(stop_early=True)
    _, whole = swept(stop_early=False)
    circuits = rankings(NAME, ks, neurons=result.ranking())
    cells, _ = ablation_cells(model, circuits, ops=["zero"], controls=controls, when="last", run=run)
    counts, slow = published_way(model, corpus, cells, arguments.new_tokens)
    print(f"{len(corpus)} texts x {len(cells)} conditions = {len(cells) * len(corpus)} rows")
    print(f"published way {slow:.1f} s; mechrep {fast:.1f} s: {slow / fast:.1f}x")
    print(f"mechrep without early stop {whole:.1f} s: {slow / whole:.1f}x")
    for (condition, _), published, own in zip(cells, counts, ours, strict=True):
        print(
            f"  {condition.selection:8} k={condition.k:<4} draw {condition.seed}: published {published}, mechrep {own}"
        )
    print("counts agree" if counts == ours else "COUNTS DIFFER")


if __name__ == "__main__":
    main()
