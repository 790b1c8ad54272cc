"""Which tokens of a condition are asked about, and how many cycles were shown before each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from mechrep.errors import InputError

_CONTROL_TOKENS = 64  # of a text without a cycle, at most


@dataclass(frozen=True)
class ExpectedTokens:
    """Tokens that are expected next, all rows of a batch one after the other.

    Attributes:
        row: row of the batch.
        place: position of the expected token; the position before predicts it.
        copies: cycles shown before it: 0 in the first copy, and in a text without a cycle.
    """

    row: Int[np.ndarray, " query"]
    place: Int[np.ndarray, " query"]
    copies: Int[np.ndarray, " query"]


def expected_tokens(frame: pd.DataFrame, lengths: list[int], copies: int) -> ExpectedTokens:
    """The tokens of the whole copies of each text, aligned on its onset.

    Copy ``k`` begins at ``start + k * period``; what is predicted in it has seen ``k`` whole cycles.  Where the seam
    between two copies is not the text's own (``seam``), the first token of each copy is left out.  Of a text without
    a cycle, the first tokens after its prompt count, as copy 0.

    Args:
        frame: facts of the texts: ``start``, ``period``, ``prompt_length`` and, where it is known, ``seam``.
        lengths: of the texts.
        copies: copies beyond the first.

    Raises:
        InputError: a cycle that does not lie in its text.

    Example:
        >>> frame = pd.DataFrame({"id": ["a"], "start": [1], "period": [2], "prompt_length": [3]})
        >>> found = expected_tokens(frame, [6], copies=2)
        >>> found.place.tolist(), found.copies.tolist()
        ([1, 2, 3, 4], [0, 0, 1, 1])
    """
    rows: list[int] = []
    places: list[int] = []
    shown: list[int] = []
    for row, (facts, length) in enumerate(zip(frame.to_dict("records"), lengths, strict=True)):
        found, numbers = _of_text(facts, length, copies)
        rows += [row] * len(found)
        places += found
        shown += numbers
    return ExpectedTokens(*(np.array(values, dtype=np.int64) for values in (rows, places, shown)))


def _of_text(facts: dict[Any, Any], length: int, copies: int) -> tuple[list[int], list[int]]:
    if pd.isna(facts["start"]):
        begin = max(1, int(facts["prompt_length"]))
        places = list(range(begin, min(length, begin + _CONTROL_TOKENS)))
        return places, [0] * len(places)
    start, period = int(facts["start"]), int(facts["period"])
    if not 0 <= start < start + period < length:
        raise InputError(
            f"text {facts['id']!r} of {length} tokens with a cycle of {period} from {start}",
            "a cycle and the beginning of its second copy",
            "build it with mechrep.natural_condition or induced_condition",
        )
    whole = min(copies + 1, (length - start) // period)
    skipped = 1 if facts.get("seam", False) else 0
    pairs = [(start + k * period + j, k) for k in range(whole) for j in range(skipped, period)]
    return [place for place, _ in pairs if place > 0], [k for place, k in pairs if place > 0]
