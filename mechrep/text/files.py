"""Texts from files: plain text, JSON lines, CSV and Parquet, compressed or not.

A text file is UTF-8, with or without a byte order mark, and its lines end at a line feed, alone or behind a carriage
return: the other signs that Python takes for ends of lines (form feed, U+2028, ...) stay inside texts.  In a table one
column holds the texts: ``FILE::COLUMN`` names it, else it is ``text``, ``prompt`` or the only column of strings.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mechrep.errors import InputError
from mechrep.text.corpus_checks import is_missing

TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_USUAL = ("text", "prompt", "content", "sentence")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def read_texts(path: str | Path) -> list[str]:
    """The texts of a file: one per line of a text file (lines of blanks are left out), one per row of a table.

    Args:
        path: the file: text, ``.jsonl``, ``.json`` (a list), ``.csv``, ``.tsv`` or ``.parquet``, also with ``.gz`` or
            ``.zst`` behind; ``FILE::COLUMN`` names the column of a table.

    Raises:
        InputError: a file that cannot be read, is not UTF-8, holds no text, or has a row without one (rows count from
            1, as lines do).

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "prompts.csv").write_bytes("\\ufefftext,n\\r\\nthe sea,1\\r\\n\\"a, b\\",2\\r\\n".encode())
        >>> read_texts(folder / "prompts.csv")
        ['the sea', 'a, b']
    """
    file, column = _place(path)
    kind = _kind(file)
    if kind not in TABLES:
        if column is not None:
            raise InputError(f"column {column!r} of {file}", f"a table ({', '.join(TABLES)})", "name the file alone")
        texts = [line for line in lines_of(_decoded(file)) if line.strip()]
    else:
        texts = _column(_table(file, kind), column, file)
    if not texts:
        raise InputError(f"{file}, which holds no text", "at least one", "check the file")
    return texts


def read_text(path: str | Path) -> str:
    """The text of a file: the whole of a text file; the rows of a table, with an empty line between them.

    Args:
        path: as for :func:`read_texts`.

    Raises:
        InputError: as there.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "held_out.txt.gz"
        >>> _ = file.write_bytes(gzip.compress("It was\\r\\nlate.".encode()))
        >>> read_text(file)
        'It was\\nlate.'
    """
    file, column = _place(path)
    if _kind(file) in TABLES or column is not None:
        return "\n\n".join(read_texts(path))
    text = "\n".join(lines_of(_decoded(file)))
    if not text.strip():
        raise InputError(f"{file}, which holds no text", "a text", "check the file")
    return text


def lines_of(text: str) -> list[str]:
    r"""The lines of a text, which end at ``\n`` or ``\r\n`` and at nothing else.

    Example:
        >>> lines_of("a\x0bb\u2028c\r\nd\n"), lines_of("a\n\nb")
        (['a\x0bb\u2028c', 'd', ''], ['a', '', 'b'])
    """
    return [line.removesuffix("\r") for line in text.split("\n")]


def _place(path: str | Path) -> tuple[Path, str | None]:
    """The file, and the column that is named behind it."""
    name, mark, column = str(path).rpartition("::")
    return (Path(name), column) if mark and not Path(path).exists() else (Path(path), None)


def _kind(file: Path) -> str:
    inner = file.with_suffix("") if file.suffix.lower() in (".gz", ".gzip", ".zst", ".zstd") else file
    return inner.suffix.lower()


def _bytes(file: Path) -> bytes:
    """What is in a file, decompressed; the first bytes say how."""
    try:
        data = file.read_bytes()
        packed = next((name for mark, name in _COMPRESSED.items() if data.startswith(mark)), None)
        if packed == "gzip":
            return gzip.decompress(data)
        if packed == "zstd":
            return _unzstd(data, file)
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise InputError(f"{file} ({error})", "a file that can be read", "check the path, or copy it again") from error
    return data


def _unzstd(data: bytes, file: Path) -> bytes:
    if not pa.Codec.is_available("zstd"):
        raise InputError(f"{file}, compressed with zstd", "a pyarrow that can read it", "pip install -U pyarrow")
    with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
        return stream.read()


def _decoded(file: Path) -> str:
    data = _bytes(file)
    other = next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)
    if other is None and b"\0" in data[:1024]:
        other = "UTF-16 without its mark, or no text"
    if other is not None:
        raise InputError(f"{file}, which is {other}", "a text file in UTF-8", "save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"{file}, whose line {line} is not UTF-8 (byte {data[error.start]:#x}; perhaps Latin-1 or Windows-1252)",
            "a text file in UTF-8",
            "save it as UTF-8",
        ) from error


def _table(file: Path, kind: str) -> pd.DataFrame:
    """Any kind of table, one row per text."""
    if kind == ".parquet":
        data = _bytes(file)
        try:
            return pq.read_table(pa.BufferReader(data)).to_pandas()
        except pa.ArrowException as error:
            raise InputError(f"{file} ({error})", "a Parquet file", "copy or save it again") from error
    text = _decoded(file)
    if kind in (".csv", ".tsv"):
        lines = io.StringIO(text.replace("\r\n", "\n"))
        options: dict[str, Any] = {"sep": "," if kind == ".csv" else "\t", "lineterminator": "\n", "dtype": object}
        try:
            # Empty cells are missing; words such as "NA" or "null" are texts.
            table = pd.read_csv(lines, keep_default_na=False, na_values=[""], **options)
        except (ValueError, pd.errors.ParserError) as error:
            raise InputError(f"{file} ({error})", "a CSV table with a line of names", "save it again") from error
        if not isinstance(table.index, pd.RangeIndex):  # pandas takes the cells in front for names of rows
            raise InputError(
                f"{file}, whose rows have more cells than its first line has names ({', '.join(map(str, table))})",
                "as many cells in each row as names in the first",
                "write texts with a comma in them in double quotes, or name all columns",
            )
        return table
    rows = _whole(text, file) if kind == ".json" else _lines(text, file)
    if all(not isinstance(row, dict) for row in rows):
        rows = [{"text": row} for row in rows]
    if odd := [i for i, row in enumerate(rows) if not isinstance(row, dict)]:
        raise InputError(
            f"row {odd[0] + 1} of {file}, which is no object", "objects or strings, not both", "correct it"
        )
    return pd.DataFrame(rows, dtype=object)


def _whole(text: str, file: Path) -> Sequence[Any]:
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise InputError(f"{file} ({error})", "JSON", "correct it; one object per line is .jsonl") from error
    if not isinstance(rows, list):
        raise InputError(f"{file}, which holds a {type(rows).__name__}", "a list of texts or objects", "correct it")
    return rows


def _lines(text: str, file: Path) -> Sequence[Any]:
    rows = []
    for number, line in enumerate(lines_of(text), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise InputError(
                    f"line {number} of {file} ({error})", "one JSON value per line", "correct it"
                ) from error
    return rows


def _column(table: pd.DataFrame, column: str | None, file: Path) -> list[str]:
    """The texts of a table.

    Raises:
        InputError: no such column, several that could be meant, or a row without a text.
    """
    names = [str(name) for name in table.columns]
    strings = [name for name in names if any(isinstance(value, str) for value in table[name])]
    usual = [name for name in _USUAL if name in strings]
    if len(strings) > 1:  # in a CSV table every number is a string
        strings = [name for name in strings if pd.to_numeric(table[name], errors="coerce").isna().any()]
    chosen = column
    if column is None and (usual or len(strings) == 1):
        chosen = (usual or strings)[0]
    if chosen is None or chosen not in names:
        given = "no column named" if column is None else f"column {column!r}"
        raise InputError(f"{given} for {file}", f"one of {names}", f"write {file}::{(strings or names or ['text'])[0]}")
    for number, value in enumerate(table[chosen], 1):
        if is_missing(value):
            raise InputError(f"row {number} of {file}, whose {chosen!r} is missing", "a text in every row", "drop it")
        if not isinstance(value, str):
            raise InputError(f"row {number} of {file}: {value!r:.40}", f"a text in {chosen!r}", "name another column")
        if not value:
            raise InputError(f"row {number} of {file}, whose {chosen!r} is empty", "a text in every row", "drop it")
    return table[chosen].tolist()
