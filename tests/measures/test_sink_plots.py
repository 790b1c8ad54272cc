"""Figures of sinks show the norms and shares of their results, depth by depth and token by token."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mechrep.errors import InputError
from mechrep.figures import SEQUENCE, shown_token
from mechrep.measures.attention_sinks import AttentionSinkResult, sink_heads_figure
from mechrep.measures.sink_norms import RepeatNormResult, SinkNormResult, norms_by_layer_figure, norms_vs_repeats_figure
from mechrep.provenance import Provenance


def provenance(name: str = "hand") -> Provenance:
    """Of a model that need not exist."""
    return Provenance({"name": name}, {"texts": 20}, {})


def sinks(n_layers: int = 6, n_heads: int = 4, *, alone: bool = False, name: str = "hand") -> AttentionSinkResult:
    """Random shares; ``alone``: no text has a second token."""
    generator = torch.Generator().manual_seed(2)
    heads = (n_layers, n_heads)
    alpha = torch.full(heads, torch.nan) if alone else torch.rand(heads, generator=generator)
    return AttentionSinkResult(
        provenance(name),
        alpha=alpha,
        alpha_published=torch.rand(heads, generator=generator),
        rate=torch.full(heads, 0.25),
        key_importance=torch.full((*heads, 3), torch.nan) if alone else torch.rand((*heads, 3), generator=generator),
        key_rows=torch.zeros(3) if alone else torch.tensor([30.0, 29.0, 2.0]),
        row_entropy=torch.rand(heads, generator=generator),
        column_entropy=torch.rand(heads, generator=generator),
        learned_sink=torch.zeros(heads),
        uniform_alpha=float("nan") if alone else 0.07,
        epsilon=0.3,
        mean_length=1.0 if alone else 64.0,
        length_sd=0.0,
        n_texts=20,
    )


def norms(n_layers: int = 6, sink: int | None = 2, *, alone: bool = False) -> SinkNormResult:
    """The first position grows a hundredfold in one layer."""
    depths = torch.arange(n_layers + 1, dtype=torch.float32)
    other = 2 + depths / 10
    first = other * (100 if sink is not None else 1)
    if sink is not None:
        first[: sink + 1] = other[: sink + 1]
    missing = torch.full_like(other, torch.nan)
    return SinkNormResult(
        provenance(),
        first_norm=first,
        other_norm=missing if alone else other,
        other_sd=missing if alone else other / 10,
        by_position=torch.ones(n_layers + 1, 3),
        jump=first.log().diff(),
        other_jump=(missing if alone else other).log().diff(),
        n_texts=5,
        n_others=0 if alone else 95,
    )


def repeats(
    tokens: int = 3, n_layers: int = 6, *, bos: bool = True, grid: tuple[int, ...] = (1, 4, 40)
) -> RepeatNormResult:
    """Token ``100 + i`` grows with its number; BOS is 50 everywhere."""
    generator = torch.Generator().manual_seed(3)
    return RepeatNormResult(
        provenance(),
        token_ids=[100 + token for token in range(tokens)],
        repeats=list(grid),
        bos=bos,
        norm=1 + 40 * torch.rand(tokens, n_layers + 1, len(grid), generator=generator),
        bos_norm=torch.full((n_layers + 1,), 50.0 if bos else torch.nan),
        taus=[0.5],
        reached=torch.zeros(tokens, n_layers + 1, 1),
    )


TYPICAL = torch.linspace(2, 3, 7)


@pytest.mark.parametrize(("n_layers", "n_heads"), [(1, 1), (6, 4), (100, 8)])
def test_attention_to_the_first_position_is_drawn(n_layers: int, n_heads: int) -> None:
    result = sinks(n_layers, n_heads)
    figure = sink_heads_figure(result)
    (trace,) = figure.data
    np.testing.assert_array_equal(np.asarray(trace.z), result.alpha.numpy())
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("head", "layer")
    assert json.loads(figure.to_json())


def test_the_pointer_shows_the_published_number_and_the_next_key() -> None:
    result = sinks()
    text = sink_heads_figure(result).data[0].hovertext[3][1]
    assert f"{result.alpha_published[3, 1]:.3f}" in text and "25% of 20 texts" in text
    assert f"position 1, {result.key_importance[3, 1, 1]:.3f}" in text  # position 2 is seen by too few queries


def test_texts_of_one_token_leave_no_number() -> None:
    figure = sink_heads_figure(sinks(alone=True))
    scored, grey = figure.data
    assert np.isnan(np.asarray(scored.z)).all() and not np.isnan(np.asarray(grey.z)).any()
    assert "second token" in grey.hovertemplate
    assert "nan" not in figure.layout.title.subtitle.text and "next key" not in scored.hovertext[0][0]


def test_names_of_models_are_escaped() -> None:
    assert "<b>x" not in sink_heads_figure(sinks(name="<b>x")).to_json()


@pytest.mark.parametrize(("n_layers", "sink"), [(1, 0), (6, 2), (100, 99)])
def test_norms_are_drawn_from_the_input_of_the_first_layer_on(n_layers: int, sink: int) -> None:
    result = norms(n_layers, sink)
    figure = norms_by_layer_figure(result)
    first, other = figure.data
    np.testing.assert_array_equal(first.y, result.first_norm.numpy())
    np.testing.assert_array_equal(other.y, result.other_norm.numpy())
    assert list(first.x) == list(other.x) == list(range(-1, n_layers))
    assert [first.customdata[place][0] for place in (0, 1)] == ["input of layer 0", "output of layer 0"]
    assert f"{result.ratio[-1]:.3g} times" in first.customdata[-1][1]
    assert f"± {result.other_sd[0]:.3g}" in other.customdata[0][1]
    assert [shape.x0 for shape in figure.layout.shapes] == [sink]
    ticks = dict(zip(figure.layout.xaxis.tickvals, figure.layout.xaxis.ticktext, strict=True))
    assert ticks[-1] == "in" and ticks[0] == "0" and len(ticks) <= 17
    assert figure.layout.yaxis.type == "log" and "norm" in figure.layout.yaxis.title.text
    assert json.loads(figure.to_json())


def test_no_sink_layer_is_said_and_not_drawn() -> None:
    figure = norms_by_layer_figure(norms(sink=None))
    assert not figure.layout.shapes


def test_without_other_positions_there_is_one_line() -> None:
    figure = norms_by_layer_figure(norms(alone=True))
    (first,) = figure.data
    np.testing.assert_array_equal(first.y, norms(alone=True).first_norm.numpy())
    assert "nan" not in figure.to_json().lower()


@pytest.mark.parametrize("tokens", [1, len(SEQUENCE), 40])
@pytest.mark.parametrize("layer", [0, 5])
def test_every_token_has_its_curve(tokens: int, layer: int) -> None:
    result = repeats(tokens)
    figure = norms_vs_repeats_figure(result, layer, TYPICAL)
    curves = [trace for trace in figure.data if trace.mode == "lines+markers"]
    drawn = {trace.customdata[0]: np.asarray(trace.y) for trace in curves}
    assert set(drawn) == {f"token {token}" for token in result.token_ids}
    for row, token in enumerate(result.token_ids):
        np.testing.assert_array_equal(drawn[f"token {token}"], result.norm[row, layer + 1].numpy())
    assert all(list(trace.x) == [1, 4, 40] for trace in curves)
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"
    assert "repeat" in figure.layout.xaxis.title.text and "norm" in figure.layout.yaxis.title.text
    assert json.loads(figure.to_json())


def test_the_largest_tokens_are_named_and_lie_over_the_rest() -> None:
    result = repeats(40)
    curves = [trace for trace in norms_vs_repeats_figure(result, 3, TYPICAL).data if trace.mode == "lines+markers"]
    named = [trace for trace in curves if trace.name.startswith("token")]
    assert [trace.name for trace in reversed(named)] == [
        f"token {token}" for token in result.ranking(3)[: len(SEQUENCE)]
    ]
    assert curves[-len(named) :] == named and len({(t.line.color, t.line.dash) for t in named}) == len(SEQUENCE)
    assert [trace.showlegend for trace in curves if trace.name == "34 other tokens"].count(True) == 1


def test_bos_and_typical_norms_are_lines() -> None:
    lines = {t.name: t for t in norms_vs_repeats_figure(repeats(), 3, TYPICAL).data if t.mode == "lines"}
    assert set(lines) == {"typical: 2.67", "BOS: 50"}
    assert set(lines["BOS: 50"].y) == {50} and list(lines["BOS: 50"].x) == [1, 40]
    assert set(lines["typical: 2.67"].y) == {float(TYPICAL[4])}


def test_without_bos_there_is_nothing_to_move_to() -> None:
    figure = norms_vs_repeats_figure(repeats(bos=False), 3, TYPICAL)
    assert [trace.name for trace in figure.data if trace.mode == "lines"] == ["typical: 2.67"]


def test_one_copy_is_a_point_beside_lines() -> None:
    figure = norms_vs_repeats_figure(repeats(grid=(1,)), 3, TYPICAL)
    assert all(trace.x[0] < trace.x[-1] for trace in figure.data if trace.mode == "lines")


def test_tokens_are_data() -> None:
    names = {100: "<script>alert(1)</script>", 101: " %{y}"}
    figure = norms_vs_repeats_figure(repeats(), 3, TYPICAL, names=names)
    assert "<script" not in figure.to_json()
    curves = {trace.customdata[0]: trace for trace in figure.data if trace.mode == "lines+markers"}
    assert set(curves) == {f"{shown_token(names[100])} (100)", "␣%{y} (101)", "token 102"}
    assert all("script" not in trace.hovertemplate and "␣" not in trace.hovertemplate for trace in curves.values())


@pytest.mark.parametrize("layer", [-1, 6])
def test_layers_that_there_are_not_are_refused(layer: int) -> None:
    with pytest.raises(InputError, match="layer"):
        norms_vs_repeats_figure(repeats(), layer, TYPICAL)


def test_typical_norms_of_another_model_or_of_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="typical"):
        norms_vs_repeats_figure(repeats(), 3, TYPICAL[:5])
    with pytest.raises(InputError, match="several tokens"):
        norms_vs_repeats_figure(repeats(), 3, torch.full((7,), torch.nan))
