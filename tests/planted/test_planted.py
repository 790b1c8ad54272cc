"""What the planted models promise, checked on plain transformers modules with eager attention, without mechrep.

Only the ranking of repetition neurons and the two views are mechrep's own; every score, norm and activation here is
worked out from ids with loops.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from mechrep.analyzers import RepetitionNeuronResult, RepetitionNeurons
from mechrep.cache import CorpusCache
from mechrep.text.corpus import Corpus
from tests.planted import circuits, sinks
from tests.planted.circuits import Unit
from tests.planted.texts import prompts, repeats, words
from tests.planted.workbench import BOS, D_VOCAB, EOS, FAMILIES, GATED, N_HEADS, PAD, PARALLEL, ROTARY, WORDS, habit
from tests.tiny_models import PARTS

BUILDERS = {
    "induction_circuit": circuits.induction_circuit,
    "self_finding_head": circuits.self_finding_head,
    "repetition_neurons": circuits.repetition_neurons,
    "sink_model": sinks.sink_model,
    "bos_sink_model": sinks.bos_sink_model,
}
BACKGROUND = 0.101  # what a neuron of no interest reaches at most, and the norm's rounding


@functools.cache
def planted(builder: str, family: str) -> Any:
    """One model per process; tests change copies only."""
    return BUILDERS[builder](family)


@dataclass(frozen=True)
class Run:
    """One pass over one text: patterns ``[head query key]``, the others ``[pos ...]``, all but logits by layer."""

    patterns: list[Tensor]
    logits: Tensor
    residual: list[Tensor]
    activation: list[Tensor]
    gate: list[Tensor]


def plain(model: Any) -> Any:
    """A copy of the module, with eager attention."""
    module = copy.deepcopy(model.plain)
    module.set_attn_implementation("eager")
    return module


def forward(module: Any, family: str, ids: Sequence[int]) -> Run:
    """One pass, everything read by torch hooks."""
    n_layers = module.config.num_hidden_layers
    residual, activation, gate = ([torch.empty(0)] * n_layers for _ in range(3))
    with ExitStack() as stack:
        for layer in range(n_layers):

            def keep_residual(_module: Any, _args: Any, out: Any, layer: int = layer) -> None:
                residual[layer] = (out[0] if isinstance(out, tuple) else out)[0]

            def keep_activation(_module: Any, args: Any, out: Tensor, layer: int = layer) -> None:
                gate[layer], activation[layer] = args[0][0], out[0]

            for part, hook in (("layer", keep_residual), ("activation", keep_activation)):
                stack.callback(PARTS[family].of(module, part, layer).register_forward_hook(hook).remove)
        out = module(torch.tensor([list(ids)]), output_attentions=True, use_cache=False)
    return Run([pattern[0] for pattern in out.attentions], out.logits[0], residual, activation, gate)


def score(pattern: Tensor, ids: Sequence[int], kind: str) -> tuple[float, float, int]:
    """Mean attention to the targets over queries that have one; that of a uniform head; number of such queries."""
    shares, chances = [], []
    for i in range(len(ids)):
        if kind == "induction":
            targets = [j for j in range(2, i + 1) if ids[j - 1] == ids[i] and j - 1 < i]
        elif kind == "self":
            targets = [j for j in range(1, i) if ids[j] == ids[i]]
        else:
            targets = [i - 1] if i >= 2 else []
        if targets:
            shares.append(float(pattern[i, targets].sum()))
            chances.append(len(targets) / (i + 1))
    return float(np.mean(shares)), float(np.mean(chances)), len(shares)


def without_heads(module: Any, family: str, heads: Iterable[Unit]) -> Any:
    """A copy in which heads move nothing: their columns of the output projection are 0."""
    module = copy.deepcopy(module)
    for layer, head in heads:
        projection: Any = PARTS[family].of(module, "attention_output", layer)
        weight = projection.weight if family == "gpt2" else projection.weight.T
        weight[head * 64 : (head + 1) * 64] = 0
    return module


def output_rows(module: Any, family: str, layer: int) -> Tensor:
    """Output weights ``[d_mlp d_model]`` of a layer, a view."""
    weight: Any = PARTS[family].of(module, "mlp_output", layer).weight
    return weight if family == "gpt2" else weight.T


def without_neurons(module: Any, family: str, neurons: Iterable[Unit]) -> Any:
    """A copy in which neurons write nothing."""
    module = copy.deepcopy(module)
    for layer, neuron in neurons:
        output_rows(module, family, layer)[neuron] = 0
    return module


def greedy(module: Any, ids: Sequence[int], steps: int) -> list[int]:
    """What transformers' own greedy decoding appends."""
    return greedy_rows(module, [list(ids)], steps)[0][len(ids) :]


