"""Heat maps and profiles of heads show the numbers of their results, and say where there is none."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch

from mechrep.errors import InputError, NothingFoundError
from mechrep.figures import UNKNOWN
from mechrep.measures.head_layers import layer_profile_figure, layer_profiles
from mechrep.measures.head_scores import HeadScoreResult, head_scores_figure
from mechrep.measures.head_targets import SCORES
from tests.views import study_by_hand as by_hand

SHAPES = [(1, 1), (1, 4), (6, 1), (6, 4), (32, 32), (100, 8)]


def heads(n_layers: int = 6, n_heads: int = 4, **changes: Any) -> HeadScoreResult:
    """Random scores; texts and queries are known numbers."""
    generator = torch.Generator().manual_seed(1)
    shape = (len(SCORES), n_layers, n_heads)
    result = HeadScoreResult(
        by_hand.provenance(),
        scores=torch.rand(shape, generator=generator),
        standard_errors=torch.rand(shape, generator=generator) / 10,
        chance=torch.linspace(0.01, 0.05, len(SCORES)),
        without_sink=torch.rand(shape, generator=generator),
        sink_rows_dropped=torch.zeros(shape, dtype=torch.long),
        unexplained=torch.rand(shape[1:], generator=generator),
        variants=torch.rand((1, *shape[1:]), generator=generator) - 0.5,
        variant_names=["tl_abs"],
        names=list(SCORES),
        n_queries=dict.fromkeys(SCORES, 2401),
        n_texts=dict.fromkeys(SCORES, 32),
        not_used={"period-1": 0, "period-2": 0},
        missing={},
    )
    return dataclasses.replace(result, **changes)


def without(name: str, reason: str, **shape: int) -> HeadScoreResult:
    """A result whose one score has no values."""
    result = heads(**shape)
    tables = {}
    for table in ("scores", "standard_errors", "chance"):
        tables[table] = getattr(result, table).clone()
        tables[table][SCORES.index(name)] = torch.nan
    counts = {table: {**getattr(result, table), name: 0} for table in ("n_texts", "n_queries")}
    return dataclasses.replace(result, **tables, **counts, missing={name: reason})


@pytest.mark.parametrize(("n_layers", "n_heads"), SHAPES)
def test_every_score_of_every_head_is_drawn(n_layers: int, n_heads: int) -> None:
    result = heads(n_layers, n_heads)
    figure = head_scores_figure(result)
    assert len(figure.data) == len(SCORES)
    for trace, name in zip(figure.data, SCORES, strict=True):
        np.testing.assert_array_equal(np.asarray(trace.z), result.of(name).numpy())
        assert list(trace.x) == list(range(n_heads)) and list(trace.y) == list(range(n_layers))
    axes = [*zip(figure.select_xaxes(), figure.select_yaxes(), strict=True)]
    for x, y in axes[: len(SCORES)]:
        assert (x.title.text, y.title.text) == ("head", "layer")
        assert list(x.range) == [-0.5, n_heads - 0.5] and list(y.range) == [-0.5, n_layers - 0.5]
    assert len(json.loads(figure.to_json())["data"]) == len(SCORES)


@pytest.mark.parametrize("score", [*SCORES, "tl_abs"])
def test_one_score_alone(score: str) -> None:
    result = heads()
    (trace,) = head_scores_figure(result, score).data
    np.testing.assert_array_equal(np.asarray(trace.z), result.of(score).numpy())


def test_all_panels_share_one_scale_from_0_to_1() -> None:
    figure = head_scores_figure(heads(scores=heads().scores / 10))
    assert {trace.coloraxis for trace in figure.data} == {"coloraxis"}
    scale = figure.layout.coloraxis
    assert (scale.cmin, scale.cmax, scale.colorbar.title.text) == (0, 1, "share of attention")


def test_the_share_of_texts_is_called_so() -> None:
    provenance = by_hand.provenance(average=0.5)
    assert "texts" in head_scores_figure(heads(provenance=provenance)).layout.coloraxis.colorbar.title.text


def test_the_pointer_shows_error_chance_and_counts() -> None:
    result = heads()
    trace = head_scores_figure(result, "duplicate_token").data[0]
    for layer in range(6):
        for head in range(4):
            text = trace.hovertext[layer][head]
            assert f"± {result.standard_errors[1, layer, head]:.3f}" in text
            assert "chance 0.020" in text and "queries: 2,401, texts: 32" in text


def test_one_text_has_no_standard_error() -> None:
    result = heads(standard_errors=torch.full_like(heads().standard_errors, torch.nan))
    texts = np.asarray(head_scores_figure(result, "induction").data[0].hovertext)
    assert all("no standard error" in text and "nan" not in text for text in texts.flatten())


def test_values_stand_in_cells_while_they_fit() -> None:
    small = head_scores_figure(heads(), "induction").data[0]
    assert small.texttemplate == "%{text}"
    assert [[float(text) for text in row] for row in small.text] == [
        [round(value, 2) for value in row] for row in heads().of("induction").double().tolist()
    ]
    for shape in ((100, 8), (8, 100)):
        large = head_scores_figure(heads(*shape), "induction").data[0]
        assert large.text is None and large.texttemplate is None


@pytest.mark.parametrize(("reason", "said"), [("period-1", "period 1"), ("no query", "no text"), ("<why>", "&lt;why")])
def test_a_score_without_values_is_grey_and_says_why(reason: str, said: str) -> None:
    result = without("induction", reason)
    figure = head_scores_figure(result)
    scored, grey = (trace for trace in figure.data if trace.xaxis == "x")
    assert np.isnan(np.asarray(scored.z)).all() and scored.hoverongaps is False
    assert {text for row in scored.text for text in row} == {""}
    assert not np.isnan(np.asarray(grey.z)).any() and {text for row in grey.text for text in row} == {"–"}
    assert {colour for _, colour in grey.colorscale} == {UNKNOWN} and grey.coloraxis is None
    assert said in grey.hovertemplate and "no value" in grey.hovertemplate
    assert said in figure.layout.annotations[0].text
    assert len(figure.data) == len(SCORES) + 1
    assert "NaN" not in figure.to_json()


def test_single_missing_cells_are_grey_and_their_neighbours_are_not() -> None:
    scores = heads().scores.clone()
    scores[0, 2, 3] = torch.nan
    result = heads(scores=scores)
    scored, grey = head_scores_figure(result, "induction").data
    np.testing.assert_array_equal(np.asarray(scored.z), scores[0].numpy())
    np.testing.assert_array_equal(np.isnan(np.asarray(grey.z)), ~np.isnan(scores[0].numpy()))


def test_names_are_escaped_and_numbers_are_named() -> None:
    result = heads(provenance=by_hand.provenance("<b>x"), variant_names=["<script>"])
    figure = head_scores_figure(result, "<script>")
    assert "<script" not in figure.to_json() and "<b>x" not in figure.to_json()
    assert figure.layout.title.subtitle.text == "&lt;b&gt;x, 32 texts"


def test_unknown_scores_are_refused() -> None:
    with pytest.raises(InputError, match="copying"):
        head_scores_figure(heads(), "copying")


def test_results_offer_their_figure() -> None:
    assert len(heads().plot().data) == len(SCORES)


@pytest.mark.parametrize(("k_neurons", "k_heads", "score"), [(None, None, "induction"), (50, 9, "duplicate_token")])
def test_profiles_are_shares_by_layer(k_neurons: int | None, k_heads: int | None, score: str) -> None:
    neurons, result = by_hand.neurons(), heads()
    figure = layer_profile_figure(neurons, result, k_neurons=k_neurons, k_heads=k_heads, score=score)
    of_neurons, even, of_heads, other_even = figure.data
    k = k_neurons or neurons.published_k
    assert list(of_neurons.y) == [count / k for count in neurons.layer_counts(k_neurons)]
    best = sorted(result.of(score).flatten().tolist(), reverse=True)[: k_heads or by_hand.N_LAYERS]
    expected = [
        sum(value for value in row if value >= best[-1]) / sum(best) for row in result.of(score).double().tolist()
    ]
    np.testing.assert_allclose(of_heads.y, expected, rtol=1e-6)
    assert set(even.y) == set(other_even.y) == {1 / by_hand.N_LAYERS}
    assert len({of_neurons.marker.color, of_heads.marker.color}) == 2
    titles = [note.text for note in figure.layout.annotations]
    assert titles == [f"top {k} neurons", f"top {k_heads or 6} heads"]
    assert [axis.title.text for axis in figure.select_xaxes()] == ["layer", "layer"]
    assert all("share" in axis.title.text for axis in figure.select_yaxes())
    assert "32 looping texts" in figure.layout.title.subtitle.text and "hand" in figure.layout.title.subtitle.text
    assert json.loads(figure.to_json())


@pytest.mark.parametrize("n_layers", [1, 100])
def test_profiles_of_one_and_of_many_layers(n_layers: int) -> None:
    figure = layer_profile_figure(by_hand.neurons(n_layers=n_layers), heads(n_layers))
    assert all(len(figure.data[place].x) == n_layers for place in (0, 2))
    assert sum(figure.data[2].y) == pytest.approx(1)


def test_the_pointer_names_the_heads_of_a_layer() -> None:
    scores = torch.zeros_like(heads().scores)
    scores[0, 2, 1], scores[0, 2, 3], scores[0, 4, 0] = 0.5, 0.75, 0.25
    bars = layer_profile_figure(by_hand.neurons(), heads(scores=scores), k_heads=3).data[2]
    assert bars.hovertext[2] == "2 of 3 heads<br>H3: 0.750<br>H1: 0.500"
    np.testing.assert_allclose(bars.y, [0, 0, 1.25 / 1.5, 0, 0.25 / 1.5, 0])


def test_two_models_are_not_compared() -> None:
    own = by_hand.provenance()
    another = dataclasses.replace(own, model={**own.model, "fingerprint": "of other weights"})
    for other in (heads(5), heads(provenance=another)):
        with pytest.raises(InputError, match="one model"):
            layer_profile_figure(by_hand.neurons(), other)


@pytest.mark.parametrize("numbers", [{"k_neurons": 0}, {"k_heads": 0}, {"k_heads": 25}, {"k_neurons": 10_000}])
def test_sets_that_there_are_not_are_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(InputError):
        layer_profile_figure(by_hand.neurons(), heads(), **numbers)


def test_heads_without_scores_cannot_be_shared_out() -> None:
    for result in (without("induction", "period-1"), heads(scores=torch.zeros_like(heads().scores))):
        with pytest.raises(InputError, match="above 0"):
            layer_profile_figure(by_hand.neurons(), result)


# --- overlap of profiles --------------------------------------------------------------------------------------------


def profiles(neuron_layers: dict[int, int], head_layers: dict[int, int], **options: Any) -> Any:
    """So many neurons that rise, and so many induction heads, in these layers of 3; nothing else."""
    neurons, result = by_hand.neurons(n_layers=3), heads(3)
    delta, scores = torch.full_like(neurons.delta, -1.0), torch.zeros_like(result.scores)
    for layer, number in neuron_layers.items():
        delta[layer, :number] = 1.0
    for layer, number in head_layers.items():
        scores[0, layer, :number] = 0.9
    found = dataclasses.replace(neurons, delta=delta)
    return layer_profiles(found, dataclasses.replace(result, scores=scores), **({"k_neurons": 20} | options))


@pytest.mark.parametrize(
    ("neuron_layers", "head_layers", "overlap"),
    [
        ({2: 9}, {2: 3}, 1.0),
        ({2: 9}, {0: 3}, 0.0),
        ({1: 4, 2: 12}, {0: 1, 2: 1}, 0.5),
        ({0: 2, 1: 2}, {0: 3, 1: 1}, 0.75),
    ],
)
def test_overlap_and_its_null_by_all_orders_of_layers(neuron_layers: dict, head_layers: dict, overlap: float) -> None:
    frame = profiles(neuron_layers, head_layers)
    assert frame["neurons"].tolist() == [neuron_layers.get(layer, 0) for layer in range(3)]
    assert frame["heads"].tolist() == [head_layers.get(layer, 0) for layer in range(3)]
    assert frame["overlap"].tolist() == [overlap] * 3
    shares = frame[["neuron_share", "head_share"]].to_numpy().T
    orders = [np.minimum(shares[0], shares[1][list(order)]).sum() for order in itertools.permutations(range(3))]
    row = frame.iloc[0]
    assert row["null"] == pytest.approx(np.mean(orders), abs=0.03)
    assert row["p"] == pytest.approx(np.mean(np.array(orders) >= overlap), abs=0.05)
    assert (row["null_low"], row["null_high"]) == (min(orders), max(orders))


def test_profiles_count_what_they_are_asked_for() -> None:
    assert profiles({0: 5, 1: 5}, {2: 2}, k_neurons=3, k_heads=1)[["neurons", "heads"]].sum().tolist() == [3, 1]
    for options, match in (({"k_heads": 99}, "k = 99"), ({"draws": 0}, "draws=0")):
        with pytest.raises(InputError, match=match):
            profiles({0: 5}, {2: 2}, **options)
    with pytest.raises(NothingFoundError, match="0 neurons that rise and 2 heads"):
        profiles({}, {2: 2})
    with pytest.raises(NothingFoundError, match="5 neurons that rise and 0 heads"):
        profiles({0: 5}, {})
    with pytest.raises(InputError, match="neurons of 3 layers, heads of 2"):
        layer_profiles(by_hand.neurons(n_layers=3), heads(2))
