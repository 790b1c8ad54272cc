"""Repetitions come to the token alone, at the rates of theory: closed forms, families, and what must not converge."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechrep.errors import InputError
from mechrep.measures.first_token_repeats import (
    ConvergenceResult,
    alibi_slopes,
    convergence_figure,
    expected,
    first_layer_convergence,
    fit_decay,
)
from mechrep.models.load import load_model
from mechrep.models.model import Model
from tests.analyzers.sinks_by_hand import check_equal
from tests.measures.first_token_by_hand import planted, without_positions
from tests.tiny_models import N_CTX, N_HEADS, SLIDING_WINDOW, fresh, tiny

PREFIX, TOKENS = [5, 6, 7], [20, 21, 30]


@functools.cache
def followed(family: str) -> ConvergenceResult:
    model = without_positions() if family == "none" else load_model(tiny(family))
    return first_layer_convergence(model, TOKENS, prefix=PREFIX, repeats=100)


def test_without_positions_the_odds_of_the_prefix_fall_as_one_over_n_exactly() -> None:
    result = followed("none")
    n = torch.tensor(result.repeats, dtype=torch.float32)
    share = result.odds * n  # S, whatever n
    torch.testing.assert_close(share, share[..., :1].expand_as(share), rtol=1e-4, atol=0.0)
    torch.testing.assert_close(result.head_slope, torch.full_like(result.head_slope, -1.0), rtol=0, atol=1e-3)
    assert result.median_slope == pytest.approx(-1, abs=1e-3) and result.slope_interval[1] < -0.99
    assert result.theory == result.mass_law == "power" and result.agrees


def test_without_positions_the_distance_comes_to_slope_minus_one() -> None:
    """The planted detector head attends uniformly, so it is far along from the first copies on."""
    result = first_layer_convergence(planted("llama_gqa").model, [10, 11, 12], prefix=[0, 20, 21], repeats=300)
    assert (result.slope + 1).abs().max() < 0.05 and result.law == "power" and result.agrees
    n = torch.tensor(result.repeats, dtype=torch.float32)
    torch.testing.assert_close(result.mass, (3 / (3 + n)).expand_as(result.mass), rtol=1e-4, atol=1e-6)


def test_under_alibi_the_log_of_the_odds_is_a_straight_line_in_n() -> None:
    result = followed("bloom")
    assert result.theory == result.mass_law == "exponential" and result.agrees
    assert result.expected_rates == [-slope for slope in alibi_slopes(N_HEADS)]
    steep = result.head_rate[:, :2]  # the others have hardly begun to fall after 100 copies
    torch.testing.assert_close(steep, torch.tensor(result.expected_rates[:2]).expand_as(steep), rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("family", ["llama_gqa", "gpt_neox", "gemma", "qwen2"])
def test_rotary_models_fall_with_repetitions_and_are_the_same_everywhere_in_a_pure_run(family: str) -> None:
    result = followed(family)
    assert result.theory == "power" and result.window == 0
    assert result.pure_deviation.max() < 1e-5 and result.value_deviation.max() < 1e-5
    assert (result.mass[..., -1] < result.mass[..., 0]).double().mean() > 0.8
    assert result.head_slope.isfinite().all()


def test_learned_positions_differ_in_a_pure_run_and_do_not_converge() -> None:
    result = followed("gpt2")
    assert result.pure_deviation.min() > 0.05 and result.value_deviation.min() > 0.05
    assert result.theory == result.law == "none" and result.agrees
    assert result.relative("layer")[:, -1].min() > 0.1
    assert without_positions().anatomy.positions == load_model(tiny("gpt2")).anatomy.positions
    assert followed("none").pure_deviation.max() < 1e-5, "it is the positions: without them the same model converges"


def test_a_sliding_window_drops_the_prefix_exactly() -> None:
    result = followed("mistral")
    assert result.window == SLIDING_WINDOW and result.theory == result.mass_law == result.law == "zero"
    seen = [n < SLIDING_WINDOW for n in result.repeats]
    assert (result.mass[..., seen] > 0).all() and (result.mass[..., [not now for now in seen]] == 0).all()
    assert result.relative("attention")[:, [not now for now in seen]].max() < 1e-5 and result.agrees


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_distances_and_masses_are_those_of_bare_hugging_face(family: str) -> None:
    module: Any = fresh(family)
    module.config._attn_implementation = "eager"
    layer = (module.model.layers if family == "llama" else module.transformer.h)[0]
    attention = layer.self_attn if family == "llama" else layer.attn
    outputs: list[torch.Tensor] = []
    handle = attention.register_forward_hook(lambda *args: outputs.append(args[2][0]))
    result, token = followed(family), TOKENS[1]
    for place in (0, len(result.repeats) // 2, -1):
        copies = result.repeats[place]
        full = module(torch.tensor([[*PREFIX, *[token] * copies]]), output_attentions=True, output_hidden_states=True)
        alone = module(torch.tensor([[token]]), output_hidden_states=True)
        by_attention = (outputs[-2][0, -1] - outputs[-1][0, -1]).norm().item()
        by_layer = (full.hidden_states[1][0, -1] - alone.hidden_states[1][0, -1]).norm().item()
        assert result.distance[1, :, place].tolist() == pytest.approx([by_attention, by_layer], rel=1e-3, abs=1e-4)
        mass = full.attentions[0][0, :, -1, : len(PREFIX)].sum(-1)
        torch.testing.assert_close(result.mass[1, :, place], mass, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(result.odds[1, :, place] * (1 - mass), mass, rtol=1e-2, atol=1e-4)
    handle.remove()


@settings(max_examples=40)
@given(st.floats(-3, -0.2), st.floats(0.01, 100), st.integers(20, 800))
def test_power_laws_are_fitted_as_such(slope: float, scale: float, last: int) -> None:
    n = sorted({max(1, round(last ** (i / 23))) for i in range(24)})
    fit = fit_decay(n, [scale * k**slope for k in n])
    assert fit.slope == pytest.approx(slope, abs=1e-6) and fit.law == "power" and fit.slope_rmse < 1e-6


@settings(max_examples=40)
@given(st.floats(0.01, 0.5), st.floats(0.01, 100))
def test_exponentials_are_fitted_as_such_and_rounding_is_left_out(rate: float, scale: float) -> None:
    n = [1, 2, 3, 4, 6, 8, 11, 15, 20, 27, 36, 48, 64, 100]
    values = [scale * math.exp(-rate * k) for k in n]
    fit = fit_decay(n, [value if value > 1e-12 else 1e-13 for value in values], floor=1e-12)
    assert fit.rate == pytest.approx(-rate, rel=1e-4) and fit.law == "exponential"


def test_fits_and_laws_at_their_edges() -> None:
    assert math.isnan(fit_decay([1, 2, 3], [0.0, 0.0, 0.0]).slope) and fit_decay([1, 2], [1.0, 0.5]).law == "none"
    flat = fit_decay([1, 2, 4, 8, 10, 12, 16], [1.0] * 7)
    assert flat.law == "none" and flat.slope == pytest.approx(0)
    assert expected("rotary", 8, True) == "zero" and expected("alibi", 8, False) == "none"
    assert alibi_slopes(8) == [2.0**-k for k in range(1, 9)] and alibi_slopes(6)[4:] == [0.5, 0.125]


def test_the_slopes_of_alibi_are_those_of_hugging_face() -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    for heads in (4, 6, 8, 12):
        tensor = build_alibi_tensor(torch.ones(1, 3, dtype=torch.long), heads, torch.float32)
        assert alibi_slopes(heads) == pytest.approx(tensor[:, 0, 1].tolist(), rel=1e-5)


def test_results_survive_the_disk_and_are_tables(tmp_path: Path) -> None:
    result = followed("llama_gqa")
    result.save(tmp_path / "r")
    check_equal(ConvergenceResult.load(tmp_path / "r"), result)
    table = result.to_frame()
    assert len(table) == len(TOKENS) * len(result.repeats) and set(table["token_id"]) == set(TOKENS)
    lines = result.plot().data
    assert torch.allclose(torch.tensor(lines[1].y), result.relative("layer")[1])
    assert "attention 0" in convergence_figure(result, "attention").layout.yaxis.title.text
    last = table[table["repeats"] == 100]["layer_distance"]
    assert last.tolist() == pytest.approx(result.relative("layer")[:, -1].tolist())


def refused(model: Model, match: str, *args: Any, **options: Any) -> None:
    with pytest.raises(InputError, match=match):
        first_layer_convergence(model, *args, **options)


def test_bad_input_is_refused() -> None:
    model = load_model(tiny("llama"))
    refused(model, "no tokenizer", TOKENS)
    refused(model, "no tokenizer", prefix=PREFIX)
    refused(model, "none of them in the prefix", [5], prefix=PREFIX)
    refused(model, "at least one of each", [], prefix=PREFIX)
    refused(model, "no token twice", [20, 20], prefix=PREFIX)
    refused(model, f"8 to {N_CTX - 3}", TOKENS, prefix=PREFIX, repeats=N_CTX)
    refused(model, "8 to", TOKENS, prefix=PREFIX, repeats=7)
    refused(load_model(fresh("llama").to(torch.bfloat16)), "float32", TOKENS, prefix=PREFIX)
    with pytest.raises(InputError, match="attention"):
        followed("llama_gqa").relative("mlp")
