"""What the planted heads promise, checked on plain modules, without mechrep."""

from __future__ import annotations

import pytest

from tests.planted.by_hand import (
    forward,
    greedy,
    plain,
    planted,
)
from tests.planted.texts import repeats
from tests.planted.workbench import FAMILIES, WORDS, habit
from tests.tiny_models import families


@pytest.mark.parametrize("family", families(*FAMILIES))
def test_the_circuit_copies(family: str) -> None:
    fixture, n = planted("induction_circuit", family), 20
    module, ids = plain(fixture.model), repeats(20, copies=3)
    run = forward(module, family, ids)
    assert run.logits[n + 1 : -1].argmax(-1).tolist() == ids[n + 2 :]
    assert run.logits[1 : n + 1].argmax(-1).tolist() == [habit(token) for token in ids[1 : n + 1]]
    # Mistakes are not followed: the induction head finds the copy that fits what is read now.
    ids[n + 5] = next(word for word in WORDS if word not in ids)
    assert forward(module, family, ids).logits[n + 6 : -1].argmax(-1).tolist() == ids[n + 7 :]
    assert greedy(module, repeats(n)[: n + 3], 100) == (repeats(n, copies=8)[n + 3 :])[:100]
