"""README's code runs as it stands; without the pretrained model, on the embedded one with components that it has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EMBEDDED = {"real-models/smollm2-135m": "mechrep-tiny", "L21N1043": "L3N104", "L18H6": "L2H0", "L17H0": "L3H1"}


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_first_lines_make_a_page_with_a_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, names = blocks()[0], dict[str, Any]()
    for real, embedded in EMBEDDED.items():
        code = code.replace(real, embedded)
    exec(code, names)
    page = (tmp_path / "loop.html").read_text(encoding="utf-8")
    assert "L3N104" in page and "surprisal" in page
    loop = names["text"].with_cycles().frame["period"]
    assert loop.notna().all(), "the text of the picture loops"


@pytest.mark.slow
def test_the_study_gives_verdicts() -> None:
    names: dict[str, Any] = {}
    exec("import mechrep\nmodel = mechrep.load_model('mechrep-tiny')\n" + blocks()[1], names)
    assert {"still_repeating", "escaped"} <= set(names["effects"].summary()["measure"])


def test_it_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) <= 120
    for target in re.findall(r"\]\(([^)#]+)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
