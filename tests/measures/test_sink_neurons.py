"""Sink neurons: scores beside torch hooks, planted neurons and decoys."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mechrep.errors import InputError, NothingFoundError
from mechrep.measures.sink_neurons import (
    SinkNeuronResult,
    row_norms,
    sink_neurons,
    sink_neurons_yona2025,
    spike_weights,
)
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.text.corpus import Corpus
from mechrep.text.stimuli import repeated_tokens
from tests.analyzers.sinks_by_hand import check_equal
from tests.families import zoo
from tests.planted.sinks import SinkModel, sink_model
from tests.planted.texts import words
from tests.planted.workbench import BOS, SINK_MINUS, SINK_PLUS
from tests.tiny_models import D_MLP, PARTS, fresh, random_tokens, tiny
from tests.unchecked import as_users_call


@functools.cache
def planted(family: str) -> SinkModel:
    """One per process: not to be changed.  BOS and the end of every long repeat are sinks."""
    return sink_model(family)


def changed(family: str, change: Callable[[Any], None]) -> Model:
    """A copy of the planted model whose MLP at the sink's layer is changed."""
    module: Any = copy.deepcopy(planted(family).model.plain)
    change(module.model.layers[planted(family).sink_layer].mlp)
    return load_model(module)


def texts(model: Model, n: int = 8) -> Corpus:
    """BOS and different words."""
    return Corpus.from_tokens([[BOS, *words(13, seed=seed)] for seed in range(n)], model=model)


