"""What the planted sinks promise, checked on plain modules, without mechrep."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.planted import sinks
from tests.planted.by_hand import (
    Run,
    forward,
    output_rows,
    plain,
    planted,
    without_heads,
    without_neurons,
)
from tests.planted.texts import words
from tests.planted.workbench import BOS, EOS, FAMILIES, GATED, PAD, ROTARY, WORDS
from tests.tiny_models import families


def norms(run: Run) -> Tensor:
    """Norm of the residual stream after each layer, ``[layer pos]``."""
    return torch.stack([residual.norm(dim=-1) for residual in run.residual])


@pytest.mark.parametrize("family", families(*FAMILIES))
def test_the_first_position_is_a_sink_whatever_its_token(family: str) -> None:
    fixture = planted("sink_model", family)
    module, rest = plain(fixture.model), words(40, seed=5)
    cut = without_neurons(module, family, [fixture.sink_neuron])
    first_layer, (layer, head) = fixture.sink_layer, fixture.sink_head
    for first in (BOS, EOS, PAD, *WORDS[::6], WORDS[-1]):
        ids = [first, *(word for word in rest if word != first)]
        run = forward(module, family, ids)
        length = norms(run)
        assert (length[first_layer:, 0] > 20 * length[first_layer:, 1:].max(-1).values).all()
        assert (length[:first_layer, 0] < length[:first_layer, 1:].min(-1).values).all()
        assert length[first_layer, 0] == pytest.approx(sinks.SINK_NORM, rel=0.01)
        assert (run.patterns[layer][head][1:, 0] > 0.99).all()
        if first in (BOS, WORDS[0], WORDS[-1]):
            run = forward(cut, family, ids)
            assert (norms(run)[:, 0] < norms(run)[:, 1:].min(-1).values).all()
            assert run.patterns[layer][head][-1, 0] == pytest.approx(1 / len(ids), abs=1e-3)


@pytest.mark.parametrize("family", families(*FAMILIES))
def test_a_run_of_one_token_becomes_a_sink(family: str) -> None:
    fixture = planted("sink_model", family)
    module, layer = plain(fixture.model), fixture.sink_layer
    run = forward(module, family, [9] * 300)
    length = norms(run)[layer]
    assert (length / length[0] - 1).abs().max() < 0.01
    if family in ROTARY:
        for residual in run.residual:
            # Single precision: sums of 300 equal rows differ by the processor.
            assert (residual - residual[0]).abs().max() < 1e-3 * residual.abs().max()
    else:
        assert (run.residual[0] - run.residual[0][0]).abs().max() > 0.1  # positions are part of the residual stream
    length = norms(forward(module, family, [BOS, *[9] * 300]))[layer]
    assert (length[1:6] < 20).all() and length[300] > 0.97 * length[0]  # 5 repeats are none, 300 are
    assert length[12 if family in GATED else 7] < 40 < length[16 if family in GATED else 9]
    assert (length[20:].diff() > -1).all()  # 1000 at the end
    cut = norms(forward(without_neurons(module, family, [fixture.sink_neuron]), family, [BOS, *[9] * 300]))
    assert (cut < 30).all()
    mixed = norms(forward(module, family, [BOS, *words(30), *[9] * 80]))[layer]
    assert mixed[0] > 900 and (mixed[1:] < 30).all()  # many other tokens before it: 80 repeats are not enough


@pytest.mark.parametrize("family", families(*FAMILIES))
def test_the_detector_is_highest_at_the_first_position(family: str) -> None:
    fixture = planted("sink_model", family)
    (layer, neuron), module = fixture.detector, plain(fixture.model)
    others = []
    for seed in range(10):
        run = forward(module, family, words(30, seed=seed))
        gate = run.gate[layer]
        assert gate[0, neuron] > 3 * gate[1:, neuron].max()
        others.append(gate[0] - gate[1])
    rises = torch.stack(others).mean(0)
    assert rises.argmax() == neuron and rises[neuron] > 5 * rises.topk(2).values[1]
    module = without_heads(module, family, [fixture.detector_head])  # nothing tells the first position apart
    run = forward(module, family, words(30))
    assert run.gate[layer][:, neuron].std() < 1e-3 * run.gate[layer][0, neuron]
    layer = fixture.sink_layer
    assert norms(run)[layer, 0] < 2 * norms(run)[layer, 1:].min()


@pytest.mark.parametrize("family", families(*FAMILIES))
@pytest.mark.parametrize("builder", ["sink_model", "bos_sink_model"])
def test_the_decoy_is_loud_before_and_silent_after_its_activation(builder: str, family: str) -> None:
    fixture = planted(builder, family)
    module, (layer, decoy), (_, neuron) = plain(fixture.model), fixture.decoy, fixture.sink_neuron
    run = forward(module, family, [BOS, *words(20)])
    writes = output_rows(module, family, layer).norm(dim=-1)
    assert (run.gate[layer][0].abs() * writes).argmax() == decoy
    assert (run.activation[layer][0].abs() * writes).argmax() == neuron
    assert run.activation[layer][0, neuron] > 0 and not run.activation[layer][1:, neuron].any()
    assert run.activation[layer][:, decoy].max() < 1e-6


@pytest.mark.parametrize("family", families(*FAMILIES))
def test_where_bos_is_the_sink_repeats_are_none(family: str) -> None:
    fixture = planted("bos_sink_model", family)
    module, sink_layer, (layer, head) = plain(fixture.model), fixture.sink_layer, fixture.sink_head
    assert fixture.detector is None and fixture.detector_head is None and not fixture.repeats_approach
    for ids, at in (([BOS, *words(40)], 0), ([BOS, *[9] * 200], 0), ([*words(20), BOS, *words(20, seed=1)], 20)):
        run = forward(module, family, ids)
        length = norms(run)[sink_layer:]
        others = [i for i in range(len(ids)) if i != at]
        assert (length[:, at] > 20 * length[:, others].max(-1).values).all()
        assert (run.patterns[layer][head][at + 1 :, at] > 0.99).all()
    for ids in (words(40), [9] * 200):
        run = forward(module, family, ids)
        assert norms(run).max() < 4
        assert run.patterns[layer][head][-1, 0] == pytest.approx(1 / len(ids), rel=0.05)
    cut = without_neurons(module, family, [fixture.sink_neuron])
    assert norms(forward(cut, family, [BOS, *words(40)])).max() < 4
