"""A step of decoding, each row under its own edit, against Hugging Face ``generate`` and against its matrix products.

    python benchmarks/bench_step.py
    python benchmarks/bench_step.py --models mechrep-tiny,real-models/smollm2-135m --rows 1,16,64 --json step.json

Figures for each model and number of rows, each the least of rounds that alternate in one process (what else a machine
does only adds):

* *step*: seconds of one more token of mechrep for a batch in which every row has its own neurons zeroed, over those of
  ``generate`` for the same prompts without edits; greedy, without a stop rule.  Long calls less short ones, so that
  reading the prompts does not count.
* *products*: the same over its matrix products alone, one after the other on inputs that are at hand.
* *call*: whole long calls, prompts of 32 tokens included.
* *setting*: one set of neurons zeroed in 64 texts, over plain ``generate`` with a hook, in one batch, whole calls; the
  tokens must be the same.
* *flips*: texts that differ between a batch and one text at a time, in single precision and in bfloat16, and how far
  the two best logits were apart where they first did: rounding depends on the shape of a batch, and decides ties.

Seconds are those of the clock, and of the processor in brackets: on a machine with other work on it only the latter
mean something.  Models that are not there are left out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import mechrep
from mechrep.generation.decode import Decoding, Request, run_requests
from mechrep.interventions import Neurons
from mechrep.interventions.apply import logits as edited_logits

PROMPT = 32
SHORT = 4  # tokens of a short call
MODELS = "mechrep-tiny,real-models/smollm2-135m"
_PLAIN = {"do_sample": False, "pad_token_id": 0, "eos_token_id": -1}  # every text is as long as asked for


def alternating(works: dict[str, Callable[[], Any]], rounds: int) -> dict[str, tuple[float, float]]:
    """Seconds of the clock and of the processor of each piece of work: the least of rounds that take turns."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            begin = time.perf_counter(), time.process_time()
            work()
            if number:  # the first round only warms up
                taken[name].append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    return {name: (min(clock for clock, _ in some), min(cpu for _, cpu in some)) for name, some in taken.items()}


def over(times: dict[str, tuple[float, float]], one: str, other: str) -> dict[str, float]:
    """A ratio, by the clock and by the processor."""
    return {"clock": times[one][0] / times[other][0], "processor": times[one][1] / times[other][1]}


def prompts_of(model: mechrep.Model, rows: int) -> torch.Tensor:
    """Random prompts of one length."""
    draw = torch.Generator().manual_seed(0)
    return torch.randint(10, min(model.anatomy.d_vocab, 30_000), (rows, PROMPT), generator=draw)


def neurons_of(model: mechrep.Model, seed: int, number: int) -> Neurons:
    """Some random neurons of all layers, to be zeroed."""
    draw = torch.Generator().manual_seed(seed)
    layers = torch.randint(0, model.anatomy.n_layers, (number,), generator=draw).tolist()
    places = torch.rand(number, generator=draw).tolist()
    units = {(layer, int(place * model.anatomy.neurons[layer])) for layer, place in zip(layers, places, strict=True)}
    return Neurons(sorted(units), "zero")


def written(model: mechrep.Model, prompts: torch.Tensor, edits: Sequence[Neurons], tokens: int) -> list[list[int]]:
    """What mechrep writes."""
    requests = [
        Request(tuple(prompt), tokens, edit, PROMPT - 1, number)
        for number, (prompt, edit) in enumerate(zip(prompts.tolist(), edits, strict=True))
    ]
    answers = run_requests(model, requests, Decoding(stop_when=None), progress=False)
    return [answer.ids for answer in answers]


def plain(model: mechrep.Model, prompts: torch.Tensor, tokens: int) -> list[list[int]]:
    """What transformers writes."""
    assert model.plain is not None
    mask = torch.ones_like(prompts)
    module: Any = model.plain
    return module.generate(prompts, attention_mask=mask, max_new_tokens=tokens, **_PLAIN).tolist()


def matrix_products(model: mechrep.Model, rows: int, steps: int) -> Callable[[], None]:
    """The matrix products of so many steps, and nothing else."""
    assert model.plain is not None
    linear = [part for part in model.plain.modules() if isinstance(part, torch.nn.Linear)]
    inputs = [torch.randn(rows, part.in_features) for part in linear]

    @torch.no_grad()
    def work() -> None:
        for _ in range(steps):
            for part, given in zip(linear, inputs, strict=True):
                torch.nn.functional.linear(given, part.weight, part.bias)

    return work


