"""Train mechrep-tiny, or a variant of it, from text files: ``python -m mechrep.models.tiny.train``.

The result is an ordinary Hugging Face folder (``config.json``, ``model.safetensors``, tokenizer files) plus
``recipe.json`` (how it was made) and ``history.jsonl`` (what happened), and a folder per kept step under
``revisions/``.  A run that was stopped goes on from its last checkpoint when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mechrep.models.tiny import data
from mechrep.models.tiny.recipe import Recipe


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Any:
    """An untrained model: wide embeddings, residual outputs scaled down by depth, small unembedding."""
    torch.manual_seed(recipe.seed)
    ids: dict[str, int] = tokenizer.get_vocab()
    config = LlamaConfig(
        vocab_size=recipe.d_vocab,
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_mlp,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_heads,
        max_position_embeddings=recipe.n_ctx,
        attention_bias=True,
        tie_word_embeddings=False,
        bos_token_id=ids[data.BOS],
        eos_token_id=ids[data.EOS],
        pad_token_id=ids[data.PAD],
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                continue
            if "embed_tokens" in name:
                parameter.normal_(0, 0.5)
            elif "lm_head" in name:
                parameter.normal_(0, 0.02)
            else:
                depth = math.sqrt(2 * recipe.n_layers) if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                parameter.normal_(0, 1 / math.sqrt(parameter.shape[1]) / depth)
    return model


def build_optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon on the attention matrices (it is what made induction form early), AdamW on everything else."""
    attention = [p for n, p in model.named_parameters() if "self_attn" in n and p.ndim == 2]
    chosen = {id(p) for p in attention}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(attention, lr=recipe.muon_learning_rate, weight_decay=recipe.weight_decay, momentum=0.95),
        torch.optim.AdamW(rest, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.95)),
    ]


@torch.no_grad()
def held_out_loss(model: nn.Module, stream: np.ndarray, recipe: Recipe, bos_id: int, windows: int = 32) -> float:
    """Mean next-token loss in nats on evenly spaced held-out windows of ``n_ctx`` tokens that start with BOS."""
    length = recipe.n_ctx - 1
    starts = np.linspace(0, len(stream) - length - 1, windows).astype(int)
    rows = np.stack([np.concatenate([[bos_id], stream[s : s + length]]) for s in starts]).astype(np.int64)
    device = next(model.parameters()).device
    losses = []
    for row in torch.from_numpy(rows).to(device).split(8):
        logits = model(input_ids=row, use_cache=False).logits
        losses.append(nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), row[:, 1:].flatten()).item())
    return float(np.mean(losses))


def kept_steps(total: int) -> set[int]:
    """Log-spaced steps whose weights are kept: 0, powers of two, three per octave later on, and the last."""
    steps = {0, total} | {2**i for i in range(5, 30)} | {int(2 ** (i + j / 3)) for i in range(9, 30) for j in (1, 2)}
    return {step for step in steps if step <= total}


