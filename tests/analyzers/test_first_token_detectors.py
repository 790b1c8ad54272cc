"""First-detector neurons and the heads behind them: planted mechanisms, closed forms, nulls, what must not count."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechrep.errors import InputError
from mechrep.measures.first_token_detectors import FirstDetectorResult, first_token_detectors
from mechrep.measures.first_token_heads import HeadCutResult, first_layer_head_cuts
from mechrep.measures.first_token_mass import detector_layer, read_triples, triples_of
from mechrep.models.load import load_model
from mechrep.stats import auroc_draws, aurocs
from mechrep.text.corpus import Corpus
from tests.analyzers.first_token_by_hand import area_by_pairs, planted
from tests.analyzers.sinks_by_hand import anatomy, check_equal
from tests.planted.sinks import bos_sink_model
from tests.planted.texts import words
from tests.tiny_models import D_MLP, fresh, random_tokens, tiny


def texts(model: Any, rows: int = 8, length: int = 60) -> Corpus:
    """Random words of the planted vocabulary, without BOS."""
    return Corpus.from_tokens([words(length, seed=seed) for seed in range(rows)], model=model, bos_policy="absent")


@functools.cache
def detected(family: str) -> FirstDetectorResult:
    model = planted(family).model
    return first_token_detectors(model, texts(model), triples=400, k=3, shuffles=10)


@functools.cache
def cut(family: str) -> HeadCutResult:
    model = planted(family).model
    return first_layer_head_cuts(model, texts(model), triples=400)


@pytest.mark.parametrize("family", ["llama_gqa", "gpt_neox", "gpt2"])
def test_a_planted_detector_is_found_by_both_scores(family: str) -> None:
    result, fixture = detected(family), planted(family)
    assert fixture.detector is not None
    assert result.found and result.top(1) == [fixture.detector] == result.top(1, "published")
    assert result.layer == fixture.detector[0] == int(family == "gpt_neox")
    neuron = fixture.detector[1]
    assert result.best_auroc == result.auroc[neuron] == result.first_second[neuron] == 1.0
    assert result.second_third[neuron] > 0.9, (
        "with two other tokens before it, a token has a longer state than with one"
    )
    assert result.intervals[0].tolist() == [1.0, 1.0] and result.state_auroc > 0.95
    assert 0.5 <= result.null_auroc < 0.7 and len(result.shuffled_aurocs) == 10
    assert np.mean(result.random_aurocs) < 0.7, "neurons chosen blindly know little"
    assert result.values.shape[1:] == (3, 3) and (result.values[:, 0, 0] > result.values[:, 1:, 0].amax(1)).all()


@pytest.mark.parametrize("family", ["llama_gqa", "gpt_neox", "gpt2"])
def test_cutting_the_planted_head_takes_the_mark_and_no_other_head_does(family: str) -> None:
    result, fixture = cut(family), planted(family)
    assert fixture.detector is not None and fixture.detector_head is not None
    head = fixture.detector_head[1]
    assert list(fixture.detector) == list(result.detector) and result.detector_auroc == 1.0
    others = [other for other in range(result.n_heads) if other != head]
    for mark in ("detector", "norm"):
        assert result.carriers(mark) == [fixture.detector_head] == result.top(1, mark)
        assert result.loss(mark)[:, others].abs().max() < 1e-3, "the other heads move nothing that is read"
        torch.testing.assert_close(result.loss(mark)[:, head], result.loss(mark)[:, -1])
    assert result.detector_loss[0, head] == pytest.approx(0.5, abs=0.02), "nothing is left to tell"
    assert result.detector_loss[1, head] > 0.4
    assert result.sink_layer == fixture.sink_layer and result.sink_reason == "" and result.log_ratio > 3
    assert result.norm_loss[0, head] == pytest.approx(result.log_ratio, abs=0.05), "the sink goes with its mark"
    low, high = result.norm_interval[0, head].tolist()
    assert low <= result.norm_loss[0, head] + 1e-6 and high >= result.norm_loss[0, head] - 1e-6


def test_learned_positions_tell_places_without_any_attention() -> None:
    with_rotary, with_learned = cut("llama_gqa"), cut("gpt2")
    assert with_rotary.needs_attention and with_rotary.state_loss[0, -1] == pytest.approx(0.5, abs=0.02)
    assert not with_learned.needs_attention and with_learned.state_loss.abs().max() < 0.02
    assert with_learned.carriers("state") == []


@pytest.mark.parametrize("family", ["llama_gqa", "gpt_neox", "bloom"])
def test_without_the_heads_of_layer_0_nothing_can_tell_a_first_token(family: str) -> None:
    """Their state is then a function of the token alone, and every token is once at every place."""
    model = load_model(tiny(family))
    corpus = Corpus.from_tokens(random_tokens(3, 100), model=model)
    result = first_layer_head_cuts(model, corpus, triples=290)
    left = result.state_auroc - float(result.state_loss[0, -1])
    assert left == pytest.approx(0.5, abs=0.03)
    assert result.detector_auroc - float(result.detector_loss[0, -1]) == pytest.approx(0.5, abs=0.03)


def test_a_mark_of_bos_is_no_mark_of_the_first_token() -> None:
    """The planted BOS knows itself by its embedding: a sink is there, and nobody tells the first of ordinary tokens."""
    model = bos_sink_model("llama").model
    result = first_token_detectors(model, texts(model), triples=400, k=1)
    assert not result.found and result.detectors == []
    cuts = first_layer_head_cuts(model, texts(model), triples=400)
    assert cuts.carriers() == [] and cuts.sink_layer is None and "without BOS" in cuts.sink_reason
    assert cuts.norm_loss.isnan().all() and cuts.carriers("norm") == []


def test_scores_are_those_of_a_plain_forward_pass() -> None:
    module: Any = fresh("llama_gqa")
    model = load_model(fresh("llama_gqa"))
    corpus = Corpus.from_tokens(random_tokens(2, 100), model=model)
    result = first_token_detectors(model, corpus, triples=150, k=2, shuffles=1)
    triples = triples_of(model, corpus, limit=150)
    gates: list[torch.Tensor] = []
    handle = module.model.layers[0].mlp.gate_proj.register_forward_hook(lambda *args: gates.append(args[2]))
    module(triples.tokens)
    handle.remove()
    values = gates[0]  # [triple place neuron]
    torch.testing.assert_close(result.score, (values[:, 0] - values[:, 1]).mean(0), rtol=1e-4, atol=1e-5)
    best = result.neurons[0]
    torch.testing.assert_close(result.values[:, :, 0], values[..., best], rtol=1e-4, atol=1e-5)
    numbers, places = values[..., best].flatten().tolist(), triples.places
    sets = [[numbers[i] for i in np.flatnonzero(triples.test & mask)] for mask in (places == 0, places != 0)]
    sign = 1 if result.selection_auroc[best] >= 0.5 else -1
    expected = area_by_pairs(*([sign * x for x in numbers] for numbers in sets))
    assert result.best_auroc == pytest.approx(expected, abs=1e-6)
    assert result.auroc.shape == (D_MLP,)


def test_mlps_without_a_gate_are_read_before_their_function_too() -> None:
    model = load_model(tiny("gpt2"))
    tokens = random_tokens(4, 3)
    seen = read_triples(model, tokens)
    module: Any = tiny("gpt2")
    found: list[torch.Tensor] = []
    handle = module.transformer.h[0].mlp.c_fc.register_forward_hook(lambda *args: found.append(args[2]))
    module(tokens)
    handle.remove()
    np.testing.assert_allclose(seen.neurons, found[0].flatten(0, 1), atol=1e-5)
    assert seen.state.shape == (12, 32)
    np.testing.assert_allclose(seen.state.mean(1), 0, atol=1e-5)


def test_every_token_is_once_at_every_place_and_halves_share_neither_text_nor_words() -> None:
    model = planted("llama_gqa").model
    rows = [words(50, seed=1), [0, *words(50, seed=2)], [9, 9]]
    triples = triples_of(model, Corpus.from_tokens(rows, model=model), limit=1000)
    assert len(triples.tokens) == 48 + 48 and not (triples.tokens == 0).any(), "no triple contains BOS"
    for text in (triples.tokens[:48], triples.tokens[48:]):
        assert torch.equal(text[1:, 0], text[:-1, 1]) and torch.equal(text[1:, 1], text[:-1, 2])
    ids = triples.ids
    assert set(ids[triples.selection]).isdisjoint(ids[triples.test])
    assert np.flatnonzero(triples.selection).max() < np.flatnonzero(triples.test).min()
    assert not (triples.selection & triples.test).any()


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30))
def test_areas_are_shares_of_pairs(tokens: list[tuple[int, bool]]) -> None:
    values = np.array([float(value) for value, _ in tokens])
    first = np.array([label for _, label in tokens])
    area = aurocs(values[:, None], first)[0]
    groups = np.arange(len(tokens))
    draws = auroc_draws(values, first, groups, draws=20)
    if not 0 < first.sum() < len(first):
        assert np.isnan(area) and np.isnan(draws).all()
        return
    assert area == pytest.approx(area_by_pairs(values[first].tolist(), values[~first].tolist()))
    assert area + aurocs(-values[:, None], first)[0] == pytest.approx(1)
    counts = np.random.default_rng(0).multinomial(len(tokens), np.full(len(tokens), 1 / len(tokens)), size=20)
    for draw, count in zip(draws, counts, strict=True):
        sample, labels = np.repeat(values, count), np.repeat(first, count)
        expected = aurocs(sample[:, None], labels)[0]
        assert (np.isnan(draw) and np.isnan(expected)) or draw == pytest.approx(expected)


def test_groups_are_drawn_whole() -> None:
    generator = np.random.default_rng(1)
    values, first = generator.normal(size=60), np.tile([True, False, False], 20)
    apart, together = (auroc_draws(values, first, np.arange(60) // size, draws=400).std() for size in (1, 30))
    assert apart > 0
    alike = auroc_draws(np.tile(values[:30], 2), np.tile(first[:30], 2), np.arange(60) // 30, draws=50)
    assert alike.std() == pytest.approx(0), "two equal groups give the same sample whichever is drawn"
    assert together != pytest.approx(apart)


def test_results_survive_the_disk_and_are_tables(tmp_path: Path) -> None:
    for name, result in (("d", detected("llama_gqa")), ("c", cut("llama_gqa"))):
        result.save(tmp_path / name)
        check_equal(type(result).load(tmp_path / name), result)
    table = detected("llama_gqa").to_frame()
    assert table["neuron"].tolist() == detected("llama_gqa").ranking() and table["low"].notna().sum() == 3
    losses = cut("llama_gqa").to_frame()
    assert len(losses) == 3 * 2 * 5 and losses["head"].tolist()[:5] == ["0", "1", "2", "3", "all"]


def test_bad_input_is_refused() -> None:
    model = load_model(tiny("llama"))
    corpus = Corpus.from_tokens(random_tokens(2, 100), model=model)
    for options in ({"k": 0}, {"k": D_MLP + 1}, {"shuffles": 0}):
        with pytest.raises(InputError, match="at least one shuffle"):
            first_token_detectors(model, corpus, **options)
    with pytest.raises(InputError, match="no tokenizer"):
        first_token_detectors(model)
    with pytest.raises(InputError, match="8 triples"):
        first_token_detectors(model, Corpus.from_tokens([random_tokens(1, 10)[0]], model=model))
    with pytest.raises(InputError, match="another"):
        detector_layer(dataclasses.replace(anatomy(1), parallel=True))
    with pytest.raises(InputError, match="'zero', 'mean'"):
        cut("llama_gqa").ranking(op="double")
