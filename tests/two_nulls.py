"""Null models for tests that ask something else: two of them, a shuffled and a re-initialised one, over and over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from mechrep.ablation import texts
from mechrep.models.load import reinitialised, shuffled
from mechrep.models.model import Model


@contextmanager
def two_nulls() -> Iterator[None]:
    """While open, a study makes two null models of a model and measures them in place of as many as it asks for."""
    made: dict[tuple[str, int], tuple[Model, Model]] = {}

    def once(make: Callable[..., Model]) -> Callable[..., Model]:
        def null(model: Model, seed: int) -> Model:
            key = make.__name__, id(model)
            if key not in made:
                made[key] = make(model, seed=seed), model  # the model is kept, or another could get its id
            return made[key][0]

        return null

    with pytest.MonkeyPatch.context() as patch:
        for make in (shuffled, reinitialised):
            patch.setattr(texts, make.__name__, once(make))
        yield
