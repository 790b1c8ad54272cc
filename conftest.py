"""For tests and for the examples in docstrings alike: sizes that take a while are as small as they can be.

Nothing here imports mechrep when it is loaded: pytest turns on the checking of shapes later.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

import tests.shapes  # jaxtyping finds it by its name, so it must be there before any test

# Its examples need the package of the extra.
collect_ignore = [] if importlib.util.find_spec("ray") else ["mechrep/ray_engine.py"]
SLOW = Path(__file__).parent / "tests" / "slow.txt"


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as slow what ``tests/slow.txt`` names: tests and examples of docstrings, which no decorator can mark."""
    lines = SLOW.read_text(encoding="utf-8").splitlines() if SLOW.is_file() else []
    slow = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    for item in items:
        if slow and item.nodeid.startswith(slow):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module", autouse=True)
def first_calls() -> None:
    """Shapes are checked in the first calls of every function in this file."""
    tests.shapes.begin_again()


@pytest.fixture(scope="session", autouse=True)
def small_effort() -> Iterator[None]:
    """Makes ``effort="quick"`` as small as it can be."""
    from mechrep import run

    with pytest.MonkeyPatch.context() as patch:
        small = run.Effort(
            loops=10,
            others=3,
            windows=7,
            tokens=6,
            draws=19,
            regenerated_draws=3,
            nulls=19,
            sequences=6,
            curve=2,
            repeats=64,
            questions=14,
            reading=1024,
        )
        patch.setitem(run.EFFORTS, "quick", small)
        yield


@pytest.fixture(scope="module")
def card_sizes() -> Iterator[dict[str, int]]:
    """Cards read shorter texts and repeat fewer tokens; what they do otherwise is handed over."""
    from mechrep.studies import card

    small = {"_LONGEST": 128, "_REPEATED_TOKENS": 16}
    sizes = {name: getattr(card, name) for name in small}
    with pytest.MonkeyPatch.context() as patch:
        for name, size in small.items():
            patch.setattr(card, name, size)
        yield sizes


@pytest.fixture(autouse=True)
def short_examples(request: pytest.FixtureRequest) -> None:
    """The examples of cards read as little."""
    if request.node.name.startswith("mechrep.studies.card"):
        request.getfixturevalue("card_sizes")
