"""Attention to the first position of long texts: the column of whole patterns, and the same sums as whole patterns."""

from __future__ import annotations

import copy

import pytest
import torch

from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError
from mechrep.measures.attention_sinks import WHOLE, AttentionSinks, attention_sinks, first_position_attention
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.text.corpus import Corpus
from mechrep.text.stimuli import repeated_tokens
from tests.analyzers.sinks_by_hand import check_equal
from tests.planted.sinks import sink_model
from tests.tiny_models import FAMILIES, N_HEADS, N_LAYERS, fresh, random_tokens, tiny

LENGTHS = (41, 7, 1)


def long_model(family: str = "llama_gqa") -> Model:
    return load_model(fresh(family, max_position_embeddings=2 * WHOLE))


def padded(model: Model, lengths: tuple[int, ...] = LENGTHS) -> Corpus:
    rows = random_tokens(len(lengths), max(lengths)).tolist()
    return Corpus.from_tokens([row[:length] for row, length in zip(rows, lengths, strict=True)], model=model)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_column_is_that_of_eager_attention_text_by_text(family: str) -> None:
    model, witness = load_model(copy.deepcopy(tiny(family))), copy.deepcopy(tiny(family))
    witness.set_attn_implementation("eager")
    corpus = padded(model)
    column = first_position_attention(model, corpus)
    assert column.shape == (len(LENGTHS), N_LAYERS, N_HEADS, max(LENGTHS))
    for text, length in enumerate(LENGTHS):
        patterns = witness(torch.tensor([corpus.row(text)]), output_attentions=True).attentions
        expected = torch.stack([pattern[0, :, :, 0] for pattern in patterns])
        torch.testing.assert_close(column[text, ..., :length], expected, rtol=0, atol=1e-4)
        assert column[text, ..., length:].isnan().all()
    some = first_position_attention(model, corpus, layers=[1])
    torch.testing.assert_close(some[:, 0], column[:, 1], equal_nan=True)


def test_a_planted_sink_head_rests_on_the_first_position() -> None:
    fixture = sink_model("llama")
    layer, head = fixture.sink_head
    column = first_position_attention(fixture.model, repeated_tokens(fixture.model, [9], 6))
    assert column[0, layer, head].min() > 0.9 and column[0, 0, head, -1] < 0.5


@pytest.mark.parametrize("lengths", [(WHOLE + 90, WHOLE + 7, 3), (WHOLE + 1, 1)])
def test_sums_over_rows_are_those_of_whole_patterns(lengths: tuple[int, ...]) -> None:
    model = long_model()
    corpus = padded(model, lengths)
    whole = CorpusCache(model, corpus).run(AttentionSinks(0.1, keys=7))
    by_rows = attention_sinks(model, corpus, epsilon=0.1, keys=7, queries=100)
    check_equal(by_rows, whole, rtol=1e-4)
    assert 0 < by_rows.rate.mean() < 1, "a rate of 0 or 1 would prove little"


def test_short_texts_and_families_without_rows_are_read_whole() -> None:
    bloom = load_model(copy.deepcopy(tiny("bloom")))
    for model in (bloom, load_model(copy.deepcopy(tiny("gpt2")))):
        corpus = padded(model)
        whole = CorpusCache(model, corpus).run(AttentionSinks())
        check_equal(attention_sinks(model, corpus), whole)
    with pytest.raises(InputError, match="whole patterns"):
        first_position_attention(bloom, padded(bloom))


def test_no_block_of_a_long_text_is_a_whole_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    """Softmax never sees more than 64 rows per head."""
    model, largest = long_model("llama"), list[int]()
    corpus = repeated_tokens(model, [9], WHOLE + 60)
    attention_sinks(model, corpus)  # the probe is done
    softmax = torch.Tensor.softmax

    def counted(scores: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        largest.append(scores.numel())
        return softmax(scores, *args, **kwargs)  # pyright: ignore

    monkeypatch.setattr(torch.Tensor, "softmax", counted)
    first_position_attention(model, corpus)
    assert not largest, "the column needs no rows"
    attention_sinks(model, corpus, queries=64)
    assert len(largest) == N_LAYERS * 9 and max(largest) <= N_HEADS * 64 * (WHOLE + 61)


def test_a_corpus_of_another_model_is_refused() -> None:
    with pytest.raises(InputError):
        first_position_attention(long_model(), Corpus.from_tokens([[500]]))
