"""A tokenizer for the zoo's vocabulary, one id per letter: what reads and writes text can be tried on every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.models.wrapped import quiet_boot
from tests.families.zoo import D_VOCAB, build, families, quietly

LETTERS = " abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,123"


def tokenizer() -> Any:
    """Letters as ids from 3 on, behind BOS, EOS and an unknown token."""
    from transformers import PreTrainedTokenizerFast

    ids = {"<s>": 0, "</s>": 1, "<unk>": 2, **{letter: number for number, letter in enumerate(LETTERS, 3)}}
    assert len(ids) == D_VOCAB
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def worded(name: str, *, calm: float = 30.0, seed: int = 0) -> Model:
    """A family's tiny model with that tokenizer, called by the family's name.

    Args:
        name: of the family.
        calm: factor on the embeddings: what the layers add counts less, so that texts soon go round in circles.
        seed: of the weights.
    """
    module = build(families()[name], seed=seed)
    _calm(module, calm)
    with quiet_boot():
        model = load_model(module, tokenizer=tokenizer(), check=False)
    model.name = name
    return model


def save(name: str, folder: Path, *, calm: float = 30.0, seed: int = 0) -> Path:
    """The same as a folder that the command line takes."""
    module = build(families()[name], seed=seed)
    _calm(module, calm)
    quietly(lambda: module.save_pretrained(folder))
    tokenizer().save_pretrained(folder)
    return folder


@torch.no_grad()
def _calm(module: Any, factor: float) -> None:
    """Larger embeddings, and no text that ends or begins anew by itself."""
    read, written = module.get_input_embeddings().weight, module.get_output_embeddings().weight
    if read is written:
        return
    written[:3] = 0.0
    read.mul_(factor)
