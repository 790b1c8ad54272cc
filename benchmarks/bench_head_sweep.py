"""Every head cut alone: one sweep of mixed rows against one run per head and text, with the same counts.

    python benchmarks/bench_head_sweep.py

The slow way is what a notebook does: for every head and every text one run of the model with a hook on that head.
Texts that still loop are regenerated with Hugging Face ``generate`` and a hook at the last position of every call;
log-probabilities and copied tokens come from TransformerLens' ``run_with_hooks`` on the whole text.  For random
repeats, which are equally long, there is also the way of one batch of all texts per head.  Both ways run in this
process, one after the other, on one thread; counts must agree.  Seconds are those of the processor: what else the
machine does makes them no longer, and on an idle machine they are seconds on the wall.

Writing texts again gains most.  Scores of given texts are bound by arithmetic as soon as a batch fills the processor:
on one core that is soon, and what is saved then is the beginnings of texts, which no edit touches, and for every head
the layers below it.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import mechrep
from mechrep.ablation.outcomes import LoopDecoding
from mechrep.ablation.study import StudyTexts, single_head_sweep
from mechrep.generation import collect_loops
from mechrep.run import Run
from mechrep.text.stimuli import random_repeats

Head = tuple[int, int]
OUTCOMES = ("loop_log_probability", "copy_accuracy", "still_looping")


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and the seconds that it keeps the processor busy."""
    begin = time.process_time()
    return work(), time.process_time() - begin


def all_heads(model: mechrep.Model) -> list[Head]:
    """In the order of the sweep."""
    return list(itertools.product(range(model.anatomy.n_layers), range(model.anatomy.n_heads)))


def still_looping(model: mechrep.Model, corpus: mechrep.Corpus, new_tokens: int) -> list[int]:
    """Looping texts per head, written one at a time."""
    assert model.plain is not None and model.handles is not None
    counts, width = [], model.anatomy.d_head
    for layer, head in all_heads(model):

        def zero_last(_module: object, args: Any, head: int = head) -> Any:
            args[0][:, -1, head * width : (head + 1) * width] = 0
            return args

        handle = model.handles.attention_outputs[layer].register_forward_pre_hook(zero_last)
        still = 0
        for text in range(len(corpus)):
            prompt = torch.tensor([corpus.row(text)[: int(corpus.frame["onset"].iloc[text])]])
            ids = model.plain.generate(  # pyright: ignore
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new_tokens, do_sample=False
            )[0].tolist()
            still += mechrep.detect_cycle(ids, "hiraoka2025") is not None
        handle.remove()
        counts.append(still)
    return counts


def hooked_logits(model: mechrep.Model, tokens: Tensor, layer: int, head: int, start: int) -> Tensor:
    """Logits with one head at zero from ``start`` on."""

    def zero(z: Tensor, hook: Any) -> Tensor:  # noqa: ARG001 - TransformerLens' hook point
        z[:, start:, head] = 0
        return z

    with torch.no_grad():
        return model.tl.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", zero)])


def log_probabilities(model: mechrep.Model, corpus: mechrep.Corpus, copies: int) -> list[list[float]]:
    """Mean log-probability of the first copy after the onset, per head and text."""
    found = []
    for layer, head in all_heads(model):
        row = []
        for text in range(len(corpus)):
            start, onset = (int(corpus.frame[name].iloc[text]) for name in ("start", "onset"))
            cycle = corpus.row(text)[start:onset]
            ids = (corpus.row(text)[:onset] + cycle * copies)[: model.anatomy.n_ctx]
            scores = hooked_logits(model, torch.tensor([ids]), layer, head, onset - 1)[0].log_softmax(-1)
            places = range(onset, onset + len(cycle))
            row.append(sum(float(scores[place - 1, ids[place]]) for place in places) / len(cycle))
        found.append(row)
    return found


