"""Keys and values of the sink, and massive activations: rules at their edges, plain loops, padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechrep.cache import CorpusCache
from mechrep.errors import InputError
from mechrep.measures.sink_norms import (
    MassiveActivationResult,
    MassiveActivations,
    SinkStateResult,
    SinkStates,
    massive,
)
from mechrep.models.anatomy import Site
from mechrep.models.load import load_model
from mechrep.text.corpus import Corpus
from tests.analyzers.sinks_by_hand import PROVENANCE, anatomy, check_equal, merged, observed
from tests.planted.sinks import bos_sink_model
from tests.planted.workbench import BOS
from tests.tiny_models import random_tokens, tiny

LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=4)


def test_exactly_a_hundred_and_exactly_a_thousand_medians_are_not_massive() -> None:
    states = torch.full((5, 4), 0.125)  # the median, of which a thousand are 125
    for size, expected in ((125.0, False), (125.001, True), (-125.001, True), (-125.0, False)):
        states[2, 1] = size
        assert massive(states)[2, 1] == expected and massive(states).sum() == expected
    low = torch.full((5, 4), 0.01)
    for size, expected in ((100.0, False), (100.001, True), (99.0, False)):
        low[0, 0] = size
        assert bool(massive(low).any()) == expected


@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), batch_size=st.integers(1, 3), seed=st.integers(0, 9)
)
def test_massive_activations_by_plain_loops(lengths: list[int], batch_size: int, seed: int) -> None:
    """The median is that of each text alone, and the padding (a million everywhere) is in none."""
    draw = np.random.default_rng(seed)
    group = [torch.from_numpy(draw.normal(0, 0.1, (n, 8))) for n in lengths]
    for text in group:
        for _ in range(int(draw.integers(0, 3))):
            text[draw.integers(0, len(text)), draw.integers(0, 8)] = draw.choice([90.0, 110.0, -300.0])
    tables, sizes = {(Site.RESID_POST, 0): group}, anatomy(1)
    result = observed(MassiveActivations(), tables, sizes, batch_size=batch_size).result(PROVENANCE)
    found = []
    for text in group:
        array = text.abs().numpy()
        median = np.sort(array, axis=None)[(array.size - 1) // 2]
        found.append((array > 100) & (array > 1000 * median))
    assert result.share[0] == pytest.approx(np.mean([hit.any() for hit in found]))
    assert result.share_first[0] == pytest.approx(np.mean([hit[0].any() for hit in found]))
    assert result.share_other[0] == pytest.approx(np.mean([hit[1:].any() for hit in found]))
    np.testing.assert_allclose(result.dimensions[0], np.mean([hit.any(0) for hit in found], axis=0), atol=1e-6)
    assert result.largest[0] == pytest.approx(np.mean([float(text.abs().max()) for text in group]))
    assert result.n_massive == (result.dimensions > 0).sum() and len(result.top(result.n_massive)) == result.n_massive
    with pytest.raises(InputError):
        result.top(result.n_massive + 1)
    if len(lengths) > 1:
        parts = [
            observed(MassiveActivations(), tables, sizes, texts=part) for part in ([0], list(range(1, len(lengths))))
        ]
        check_equal(merged(parts).result(PROVENANCE), result)


@settings(max_examples=10)
@given(lengths=LENGTHS, batch_size=st.integers(1, 3))
def test_keys_and_values_by_plain_loops(lengths: list[int], batch_size: int) -> None:
    draw = np.random.default_rng(1)
    keys, values = ([torch.from_numpy(draw.normal(0, 1, (n, 2, 4))) for n in lengths] for _ in range(2))
    tables, sizes = {(Site.K, 0): keys, (Site.V, 0): values}, anatomy(1)
    result = observed(SinkStates(), tables, sizes, batch_size=batch_size).result(PROVENANCE)
    for name, group in (("key", keys), ("value", values)):
        norms = [text.norm(dim=-1) for text in group]
        first = torch.stack([text[0] for text in norms]).mean(0)
        torch.testing.assert_close(getattr(result, f"first_{name}")[0].double(), first, rtol=1e-5, atol=1e-6)
        others = torch.cat([text[1:] for text in norms])
        mean = others.mean(0) if len(others) else torch.full_like(first, torch.nan)
        measured = getattr(result, f"other_{name}")[0].double()
        torch.testing.assert_close(measured, mean, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert len(result.to_frame()) == 2 and len(result.top(2)) == 2
    if len(lengths) > 1:
        parts = [observed(SinkStates(), tables, sizes, texts=part) for part in ([0], list(range(1, len(lengths))))]
        check_equal(merged(parts).result(PROVENANCE), result)


def test_repeated_key_value_heads_are_read_once() -> None:
    states = torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(0))
    sizes = anatomy(1, n_heads=6)
    one, many = (
        observed(SinkStates(), {(Site.K, 0): [group], (Site.V, 0): [group]}, sizes).result(PROVENANCE)
        for group in (states, states.repeat_interleave(3, dim=1))
    )
    check_equal(one, many)


def test_a_drained_value_comes_first() -> None:
    values = torch.ones(6, 2, 4)
    values[0, 1] = 0.1
    result = observed(SinkStates(), {(Site.K, 0): [torch.ones(6, 2, 4)], (Site.V, 0): [values]}, anatomy(1)).result(
        PROVENANCE
    )
    assert result.top(1) == [(0, 1)] and result.value_ratio[0].tolist() == pytest.approx([1.0, 0.1])
    assert result.key_ratio[0].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2"])
def test_real_states_have_the_models_key_value_heads(family: str, tmp_path: Path) -> None:
    model = load_model(tiny(family))
    corpus = Corpus.from_tokens(random_tokens(2, 7), model=model)
    (result,) = CorpusCache(model, corpus).run(SinkStates())
    assert isinstance(result, SinkStateResult) and result.first_key.shape == (3, model.anatomy.n_kv_heads)
    values = CorpusCache(model, corpus).get(Site.V).norm(dim=-1)  # [layer text pos kv_head]
    torch.testing.assert_close(result.first_value, values[:, :, 0].mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.other_value, values[:, :, 1:].mean((1, 2)), rtol=1e-4, atol=1e-5)
    result.save(tmp_path / "r")
    check_equal(SinkStateResult.load(tmp_path / "r"), result)


def test_a_planted_sink_is_massive_in_its_two_dimensions_from_its_layer_on(tmp_path: Path) -> None:
    fixture = bos_sink_model("llama")
    corpus = Corpus.from_tokens([[BOS, 7, 8, 9], [7, BOS, 8, 9], [10, 11]], model=fixture.model)
    (result,) = CorpusCache(fixture.model, corpus).run(MassiveActivations())
    assert isinstance(result, MassiveActivationResult)
    layers = range(fixture.model.anatomy.n_layers)
    np.testing.assert_allclose(result.share, [2 / 3 * (layer >= fixture.sink_layer) for layer in layers], rtol=1e-5)
    np.testing.assert_allclose(result.share_first, result.share / 2)
    np.testing.assert_allclose(result.share_other, result.share / 2)
    assert ((result.dimensions > 0).sum(1) == torch.tensor([2 * (n >= fixture.sink_layer) for n in layers])).all()
    result.save(tmp_path / "r")
    check_equal(MassiveActivationResult.load(tmp_path / "r"), result)