def step_figures(model: mechrep.Model, rows: int, tokens: int, rounds: int) -> dict[str, Any]:
    """A step over ``generate``'s, and over its matrix products."""
    prompts, edits = prompts_of(model, rows), [neurons_of(model, row, 10) for row in range(rows)]
    works: dict[str, Callable[[], Any]] = {"products": matrix_products(model, rows, tokens)}
    for length, kind in ((SHORT, "short"), (SHORT + tokens, "long")):
        works[f"mechrep, {kind}"] = partial(written, model, prompts, edits, length)
        works[f"generate, {kind}"] = partial(plain, model, prompts, length)
    times = alternating(works, rounds)
    for name in ("mechrep", "generate"):
        long, short = times[f"{name}, long"], times[f"{name}, short"]
        times[name] = long[0] - short[0], long[1] - short[1]
    return {
        "rows": rows,
        "milliseconds": {name: 1000 * times[name][0] / tokens for name in ("mechrep", "generate", "products")},
        "step": over(times, "mechrep", "generate"),
        "products": over(times, "mechrep", "products"),
        "call": over(times, "mechrep, long", "generate, long"),
    }


def setting_figures(model: mechrep.Model, texts: int, tokens: int, rounds: int) -> dict[str, Any]:
    """One setting over ``generate`` with hooks that zero the same neurons at the last position of every call."""
    prompts, edit = prompts_of(model, texts), neurons_of(model, 0, 50)
    assert model.handles is not None
    by_layer: dict[int, list[int]] = {}
    for layer, neuron in edit.units:
        by_layer.setdefault(layer, []).append(neuron)

    def zero_last(neurons: list[int]) -> Callable[..., torch.Tensor]:
        def hook(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
            output[:, -1, neurons] = 0
            return output

        return hook

    found: dict[str, list[list[int]]] = {}

    def hooked() -> None:
        assert model.handles is not None
        handles = [
            model.handles.activations[layer].register_forward_hook(zero_last(neurons))  # pyright: ignore
            for layer, neurons in by_layer.items()
        ]
        found["generate"] = plain(model, prompts, tokens)
        for handle in handles:
            handle.remove()

    def ours() -> None:
        found["mechrep"] = written(model, prompts, [edit] * texts, tokens)

    times = alternating({"mechrep": ours, "generate": hooked}, rounds)
    same = sum(one == other for one, other in zip(found["mechrep"], found["generate"], strict=True))
    return {
        "texts": texts,
        "seconds": {name: clock for name, (clock, _) in times.items()},
        "setting": over(times, "mechrep", "generate"),
        "equal_texts": same,
    }


@torch.no_grad()
def flip_figures(name: str, texts: int, tokens: int) -> dict[str, Any]:
    """Texts that are other ones alone than in a batch, by precision."""
    found: dict[str, Any] = {"texts": texts, "tokens": tokens}
    for dtype in ("float32", "bfloat16"):
        model = mechrep.load_model(name, dtype=dtype)
        prompts, edits = prompts_of(model, texts), [neurons_of(model, row, 10) for row in range(texts)]
        together = written(model, prompts, edits, tokens)
        alone = [written(model, prompts[row : row + 1], edits[row : row + 1], tokens)[0] for row in range(texts)]
        gaps = []
        for one, other, edit in zip(together, alone, edits, strict=True):
            if one != other:
                first = next(place for place, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])
                begin = torch.tensor([PROMPT - 1])
                logits = edited_logits(model, torch.tensor([one[:first]]), edit, starts=begin)[0, -1].float()
                gaps.append(float((logits[one[first]] - logits[other[first]]).abs() / logits.std()))
        found[dtype] = {"differ": len(gaps), "largest_gap_in_standard_deviations": max(gaps, default=0.0)}
    return found


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description="benchmarks/bench_step.py: a step of decoding")
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--rows", default="1,16,64")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=64, help="of the one setting; 0: leave it out")
    parser.add_argument("--flips", type=int, default=32, help="texts that are written alone too; 0: leave it out")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "tokens": arguments.tokens, "models": {}}
    for name in arguments.models.split(","):
        if "/" in name and not Path(name).exists():
            print(f"{name}: not there (make real-models); left out")
            continue
        model = mechrep.load_model(name)
        here: dict[str, Any] = {"steps": []}
        found["models"][Path(name).name] = here
        for rows in map(int, arguments.rows.split(",")):
            one = step_figures(model, rows, arguments.tokens, arguments.rounds)
            here["steps"].append(one)
            print(
                f"{name}, {rows} rows: {one['milliseconds']['mechrep']:.2f} ms a step; over generate "
                f"{one['step']['clock']:.2f}x ({one['step']['processor']:.2f}), over its products "
                f"{one['products']['clock']:.2f}x ({one['products']['processor']:.2f}); whole calls over generate "
                f"{one['call']['clock']:.2f}x",
                flush=True,
            )
        if arguments.texts:
            one = here["setting"] = setting_figures(model, arguments.texts, arguments.tokens, arguments.rounds)
            print(
                f"{name}, one setting, {arguments.texts} texts: {one['seconds']['mechrep']:.1f} s; over generate with "
                f"hooks {one['setting']['clock']:.2f}x ({one['setting']['processor']:.2f}); equal texts "
                f"{one['equal_texts']}",
                flush=True,
            )
        if arguments.flips and "/" not in name:
            one = here["flips"] = flip_figures(name, arguments.flips, arguments.tokens)
            print(f"{name}, {arguments.flips} texts in a batch and alone: {one}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
