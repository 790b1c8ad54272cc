"""What the planted heads promise, checked on plain modules, without mechrep."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.planted.by_hand import greedy, plain
from tests.planted.circuits import induction_circuit
from tests.planted.texts import repeats
from tests.planted.workbench import ALL_FAMILIES, SIZES, WORDS, habit

_FAST = ("gpt2", "llama_gqa", "gemma3", "mixtral")
_CASES = [
    pytest.param(family, size, seed, marks=() if family in _FAST and seed == 0 else pytest.mark.slow)
    for family in ALL_FAMILIES for seed, size in enumerate(SIZES)
]  # fmt: skip


@pytest.mark.parametrize(("family", "size", "seed"), _CASES)
def test_the_circuit_copies(family: str, size: str, seed: int) -> None:
    module: Any = plain(induction_circuit(family, size, seed).model)
    n, ids = 20, repeats(20, copies=3)

    def says(ids: list[int]) -> list[int]:
        return module(torch.tensor([ids]), use_cache=False).logits[0].argmax(-1).tolist()

    told = says(ids)
    assert told[n + 1 : -1] == ids[n + 2 :]
    assert told[1 : n + 1] == [habit(token) for token in ids[1 : n + 1]]
    # Mistakes are not followed: the induction head finds the copy that fits what is read now.
    ids[n + 5] = next(word for word in WORDS if word not in ids)
    told = says(ids)[n + 6 : -1]
    wrong = [place for place, (said, follows) in enumerate(zip(told, ids[n + 7 :], strict=True)) if said != follows]
    assert set(wrong) <= {n - 2}  # there the word before has been followed by two different ones, equally often
    assert all(told[place] == ids[n + 5] for place in wrong)
    assert greedy(module, repeats(n)[: n + 3], 100) == (repeats(n, copies=8)[n + 3 :])[:100]
