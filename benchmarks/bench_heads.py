"""Scoring attention heads against TransformerLens' ``detect_head``, on the same sequences and with the same numbers.

    python benchmarks/bench_heads.py

``score_heads`` draws its sequences, reads all of them once and scores every head as five kinds, with errors.
``detect_head`` takes one prompt after the other and runs the model once for each kind: three it knows by name
(induction, duplicate token, previous token), the current and the first token are given as detection patterns.  Who
runs the model once per prompt and hands ``detect_head`` the cache pays for one run per prompt; that is measured too.

Ratios are taken in one run on one thread, measurements alternating, medians reported; seconds are those of the
processor, which other work on the machine makes no longer.  TransformerLens wants strings: a stand-in hands it the
ids of text number so and so, so that no time goes into tokenizing and no repeat breaks.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformer_lens.head_detector import detect_head

import mechrep
from mechrep.measures.head_scores import HeadScores, score_heads
from mechrep.models.reading import read_activations
from mechrep.text.stimuli import random_repeats

NAMED = ("induction_head", "duplicate_token_head", "previous_token_head")


class NumberedTexts:
    """A TransformerLens model to which ``"7"`` is text number 7 of a corpus."""

    def __init__(self, model: mechrep.Model, corpus: mechrep.Corpus) -> None:
        self.model, self.corpus = model, corpus

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model.tl, name)

    def to_tokens(self, texts: str | list[str]) -> torch.Tensor:
        """Ids of one text or of several."""
        return self.corpus.tokens[[int(text) for text in ([texts] if isinstance(texts, str) else texts)]]


def by_name(numbered: NumberedTexts, texts: list[str], kind: str) -> None:
    """One kind of head that TransformerLens knows."""
    detect_head(numbered, texts, kind)  # pyright: ignore


def by_pattern(numbered: NumberedTexts, texts: list[str], pattern: torch.Tensor) -> None:
    """A kind of head given as a pattern; TransformerLens takes such prompts singly."""
    for text in texts:
        detect_head(numbered, text, pattern)  # pyright: ignore


def by_shared_runs(numbered: NumberedTexts, texts: list[str], patterns: tuple[torch.Tensor, ...]) -> None:
    """All kinds from one run per prompt, whose cache is handed to every call."""
    for text in texts:
        _, cache = numbered.model.tl.run_with_cache(numbered.to_tokens(text), remove_batch_dim=True)
        for kind in (*NAMED, *patterns):
            detect_head(numbered, text, kind, cache=cache)  # pyright: ignore


def seconds(work: Callable[[], object]) -> float:
    """Processor time of one call."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def largest_difference(
    model: mechrep.Model, corpus: mechrep.Corpus, numbered: NumberedTexts, texts: list[str]
) -> float:
    """Between TransformerLens' scores and mechrep's of the same definition, over all heads and both measures."""
    result = mechrep.CorpusCache(model, corpus).run(HeadScores(bos_id=model.bos_id, variants=("tl_mul", "tl_abs")))
    with torch.no_grad():
        pairs = [
            (result.of(f"tl_{measure}"), detect_head(numbered, texts, "induction_head", error_measure=measure))  # pyright: ignore
            for measure in ("mul", "abs")
        ]
    return max((ours - theirs).abs().max().item() for ours, theirs in pairs)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sequences", type=int, default=50)
    parser.add_argument("--n", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = mechrep.load_model("mechrep-tiny")
    stimulus = {"n": arguments.n, "sequences": arguments.sequences}
    corpus = random_repeats(model, **stimulus)
    numbered, texts = NumberedTexts(model, corpus), [str(i) for i in range(len(corpus))]
    print(f"largest difference to detect_head: {largest_difference(model, corpus, numbered, texts):.1e}")
    score_heads(model, **stimulus)  # warm up
    length = corpus.tokens.shape[1]
    current, first = torch.eye(length), torch.eye(1, length).repeat(length, 1)
    rounds = []
    for _ in range(arguments.repeats):
        with torch.no_grad():
            theirs = [seconds(lambda kind=kind: by_name(numbered, texts, kind)) for kind in NAMED]
            theirs += [
                seconds(lambda pattern=pattern: by_pattern(numbered, texts, pattern)) for pattern in (current, first)
            ]
            shared = seconds(lambda: by_shared_runs(numbered, texts, (current, first)))
        rounds.append(
            (theirs, shared, seconds(lambda: bare(model, corpus)), seconds(lambda: score_heads(model, **stimulus)))
        )
    print(f"{len(corpus)} sequences of {length} tokens, median of {arguments.repeats} rounds")
    forward, ours = (statistics.median(times[place] for times in rounds) for place in (2, 3))
    print(f"score_heads, five kinds of head: {ours:.3f} s; patterns of the same texts, unread: {forward:.3f} s")
    for what, kinds in (("all five kinds", 5), ("the three it names", 3), ("induction heads only", 1)):
        report(what, [(sum(theirs[:kinds]), own) for theirs, _, _, own in rounds])
    report("all five kinds, one run per prompt", [(shared, own) for _, shared, _, own in rounds])


def bare(model: mechrep.Model, corpus: mechrep.Corpus) -> None:
    """The least that scoring heads can cost: a forward pass that makes the patterns, with nobody looking at them."""
    for part in corpus.tokens.split(20):
        read_activations(model, part, {mechrep.Site.PATTERN: range(model.anatomy.n_layers)}, lambda *_: None)


def report(what: str, times: list[tuple[float, float]]) -> None:
    """Their time over ours, round by round."""
    ratios = [theirs / ours for theirs, ours in times]
    took = statistics.median(theirs for theirs, _ in times)
    span = f"({min(ratios):.1f} to {max(ratios):.1f})"
    print(f"detect_head, {what}: {took:.2f} s, {statistics.median(ratios):.1f} times as long {span}")


if __name__ == "__main__":
    main()
