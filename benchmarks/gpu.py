"""One GPU: sweeps of conditions on shapes of 1B and 7B parameters, against the card's own limits and ``generate``.

    python benchmarks/gpu.py                                   # 7B, bfloat16, 64 settings x 256 texts
    python benchmarks/gpu.py --shape 1b --json gpu-1b.json
    python benchmarks/gpu.py --shape tiny --device cpu --settings 2 --texts 4 --tokens 8

It needs only torch, transformers, transformer-lens and mechrep.  Weights are random and made on the device from a
configuration, so nothing is downloaded; what is written makes no sense, and costs what it would.  Figures:

* *limits* of the device, measured here: operations a second of a large matrix product, bytes a second of a large copy.
* *sweep*: every setting zeroes neurons of its own in all texts, and all texts are written anew.  Its *share of the
  roofline*: the time that weights, keys and values need to pass through memory, or that the products need to be
  computed, whichever is longer, over the time that was taken.
* *generate*: transformers with a hook that zeroes the neurons of one setting, all texts in one batch, times the number
  of settings; and, as published, one text at a time (a few texts, times the rest).
* *step*: with edits over ``generate`` without any, by rows.
* *reading*: norms of all layers, and attention of all heads to the first position, over the bare pass; peak memory.

Where memory runs out a batch is halved; the figures say how many rows went through at once.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

import mechrep
from mechrep.generation.decode import Decoding, Request, run_requests
from mechrep.interventions import Neurons
from mechrep.measures.attention_sinks import first_position_attention
from mechrep.measures.sink_norms import RepeatNorms
from mechrep.text.stimuli import repeated_tokens

# hidden size, MLP, layers, heads, heads of keys and values, vocabulary
SHAPES = {
    "tiny": (64, 176, 2, 4, 2, 1_000),
    "1b": (2048, 8192, 16, 32, 8, 128_256),
    "7b": (4096, 11008, 32, 32, 32, 32_000),
}
PROMPT = 64
_PLAIN = {"do_sample": False, "pad_token_id": 0}  # every text is as long as asked for


def build(shape: str, device: torch.device, dtype: torch.dtype) -> mechrep.Model:
    """A Llama of this shape with random weights, made where it is used."""
    width, mlp, layers, heads, kv_heads, words = SHAPES[shape]
    config = transformers.LlamaConfig(
        vocab_size=words, hidden_size=width, intermediate_size=mlp, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=8192,
        bos_token_id=0, eos_token_id=1, dtype=dtype,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        module = transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval().requires_grad_(False)
    return mechrep.load_model(
        module, check=False
    )  # in half precision random weights agree with themselves only roughly


def waited(device: torch.device) -> float:
    """The clock, when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(work: Callable[[], Any], device: torch.device, rounds: int = 1) -> float:
    """Of one round, after one that only warms up where there are several."""
    if rounds > 1:
        work()
    begin = waited(device)
    for _ in range(rounds):
        work()
    return (waited(device) - begin) / rounds


