"""What a corpus refuses: ids that no model can read, models that they were not made for, texts that do not mix.

Which texts of a corpus are meant: by number, by mask, by their facts.

What people hand over where texts belong, and what is told of the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int64
from torch import Tensor

from mechrep.errors import InputError, NothingFoundError
from mechrep.guards import one_of
from mechrep.text.corpus_io import TokenizingModel
from mechrep.text.watch import token_array


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


def text_numbers(texts: object, n_texts: int) -> Int64[np.ndarray, " text"]:
    """Turn numbers or a mask into checked numbers of texts.

    Args:
        texts: numbers, or one True or False per text (missing counts as False), in any kind of array.
        n_texts: number of texts there are.

    Raises:
        InputError: for a mask of another length, or numbers that no text has.
        NothingFoundError: if no text is meant.

    Example:
        >>> text_numbers([False, True, True], 3).tolist(), text_numbers([2, 0], 3).tolist()
        ([1, 2], [2, 0])
    """
    if isinstance(texts, pd.Series):
        texts = texts.fillna(False).to_numpy(dtype=bool) if pd.api.types.is_bool_dtype(texts) else texts.to_numpy()
    chosen = np.asarray(texts)
    if chosen.dtype == bool:
        if chosen.shape != (n_texts,):
            raise InputError(f"a mask of shape {chosen.shape}", f"{n_texts} values", "one True or False per text")
        chosen = np.flatnonzero(chosen)
    chosen = token_array(chosen, "the selection")
    if chosen.size == 0:
        raise NothingFoundError("a selection of no texts", "at least one text", "look at corpus.frame")
    if chosen.min() < 0 or chosen.max() >= n_texts:
        raise InputError(
            f"texts {chosen.min()} to {chosen.max()}", f"numbers from 0 to {n_texts - 1}", "correct the numbers"
        )
    return chosen


def matching_texts(
    frame: pd.DataFrame, conditions: Mapping[str, Hashable | Collection[Hashable]]
) -> Bool[np.ndarray, " text"]:
    """Say of each text whether its facts are as asked.

    Args:
        frame: the facts, one row per text.
        conditions: column to value, or to a list, tuple or set of values; None stands for a missing value.

    Raises:
        InputError: for a column that the frame does not have.
        NothingFoundError: if no text matches.

    Example:
        >>> matching_texts(pd.DataFrame({"period": [3, 4, 5]}), {"period": [3, 5]}).tolist()
        [True, False, True]
    """
    mask = np.ones(len(frame), dtype=bool)
    for name, wanted in conditions.items():
        one_of("column", name, frame.columns)
        values = list(wanted) if isinstance(wanted, list | tuple | set | frozenset) else [wanted]
        # None asks for what is missing: `where(period=None)` are the texts without a cycle.
        missing = frame[name].isna().to_numpy(dtype=bool) & (None in values)
        mask &= missing | frame[name].isin([value for value in values if value is not None]).to_numpy(dtype=bool)
    if not mask.any():
        raise NothingFoundError(f"where({dict(conditions)})", "at least one text", "look at corpus.frame")
    return mask


def check_positions(frame: pd.DataFrame) -> None:
    """Refuse a frame with positions for rows whose padding in front was left out: nobody can know what they count.

    Args:
        frame: the facts as they were given.

    Raises:
        InputError: it has positions beyond 0.
    """
    for name in ("prompt_length", "start", "onset"):
        if name in frame and bool((pd.to_numeric(frame[name], errors="coerce") > 0).any()):
            raise InputError(
                f"column {name!r} for rows with padding in front",
                "positions that count from the first id of the text",
                "leave out the padding yourself, and pass rows of text alone",
            )


_TEXTS = "a corpus, a text, several texts, or ids"


def text_list(texts: object) -> list[str]:
    """Read texts from a list, a Series, an array or a generator.

    Args:
        texts: the texts.

    Raises:
        InputError: no texts, one string alone, what is no collection of texts, or a text that is missing, empty or no
            text, by its number.

    Example:
        >>> text_list(["the sea", None])
        Traceback (most recent call last):
        mechrep.errors.InputError: given: text 1 is missing (None); expected: a text in every row; \
