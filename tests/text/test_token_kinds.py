"""Ordinary ids and their kinds: planted rows without training, marks and bytes, and kinds against plain definitions."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mechrep.errors import InputError
from mechrep.models import tiny as embedded
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.text.token_kinds import KINDS, draw_tokens, ordinary_ids, token_kinds, untrained_rows
from tests.tiny_models import D_VOCAB, fresh, tiny

PIECES = [
    "<s>",
    "</s>",
    "<pad>",
    "▁sea",
    "ing",
    "▁",
    ",",
    "▁--",
    "<0x41>",
    "<0xE3>",
    "[x]",
    "<unused7>",
    "▁the",
    "<b>",
    "3",
    "é",
]


@functools.cache
def english() -> Model:
    return load_model("mechrep-tiny")


def random_rows(n: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) + 1


def with_pieces() -> PreTrainedTokenizerFast:
    """A tokenizer as SentencePiece's are: blanks in the pieces, bytes by name, marks among the added tokens."""
    inner = Tokenizer(models.BPE({piece: number for number, piece in enumerate(PIECES)}, []))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    inner.add_special_tokens([AddedToken("<s>", special=True)])
    inner.add_tokens([AddedToken(name, special=False) for name in ("[x]", "<unused7>", "▁the")])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("n", "width"), [(300, 8), (3000, 64)])
def test_planted_rows_without_training_are_found_and_no_others(n: int, width: int, seed: int) -> None:
    rows = random_rows(n, width, seed)
    together, pair, zero = list(range(20, 60)), [3, n - 1], [7, 100]
    rows[together] = rows[20] + 1e-3 * random_rows(len(together), width, seed + 1)
    rows[pair[1]] = rows[pair[0]] * 1.0001
    rows[zero] = 1e-3 * rows[zero]
    assert untrained_rows(rows).nonzero().flatten().tolist() == sorted(together + pair + zero)
    assert torch.equal(untrained_rows(rows), untrained_rows(rows.bfloat16())) or width == 8


def test_rows_say_nothing_where_most_are_alike_or_all_differ() -> None:
    for rows in (random_rows(500, 16), torch.ones(20, 4), torch.zeros(20, 4), torch.eye(30), random_rows(1, 4)):
        assert not untrained_rows(rows).any()


def test_ids_follow_the_embedding_and_not_a_memory_of_it() -> None:
    model = load_model(fresh("llama"))
    everything = sorted(set(range(D_VOCAB)) - model.special_ids)
    assert ordinary_ids(model).tolist() == everything
    plain: Any = model.plain
    weight = plain.get_input_embeddings().weight
    with torch.no_grad():
        weight[[11, 12, 30]] = weight[11].clone()
    assert ordinary_ids(model).tolist() == sorted(set(everything) - {11, 12, 30})
    assert token_kinds(model) == {"token": ordinary_ids(model).tolist()}
    ordinary_ids(model)[:] = 0
    assert ordinary_ids(model).min() > 0  # what was given out is the caller's own


def test_marks_and_bytes_are_no_text_but_added_words_are() -> None:
    model = load_model(tiny("llama"), tokenizer=with_pieces())
    kept = {PIECES[token] for token in ordinary_ids(model).tolist()}
    assert kept == {"▁sea", "ing", "▁", ",", "▁--", "▁the", "3", "é"}
    kinds = {kind: [PIECES[token] for token in ids] for kind, ids in token_kinds(model).items()}
    assert kinds["punctuation"] == [",", "▁--"] and kinds["subword"] == ["ing", "é"]
    assert set(kinds["frequent"]) | set(kinds["rare"]) == {"▁sea", "▁the"}


def test_parts_of_a_character_are_of_no_kind() -> None:
    model = english()
    parts = {token for token in ordinary_ids(model).tolist() if "\ufffd" in model.decode([token])}
    assert parts and not parts & {token for ids in token_kinds(model).values() for token in ids}
    assert set(ordinary_ids(model).tolist()) == set(range(model.anatomy.d_vocab)) - model.special_ids


def test_kinds_are_what_they_are_called() -> None:
    model, kinds = english(), token_kinds(english())
    assert tuple(kinds) == KINDS
    every = [token for ids in kinds.values() for token in ids]
    assert len(every) == len(set(every)) and set(every) <= set(ordinary_ids(model).tolist())
    counts = Counter(model.encode(embedded.held_out_text(), prepend_bos=False))
    for token in every:
        text = model.decode([token])
        assert text.strip().isalpha() == (token not in kinds["punctuation"])
        assert text.startswith(" ") or token not in kinds["frequent"] + kinds["rare"]
        assert not (token in kinds["subword"] and " " in text) and not (token in kinds["rare"] and counts[token])
    words = [
        t for t in ordinary_ids(model).tolist() if model.decode([t])[:1] == " " and model.decode([t])[1:].isalpha()
    ]
    total, often = sum(counts[token] for token in words), [counts[token] for token in kinds["frequent"]]
    assert sum(often) >= total / 2 > sum(often[:-1]) and often == sorted(often, reverse=True)
    assert max(counts[token] for token in words if token not in kinds["frequent"]) <= often[-1]


def test_draws_are_of_their_kind_seeded_and_nested() -> None:
    model, kinds = english(), token_kinds(english())
    few, many = draw_tokens(model, 3, seed=1), draw_tokens(model, 10_000, seed=1)
    assert all(token in kinds[kind] for token, kind in few)
    assert sorted(many) == sorted((token, kind) for kind, ids in kinds.items() for token in ids)
    for kind, ids in kinds.items():
        drawn = [token for token, other in many if other == kind]
        assert [token for token, other in few if other == kind] == drawn[:3] and sorted(drawn) == sorted(ids)
    assert few == draw_tokens(model, 3, seed=1) != draw_tokens(model, 3, seed=2)
    with pytest.raises(InputError, match="per_kind"):
        draw_tokens(model, 0)


def test_every_draw_is_as_likely_as_any_other() -> None:
    model = english()
    drawn = Counter(
        token for seed in range(100) for token, kind in draw_tokens(model, 5, seed) if kind == "punctuation"
    )
    n = len(token_kinds(model)["punctuation"])
    expected = 100 * 5 / n
    assert max(abs(drawn[token] - expected) for token in token_kinds(model)["punctuation"]) < 5 * np.sqrt(expected)
