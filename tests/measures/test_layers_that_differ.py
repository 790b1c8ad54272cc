"""Models whose layers differ: what a layer lacks has no number, no rank, is never drawn and cannot be named."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch

import mechrep
from mechrep.ablation.controls import draw_controls
from mechrep.ablation.study import single_head_sweep
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError, MissingPartError
from mechrep.interventions.ops import SinkPatch
from mechrep.measures.attention_sinks import AttentionSinks, first_position_attention
from mechrep.measures.distance_profile import DistanceProfile
from mechrep.measures.head_scores import HeadScores
from mechrep.measures.neurons import RepetitionNeurons
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.units import expert_of, expert_unit, units_per_layer
from mechrep.stats import known
from mechrep.text.corpus import Corpus
from tests.families.words import worded
from tests.families.zoo import text

HYBRID, MIXTURE = "LFM2", "DeepSeek-V3"


@functools.cache
def made(name: str) -> tuple[Model, Corpus]:
    model = worded(name)
    rows = [[0, *text(20, seed=seed), *text(5, seed=seed + 9) * 5] for seed in range(3)]
    return model, Corpus.from_tokens(rows, model=model).with_cycles()


def test_heads_of_layers_without_attention_are_nan_and_unranked() -> None:
    model, corpus = made(HYBRID)
    anatomy, there = model.anatomy, model.anatomy.attention_layers
    cache = CorpusCache(model, corpus, progress=False)
    sinks, scores, profile = cache.run(AttentionSinks(), HeadScores(bos_id=0), DistanceProfile())
    for table in (sinks.alpha, sinks.rate, sinks.learned_sink, scores.induction, scores.adjusted[0], profile.weights):
        assert [n for n in range(anatomy.n_layers) if not table[n].isnan().any()] == list(there)
    units = [(layer, head) for layer in there for head in range(anatomy.n_heads)]
    for result in (sinks, scores):
        assert sorted(result.ranking()) == units
        assert len(result.to_frame()) == anatomy.n_layers * anatomy.n_heads
        with pytest.raises(InputError):
            result.top(len(units) + 1)
    pattern = cache[Site.PATTERN, there[0]]
    column = first_position_attention(model, corpus)
    assert torch.allclose(column[:, there[0], :, 3], pattern[:, :, 3, 0], atol=1e-5)
    assert column[:, [n for n in range(anatomy.n_layers) if n not in there]].isnan().all()


def test_single_heads_are_those_that_exist() -> None:
    model, corpus = made(HYBRID)
    effects = single_head_sweep(model, texts=corpus)
    assert {one.name for one in effects.conditions[1:]} == {
        f"L{layer}H{head}" for layer in model.anatomy.attention_layers for head in range(model.anatomy.n_heads)
    }


def test_neurons_beyond_a_layers_own_are_nan_and_unranked() -> None:
    model, corpus = made(MIXTURE)
    result = CorpusCache(model, corpus, progress=False).run(RepetitionNeurons("hiraoka2025", r=5))
    counts = model.anatomy.neurons
    assert len(set(counts)) > 1
    for layer, count in enumerate(counts):
        assert not result.delta[layer, :count].isnan().any() and result.delta[layer, count:].isnan().all()
        assert result.profile[layer, :, count:].isnan().all()
    assert result.n_neurons == sum(counts) == len(result.ranking()) == len(known(result.delta))
    assert all(neuron < counts[layer] for layer, neuron in result.ranking())


@pytest.mark.parametrize("kind", ["random", "layer_matched", "activation_matched"])
def test_controls_are_drawn_from_what_exists(kind: str) -> None:
    model, _ = made(MIXTURE)
    widths = units_per_layer(model.anatomy, "neurons")
    match = torch.full((len(widths), max(widths)), torch.nan)
    for layer, width in enumerate(widths):
        match[layer, :width] = torch.arange(width)
    sets = draw_controls(kind, [(0, 0), (1, 3)], layers=len(widths), width=widths, draws=200, match=match)
    drawn = {unit for one in sets for unit in one}
    assert all(number < widths[layer] for layer, number in drawn)
    if kind == "random":
        assert max(number for layer, number in drawn if layer == 1) >= widths[0]
    heads = units_per_layer(made(HYBRID)[0].anatomy, "heads")
    assert {
        layer for one in draw_controls("random", [(1, 0)], layers=4, width=heads, draws=50) for layer, _ in one
    } == {layer for layer, n in enumerate(heads) if n}


def test_units_that_do_not_exist_are_refused() -> None:
    model, _ = made(MIXTURE)
    first, second = model.anatomy.neurons[:2]
    for wrong in (
        mechrep.Neurons([(0, first)], when="all"),
        SinkPatch(0, [first]),
        mechrep.Circuit("x", neurons=[(0, first)]),
    ):
        with pytest.raises(InputError, match=f"neuron {first} of layer 0"):
            wrong.check(model.anatomy) if isinstance(wrong, mechrep.Circuit) else wrong.hooks(model)
    assert mechrep.Neurons([(1, second - 1)], when="all").edits(model.anatomy)
    hybrid, _ = made(HYBRID)
    with pytest.raises(InputError, match="head 0 of layer 0"):
        mechrep.Heads([(0, 0)], when="all").edits(hybrid.anatomy)


def test_experts_have_names_of_their_own() -> None:
    anatomy = made(MIXTURE)[0].anatomy
    layer = anatomy.layers_with(Site.ROUTER)[0]
    seen = [expert_of(anatomy, layer, neuron) for neuron in range(anatomy.neurons[layer])]
    routed = [(expert, neuron) for expert, neuron in seen if expert >= 0]
    assert [expert_unit(anatomy, layer, *one) for one in routed] == [(layer, n) for n in range(len(routed))]
    assert len(routed) == anatomy.experts[layer] * anatomy.d_expert < len(seen)  # a shared one stands behind them
    assert expert_of(anatomy, 0, 7) == (-1, 7)
    with pytest.raises(MissingPartError):
        expert_unit(anatomy, 0, 0, 0)
    with pytest.raises(InputError):
        expert_unit(anatomy, layer, anatomy.experts[layer], 0)
    with pytest.raises(InputError):
        expert_of(dataclasses.replace(anatomy), layer, anatomy.neurons[layer])
