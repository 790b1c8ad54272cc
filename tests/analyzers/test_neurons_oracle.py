"""``RepetitionNeurons`` against the plain search in ``oracle.py``, on real modules."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import pytest
import torch

from mechrep.cache import CorpusCache
from mechrep.measures.neurons import RepetitionNeuronResult, RepetitionNeurons
from mechrep.models.anatomy import Site
from mechrep.models.load import load_model
from tests.analyzers.looping_texts import as_corpus, random_loops
from tests.analyzers.oracle import activations, search, windows
from tests.tiny_models import D_MLP, N_LAYERS, tiny
from tests.tiny_models import loaded as model

FAMILIES = ("llama_gqa", "gpt_neox")
R = 12
LOOPS = random_loops(9)


@functools.cache
def tables(family: str, part: str = "activation") -> list[np.ndarray]:
    return [activations(family, tiny(family), loop.ids, part) for loop in LOOPS]


def measured(family: str, *, view: Any = "auto", **options: Any) -> RepetitionNeuronResult:
    cache = CorpusCache(model(family), as_corpus(LOOPS, model(family)), view=view, batch_size=4)
    result = cache.run(RepetitionNeurons(**{"r": R, **options}))
    assert isinstance(result, RepetitionNeuronResult)
    return result


def test_the_texts_clip_windows_on_both_ends() -> None:
    sizes = [tuple(map(len, windows(loop, R, "published"))) for loop in LOOPS]
    assert any(before < R for before, _ in sizes) and any(during < R for _, during in sizes)
    assert any(before == R and during == R for before, during in sizes)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("window", ["published", "paper_form", "clean"])
@pytest.mark.parametrize("view", ["plain", "transformer_lens"])
def test_every_number_is_that_of_the_plain_search(family: str, window: str, view: str) -> None:
    result, oracle = measured(family, view=view, window=window), search(tables(family), LOOPS, R, window)
    assert result.n_texts == oracle.n_texts == len(LOOPS)
    for name in ("normal_mean", "repetition_mean", "normal_sd", "repetition_sd", "delta", "standard_error"):
        np.testing.assert_allclose(getattr(result, name), getattr(oracle, name), rtol=1e-4, atol=2e-6, err_msg=name)
    for name in ("t", "dprime"):
        np.testing.assert_allclose(getattr(result, name), getattr(oracle, name), rtol=1e-3, atol=1e-4, err_msg=name)
    for window_of_other, name in (("published", "delta_published"), ("clean", "delta_clean")):
        normal = search(tables(family), LOOPS, R, window_of_other).normal_mean
        np.testing.assert_allclose(getattr(result, name), oracle.repetition_mean - normal, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ranking_is_that_of_the_plain_search(family: str) -> None:
    scores = search(tables(family), LOOPS, R, "published").delta
    ranking = measured(family, preset="hiraoka2025").ranking()
    assert sorted(ranking) == [(layer, neuron) for layer in range(N_LAYERS) for neuron in range(D_MLP)]
    in_order = np.array([scores[unit] for unit in ranking])
    assert (np.diff(in_order) <= 1e-6).all()
    np.testing.assert_array_equal(ranking[0], np.unravel_index(scores.argmax(), scores.shape))


@pytest.mark.parametrize("view", ["plain", "transformer_lens"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gate_act_and_mlp_post_are_two_sites_of_a_gated_mlp_and_one_of_a_plain_one(family: str, view: str) -> None:
    gate = measured(family, view=view)
    product = measured(family, view=view, site=Site.MLP_POST)
    oracle = search(tables(family, "mlp_output"), LOOPS, R, "clean")
    np.testing.assert_allclose(product.delta, oracle.delta, rtol=1e-4, atol=5e-6)
    assert torch.allclose(gate.delta, product.delta, atol=1e-3) == (family == "gpt_neox")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_profile_is_the_mean_at_each_offset(family: str) -> None:
    profile = measured(family).profile
    for column, offset in enumerate(range(-R, R + 1)):
        there = [
            table[loop.onset - 1 + offset]
            for table, loop in zip(tables(family), LOOPS, strict=True)
            if 0 <= loop.onset - 1 + offset < len(loop.ids)
        ]
        np.testing.assert_allclose(profile[:, column], np.mean(there, axis=0), rtol=1e-4, atol=2e-6)


def test_the_preset_says_which_window_is_used() -> None:
    published, default = measured("llama_gqa", preset="hiraoka2025"), measured("llama_gqa")
    assert torch.equal(published.delta, published.delta_published)
    assert torch.equal(default.delta, default.delta_clean)
    assert torch.equal(published.delta_clean, default.delta) and not torch.allclose(published.delta, default.delta)


def test_a_model_in_bfloat16_is_summed_in_float64() -> None:
    half = copy.deepcopy(tiny("llama_gqa")).to(torch.bfloat16)
    loops = LOOPS[:4]
    loaded = load_model(half)
    analyzer = RepetitionNeurons(r=R)
    result = CorpusCache(loaded, as_corpus(loops, loaded), batch_size=1).run(analyzer)
    assert isinstance(result, RepetitionNeuronResult)
    assert {value.dtype for value in analyzer.state.values()} == {torch.float64}
    oracle = search([activations("llama_gqa", half, loop.ids) for loop in loops], loops, R, "clean")
    # The activations are rounded to 8 bits, their sums are not: float32 accuracy on what the model gave.
    np.testing.assert_allclose(result.delta, oracle.delta, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result.standard_error, oracle.standard_error, rtol=1e-3, atol=1e-6)
