"""What people pass where a corpus belongs, and texts that are missing: taken, or told by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import mechrep
from mechrep.errors import InputError
from mechrep.models.model import Model
from mechrep.text import Corpus
from tests.unchecked import as_users_call


@pytest.fixture(scope="module")
def model() -> Model:
    return mechrep.load_model("mechrep-tiny")


TEXTS = ["the sea", "the king said"]
generate = as_users_call(mechrep.generate)  # as users call it: without the type checker of the tests
of = as_users_call(Corpus.of.__func__)
from_texts = as_users_call(Corpus.from_texts.__func__)
from_tokens = as_users_call(Corpus.from_tokens.__func__)


def rows(corpus: Corpus) -> list[list[int]]:
    return [corpus.row(i) for i in range(len(corpus))]


@pytest.mark.parametrize(
    "make",
    [
        list,
        tuple,
        iter,
        pd.Series,
        lambda texts: pd.Series(texts, index=[7, 3], dtype="string"),
        np.array,
        lambda texts: np.array(texts, dtype=object),
        lambda texts: (text for text in texts),
        lambda texts: dict.fromkeys(texts).keys(),
    ],
)
def test_texts_in_any_kind_of_collection(make: Callable, model: Model) -> None:
    want = rows(Corpus.from_texts(TEXTS, model=model))
    assert rows(from_texts(Corpus, make(TEXTS), model=model)) == want
    assert rows(of(Corpus, make(TEXTS), model)) == want


def test_ids_in_any_kind_of_collection(model: Model) -> None:
    want = [[0, 86, 260], [0, 70, 5]]
    for given in (want, torch.tensor(want), np.array(want), [np.array(row) for row in want], iter(want)):
        assert rows(of(Corpus, given, model)) == want
    for one in (want[0], torch.tensor(want[0]), np.array(want[0]), (n for n in want[0]), pd.Series(want[0])):
        assert rows(of(Corpus, one, model)) == want[:1]
    corpus = Corpus.from_texts(TEXTS, model=model)
    assert of(Corpus, corpus, model) is corpus


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (pd.Series(["the sea", None, "the king"], dtype=object), "text 1 is missing"),
        (pd.Series(["the sea", float("nan")], dtype=object), "text 1 is missing"),
        (pd.Series(["the sea", pd.NA], dtype="string"), "text 1 is missing"),
        (pd.Series([pd.NaT, "the sea"], dtype=object), "text 0 is missing"),
        (["the sea", 7], "text 1 is 7, a int"),
        (["the sea", b"the king"], "text 1 is b'the king', a bytes"),
        (["the sea", ["the king"]], "text 1 is ['the king'], a list"),
        (["the sea", ""], "text 1 is empty"),
        (iter([]), "empty list"),
    ],
)
def test_what_is_no_text_is_named_by_its_number(texts: Any, said: str, model: Model) -> None:
    with pytest.raises(InputError) as caught:
        from_texts(Corpus, texts, model=model)
    assert said in caught.value.given


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "None"),
        (7, "a int"),
        (b"the sea", "a bytes"),
        ({"the sea", "the king"}, "a set"),
        ({"text": ["the sea"]}, "a dict"),
        (pd.DataFrame({"text": TEXTS}), "table"),
        ([{"role": "user", "content": "say moon"}], "messages"),
        ([1.5, 2.5], "text 0 is 1.5"),
        (torch.zeros(1, 2, 3, dtype=torch.long), "3 dimensions"),
        (torch.tensor([[0.5, 1.5]]), "0.5"),
        ([], "empty list"),
    ],
)
def test_what_is_no_corpus_is_told_wherever_one_belongs(given: Any, said: str, model: Model) -> None:
    for call in (
        lambda: generate(model, given, max_new_tokens=2),
        lambda: (
            mechrep.CorpusCache.__wrapped__(model, given)
            if hasattr(mechrep.CorpusCache, "__wrapped__")
            else of(Corpus, given, model)
        ),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert said in caught.value.given


def test_generate_and_the_cache_take_what_a_corpus_is_made_of(model: Model) -> None:
    corpus = Corpus.from_texts(["the sea"], model=model)
    want = rows(generate(model, corpus, max_new_tokens=3))
    for given in ("the sea", ["the sea"], corpus.tokens, corpus.row(0), {"input_ids": corpus.tokens}):
        assert rows(generate(model, given, max_new_tokens=3)) == want
        assert rows(mechrep.CorpusCache(model, given).corpus) == rows(corpus)


@pytest.mark.parametrize("ids", [None, "the sea", 5])
def test_ids_that_are_none_are_refused(ids: Any) -> None:
    with pytest.raises(InputError):
        from_tokens(Corpus, ids)


# --- how texts are continued, field by field ------------------------------------------------------------------------


def test_fields_of_decoding_are_options_of_generate(model: Model) -> None:
    for fields in (
        {"temperature": 1.0, "seed": 3, "top_k": 9},
        {"stop_when": None},
        {"suppress": [5]},
        {"view": "plain"},
        {},
    ):
        one = generate(model, "the sea", max_new_tokens=9, **fields)
        other = generate(model, "the sea", max_new_tokens=9, decoding=mechrep.Decoding(**fields))
        assert rows(one) == rows(other)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"temprature": 1.0}, "did you mean 'temperature'"),
        ({"do_sample": True}, "do_sample=True"),
        ({"max_length": 20}, "max_length=20"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"decoding": mechrep.Decoding(), "seed": 1}, "decoding= and seed"),
    ],
)
def test_fields_that_do_not_exist_or_contradict_are_refused(fields: dict[str, Any], said: str, model: Model) -> None:
    with pytest.raises(InputError, match=said):
        generate(model, "the sea", max_new_tokens=2, **fields)


def test_analyses_take_texts_too(model: Model) -> None:
    from mechrep.generation.written import write_texts
    from mechrep.measures.attention_sinks import first_position_attention
    from mechrep.measures.first_token import corpus_of
    from mechrep.studies.find_sink import ordinary_texts

    corpus = Corpus.from_texts(TEXTS, model=model)
    for given in (TEXTS, corpus.row(0), iter(TEXTS)):
        assert ordinary_texts(model, given).row(0) == corpus.row(0)
        assert corpus_of(model, corpus) is corpus
    one, other = (write_texts(model, given, max_new_tokens=4) for given in (TEXTS, corpus))
    assert rows(one.written) == rows(other.written)
    seen = first_position_attention(model, TEXTS)
    assert seen.shape == first_position_attention(model, corpus).shape


def test_a_study_says_what_corpus_it_needs(model: Model) -> None:
    from mechrep.ablation.texts import find_and_test

    for given in (TEXTS, Corpus.from_texts(TEXTS, model=model)):
        with pytest.raises(InputError, match="split"):
            as_users_call(find_and_test)(given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_of_floats_are_no_ids(dtype: torch.dtype, model: Model) -> None:
    with pytest.raises(InputError, match=r"1\.0 at position 0"):
        Corpus.from_tokens(torch.ones(2, 3, dtype=dtype), model=model)