def hooked(family: str, module: Any, ids: list[int], layer: int) -> dict[str, Tensor]:
    """What goes into the output matrix, and what goes into the activation function: ``[pos neuron]``."""
    seen: dict[str, Tensor] = {}
    handles = [
        PARTS[family]
        .of(module, part, layer)
        .register_forward_pre_hook(lambda _m, args, n=name: seen.update({n: args[0][0]}))
        for name, part in (("post", "mlp_output"), ("pre", "activation"))
    ]
    with torch.no_grad():
        module(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2", "gpt_neox"])
def test_scores_beside_torch_hooks(family: str, tmp_path: Path) -> None:
    module, model = tiny(family), load_model(tiny(family))
    # Unequal numbers of repeats: the last copy of the third text is followed by padding.
    corpus = Corpus.concatenate(repeated_tokens(model, [7, 30], 10), repeated_tokens(model, [11], 4))
    result = sink_neurons(model, corpus, 1)
    weight: Any = PARTS[family].of(module, "mlp_output", 1).weight
    rows = (weight if family == "gpt2" else weight.T).double().norm(dim=1)
    torch.testing.assert_close(row_norms(model, 1), rows, rtol=1e-5, atol=1e-6)
    seen = [hooked(family, module, corpus.row(text), 1) for text in range(3)]
    for place, position in enumerate((0, -1)):
        post = torch.stack([text["post"][position].abs() for text in seen]).double().mean(0)
        pre = torch.stack([text["pre"][position].abs() for text in seen]).double().mean(0)
        torch.testing.assert_close(result.bos_only[place].double(), post, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(result.contribution[place].double(), post * rows, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(result.authors[place].double(), pre * rows, rtol=1e-3, atol=1e-5)
    assert result.repeats == 10 and result.to_frame()["neuron"].tolist() == result.ranking()
    result.save(tmp_path / "r")
    check_equal(SinkNeuronResult.load(tmp_path / "r"), result)


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2"])
def test_the_published_search_beside_torch_hooks(family: str) -> None:
    """One layer's MLP writes fifty times as much as it did; eight layers, of which the first seven are looked at."""
    names = {"llama_gqa": "num_hidden_layers", "gpt2": "n_layer"}
    module: Any = fresh(family, **{names[family]: 8})
    for layer in range(8):
        out: Any = PARTS[family].of(module, "mlp_output", layer)
        out.weight.data *= 50 if layer == 5 else 1
    model, ids = load_model(module), [0, *[30] * 40]
    seen = hooked(family, module, ids, 5)
    weight: Any = PARTS[family].of(module, "mlp_output", 5).weight
    rows = (weight if family == "gpt2" else weight.T).norm(dim=1)
    best = (seen["pre"][-1].abs() * rows).topk(3).indices.tolist()
    assert sink_neurons_yona2025(model, 30, repeats=40, layers=7, k=3) == [(5, neuron) for neuron in best]
    with pytest.raises(NothingFoundError):
        sink_neurons_yona2025(load_model(fresh(family, **{names[family]: 8})), 30, repeats=40, layers=6)
    with pytest.raises(InputError, match="at least 6"):
        sink_neurons_yona2025(model, 30, repeats=40, layers=5)


def test_ordinary_texts_are_scored_at_their_first_position_only() -> None:
    model = load_model(tiny("llama"))
    rows = random_tokens(20, 6).tolist()  # more than one batch
    whole = sink_neurons(model, Corpus.from_tokens([[*row[: 1 + i % 6]] for i, row in enumerate(rows)], model=model), 2)
    alone = sink_neurons(model, Corpus.from_tokens([row[:1] for row in rows], model=model), 2)
    torch.testing.assert_close(whole.contribution[0], alone.contribution[0], rtol=1e-4, atol=1e-5)
    assert whole.contribution[1].isnan().all() and whole.repeats == 0
    assert set(whole.agreement()) == {"authors at first", "bos_only at first"}
    with pytest.raises(InputError, match="not measured"):
        whole.top(1, place="repeat")


def test_all_scores_return_the_planted_neuron_and_a_decoy_fools_the_authors_score_only() -> None:
    fixture = planted("llama")
    (layer, sink), (_, decoy) = fixture.sink_neuron, fixture.decoy
    stimulus = repeated_tokens(fixture.model, [9], 60)

    def no_decoy(mlp: Any) -> None:
        mlp.gate_proj.weight.data[decoy] = 0

    result = sink_neurons(changed("llama", no_decoy), stimulus, layer)
    for score in ("contribution", "authors", "bos_only"):
        for place in ("first", "repeat"):
            assert result.top(1, score, place) == [(layer, sink)], (score, place)
    assert set(result.agreement(1).values()) == {1.0} and len(result.agreement(1)) == 5
    fooled = sink_neurons(fixture.model, stimulus, layer)
    for place in ("first", "repeat"):
        assert fooled.top(1, "authors", place) == [(layer, decoy)]
        assert fooled.top(1, "contribution", place) == fooled.top(1, "bos_only", place) == [(layer, sink)]
    assert fooled.contribution[0, decoy] == 0
    assert fooled.agreement(1)["authors at first"] == 0.0 and fooled.agreement(1)["bos_only at repeat"] == 1.0


def test_bad_questions_are_refused() -> None:
    model = load_model(tiny("llama"))
    corpus = Corpus.from_tokens(random_tokens(2, 9), model=model)
    scores = sink_neurons(model, corpus, 0)
    with pytest.raises(InputError, match="layer 3"):
        sink_neurons(model, corpus, 3)
    with pytest.raises(InputError, match="k = 49"):
        scores.top(D_MLP + 1)
    for arguments in (("norm", "first"), ("authors", "last")):
        with pytest.raises(InputError, match=r"score=|place="):
            as_users_call(SinkNeuronResult.scores)(scores, *arguments)


def test_a_spike_is_a_huge_input_and_a_huge_output_of_one_matrix(tmp_path: Path) -> None:
    layer, sink = planted("llama").sink_neuron

    def spike(inward: float, outward: float) -> list[tuple[int, int, int]]:
        def scale(mlp: Any) -> None:
            mlp.up_proj.weight.data[sink] *= inward
            mlp.down_proj.weight.data[:, sink] *= outward

        model = changed("llama", scale)
        model.tokenizer = planted("llama").model.tokenizer
        return spike_weights(model, "w4 w5")

    # As planted, the input is below 1 and the output 707.
    assert spike(1, 1) == [] and spike(1000, 1e-6) == []
    ((found_layer, row, neuron),) = spike(1000, 1e-3)
    assert (found_layer, neuron) == (layer, sink) and row in (SINK_PLUS, SINK_MINUS)


@pytest.mark.parametrize("name", ["Phi-3, longrope", "Llama, dynamic NTK"])
def test_texts_beyond_the_switch_of_positions_are_scored_as_alone(name: str) -> None:
    model = load_model(zoo.build(zoo.families()[name]))
    corpus = repeated_tokens(model, [5, 6, 7], zoo.SWITCH + 8)
    found = sink_neurons(model, corpus, 1).contribution
    alone = [sink_neurons(model, corpus.select([text]), 1).contribution for text in range(len(corpus))]
    torch.testing.assert_close(found, torch.stack(alone).mean(0), atol=1e-5, rtol=1e-4)
