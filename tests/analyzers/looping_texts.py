"""Looping texts whose loops are known because they are written by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mechrep.models.model import Model
from mechrep.text.corpus import Corpus
from tests.analyzers.oracle import Loop
from tests.tiny_models import D_VOCAB

NONE = -1  # first and onset of a text without a loop


def random_loops(n: int, *, seed: int = 0, first: tuple[int, int] = (1, 24), length: int = 60) -> list[Loop]:
    """Prefixes of every length, short loops and long ones: windows are clipped at both ends of some texts."""
    draw = np.random.default_rng(seed)
    loops = []
    for _ in range(n):
        start, period = int(draw.integers(first[0], first[1])), int(draw.integers(1, 7))
        prefix, cycle = draw.integers(3, D_VOCAB, start), draw.integers(3, D_VOCAB, period)
        total = int(draw.integers(start + 2 * period, length + 1))
        copies = np.tile(cycle, length)[: total - start]
        loops.append(Loop([*prefix.tolist(), *copies.tolist()], start, start + period))
    return loops


def as_corpus(loops: Sequence[Loop], model: Model | None = None, name: str = "loop") -> Corpus:
    """The same texts as mechrep takes them."""
    frame = pd.DataFrame(
        {
            "id": [f"{name}-{number}" for number in range(len(loops))],
            "start": [None if loop.first == NONE else loop.first for loop in loops],
            "onset": [None if loop.onset == NONE else loop.onset for loop in loops],
        }
    )
    return Corpus.from_tokens([loop.ids for loop in loops], model=model, frame=frame)
