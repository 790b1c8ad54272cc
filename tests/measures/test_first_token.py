"""Other-token mass with its identity, and neurons that tell first tokens: second ways, families, planted mechanisms."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechrep.cache import CorpusCache
from mechrep.errors import InputError
from mechrep.measures.first_token import (
    FirstTokenDetection,
    OtherTokenResult,
    check_patterns,
    detector_layer,
    other_token_mass,
    read_triples,
    triples_of,
)
from mechrep.measures.first_token_detectors import (
    FirstDetectorResult,
    areas,
    detector_figure,
    first_token_detectors,
)
from mechrep.models.anatomy import Site
from mechrep.models.load import load_model
from mechrep.stats import area_parts, cluster_intervals
from mechrep.text.corpus import Corpus
from tests.analyzers.sinks_by_hand import anatomy, check_equal
from tests.measures.first_token_by_hand import area_by_pairs, mass_by_loops, planted, without_positions
from tests.planted.texts import words
from tests.tiny_models import D_MLP, GROUPED, N_HEADS, WITH_ALIBI, fresh, random_tokens, tiny

ROWS = [row.tolist() for row in random_tokens(3, 20)] + [[5, 9, 9, 5, 9], [7], [11, 11, 11, 11]]


def measured(model: Any, rows: list[list[int]] = ROWS, **options: Any) -> OtherTokenResult:
    corpus = Corpus.from_tokens(rows, model=model)
    return CorpusCache(model, corpus, **options).run(FirstTokenDetection.of(model))


def eager(family: str) -> Any:
    """The family's plain module, giving patterns."""
    module = fresh(family)
    module.config._attn_implementation = "eager"
    return module


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2", "bloom"])
def test_masses_are_those_of_bare_hugging_face_patterns(family: str) -> None:
    result, module = measured(load_model(fresh(family)), batch_size=2), eager(family)
    sums, by_position, count = torch.zeros(N_HEADS), torch.zeros(N_HEADS, 20), torch.zeros(20)
    uniform, queries = 0.0, 0
    for ids in ROWS:
        pattern = module(torch.tensor([ids]), output_attentions=True).attentions[0][0]
        mass = mass_by_loops(pattern, ids)
        sums += mass[:, 1:].sum(1)
        by_position[:, : len(ids)] += mass
        count[: len(ids)] += 1
        queries += len(ids) - 1
        for query in range(1, len(ids)):
            uniform += sum(ids[key] != ids[query] for key in range(query)) / (query + 1)
    torch.testing.assert_close(result.mass, sums / queries, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(result.by_position[:, :20], by_position / count, atol=1e-5, rtol=1e-4)
    assert result.by_position[:, 20:].isnan().all() and (result.by_position[:, 0] == 0).all()
    assert result.uniform_mass == pytest.approx(uniform / queries)
    assert (result.n_texts, result.n_queries) == (len(ROWS), queries)
    assert result.top(N_HEADS) == [(0, head) for head in result.mass.argsort(descending=True).tolist()]


@pytest.mark.parametrize("family", WITH_ALIBI)
def test_the_identity_holds_in_every_family_and_equal_values_only_without_learned_positions(family: str) -> None:
    result = measured(load_model(tiny(family)))
    assert result.identity_error.max() < 2e-6
    assert result.bound_excess.max() < 1e-6
    assert (result.value_shift > 0.05).all(), "heads that move nothing would make the identity trivial"
    if family == "gpt2":
        assert result.same_value_error.min() > 0.05
    else:
        assert result.same_value_error.max() < 2e-6
    assert family not in GROUPED or load_model(tiny(family)).anatomy.n_kv_heads == GROUPED[family]


def test_equal_tokens_have_equal_values_again_where_learned_positions_are_zero() -> None:
    assert measured(without_positions()).same_value_error.max() < 2e-6


def test_a_wrong_head_output_breaks_the_identity() -> None:
    model = load_model(tiny("llama_gqa"))
    analyzer = FirstTokenDetection()
    corpus = Corpus.from_tokens(ROWS, model=model)

    class Wrong(FirstTokenDetection):
        def observe(self, activation: Tensor, site: Site, layer: int, batch: Any) -> None:
            super().observe(activation.roll(1, -2) if site is Site.Z else activation, site, layer, batch)

    right, wrong = (CorpusCache(model, corpus).run(kind) for kind in (analyzer, Wrong()))
    assert right.identity_error.max() < 2e-6 < 0.1 < wrong.identity_error.min()


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2", "gpt_neox"])
def test_shifts_are_what_attention_adds_beyond_its_own_value(family: str) -> None:
    """A second way to the sum over heads: the attention's output, less what a text of that token alone would give."""
    model = without_positions() if family == "gpt2" else load_model(tiny(family))
    result = measured(model, ROWS[:3])
    cache = CorpusCache(model, Corpus.from_tokens(ROWS[:3], model=model))
    alone = [[token] for token in sorted({token for row in ROWS[:3] for token in row})]
    single = CorpusCache(model, Corpus.from_tokens(alone, model=model))[Site.ATTN_OUT, 0][:, 0]
    place = {token[0]: index for index, token in enumerate(alone)}
    own = torch.stack([single[[place[token] for token in row]] for row in ROWS[:3]])
    expected = (cache[Site.ATTN_OUT, 0] - own).norm(dim=-1).mean(0)
    torch.testing.assert_close(result.shift_by_position[:20], expected, atol=1e-4, rtol=1e-4)
    assert result.shift_by_position[0] < 1e-5 < result.head_shift.min()


def test_a_run_of_one_token_has_no_other_tokens() -> None:
    result = measured(load_model(tiny("llama")), [[9] * 12])
    assert (result.mass == 0).all() and result.uniform_mass == 0 and result.value_shift.max() < 1e-6
    assert measured(load_model(tiny("llama")), [[9]]).mass.isnan().all()


def test_batches_padding_and_merged_halves_change_nothing() -> None:
    model = load_model(tiny("llama_gqa"))
    corpus = Corpus.from_tokens(ROWS, model=model)
    whole = measured(model)
    torch.testing.assert_close(measured(model, batch_size=1).mass, whole.mass, rtol=1e-5, atol=1e-6)
    halves = []
    for texts in ([0, 3, 4], [1, 2, 5]):
        analyzer = FirstTokenDetection.of(model)
        result = CorpusCache(model, corpus.select(texts)).run(analyzer)
        halves.append((analyzer, result))
    (first, one), (second, other) = halves
    largest = torch.maximum(first.state["same_value_error"], second.state["same_value_error"])
    first.merge(second)
    merged = first.result(whole.provenance)
    torch.testing.assert_close(merged.mass, whole.mass, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(merged.shift_by_position, whole.shift_by_position, rtol=1e-4, atol=1e-6, equal_nan=True)
    assert not torch.equal(one.mass, other.mass)
    assert torch.equal(first.state["same_value_error"], largest), "errors are largest values and do not add up"


def test_results_survive_the_disk_and_a_store(tmp_path: Path) -> None:
    model = load_model(tiny("llama"))
    result = measured(model, store=tmp_path / "store")
    check_equal(measured(model, store=tmp_path / "store"), result)
    result.save(tmp_path / "r")
    check_equal(OtherTokenResult.load(tmp_path / "r"), result)
    table = result.to_frame()
    assert table["head"].tolist() == result.ranking() and (table["mass"].diff()[1:] <= 0).all()
    lines = result.plot().data
    assert len(lines) == N_HEADS and max(lines[0].y) <= 1 and lines[0].y[0] == 0
    without = FirstTokenDetection()
    CorpusCache(model, Corpus.from_tokens(ROWS, model=model)).run(without)
    assert without.result(result.provenance).head_shift.isnan().all()
    with pytest.raises(InputError, match="merge like with like"):
        without.merge(FirstTokenDetection.of(model))


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(0, 1000))
def test_the_mass_of_any_pattern_is_the_sum_over_other_tokens(ids: list[int], seed: int) -> None:
    scores = torch.randn(2, len(ids), len(ids), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    pattern = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf).softmax(-1)
    mass = other_token_mass(pattern, torch.tensor(ids))
    torch.testing.assert_close(mass, mass_by_loops(pattern, ids))
    assert (mass[:, 0] == 0).all() and (mass <= 1 + 1e-9).all()
    same = torch.tensor(ids)[:, None] == torch.tensor(ids)[None]
    torch.testing.assert_close(mass + (pattern * same).sum(-1), torch.ones_like(mass))


def test_a_model_without_patterns_is_refused_once_and_clearly() -> None:
    sizes = dataclasses.replace(anatomy(2), missing=frozenset({Site.PATTERN, Site.Z}), architecture="Mamba")
    for refuse in (lambda: check_patterns(sizes), lambda: FirstTokenDetection().prepare(sizes, pd.DataFrame())):
        with pytest.raises(InputError, match="Mamba, without pattern, z") as error:
            refuse()
        assert "cannot be measured on this model" in str(error.value)
    with pytest.raises(InputError, match="positions=0"):
        FirstTokenDetection(0)


def texts(model: Any, rows: int = 8, length: int = 60) -> Corpus:
    """Random words of the planted vocabulary, without BOS."""
    return Corpus.from_tokens([words(length, seed=seed) for seed in range(rows)], model=model, bos_policy="absent")


@functools.cache
def detected(family: str) -> FirstDetectorResult:
    model = planted(family).model
    return first_token_detectors(model, texts(model), triples=400, k=3, shuffles=10)


@pytest.mark.parametrize("family", ["llama_gqa", "gpt_neox", "gpt2"])
def test_a_planted_detector_is_found_by_both_scores(family: str) -> None:
    result, fixture = detected(family), planted(family)
    assert fixture.detector is not None
    assert result.top(1) == [fixture.detector] == result.top(1, "published")
    assert result.layer == fixture.detector[0] == int(family == "gpt_neox")
    neuron = fixture.detector[1]
    assert result.best_auroc == result.auroc[neuron] == result.first_second[neuron] == 1.0
    assert result.second_third[neuron] > 0.9, "with two tokens before it a token has a longer state than with one"
    assert result.intervals[0].tolist() == [1.0, 1.0] and result.state_auroc > 0.95
    assert max(result.shuffled_aurocs) < 0.7 and len(result.shuffled_aurocs) == 10
    assert np.mean(result.random_aurocs) < 0.7, "neurons chosen blindly know little"
    assert result.values.shape[1:] == (3, 3) and (result.values[:, 0, 0] > result.values[:, 1:, 0].amax(1)).all()


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
    halves = []
    for half in (triples.selection, triples.test):
        first, others = (
            values.flatten(0, 1)[half & mask].numpy() for mask in (triples.places == 0, triples.places != 0)
        )
        higher, equal = first[:, None] > others[None], first[:, None] == others[None]  # in all pairs
        halves.append((higher + equal / 2).mean((0, 1)))
    selected, tested = halves
    np.testing.assert_allclose(result.selection_auroc, selected, atol=1e-6)
    assert list(result.neurons) == np.argsort(-np.abs(selected - 0.5), kind="stable")[:2].tolist()
    np.testing.assert_allclose(result.auroc, np.where(selected < 0.5, 1 - tested, tested), atol=1e-6)
    assert result.best_auroc == result.auroc[best]
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
def test_areas_are_shares_of_pairs_and_means_of_their_parts(tokens: list[tuple[int, bool]]) -> None:
    values, first = np.array([float(value) for value, _ in tokens]), np.array([label for _, label in tokens])
    if not 0 < first.sum() < len(first):
        return
    expected = area_by_pairs(values[first].tolist(), values[~first].tolist())
    area = areas(np.stack([values, -values], 1), first)
    assert area.tolist() == pytest.approx([expected, 1 - expected])
    assert area_parts(values, first).mean() == pytest.approx(expected)


def test_parts_have_the_spread_of_the_area_over_words() -> None:
    """Against a bootstrap that computes the area anew in every sample of whole words."""
    generator = np.random.default_rng(1)
    words_of, first = np.arange(240) // 6, np.tile([True, False, False], 80)
    values = generator.normal(size=240) + 0.8 * first + generator.normal(size=40)[words_of]
    low, high = cluster_intervals(area_parts(values, first)[None], words_of)[0]
    picks = generator.integers(0, 40, (1000, 40))
    tokens = (np.concatenate([np.flatnonzero(words_of == word) for word in pick]) for pick in picks)
    draws = [areas(values[some][:, None], first[some])[0] for some in tokens]
    assert [low, high] == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.02)


