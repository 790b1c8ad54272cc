"""Several conditions as one corpus in which every copy that is asked about is written out."""

from __future__ import annotations

import pandas as pd

from mechrep.errors import InputError
from mechrep.text.corpus import Corpus

COPIES = 3  # copies beyond the first, where nothing else is said


def joined_conditions(*conditions: Corpus, n_ctx: int, copies: int = COPIES) -> Corpus:
    """Join conditions; a text with a cycle becomes what was before it and ``copies + 1`` times the cycle.

    The tokens beyond a condition's own text are known: they are the next copies of the cycle, whatever the model would
    write.  A text has as many whole copies as fit into the context, at least two.

    Args:
        *conditions: of :func:`mechrep.natural_condition`, ``induced_condition`` and ``control_condition``, built from
            one list of prompts.
        n_ctx: positions that the model reads.
        copies: copies beyond the first.

    Raises:
        InputError: no condition, fewer than one copy, the same condition twice, or a text whose second copy does not
            fit into the context.

    Example:
        >>> frame = pd.DataFrame({"start": [1], "onset": [3], "period": [2], "builder": "natural"})
        >>> natural = Corpus.from_tokens([[0, 5, 6, 5, 6]], frame=frame)
        >>> joined_conditions(natural, n_ctx=8).row(0)
        [0, 5, 6, 5, 6, 5, 6]
    """
    if not conditions or copies < 1:
        raise InputError(f"{len(conditions)} conditions, copies={copies}", "at least one of each", "pass conditions")
    joined = Corpus.concatenate(*conditions)
    rows = []
    for i, (start, onset) in enumerate(zip(joined.frame["start"], joined.frame["onset"], strict=True)):
        row = joined.row(i)
        if not pd.isna(start):
            cycle = row[int(start) : int(onset)]
            fit = min(copies + 1, (n_ctx - int(start)) // len(cycle))
            if fit < 2:
                raise InputError(
                    f"text {joined.frame['id'][i]!r}: a cycle of {len(cycle)} from position {start}",
                    f"two copies within {n_ctx} positions",
                    "use shorter prompts",
                )
            row = [*row[: int(start)], *cycle * fit]
        rows.append(row)
    frame = joined.frame.copy()
    frame["prompt_length"] = frame["prompt_length"].clip(upper=[len(row) for row in rows])
    longer = Corpus.from_tokens(rows, frame=frame, bos_policy=joined.bos_policy)
    facts = {name: getattr(joined, name) for name in ("tokenizer", "bos_id", "d_vocab", "model_name")}
    return Corpus(longer.tokens, longer.lengths, longer.frame, bos_policy=joined.bos_policy, **facts)
