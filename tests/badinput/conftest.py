"""Wrong calls are made as users make them: without the checker of shapes that the other tests run under."""

from __future__ import annotations

import jaxtyping
import pytest

from tests.badinput.world import World


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checker of shapes is off."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Right things of every kind."""
    return World(tmp_path_factory.mktemp("world"))
