"""The corpus: what it refuses, what it keeps through selection and joining, what it computes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechrep.errors import InputError, NothingFoundError
from mechrep.text import Corpus, detect_cycle


@dataclass(frozen=True)
class LetterModel:
    """A stand-in whose tokens are letters; id 0 is BOS."""

    d_vocab: int = 27
    n_ctx: int = 40
    name: str = "letters"
    tokenizer_fingerprint: str | None = "letters-v1"
    bos_id: int | None = 0
    default_prepend_bos: bool = True

    @property
    def anatomy(self) -> SimpleNamespace:
        return SimpleNamespace(d_vocab=self.d_vocab, n_ctx=self.n_ctx)

    def encode(self, text: str, prepend_bos: bool) -> list[int]:
        return [0] * prepend_bos + [ord(letter) - 96 for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join("<bos>" if i == 0 else chr(i + 96) for i in ids)


MODEL = LetterModel()
rows_of_ids = st.lists(st.lists(st.integers(0, 26), min_size=1, max_size=12), min_size=1, max_size=6)


def corpus_of(n: int) -> Corpus:
    rows = [[0, *range(1, 2 + i % 5)] for i in range(n)]
    frame = pd.DataFrame({"condition": ["natural", "icl"] * (n // 2) + ["natural"] * (n % 2), "period": range(n)})
    return Corpus.from_tokens(rows, model=MODEL, source="demo", frame=frame, bos_policy="prepended")


def rows(corpus: Corpus) -> list[list[int]]:
    return [corpus.row(i) for i in range(len(corpus))]


# --- making one ------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(rows_of_ids)
def test_rows_come_back_as_they_went_in(ids: list[list[int]]) -> None:
    corpus = Corpus.from_tokens(ids, pad_id=26, attention_mask=True)
    assert rows(corpus) == ids
    assert corpus.lengths.tolist() == [len(row) for row in ids]
    assert corpus.tokens.shape == (len(ids), max(map(len, ids)))
    padding = torch.arange(corpus.tokens.shape[1]) >= corpus.lengths[:, None]
    assert (corpus.tokens[padding] == 26).all()


@pytest.mark.parametrize("make", [np.array, torch.tensor, lambda x: [np.array(row) for row in x]])
def test_ids_in_any_kind_of_array(make) -> None:
    assert rows(Corpus.from_tokens(make([[1, 2], [3, 4]]))) == [[1, 2], [3, 4]]


def test_from_texts_takes_the_bos_that_the_model_is_used_to() -> None:
    with_bos = Corpus.from_texts(["ab", "c"], model=MODEL)
    assert rows(with_bos) == [[0, 1, 2], [0, 3]]
    assert (with_bos.bos_policy, with_bos.bos_id, with_bos.tokenizer, with_bos.model_name, with_bos.d_vocab) == (
        "prepended",
        0,
        "letters-v1",
        "letters",
        27,
    )
    without = Corpus.from_texts(["ab", "c"], model=MODEL, prepend_bos=False)
    assert (rows(without), without.bos_policy) == ([[1, 2], [3]], "absent")
    assert rows(Corpus.from_texts(["ab"], model=replace(MODEL, default_prepend_bos=False))) == [[1, 2]]
    assert with_bos.decode(0, MODEL) == "<bos>ab"


def test_the_frame_has_every_standard_column_in_its_type() -> None:
    frame = Corpus.from_tokens([[1], [2]], source="demo").frame
    assert frame["id"].tolist() == ["demo-0", "demo-1"]
    kinds = {name: str(frame[name].dtype) for name in ("prompt_length", "start", "onset", "period", "copies")}
    assert kinds == {
        "prompt_length": "int64",
        "start": "Int64",
        "onset": "Int64",
        "period": "Int64",
        "copies": "float64",
    }
    assert frame["onset"].isna().all()


def test_own_columns_are_kept_and_the_users_frame_is_not_touched() -> None:
    given_frame = pd.DataFrame({"topic": ["x", "y"], "onset": [3, None]}, index=[7, 9])
    corpus = Corpus.from_tokens([[1], [2]], frame=given_frame)
    assert corpus.frame["topic"].tolist() == ["x", "y"]
    assert corpus.frame.index.tolist() == [0, 1]
    assert corpus.frame["onset"].tolist() == [3, pd.NA]
    assert given_frame.columns.tolist() == ["topic", "onset"]


@pytest.mark.parametrize(
    ("ids", "options", "part"),
    [
        ([], {}, "empty list of texts"),
        ([[1], []], {}, "text 1 has no tokens"),
        ([[1], [2, -3]], {}, "id -3 in text 1 at position 1"),
        ([[1], [2, 27]], {"model": MODEL}, "id 27 in text 1 at position 1"),
        ([np.array([1.0])], {}, "text 0 holds 1.0 at position 0"),
        ([[1], [1] * 41], {"model": MODEL}, "text 1 has 41 tokens"),
        ([[1], [2]], {"frame": pd.DataFrame({"id": ["a", "a"]})}, "'a' twice"),
        ([[1], [2]], {"frame": pd.DataFrame({"id": ["a", None]})}, "no id in row 1"),
        ([[1], [2]], {"frame": pd.DataFrame({"id": ["a"]})}, "1 rows of a frame for 2 texts"),
        ([[1]], {"frame": pd.DataFrame({"tokens": [1]})}, "tokens"),
        ([[1]], {"frame": pd.DataFrame({0: [1]})}, "columns named [0]"),
        ([[1]], {"frame": pd.DataFrame({"onset": ["soon"]})}, "column 'onset'"),
        ([[1]], {"frame": pd.DataFrame({"prompt_length": [2]})}, "prompt_length 2 for the 1 tokens of text 0"),
        ([[1]], {"bos_policy": "maybe"}, "maybe"),
        ([[0, 1], [1]], {"model": MODEL, "bos_policy": "prepended"}, "text 1 begins with id 1"),
    ],
)
def test_what_cannot_be_a_corpus_is_refused(ids: list, options: dict, part: str) -> None:
    with pytest.raises(InputError) as caught:
        Corpus.from_tokens(ids, **options)
    assert part in caught.value.given


@pytest.mark.parametrize(
    ("texts", "model", "options", "part"),
    [
        ([], MODEL, {}, "empty list"),
        (["a", ""], MODEL, {}, "text 1 is empty"),
        ("abc", MODEL, {}, "one string"),
        (["a" * 40], MODEL, {}, "text 0 has 41 tokens"),
        (["a"], replace(MODEL, tokenizer_fingerprint=None), {}, "no tokenizer"),
        (["a"], replace(MODEL, bos_id=None), {"prepend_bos": True}, "prepend_bos"),
    ],
)
def test_texts_that_cannot_be_a_corpus_are_refused(texts, model: LetterModel, options: dict, part: str) -> None:
    with pytest.raises(InputError) as caught:
        Corpus.from_texts(texts, model=model, **options)
    assert part in caught.value.given


def test_tensors_that_contradict_each_other_are_refused() -> None:
    tokens, frame = torch.zeros(2, 3, dtype=torch.int64), pd.DataFrame(index=range(2))
    for lengths in ([3, 4], [0, 3]):
        with pytest.raises(InputError, match="from_tokens"):
            Corpus(tokens, torch.tensor(lengths), frame)


# --- choosing, splitting, joining ------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(rows_of_ids, st.data())
def test_selection_is_selection_of_a_list(ids: list[list[int]], data: st.DataObject) -> None:
    corpus = Corpus.from_tokens(ids)
    numbers = data.draw(st.lists(st.sampled_from(range(len(ids))), min_size=1, unique=True))
    chosen = corpus.select(numbers)
    assert rows(chosen) == [ids[i] for i in numbers]
    assert chosen.frame["id"].tolist() == [f"tokens-{i}" for i in numbers]
    assert chosen.tokens.shape[1] == max(len(ids[i]) for i in numbers)
    mask = [i in numbers for i in range(len(ids))]
    for same in (mask, np.array(mask), torch.tensor(mask), pd.Series(mask, dtype="boolean")):
        assert rows(corpus.select(same)) == [ids[i] for i in sorted(numbers)]


def test_missing_values_in_a_mask_count_as_false() -> None:
    corpus = Corpus.from_tokens([[1], [2], [3]], frame=pd.DataFrame({"period": [50, None, 3]}))
    assert rows(corpus.select(corpus.frame["period"] > 45)) == [[1]]


def test_selections_that_fail() -> None:
    corpus = corpus_of(3)
    for numbers in ([3], [-1]):
        with pytest.raises(InputError, match="from 0 to 2"):
            corpus.select(numbers)
    with pytest.raises(InputError, match="mask"):
        corpus.select([True, False])
    with pytest.raises(InputError, match="twice"):
        corpus.select([1, 1])
    for nothing in ([], [False] * 3):
        with pytest.raises(NothingFoundError):
            corpus.select(nothing)


def test_where_asks_the_frame() -> None:
    corpus = corpus_of(6)
    assert corpus.where(condition="icl").frame["period"].tolist() == [1, 3, 5]
    assert corpus.where(condition="icl", period=[3, 4, 5]).frame["period"].tolist() == [3, 5]
    partly = corpus.with_columns(period=[None, 1, None, 3, 4, 5])
    assert rows(partly.where(period=None)) == rows(corpus.select([0, 2]))
    assert rows(partly.where(period=[None, 4])) == rows(corpus.select([0, 2, 4]))
    with pytest.raises(NothingFoundError):
        corpus.where(condition="icl", period=2)
    with pytest.raises(InputError, match="conditoin"):
        corpus.where(conditoin="icl")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_split_is_disjoint_complete_and_repeatable(share: float) -> None:
    corpus = corpus_of(10)
    first, second = corpus.split(share, seed=3)
    assert len(first) == round(10 * share)
    both = first.frame["id"].tolist() + second.frame["id"].tolist()
    assert sorted(both) == sorted(corpus.frame["id"])
    again, _ = corpus.split(share, seed=3)
    assert again.fingerprint() == first.fingerprint()
    assert any(corpus.split(share, seed=s)[0].fingerprint() != first.fingerprint() for s in range(4, 8))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.99, 1.0, 1.5, -1.0])
def test_a_split_with_an_empty_side_is_refused(share: float) -> None:
    with pytest.raises(InputError, match=r"both sides|from 0 to 1"):
        corpus_of(10).split(share)


def test_parts_join_to_the_whole() -> None:
    corpus = corpus_of(7)
    joined = Corpus.concatenate(corpus.select([0, 1]), corpus.select(range(2, 7)))
    assert joined.fingerprint() == corpus.fingerprint()
    pd.testing.assert_frame_equal(joined.frame, corpus.frame)
    assert (joined.bos_policy, joined.model_name) == ("prepended", "letters")


def test_joining_keeps_what_is_true_of_all_and_refuses_what_does_not_mix() -> None:
    one = Corpus.from_texts(["ab"], model=MODEL, source="one")
    bigger = replace(MODEL, name="more letters", d_vocab=30)
    two = Corpus.from_tokens([[0, 29]], model=bigger, source="two")
    joined = Corpus.concatenate(one, two)
    assert (joined.model_name, joined.bos_policy, joined.d_vocab) == (None, "as given", 30)
    with pytest.raises(InputError, match="tokenizer"):
        Corpus.concatenate(one, replace(two, tokenizer="other"))
    with pytest.raises(InputError, match="BOS"):
        Corpus.concatenate(one, replace(two, bos_policy="absent"))
    with pytest.raises(InputError, match="twice"):
        Corpus.concatenate(one, one)
    with pytest.raises(InputError, match="at least one"):
        Corpus.concatenate()


def test_columns_are_added_to_a_copy() -> None:
    corpus = corpus_of(2)
    changed = corpus.with_columns(condition="natural", score=torch.tensor([0.5, 1.5]))
    assert changed.frame["condition"].tolist() == ["natural"] * 2
    assert changed.frame["score"].tolist() == [0.5, 1.5]
    assert corpus.frame["condition"].tolist() == ["natural", "icl"]
    with pytest.raises(InputError, match="score"):
        corpus.with_columns(score=[1, 2, 3])
    with pytest.raises(InputError, match="tokens"):
        corpus.with_columns(tokens=1)


# --- cycles and models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["mechrep", "hiraoka2025", "mahaut2025", "holtzman2020"])
def test_with_cycles_is_detect_cycle_row_by_row(preset: str) -> None:
    texts = [[0, 5, *[1, 2, 3] * 9], [0, *range(1, 20)], [0, 4, 4, *[7] * 20, 26, 26], [0, 9, *[0] * 30]]
    prompts = [2, 1, 3, 2]
    corpus = Corpus.from_tokens(texts, model=MODEL, frame=pd.DataFrame({"prompt_length": prompts}))
    found = corpus.with_cycles(preset, eos_id=26).frame
    for i, text in enumerate(texts):
        cycle = detect_cycle(text, preset, prompt_length=prompts[i], eos_id=26, special_ids=[0, 26])
        if cycle is None:
            assert found.loc[i, ["start", "onset", "period", "copies"]].isna().all()
        else:
            expected = [cycle.start, cycle.onset, cycle.period, cycle.copies]
            assert found.loc[i, ["start", "onset", "period", "copies"]].tolist() == expected
    assert set(found["detector"]) == {preset}


def test_a_second_detector_replaces_the_first() -> None:
    corpus = Corpus.from_tokens([[1, 2, 3] * 3]).with_cycles()
    assert corpus.frame["period"].tolist() == [3]
    assert corpus.with_cycles("hiraoka2025").frame["period"].isna().all()


def test_a_corpus_meets_only_models_of_its_tokenizer() -> None:
    corpus = Corpus.from_texts(["abc"], model=MODEL)
    corpus.check_model(MODEL)
    # Models of one family pad their embeddings to different sizes; the ids are the same.
    corpus.check_model(replace(MODEL, d_vocab=64))
    for other, part in [
        (replace(MODEL, tokenizer_fingerprint="other"), "tokenizer"),
        (replace(MODEL, tokenizer_fingerprint=None, d_vocab=64), "d_vocab"),
        (replace(MODEL, d_vocab=3), "id 3 in text 0 at position 3"),
        (replace(MODEL, n_ctx=3), "n_ctx"),
    ]:
        with pytest.raises(InputError, match=part):
            corpus.check_model(other)
    with pytest.raises(InputError, match="decode"):
        corpus.decode(0, replace(MODEL, tokenizer_fingerprint="other"))


def test_the_fingerprint_is_of_texts_and_names_and_of_nothing_else() -> None:
    corpus = corpus_of(4)
    same = replace(corpus, tokens=torch.nn.functional.pad(corpus.tokens, (0, 3), value=9)).with_columns(condition="x")
    assert same.fingerprint() == corpus.fingerprint()
    ids = rows(corpus)
    ids[2][1] += 1
    others = [
        Corpus.from_tokens(ids, source="demo"),
        Corpus.from_tokens(rows(corpus), source="other"),
        corpus.select([1, 0, 2, 3]),
        Corpus.from_tokens([[1, 2], [3]], source="demo"),
        Corpus.from_tokens([[1], [2, 3]], source="demo"),
    ]
    assert len({corpus.fingerprint(), *(other.fingerprint() for other in others)}) == 6


# --- in a notebook ---------------------------------------------------------------------------------------------


def test_html_is_escaped_and_cut_short() -> None:
    evil = "<script>alert('x')</script>"
    frame = pd.DataFrame({"id": [f"{evil}{i}" for i in range(50)], evil: "long" * 1000})
    corpus = Corpus.from_tokens([[1]] * 50, frame=frame, model=replace(MODEL, name=evil, tokenizer_fingerprint=evil))
    shown = corpus._repr_html_()
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown
    assert "45 more rows" in shown
    assert len(shown) < 6000
    assert "50 texts of 1 tokens" in repr(corpus)


def test_tensors_of_different_lengths_are_texts_too() -> None:
    corpus = Corpus.from_tokens([torch.tensor([1, 2, 3]), torch.tensor([4])])
    assert [corpus.row(i) for i in range(2)] == [[1, 2, 3], [4]]
