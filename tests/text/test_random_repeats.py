"""``random_repeats``: ids that repeat exactly, drawn from ordinary tokens, and a frame that says where."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechrep.errors import InputError
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.text.corpus import Corpus
from mechrep.text.stimuli import random_repeats
from tests.tiny_models import D_VOCAB, N_CTX, fresh, tiny, tiny_tokenizer
from tests.unchecked import as_users_call

repeats = as_users_call(random_repeats)  # as users call it: without the type checker of the tests


@functools.cache
def model() -> Model:
    return load_model(tiny("llama"))


@settings(max_examples=25)
@given(st.integers(1, 30), st.integers(2, 4), st.integers(1, 4), st.integers(0, 3), st.booleans())
def test_texts_are_one_draw_repeated(n: int, copies: int, sequences: int, seed: int, bos: bool) -> None:
    corpus = random_repeats(model(), n=n, copies=copies, sequences=sequences, seed=seed, bos=bos)
    assert len(corpus) == sequences and corpus.bos_policy == ("prepended" if bos else "absent")
    for i in range(sequences):
        row = corpus.row(i)
        body = row[1:] if bos else row
        assert row[:1] == [0] or not bos
        assert body == body[:n] * copies and len(set(body)) == n  # without replacement
        assert not model().special_ids & set(body)
        facts = corpus.frame.iloc[i]
        assert row[facts["onset"] :] == row[facts["start"] : -n] and facts["start"] == int(bos)
        assert (facts["period"], facts["onset"], facts["copies"]) == (n, int(bos) + n, float(copies))


def test_the_frame_is_what_the_detector_finds() -> None:
    corpus = random_repeats(model(), n=7, copies=3, sequences=5)
    columns = ["start", "onset", "period", "copies"]
    found = corpus.with_columns(**dict.fromkeys(columns)).with_cycles()
    assert found.frame[columns].equals(corpus.frame[columns])


def test_more_texts_are_the_same_texts_and_more_and_seeds_differ() -> None:
    few, many = (random_repeats(model(), n=9, sequences=k, seed=3) for k in (2, 5))
    assert [few.row(i) for i in range(2)] == [many.row(i) for i in range(2)]
    assert len({tuple(many.row(i)) for i in range(5)}) == 5
    other = random_repeats(model(), n=9, sequences=2, seed=4)
    assert other.row(0) != few.row(0)
    assert len(Corpus.concatenate(few, other, random_repeats(model(), n=8, sequences=2, seed=3))) == 6  # no id twice


def test_every_ordinary_token_is_as_likely_as_any_other() -> None:
    corpus = random_repeats(model(), n=20, sequences=600, bos=False)
    drawn = np.bincount(corpus.tokens[:, :20].flatten().numpy(), minlength=D_VOCAB)
    ordinary = sorted(set(range(D_VOCAB)) - model().special_ids)
    assert drawn[list(model().special_ids)].sum() == 0
    expected = 600 * 20 / len(ordinary)
    assert np.abs(drawn[ordinary] - expected).max() < 5 * np.sqrt(expected * (1 - 20 / len(ordinary)))


def test_ids_that_are_no_token_are_never_drawn(tmp_path: Path) -> None:
    """Families pad their embeddings: rows beyond the tokenizer's words were never trained."""
    wide = load_model(fresh("llama", vocab_size=D_VOCAB + 30), tokenizer=tiny_tokenizer(tmp_path))
    corpus = random_repeats(wide, n=D_VOCAB - 3, sequences=1)
    assert sorted(set(corpus.row(0))) == [0, *range(3, D_VOCAB)]  # BOS and all words; neither EOS nor padding
    with pytest.raises(InputError, match=f"at most the {D_VOCAB - 3} ordinary tokens"):
        random_repeats(wide, n=D_VOCAB - 2)


def test_a_model_without_bos_gets_texts_without_it_unless_one_is_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "bos_id", None)
    corpus = random_repeats(model(), n=5, sequences=2)
    assert corpus.bos_policy == "absent" and corpus.tokens.shape == (2, 10) and corpus.frame["start"].tolist() == [0, 0]
    with pytest.raises(InputError, match=r"no BOS.*bos=False"):
        random_repeats(model(), n=5, bos=True)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n": 0}, "n=0"),
        ({"copies": 1}, "copies=1"),
        ({"sequences": 0}, "sequences=0"),
        ({"n": 32, "copies": 4}, rf"129 tokens with BOS.*n_ctx = {N_CTX}"),
        ({"n": 43, "copies": 3, "bos": False}, rf"129 tokens;.*n_ctx = {N_CTX}"),
        ({"n": 60}, "n=60 different ids.*59 ordinary"),
    ],
)
def test_what_cannot_be_made_is_refused(options: dict, match: str) -> None:
    with pytest.raises(InputError, match=match):
        repeats(model(), **options)


def test_a_text_may_fill_the_context() -> None:
    assert random_repeats(model(), n=32, copies=4, sequences=1, bos=False).tokens.shape == (1, N_CTX)
