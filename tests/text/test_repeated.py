"""Repeats are pure, come from ids, and a word that is two tokens is refused with both of them named."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from mechrep.errors import InputError
from mechrep.models.load import load_model
from mechrep.text.stimuli import RepeatedToken, repeated_token, repeated_tokens, single_token_id
from mechrep.text.windows import windows_of_text
from tests.tiny_models import N_CTX, tiny, tiny_tokenizer


class Stand:
    """A stand-in for a model: ids of the words of a text, by a table; the first word may have one of its own."""

    def __init__(self, first: dict[str, list[int]], later: dict[str, list[int]], bos_id: int | None = 0) -> None:
        self.first, self.later, self.bos_id = first, later, bos_id
        self.anatomy = SimpleNamespace(d_vocab=100, n_ctx=64)
        self.name, self.tokenizer_fingerprint, self.default_prepend_bos = "stand", "table", True

    def encode(self, text: str, prepend_bos: bool) -> list[int]:
        """Ids without merges over blanks."""
        words = text.split(" ")
        start = [] if words[0] == "" else self.first[words[0]]
        return [*start, *(one for word in words[1:] for one in self.later[word])]

    def decode(self, ids: list[int]) -> str:
        """Never asked for."""
        raise AssertionError


def bpe() -> Any:
    """Byte-level BPE: ``the`` is 5 at the start and 6 with its blank; ``of`` is two tokens after a blank."""
    return Stand({"the": [5], "anti": [8, 9], "of": [7]}, {"the": [6], "anti": [10], "of": [3, 7]})


def sentence_piece() -> Any:
    """SentencePiece: a word is itself wherever it stands."""
    return Stand({"the": [5], "anti": [8, 9]}, {"the": [5], "anti": [8, 9]})


@settings(max_examples=15)
@given(token=st.integers(0, 99), n=st.integers(1, 63), bos=st.booleans())
def test_a_repeat_is_bos_and_n_copies(token: int, n: int, bos: bool) -> None:
    value = repeated_token(token, n, bos)
    assert value.ids(bos_id=42) == [42] * bos + [token] * n
    corpus = value.corpus(sentence_piece())
    assert corpus.row(0) == [0] * bos + [token] * n and len(corpus) == 1
    assert corpus.bos_policy == ("prepended" if bos else "absent")


def test_bos_comes_first_unless_it_is_declined() -> None:
    assert repeated_token(7, 2) == RepeatedToken(7, 2, True)
    no_bos = Stand({}, {}, bos_id=None)
    with pytest.raises(InputError, match="pass bos=False"):
        repeated_tokens(no_bos, [7], 3)
    assert repeated_tokens(no_bos, [7], 3, bos=False).row(0) == [7, 7, 7]


def test_many_tokens_are_rows_with_their_facts() -> None:
    corpus = repeated_tokens(sentence_piece(), [30, "the", 4], 6)
    assert [corpus.row(i) for i in range(3)] == [[0, *[token] * 6] for token in (30, 5, 4)]
    assert corpus.frame["token_id"].tolist() == [30, 5, 4]
    assert set(corpus.frame["repeats"]) == {6} and set(corpus.frame["bos"]) == {True}


@pytest.mark.parametrize(
    ("tokens", "n", "match"),
    [
        ([7, 8, 7], 3, "with 7 twice"),
        (["the", 5], 3, "with 5 twice"),
        ([100], 3, "id 100 in text 0"),
        ([-1], 3, "token_id=-1"),
        ([7], 0, "n=0"),
        ([7], 64, "65 tokens"),  # n_ctx is 64, and BOS counts
        ([], 3, "empty list"),
    ],
)
def test_what_is_no_repeat_is_refused(tokens: list[int | str], n: int, match: str) -> None:
    with pytest.raises(InputError, match=match):
        repeated_tokens(sentence_piece(), tokens, n)


def test_a_word_of_several_tokens_is_refused_with_its_tokens() -> None:
    for model in (bpe(), sentence_piece()):
        with pytest.raises(InputError, match=r"'anti', which is the tokens \[8, 9\]"):
            single_token_id(model, "anti")


def test_the_other_token_of_a_word_after_a_blank_is_detected() -> None:
    assert single_token_id(sentence_piece(), "the") == 5
    with pytest.raises(InputError, match=r"'the', which is token 5 at the start of a text and \[6, 6\]") as error:
        single_token_id(bpe(), "the")
    assert "' the'" in error.value.remedy
    assert single_token_id(bpe(), " the") == 6, "with its blank a word is not ambiguous"
    with pytest.raises(InputError, match="at the start"):
        single_token_id(bpe(), "of")


def test_real_tokenizers(tmp_path: Path, shared: Path) -> None:
    tiny_model = load_model("mechrep-tiny")  # byte-level BPE
    (token,) = tiny_model.encode(" the", prepend_bos=False)
    assert repeated_tokens(tiny_model, [" the"], 4).row(0) == [tiny_model.bos_id, *[token] * 4]
    with pytest.raises(InputError):
        repeated_tokens(tiny_model, ["the"], 4)
    pieces = transformers.AutoTokenizer.from_pretrained(shared / "models" / "stories260K")
    ids = pieces("the the the", add_special_tokens=False)["input_ids"]
    stand = Stand({}, {})
    stand.encode = lambda text, prepend_bos: pieces(text, add_special_tokens=False)["input_ids"]  # pyright: ignore
    assert len(set(ids)) == 1 and single_token_id(stand, "the") == ids[0]
    words = load_model(tiny("llama"), tokenizer=tiny_tokenizer(tmp_path))
    assert repeated_tokens(words, ["w9"], 5, bos=False).row(0) == [9] * 5


def test_windows_begin_with_bos_by_habit_and_cut_the_text_in_order(tmp_path: Path) -> None:
    model = load_model(tiny("llama"), tokenizer=tiny_tokenizer(tmp_path))
    ids = [3 + i % 58 for i in range(200)]
    text = " ".join(f"w{i}" for i in ids)
    windows = windows_of_text(model, text, length=33, limit=5)
    assert (len(windows), windows.bos_policy) == (5, "prepended") and set(windows.lengths.tolist()) == {33}
    places = []
    for row in map(windows.row, range(5)):
        assert row[0] == 0
        (place,) = [s for s in range(0, 169, 16) if ids[s : s + 32] == row[1:]]
        places.append(place)
    assert places == sorted(set(places)) and places[0] == 0 and places[-1] == 160
    model.tl.cfg.default_prepend_bos = False
    bare = windows_of_text(model, text, length=33)
    assert bare.bos_policy == "absent" and bare.row(0) == ids[:33]
    for bad in ({"length": 3}, {"limit": 0}, {"length": N_CTX + 1000}):
        with pytest.raises(InputError):
            windows_of_text(model, text, **bad)