def copied(model: mechrep.Model, corpus: mechrep.Corpus, *, batched: bool) -> list[int]:
    """Tokens of the second copy that are predicted, per head."""
    onset, counts = int(corpus.frame["onset"].iloc[0]), []
    for layer, head in all_heads(model):
        parts = [corpus.tokens] if batched else corpus.tokens.split(1)
        logits = torch.cat([hooked_logits(model, part, layer, head, 0)[:, onset:-1] for part in parts])
        counts.append(int((logits.argmax(-1) == corpus.tokens[:, onset + 1 :]).sum()))
    return counts


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=100)
    parser.add_argument("--outcomes", nargs="+", choices=OUTCOMES, default=OUTCOMES)
    parser.add_argument("--new-tokens", type=int, default=160)
    parser.add_argument("--copies", type=int, default=3)
    parser.add_argument("--period", type=int, default=50)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = mechrep.load_model("mechrep-tiny")
    corpus = collect_loops(model, arguments.texts, n_others=0, preset="hiraoka2025", progress=False)
    print(
        f"{len(all_heads(model))} heads x {len(corpus)} texts = {len(all_heads(model)) * len(corpus)} rows", flush=True
    )
    compare = {
        "loop_log_probability": lambda: compare_log_probabilities(model, corpus, arguments.copies),
        "copy_accuracy": lambda: compare_copying(model, corpus, arguments.period),
        "still_looping": lambda: compare_looping(model, corpus, arguments.new_tokens),
    }
    for outcome in arguments.outcomes:
        compare[outcome]()


def sweep(model: mechrep.Model, corpus: mechrep.Corpus, outcome: str, **texts: Any) -> tuple[Any, float]:
    """mechrep's way."""
    given = StudyTexts(loops=corpus, **texts)
    return timed(lambda: single_head_sweep(model, outcomes=[outcome], texts=given, run=Run(progress=False)))


def report(what: str, slow: float, seconds: float, agreement: str) -> None:
    """One line."""
    print(f"{what}: {slow:.2f} s; sweep {seconds:.2f} s: {slow / seconds:.1f}x; {agreement}", flush=True)


def compare_looping(model: mechrep.Model, corpus: mechrep.Corpus, new_tokens: int) -> None:
    """Texts that still loop, regenerated."""
    fast, seconds = sweep(model, corpus, "still_looping", decoding=LoopDecoding("hiraoka2025", new_tokens))
    counts, slow = timed(lambda: still_looping(model, corpus, new_tokens))
    same = fast.values[0, 1:].sum(-1).int().tolist() == counts
    report("still looping", slow, seconds, f"counts {counts} agree: {same}")


def compare_log_probabilities(model: mechrep.Model, corpus: mechrep.Corpus, copies: int) -> None:
    """Log-probability of the loop's continuation."""
    fast, seconds = sweep(model, corpus, "loop_log_probability", copies=copies)
    found, slow = timed(lambda: log_probabilities(model, corpus, copies))
    error = (fast.values[1, 1:] - torch.tensor(found)).abs().nan_to_num().max().item()
    report("loop log-probability", slow, seconds, f"differ by {error:.0e}")


def compare_copying(model: mechrep.Model, corpus: mechrep.Corpus, period: int) -> None:
    """Tokens of random repeats that are copied."""
    repeats = random_repeats(model, n=period, sequences=len(corpus))
    fast, seconds = sweep(model, corpus, "copy_accuracy", repeats=repeats)
    counts, slow = timed(lambda: copied(model, repeats, batched=False))
    _, by_head = timed(lambda: copied(model, repeats, batched=True))
    same = (fast.values[0, 1:].sum(-1) * (period - 1)).round().int().tolist() == counts
    report("copied tokens", slow, seconds, f"counts agree: {same}")
    print(f"  one batch of all texts per head: {by_head:.2f} s: {by_head / seconds:.1f}x", flush=True)


if __name__ == "__main__":
    main()
