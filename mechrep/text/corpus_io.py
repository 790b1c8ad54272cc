"""A corpus on disk: one Parquet file that any data tool can read.

The ids are a column ``tokens`` (list of int32) beside the columns of the frame; what holds for the whole corpus
(tokenizer, BOS policy, ...) is JSON in the schema metadata.  A file is written under a temporary name in its own
folder and then renamed, so that a full disk or a killed process leaves the old file or none, never half of one.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from mechrep.errors import InputError, StoreError
from mechrep.text.corpus_frame import RESERVED

FACTS = ("tokenizer", "bos_id", "bos_policy", "d_vocab", "model_name", "pad_id", "fingerprint")
_KEY = b"mechrep.corpus"
_FORMAT = 1


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
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    table = _table(rows, frame, facts)
    try:
        with temporary.open("wb") as file:
            # Checksums, because a flipped bit in an id is still a valid id.
            pq.write_table(table, file, write_page_checksum=True)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StoreError(
            f"{path}, which cannot be written ({error})",
            "an existing folder, with room and permission to write",
            "free space or choose another place, then save again",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def read(path: str | PathLike[str]) -> tuple[list[Int64[np.ndarray, " _"]], pd.DataFrame, dict[str, Any]]:
    """Read what `write` wrote.

    Args:
        path: the file.

    Returns:
        The ids of each text, the frame, and the facts by the names in `FACTS`.

    Raises:
        StoreError: if the file is missing, damaged, of a later format, or was not written by `write`.
    """
    if not Path(path).is_file():
        raise StoreError(f"{path}, which is no file", "a corpus written by Corpus.save", "check the path")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
        facts = _read_facts(path, table)
        rows = [np.array(row.as_py(), dtype=np.int64) for row in table[RESERVED]]
        frame = table.drop_columns([RESERVED]).to_pandas()
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
        raise StoreError(
            f"{path}, which cannot be read ({type(error).__name__}: {error})",
            "a corpus written by Corpus.save",
            "copy or save it again",
        ) from error
    return rows, frame, facts


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


def _read_facts(path: str | PathLike[str], table: pa.Table) -> dict[str, Any]:
    metadata = table.schema.metadata or {}
    if _KEY not in metadata:
        raise StoreError(
            f"{path}, a Parquet file of something else", "a corpus written by Corpus.save", "check the path"
        )
    header = json.loads(metadata[_KEY])
    if header["format"] != _FORMAT:
        raise StoreError(
            f"{path} in format {header['format']}", f"format {_FORMAT}", "update mechrep, or save it again"
        )
    return {name: header[name] for name in FACTS}
