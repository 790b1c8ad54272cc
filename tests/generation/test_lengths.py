"""Positions that depend on length, windows and states: a text has the numbers that it has alone, whatever is around.

The oracle is the Hugging Face module: one text at a time, the whole of it at every step, nothing kept.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

import mechrep
from mechrep.errors import InputError
from mechrep.interventions.apply import logits
from mechrep.models.anatomy import Site
from mechrep.models.attention import read_attention_rows
from tests.families import oracles
from tests.families.zoo import SWITCH, Family, build, families, text

LENGTHS = (24, 40, SWITCH, 9, SWITCH + 1, 50)


@functools.cache
def made(name: str) -> tuple[Family, Any, mechrep.Model]:
    """A family, its module and the model of it."""
    family = families()[name]
    module = build(family)
    return family, oracles.plain(family, module), mechrep.load_model(module)


def texts_of(lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    return [[0, *text(length - 1, seed=seed)] for seed, length in enumerate(lengths)]


def alone(plain: Any, ids: list[int]) -> Tensor:
    return oracles.logits(plain, ids)


CHANGING = ["Phi-3, longrope", "Llama, dynamic NTK"]


@pytest.mark.parametrize("name", CHANGING)
def test_the_switch_is_found(name: str) -> None:
    *_, model = made(name)
    assert model.lengths is not None
    assert model.lengths.switch == SWITCH
    assert model.lengths.every == (name == "Llama, dynamic NTK")
    assert model.anatomy.n_ctx > SWITCH


@pytest.mark.parametrize("name", ["Llama", "Llama 3", "Gemma 3", "GPT-2", "MPT", "XGLM", "Qwen2.5-VL"])
def test_most_models_have_none(name: str) -> None:
    assert made(name)[2].lengths is None


@pytest.mark.parametrize("name", CHANGING)
def test_a_text_is_read_as_if_it_were_alone(name: str) -> None:
    family, plain, model = made(name)
    texts = texts_of()
    corpus = mechrep.Corpus.from_tokens(texts, model=model)
    together = mechrep.CorpusCache(model, corpus).get(Site.RESID_POST)
    backwards = mechrep.CorpusCache(model, corpus, batch_size=2).get(Site.RESID_POST)
    found = logits(model, corpus.tokens, lengths=corpus.lengths)
    for number, ids in enumerate(texts):
        right = oracles.look(family, plain, ids)
        for layer in range(family.n_layers):
            assert oracles.gap(together[layer, number, : len(ids)], right.after[layer]) < 1e-4
            assert oracles.gap(backwards[layer, number, : len(ids)], right.after[layer]) < 1e-4
        assert oracles.gap(found[number, : len(ids)], right.logits) < 1e-4


@pytest.mark.parametrize("name", CHANGING)
def test_what_was_read_before_does_not_matter(name: str) -> None:
    _, plain, model = made(name)
    for length in (60, 12, 50, SWITCH, 41, SWITCH):  # exactly at the switch dynamic angles stay as they were
        ids = texts_of((length,))[0]
        found = model.plain_logits(torch.tensor([ids]))[0]
        assert oracles.gap(found, alone(plain, ids)) < 1e-5


@pytest.mark.parametrize("name", CHANGING)
def test_rows_of_unknown_lengths_are_refused(name: str) -> None:
    *_, model = made(name)
    rows = torch.tensor([text(40), text(40, seed=1)])
    with pytest.raises(InputError, match="length"):
        logits(model, rows)
    with pytest.raises(InputError, match="length"):
        model.plain_logits(rows)
    with pytest.raises(InputError, match="length"):
        read_attention_rows(model, rows, lambda *_: None)
    assert logits(model, rows[:, :SWITCH]).shape[1] == SWITCH  # there all is the same


@pytest.mark.parametrize("name", CHANGING)
def test_both_views_keep_the_positions_of_every_text(name: str) -> None:
    family, plain, model = made(name)
    texts = texts_of((9, 40))
    corpus = mechrep.Corpus.from_tokens(texts, model=model)
    found = mechrep.CorpusCache(model, corpus, view="transformer_lens").get(Site.RESID_POST, layers=[2])[0]
    for number, ids in enumerate(texts):
        assert oracles.gap(found[number, : len(ids)], oracles.look(family, plain, ids).after[2]) < 1e-4
