"""Text for training mechrep-tiny: reading documents, the byte-level BPE, and the batches of one step.

A batch is a function of (recipe, step) alone, so a resumed run sees exactly the data that an uninterrupted
run would have seen.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from scripts.train_tiny.recipe import Recipe, value_at

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"


def read_documents(paths: Sequence[Path]) -> Iterator[str]:
    """Texts of ``.jsonl`` / ``.jsonl.gz`` files (field ``text``) or of plain ``.txt`` files, in order."""
    for path in paths:
        if path.suffix == ".txt":
            yield path.read_text(encoding="utf-8")
            continue
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["text"]


def split_paragraphs(text: str, shortest: int) -> list[str]:
    """Pieces of at least ``shortest`` characters, cut between paragraphs; a short rest joins the last piece."""
    pieces: list[str] = []
    for paragraph in text.split("\n\n"):
        if pieces and len(pieces[-1]) < shortest:
            pieces[-1] += "\n\n" + paragraph
        else:
            pieces.append(paragraph)
    if len(pieces) > 1 and len(pieces[-1]) < shortest:
        last = pieces.pop()
        pieces[-1] += "\n\n" + last
    return pieces


def train_tokenizer(documents: Sequence[str], d_vocab: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of ``d_vocab`` tokens that puts BOS before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=d_vocab,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD)


def encode_stream(documents: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """All documents as one row of ids (uint16), an EOS after each."""
    pieces: list[np.ndarray] = []
    for start in range(0, len(documents), 256):
        encoded = tokenizer(list(documents[start : start + 256]), add_special_tokens=False)["input_ids"]
        pieces.extend(np.array([*ids, tokenizer.eos_token_id], dtype=np.uint16) for ids in encoded)
    return np.concatenate(pieces)


def split_documents(documents: Sequence[str], held_out_share: float, seed: int) -> tuple[list[str], list[str]]:
    """Whole documents into (training, held out), drawn once from ``seed``."""
    held = np.random.default_rng([seed, 1]).random(len(documents)) < held_out_share
    training = [text for text, out in zip(documents, held, strict=True) if not out]
    return training, [text for text, out in zip(documents, held, strict=True) if out]


def easy_repeats(
    generator: np.random.Generator, stream: np.ndarray, length: int, longest: int, first_ordinary: int, d_vocab: int
) -> np.ndarray:
    """Segments of 3 to ``longest`` tokens, each 2-8 times in a row; 85 % random tokens, the rest cut from the text."""
    pieces: list[np.ndarray] = []
    total = 0
    while total < length:
        period, copies = int(generator.integers(3, longest + 1)), int(generator.integers(2, 9))
        if generator.random() < 0.85:
            segment = generator.integers(first_ordinary, d_vocab, period).astype(np.uint16)
        else:
            start = int(generator.integers(0, len(stream) - period))
            segment = stream[start : start + period]
        pieces.append(np.tile(segment, copies))
        total += period * copies
    return np.concatenate(pieces)[:length]


def training_batch(
    stream: np.ndarray, recipe: Recipe, step: int, bos_id: int, eos_id: int, first_ordinary: int
) -> Int[Tensor, "batch pos"]:
    """The batch of one step: the same for the same recipe, stream and step.

    A sequence with BOS begins where a document begins; one without begins anywhere.
    """
    generator = np.random.default_rng([recipe.seed, 2, step])
    length = recipe.sequence_length(step)
    rows = []
    for _ in range(max(1, recipe.tokens_per_step // length)):
        with_bos = generator.random() < value_at(recipe.bos_shares, step)
        if generator.random() < value_at(recipe.easy_repeat_shares, step):
            longest = int(value_at(recipe.longest_periods, step))
            row = easy_repeats(generator, stream, length, longest, first_ordinary, recipe.d_vocab)
        else:
            start = int(generator.integers(0, len(stream) - length))
            if with_bos:
                start = document_start(stream, start, len(stream) - length, eos_id)
            row = stream[start : start + length]
        if with_bos:
            row = np.concatenate([np.array([bos_id], dtype=np.uint16), row[:-1]])
        rows.append(row)
    return torch.from_numpy(np.stack(rows).astype(np.int64))


def document_start(stream: np.ndarray, position: int, last: int, eos_id: int) -> int:
    """The first beginning of a document from ``position`` on, or the last one before it where that is past ``last``."""
    ends = np.flatnonzero(stream[position : last + 1] == eos_id)
    if len(ends) and position + ends[0] + 1 <= last:
        return position + int(ends[0]) + 1
    before = np.flatnonzero(stream[:position] == eos_id)
    return int(before[-1]) + 1 if len(before) else 0


def held_out_rows(stream: np.ndarray, recipe: Recipe, bos_id: int, windows: int = 32) -> Int[np.ndarray, "window pos"]:
    """Evenly spaced held-out windows of ``n_ctx`` tokens, BOS first."""
    length = recipe.n_ctx - 1
    starts = np.linspace(0, len(stream) - length - 1, windows).astype(int)
    return np.stack([np.concatenate([[bos_id], stream[s : s + length]]) for s in starts]).astype(np.int64)
