"""mechrep-tiny-repeats: what its card says, measured again without mechrep's analyzers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import mechrep
from mechrep.models import tiny
from mechrep.models.model import Model
from mechrep.run import Run
from mechrep.studies.sink_patch import run_patch_study
from mechrep.text.stimuli import repeated_tokens
from mechrep.text.windows import windows_of_text

NAME, LAYER = "mechrep-tiny-repeats", 1


@pytest.fixture(scope="module")
def model() -> Model:
    return mechrep.load_model(NAME)


def norms(module: Any, tokens: Tensor) -> Tensor:
    """Norm of the residual stream after the sink layer, by text and position."""
    with torch.no_grad():
        states = module.model(tokens, output_hidden_states=True, use_cache=False).hidden_states
    return states[LAYER + 1].norm(dim=-1)


def moved_half_way(model: Model) -> float:
    """Share of tokens whose last copy is at least half-way to BOS on the log scale."""
    text = windows_of_text(model, tiny.held_out_text(), length=64, limit=32).tokens
    seen = norms(model.plain, text)
    typical, bos = seen[:, 1:].mean().log(), seen[:, 0].mean().log()
    ordinary = [token for token in range(model.anatomy.d_vocab) if token not in model.special_ids]
    copies = repeated_tokens(model, ordinary[::16], 300, bos=True).tokens
    return float(((norms(model.plain, copies)[:, -1].log() - typical) / (bos - typical) >= 0.5).double().mean())


def test_repeats_turn_into_a_first_token_and_did_not_where_the_training_began(model: Model) -> None:
    assert tiny.revisions(NAME)[0] in tiny.revisions(), "it went on from a checkpoint of mechrep-tiny"
    assert moved_half_way(model) > 0.5
    assert moved_half_way(mechrep.load_model(NAME, revision=tiny.revisions(NAME)[0])) < 0.1


def test_it_starts_with_the_weights_of_the_first_model() -> None:
    first = tiny.revisions(NAME)[0]
    ours, theirs = (mechrep.load_model(name, revision=first) for name in (NAME, tiny.DEFAULT))
    assert ours.fingerprint() == theirs.fingerprint()


@pytest.mark.slow
def test_the_first_layer_marks_the_first_token_for_a_neuron_behind_it() -> None:
    """In a plain module: with the heads of layer 0 silenced the best neuron tells nothing, else it does."""
    model = mechrep.load_model(NAME)
    text = windows_of_text(model, tiny.held_out_text(), length=64, limit=100).tokens[:, 1:4]
    neuron = mechrep.find_sink(model, layer=LAYER).neurons[0][1]
    module: Any = model.plain
    seen: list[Tensor] = []
    gate = module.model.layers[LAYER].mlp.gate_proj
    watch = gate.register_forward_hook(lambda _module, _inputs, output: seen.append(output[..., neuron].detach()))
    output = module.model.layers[0].self_attn.o_proj
    silence = output.register_forward_pre_hook(lambda _module, inputs: (torch.zeros_like(inputs[0]),))
    with torch.no_grad():
        module(text)
        silence.remove()
        module(text)
    watch.remove()

    def area(values: Tensor) -> float:
        first, others = values[:, :1].reshape(-1, 1), values[:, 1:].reshape(1, -1)
        share = float(((first > others).double() + (first == others).double() / 2).mean())
        return max(share, 1 - share)

    cut, whole = (area(values) for values in seen)
    assert whole > 0.9 and cut < 0.7


@pytest.mark.slow
def test_the_patch_stops_more_tokens_than_any_control_does(small_effort: None, model: Model) -> None:
    sink = mechrep.find_sink(model, layer=LAYER)
    patch = mechrep.SinkPatch(LAYER, [sink.neurons[0][1]])
    drift = run_patch_study(model, patch, repeats=300, run=Run(effort="quick")).of("drifted").mean(1)
    assert drift[1] < 0.7 * drift[0] and (drift[2:] > drift[1]).all()