def limits(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """What the device does at best: operations and bytes a second."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    block = torch.empty(size * size * 8, device=device, dtype=dtype)
    product = seconds(lambda: left @ right, device, 10)
    copy = seconds(block.clone, device, 10)
    return {"operations": 2 * size**3 / product, "bytes": 2 * block.numel() * block.element_size() / copy}


def edits_of(model: mechrep.Model, settings: int, number: int = 50) -> list[Neurons]:
    """Random neurons of all layers, other ones for each setting."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for _ in range(settings):
        layers = torch.randint(model.anatomy.n_layers, (number,), generator=draw).tolist()
        units = {(layer, int(torch.randint(model.anatomy.neurons[layer], (), generator=draw))) for layer in layers}
        found.append(Neurons(sorted(units), "zero"))
    return found


def prompts_of(model: mechrep.Model, texts: int) -> torch.Tensor:
    """Random prompts of one length."""
    draw = torch.Generator().manual_seed(1)
    return torch.randint(10, model.anatomy.d_vocab, (texts, PROMPT), generator=draw)


def written(model: mechrep.Model, prompts: torch.Tensor, edits: list[Neurons], tokens: int, rows: int) -> list[Any]:
    """Every prompt under every setting, as mechrep writes it."""
    requests = [
        Request(tuple(prompt), tokens, edit, PROMPT - 1, text)
        for edit in edits
        for text, prompt in enumerate(prompts.tolist())
    ]
    return run_requests(model, requests, Decoding(stop_when=None), batch_size=rows, progress=False)


def generated(model: mechrep.Model, prompts: torch.Tensor, edit: Neurons | None, tokens: int) -> list[list[int]]:
    """Prompts as transformers writes them, with hooks that zero neurons at the last position."""
    by_layer: dict[int, list[int]] = {}
    for layer, neuron in edit.units if edit is not None else ():
        by_layer.setdefault(layer, []).append(neuron)

    def zero_last(neurons: torch.Tensor) -> Callable[..., torch.Tensor]:
        def hook(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
            output[:, -1, neurons] = 0
            return output

        return hook

    module: Any = model.plain
    here = prompts.to(module.device)
    hooks = [
        model.handles.activations[layer].register_forward_hook(  # pyright: ignore
            zero_last(torch.tensor(neurons, device=here.device))
        )
        for layer, neurons in by_layer.items()
    ]
    try:
        return module.generate(here, attention_mask=torch.ones_like(here), max_new_tokens=tokens, **_PLAIN).tolist()
    finally:
        for hook in hooks:
            hook.remove()


def roofline(model: mechrep.Model, limit: dict[str, float], rows: int, at_once: int, tokens: int) -> float:
    """Seconds that the device needs at least to write so many tokens in so many rows."""
    anatomy, module = model.anatomy, model.plain
    weights = sum(part.weight.numel() for part in module.modules() if isinstance(part, torch.nn.Linear))  # pyright: ignore
    itemsize = torch.empty((), dtype=model.dtype).element_size()
    kept = 2 * anatomy.n_layers * anatomy.n_kv_heads * anatomy.d_head * itemsize * (PROMPT + tokens / 2)
    steps = tokens * -(-rows // at_once)
    by_memory = (steps * weights * itemsize + tokens * rows * kept) / limit["bytes"]
    by_operations = 2 * weights * rows * tokens / limit["operations"]
    return max(by_memory, by_operations)


def sweep_figures(model: mechrep.Model, limit: dict[str, float], asked: argparse.Namespace) -> dict[str, Any]:
    """A sweep of settings against the roofline and against ``generate``."""
    device = model.device
    prompts, edits = prompts_of(model, asked.texts), edits_of(model, asked.settings)
    written(model, prompts[:2], edits[:1], 4, 2)  # libraries load what they need at their first use
    ours = seconds(lambda: written(model, prompts, edits, asked.tokens, asked.rows), device)
    batch = seconds(lambda: generated(model, prompts, edits[0], asked.tokens), device, 2) * asked.settings
    few = min(2, asked.texts)
    alone = seconds(lambda: [generated(model, prompts[i : i + 1], edits[0], asked.tokens) for i in range(few)], device)
    same = generated(model, prompts[:8], edits[0], asked.tokens)
    own = [answer.ids for answer in written(model, prompts[:8], edits[:1], asked.tokens, 8)]
    rows = asked.texts * asked.settings
    return {
        "rows": rows, "at_once": asked.rows, "tokens": asked.tokens, "seconds": ours,
        "tokens_a_second": rows * asked.tokens / ours,
        "share_of_roofline": roofline(model, limit, rows, asked.rows, asked.tokens) / ours,
        "generate_in_batches_over_mechrep": batch / ours,
        "generate_one_text_at_a_time_over_mechrep": alone / few * rows / ours,
        "equal_texts_of_8": sum(list(one) == list(other) for one, other in zip(own, same, strict=False)),
    }  # fmt: skip


def step_figures(model: mechrep.Model, rows: int, tokens: int) -> dict[str, float]:
    """A step with edits of its own in each row, over one of ``generate`` without."""
    prompts, edits = prompts_of(model, rows), edits_of(model, rows, 10)
    requests = [
        Request(tuple(prompt), tokens, edit, PROMPT - 1, text)
        for text, (prompt, edit) in enumerate(zip(prompts.tolist(), edits, strict=True))
    ]
    own = seconds(
        lambda: run_requests(model, requests, Decoding(stop_when=None), batch_size=rows, progress=False),
        model.device, 3,
    )  # fmt: skip
    other = seconds(lambda: generated(model, prompts, None, tokens), model.device, 3)
    return {"rows": rows, "milliseconds": 1000 * own / tokens, "over_generate": own / other}


def reading_figures(model: mechrep.Model, repeats: int) -> dict[str, Any]:
    """Norms and attention to the first position, over the bare pass: time and peak memory of the device."""
    corpus = repeated_tokens(model, [300], repeats)
    module: Any = model.plain
    here = corpus.tokens.to(model.device)

    @torch.no_grad()
    def bare() -> None:
        for row in here:
            module(input_ids=row[None], use_cache=False, logits_to_keep=1)

    works: dict[str, Callable[[], Any]] = {
        "bare": bare,
        "norms": lambda: mechrep.CorpusCache(model, corpus, progress=False).run(RepeatNorms()),
        "attention": lambda: first_position_attention(model, corpus),
    }
    model.fingerprint()
    found: dict[str, Any] = {"repeats": repeats}
    for name, work in works.items():
        work()
        before = torch.cuda.memory_allocated(model.device) if model.device.type == "cuda" else 0
        if model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(model.device)
        found[name] = {"seconds": seconds(work, model.device, 2)}
        if model.device.type == "cuda":
            found[name]["mib"] = (torch.cuda.max_memory_allocated(model.device) - before) / 2**20
    for name in ("norms", "attention"):
        found[name]["time_over_bare"] = found[name]["seconds"] / found["bare"]["seconds"]
        if "mib" in found[name]:
            found[name]["memory_over_bare"] = found[name]["mib"] / max(1e-9, found["bare"]["mib"])
    return found


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description="benchmarks/gpu.py: sweeps, steps and reading on one GPU")
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--device", help="by default the GPU; without one, only --shape tiny --device cpu makes sense")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--settings", type=int, default=64)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=64, help="written in each text")
    parser.add_argument("--rows", type=int, default=256, help="at once")
    parser.add_argument("--repeats", type=int, help="of the reading passes; by default 4,095 (tiny: 255)")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if asked.device is None and not torch.cuda.is_available():
        parser.error("there is no GPU here; --shape tiny --device cpu only shows that the script works")
    device, dtype = torch.device(asked.device or "cuda"), getattr(torch, asked.dtype)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    found: dict[str, Any] = {"device": name, "torch": torch.__version__, "shape": asked.shape, "dtype": asked.dtype}
    found["limits"] = limits(device, dtype)
    model = build(asked.shape, device, dtype)
    found["sweep"] = sweep_figures(model, found["limits"], asked)
    rows = (1, 2) if asked.shape == "tiny" else (1, 16, 64)
    found["steps"] = [step_figures(model, number, asked.tokens) for number in rows]
    found["reading"] = reading_figures(model, asked.repeats or (255 if asked.shape == "tiny" else 4095))
    text = json.dumps(found, indent=1)
    print(text)
    if asked.json:
        asked.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
