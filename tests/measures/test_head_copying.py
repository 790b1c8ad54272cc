"""Heads as copiers: weights against matrices folded by TransformerLens, logits against its own, and planted heads."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechrep.cache.corpus_cache import Batch, CorpusCache
from mechrep.errors import InputError, ModelError, NothingFoundError
from mechrep.measures.head_circuits import OVScoreResult, check_settings, embedded_tokens, ov_scores
from mechrep.measures.head_copying import (
    DirectLogits,
    HeadCopying,
    HeadCopyingResult,
    permutation_moments,
    repeat_queries,
    score_copying,
)
from mechrep.measures.head_scores import HeadScoreResult, induction_heads, score_heads
from mechrep.models.anatomy import Site
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.models.nulls import reinitialised
from mechrep.text.corpus import Corpus
from mechrep.text.stimuli import random_repeats
from tests.measures.circuits_by_hand import full_circuits, heads_on_text, negated, planted, processed, raw, without
from tests.planted.workbench import FAMILIES as PLANTED
from tests.planted.workbench import WORDS
from tests.tiny_models import D_MODEL, D_VOCAB, N_HEADS, N_LAYERS, families, fresh, tiny

FAMILIES = families("llama", "llama_gqa", "gpt2", "gpt_neox", "gemma")
HEADS = list(itertools.product(range(N_LAYERS), range(N_HEADS)))


# -- weights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_raw_and_folded_weights_score_as_the_full_circuit_does(family: str) -> None:
    """The spectrum of the small matrix is that of [d_vocab d_vocab]; ranks are counted in whole rows."""
    matrices = full_circuits(family)
    for model in (raw(family), processed(family)):
        result = ov_scores(model, k=5, draws=0)
        ordinary = [token for token in range(D_VOCAB) if token not in model.special_ids]
        assert result.n_tokens == len(ordinary)
        for head in HEADS:
            matrix = matrices[head]
            values = np.linalg.eigvals(matrix)
            own = matrix.diagonal()[:, None]
            above, below = ((matrix > own).sum(1)[ordinary], (matrix < own).sum(1)[ordinary])
            expected = {
                "eigen": values.sum().real / np.abs(values).sum(),
                "top1": (above < 1).mean(),
                "topk": (above < 5).mean(),
                "suppress_topk": (below < 5).mean(),
            }
            for name, value in expected.items():
                assert float(result.of(name)[head]) == pytest.approx(value, abs=2e-4), (name, head)


def test_grouped_heads_score_as_heads_with_weights_of_their_own() -> None:
    grouped = tiny("llama_gqa")
    explicit = fresh("llama")
    states = dict(grouped.state_dict())
    for name in [name for name in states if "k_proj" in name or "v_proj" in name]:
        states[name] = states[name].unflatten(0, (2, -1)).repeat_interleave(2, dim=0).flatten(0, 1)
    explicit.load_state_dict(states)
    grouped_scores, scores = ov_scores(raw("llama_gqa"), draws=0), ov_scores(load_model(explicit), draws=0)
    for name in OVScoreResult.names:
        torch.testing.assert_close(grouped_scores.of(name), scores.of(name))


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_tokens_after_block_0_are_those_of_each_token_alone(family: str) -> None:
    rows = embedded_tokens(raw(family), "mlp0")
    for token in (3, D_VOCAB - 1):
        hidden = tiny(family)(torch.tensor([[token]]), output_hidden_states=True).hidden_states[1]
        torch.testing.assert_close(rows[token], hidden[0, 0], atol=1e-5, rtol=1e-4)
    assert not torch.equal(ov_scores(raw(family), embed="mlp0", draws=0).eigen, ov_scores(raw(family), draws=0).eigen)


@pytest.mark.parametrize("family", families(*PLANTED))
def test_planted_copier_and_its_negative(family: str) -> None:
    circuit = planted(family)
    copier, taker = (ov_scores(model, draws=0) for model in (circuit.model, negated(family)))
    unit = circuit.induction
    for name, value in {"eigen": 1.0, "top1": 1.0, "topk": 1.0, "suppress_topk": 0.0}.items():
        assert float(copier.of(name)[unit]) == pytest.approx(value, abs=1e-5)
    for name, value in {"eigen": -1.0, "top1": 0.0, "topk": 0.0, "suppress_topk": 1.0}.items():
        assert float(taker.of(name)[unit]) == pytest.approx(value, abs=1e-5)
    for idle in circuit.idle:
        assert copier.eigen[idle].isnan() and copier.top1[idle] == 0 and copier.suppress_topk[idle] == 0
    assert copier.top(1) == [unit]


def test_gaussian_heads_scatter_round_zero_and_random_models_lie_among_them() -> None:
    result = ov_scores(raw("llama"), draws=400)
    low, high = result.eigen_band
    assert abs(float(result.eigen_null.mean())) < 0.1 and low < -0.3 < 0.3 < high
    assert ((result.eigen >= low) & (result.eigen <= high)).float().mean() > 0.9
    assert torch.equal(result.eigen_null, ov_scores(raw("llama"), draws=400).eigen_null)


def test_a_sample_of_tokens_is_drawn_from_all() -> None:
    model = raw("llama")
    shares = [ov_scores(model, sample=20, draws=0, seed=seed).topk for seed in range(12)]
    torch.testing.assert_close(torch.stack(shares).mean(0), ov_scores(model, draws=0).topk, atol=0.1, rtol=0)
    assert not torch.equal(shares[0], shares[1])


@pytest.mark.parametrize("settings", [{"k": 0}, {"k": D_VOCAB + 1}, {"sample": 0}, {"sample": D_VOCAB}, {"draws": -1}])
def test_impossible_settings_of_weight_scores(settings: dict[str, object]) -> None:
    with pytest.raises(InputError):
        ov_scores(raw("llama"), **settings)  # pyright: ignore[reportArgumentType]


def test_an_embedding_that_does_not_exist() -> None:
    with pytest.raises(InputError, match="mlp1"):
        check_settings(raw("llama"), "mlp1", 10, None)


# -- direct logits -----------------------------------------------------------------------------------------------------


def test_one_hot_logits_negated_ones_and_flat_ones() -> None:
    direct = DirectLogits(torch.eye(7) - 1 / 7)
    vectors = torch.stack([torch.eye(7)[4], -3 * torch.eye(7)[4], torch.ones(7), torch.zeros(7)])
    logits, correlation = direct.of(vectors, torch.tensor([4, 1]))
    np.testing.assert_allclose(correlation[:2, 0], [1.0, -1.0], atol=1e-6)
    np.testing.assert_allclose(logits[:2, 0], [6 / 7, -18 / 7], atol=1e-6)
    assert correlation[2:].isnan().all()


@given(seed=st.integers(0, 99), vocabulary=st.integers(2, 40))
def test_correlation_is_that_of_all_logits(seed: int, vocabulary: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    unembed = torch.randn(6, vocabulary, generator=draw, dtype=torch.float64)
    vectors = torch.randn(3, 6, generator=draw, dtype=torch.float64)
    _, found = DirectLogits(unembed - unembed.mean(1, keepdim=True)).of(vectors, torch.arange(vocabulary))
    expected = [[np.corrcoef(row, hot)[0, 1] for hot in np.eye(vocabulary)] for row in (vectors @ unembed).numpy()]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@given(n=st.integers(1, 5), seed=st.integers(0, 50))
def test_moments_are_those_of_all_permutations(n: int, seed: int) -> None:
    table = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sums = [sum(float(table[i, p]) for i, p in enumerate(order)) for order in itertools.permutations(range(n))]
    mean, variance = permutation_moments(table)
    np.testing.assert_allclose([mean, variance], [np.mean(sums), np.var(sums)], atol=1e-9)


@given(seed=st.integers(0, 99), length=st.integers(1, 12), bos=st.booleans())
def test_what_is_expected_stood_behind_the_newest_copy(seed: int, length: int, bos: bool) -> None:
    tokens = torch.randint(0, 4, (2, 12), generator=torch.Generator().manual_seed(seed))
    tokens[:, 0] = 0 if bos else 1
    batch = Batch(tokens, torch.tensor([length, 12]), (0, 1), pd.DataFrame(index=range(2)))
    expected = {}
    for row, ids in enumerate((tokens[0, :length].tolist(), tokens[1].tolist())):
        copies = {i: [j for j in range(int(bos), i) if ids[j] == ids[i]] for i in range(len(ids))}
        expected |= {(row, i): (ids[places[-1] + 1], [j + 1 for j in places]) for i, places in copies.items() if places}
    found = {
        (text.row, position): (token, targets.nonzero().flatten().tolist())
        for text in repeat_queries(batch, bos_id=0)
        for position, token, targets in zip(text.positions.tolist(), text.expected.tolist(), text.targets, strict=True)
    }
    assert found == expected


# -- functional scores -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2", "gpt_neox", "gemma"])
def test_functional_scores_are_those_of_explicit_logits(family: str) -> None:
    corpus = random_repeats(raw(family), n=5, sequences=2, seed=3)
    queries, texts = range(6, 11), [heads_on_text(family, corpus.row(text)) for text in range(2)]
    asked = [corpus.row(text)[query - 4] for text in range(2) for query in queries]
    results = [CorpusCache(model, corpus).run(HeadCopying(model)) for model in (raw(family), processed(family))]
    for result in results:
        assert isinstance(result, HeadCopyingResult)
        assert (result.n_queries, result.n_texts) == (10, 2) and not result.flat.any()
        for head in HEADS:
            tables = np.array(
                [
                    [[seen.correlation(*head, query, token) for token in asked[5 * i : 5 * i + 5]] for query in queries]
                    for i, seen in enumerate(texts)
                ]
            )
            logits = [texts[i].logits[head][query] for i in range(2) for query in queries]
            dla = np.mean([row[token] - row.mean() for row, token in zip(logits, asked, strict=True)])
            prefix = np.mean([seen.patterns[head][query, query - 4] for seen in texts for query in queries])
            sums = [np.add.outer(*[[table[range(5), order].sum() for order in map(list, _ORDERS)] for table in tables])]
            assert float(result.functional[head]) == pytest.approx(tables.diagonal(0, 1, 2).mean(), abs=1e-4)
            assert float(result.dla[head]) == pytest.approx(dla, rel=1e-3, abs=1e-4)
            assert float(result.prefix[head]) == pytest.approx(prefix, abs=1e-5)
            assert float(result.functional_null[head]) == pytest.approx(np.mean(sums) / 10, abs=1e-4)
            assert float(result.functional_null_sd[head]) == pytest.approx(np.std(sums) / 10, abs=1e-4)


_ORDERS = list(itertools.permutations(range(5)))


def test_gemma_2_has_a_norm_behind_its_heads() -> None:
    """Head outputs, with the biases that scores leave out (it has none), add up to the attention's output."""
    model, corpus = raw("gemma2"), random_repeats(raw("gemma2"), n=6, sequences=1)
    circuits = HeadCopying(model).circuits
    _, cache = model.run_with_cache(corpus.tokens)
    for layer in range(N_LAYERS):
        outputs = circuits.head_outputs(layer, cache[model.anatomy.hook_name(Site.Z, layer)])
        expected = cache[model.anatomy.hook_name(Site.ATTN_OUT, layer)]
        torch.testing.assert_close(outputs.sum(-2).float(), expected, atol=1e-4, rtol=1e-3)


