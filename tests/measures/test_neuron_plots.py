"""Figures show the numbers of their results, and nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mechrep.errors import InputError
from mechrep.measures.neurons import drawn_ranks, plot_layer_distribution, plot_onset_profile, plot_sorted_delta
from tests.views import study_by_hand as by_hand


def lines(figure):
    """The lines with markers, by name."""
    return {trace.name: trace for trace in figure.data if trace.mode == "lines+markers"}


def test_onset_profile_draws_the_profile_of_the_top_neurons() -> None:
    result = by_hand.neurons()
    figure = plot_onset_profile(result, k=3)
    assert [trace.name for trace in figure.data] == [f"L{layer}N{neuron}" for layer, neuron in result.top(3)]
    for trace, (layer, neuron) in zip(figure.data, result.top(3), strict=True):
        assert list(trace.x) == list(range(-by_hand.R, by_hand.R + 1))
        np.testing.assert_array_equal(trace.y, result.profile[layer, :, neuron].numpy())
    assert any(shape.x0 == shape.x1 == 0 for shape in figure.layout.shapes)  # the onset
    assert len({(trace.line.color, trace.line.dash) for trace in figure.data}) == 3
    assert "32 looping texts" in figure.layout.title.subtitle.text


def test_one_neuron_alone_is_drawn_with_its_two_means() -> None:
    result = by_hand.neurons()
    (unit,) = result.top(1)
    shapes = plot_onset_profile(result, k=1).layout.shapes
    levels = [shape.y0 for shape in shapes if shape.type == "line" and shape.y0 == shape.y1]
    assert levels == [float(result.normal_mean[unit]), float(result.repetition_mean[unit])]


@pytest.mark.parametrize("k", [0, -1, 10_000])
def test_onset_profile_refuses_a_number_of_neurons_that_there_is_not(k: int) -> None:
    with pytest.raises(InputError):
        plot_onset_profile(by_hand.neurons(), k=k)


def test_sorted_delta_draws_every_neuron_of_a_small_model_in_order() -> None:
    result = by_hand.neurons()
    band, line = plot_sorted_delta(result).data
    expected = np.sort(result.delta.numpy().flatten())[::-1]
    np.testing.assert_allclose(line.y, expected)
    assert list(line.x) == list(range(1, result.n_neurons + 1))
    assert (line.customdata[0][:2] == [by_hand.N_LAYERS - 1, 7]).all()
    np.testing.assert_allclose(band.y[: result.n_neurons] - line.y, 0.01, atol=1e-6)
    np.testing.assert_allclose(line.y - band.y[::-1][: result.n_neurons], 0.01, atol=1e-6)


def test_sorted_delta_marks_the_published_share() -> None:
    result = by_hand.neurons()
    figure = plot_sorted_delta(result)
    assert result.published_k == 6
    assert any(shape.x0 == shape.x1 == 6 for shape in figure.layout.shapes)
    (note,) = (note for note in figure.layout.annotations if "Hiraoka" in note.text)
    assert note.x == pytest.approx(math.log10(6))


def test_sorted_delta_of_one_text_has_no_band() -> None:
    result = by_hand.neurons()
    object.__setattr__(result, "standard_error", torch.full_like(result.standard_error, torch.nan))
    assert len(plot_sorted_delta(result).data) == 1


def test_a_large_model_is_drawn_with_fewer_points() -> None:
    result = by_hand.neurons(n_layers=4, d_mlp=10_000)
    line = plot_sorted_delta(result).data[-1]
    ranks = np.asarray(line.x)
    assert len(ranks) <= 20_000 and ranks[0] == 1 and ranks[-1] == 40_000 and (np.diff(ranks) > 0).all()
    assert list(ranks[:100]) == list(range(1, 101))
    np.testing.assert_allclose(line.y, np.sort(result.delta.numpy().flatten())[::-1][ranks - 1])
    assert drawn_ranks(5).tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("k", [None, 50])
def test_layer_distribution_counts_and_expects(k: int | None) -> None:
    result = by_hand.neurons()
    bars, even = plot_layer_distribution(result, k=k).data
    assert list(bars.y) == result.layer_counts(k)
    assert set(even.y) == {(k or result.published_k) / by_hand.N_LAYERS}
    assert bars.customdata[0] == 0 and bars.customdata[-1] == 1


def test_layer_distribution_of_one_layer() -> None:
    bars = plot_layer_distribution(by_hand.neurons(n_layers=1), k=5).data[0]
    assert list(bars.x) == [0] and list(bars.customdata) == [1.0]


def test_names_are_escaped_and_results_offer_their_figure() -> None:
    figure = by_hand.neurons("<b>x").plot(k=2)
    assert "&lt;b&gt;x" in figure.layout.title.subtitle.text and len(figure.data) == 2
