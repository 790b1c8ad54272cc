"""A corpus on disk: one Parquet file that any data tool can read.

The ids are a column ``tokens`` (list of int32) beside the columns of the frame; what holds for the whole corpus
(tokenizer, BOS policy, ...) is JSON in the schema metadata.  A file is written under a temporary name in its own
folder and then renamed, so that a full disk or a killed process leaves the old file or none, never half of one.
Between the data and Parquet's own description, where no reader looks, stands the SHA-256 of all the rest.

The two halves of a corpus: rows of ids become padded tensors, facts become one table row per text.

What a corpus asks of a model: a tokenizer with an identity, and two sizes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Int64
from torch import Tensor

from mechrep.disk import write_whole
from mechrep.errors import InputError, StoreError
from mechrep.guards import each_once, fits, in_step

RESERVED = "tokens"  # the name of the column of ids in the file

# Nullable integers: "no cycle" must stay distinguishable from "position 0".
_DEFAULTS: dict[str, tuple[object, str]] = {
    "source": ("", "str"),
    "condition": ("", "str"),
    "prompt_length": (0, "int64"),
    "start": (pd.NA, "Int64"),
    "onset": (pd.NA, "Int64"),
    "period": (pd.NA, "Int64"),
    "copies": (np.nan, "float64"),
}


def pad_rows(
    rows: Sequence[Int64[np.ndarray, " _"]], pad_id: int
) -> tuple[Int64[Tensor, "text pos"], Int64[Tensor, " text"]]:
    """Put rows of unequal length into one right-padded tensor.

    Args:
        rows: one array of ids per text.
        pad_id: the id that fills up short rows.

    Returns:
        The tokens and the length of each text.

    Example:
        >>> tokens, lengths = pad_rows([np.array([5, 6]), np.array([7])], pad_id=0)
        >>> tokens.tolist(), lengths.tolist()
        ([[5, 6], [7, 0]], [2, 1])
    """
    lengths = [len(row) for row in rows]
    tokens = np.full((len(rows), max(lengths)), pad_id, dtype=np.int64)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return torch.from_numpy(tokens), torch.tensor(lengths, dtype=torch.int64)


def complete_frame(frame: pd.DataFrame | None, n_texts: int, source: str) -> pd.DataFrame:
    """Return the table of a corpus: every standard column, in its type, one row per text.

    Args:
        frame: the user's columns, or None; rows in the order of the texts, any index.
        n_texts: number of texts.
        source: fills ``source`` and the ids ``source-0``, ``source-1``, ... where the frame has no such column.

    Raises:
        InputError: for a wrong number of rows, ids that are missing or stand twice, a column that cannot have the
            type of its name, or the reserved name ``tokens``.

    Example:
        >>> complete_frame(None, 2, "demo")[["id", "source", "prompt_length", "onset"]].values.tolist()
        [['demo-0', 'demo', 0, <NA>], ['demo-1', 'demo', 0, <NA>]]
    """
    given = pd.DataFrame(index=range(n_texts)) if frame is None else frame.reset_index(drop=True)
    in_step("rows of a frame", len(given), n_texts)
    if odd := [name for name in given.columns if not isinstance(name, str) or name == RESERVED]:
        raise InputError(f"columns named {odd}", f"names that are strings, and not {RESERVED!r}", "rename them")
    standard = pd.DataFrame({"id": _ids(given, source)})
    for name, (default, dtype) in _DEFAULTS.items():
        column = given[name] if name in given else pd.Series([source if name == "source" else default] * n_texts)
        standard[name] = _as_type(column, dtype)
    return pd.concat([standard, given.drop(columns=standard.columns, errors="ignore")], axis="columns")


def _ids(given: pd.DataFrame, source: str) -> pd.Series:
    if "id" not in given:
        return pd.Series([f"{source}-{i}" for i in given.index], dtype="str")
    missing = np.flatnonzero(given["id"].isna())
    if len(missing):
        raise InputError(f"no id in row {missing[0]}", "an id per text", "fill it in")
    ids: pd.Series = _as_type(given["id"], "str")
    each_once("ids", ids, least=0, remedy="rename one, or give each source its own source=")
    return ids


def _as_type(column: Any, dtype: str) -> Any:
    try:
        return column.astype(dtype)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"column {column.name!r} that is no {dtype} ({error})", f"values of type {dtype}", "convert the column"
        ) from error


FACTS: dict[str, Any] = {
    "tokenizer": str | None,
    "bos_id": int | None,
    "bos_policy": str,
    "d_vocab": int | None,
    "model_name": str | None,
    "pad_id": int,
    "fingerprint": str | None,
}
_KEY = b"mechrep.corpus"
_FORMAT = 1
_SEAL = b"mechrep\x00"


def write(
    path: str | PathLike[str], rows: Sequence[Sequence[int]], frame: pd.DataFrame, facts: Mapping[str, Any]
) -> None:
    """Write texts, their facts and the facts of the whole.

    Args:
        path: the file.
        rows: ids of each text.
        frame: one row per text.
        facts: one value for each name in `FACTS`.

    Raises:
        InputError: for a column whose values Parquet cannot hold.
        StoreError: if the file cannot be written; whatever stood there before still stands there.
    """
    table = _table(rows, frame, facts)

    def fill(partial: Path) -> None:
        # Checksums, because a flipped bit in an id is still a valid id.
        pq.write_table(table, partial, write_page_checksum=True)
        partial.write_bytes(_sealed(partial.read_bytes()))

    write_whole(Path(path), fill)


def read(path: str | PathLike[str]) -> tuple[list[Int64[np.ndarray, " _"]], pd.DataFrame, dict[str, Any] | None]:
    """Read what `write` wrote, or what a data tool made of it.

    Args:
        path: the file.

    Returns:
        The ids of each text, the frame, and the facts by the names in `FACTS`; None for a table that has lost them.

    Raises:
        StoreError: if the file is missing, damaged, of a later format, or was not written by `write`.
    """
    if not Path(path).is_file():
        raise StoreError(f"{path}, which is no file", "a corpus written by Corpus.save", "check the path")
    try:
        content = Path(path).read_bytes()
        _check_seal(content)
        with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
            table = file.read()
        facts = _read_facts(path, table)
        rows = _ids_of(path, table)
        frame = table.drop_columns([RESERVED]).to_pandas()
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
        raise StoreError(
            f"{path}, which cannot be read ({type(error).__name__}: {error})",
            "a corpus written by Corpus.save",
            "copy or save it again",
        ) from error
    return rows, frame, facts


def _sealed(content: bytes) -> bytes:
    """A Parquet file with its sum before the footer: offsets count from the beginning of the file and stay."""
    cut = _footer(content)
    return content[:cut] + _SEAL + hashlib.sha256(content).digest() + content[cut:]


def _check_seal(content: bytes) -> None:
    """Refuse a file that has changed; one of mechrep 0.1 or of another tool has no seal.

    Raises:
        ValueError: it has changed.
    """
    cut = _footer(content)
    begin = cut - len(_SEAL) - hashlib.sha256().digest_size
    seal = content[max(begin, 0) : cut]
    if seal.startswith(_SEAL) and seal[len(_SEAL) :] != hashlib.sha256(content[:begin] + content[cut:]).digest():
        raise ValueError("changed since it was written: its sum differs")


def _footer(content: bytes) -> int:
    """Where the footer begins: its length stands before the last four bytes."""
    return max(len(content) - 8 - int.from_bytes(content[-8:-4], "little"), 0)


def _table(rows: Sequence[Sequence[int]], frame: pd.DataFrame, facts: Mapping[str, Any]) -> pa.Table:
    try:
        table = pa.Table.from_pandas(frame, preserve_index=False)
        table = table.append_column(RESERVED, pa.array(rows, type=pa.list_(pa.int32())))
    except pa.ArrowException as error:
        raise InputError(
            f"a column that Parquet cannot hold ({error})", "plain values", "convert the column"
        ) from error
    header = json.dumps({"format": _FORMAT} | {name: facts[name] for name in FACTS})
    return table.replace_schema_metadata({**(table.schema.metadata or {}), _KEY: header.encode()})


def has_ids(path: str | PathLike[str]) -> bool:
    """Whether a Parquet file is a corpus, or was one: it has a column of ids."""
    try:
        return RESERVED in pq.read_schema(path).names
    except (OSError, pa.ArrowException):
        return False


def _ids_of(path: str | PathLike[str], table: pa.Table) -> list[Int64[np.ndarray, " _"]]:
    kind = table.schema.field(RESERVED).type if RESERVED in table.schema.names else None
    if kind is None or not (
        (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and pa.types.is_integer(kind.value_type)
    ):
        raise StoreError(
            f"{path}, a Parquet file of something else", "a corpus written by Corpus.save", "check the path"
        )
    if table[RESERVED].null_count:
        missing = table[RESERVED].is_null().to_pylist().index(True)
        raise StoreError(f"{path}, without ids in row {missing + 1}", "ids in every row", "drop the row")
    return [np.array(row.as_py(), dtype=np.int64) for row in table[RESERVED]]


def _read_facts(path: str | PathLike[str], table: pa.Table) -> dict[str, Any] | None:
    metadata = table.schema.metadata or {}
    if _KEY not in metadata:
        return None
    header = json.loads(metadata[_KEY])
    if header["format"] != _FORMAT:
        raise StoreError(
            f"{path} in format {header['format']}", f"format {_FORMAT}", "update mechrep, or save it again"
        )
    odd = [name for name, kind in FACTS.items() if not fits(header[name], kind)]
    if odd:
        raise ValueError(f"{odd[0]} of another kind")
    return {name: header[name] for name in FACTS}


@runtime_checkable
class _Anatomy(Protocol):
    """The two sizes that a corpus is checked against."""

    @property
    def d_vocab(self) -> int: ...

    @property
    def n_ctx(self) -> int: ...


@runtime_checkable
class TokenizingModel(Protocol):
    """What a corpus asks of a model; `mechrep.models.model.Model` is one, a small stand-in will do."""

    @property
    def anatomy(self) -> _Anatomy:
        """Sizes of the model, of which ``d_vocab`` and ``n_ctx`` are used."""
        ...

    @property
    def name(self) -> str:
        """Name of the model, for the record."""
        ...

    @property
    def tokenizer_fingerprint(self) -> str | None:
        """Identity of tokenizer and vocabulary; None for a model without tokenizer."""
        ...

    @property
    def bos_id(self) -> int | None:
        """Id of the begin-of-sequence token, if there is one."""
        ...

    @property
    def default_prepend_bos(self) -> bool:
        """Whether the model was trained, and is usually run, with BOS in front."""
        ...

    def encode(self, text: str, prepend_bos: bool) -> list[int]:
        """Return the ids of a text, with or without BOS in front."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids."""
        ...
