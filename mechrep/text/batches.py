"""Batches as tokenizers and ``generate`` hand them over: what in their rows is text, and what only fills them up.

A mask decides where there is one.  Where there is none, the ends of each row are looked at, with what the model says of
its padding, EOS and BOS:

* padding of its own (no EOS, no BOS) is left out at both ends;
* of several EOS at the end the first is the text's own, the others are the filling of ``generate``;
* several EOS in front, where EOS is not BOS, are padding;
* one EOS in front that may be padding, and several ids in front that may be BOS or padding, are refused: nobody can
  know which it is.

What is left out is said in a warning and counted.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from mechrep.errors import InputError
from mechrep.guards import in_step
from mechrep.text.watch import token_array

_MASK = "pass attention_mask=, or attention_mask=True if every id is text; in a text leave these tokens out"
Row = Int64[np.ndarray, " _"]


@dataclass(frozen=True)
class Fillers:
    """Ids that may fill up rows of a batch, and the one that begins texts.

    Attributes:
        pad: id of padding, None if unknown.
        eos: ids that end a text.
        bos: id that begins a text, None if unknown.
        of_one_length: whether rows come from a batch, if they have one length.
    """

    pad: int | None = None
    eos: frozenset[int] = frozenset()
    bos: int | None = None
    of_one_length: bool = True

    @classmethod
    def of(cls, model: Any, pad_id: int | None = None) -> Fillers:
        """What a model, its tokenizer and its configuration say; ``pad_id`` first, if given."""
        sources = (getattr(model, "tokenizer", None), getattr(model, "config", None))
        pads = [pad_id, *(getattr(source, "pad_token_id", None) for source in sources)]
        pad = next((pad for pad in pads if isinstance(pad, int) and pad >= 0), None)
        return cls(pad, frozenset(getattr(model, "eos_ids", ())), getattr(model, "bos_id", None))

    @property
    def all(self) -> frozenset[int]:
        """Every id that may be filling."""
        return self.eos if self.pad is None else self.eos | {self.pad}

    @property
    def ambiguous(self) -> bool:
        """Whether BOS may be filling too."""
        return self.bos in self.all


@dataclass(frozen=True)
class Batch:
    """Rows of text, and how many positions were left out in front of and behind each."""

    rows: list[Row]
    left: list[int]
    right: list[int]

    @property
    def filled(self) -> bool:
        """Whether anything was left out."""
        return any(self.left) or any(self.right)


def read_batch(tokens: Any, attention_mask: Any, fillers: Fillers) -> Batch:
    """Rows without what fills them up.

    Args:
        tokens: one sequence of ids per text; a tensor or an array; or what a Hugging Face tokenizer or ``generate``
            returned, with its mask.
        attention_mask: 1 where there is text, in the shape of ``tokens``; True: everywhere; None: look.
        fillers: what may be filling.

    Raises:
        InputError: what holds no rows of ids, a mask that does not fit or has holes, a row of padding alone, or ends of
            rows that may be text or padding.

    Example:
        >>> batch = read_batch([[2, 2, 5, 6], [7, 8, 9, 5]], [[0, 0, 1, 1], [1, 1, 1, 1]], Fillers())
        >>> [row.tolist() for row in batch.rows], batch.left
        ([[5, 6], [7, 8, 9, 5]], [2, 0])
    """
    tokens, attention_mask = _unpacked(tokens, attention_mask)
    if isinstance(tokens, str | bytes) or not isinstance(tokens, Iterable):
        raise InputError(f"{_kind(tokens)} where ids belong", "one sequence of ids per text", "see Corpus.from_texts")
    rows = [token_array(row, f"text {i}") for i, row in enumerate(tokens)]
    if attention_mask is True:
        return Batch(rows, [0] * len(rows), [0] * len(rows))
    if attention_mask is not None:
        return _masked(rows, attention_mask)
    return without_filling(rows, fillers)


def _unpacked(tokens: Any, mask: Any) -> tuple[Any, Any]:
    """Ids and mask from a ``BatchEncoding`` or from what ``generate`` returns as a dictionary."""
    if not isinstance(tokens, Mapping):
        return tokens, mask
    ids = next((tokens[name] for name in ("input_ids", "sequences") if name in tokens), None)
    if ids is None:
        raise InputError(
            f"a mapping of {sorted(map(str, tokens))}", "'input_ids' in it", "pass what a tokenizer returns"
        )
    own = tokens.get("attention_mask")
    if own is not None and mask is not None and mask is not True:
        raise InputError("two attention masks", "one", "leave attention_mask= out: the batch brings its own")
    first = next(iter(ids), None)
    if isinstance(first, int | np.integer):  # one text, not a batch of them
        ids, own = [ids], None if own is None else [own]
    return ids, own if mask is None else mask


def _kind(given: Any) -> str:
    return "None" if given is None else f"a {type(given).__name__}"


def _masked(rows: Sequence[Row], attention_mask: Any) -> Batch:
    """The masked stretch of every row."""
    if isinstance(attention_mask, Tensor):
        attention_mask = attention_mask.detach().cpu().numpy()
    marks = [np.asarray(mask) for mask in attention_mask] if isinstance(attention_mask, Iterable) else []
    in_step("rows of an attention mask", len(marks), len(rows))
    batch = Batch([], [], [])
    for i, (row, mask) in enumerate(zip(rows, marks, strict=True)):
        if mask.shape != row.shape or not np.isin(mask, (0, 1)).all():
            raise InputError(
                f"a mask of shape {mask.shape} for the {len(row)} ids of text {i}", "a 0 or 1 for each id", "correct it"
            )
        places = np.flatnonzero(mask)
        if len(places) == 0:
            raise InputError(f"text {i}, which is masked whole", "texts of at least one token", "leave it out")
        first, last = int(places[0]), int(places[-1]) + 1
        if len(places) < last - first:
            hole = first + int(np.flatnonzero(np.asarray(mask)[first:last] == 0)[0])
            raise InputError(
                f"a mask with a hole, at position {hole} of text {i}",
                "one stretch of text per row",
                "take the masked ids out of the text, or split it",
            )
        batch.rows.append(row[first:last])
        batch.left.append(first)
        batch.right.append(len(row) - last)
    return batch


def without_filling(rows: Sequence[Row], fillers: Fillers) -> Batch:
    """Rows without padding and filling at their ends, as far as ids alone can tell; see the head of this file.

    Args:
        rows: ids of each text.
        fillers: what may be filling.

    Raises:
        InputError: a row of padding alone, or ends that may be text or padding.

    Example:
        >>> rows = [np.array([5, 6, 1, 1, 1]), np.array([5, 6, 7, 8, 1])]
        >>> with warnings.catch_warnings(action="ignore"):
        ...     batch = without_filling(rows, Fillers(eos=frozenset({1})))
        >>> [row.tolist() for row in batch.rows], batch.right
        ([[5, 6, 1], [5, 6, 7, 8, 1]], [2, 0])
    """
    batch = _trimmed(rows, fillers)
    if batch.filled:
        number = sum(1 for left, right in zip(batch.left, batch.right, strict=True) if left or right)
        warnings.warn(
            f"{number} of {len(rows)} texts begin or end with padding, which was left out (columns padding_left, "
            "padding_right); attention_mask= says where text is, attention_mask=True that all of it is",
            stacklevel=4,
        )
    return batch


def check_no_filling(rows: Sequence[Row], fillers: Fillers) -> None:
    """Refuse rows that begin or end with padding.

    Args:
        rows: ids of each text.
        fillers: what may be filling.

    Raises:
        InputError: naming the first such text.
    """
    batch = _trimmed(rows, fillers)
    for i, (left, right) in enumerate(zip(batch.left, batch.right, strict=True)):
        if left or right:
            raise InputError(
                f"text {i}, with {left} ids of padding in front and {right} behind",
                "texts without padding",
                "make the corpus with model= and attention_mask= (True if every id is text)",
            )


def _trimmed(rows: Sequence[Row], fillers: Fillers) -> Batch:
    _check_beginnings(rows, fillers)
    batch = Batch([], [], [])
    for i, row in enumerate(rows):
        left = _filling_in_front(row, fillers, f"text {i}")
        right = _filling_behind(row[left:], fillers)
        batch.rows.append(row[left : len(row) - right])
        batch.left.append(left)
        batch.right.append(right)
    return batch


def _check_beginnings(rows: Sequence[Row], fillers: Fillers) -> None:
    """Refuse a batch in which some rows begin with an id that is BOS and padding, and others do not."""
    if not (fillers.ambiguous and fillers.of_one_length) or len(rows) < 2 or len({len(row) for row in rows}) > 1:
        return
    begin = [len(row) > 0 and int(row[0]) == fillers.bos for row in rows]
    if any(begin) and not all(begin):
        raise InputError(
            f"rows of one length, of which text {begin.index(True)} begins with id {fillers.bos}, which is BOS and EOS "
            f"or padding in one, and text {begin.index(False)} does not",
            "rows of which one can tell whether this is padding",
            _MASK,
        )


def _filling_in_front(row: Row, fillers: Fillers, name: str) -> int:
    """How many ids in front are filling.

    Raises:
        InputError: nobody can know.
    """
    run, own = _run(row, fillers.all), _run(row, {fillers.pad} - {fillers.bos} - fillers.eos)
    if run == len(row):
        if len(row) > 1 or own:
            raise InputError(f"{name}, which holds only padding, BOS or EOS (id {row[0]})", "a text", _MASK)
        return 0
    rest = [int(token) for token in row[own:run]]
    if not rest or rest == [fillers.bos]:
        return own
    followed_by_bos = int(row[run]) == fillers.bos
    if fillers.bos not in rest and (len(rest) > 1 or followed_by_bos):
        return run
    if len(rest) == 1 and fillers.pad is not None and fillers.pad not in fillers.eos:
        return own  # padding has an id of its own, so this EOS stands there as text
    raise InputError(
        f"{name}, which begins with {len(rest)} times id {rest[0]}: BOS or EOS, or padding",
        "a text of which one can tell where it begins",
        _MASK,
    )


def _filling_behind(row: Row, fillers: Fillers) -> int:
    """How many ids at the end are filling; a text keeps its first EOS, and its first id."""
    back = row[:0:-1]
    own = _run(back, {fillers.pad} - fillers.eos)
    ends = _run(back[own:], fillers.eos)
    return own + max(0, ends - 1)


def _run(ids: Row, among: Iterable[int | None]) -> int:
    """How many ids in front are among these."""
    wanted = set(among)
    return next((i for i, token in enumerate(ids) if int(token) not in wanted), len(ids))


def warn_of_bos_twice(rows: Sequence[Row], bos_id: int | None) -> None:
    """Say that texts begin with BOS twice; they are kept as they are.

    Args:
        rows: ids of each text.
        bos_id: id of BOS, None if there is none.
    """
    twice = [i for i, row in enumerate(rows) if bos_id is not None and row[:2].tolist() == [bos_id] * 2]
    if twice:
        warnings.warn(
            f"{len(twice)} of {len(rows)} texts, the first is text {twice[0]}, begin with BOS twice (id {bos_id}) and "
            "were kept so; if that is not meant, tokenize with add_special_tokens=False what brings its own BOS",
            stacklevel=4,
        )
