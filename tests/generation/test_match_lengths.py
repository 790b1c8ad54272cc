"""Pairs of texts of about one length: as many as any pairing gives, and none that differ by more."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from mechrep.errors import InputError, NothingFoundError
from mechrep.generation.text_kinds import match_lengths
from mechrep.text.corpus import Corpus

lengths = st.lists(st.integers(1, 30), min_size=1, max_size=8)


def corpus(prompt_lengths: list[int]) -> Corpus:
    n = len(prompt_lengths)
    frame = pd.DataFrame({"id": [str(i) for i in range(n)], "prompt_length": prompt_lengths, "builder": "hand"})
    return Corpus(torch.zeros(n, 31, dtype=torch.long), torch.full((n,), 31), frame)


@given(lengths, lengths, st.sampled_from([0.0, 0.1, 0.3, 1.0]))
def test_as_many_pairs_as_the_largest_matching(first: list[int], second: list[int], tolerance: float) -> None:
    fits = np.array([[abs(a - b) <= tolerance * max(a, b) for b in second] for a in first])
    most = int((maximum_bipartite_matching(csr_array(fits)) >= 0).sum())
    if not most:
        with pytest.raises(NothingFoundError, match="two whose lengths differ"):
            match_lengths(corpus(first), corpus(second), tolerance=tolerance)
        return
    ours, theirs = match_lengths(corpus(first), corpus(second), tolerance=tolerance)
    assert len(ours) == len(theirs) == most
    for a, b in zip(ours.frame["prompt_length"], theirs.frame["prompt_length"], strict=True):
        assert abs(a - b) <= tolerance * max(a, b)
    for matched in (ours, theirs):
        assert matched.frame["id"].is_unique, "each text once"


def test_what_cannot_be_matched_is_refused() -> None:
    with pytest.raises(InputError, match="at least 0"):
        match_lengths(corpus([3]), corpus([3]), tolerance=-1.0)
    bare = Corpus.from_tokens([[1, 2]])
    with pytest.raises(InputError, match="texts of a condition"):
        match_lengths(bare, corpus([3]))
