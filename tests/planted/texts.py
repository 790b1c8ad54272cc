"""Texts for the planted models, as ids: repeats of random words, and prompts that greedy decoding turns into loops."""

from __future__ import annotations

import numpy as np

from tests.planted.workbench import BOS, WORDS


def words(n: int, *, seed: int = 0) -> list[int]:
    """``n`` different words in random order (at most 60)."""
    return np.random.default_rng(seed).permutation(WORDS)[:n].tolist()


def repeats(n: int, *, copies: int = 2, seed: int = 0) -> list[int]:
    """BOS and ``copies`` times the same ``n`` different words."""
    return [BOS, *words(n, seed=seed) * copies]


def prompts(rows: int, *, length: int = 10) -> list[list[int]]:
    """BOS and different words; what follows by habit meets one of them sooner or later, or ends the text."""
    draw = np.random.default_rng(0)
    return [[BOS, *draw.permutation(WORDS)[:length].tolist()] for _ in range(rows)]
