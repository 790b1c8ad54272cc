"""Norms of all layers, and attention of all heads to the first position: beside the bare pass and plain transformers.

    python benchmarks/bench_reading.py                                                   # 4,096 repeats, random Llama
    python benchmarks/bench_reading.py --model real-models/smollm2-135m --rounds 2
    python benchmarks/bench_reading.py --model real-models/smollm2-135m --texts 64 --repeats 127

The model is a small random Llama with a long context, so nothing is downloaded, or one of your own.  The bare pass is
transformers' own, with fused attention (SDPA) and logits of the last position only.  Plain transformers gives norms by
``output_hidden_states`` and attention by ``output_attentions``, eight texts at a time; in long texts the latter takes
gigabytes, and is left out.  Every measurement has a process of its own: peak memory is what the process grew by over
the loaded model (maximum resident size, from the operating system), and time is that of the processor, which other
programs disturb less.  glibc is told to give large blocks back at once; otherwise the peaks show how its heap happens
to be cut up.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

import mechrep
from mechrep.measures.attention_sinks import first_position_attention
from mechrep.measures.sink_norms import RepeatNorms
from mechrep.text.stimuli import repeated_tokens

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536"}
WORK = ("bare", "norms", "attention", "transformers norms", "transformers attention", "pattern")
LONG = 1024  # from here on whole patterns take gigabytes
AT_ONCE = 8  # texts, in plain transformers


def build(repeats: int, folder: str | None = None) -> mechrep.Model:
    """The model of a folder, or a random Llama whose context holds BOS and all repeats."""
    if folder is not None:
        return mechrep.load_model(folder)
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
def measure(what: str, repeats: int, folder: str | None, texts: int) -> tuple[float, float]:
    """Seconds and MiB over the loaded model of one kind of work."""
    model = build(repeats, folder)
    assert model.plain is not None
    corpus = repeated_tokens(model, list(range(300, 300 + texts)), repeats)

    def plainly(take: Callable[[Any], Any] = lambda _: None, **options: Any) -> None:
        for tokens in corpus.tokens.split(AT_ONCE):
            take(model.plain(input_ids=tokens, use_cache=False, logits_to_keep=1, **options))  # pyright: ignore

    def columns() -> None:
        model.plain.set_attn_implementation("eager")  # pyright: ignore
        plainly(lambda out: [pattern[..., 0].clone() for pattern in out.attentions], output_attentions=True)

    def norms(out: Any) -> list[torch.Tensor]:
        return [states.norm(dim=-1) for states in out.hidden_states]

    works: dict[str, Callable[[], Any]] = {
        "bare": plainly,
        "transformers norms": lambda: plainly(norms, output_hidden_states=True),
        "transformers attention": columns,
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


def column_error(repeats: int, folder: str | None) -> float:
    """Largest difference between the column that is read and that of the whole eager pattern."""
    model = build(repeats, folder)
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
    parser.add_argument("--texts", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", help="folder of a model whose context is long enough; by default a random Llama")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--only", choices=WORK, help="one measurement, printed as seconds and MiB")
    arguments = parser.parse_args()
    if arguments.only:
        print(*measure(arguments.only, arguments.repeats, arguments.model, arguments.texts))
        return
    works = list(WORK[:-1] if arguments.repeats < LONG else WORK[:4])
    if arguments.model is None:
        works.append("pattern")
    seen: dict[str, list[tuple[float, float]]] = {what: [] for what in works}
    for number in range(arguments.rounds):
        for what in works:  # alternating; whole patterns once, they take gigabytes
            if what == "pattern" and number:
                continue
            command = [sys.executable, __file__, "--only", what, "--repeats", str(arguments.repeats)]
            command += ["--texts", str(arguments.texts)]
            command += ["--model", arguments.model] if arguments.model else []
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | ALLOCATOR)
            seconds, mib = map(float, done.stdout.split()[-2:])
            seen[what].append((seconds, mib))
    rows: list[dict[str, Any]] = []
    bare = [statistics.median(values) for values in zip(*seen["bare"], strict=True)]
    for what, rounds in seen.items():
        seconds, mib = (statistics.median(values) for values in zip(*rounds, strict=True))
        ratios = [one[0] / other[0] for one, other in zip(rounds, seen["bare"], strict=False)]
        print(
            f"{what}: {seconds:.2f} s, {mib:.0f} MiB; {statistics.median(ratios):.2f} times the bare pass "
            f"({min(ratios):.2f} to {max(ratios):.2f}), {mib / bare[1]:.2f} times its memory"
        )
        rows.append({
            "figure": f"{what}, {arguments.repeats:,} repeats", "seconds": round(seconds, 2), "mib": round(mib),
            "time_over_bare": round(statistics.median(ratios), 3), "memory_over_bare": round(mib / bare[1], 3),
        })  # fmt: skip
    few = min(1024, arguments.repeats)
    error = column_error(few, arguments.model)
    print(f"largest difference of the column to eager attention, {few:,} repeats: {error:.1e}")
    if arguments.json:
        rows.append({"figure": "column against eager attention", "largest_difference": error})
        arguments.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
