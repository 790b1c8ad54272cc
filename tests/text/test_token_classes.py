"""Classes of tokens: on the word and not on the piece, in English and Japanese, through two kinds of tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mechrep
from mechrep.errors import InputError
from mechrep.text.token_classes import CLASSES, character_classes, classes_of_tokens, token_classes, token_spans
from tests.tiny_models import tiny


def of(text: str) -> dict[str, str]:
    """Class of each maximal run of characters of one class, without blanks."""
    runs: list[list[str]] = []
    for character, name in zip(text, character_classes(text), strict=True):
        if runs and runs[-1][1] == name:
            runs[-1][0] += character
        else:
            runs.append([character, name])
    return {part.strip() or part: name for part, name in runs if part != " "}


def bytes_decoder(text: str) -> tuple[list[int], Callable[[Sequence[int]], str]]:
    """A tokenizer of single bytes: most Japanese characters are three tokens."""
    return list(text.encode()), lambda ids: bytes(ids).decode(errors="replace")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the sea", ["function_word", "content_word"]),
        ("thousand", ["content_word"]),
        ("don't won't I'll", ["function_word"] * 3),
        ("Ahab's", ["content_word"]),
        ("3,000.5 4", ["number", "number"]),
        ("3rd B2", ["content_word", "content_word"]),
        ("! ? … 。", ["sentence_end"] * 4),
        (", ; — “", ["punctuation"] * 4),
        ("( 「 ] }", ["bracket"] * 4),
        ("+ $ ~", ["other"] * 3),
    ],
)
def test_words_and_signs(text: str, expected: list[str]) -> None:
    classes = character_classes(text)
    found = [
        name for place, name in enumerate(classes) if text[place] != " " and (place == 0 or text[place - 1] == " ")
    ]
    assert found == expected


def test_every_character_of_a_word_has_the_class_of_the_word() -> None:
    assert of("3,000") == {"3,000": "number"}
    assert of("isn’t") == {"isn’t": "function_word"}
    assert of("3月") == {"3": "number", "月": "content_word"}


@pytest.mark.parametrize(
    ("text", "content", "function"),
    [
        ("私は猫である", "私猫", "はである"),
        ("食べました", "食べ", "ました"),
        ("コーヒーを", "コーヒー", "を"),
        ("東京から", "東京", "から"),
        ("美しい", "美しい", ""),
    ],
)
def test_japanese(text: str, content: str, function: str) -> None:
    classes = character_classes(text)
    assert "".join(c for c, name in zip(text, classes, strict=True) if name == "content_word") == content
    assert "".join(c for c, name in zip(text, classes, strict=True) if name == "function_word") == function


def test_a_piece_alone_says_something_else_than_its_word() -> None:
    pieces = ["thous", "and", " in", "side", " 3", ",", "000", ",", " or", "ange"]
    ids = range(len(pieces))

    def decode(chosen: Sequence[int]) -> str:
        return "".join(pieces[i] for i in chosen)

    words, alone = (classes_of_tokens(ids, decode, on=on) for on in ("word", "piece"))
    assert (
        words == ["content_word"] * 2 + ["function_word"] * 2 + ["number"] * 3 + ["punctuation"] + ["content_word"] * 2
    )
    assert alone[1] == "function_word" and alone[5] == "punctuation" and alone[8] == "function_word"


@given(st.text(st.characters(codec="utf-8", exclude_characters="\ufffd"), max_size=40))
def test_spans_of_single_bytes_are_the_characters(text: str) -> None:
    ids, decode = bytes_decoder(text)
    written, spans = token_spans(ids, decode)
    assert written == text
    expected = [(place, place + 1) for place, character in enumerate(text) for _ in character.encode()]
    assert spans == expected


@given(st.lists(st.integers(0, 255), max_size=30))
def test_any_bytes_get_one_class_each(ids: list[int]) -> None:
    names = classes_of_tokens(ids, lambda some: bytes(some).decode(errors="replace"))
    assert len(names) == len(ids) and set(names) <= set(CLASSES)


def test_a_newline_token_and_special_tokens() -> None:
    pieces = ["<s>", "Yes", ".\n", "\n", " ", "</s>", "an", "</s>", "d"]

    def decode(chosen: Sequence[int]) -> str:
        return "".join(pieces[i] for i in chosen)

    names = classes_of_tokens(range(9), decode, {0, 5, 7})
    assert names == [
        "other", "content_word", "sentence_end", "newline", "other", "other", "function_word", "other", "content_word",
    ]  # fmt: skip


def test_the_embedded_tokenizer() -> None:
    model = mechrep.load_model("mechrep-tiny")
    text = "The thousand ships, and then 12 (or 15) more.\nIndeed!"
    corpus = mechrep.Corpus.from_texts([text, "So"], model=model)
    classes = token_classes(corpus, model)
    assert (classes[1, int(corpus.lengths[1]) :] == -1).all()
    assert CLASSES[int(classes[0, 0])] == "other"  # BOS
    # Every word's tokens agree, and the classes met are those of the text.
    ids = corpus.row(0)[1:]
    written, spans = token_spans(ids, model.decode)
    assert written.strip() == text
    place = written.index("thousand")
    inside = [n for n, (a, b) in enumerate(spans) if a < place + 8 and b > place]
    assert {CLASSES[int(classes[0, 1 + n])] for n in inside} == {"content_word"}
    assert set(CLASSES) - {CLASSES[number] for number in classes[0].tolist()} == set()


def test_what_cannot_be_classified() -> None:
    model = mechrep.load_model("mechrep-tiny")
    corpus = mechrep.Corpus.from_texts(["So"], model=model)
    with pytest.raises(InputError, match="on="):
        token_classes(corpus, model, on="letter")
    bare = mechrep.load_model(tiny("llama"))
    with pytest.raises(InputError, match="tokenizer"):
        token_classes(mechrep.Corpus.from_tokens(torch.tensor([[3, 4]])), bare)
