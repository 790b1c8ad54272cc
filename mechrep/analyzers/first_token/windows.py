"""Ordinary text in short windows of equal length, without BOS."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mechrep.errors import InputError
from mechrep.models.model import Model
from mechrep.text.corpus import Corpus

_LENGTH, _WINDOWS = 64, 64


def windows(model: Model, corpus: Corpus) -> Int[Tensor, "text pos"]:
    """At most 64 windows of at most 64 ordinary tokens, spread over the corpus; special tokens are left out.

    Raises:
        InputError: texts of a token or two.
    """
    bodies = [[token for token in corpus.row(text) if token not in model.special_ids] for text in range(len(corpus))]
    length = min(_LENGTH, max(map(len, bodies)))
    if length < 2:
        raise InputError("texts of a single token", "texts with other positions to compare with", "use longer texts")
    rows = [body[start : start + length] for body in bodies for start in range(0, len(body) - length + 1, length)]
    picks = np.unique(np.linspace(0, len(rows) - 1, min(_WINDOWS, len(rows))).astype(int))
    return torch.tensor([rows[pick] for pick in picks])
