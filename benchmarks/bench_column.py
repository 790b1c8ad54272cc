"""Attention of all heads to the first position of long texts, over the pass with fused attention that it rides on.

    python benchmarks/bench_column.py                             # a Llama of random weights
    python benchmarks/bench_column.py real-models/smollm2-135m    # a model of your own

Both read the same texts in one process, in turn; seconds are those of the processor.  The bare pass is plain
transformers with ``sdpa`` and without logits.  Peak memory is that of torch's own tensors, from its profiler.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def random_llama(n_ctx: int) -> Any:
    """A Llama with heads like those of SmolLM2, fewer layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000, hidden_size=576, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=n_ctx,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def peak_mib(work: Callable[[], Any]) -> float:
    """Most that torch held at a time while ``work`` ran, over what it held before, in MiB."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    held = most = 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda one: one.start_ns()):  # pyright: ignore
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most / 2**20


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--lengths", default="512,1024,2048,4096")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    lengths = [int(part) for part in chosen.lengths.split(",")]

    import mechrep

    model = mechrep.load_model(chosen.model or random_llama(max(lengths)))
    plain: Any = model.plain
    usable = [length for length in lengths if length <= model.anatomy.n_ctx]
    rows = []
    for length in usable:
        tokens = torch.randint(10, model.anatomy.d_vocab, (1, length), generator=torch.Generator().manual_seed(length))
        corpus = mechrep.Corpus.from_tokens(tokens.tolist(), model=model, bos_policy="absent")

        @torch.no_grad()
        def bare(tokens: Any = tokens) -> None:
            plain.base_model(input_ids=tokens, use_cache=False)

        def column(corpus: Any = corpus) -> None:
            mechrep.first_position_attention(model, corpus)

        works = {"bare": bare, "column": column}
        taken: dict[str, list[float]] = {name: [] for name in works}
        for number in range(chosen.rounds + 1):
            for name, work in works.items():
                begin = time.process_time()
                work()
                if number:  # the first round warms up
                    taken[name].append(time.process_time() - begin)
        least = {name: min(times) for name, times in taken.items()}
        ratios = [one / other for one, other in zip(taken["column"], taken["bare"], strict=True)]
        rows.append({
            "length": length, "bare_s": round(least["bare"], 2), "column_s": round(least["column"], 2),
            "ratio": round(statistics.median(ratios), 2), "least": round(min(ratios), 2), "most": round(max(ratios), 2),
            "memory_ratio": round(peak_mib(column) / peak_mib(bare), 2),
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