def both(model: Model) -> tuple[HeadScoreResult, HeadCopyingResult]:
    return score_heads(model, n=20, sequences=4), score_copying(model, n=20, sequences=4)


@pytest.mark.parametrize("family", families(*PLANTED))
def test_planted_induction_head_says_what_it_looks_at(family: str) -> None:
    circuit = planted(family)
    scores, result = both(circuit.model)
    unit = circuit.induction
    assert float(result.functional[unit]) == pytest.approx(1.0, abs=1e-4)
    assert float(result.prefix[unit]) == pytest.approx(1.0, abs=1e-4)
    for idle in circuit.idle:
        assert result.functional[idle].isnan() and int(result.flat[idle]) == result.n_queries == 80
    assert result.top(1) == [unit] and induction_heads(scores, result) == [unit]


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2"])
def test_a_head_that_takes_away_what_it_looks_at_is_no_induction_head(family: str) -> None:
    model, unit = negated(family), planted(family).induction
    scores, result = both(model)
    assert float(scores.adjusted[0][unit]) == pytest.approx(1.0, abs=1e-3)
    assert float(result.functional[unit]) == pytest.approx(-1.0, abs=1e-4)
    assert induction_heads(scores, result) == []


def test_both_bands_and_both_thresholds_decide() -> None:
    circuit = planted("gpt2")
    scores, result = both(circuit.model)
    assert induction_heads(scores, result, prefix=1.1) == []
    assert induction_heads(scores, result, functional=1.1) == []
    for name in ("functional_null_sd", "prefix_null_sd"):
        scattered = dataclasses.replace(result, **{name: torch.ones_like(result.prefix)})
        assert induction_heads(scores, scattered) == []
    with pytest.raises(InputError, match="one model"):
        induction_heads(scores, score_copying(raw("gpt2"), n=5, sequences=2))


