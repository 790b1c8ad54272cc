"""The two halves of a corpus: rows of ids become padded tensors, facts become one table row per text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int64
from torch import Tensor

from mechrep.errors import InputError

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
    if len(given) != n_texts:
        raise InputError(
            f"a frame of {len(given)} rows for {n_texts} texts", "one row per text", "give frame and texts in step"
        )
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
    twice = ids[ids.duplicated()].tolist()
    if twice:
        raise InputError(
            f"id {twice[0]!r} twice", "ids that stand once", "rename one, or give each source its own source="
        )
    return ids


def _as_type(column: Any, dtype: str) -> Any:
    try:
        return column.astype(dtype)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"column {column.name!r} that is no {dtype} ({error})", f"values of type {dtype}", "convert the column"
        ) from error
