"""The package speaks in the field's words: private ones come back neither in source, nor in docs, nor in notebooks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OF_THEM = r"(?:the )?(?:(?:same|found|top|first|other|random|one|two|three|four|\d+) ){0,2}"
COMPONENT = rf"{OF_THEM}(?:heads?|neurons?|MLPs?|components?)\b"
CUT = rf"\bcut(?:s|ting)?\s+(?:off\s+|out\s+)?{COMPONENT}|{COMPONENT}\s+(?:is|are|was|were)\s+cut\b"
PRIVATE = {
    "zero ablation or ablated": CUT,
    "baseline, or the unchanged model": r"\buntouched\b",
    "expensive": r"\b(?:too|very|as|so)\s+dear\b|\bdearer\b|\bdearest\b",
    "null models": r"\bnull cop(?:y|ies)\b",
}
SAID = (
    ("ablated", "the top neurons are cut"),
    ("ablated", "after cutting the same three heads"),
    ("unchanged", "the untouched model"),
    ("null models", "among 19 null copies"),
)


def sources() -> Iterator[Path]:
    for folder, suffixes in (("mechrep", (".py", ".md", ".j2")), ("docs", (".md",)), ("notebooks", (".py",))):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in suffixes and "_build" not in path.parts and path.name != "glossary.md":
                yield path
    yield from (ROOT / "README.md", ROOT / "CONTRIBUTING.md")


def private_words(text: str) -> list[str]:
    flat = re.sub(r"\s*\n\s*(?:#\s+|\*\s+)?", " ", text)
    return [
        f"{match.group()!r}: say {better}"
        for better, pattern in PRIVATE.items()
        for match in re.finditer(pattern, flat, re.IGNORECASE)
    ]


def test_private_words_do_not_come_back() -> None:
    if not (ROOT / "docs").is_dir():
        pytest.skip("needs a checkout with docs/")
    paths = list(sources())
    assert len(paths) > 100
    said = {str(path.relative_to(ROOT)): found for path in paths if (found := private_words(path.read_text("utf-8")))}
    assert not said


@pytest.mark.parametrize(("better", "text"), SAID)
def test_they_would_be_seen(better: str, text: str) -> None:
    assert any(better in found for found in private_words(text))


@pytest.mark.parametrize(
    "text", ["every looping text is cut at its onset", "cut the run after ten tokens", "dear reader"]
)
def test_plain_words_are_spared(text: str) -> None:
    assert not private_words(text)


def test_the_glossary_has_each_word_of_the_table_once() -> None:
    rows = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs" / "glossary.md").read_text("utf-8"), re.MULTILINE)
    words = [row.strip() for row in rows if row.strip() not in ("word", "---")]
    assert len(set(words)) == len(words) and sorted(words, key=str.lower) == words
    for word in ("effect", "measure", "condition", "unit", "family of tests", "control draw", "null model", "q"):
        assert word in words
