"""Loss under interventions against a plain computation, on both views and several families."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import mechrep
from mechrep.errors import InputError
from mechrep.interventions import Neurons
from mechrep.models import tiny as embedded
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.studies import token_losses
from mechrep.text.corpus import Corpus
from mechrep.text.windows import windows_of_text
from tests.studies.obvious import losses
from tests.tiny_models import SLIDING_WINDOW, families, random_tokens, tiny

FAMILIES = families("llama_gqa", "gpt_neox", "mistral", "gpt2", "gemma2")
LENGTH = 31  # odd, and longer than the sliding windows of Mistral and Gemma 2
UNITS = [(0, 3), (1, 20), (2, 5), (2, 6), (2, 40)]
assert LENGTH > 3 * SLIDING_WINDOW


def loaded(family: str, view: str) -> Model:
    model = load_model(copy.deepcopy(tiny(family)))
    if view == "transformer_lens":
        model.plain = None
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("view", ["plain", "transformer_lens"])
def test_losses_are_those_of_one_text_at_a_time(family: str, view: str) -> None:
    model, rows = loaded(family, view), random_tokens(3, LENGTH, seed=5).tolist()
    conditions = [None, Neurons(UNITS, "zero", when="all"), Neurons(UNITS, "add", when="last"), None]
    measured = token_losses(model, Corpus.from_tokens(rows, model=model), conditions)
    expected = [
        losses(family, tiny(family), rows, []),
        losses(family, tiny(family), rows, UNITS),
        losses(family, tiny(family), rows, UNITS, add=1.0),
        losses(family, tiny(family), rows, []),
    ]
    np.testing.assert_allclose(measured, expected, rtol=2e-5, atol=1e-5)
    assert (measured[1:3] - measured[0]).abs().min() > 1e-3  # the edits are felt, and gone for the last condition


@pytest.mark.parametrize("length", [4, 5, 30])
def test_the_untouched_loss_is_hugging_faces_own_on_the_second_half(length: int) -> None:
    model, rows = loaded("llama_gqa", "plain"), random_tokens(5, length, seed=6)
    labels = rows.clone()
    labels[:, : length // 2] = -100
    expected = [float(tiny("llama_gqa")(row[None], labels=label[None]).loss) for row, label in zip(rows, labels)]  # noqa: B905
    measured = token_losses(model, Corpus.from_tokens(rows, model=model), [None])
    np.testing.assert_allclose(measured[0], expected, rtol=1e-5)


def test_texts_are_scored_alike_however_many_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("mistral", "plain")
    corpus = Corpus.from_tokens(random_tokens(7, LENGTH, seed=2), model=model)
    conditions = [None, Neurons(UNITS, "zero", when="all")]
    whole = token_losses(model, corpus, conditions)
    monkeypatch.setattr("mechrep.ablation.score._TOKENS_PER_BATCH", 2 * LENGTH)
    torch.testing.assert_close(token_losses(model, corpus, conditions), whole, rtol=1e-5, atol=1e-6)


def test_windows_overlap_by_half_begin_with_bos_and_come_from_the_whole_text() -> None:
    model = mechrep.load_model("mechrep-tiny")
    text = embedded.held_out_text()[:3000]
    ids = model.encode(text, prepend_bos=False)
    corpus = windows_of_text(model, text, length=33, limit=1000)
    starts = range(0, len(ids) - 31, 16)
    assert [corpus.row(i) for i in range(len(corpus))] == [[model.bos_id, *ids[s : s + 32]] for s in starts]
    assert corpus.bos_policy == "prepended" and set(corpus.lengths.tolist()) == {33}
    few = windows_of_text(model, text, length=33, limit=3)
    assert len(few) == 3 and few.row(0) == corpus.row(0) and few.row(2) == corpus.row(len(corpus) - 1)
    whole = windows_of_text(model, embedded.held_out_text(), limit=2)
    assert set(whole.lengths.tolist()) == {model.anatomy.n_ctx}


def test_windows_and_texts_that_cannot_be_scored_are_refused() -> None:
    model = mechrep.load_model("mechrep-tiny")
    with pytest.raises(InputError, match=r"a text of \d+ tokens.*at least 511, one window"):
        windows_of_text(model, "too short")
    for options in ({"length": 3}, {"length": 0}, {"length": 32, "limit": 0}, {"length": 32, "limit": -1}):
        with pytest.raises(InputError, match=r"length=\d+.*from 4|limit="):
            windows_of_text(model, embedded.held_out_text(), **options)
    with pytest.raises(InputError, match="n_ctx = 512"):
        windows_of_text(model, embedded.held_out_text(), length=600)
    llama = loaded("llama_gqa", "plain")
    with pytest.raises(InputError, match="no tokenizer"):
        windows_of_text(llama, "some text", length=4)
    for lengths in ((8, 9), (3, 3)):
        rows = [random_tokens(1, length)[0].tolist() for length in lengths]
        with pytest.raises(InputError, match="one length of at least 4"):
            token_losses(llama, Corpus.from_tokens(rows, model=llama), [None])
    with pytest.raises(InputError, match="vocabulary of 61"):
        token_losses(model, Corpus.from_tokens(random_tokens(2, 8), model=llama), [None])