def test_detectors_survive_the_disk_and_are_tables_and_figures(tmp_path: Path) -> None:
    result = detected("llama_gqa")
    result.save(tmp_path / "d")
    check_equal(FirstDetectorResult.load(tmp_path / "d"), result)
    table = result.to_frame()
    assert table["neuron"].tolist() == result.ranking() and table["low"].notna().sum() == 3
    assert [list(bars.x) for bars in result.plot().data] == result.values[:, :, 0].T.tolist()
    with pytest.raises(InputError, match="one of"):
        detector_figure(result, next(n for n in range(80) if n not in result.neurons))


def test_bad_input_of_the_search_is_refused() -> None:
    model = load_model(tiny("llama"))
    corpus = Corpus.from_tokens(random_tokens(2, 100), model=model)
    for options in ({"k": 0}, {"k": D_MLP + 1}, {"shuffles": 0}):
        with pytest.raises(InputError, match=r"k 0|k \d+|shuffles=0"):
            first_token_detectors(model, corpus, **options)
    with pytest.raises(InputError, match="no tokenizer"):
        first_token_detectors(model)
    with pytest.raises(InputError, match="8 triples"):
        first_token_detectors(model, Corpus.from_tokens([random_tokens(1, 10)[0]], model=model))
    with pytest.raises(InputError, match="a layer from 0"):
        first_token_detectors(model, corpus, layer=model.anatomy.n_layers)
    with pytest.raises(InputError, match="another"):
        detector_layer(dataclasses.replace(anatomy(1), parallel=True))
