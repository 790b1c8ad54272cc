"""Tiny random Hugging Face models, one per family, that tests compare mechrep with.

Their weights are larger than at the usual start of training: logits are not flat, greedy text is not one token over and
over, and attention looks at some tokens more than at others.  No two of d_model, d_mlp, d_vocab, n_layers and n_heads
are equal, so that no axis can be taken for another.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from mechrep.models.load import load_model
from mechrep.models.model import Model

NAMES = ("llama", "llama_gqa", "gpt2", "gpt_neox", "gemma", "gemma2", "mistral", "qwen2")
LIKE = {"llama": "llama_gqa", "qwen2": "llama_gqa", "gemma": "gemma2", "mistral": "gemma2"}


def families(*names: str) -> list[Any]:
    """Values of ``family`` for a test: a model that is built like another of them is left to the slow tests."""
    return [pytest.param(name, marks=pytest.mark.slow) if LIKE.get(name) in names else name for name in names]


FAMILIES, WITH_ALIBI = families(*NAMES), families(*NAMES, "bloom")
GATED = frozenset({"llama", "llama_gqa", "gemma", "gemma2", "mistral", "qwen2"})
GROUPED = {"llama_gqa": 2, "mistral": 2, "gemma": 1, "gemma2": 2}
SLIDING_WINDOW = 8

N_LAYERS, N_HEADS, D_MODEL, D_MLP, D_VOCAB, N_CTX = 3, 4, 32, 48, 61, 128

_ROTARY: dict[str, Any] = {
    "vocab_size": D_VOCAB,
    "hidden_size": D_MODEL,
    "intermediate_size": D_MLP,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "max_position_embeddings": N_CTX,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
}
_GEMMA: dict[str, Any] = {**_ROTARY, "head_dim": 8, "tie_word_embeddings": True}
_LEARNED: dict[str, Any] = {
    "vocab_size": D_VOCAB,
    "n_embd": D_MODEL,
    "n_inner": D_MLP,
    "n_layer": N_LAYERS,
    "n_head": N_HEADS,
    "n_positions": N_CTX,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_ALIBI: dict[str, Any] = {
    "vocab_size": D_VOCAB,
    "hidden_size": D_MODEL,
    "n_layer": N_LAYERS,
    "n_head": N_HEADS,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


@dataclass(frozen=True)
class Parts:
    """Where the modules of a family are, spelled out here and not taken from mechrep."""

    layers: str
    activation: str
    mlp_output: str
    attention_output: str
    final_norm: str
    up_projection: str | None = None

    def of(self, model: nn.Module, part: str, layer: int) -> nn.Module:
        """The module in one layer: ``"layer"``, ``"activation"``, ``"mlp_output"``, ..."""
        path = f"{self.layers}.{layer}" + ("" if part == "layer" else "." + getattr(self, part))
        return model.get_submodule(path)


_LLAMA_PARTS = Parts(
    "model.layers", "mlp.act_fn", "mlp.down_proj", "self_attn.o_proj", "model.norm", up_projection="mlp.up_proj"
)
PARTS = dict.fromkeys(GATED, _LLAMA_PARTS) | {
    "gpt2": Parts("transformer.h", "mlp.act", "mlp.c_proj", "attn.c_proj", "transformer.ln_f"),
    "gpt_neox": Parts(
        "gpt_neox.layers", "mlp.act", "mlp.dense_4h_to_h", "attention.dense", "gpt_neox.final_layer_norm"
    ),
    "bloom": Parts("transformer.h", "mlp.gelu_impl", "mlp.dense_4h_to_h", "self_attention.dense", "transformer.ln_f"),
}


def _configurations() -> dict[str, Callable[[], Any]]:
    t = transformers
    return {
        "llama": lambda: t.LlamaConfig(**_ROTARY, num_key_value_heads=N_HEADS),
        "llama_gqa": lambda: t.LlamaConfig(**_ROTARY, num_key_value_heads=2),
        "gpt2": lambda: t.GPT2Config(**_LEARNED),
        "gpt_neox": lambda: t.GPTNeoXConfig(**_ROTARY),
        "gemma": lambda: t.GemmaConfig(**_GEMMA, num_key_value_heads=1),
        "gemma2": lambda: t.Gemma2Config(**_GEMMA, num_key_value_heads=2, sliding_window=SLIDING_WINDOW),
        "mistral": lambda: t.MistralConfig(**_ROTARY, num_key_value_heads=2, sliding_window=SLIDING_WINDOW),
        "qwen2": lambda: t.Qwen2Config(**_ROTARY, num_key_value_heads=N_HEADS),
        "bloom": lambda: t.BloomConfig(**_ALIBI),
    }


def fresh(family: str, *, seed: int = 0, **changes: Any) -> nn.Module:
    """A new model of a family, for tests that change it; ``changes`` go into its configuration."""
    config = _configurations()[family]()
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    _liven(model)
    return model.requires_grad_(False)


@functools.cache
def tiny(family: str) -> nn.Module:
    """The model of a family, one per process: not to be changed."""
    return fresh(family)


@functools.cache
def loaded(family: str) -> Model:
    """The same model, loaded, one per process: not to be changed either."""
    return load_model(copy.deepcopy(tiny(family)))


def _liven(model: nn.Module) -> None:
    """Random weights that make every part matter: attention, MLP, biases and norms."""
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    # A tied embedding that is large would only ever predict the token just read; Gemma multiplies it by sqrt(d_model).
    embedding = (0.1 if model.config.model_type.startswith("gemma") else 0.3) if tied else 1.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and any(part in name for part in ("embed", "wte", "wpe")):
                parameter.normal_(0, embedding)
            elif parameter.ndim == 2:
                parameter.normal_(0, 2.0 / D_MODEL**0.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.2)
            else:  # the scale of a norm; Gemma's are added to 1
                parameter.add_(torch.randn_like(parameter) * 0.1)
                if tied and name == "model.norm.weight":
                    parameter.add_(2.0)


def tiny_tokenizer(folder: Path, *, bos: bool = True) -> Any:
    """A tokenizer of whole words, saved to ``folder`` once and read from there, as TransformerLens wants it.

    Ids 0, 1 and 2 are BOS, EOS and padding; without ``bos`` id 0 is an ordinary word.  ``w3`` ... are the other words.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{number}": number for number in range(3, D_VOCAB)}
    vocabulary = {"<bos>" if bos else "w0": 0, "<eos>": 1, "<pad>": 2, **words}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"eos_token": "<eos>", "pad_token": "<pad>", **({"bos_token": "<bos>"} if bos else {})}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def random_tokens(rows: int, length: int, *, seed: int = 0) -> torch.Tensor:
    """Ids without special ones, ``[rows, length]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, D_VOCAB, (rows, length), generator=generator)
