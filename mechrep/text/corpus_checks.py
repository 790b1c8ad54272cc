"""What a corpus refuses: ids that no model can read, models that they were not made for, texts that do not mix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int64

from mechrep.errors import InputError
from mechrep.text.tokenizing_model import TokenizingModel


def check_rows(rows: Sequence[Int64[np.ndarray, " _"]], d_vocab: int | None, n_ctx: int | None) -> None:
    """Refuse an empty corpus, empty texts, ids outside the vocabulary and texts longer than the model reads.

    Args:
        rows: one array of ids per text.
        d_vocab: size of the vocabulary; None for no upper limit.
        n_ctx: longest text that the model reads; None for no limit.

    Raises:
        InputError: naming the text, and for an id its position.

    Example:
        >>> check_rows([np.array([1, 900])], d_vocab=50, n_ctx=None)
        Traceback (most recent call last):
        mechrep.errors.InputError: given: id 900 in text 0 at position 1; expected: ids from 0 to 49; \
to do: tokenize with the tokenizer of this model
    """
    if not rows:
        raise InputError("an empty list of texts", "at least one text", "pass texts, or check what was filtered out")
    limit = np.inf if d_vocab is None else d_vocab
    for i, row in enumerate(rows):
        if len(row) == 0:
            raise InputError(f"text {i} has no tokens", "texts of at least one token", "leave it out")
        if n_ctx is not None and len(row) > n_ctx:
            raise InputError(
                f"text {i} has {len(row)} tokens", f"at most n_ctx = {n_ctx} tokens", "cut it, or split it into texts"
            )
        wrong = np.flatnonzero((row < 0) | (row >= limit))
        if len(wrong):
            upper = "upwards" if d_vocab is None else f"to {d_vocab - 1}"
            raise InputError(
                f"id {row[wrong[0]]} in text {i} at position {wrong[0]}",
                f"ids from 0 {upper}",
                "tokenize with the tokenizer of this model",
            )


def check_begins_with_bos(rows: Sequence[Int64[np.ndarray, " _"]], bos_id: int) -> None:
    """Refuse texts that do not begin with BOS.

    Args:
        rows: one array of ids per text.
        bos_id: id of BOS.

    Raises:
        InputError: naming the first such text.
    """
    for i, row in enumerate(rows):
        if row[0] != bos_id:
            raise InputError(
                f"text {i} begins with id {row[0]}", f"BOS, id {bos_id}", "prepend it, or pass another bos_policy"
            )


def check_same_vocabulary(facts: Mapping[str, object], model: TokenizingModel) -> None:
    """Refuse a model with another tokenizer, or, where one tokenizer is unknown, with another size of vocabulary.

    Args:
        facts: ``tokenizer`` and ``d_vocab`` of the corpus.
        model: the model about to read it.

    Raises:
        InputError: if they differ.
    """
    ours, theirs = facts["tokenizer"], model.tokenizer_fingerprint
    if ours is not None and theirs is not None:
        if ours != theirs:
            raise InputError(f"ids of tokenizer {ours} for {model.name}", f"tokenizer {theirs}", "tokenize again")
    elif facts["d_vocab"] not in (None, model.anatomy.d_vocab):
        raise InputError(
            f"ids of a vocabulary of {facts['d_vocab']} for {model.name}",
            f"d_vocab = {model.anatomy.d_vocab}",
            "tokenize again",
        )


def check_joinable(facts: Sequence[Mapping[str, object]]) -> None:
    """Refuse to join corpora of different tokenizers, or with and without BOS.

    Args:
        facts: ``tokenizer``, ``d_vocab``, ``bos_id`` and ``bos_policy`` of each corpus.

    Raises:
        InputError: if there is none, or if they do not mix.
    """
    if not facts:
        raise InputError("no corpora", "at least one", "pass corpora to join")
    vocabularies = [_vocabulary(one) for one in facts]
    for vocabulary in vocabularies:
        if vocabulary != vocabularies[0]:
            raise InputError(
                f"vocabularies {vocabularies[0]} and {vocabulary}", "one tokenizer and BOS", "tokenize with one model"
            )
    if {"prepended", "absent"} <= {one["bos_policy"] for one in facts}:
        raise InputError("texts with and without BOS", "one BOS policy", "tokenize both the same way")


def _vocabulary(facts: Mapping[str, object]) -> tuple[object, ...]:
    # The size says something only where the tokenizer is unknown: models of one family pad their embeddings
    # differently, and the ids mean the same.
    return facts["tokenizer"], facts["bos_id"], facts["d_vocab"] if facts["tokenizer"] is None else None
