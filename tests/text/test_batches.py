"""Batches with padding, rows of ``generate``, and texts that bring their own BOS: what is text and what is not."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError
from mechrep.models.anatomy import Site
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.text import Corpus
from mechrep.text.batches import Fillers, without_filling
from mechrep.text.windows import windows_of_text
from tests.tiny_models import loaded


@dataclass(frozen=True)
class Ids:
    """A stand-in that says which ids begin, end and fill texts."""

    bos_id: int | None = 0
    eos_ids: frozenset[int] = frozenset({1})
    pad: int | None = 2
    name: str = "ids"
    tokenizer_fingerprint: str | None = "ids-v1"
    default_prepend_bos: bool = True

    @property
    def anatomy(self) -> Any:
        return SimpleNamespace(d_vocab=61, n_ctx=64)

    @property
    def tokenizer(self) -> Any:
        return SimpleNamespace(pad_token_id=self.pad)

    def encode(self, text: str, prepend_bos: bool) -> list[int]:
        return [0] * prepend_bos + [int(part) for part in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


OWN_PAD = Ids()  # Gemma: each has an id of its own
PAD_IS_EOS = Ids(pad=1)  # Llama, with the pad token that everybody gives it
NO_PAD = Ids(pad=None)  # Llama as it is loaded
ONE_FOR_ALL = Ids(bos_id=0, eos_ids=frozenset({0}), pad=0)  # GPT-2
GPT_NEOX = Ids(bos_id=0, eos_ids=frozenset({0}), pad=None)
PAD_IS_BOS = Ids(pad=0)
KINDS = [OWN_PAD, PAD_IS_EOS, NO_PAD, ONE_FOR_ALL, GPT_NEOX, PAD_IS_BOS]

texts = st.lists(st.lists(st.integers(3, 60), min_size=1, max_size=9), min_size=1, max_size=5)


def rows(corpus: Corpus) -> list[list[int]]:
    return [corpus.row(i) for i in range(len(corpus))]


def padded(given: list[list[int]], side: str, pad: int) -> tuple[list[list[int]], list[list[int]]]:
    """As a tokenizer does it: rows of one length, and their mask."""
    width = max(map(len, given))
    filling = [[pad] * (width - len(row)) for row in given]
    marks = [[0] * len(fill) for fill in filling]
    if side == "left":
        return (
            [fill + row for fill, row in zip(filling, given, strict=True)],
            [mark + [1] * len(row) for mark, row in zip(marks, given, strict=True)],
        )
    return (
        [row + fill for fill, row in zip(filling, given, strict=True)],
        [[1] * len(row) + mark for mark, row in zip(marks, given, strict=True)],
    )


# --- with a mask ---------------------------------------------------------------------------------------------------


@given(texts, st.sampled_from(["left", "right"]), st.sampled_from([0, 1, 2]), st.sampled_from(KINDS))
def test_a_mask_decides_whatever_the_padding_is(given_rows: list, side: str, pad: int, model: Ids) -> None:
    ids, mask = padded(given_rows, side, pad)
    for made in (
        Corpus.from_tokens(ids, attention_mask=mask, model=model),
        Corpus.from_tokens(torch.tensor(ids), attention_mask=torch.tensor(mask), model=model),
        Corpus.from_tokens(np.array(ids), attention_mask=np.array(mask, dtype=bool)),
        Corpus.from_tokens({"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}, model=model),
        Corpus.from_tokens(transformers.BatchEncoding({"input_ids": ids, "attention_mask": mask}), model=model),
        Corpus.of(transformers.BatchEncoding({"input_ids": ids, "attention_mask": mask}), model),
    ):
        assert rows(made) == given_rows
        if any(len(row) < len(ids[0]) for row in given_rows):
            column = made.frame[f"padding_{side}"].tolist()
            assert column == [len(ids[0]) - len(row) for row in given_rows]


def test_one_text_of_a_tokenizer_is_a_batch_of_one() -> None:
    assert rows(Corpus.from_tokens({"input_ids": [5, 6], "attention_mask": [1, 1]})) == [[5, 6]]


@pytest.mark.parametrize(
    ("mask", "part"),
    [
        ([[1, 1, 0, 1], [1, 1, 1, 1]], "hole, at position 2 of text 0"),
        ([[1, 1, 1, 1]], "1 rows of an attention mask for 2 texts"),
        ([[1, 1, 1], [1, 1, 1]], "shape (3,) for the 4 ids of text 0"),
        ([[1, 1, 1, 1], [1, 2, 1, 1]], "text 1"),
        ([[1, 1, 1, 1], [0, 0, 0, 0]], "text 1, which is masked whole"),
        ("left", "4 rows of an attention mask for 2 texts"),
        (3, "0 rows of an attention mask for 2 texts"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask: Any, part: str) -> None:
    with pytest.raises(InputError) as caught:
        Corpus.from_tokens([[5, 6, 7, 8], [5, 6, 7, 8]], attention_mask=mask)
    assert part in caught.value.given


def test_a_batch_with_its_mask_takes_no_second_one() -> None:
    batch = {"input_ids": [[5, 6]], "attention_mask": [[1, 1]]}
    with pytest.raises(InputError, match="two attention masks"):
        Corpus.from_tokens(batch, attention_mask=[[1, 0]])
    with pytest.raises(InputError, match="input_ids"):
        Corpus.from_tokens({"labels": [[5]]})


@given(texts)
def test_true_says_that_every_id_is_text(given_rows: list) -> None:
    odd = [[2, 2, 0, 0, *row, 1, 1, 2] for row in given_rows]
    for model in KINDS:
        assert rows(Corpus.from_tokens(odd, model=model, attention_mask=True)) == odd


# --- without a mask ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_with_an_id_of_its_own_is_left_out_on_both_sides(side: str) -> None:
    given_rows = [[0, 5, 6, 7, 8], [0, 9], [0, 5, 6, 1]]
    ids, _ = padded(given_rows, side, 2)
    with pytest.warns(UserWarning, match="2 of 3 texts"):
        corpus = Corpus.from_tokens(torch.tensor(ids), model=OWN_PAD)
    assert rows(corpus) == given_rows
    assert corpus.frame[f"padding_{side}"].tolist() == [0, 3, 1]


@pytest.mark.parametrize("model", [PAD_IS_EOS, NO_PAD])
def test_eos_in_front_is_padding_where_texts_begin_with_bos(model: Ids) -> None:
    ids, _ = padded([[0, 5, 6, 7, 8], [0, 5, 6, 7], [0, 9]], "left", 1)
    with pytest.warns(UserWarning, match="2 of 3"):
        assert rows(Corpus.from_tokens(ids, model=model)) == [[0, 5, 6, 7, 8], [0, 5, 6, 7], [0, 9]]


@pytest.mark.parametrize("model", [PAD_IS_EOS, NO_PAD])
def test_one_eos_in_front_without_bos_behind_it_may_be_either(model: Ids) -> None:
    with pytest.raises(InputError, match="text 1, which begins with 1 times id 1"):
        Corpus.from_tokens([[5, 6, 7, 8], [1, 5, 6, 7]], model=model)
    # Where padding has an id of its own, a window of a packed corpus begins so.
    assert rows(Corpus.from_tokens([[5, 6, 7, 8], [1, 5, 6, 7]], model=OWN_PAD))[1] == [1, 5, 6, 7]


@pytest.mark.parametrize("model", [ONE_FOR_ALL, GPT_NEOX, PAD_IS_BOS])
def test_where_bos_may_be_padding_several_of_it_in_front_are_refused(model: Ids) -> None:
    assert rows(Corpus.from_tokens([[0, 5, 6, 7], [0, 8, 9, 9]], model=model)) == [[0, 5, 6, 7], [0, 8, 9, 9]]
    with pytest.raises(InputError, match=r"text 1.*attention_mask"):
        Corpus.from_tokens([[5, 6, 7, 8], [0, 0, 8, 9]], model=model)
    with pytest.raises(InputError, match=r"text 0.*2 times id 0"):
        Corpus.from_tokens([[0, 0, 8, 9]], model=model)
    # One padded by one: BOS to the eye, and the other row begins with none.
    with pytest.raises(InputError, match="text 1 begins with id 0"):
        Corpus.from_tokens(torch.tensor([[5, 6, 7, 8], [0, 6, 8, 9]]), model=model)
    # Rows of several lengths are no batch.
    assert len(Corpus.from_tokens([[5, 6, 7, 8], [0, 6, 9]], model=model)) == 2


@pytest.mark.parametrize("model", KINDS)
def test_the_filling_of_generate_is_left_out_and_the_text_keeps_its_eos(model: Ids) -> None:
    (eos,) = model.eos_ids
    pad = eos if model.pad in (None, model.bos_id) else model.pad
    written = [[0, 5, 6, eos, pad, pad, pad], [0, 5, 6, 7, 8, 9, eos], [0, 5, 6, 7, 8, 9, 9]]
    with pytest.warns(UserWarning, match="1 of 3"):
        corpus = Corpus.from_tokens(torch.tensor(written), model=model)
    assert rows(corpus) == [[0, 5, 6, eos], *written[1:]]
    assert corpus.frame["padding_right"].tolist() == [3, 0, 0]


def test_the_filling_is_no_loop_and_hides_none() -> None:
    loop = [0, 4, *[7, 8, 9] * 5, 1]
    with pytest.warns(UserWarning, match="padding"):
        corpus = Corpus.from_tokens([[*loop, *[1] * 20], [0, *range(5, 41)]], model=NO_PAD)
    found = corpus.with_cycles(eos_id=1).frame["period"].tolist()
    assert found == [3, pd.NA]
    assert Corpus.from_tokens([loop], model=NO_PAD).with_cycles(eos_id=1).frame["period"].tolist() == [3]
    with pytest.warns(UserWarning, match="padding"):  # a detector that does not know EOS sees no period of 1 either
        corpus = Corpus.from_tokens([[*range(5, 30), *[1] * 20]], model=NO_PAD)
    assert corpus.with_cycles("mahaut2025").frame["period"].isna().all()


@pytest.mark.parametrize("model", KINDS)
def test_texts_that_end_with_one_eos_are_taken_as_they_are(model: Ids) -> None:
    (eos,) = model.eos_ids
    given_rows = [[0, 5, 6, eos], [0, 5, 6, 7, 8, eos]]
    assert rows(Corpus.from_tokens(given_rows, model=model)) == given_rows
    assert "padding_right" not in Corpus.from_tokens(given_rows, model=model).frame


def test_a_row_of_padding_alone_is_refused_and_a_lone_bos_is_a_text() -> None:
    for model, row in [(OWN_PAD, [2, 2]), (OWN_PAD, [2]), (PAD_IS_EOS, [1, 1]), (ONE_FOR_ALL, [0, 0, 0])]:
        with pytest.raises(InputError, match="only padding"):
            Corpus.from_tokens([row], model=model)
    assert all(rows(Corpus.from_tokens([[0]], model=model)) == [[0]] for model in KINDS)


def test_pad_id_says_what_padding_is_without_a_model() -> None:
    with pytest.warns(UserWarning, match="padding"):
        assert rows(Corpus.from_tokens([[9, 9, 5], [5, 6, 7]], pad_id=9)) == [[5], [5, 6, 7]]


def test_a_corpus_that_nobody_looked_at_is_looked_at_when_a_model_meets_it() -> None:
    plain = Corpus.from_tokens([[1, 1, 5, 6], [5, 6, 7, 8]])
    with pytest.raises(InputError, match=r"text 0.*attention_mask"):
        plain.check_model(NO_PAD)
    Corpus.from_tokens([[5, 6, 1], [5, 6, 7, 8]]).check_model(NO_PAD)


def test_positions_beside_padding_in_front_are_refused() -> None:
    frame = pd.DataFrame({"prompt_length": [3, 3]})
    with pytest.raises(InputError, match="prompt_length"):
        Corpus.from_tokens([[2, 2, 5, 6], [5, 6, 7, 8]], attention_mask=[[0, 0, 1, 1], [1] * 4], frame=frame)
    right = Corpus.from_tokens([[5, 6, 2], [5, 6, 7]], attention_mask=[[1, 1, 0], [1] * 3], frame=frame - 1)
    assert right.frame["prompt_length"].tolist() == [2, 2]


@given(texts, st.integers(0, 5), st.integers(0, 5))
def test_nothing_but_ends_is_ever_left_out(given_rows: list, front: int, behind: int) -> None:
    filled = [np.array([2] * front + row + [2] * behind) for row in given_rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = without_filling(filled, Fillers(2, frozenset({1}), 0))
    assert [row.tolist() for row in batch.rows] == given_rows
    assert set(batch.left) == {front} and set(batch.right) == {behind}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_activations_of_a_padded_text_are_those_of_the_text_alone(family: str) -> None:
    model, long, short = loaded(family), [5, 9, 12, 33, 7, 8], [6, 11, 4]
    ids, mask = padded([long, short], "left", 1)
    corpus = Corpus.from_tokens(torch.tensor(ids), model=model, attention_mask=torch.tensor(mask))
    seen = CorpusCache(model, corpus).get(Site.RESID_POST, layers=[1])[0, 1, :3]
    assert model.plain is not None
    with torch.no_grad():
        alone = model.plain(input_ids=torch.tensor([short]), output_hidden_states=True).hidden_states[2][0]
    torch.testing.assert_close(seen, alone, rtol=1e-4, atol=1e-4)


# --- BOS ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded() -> Model:
    return load_model("mechrep-tiny")


def test_a_text_that_brings_its_bos_gets_no_other(embedded: Model) -> None:
    plain = Corpus.from_texts(["the sea"], model=embedded)
    own = Corpus.from_texts([embedded.decode(plain.row(0)), "the sea"], model=embedded)
    assert rows(own) == [plain.row(0)] * 2
    assert own.bos_policy == "prepended" and own.frame["own_bos"].tolist() == [True, False]
    assert "own_bos" not in plain.frame
    assert embedded.encode("<|bos|>the sea") == embedded.encode("the sea") == plain.row(0)
    assert embedded.encode("<|bos|>the sea", prepend_bos=False) == plain.row(0)


def test_a_chat_template_written_out_reads_as_the_template_tokenizes(embedded: Model) -> None:
    tokenizer = embedded.tokenizer
    template = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}assistant:"
    said = [{"role": "user", "content": "say moon again and again"}]
    written = tokenizer.apply_chat_template(said, tokenize=False, chat_template=template)
    want = tokenizer.apply_chat_template(said, chat_template=template, return_dict=True)["input_ids"]
    assert Corpus.from_texts([written], model=embedded).row(0) == want


def test_bos_policy_says_what_the_texts_are_without_a_prepended_one(embedded: Model) -> None:
    for given_texts, policy in (
        (["a", "b"], "absent"),
        (["<|bos|>a", "<|bos|>b"], "prepended"),
        (["<|bos|>a", "b"], "as given"),
    ):
        corpus = Corpus.from_texts(given_texts, model=embedded, prepend_bos=False)
        assert corpus.bos_policy == policy
        assert [row[0] == 0 for row in rows(corpus)] == [text.startswith("<|bos|>") for text in given_texts]


def test_two_bos_in_front_are_kept_and_said(embedded: Model) -> None:
    with pytest.warns(UserWarning, match="BOS twice"):
        assert rows(Corpus.from_tokens([[0, 0, 5, 6]], model=embedded)) == [[0, 0, 5, 6]]
    with pytest.warns(UserWarning, match="BOS twice"):
        assert Corpus.from_texts(["<|bos|><|bos|>a"], model=embedded).row(0)[:2] == [0, 0]
    assert rows(Corpus.from_tokens([[0, 0, 5, 6]], model=embedded, attention_mask=True)) == [[0, 0, 5, 6]]


def test_a_tokenizer_that_adds_bos_whatever_it_is_asked(embedded: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    class Adds:
        """Every call brings BOS, as some tokenizers with code of their own do."""

        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
            return {"input_ids": [0, *self.inner(text, **options)["input_ids"]]}

    with_bos, without = embedded.encode("the sea"), embedded.encode("the sea", prepend_bos=False)
    monkeypatch.setattr(embedded, "tokenizer", Adds(embedded.tokenizer))
    assert embedded.encode("the sea") == with_bos
    assert embedded.encode("the sea", prepend_bos=False) == without


def test_a_family_whose_bos_is_its_eos() -> None:
    one = Corpus.from_texts(["0 5 6", "7 8"], model=GPT_NEOX)
    assert rows(one) == [[0, 5, 6], [0, 7, 8]] and one.frame["own_bos"].tolist() == [True, False]
    with pytest.warns(UserWarning, match="padding"):  # rows of generate that were decoded whole
        assert rows(Corpus.from_texts(["5 6 0 0 0"], model=GPT_NEOX)) == [[0, 5, 6, 0]]
    with pytest.raises(InputError, match="leave these tokens out"):
        Corpus.from_texts(["0 0 0 5 6"], model=GPT_NEOX)


def test_windows_of_a_text_that_begins_with_bos_begin_with_one(embedded: Model) -> None:
    text = "It was the best of times. " * 20
    plain, own = (windows_of_text(embedded, start + text, length=32, limit=3) for start in ("", "<|bos|>"))
    assert rows(plain) == rows(own)