def save_weights(model: nn.Module, path: Path) -> None:
    """float16 weights, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: p.detach().to("cpu", torch.float16).contiguous() for name, p in model.named_parameters()}
    temporary = path.with_suffix(".partial")
    save_file(weights, temporary, metadata={"format": "pt"})
    temporary.replace(path)


def save_state(folder: Path, step: int, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Everything that a resumed run needs, as one safetensors file replaced in one move."""
    tensors: dict[str, Tensor] = {f"model/{n}": p.detach().cpu().contiguous() for n, p in model.named_parameters()}
    for index, optimizer in enumerate(optimizers):
        for parameter, values in optimizer.state_dict()["state"].items():
            for name, value in values.items():
                tensors[f"optimizer/{index}/{parameter}/{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
    temporary = folder / "state.partial"
    save_file(tensors, temporary, metadata={"step": str(step)})
    temporary.replace(folder / "state.safetensors")


def load_state(folder: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Restore what :func:`save_state` wrote; returns the step to go on with (0 when there is nothing)."""
    from safetensors import safe_open

    path = folder / "state.safetensors"
    if not path.exists():
        return 0
    tensors = load_file(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model/{name}"])
    for index, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer/{index}/"):
                _, _, parameter_index, name = key.split("/")
                state.setdefault(int(parameter_index), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    with safe_open(path, "pt") as file:
        return int(file.metadata()["step"])


def prepare(paths: Sequence[Path], out: Path, recipe: Recipe) -> tuple[PreTrainedTokenizerFast, np.ndarray, np.ndarray]:
    """Tokenizer, training stream and held-out stream; made once, then read from ``out``."""
    streams = out / "streams.safetensors"
    if not streams.exists():
        training, held_out = data.split_documents(list(data.read_documents(paths)), recipe.held_out_share, recipe.seed)
        tokenizer = data.train_tokenizer(training, recipe.d_vocab)
        tokenizer.save_pretrained(out)
        encoded = {
            "training": torch.from_numpy(data.encode_stream(training, tokenizer).astype(np.int16)),
            "held_out": torch.from_numpy(data.encode_stream(held_out, tokenizer).astype(np.int16)),
        }
        save_file(encoded, streams)
    loaded = load_file(streams)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    return tokenizer, loaded["training"].numpy().astype(np.uint16), loaded["held_out"].numpy().astype(np.uint16)


def train(
    paths: Sequence[Path], out: Path, recipe: Recipe, *, device: str = "cpu", compile_model: bool = False
) -> None:
    """Run, or go on with, the whole training; see the module's first lines for what it leaves in ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer, stream, held_out = prepare(paths, out, recipe)
    (out / "recipe.json").write_text(
        json.dumps(
            recipe.to_dict() | {"data": [p.name for p in paths], "torch": torch.__version__, "device": device}, indent=1
        )
    )
    model = build_model(recipe, tokenizer).to(device)
    optimizers = build_optimizers(model, recipe)
    first = load_state(out, model, optimizers)
    run_steps(model, optimizers, recipe, range(first, recipe.steps), stream, held_out, out, compile_model=compile_model)
    model.to(torch.float16).save_pretrained(out)


def run_steps(
    model: Any,
    optimizers: Sequence[torch.optim.Optimizer],
    recipe: Recipe,
    steps: range,
    stream: np.ndarray,
    held_out: np.ndarray,
    out: Path,
    *,
    compile_model: bool,
) -> None:
    """The optimizer loop, with its checkpoints, its history and its progress bar."""
    forward = torch.compile(model) if compile_model else model
    bos, first_ordinary = int(model.config.bos_token_id or 0), 3  # after BOS, EOS and PAD
    keep, device = kept_steps(recipe.steps), model.device
    history = (out / "history.jsonl").open("a", encoding="utf-8")
    running, saved_at = None, time.monotonic()
    with tqdm(total=recipe.tokens, initial=steps.start * recipe.tokens_per_step, unit="tok", unit_scale=True) as bar:
        for step in range(steps.start, steps.stop + 1):
            if step in keep:
                save_weights(model, out / "revisions" / f"step{step}.safetensors")
                loss = held_out_loss(model, held_out, recipe, bos)
                record = {
                    "step": step,
                    "tokens": step * recipe.tokens_per_step,
                    "held_out_loss": loss,
                    "training_loss": running,
                }
                history.write(json.dumps(record) + "\n")
                history.flush()
            if step == steps.stop:
                break
            batch = data.training_batch(stream, recipe, step, bos, first_ordinary).to(device)
            logits = forward(input_ids=batch, use_cache=False).logits
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            factor = recipe.learning_rate_factor(step)
            for optimizer, base in zip(optimizers, (recipe.muon_learning_rate, recipe.learning_rate), strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = base * factor
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
            bar.update(recipe.tokens_per_step)
            bar.set_postfix(loss=f"{running:.3f}", refresh=False)
            if time.monotonic() - saved_at > 60:
                save_state(out, step + 1, model, optimizers)
                saved_at = time.monotonic()
    history.close()
    save_state(out, steps.stop, model, optimizers)


def main() -> None:
    """Command line of the training script."""
    parser = argparse.ArgumentParser(prog="python -m mechrep.models.tiny.train", description=__doc__)
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, help=".jsonl, .jsonl.gz (field text) or .txt files"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, tokenizer, history, revisions")
    parser.add_argument("--tokens", type=int, default=Recipe.tokens, help="tokens to train on")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model (needs a C++ compiler on CPU)")
    arguments = parser.parse_args()
    recipe = Recipe(tokens=arguments.tokens, seed=arguments.seed)
    train(arguments.data, arguments.out, recipe, device=arguments.device, compile_model=arguments.compile)


if __name__ == "__main__":
    main()
