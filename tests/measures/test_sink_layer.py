"""The published rule for the sink layer, what it cannot do, and what the largest jump does instead."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechrep.errors import InputError, NothingFoundError
from mechrep.measures.sink_neurons import bos_mlp_norms, outlier_layer, sink_layer_yona2025
from mechrep.measures.sink_norms import SinkNormResult, robust_z
from mechrep.models.load import load_model
from tests.analyzers.sinks_by_hand import PROVENANCE
from tests.tiny_models import PARTS, fresh, tiny

FINITE = st.floats(0, 1e6, width=32)


def norms(first: list[float], others: list[float]) -> SinkNormResult:
    """What an analyzer says of one text with these norms at the first and at all other positions, by depth."""
    at_first, elsewhere = torch.tensor(first), torch.tensor(others)
    return SinkNormResult(
        PROVENANCE,
        at_first,
        elsewhere,
        other_sd=torch.zeros_like(elsewhere),
        by_position=at_first[:, None],
        jump=at_first.log().diff(),
        other_jump=elsewhere.log().diff(),
        n_texts=1,
        n_others=1,
    )


def test_one_outlier_fires_from_six_layers_on() -> None:
    values = [1.0, 1000.0, 1.0, 1.0, 1.0, 1.0]
    assert outlier_layer(torch.tensor(values)) == 1
    z = (np.array(values[:5]) - np.mean(values[:5])) / np.std(values[:5], ddof=1)
    assert z.max() == pytest.approx(1.789, abs=1e-3)  # (5 - 1) / sqrt(5): below 2 whatever the outlier
    with pytest.raises(InputError, match="5 layers"):
        outlier_layer(torch.tensor(values[:5]))


@settings(max_examples=30)
@given(values=st.lists(FINITE, min_size=2, max_size=5))
def test_no_five_numbers_hold_one_two_deviations_above_their_mean(values: list[float]) -> None:
    """Why the rule is refused there: it is no matter of the values."""
    assert not any(value > np.mean(values) + 2 * np.std(values, ddof=1) * (1 + 1e-9) for value in values)
    with pytest.raises(InputError):
        outlier_layer(torch.tensor(values))


@settings(max_examples=30)
@given(values=st.lists(FINITE, min_size=6, max_size=20), place=st.integers(0, 5), size=st.floats(0, 1e8))
def test_the_rule_is_that_of_the_released_code(values: list[float], place: int, size: float) -> None:
    values[place] = size
    double = np.array(values, dtype=np.float64)
    passing = np.flatnonzero(double > double.mean() + 2 * double.std(ddof=1))
    if len(passing):
        assert outlier_layer(torch.tensor(double)) == passing[0]
    else:
        with pytest.raises(NothingFoundError):
            outlier_layer(torch.tensor(double))


def test_two_equal_outliers_hide_each_other_and_the_jump_finds_the_first() -> None:
    values = [0.0, 5.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0]
    assert (5 - np.mean(values)) / np.std(values, ddof=1) == pytest.approx(1.62, abs=0.01)
    with pytest.raises(NothingFoundError, match="two large layers hide each other"):
        outlier_layer(torch.tensor(values))
    result = norms(np.exp(np.cumsum([0.0, *values])).tolist(), [1.0] * 9)
    assert result.layer_of_jump == 1 and result.top(2) == [1, 4]
    assert result.layer == 4 and result.stages[0].layers == [1, 4], "both write one rise, which ends after the second"
    assert result.jump_z[1] == result.jump_z[4] == torch.inf


def test_growth_that_all_positions_share_is_no_sink_layer() -> None:
    result = norms([1.0, 400.0, 8000.0, 8000.0], [1.0, 390.0, 390.0, 400.0])
    assert result.layer_of_jump == 0 and result.layer == 1 and result.ranking() == [1, 0, 2]


def test_no_sink_layer_unless_the_ratio_doubles() -> None:
    for ratio, layer in ((1.999, None), (2.001, 0)):
        assert norms([1.0, ratio, 1.5], [1.0, 1.0, 1.0]).layer == layer
    assert norms([9.0, 1.0, 1.0], [1.0, 1.0, 1.0]).layer is None, "a large embedding alone is made by no layer"


@settings(max_examples=30)
@given(values=st.lists(st.integers(-50, 50), min_size=1, max_size=9))
def test_robust_z_by_numpy(values: list[int]) -> None:
    array = np.array(values, dtype=float)
    offset = array - np.median(array)
    scale = 1.482602218505602 * np.median(np.abs(offset))
    with np.errstate(divide="ignore"):
        expected = np.where(offset == 0, 0.0, np.where(offset == 0, 1.0, offset) / scale)
    np.testing.assert_allclose(robust_z(torch.tensor(array)).numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("family", ["llama_gqa", "gpt_neox"])
def test_mlp_norms_of_bos_alone_by_torch_hooks(family: str) -> None:
    module, seen = tiny(family), {}
    handles = [
        PARTS[family]
        .of(module, "mlp_output", layer)
        .register_forward_hook(lambda _m, _a, out, layer=layer: seen.update({layer: out[0, 0].double().norm()}))
        for layer in range(3)
    ]
    with torch.no_grad():
        module(torch.tensor([[0]]))  # pyright: ignore
    for handle in handles:
        handle.remove()
    model = load_model(tiny(family))
    expected = torch.stack([seen[layer] for layer in range(3)])
    torch.testing.assert_close(bos_mlp_norms(model), expected, rtol=1e-5, atol=1e-6)
    assert len(bos_mlp_norms(model, 2)) == 2
    with pytest.raises(InputError, match="3 layers"):
        sink_layer_yona2025(model)
    for layers in (0, 4):
        with pytest.raises(InputError, match="1 to 3 layers"):
            bos_mlp_norms(model, layers)


def test_the_published_layer_of_a_planted_writer() -> None:
    module = fresh("llama", num_hidden_layers=7)
    PARTS["llama"].of(module, "mlp_output", 4).weight.data *= 100  # pyright: ignore
    model = load_model(module)
    assert sink_layer_yona2025(model) == 4
    with pytest.raises(InputError, match="4 layers"):
        sink_layer_yona2025(model, 4)
