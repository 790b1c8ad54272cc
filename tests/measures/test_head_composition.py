"""Composition of heads: against TransformerLens on processed weights, against Gaussian heads, and a planted pair."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mechrep.errors import InputError, ModelError
from mechrep.measures.head_circuits import MODES, HeadCompositionResult, head_composition
from mechrep.models.anatomy import Site
from mechrep.models.load import load_model
from mechrep.models.nulls import reinitialised
from tests.measures.circuits_by_hand import planted, processed, raw, without
from tests.tiny_models import N_HEADS, N_LAYERS, families


@pytest.mark.parametrize("family", families("llama", "llama_gqa", "gpt2", "gpt_neox"))
def test_raw_and_folded_weights_have_transformer_lens_scores(family: str) -> None:
    results = [head_composition(model, draws=2) for model in (raw(family), processed(family))]
    for mode in MODES:
        expected = processed(family).all_composition_scores(mode).scores.detach()
        for result in results:
            scores = result.of(mode)
            for later in range(N_LAYERS):
                assert scores[later:, :, later].isnan().all()
                for earlier in range(later):
                    found = scores[earlier, :, later]
                    torch.testing.assert_close(found, expected[earlier, :, later], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(results[0].null, results[1].null, atol=0.05, rtol=0.2, equal_nan=True)


def test_a_score_is_a_norm_of_products() -> None:
    model, (one, two) = processed("llama"), ((0, 1), (2, 3))
    (q1, k1, v1, o1), (q2, k2, v2, o2) = (
        tuple(getattr(model, f"W_{name}")[unit].detach().double() for name in "QKVO") for unit in (one, two)
    )
    assert q1.shape == k1.shape
    readers = {"Q": q2 @ k2.T, "K": k2 @ q2.T, "V": v2 @ o2}
    result = head_composition(raw("llama"), draws=2)
    for mode, reader in readers.items():
        writer = v1 @ o1
        expected = (writer @ reader).norm() / writer.norm() / reader.norm()
        assert float(result.of(mode)[(*one, *two)]) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2"])
def test_heads_that_were_never_trained_are_like_gaussian_ones(family: str) -> None:
    result = head_composition(reinitialised(raw(family)), draws=30)
    for mode in MODES:
        z = result.z_scores(mode)
        assert z.isnan().sum() == (N_LAYERS * (N_LAYERS + 1) // 2) * N_HEADS**2
        assert abs(float(z.nanmean())) < 0.5 and 0.5 < float(z[~z.isnan()].std()) < 2


@pytest.mark.parametrize("family", families("llama", "llama_gqa", "gpt2", "gpt_neox"))
def test_the_planted_previous_token_head_is_what_the_induction_head_reads_keys_from(family: str) -> None:
    """Noise on all weights gives every other head something to write."""
    circuit = planted(family)
    module: Any = copy.deepcopy(circuit.model.plain)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if parameter.ndim == 2:
            parameter += 1e-3 * torch.randn(parameter.shape, generator=generator)
    result = head_composition(load_model(module))
    from_first = result.of("K")[0][:, circuit.induction[0], circuit.induction[1]]
    assert not from_first.isnan().any() and int(from_first.argmax()) == circuit.previous_token[1]
    pair = (*circuit.previous_token, *circuit.induction)
    assert result.top(1, "K") == [(circuit.previous_token, circuit.induction)]
    assert float(result.z_scores("K")[pair]) > 10
    for mode in ("Q", "V"):
        assert float(result.of("K")[pair]) > 3 * float(result.of(mode)[pair])
    readers = result.with_sources([circuit.previous_token], "K")[0, 1]
    assert int(readers.argmax()) == circuit.induction[1]


def test_heads_of_zeros_have_no_score() -> None:
    circuit = planted("gpt2")
    result = head_composition(circuit.model)
    scores = result.of("K")[0][:, circuit.induction[0], circuit.induction[1]]
    assert [head for head in range(4) if not scores[head].isnan()] == [circuit.previous_token[1]]
    assert len(result.to_frame("K")) == int((~result.of("K").isnan()).sum())


def test_frame_and_store(tmp_path: Path) -> None:
    result = head_composition(raw("llama"), draws=2)
    frame = result.to_frame("V")
    assert len(frame) == N_HEADS**2 * N_LAYERS * (N_LAYERS - 1) // 2 and frame["score"].is_monotonic_decreasing
    row = frame.iloc[7]
    place = tuple(int(row[name]) for name in ("from_layer", "from_head", "to_layer", "to_head"))
    assert row["score"] == pytest.approx(float(result.of("V")[place]))
    assert row["excess"] == pytest.approx(float(result.of("V")[place] - result.null[2, place[0], place[2]]))
    assert result.top(0) == [] and len(result.top(3, "Q")) == 3
    result.save(tmp_path / "composition")
    again = HeadCompositionResult.load(tmp_path / "composition")
    np.testing.assert_array_equal(again.scores, result.scores)


def test_bad_input() -> None:
    with pytest.raises(InputError, match="draws=1"):
        head_composition(raw("llama"), draws=1)
    with pytest.raises(ModelError, match="without k"):
        head_composition(without(raw("llama"), Site.K))
    result = head_composition(raw("llama"), draws=2)
    with pytest.raises(InputError, match="mode='O'"):
        result.of("O")
    for sources in ([], [(0, 4)], [(3, 0)]):
        with pytest.raises(InputError, match="heads"):
            result.with_sources(sources, "K")
    with pytest.raises(InputError, match="k = 10000"):
        result.top(10_000)
