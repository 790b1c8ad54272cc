"""The checks of shapes that all other tests rely on are at work, at first and again in every file."""

from __future__ import annotations

import jaxtyping
import pytest
import torch

from mechrep.generation.requests import lost
from tests import shapes

WRONG = torch.zeros(2, dtype=torch.long)


def test_a_wrong_type_is_refused_in_the_first_calls_of_every_file() -> None:
    shapes.begin_again()
    with pytest.raises(jaxtyping.TypeCheckError, match="lost"):
        lost(WRONG)
    if shapes.CALLS == "all":
        return
    for _ in range(int(shapes.CALLS)):
        lost(torch.zeros(2))
    assert lost(WRONG).tolist() == [False, False], "after so many calls it is called as it is"
    shapes.begin_again()
    with pytest.raises(jaxtyping.TypeCheckError, match="lost"):
        lost(WRONG)
