"""No network, unless a name of the hub was given: neither mechrep nor a library that it uses asks anybody."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mechrep
from mechrep import cli
from mechrep.errors import InputError, ModelError
from mechrep.models.revisions import list_checkpoints


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Collects every address that is looked up or connected to; nothing keeps the libraries from asking."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    found: list[object] = []

    def look_up(host: object, *_: Any, **__: Any) -> Any:
        found.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    def connect(_self: socket.socket, address: object) -> None:
        found.append(address)
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket.socket, "connect", connect)
    yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in a folder, as somebody has downloaded it, with two checkpoints in it."""
    place = tmp_path_factory.mktemp("net")
    for revision, inside in ((None, "."), ("step512", "checkpoint-512"), ("step40000", "checkpoint-40000")):
        model = mechrep.load_model("mechrep-tiny", revision=revision)
        model.plain.save_pretrained(place / inside)  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]
        model.tokenizer.save_pretrained(place / inside)  # pyright: ignore[reportOptionalMemberAccess]
    return place


def test_a_folder_asks_nobody(folder: Path, asked: list[object]) -> None:
    model = mechrep.load_model(folder)
    assert model.encode("the sea", True)
    assert [one.name for one in list_checkpoints(folder)] == ["checkpoint-512", "checkpoint-40000"]
    assert [one.step for one in list_checkpoints(folder, "grid")] == [512, 40000]
    (one,) = list_checkpoints(folder, ["checkpoint-512"])
    assert one.spec == str((folder / "checkpoint-512").resolve()) and one.revision is None
    with pytest.raises(InputError, match="checkpoint-512, checkpoint-40000"):
        list_checkpoints(folder, ["main"])
    with pytest.raises(ModelError, match="holds no checkpoints"):
        list_checkpoints(folder / "checkpoint-512")
    assert asked == []
    with pytest.raises(ModelError):  # what is asked would be seen
        mechrep.load_model("somebody/net")
    assert asked


COMMANDS: dict[str, list[str]] = {
    "report": ["--only", "first-layer"],
    "neurons": [],
    "heads": [],
    "sinks": [],
    "first-layer": [],
    "patch": [],
    "text-kinds": [],
    "information": [],
    "checkpoints": ["--revisions", "all", "--measures", "sinks"],
    "card": ["--nulls", "0"],
    "verify": [],
    "ablate": ["L0H0", "--outcomes", "loss"],
    "eval": ["--ablate", "L0H0", "--limit", "4"],
    "compare": ["the sea", "--zero", "L0H0", "--max-new-tokens", "4"],
    "look": ["the sea", "--max-new-tokens", "4"],
    "generate": ["the sea", "--max-new-tokens", "4"],
    "doctor": [],
    "models": ["--explain"],
}


@pytest.mark.slow
def test_no_command_on_a_folder_asks_anybody(
    folder: Path, asked: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_effort: None,
    trust: Callable[..., None],
) -> None:  # fmt: skip
    assert set(COMMANDS) == set(cli.COMMANDS)
    monkeypatch.chdir(tmp_path)
    for name, options in COMMANDS.items():
        model = [] if name == "doctor" else [str(folder)]
        studies = {"compare", "look", "generate", "doctor", "models"}
        effort = [] if name in studies else ["--effort", "quick", "--out", name, "--quiet"]
        # Not every question has an answer on so small a model; whether one was asked elsewhere is the question here.
        assert cli.main([name, *model, *options, *effort]) in (0, 1), name
        assert asked == [], name
    what = "commands on a folder that look up or connect to anything"
    trust(section="security", what=what, asked="0", measured=f"0 of {len(COMMANDS)}", holds=True)
