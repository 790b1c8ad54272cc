"""Texts of two conditions in pairs of about the same length.

A text shown twice and a natural loop differ in length, and attention falls with the number of keys that it is spread
over.  Where a difference between conditions could be one of length, compare matched texts as well.
"""

from __future__ import annotations

import numpy as np

from mechrep.errors import InputError, NothingFoundError
from mechrep.text.corpus import Corpus


def match_lengths(first: Corpus, second: Corpus, *, tolerance: float = 0.1) -> tuple[Corpus, Corpus]:
    """As many pairs as there are of one text each whose given parts are about equally long.

    Two texts may be paired if their ``prompt_length`` differ by at most ``tolerance`` times the larger one.  Both lists
    are walked through in the order of length, the shorter of two that do not fit is left out; no other way of pairing
    gives more pairs.

    Args:
        first: texts of one condition.
        second: texts of another one.
        tolerance: largest difference, as a share of the longer text; 0 for equal lengths only.

    Returns:
        The texts that have a partner, row by row in pairs, the shortest first.

    Raises:
        InputError: a negative tolerance, or texts that no condition's builder made.
        NothingFoundError: no two texts are of about one length.

    Limits: what has no partner is dropped, so the matched texts are a selection: say how many were left.

    Example:
        >>> import mechrep
        >>> from mechrep.generation.conditions import induced_condition, match_lengths, natural_condition
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> prompts = mechrep.generation.sample_prompts(model, 12)
        >>> natural = natural_condition(model, prompts, max_new_tokens=100)
        >>> cycle = induced_condition(model, prompts, 8, "cycle", max_new_tokens=100)
        >>> ours, theirs = match_lengths(natural, cycle, tolerance=0.5)
        >>> len(ours) == len(theirs)
        True
    """
    if not tolerance >= 0:
        raise InputError(f"tolerance={tolerance}", "a share of the length, at least 0", "use 0.1")
    for corpus in (first, second):
        if "builder" not in corpus.frame:
            raise InputError(
                "texts that no condition's builder made", "texts of a condition", "build them with its builder"
            )
    lengths = [corpus.frame["prompt_length"].to_numpy(dtype=float) for corpus in (first, second)]
    orders = [np.argsort(values, kind="stable") for values in lengths]
    pairs: list[tuple[int, int]] = []
    i = j = 0
    while i < len(first) and j < len(second):
        a, b = lengths[0][orders[0][i]], lengths[1][orders[1][j]]
        paired = abs(a - b) <= tolerance * max(a, b)
        if paired:
            pairs.append((int(orders[0][i]), int(orders[1][j])))
        i, j = i + (paired or a < b), j + (paired or b < a)
    if not pairs:
        spans = [f"{int(values.min())} to {int(values.max())}" for values in lengths]
        raise NothingFoundError(
            f"{len(first)} texts of {spans[0]} tokens and {len(second)} of {spans[1]}",
            f"two whose lengths differ by at most {tolerance:.0%}",
            "show the induced texts more or fewer times, or allow a larger tolerance",
        )
    return first.select([pair[0] for pair in pairs]), second.select([pair[1] for pair in pairs])
