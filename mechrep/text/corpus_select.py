"""Which texts of a corpus are meant: by number, by mask, by their facts."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int64

from mechrep.errors import InputError, NothingFoundError
from mechrep.text._tokens import token_array


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
        if name not in frame:
            raise InputError(f"column {name!r}", f"one of {list(frame.columns)}", "choose one of them")
        values = list(wanted) if isinstance(wanted, list | tuple | set | frozenset) else [wanted]
        # None asks for what is missing: `where(period=None)` are the texts without a cycle.
        missing = frame[name].isna().to_numpy(dtype=bool) & (None in values)
        mask &= missing | frame[name].isin([value for value in values if value is not None]).to_numpy(dtype=bool)
    if not mask.any():
        raise NothingFoundError(f"where({dict(conditions)})", "at least one text", "look at corpus.frame")
    return mask
