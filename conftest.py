"""For tests and for the examples in docstrings alike: a quick study is as small as it can be.

Nothing here imports mechrep when it is loaded: pytest turns on the checking of shapes later.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest


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
            repeats=512,
            questions=14,
        )
        patch.setitem(run.EFFORTS, "quick", small)
        yield