def test_nulls_hold_what_models_without_training_do() -> None:
    """A model that was never trained, many heads: about one score in a hundred lies outside its band."""
    inside = []
    for seed in range(3):
        model = reinitialised(raw("llama_gqa"), seed=seed)
        result = score_copying(model, n=25, sequences=8, seed=seed)
        assert isinstance(result, HeadCopyingResult)
        for name in ("functional", "prefix"):
            low, high = getattr(result, f"{name}_band")
            inside.append((result.of(name) >= low - 1e-6) & (result.of(name) <= high + 1e-6))
    assert torch.stack(inside).float().mean() > 0.93


def test_batches_views_and_the_store_make_no_difference(tmp_path: Path) -> None:
    model = raw("llama_gqa")
    corpora = [random_repeats(model, n=n, sequences=3) for n in (4, 9)]
    corpus = Corpus.from_tokens([c.row(i) for c in corpora for i in range(3)], model=model, attention_mask=True)
    analyzers = [HeadCopying(model) for _ in range(4)]
    caches = [
        CorpusCache(model, corpus, batch_size=1),
        CorpusCache(model, corpus, view="transformer_lens"),
        CorpusCache(model, corpus, store=tmp_path),
        CorpusCache(model, corpus, store=tmp_path),
    ]
    first, *others = (cache.run(analyzer) for cache, analyzer in zip(caches, analyzers, strict=True))
    assert isinstance(first, HeadCopyingResult)
    for other in others:
        assert isinstance(other, HeadCopyingResult) and other.n_queries == first.n_queries == 39
        for name in (*HeadCopyingResult.names, "functional_null", "functional_null_sd", "prefix_null_sd"):
            torch.testing.assert_close(getattr(first, name), getattr(other, name), atol=1e-5, rtol=1e-4)
    frame = first.to_frame("dla")
    assert frame["dla"].is_monotonic_decreasing and len(frame) == N_LAYERS * N_HEADS


# -- nothing to find ---------------------------------------------------------------------------------------------------


def test_texts_without_repeats_and_models_without_heads() -> None:
    model = raw("llama")
    with pytest.raises(NothingFoundError):
        CorpusCache(model, Corpus.from_tokens([[0, 5, 6, 7]], model=model)).run(HeadCopying(model))
    with pytest.raises(ModelError, match="without v"):
        HeadCopying(without(model, Site.V))
    with pytest.raises(InputError, match="'prefixes'"):
        score_copying(model, n=5, sequences=1).of("prefixes")


def test_a_model_whose_heads_do_not_add_up_is_refused() -> None:
    broken = raw("llama")
    name = broken.anatomy.hook_name(Site.ATTN_OUT, 1)
    with (
        broken.hooks([(name, lambda out, hook: out + 1)]),
        pytest.raises(ModelError, match="attention output of layer 1"),
    ):
        HeadCopying(broken)


def test_words_of_the_planted_models_are_the_ordinary_tokens() -> None:
    assert ov_scores(planted("gpt2").model, draws=0).n_tokens == len(WORDS) and D_MODEL != D_VOCAB
