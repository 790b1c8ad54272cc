"""``AttentionSinks``: closed forms, a second implementation in plain loops, padding, and models that know nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechrep.cache import CorpusCache
from mechrep.errors import InputError
from mechrep.measures.attention_sinks import AttentionSinkResult, AttentionSinks
from mechrep.models.anatomy import Site
from mechrep.models.load import load_model
from mechrep.models.nulls import reinitialised
from mechrep.text.corpus import Corpus
from tests.analyzers.sinks_by_hand import PROVENANCE, anatomy, check_equal, merged, observed
from tests.families import zoo
from tests.tiny_models import fresh, random_tokens, tiny


def uniform(length: int) -> Tensor:
    """Equal attention to everything so far."""
    return torch.ones(length, length).tril() / torch.arange(1, length + 1)[:, None]


def sink(length: int, key: int = 0) -> Tensor:
    """All attention on one key; queries before it attend to themselves."""
    pattern = torch.eye(length)
    pattern[key:] = torch.eye(length)[key]
    return pattern


def random_pattern(length: int, seed: int) -> Tensor:
    """Any causal pattern."""
    scores = torch.from_numpy(np.random.default_rng(seed).normal(0, 2, (length, length))).float()
    return scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf).softmax(-1)


def measured(*texts: list[Tensor], epsilon: float = 0.3, keys: int = 64, batch_size: int = 100) -> AttentionSinkResult:
    """One layer whose heads have, text by text, the patterns given."""
    tables = {(Site.PATTERN, 0): [torch.stack(heads) for heads in texts]}
    sizes = anatomy(1, n_heads=len(texts[0]))
    return observed(AttentionSinks(epsilon, keys=keys), tables, sizes, batch_size=batch_size).result(PROVENANCE)


@pytest.mark.parametrize("length", [2, 5, 64])
def test_a_uniform_head_a_perfect_sink_and_a_head_that_looks_at_itself(length: int) -> None:
    result = measured([uniform(length), sink(length), torch.eye(length)])
    harmonic = sum(1 / t for t in range(1, length + 1))
    expected = [(harmonic - 1) / (length - 1), 1.0, 0.0]
    np.testing.assert_allclose(result.alpha[0], expected, atol=1e-6)
    np.testing.assert_allclose(result.alpha_published[0], [harmonic / length, 1.0, 1 / length], rtol=1e-6)
    np.testing.assert_allclose(result.alpha_published, (1 + (length - 1) * result.alpha) / length, rtol=1e-5)
    assert result.uniform_alpha == pytest.approx(expected[0])
    assert result.rate[0].tolist() == [float(harmonic / length > 0.3), 1.0, float(1 / length > 0.3)]
    assert (result.mean_length, result.length_sd, result.n_texts) == (length, 0.0, 1)
    # Rows: uniform is as flat as can be, the others are on one key.  Columns: the sink's is flat.
    np.testing.assert_allclose(result.row_entropy[0], [1.0, 0.0, 0.0], atol=1e-5)
    assert result.column_entropy[0, 1] == pytest.approx(1.0, abs=1e-5) and result.column_entropy[0, 2] == 0
    assert result.top(1) == [(0, 1)]


def test_the_published_numbers_of_a_uniform_head() -> None:
    result = measured([uniform(64)])
    assert result.alpha_published.item() == pytest.approx(0.07412, abs=1e-5)
    assert result.alpha.item() == pytest.approx(0.05943, abs=1e-5)


def test_one_token_has_alpha_one_and_no_alpha_without_its_own_row() -> None:
    result = measured([sink(1)], [sink(1)])
    assert result.alpha_published.item() == 1.0 and result.rate.item() == 1.0
    for value in (result.alpha, result.row_entropy, result.column_entropy, result.best_other_key):
        assert value.isnan().all()
    assert math.isnan(result.uniform_alpha) and result.mean_length == 1
    assert result.ranking() == [(0, 0)] and len(result.to_frame()) == 1
    mixed = measured([sink(1)], [uniform(8)])  # the single token is no text of which alpha~ could be a mean
    assert mixed.alpha.item() == pytest.approx(measured([uniform(8)]).alpha.item())
    assert mixed.alpha_published.item() == pytest.approx((1 + measured([uniform(8)]).alpha_published.item()) / 2)


def test_the_rate_asks_for_more_than_epsilon() -> None:
    quarter = torch.eye(4)  # alpha_0 = 1/4, exactly
    assert measured([quarter], epsilon=0.25).rate.item() == 0.0
    assert measured([quarter], epsilon=0.2499999).rate.item() == 1.0
    shares = measured([quarter, sink(4)], [sink(4), sink(4)], epsilon=0.25)
    assert shares.rate[0].tolist() == [0.5, 1.0] and shares.sink_share == pytest.approx(75.0)


def test_the_best_key_after_the_first_is_found_and_late_keys_do_not_compete() -> None:
    length = 20
    result = measured([sink(length, 3), uniform(length), torch.eye(length)])
    assert result.best_other_key[0, 0].tolist() == [3.0, 1.0]
    assert result.key_importance[0, 0, 3] == 1.0 and result.key_importance[0, 0, [0, 1, 2, 4]].max() == 0
    assert result.best_other_key[0, 1, 0] == 1 and result.best_other_key[0, 2, 1] == 0
    late = measured([sink(length, 15)])  # seen by 4 queries where the first key is seen by 19
    assert late.key_importance[0, 0, 15] == 1.0 and late.best_other_key[0, 0, 1] == 0
    assert result.key_rows[:3].tolist() == [19.0, 18.0, 17.0] and result.key_importance[0, 0, length:].isnan().all()
    few = measured([sink(length, 3)], keys=2)
    assert few.key_importance.shape[-1] == 2 and few.best_other_key[0, 0].tolist() == [1.0, 0.0]
    assert measured([sink(length)], keys=1).best_other_key.isnan().all()


def by_loops(texts: list[list[Tensor]], head: int, epsilon: float) -> dict[str, float]:
    """The definitions, one number at a time."""
    alphas, published, rows, columns = [], [], [], []
    for text in texts:
        pattern = text[head].double().tolist()
        size = len(pattern)
        published.append(sum(row[0] for row in pattern) / size)
        if size == 1:
            continue
        alphas.append(sum(pattern[t][0] for t in range(1, size)) / (size - 1))
        entropies = [-sum(a * math.log(a) for a in row if a > 0) for row in pattern]
        rows.append(np.mean([entropies[t] / math.log(t + 1) for t in range(1, size)]))
        shares = []
        for key in range(size - 1):
            column = [pattern[t][key] for t in range(size)]
            total = sum(column)
            shares.append(-sum(a / total * math.log(a / total) for a in column if a > 0) / math.log(size - key))
        columns.append(max(shares))
    return {
        "alpha": float(np.mean(alphas)),
        "alpha_published": float(np.mean(published)),
        "rate": float(np.mean([alpha > epsilon for alpha in published])),
        "row_entropy": float(np.mean(rows)),
        "column_entropy": float(np.mean(columns)),
    }


@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5).filter(lambda sizes: max(sizes) > 1),
    batch_size=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_texts_of_unequal_length_by_loops(lengths: list[int], batch_size: int, seed: int) -> None:
    """Padded queries and keys hold a million each; none of it may enter a mean."""
    texts = [[random_pattern(n, seed + 10 * i + h) for h in range(2)] for i, n in enumerate(lengths)]
    result = measured(*texts, batch_size=batch_size)
    for head in range(2):
        for name, value in by_loops(texts, head, 0.3).items():
            assert getattr(result, name)[0, head] == pytest.approx(value, abs=1e-5), name
    assert result.mean_length == pytest.approx(np.mean(lengths))
    assert result.length_sd == pytest.approx(np.std(lengths), abs=1e-6)
    harmonics = [sum(1 / t for t in range(2, n + 1)) / (n - 1) for n in lengths if n > 1]
    assert result.uniform_alpha == pytest.approx(np.mean(harmonics))


def test_states_of_two_workers_add_up() -> None:
    texts = [[random_pattern(n, n)] for n in (4, 1, 7, 5)]
    tables, sizes = {(Site.PATTERN, 0): [torch.stack(heads) for heads in texts]}, anatomy(1, n_heads=1)
    parts = [observed(AttentionSinks(), tables, sizes, texts=part) for part in ([3, 0], [1, 2])]
    check_equal(merged(parts).result(PROVENANCE), measured(*texts))
    with pytest.raises(InputError):
        parts[0].merge(observed(AttentionSinks(0.2), tables, sizes))


def test_bad_settings_are_refused() -> None:
    for epsilon, keys in ((-0.1, 64), (1.1, 64), (0.3, 0)):
        with pytest.raises(InputError, match=r"epsilon|keys"):
            AttentionSinks(epsilon, keys=keys)


def test_half_precision_is_widened_before_it_is_added_up() -> None:
    exact, half = measured([uniform(50)]), measured([uniform(50).bfloat16()])
    assert half.row_entropy.item() == pytest.approx(exact.row_entropy.item(), abs=0.01)
    assert half.alpha.item() == pytest.approx(exact.alpha.item(), rel=0.01)


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2", "mistral"])
def test_a_real_model_beside_transformers_own_attentions(family: str, tmp_path: Path) -> None:
    model = load_model(tiny(family))
    rows = [row[:n] for row, n in zip(random_tokens(3, 14).tolist(), (14, 6, 1), strict=True)]
    result = CorpusCache(model, Corpus.from_tokens(rows, model=model), batch_size=3).run(AttentionSinks())
    module: Any = fresh(family)
    module.set_attn_implementation("eager")
    with torch.no_grad():
        texts = [[a[0] for a in module(torch.tensor([row]), output_attentions=True).attentions] for row in rows]
    for layer in range(3):
        for head in range(4):
            heads = [[text[layer][head]] for text in texts]
            for name, value in by_loops(heads, 0, 0.3).items():
                assert getattr(result, name)[layer, head] == pytest.approx(value, abs=1e-4), name
    result.save(tmp_path / "r")
    check_equal(AttentionSinkResult.load(tmp_path / "r"), result)


def test_a_model_before_training_has_no_sink() -> None:
    null = reinitialised(load_model(tiny("llama")), seed=1)
    corpus = Corpus.from_tokens([[0, *row] for row in random_tokens(20, 63).tolist()], model=null)
    result = CorpusCache(null, corpus).run(AttentionSinks())
    assert result.sink_share == 0.0 and (result.alpha - result.uniform_alpha).abs().max() < 0.03
    assert result.uniform_alpha == pytest.approx(0.05943, abs=1e-4)


def test_what_a_learned_sink_takes_stands_beside_the_first_position() -> None:
    """gpt-oss has one more logit per head; its softmax, written out from the module's own sinks, says how much."""
    family = zoo.families()["gpt-oss"]
    module = zoo.build(family)
    model = load_model(module)
    texts = [zoo.text(9, seed=0), zoo.text(1, seed=1), zoo.text(14, seed=2)]
    corpus = Corpus.from_tokens(texts, model=model, bos_policy="absent")
    result = CorpusCache(model, corpus).run(AttentionSinks())
    expected = torch.zeros(model.anatomy.n_layers, model.anatomy.n_heads, dtype=torch.float64)
    for text in (texts[0], texts[2]):
        module.set_attn_implementation("eager")
        patterns = module(torch.tensor([text]), output_attentions=True).attentions
        for layer, pattern in enumerate(patterns):
            expected[layer] += (1 - pattern[0, :, 1:].double().sum(-1)).mean(-1) / 2
    torch.testing.assert_close(result.learned_sink.double(), expected, atol=1e-5, rtol=1e-4)
    assert float(result.learned_sink.max()) > 0.05
    plain = load_model(zoo.build(zoo.families()["Llama"]))
    without = CorpusCache(plain, Corpus.from_tokens(texts, model=plain, bos_policy="absent")).run(AttentionSinks())
    assert torch.equal(without.learned_sink, torch.zeros_like(without.learned_sink))
