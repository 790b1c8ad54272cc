"""A neuron planted in the weights, which fires on tokens that stand only in loops, is found: it and no other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mechrep.cache import CorpusCache
from mechrep.measures.neurons import RepetitionNeuronResult, RepetitionNeurons
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.text.corpus import Corpus
from tests.tiny_models import D_MODEL, fresh

LOOP_TOKENS = range(50, 58)
LAYER, NEURON = 1, 17


def planted(family: str) -> Model:
    """Loop tokens share a direction ``u``, and one neuron reads it; attention is silent: position does not matter."""
    module: Any = fresh(family, seed=4)
    u = torch.zeros(D_MODEL)
    u[0], u[1] = 1.0, -1.0  # mean zero, so that a layer norm keeps it
    embedding = module.get_input_embeddings().weight
    embedding -= (embedding @ u)[:, None] * u / 2  # nothing else speaks in this direction ...
    embedding[list(LOOP_TOKENS)] += 3 * u
    layers = module.model.layers if family == "llama" else module.gpt_neox.layers
    for number, layer in enumerate(layers):
        attention = layer.self_attn.o_proj if family == "llama" else layer.attention.dense
        outward = layer.mlp.down_proj if family == "llama" else layer.mlp.dense_4h_to_h
        inward = layer.mlp.gate_proj if family == "llama" else layer.mlp.dense_h_to_4h
        for parameter in (*attention.parameters(), *outward.parameters()):
            parameter.zero_()
        inward.weight -= (inward.weight @ u)[:, None] * u / 2  # ... and no other neuron listens to it
        if number == LAYER:
            inward.weight[NEURON] = 4 * u
    return load_model(module, check=False)  # silent parts fail the contract, as they should


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
@pytest.mark.parametrize("preset", ["mechrep", "hiraoka2025"])
def test_the_planted_neuron_is_rank_0_and_stands_alone(family: str, preset: str) -> None:
    model, draw = planted(family), np.random.default_rng(0)
    texts, starts, onsets = [], [], []
    for _ in range(24):
        start, period = int(draw.integers(15, 25)), int(draw.integers(1, 5))
        cycle = draw.choice(list(LOOP_TOKENS), period, replace=False)
        texts.append([*draw.integers(3, 50, start).tolist(), *np.tile(cycle, 12)[: 3 * period + 12].tolist()])
        starts.append(start)
        onsets.append(start + period)
    corpus = Corpus.from_tokens(texts, model=model, frame=pd.DataFrame({"start": starts, "onset": onsets}))
    (result,) = CorpusCache(model, corpus).run(RepetitionNeurons(preset, r=12))
    assert isinstance(result, RepetitionNeuronResult)
    assert result.top(1) == [(LAYER, NEURON)]
    planted_delta, second = (float(result.delta[unit]) for unit in result.top(2))
    assert planted_delta > 1.5 * second
    if preset == "mechrep":  # the published normal window holds the first copy, in which the neuron fires already
        assert result.top(1, "t") == result.top(1, "dprime") == [(LAYER, NEURON)]
        assert result.normal_mean[LAYER, NEURON].abs() < 0.05 * result.repetition_mean[LAYER, NEURON]
    else:
        assert result.delta[LAYER, NEURON] < result.delta_clean[LAYER, NEURON]