to do: drop it, for instance with series.dropna()
    """
    if isinstance(texts, str):
        raise InputError("one string", "a list of texts", "pass [text]")
    if isinstance(texts, Mapping | pd.DataFrame | set | frozenset | bytes) or not isinstance(texts, Iterable):
        raise _no_texts(texts)
    listed = list(texts)
    for i, text in enumerate(listed):
        if isinstance(text, str):
            if not text:
                raise InputError(f"text {i} is empty", "texts of at least one token", "leave it out")
            _check_unicode(text, f"text {i}")
        elif is_missing(text):
            raise InputError(
                f"text {i} is missing ({text})", "a text in every row", "drop it, for instance with series.dropna()"
            )
        else:
            raise InputError(f"text {i} is {text!r:.60}, a {type(text).__name__}", "a text", "write it as a string")
    if not listed:
        raise InputError("an empty list of texts", "at least one text", "pass texts, or check what was filtered out")
    return [str(text) for text in listed]


def _check_unicode(text: str, name: str) -> None:
    """Refuse halves of characters, which no tokenizer reads: what bytes become that were not the encoding named."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name}, whose character {error.start} is no Unicode ({text[error.start]!a}, half of a character)",
            "texts in Unicode",
            "read the file again with errors='replace', or take the character out",
        ) from error


def is_missing(value: object) -> bool:
    """Whether a value stands for none: None, NaN, NaT, pd.NA.

    Example:
        >>> is_missing(float("nan")), is_missing(None), is_missing(0), is_missing([])
        (True, True, False, False)
    """
    return value is None or value is pd.NA or (bool(np.ndim(value) == 0) and pd.isna(value) is True)  # pyright: ignore[reportArgumentType]


def kind_of_texts(given: object) -> tuple[Literal["texts", "ids"], Any]:
    """Say whether something holds texts or ids, and give it as a collection of several.

    Args:
        given: what was handed over where a corpus belongs.

    Raises:
        InputError: neither.

    Example:
        >>> kind_of_texts("the sea"), kind_of_texts([5, 6]), kind_of_texts(iter([[5], [6]]))
        (('texts', ['the sea']), ('ids', [[5, 6]]), ('ids', [[5], [6]]))
    """
    if isinstance(given, str):
        return "texts", [given]
    if isinstance(given, Mapping) and ("input_ids" in given or "sequences" in given):
        return "ids", given
    if isinstance(given, Tensor):
        if given.ndim not in (1, 2):
            raise InputError(f"a tensor of {given.ndim} dimensions", "ids of shape [text pos] or [pos]", "reshape it")
        return "ids", given if given.ndim == 2 else given[None]
    if isinstance(given, Mapping | pd.DataFrame | set | frozenset | bytes) or not isinstance(given, Iterable):
        raise _no_texts(given)
    listed = list(given)
    if listed and all(isinstance(one, Integral) and not isinstance(one, bool) for one in listed):
        return "ids", [[int(one) for one in listed]]
    if listed and all(isinstance(one, Sequence | np.ndarray | Tensor) and not isinstance(one, str) for one in listed):
        return "ids", listed
    if any(isinstance(one, Mapping) for one in listed):
        raise InputError(
            "a list of messages", _TEXTS, "write them out: tokenizer.apply_chat_template(messages, tokenize=False)"
        )
    return "texts", text_list(listed)


def _no_texts(given: object) -> InputError:
    if isinstance(given, pd.DataFrame):
        return InputError("a table where texts belong", "one column of it", f"name it: table[{given.columns[0]!r}]")
    if isinstance(given, set | frozenset):
        return InputError("a set of texts", "texts in an order", "pass sorted(texts)")
    kind = "None" if given is None else f"a {type(given).__name__}"
    return InputError(f"{kind} where texts belong", _TEXTS, "pass for instance ['the sea', 'the king said']")
