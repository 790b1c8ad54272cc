"""One long text cut into windows of equal length: held-out text as a corpus."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from mechrep.errors import InputError
from mechrep.guards import Between, Count, guarded
from mechrep.text.corpus import Corpus
from mechrep.text.corpus_io import TokenizingModel

SHORTEST_WINDOW = 4  # the second half then has a token to predict and one that predicts it
Window = Annotated[int, Between(SHORTEST_WINDOW, 2**31 - 1)]


@guarded
def windows_of_text(model: TokenizingModel, text: str, *, length: Window | None = None, limit: Count = 16) -> Corpus:
    """Cut one long text into windows: BOS first (by the model's habit), at most half a window of overlap.

    Args:
        model: the model.
        text: the text.
        length: tokens per window, BOS included; by default ``min(n_ctx, 1024)``.
        limit: at most so many windows, spread evenly over the text.

    Raises:
        InputError: a text shorter than one window, windows too short to be scored, or no window.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> windows = windows_of_text(model, "It was the best of times. " * 20, length=32, limit=3)
        >>> windows.lengths.tolist(), windows.row(1)[0] == model.bos_id
        ([32, 32, 32], True)
    """
    length = min(model.anatomy.n_ctx, 1024) if length is None else length
    bos = [model.bos_id] if model.default_prepend_bos and model.bos_id is not None else []
    ids = model.encode(text, prepend_bos=False)
    ids = ids[1:] if bos and ids[:1] == bos else ids  # every window gets one
    body = length - len(bos)
    if len(ids) < body:
        raise InputError(
            f"a text of {len(ids)} tokens", f"at least {body}, one window", "use a longer text or shorter windows"
        )
    starts = range(0, len(ids) - body + 1, max(1, body // 2))
    chosen = np.unique(np.linspace(0, len(starts) - 1, min(limit, len(starts))).astype(int))
    rows = [[*bos, *ids[starts[i] : starts[i] + body]] for i in chosen]
    return Corpus.from_tokens(
        rows, model=model, attention_mask=True, source="held-out", bos_policy="prepended" if bos else "absent"
    )
