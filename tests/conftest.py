"""What every test gets: no network, one torch thread per worker, steady examples from hypothesis.

Nothing here imports mechrep: pytest loads this file before it turns on the checking of shapes (--jaxtyping-packages),
and a module that is imported earlier stays unchecked.
"""

from __future__ import annotations

import gc
import hashlib
import ipaddress
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported

import hypothesis
import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

hypothesis.settings.register_profile("mechrep", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.register_profile("thorough", deadline=None, derandomize=True, max_examples=100)
hypothesis.settings.load_profile("mechrep")


def pytest_collection_finish() -> None:
    """What was collected stays: garbage collection, which some studies ask for, no longer looks through it."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that hand a figure over to docs/trust.md carry the mark `trust`: `make trust` runs them alone."""
    for item in items:
        if "trust" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.trust)


@pytest.fixture
def trust() -> Callable[..., None]:
    """Hands over a figure for docs/trust.md; it is written only where MECHREP_TRUST names a folder."""
    return hand_over


def hand_over(*, section: str, what: str, asked: str, measured: str, holds: bool) -> None:
    """Write a row of the table, where MECHREP_TRUST names a folder."""
    if folder := os.environ.get("MECHREP_TRUST"):
        row = {"section": section, "what": what, "asked": asked, "measured": measured, "holds": bool(holds)}
        name = hashlib.sha256(f"{section}/{what}".encode()).hexdigest()[:16]
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, f"{name}.json").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """A test that failed, or was skipped, before it could hand its figure over has a row of its own."""
    report = yield
    if "trust" in getattr(item, "fixturenames", ()) and not report.passed:
        hand_over(section="tests that gave no figure", what=item.nodeid, asked="passed", measured=report.outcome,
                  holds=False)  # fmt: skip
    return report


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of texts and models beside the project, which a clone need not have."""
    if not SHARED.is_dir():
        pytest.skip("the data folder ../shared, beside the repository, is missing")
    return SHARED


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A browser for the whole session; where there is none, the tests that need one are skipped."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def _is_local(address: object) -> bool:
    if not isinstance(address, tuple):  # a Unix socket
        return True
    host = str(address[0])
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """A test that would reach beyond this machine fails, with the address it asked for."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if not _is_local(address):
            self.close()
            raise RuntimeError(f"a test tried to reach {address!r}; tests use what is on this machine")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield
