"""``mechrep doctor``: it agrees with what pip is told, and says how to get what is missing."""

from __future__ import annotations

import importlib.util
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from mechrep import cli, doctor

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def test_extras_are_those_that_pip_knows() -> None:
    told = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    del told["dev"]
    named = {extra: {re.split(r"[<>=\[]", one)[0] for one in packages} for extra, packages in told.items()}
    assert {extra: set(packages) for extra, (packages, _) in doctor.EXTRAS.items()} == named


def test_what_is_missing_comes_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.delenv("BROWSER_PATH", raising=False)
    found = [*doctor._extras(), doctor._browser()]
    assert all(one.state == "missing" and one.cure for one in found)
    assert "pip install 'mechrep[figures]'" in {one.cure for one in found}
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    assert {one.cure for one in doctor._packages() if one.state == "missing"} >= {"pip install torch"}


def test_it_prints_lines_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert cli.main(["doctor", "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert len(lines) == len(found) + 1 and {"GPU", "memory", "real models"} <= {one["what"] for one in found}
    assert sum(one["state"] == "missing" for one in found) == int(lines[-1].split()[0])
