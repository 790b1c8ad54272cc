"""Pretrained models: the folder that ``make real-models`` writes, or the one named in ``MECHREP_REAL_MODELS``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(os.environ.get("MECHREP_REAL_MODELS") or Path(__file__).parents[2] / "real-models")
SMALL, LARGE = "smollm2-135m", "gemma3-270m"

PROSE = (
    "The sea was calm that morning, and the harbour lay empty except for a single boat.",
    "In 1905 a clerk at the patent office published four papers that changed physics.",
    "She put the letter back into its envelope and wondered who had written it.",
    "Most of the bread in this town is still baked in ovens that burn wood.",
)
LOOPS = (
    ("Once upon a time there was a fox.", " He ran over the hill and back again.", 5),
    ("My grandmother kept a list of songs:", " one for sorrow, two for joy,", 6),
    ("The report was short and said:", " nothing has changed since then.", 6),
)


@dataclass(frozen=True)
class Real:
    """A pretrained model in mechrep and, apart from it, in plain transformers.

    Attributes:
        name: folder.
        path: of the folder.
        model: in mechrep.
        plain: see :mod:`tests.real.by_hand`.
        bos: id of BOS.
        sink: a sink layer and neurons of it that write there.
        heads: some heads that copy.
    """

    name: str
    path: Path
    model: Any
    plain: Any
    bos: int
    sink: tuple[int, tuple[int, ...]]
    heads: tuple[tuple[int, int], ...]

    def prose(self, bos: bool = True, length: int = 16) -> list[list[int]]:
        """Texts of one length, as ids, with BOS or without."""
        encode = self.model.tokenizer
        rows = [encode(text, add_special_tokens=False)["input_ids"][:length] for text in PROSE]
        return [[*([self.bos] if bos else []), *row] for row in rows]

    def loops(self) -> list[tuple[list[int], int, int]]:
        """Ids of looping texts, the start of the first copy and of the second."""
        made = []
        for before, cycle, copies in LOOPS:
            first, again = (
                self.model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, cycle)
            )
            start = 1 + len(first)
            made.append(([self.bos, *first, *again * copies], start, start + len(again)))
        return made


KNOWN: dict[str, dict[str, Any]] = {
    SMALL: {"bos": 1, "sink": (11, (1229, 1487)), "heads": ((17, 3), (18, 6), (23, 2))},
    LARGE: {"bos": 2, "sink": (0, (1405, 12)), "heads": ((5, 1), (11, 2), (5, 2))},
}


@pytest.fixture(scope="session", params=[SMALL, pytest.param(LARGE, marks=pytest.mark.slow)])
def real(request: pytest.FixtureRequest) -> Iterator[Real]:
    """One of the two models."""
    import mechrep
    from tests.real.by_hand import Plain

    path = FOLDER / request.param
    if not (path / "config.json").is_file():
        pytest.skip(f"{request.param} is not there: make real-models, or set MECHREP_REAL_MODELS to its folder")
    yield Real(request.param, path, mechrep.load_model(str(path)), Plain(path), **KNOWN[request.param])
