"""Train mechrep-tiny, or a variant of it, from text files: ``python -m scripts.train_tiny.train``.

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
from torch import nn
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mechrep.errors import InputError
from scripts.train_tiny import data
from scripts.train_tiny.checkpoints import add_history, forget_history, kept_steps, load_state, save_state, save_weights
from scripts.train_tiny.optimizers import Optimizers
from scripts.train_tiny.recipe import Recipe

_SECONDS_BETWEEN_STATES = 60


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
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
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


@torch.no_grad()
def held_out_loss(model: nn.Module, stream: np.ndarray, recipe: Recipe, bos_id: int) -> float:
    """Mean next-token loss in nats on :func:`scripts.train_tiny.data.held_out_rows`."""
    rows = torch.from_numpy(data.held_out_rows(stream, recipe, bos_id)).to(next(model.parameters()).device)
    losses = []
    for row in rows.split(8):
        logits = model(input_ids=row, use_cache=False).logits
        losses.append(nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), row[:, 1:].flatten()).item())
    return float(np.mean(losses))


def prepare(paths: Sequence[Path], out: Path, recipe: Recipe) -> tuple[PreTrainedTokenizerFast, np.ndarray, np.ndarray]:
    """Tokenizer, training stream and held-out stream; made once, then read from ``out``."""
    streams = out / "streams.safetensors"
    if not streams.exists():
        training, held_out = data.split_documents(list(data.read_documents(paths)), recipe.held_out_share, recipe.seed)
        tokenizer = data.train_tokenizer(training, recipe.d_vocab)
        training, held_out = (
            [piece for text in texts for piece in data.split_paragraphs(text, recipe.shortest_document)]
            for texts in (training, held_out)
        )
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
    paths: Sequence[Path],
    out: Path,
    recipe: Recipe,
    *,
    start: Path | None = None,
    device: str = "cpu",
    compile_model: bool = False,
    bfloat16: bool = False,
) -> None:
    """Run, or go on with, the whole training; see the module's first lines for what it leaves in ``out``.

    With ``start``, a file of weights, the run begins with these at the recipe's ``first_step`` instead of random ones
    at step 0; its optimizers begin anew.  The text must be that of the run they come from, or the tokens differ.

    With ``bfloat16`` the matrix products of a step run in that type, the weights and their updates stay in float32: 1.7
    times faster on processors that have the units for it (avx512_bf16, AMX, GPUs), slower on others.
    """
    if (start is None) != (recipe.first_step == 0):
        raise InputError(
            f"weights to start from: {start}, first_step = {recipe.first_step}",
            "both a file of weights and the step that it was kept at, or neither",
            "give --start and the recipe's first_step together",
        )
    out.mkdir(parents=True, exist_ok=True)
    tokenizer, stream, held_out = prepare(paths, out, recipe)
    made_by = {"data": [p.name for p in paths], "torch": torch.__version__, "device": device, "bfloat16": bfloat16}
    made_by |= {} if start is None else {"start": start.name}
    (out / "recipe.json").write_text(json.dumps(recipe.to_dict() | made_by, indent=1))
    model = build_model(recipe, tokenizer).to(device)
    if start is not None:
        model.load_state_dict({name: tensor.float() for name, tensor in load_file(start).items()})
    optimizers = Optimizers(model, recipe)
    first = load_state(out, model, optimizers.all()) or recipe.first_step
    forward = torch.compile(model) if compile_model else model
    forward = torch.autocast(device, torch.bfloat16, enabled=bfloat16)(forward)
    run_steps(model, forward, optimizers, recipe, range(first, recipe.steps), stream, held_out, out)
    model.to(torch.float16).save_pretrained(out)


def run_steps(
    model: Any,
    forward: Any,
    optimizers: Optimizers,
    recipe: Recipe,
    steps: range,
    stream: np.ndarray,
    held_out: np.ndarray,
    out: Path,
) -> None:
    """The optimizer loop, with its checkpoints, its history and its progress bar; ``forward`` runs the model."""
    bos, eos, first_ordinary = int(model.config.bos_token_id), int(model.config.eos_token_id), 3  # PAD is 2
    keep = kept_steps(recipe.steps)
    forget_history(out, steps.start)
    running, saved_at = None, time.monotonic()
    with tqdm(total=recipe.tokens, initial=steps.start * recipe.tokens_per_step, unit="tok", unit_scale=True) as bar:
        for step in range(steps.start, steps.stop + 1):
            if step in keep:
                save_weights(model, out / "revisions" / f"step{step}.safetensors")
                losses = {"held_out_loss": held_out_loss(model, held_out, recipe, bos), "training_loss": running}
                add_history(out, {"step": step, "tokens": step * recipe.tokens_per_step, **losses})
            if step == steps.stop:
                break
            batch = data.training_batch(stream, recipe, step, bos, eos, first_ordinary).to(model.device)
            logits = forward(input_ids=batch, use_cache=False).logits
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizers.step(step)
            running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
            bar.update(recipe.tokens_per_step)
            bar.set_postfix(loss=f"{running:.3f}", refresh=False)
            if time.monotonic() - saved_at > _SECONDS_BETWEEN_STATES:
                save_state(out, step + 1, model, optimizers.all())
                saved_at = time.monotonic()
    save_state(out, steps.stop, model, optimizers.all())


def main() -> None:
    """Command line of the training script."""
    parser = argparse.ArgumentParser(prog="python -m scripts.train_tiny.train", description=__doc__)
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, help=".jsonl, .jsonl.gz (field text) or .txt files"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, tokenizer, history, revisions")
    parser.add_argument("--recipe", type=Path, help="a JSON file with the fields of Recipe that differ")
    parser.add_argument("--start", type=Path, help="weights of another run (.safetensors), kept at recipe.first_step")
    parser.add_argument("--tokens", type=int, help="tokens to train on")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model (needs a C++ compiler on CPU)")
    parser.add_argument("--bfloat16", action="store_true", help="matrix products in bfloat16: faster where supported")
    arguments = parser.parse_args()
    changes = {} if arguments.recipe is None else json.loads(arguments.recipe.read_text(encoding="utf-8"))
    changes |= {n: v for n in ("tokens", "seed") if (v := getattr(arguments, n)) is not None}
    recipe = Recipe.from_dict(changes)
    train(
        arguments.data,
        arguments.out,
        recipe,
        start=arguments.start,
        device=arguments.device,
        compile_model=arguments.compile,
        bfloat16=arguments.bfloat16,
    )


if __name__ == "__main__":
    main()