def greedy_rows(module: Any, rows: list[list[int]], steps: int) -> list[list[int]]:
    """Rows of one length and what greedy decoding appends; padding after EOS."""
    tokens = torch.tensor(rows)
    out = module.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=steps, do_sample=False)
    return out.tolist()


def period_of_end(ids: Sequence[int], at_least: int) -> int | None:
    """The smallest period of the last ``at_least`` ids that goes into them twice."""
    tail = list(ids[-at_least:])
    return next((p for p in range(1, at_least // 2 + 1) if tail[p:] == tail[:-p]), None)


# -- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("builder", BUILDERS)
def test_the_views_agree_and_the_model_is_what_it_is_meant_to_be(builder: str, family: str) -> None:
    model = planted(builder, family).model  # load_model has checked the contract
    tokens = torch.tensor([repeats(20), [*words(40, seed=3), 5]])
    assert (model.tl(tokens) - model.plain_logits(tokens)).abs().max() < 1e-3
    anatomy = model.anatomy
    sizes = (anatomy.n_layers, anatomy.n_heads, anatomy.d_head, anatomy.d_model, anatomy.d_mlp, anatomy.d_vocab)
    assert len({*sizes, anatomy.n_ctx}) >= len(sizes)  # four layers and four heads in one family
    assert (anatomy.gated, anatomy.parallel) == (family in GATED, family in PARALLEL)
    assert (anatomy.n_kv_heads < anatomy.n_heads) == (family == "llama_gqa")
    assert (anatomy.positions == "standard") == (family not in ROTARY)
    assert model.special_ids == {BOS, EOS, PAD} and model.bos_id == BOS
    assert model.encode("w3 w62", prepend_bos=True) == [BOS, 3, 62]
    assert "bias" not in {name.rpartition(".")[2] for name, p in model.plain.named_parameters() if p.any()}


# -- heads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("n", "copies", "seed"), [(20, 2, 0), (60, 2, 1), (20, 6, 2), (1, 30, 3)])
def test_the_circuit_looks_where_it_should(family: str, n: int, copies: int, seed: int) -> None:
    fixture, ids = planted("induction_circuit", family), repeats(n, copies=copies, seed=seed)
    run = forward(plain(fixture.model), family, ids)
    layer, head = fixture.previous_token
    assert score(run.patterns[layer][head], ids, "previous")[0] > 0.9999
    assert run.patterns[layer][head][1, 0] > 0.9999
    layer, head = fixture.induction
    found, chance, queries = score(run.patterns[layer][head], ids, "induction")
    assert found > 0.9999 and queries == n * (copies - 1)
    assert (run.patterns[layer][head][: n + 1, 0] > 0.9999).all()  # nothing to find in the first copy
    layer, head = fixture.bos_rest
    assert (run.patterns[layer][head][:, 0] > 0.9999).all()
    uniform = torch.ones(len(ids), len(ids)).tril()
    uniform /= uniform.sum(-1, keepdim=True)
    assert len(fixture.idle) == 2 * N_HEADS - 3
    for layer, head in fixture.idle:
        torch.testing.assert_close(run.patterns[layer][head], uniform, atol=1e-5, rtol=0)
    if n > 1:  # a loop of one token is what a previous-token head finds, too
        for layer, head in {*fixture.idle, fixture.bos_rest, fixture.previous_token}:
            assert score(run.patterns[layer][head], ids, "induction")[0] < chance + 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_the_circuit_copies(family: str) -> None:
    fixture, n = planted("induction_circuit", family), 20
    module, ids = plain(fixture.model), repeats(20, copies=3)
    run = forward(module, family, ids)
    assert run.logits[n + 1 : -1].argmax(-1).tolist() == ids[n + 2 :]
    assert run.logits[1 : n + 1].argmax(-1).tolist() == [habit(token) for token in ids[1 : n + 1]]
    # Mistakes are not followed: the induction head finds the copy that fits what is read now.
    ids[n + 5] = next(word for word in WORDS if word not in ids)
    assert forward(module, family, ids).logits[n + 6 : -1].argmax(-1).tolist() == ids[n + 7 :]
    assert greedy(module, repeats(n)[: n + 3], 100) == (repeats(n, copies=8)[n + 3 :])[:100]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_circuit_is_these_two_heads_and_no_other(family: str) -> None:
    fixture, ids = planted("induction_circuit", family), repeats(20)
    module = plain(fixture.model)
    clean = forward(module, family, ids).logits
    others = without_heads(module, family, (*fixture.idle, fixture.bos_rest))
    assert torch.equal(forward(others, family, ids).logits, clean)
    for head in (fixture.previous_token, fixture.induction):
        cut = forward(without_heads(module, family, [head]), family, ids).logits
        assert cut[1:].argmax(-1).tolist() == [habit(token) for token in ids[1:]]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_induction_head_reads_and_writes_is_the_same_token(family: str) -> None:
    fixture = planted("induction_circuit", family)
    (layer, head), tl = fixture.induction, fixture.model.tl
    value = tl.W_V[layer, head * tl.W_V.shape[1] // N_HEADS].detach()
    read = tl.W_E.detach() * tl.blocks[layer].ln1.weight
    circuit = (read @ value @ tl.W_O[layer, head].detach() * tl.ln_final.weight) @ tl.W_U.detach()
    expected = torch.eye(D_VOCAB) * circuit[3, 3]
    expected[BOS, BOS] = 0
    torch.testing.assert_close(circuit, expected, atol=1e-3 * float(circuit[3, 3]), rtol=0)
    bare = tl.W_E.detach() @ value @ tl.W_O[layer, head].detach() @ tl.W_U.detach()  # without the uneven gains
    assert not torch.allclose(bare / bare[3, 3], expected / expected[3, 3], atol=0.1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_self_finding_head_finds_earlier_copies(family: str, seed: int) -> None:
    fixture = planted("self_finding_head", family)
    draw = np.random.default_rng(seed)
    ids = [BOS, *draw.choice(WORDS, 250).tolist(), 7, 7, 7]
    run = forward(plain(fixture.model), family, ids)
    layer, head = fixture.self_finding
    found, chance, queries = score(run.patterns[layer][head], ids, "self")
    assert found > 0.9999 and queries > 150
    lonely = [i for i in range(len(ids)) if ids[i] not in ids[1:i]]
    assert (run.patterns[layer][head][lonely, 0] > 0.9999).all() and len(lonely) > 30
    assert len(fixture.idle) == 2 * N_HEADS - 1
    for layer, head in fixture.idle:
        assert score(run.patterns[layer][head], ids, "self")[0] == pytest.approx(chance, abs=1e-5)


# -- sinks -----------------------------------------------------------------------------------------------------------


def norms(run: Run) -> Tensor:
    """Norm of the residual stream after each layer, ``[layer pos]``."""
    return torch.stack([residual.norm(dim=-1) for residual in run.residual])


@pytest.mark.parametrize("family", FAMILIES)
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


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_of_one_token_becomes_a_sink(family: str) -> None:
    fixture = planted("sink_model", family)
    module, layer = plain(fixture.model), fixture.sink_layer
    run = forward(module, family, [9] * 300)
    length = norms(run)[layer]
    assert (length / length[0] - 1).abs().max() < 0.01
    if family in ROTARY:
        for residual in run.residual:
            assert (residual - residual[0]).abs().max() < 1e-4 * residual.abs().max()
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


@pytest.mark.parametrize("family", FAMILIES)
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


@pytest.mark.parametrize("family", FAMILIES)
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


@pytest.mark.parametrize("family", GATED)
def test_holding_the_up_projection_flattens_repeats_and_keeps_bos(family: str) -> None:
    """The published patch: the sink neuron's up-projection keeps the value of the first token after BOS."""
    fixture = planted("sink_model", family)
    module, (layer, neuron) = plain(fixture.model), fixture.sink_neuron

    def hold(_module: Any, _args: Any, out: Tensor) -> Tensor:
        out = out.clone()
        out[:, 1:, neuron] = out[:, 1:2, neuron]
        return out

    ids = [BOS, *[9] * 200]
    before = norms(forward(module, family, ids))[layer]
    PARTS[family].of(module, "up_projection", layer).register_forward_hook(hold)
    after = norms(forward(module, family, ids))[layer]
    assert after[0] == before[0] and before[200] > 900 and (after[1:] < 30).all()


@pytest.mark.parametrize("family", FAMILIES)
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


# -- repetition neurons ----------------------------------------------------------------------------------------------


@functools.cache
def looping_texts(family: str) -> list[list[int]]:
    """Prompts and what greedy decoding makes of them, where that is a loop."""
    texts = greedy_rows(plain(planted("repetition_neurons", family).model), prompts(24), 90)
    loops = [ids for ids in texts if EOS not in ids]
    assert 20 <= len(loops) < 24  # some words are met before, some texts end
    return loops


def loop_of(ids: Sequence[int]) -> tuple[int, int]:
    """Start and period of a text that ends in a loop: the first copy begins as early as it can."""
    period = period_of_end(ids, 48)
    assert period is not None
    start = len(ids) - period
    while ids[start - 1] == ids[start - 1 + period]:
        start -= 1
    return start, period


def as_corpus(family: str) -> Corpus:
    """The looping texts with their true starts and onsets."""
    texts = looping_texts(family)
    loops = [loop_of(ids) for ids in texts]
    frame = pd.DataFrame({"start": [start for start, _ in loops], "onset": [sum(loop) for loop in loops]})
    return Corpus.from_tokens(texts, model=planted("repetition_neurons", family).model, frame=frame)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_planted_neurons_fire_with_the_copies_and_only_then(family: str) -> None:
    fixture, n = planted("repetition_neurons", family), 20
    ids = [*repeats(n), *words(60)[n : n + 10], *words(60)[n : n + 4]]  # a second repeat after new words
    run = forward(plain(fixture.model), family, ids)
    copied = [
        max((j for j in range(2, i + 1) if ids[j - 1] == ids[i] and j - 1 < i), default=None) for i in range(len(ids))
    ]
    expected = torch.zeros(len(ids), run.activation[2].shape[-1])
    for i, j in enumerate(copied):
        if j is not None:
            for (_, neuron), act in zip(fixture.detectors, fixture.detector_acts, strict=True):
                expected[i, neuron] = act
            high, low = divmod(ids[j], 8)
            for number in (high, 8 + low):
                expected[i, fixture.amplifiers[number][1]] = fixture.amplifier_act
    seen = [neuron for _, neuron in fixture.neurons]
    assert len({*seen}) == 20 and {layer for layer, _ in fixture.neurons} == {2}
    torch.testing.assert_close(run.activation[2][:, seen], expected[:, seen], atol=5e-3, rtol=0)
    assert not run.activation[2][: n + 1, seen].any()  # exactly silent in the first copy
    everything = torch.stack(run.activation)
    everything[2, :, seen] = 0
    assert everything.max() < BACKGROUND


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_loops_and_without_the_amplifiers_it_does_not(family: str) -> None:
    fixture, texts = planted("repetition_neurons", family), looping_texts(family)
    module = plain(fixture.model)
    deaf = without_neurons(module, family, fixture.amplifiers)
    clean, without, undetected = (
        each(torch.tensor(texts)).logits for each in (module, deaf, without_neurons(module, family, fixture.detectors))
    )
    assert (undetected - clean).abs().max() < 0.01
    for ids, now, then in zip(texts, clean.argmax(-1).tolist(), without.argmax(-1).tolist(), strict=True):
        start, period = loop_of(ids)
        assert start <= 10 and period_of_end(ids, 60) == period
        assert now[start + period : -1] == ids[start + period + 1 :]
        assert then == [habit(token) for token in ids]  # at every position: from there it is word by word to EOS
    prompt = texts[0][: sum(loop_of(texts[0])) + 3]  # from within a loop that goes on already
    ended = greedy(deaf, prompt, 60)
    assert ended == [*range(prompt[-1] + 1, WORDS[-1] + 1), EOS]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("preset", ["mechrep", "hiraoka2025"])
def test_they_are_the_top_of_mechreps_ranking(family: str, preset: str) -> None:
    fixture = planted("repetition_neurons", family)
    corpus, n = as_corpus(family), len(fixture.neurons)
    for view in ("plain", "transformer_lens"):
        (result,) = CorpusCache(fixture.model, corpus, view=view).run(RepetitionNeurons(preset))
        assert isinstance(result, RepetitionNeuronResult)
        assert {*result.top(n)} == {*fixture.neurons}
        assert result.top(4) == [*fixture.detectors][::-1]  # by their activations
        planted_delta, others = float(result.delta[result.top(n)[-1]]), float(result.delta[result.top(n + 1)[-1]])
        assert planted_delta > 3 * others
        # One position of the window, onset - 1, is before the first repeat.
        loudest = float(result.delta[fixture.detectors[-1]])
        assert loudest == pytest.approx(fixture.detector_acts[-1] * 29 / 30, rel=0.01)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_product_is_no_substitute_for_the_activation(family: str) -> None:
    fixture = planted("repetition_neurons", family)
    (result,) = CorpusCache(fixture.model, as_corpus(family)).run(RepetitionNeurons(site="mlp_post"))
    found = {*result.top(len(fixture.neurons))} & {*fixture.neurons}
    assert found == (set() if family in GATED else {*fixture.neurons})
