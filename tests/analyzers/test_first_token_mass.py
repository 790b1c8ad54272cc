"""Other-token mass and the identity behind it: plain Hugging Face as a second way, every family, padding, merging."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechrep.cache import CorpusCache
from mechrep.errors import InputError
from mechrep.measures.first_token_mass import FirstTokenDetection, OtherTokenResult, check_patterns, other_token_mass
from mechrep.models.anatomy import Site
from mechrep.models.load import load_model
from mechrep.text.corpus import Corpus
from tests.analyzers.first_token_by_hand import mass_by_loops, without_positions
from tests.analyzers.sinks_by_hand import anatomy, check_equal
from tests.tiny_models import GROUPED, N_HEADS, WITH_ALIBI, fresh, random_tokens, tiny

ROWS = [row.tolist() for row in random_tokens(3, 20)] + [[5, 9, 9, 5, 9], [7], [11, 11, 11, 11]]


def measured(model: Any, rows: list[list[int]] = ROWS, **options: Any) -> OtherTokenResult:
    corpus = Corpus.from_tokens(rows, model=model)
    (result,) = CorpusCache(model, corpus, **options).run(FirstTokenDetection.of(model))
    assert isinstance(result, OtherTokenResult)
    return result


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

    right, wrong = (CorpusCache(model, corpus).run(kind)[0] for kind in (analyzer, Wrong()))
    assert isinstance(right, OtherTokenResult) and isinstance(wrong, OtherTokenResult)
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
        (result,) = CorpusCache(model, corpus.select(texts)).run(analyzer)
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
    assert table["head"].tolist() == result.ranking() and table["mass"].is_monotonic_decreasing
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
