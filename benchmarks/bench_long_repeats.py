"""A run of thousands of repeats: norms of all layers, and attention to the first position, beside the bare pass.

    python benchmarks/bench_long_repeats.py

The model is a small random Llama with a long context, so nothing is downloaded.  The bare pass is transformers' own,
with fused attention (SDPA) and logits of the last position only.  Every measurement has a process of its own: peak
memory is what the process grew by over the loaded model (maximum resident size, from the operating system), and time is
that of the processor, which other programs disturb less.  glibc is told to give large blocks back at once; otherwise
the peaks show how its heap happens to be cut up.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time

import torch
import transformers

import mechrep
from mechrep.measures.attention_sinks import first_position_attention
from mechrep.measures.sink_norms import RepeatNorms
from mechrep.text.stimuli import repeated_tokens

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536"}
WORK = ("bare", "norms", "attention", "pattern")


def build(repeats: int) -> mechrep.Model:
    """A random Llama whose context holds BOS and all repeats."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=4000,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=repeats + 1,
        bos_token_id=0,
        eos_token_id=1,
    )
    module = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    return mechrep.load_model(module)


def peak() -> float:
    """Largest resident size so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@torch.no_grad()
def measure(what: str, repeats: int) -> tuple[float, float]:
    """Seconds and MiB over the loaded model of one kind of work."""
    model = build(repeats)
    assert model.plain is not None
    corpus = repeated_tokens(model, [300], repeats)
    works = {
        "bare": lambda: model.plain(input_ids=corpus.tokens, use_cache=False, logits_to_keep=1),  # pyright: ignore
        "norms": lambda: mechrep.CorpusCache(model, corpus, progress=False).run(RepeatNorms()),
        "attention": lambda: first_position_attention(model, corpus),
        "pattern": lambda: mechrep.CorpusCache(model, corpus, progress=False).run(mechrep.AttentionSinks()),
    }
    model.fingerprint()  # computed once per model, whatever is measured
    short = repeated_tokens(model, [300], 8)
    first_position_attention(model, short)  # libraries load what they need at their first use
    mechrep.CorpusCache(model, short, progress=False).run(RepeatNorms())
    model.plain(input_ids=short.tokens, use_cache=False, logits_to_keep=1)
    before, begin = peak(), time.process_time()
    works[what]()
    return time.process_time() - begin, peak() - before


def column_error(repeats: int) -> float:
    """Largest difference between the column read by rows and that of the whole eager pattern."""
    model = build(repeats)
    assert model.plain is not None
    corpus = repeated_tokens(model, [300], repeats)
    column = first_position_attention(model, corpus)[0]
    model.plain.set_attn_implementation("eager")  # pyright: ignore
    with torch.no_grad():
        patterns = model.plain(input_ids=corpus.tokens, use_cache=False, output_attentions=True).attentions
    return max(float((column[layer] - pattern[0, :, :, 0]).abs().max()) for layer, pattern in enumerate(patterns))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=WORK, help="one measurement, printed as seconds and MiB")
    arguments = parser.parse_args()
    if arguments.only:
        print(*measure(arguments.only, arguments.repeats))
        return
    seen: dict[str, list[tuple[float, float]]] = {what: [] for what in WORK}
    for number in range(arguments.rounds):
        for what in WORK if number == 0 else WORK[:-1]:  # alternating; whole patterns once, they take gigabytes
            command = [sys.executable, __file__, "--only", what, "--repeats", str(arguments.repeats)]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | ALLOCATOR)
            seconds, mib = map(float, done.stdout.split()[-2:])
            seen[what].append((seconds, mib))
    bare = [statistics.median(values) for values in zip(*seen["bare"], strict=True)]
    for what, rounds in seen.items():
        seconds, mib = (statistics.median(values) for values in zip(*rounds, strict=True))
        ratios = [one[0] / other[0] for one, other in zip(rounds, seen["bare"], strict=False)]
        print(
            f"{what}: {seconds:.2f} s, {mib:.0f} MiB; {statistics.median(ratios):.2f} times the bare pass "
            f"({min(ratios):.2f} to {max(ratios):.2f}), {mib / bare[1]:.2f} times its memory"
        )
    few = min(1024, arguments.repeats)
    print(f"largest difference of the column to eager attention, {few:,} repeats: {column_error(few):.1e}")


if __name__ == "__main__":
    main()
