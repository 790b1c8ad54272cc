"""Circuits: what they hold, what cutting them is, how they are united, kept and refused."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechrep.ablation.circuit import Circuit
from mechrep.cache import CorpusCache
from mechrep.errors import InputError, StoreError
from mechrep.interventions import Heads, Neurons, add, mean, zero
from mechrep.interventions.whole_layers import as_ops, op_name
from mechrep.measures.head_scores import HeadScoreResult, score_heads
from mechrep.measures.neurons import RepetitionNeuronResult, RepetitionNeurons
from mechrep.models.model import Model
from mechrep.text.stimuli import random_repeats
from tests.tiny_models import D_MLP, D_MODEL, N_HEADS, N_LAYERS, PARTS, loaded, random_tokens, tiny

TOKENS = random_tokens(2, 12)
UNITS = st.sets(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=5)
LAYERS = st.sets(st.tuples(st.sampled_from(["attention", "mlp"]), st.integers(0, 2)), max_size=3)


@functools.cache
def neurons() -> RepetitionNeuronResult:
    corpus = random_repeats(loaded("gpt2"), n=12, sequences=2)
    result = CorpusCache(loaded("gpt2"), corpus).run(RepetitionNeurons("hiraoka2025", r=5))
    assert isinstance(result, RepetitionNeuronResult)
    return result


@functools.cache
def scores() -> HeadScoreResult:
    return score_heads(loaded("llama_gqa"), n=8, sequences=2)


def logits(model: Model, circuit: Circuit, op: Any = "zero") -> torch.Tensor:
    return model.run_with_hooks(TOKENS, fwd_hooks=circuit.intervention(op, "all").hooks(model))


# --- what a cut is -------------------------------------------------------------------------------------------------


def test_cutting_a_circuit_is_cutting_its_neurons_and_its_heads() -> None:
    model = loaded("llama_gqa")
    both = Circuit("both", neurons=[(2, 5), (0, 7)], heads=[(1, 3)])
    parts = Neurons([(2, 5), (0, 7)], "zero", when="all") + Heads([(1, 3)], "zero", when="all")
    assert torch.equal(logits(model, both), model.run_with_hooks(TOKENS, fwd_hooks=parts.hooks(model)))
    assert (logits(model, both) - model(TOKENS)).abs().max() > 0.01
    for kind in ("neurons", "heads"):
        assert torch.equal(logits(model, both.only(kind)), logits(model, Circuit("x", **{kind: getattr(both, kind)})))


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2"])
@pytest.mark.parametrize("part", ["attention", "mlp"])
def test_cutting_a_whole_layer_leaves_the_bias_of_its_output(family: str, part: str) -> None:
    model, module = loaded(family), copy.deepcopy(tiny(family))
    projection: Any = PARTS[family].of(module, "attention_output" if part == "attention" else "mlp_output", 1)
    with torch.no_grad():
        projection.weight.zero_()
        expected = module(TOKENS).logits
    cut = logits(model, Circuit("layer", layers=[(part, 1)]))
    assert (cut - expected).abs().max() < 1e-4 and (cut - model(TOKENS)).abs().max() > 0.01


def test_neurons_and_heads_can_each_have_their_own_operation() -> None:
    model, both = loaded("llama_gqa"), Circuit("both", neurons=[(2, 5)], heads=[(1, 3)], layers=[("mlp", 0)])
    table, heads = torch.randn(N_LAYERS, D_MLP), torch.randn(N_LAYERS, N_HEADS, D_MODEL // N_HEADS)
    changed = logits(model, both, (mean(table), mean(heads)))
    layer = Neurons([(0, n) for n in range(D_MLP)], mean(table), when="all")
    parts = Neurons([(2, 5)], mean(table), when="all") + Heads([(1, 3)], mean(heads), when="all") + layer
    assert torch.equal(changed, model.run_with_hooks(TOKENS, fwd_hooks=parts.hooks(model)))
    assert op_name((mean(table), "to_bos")) == "mean/to_bos" and op_name("zero") == "zero"
    assert [op.name for op in as_ops(zero())] == ["zero", "zero"]


@pytest.mark.parametrize(
    ("circuit", "op", "match"),
    [
        (Circuit("x", neurons=[(0, 0)], heads=[(0, 0)]), "to_bos", "to_bos on neurons"),
        (Circuit("x", layers=[("mlp", 0)]), "to_bos", "to_bos on neurons"),
        (Circuit("x", heads=[(0, 0)]), add(1.0), "one number in all directions"),
        (Circuit("x", layers=[("attention", 0)]), add(1.0), "one number in all directions"),
        (Circuit("x", heads=[(0, 0)]), "remove", "op='remove'"),
    ],
)
def test_an_operation_that_a_component_cannot_take_is_refused_at_once(circuit: Circuit, op: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        circuit.intervention(op)


# --- what a circuit holds ------------------------------------------------------------------------------------------


@given(neurons=UNITS, heads=UNITS, layers=LAYERS, more=UNITS)
def test_a_union_holds_what_either_holds_and_nothing_twice(neurons: set, heads: set, layers: set, more: set) -> None:
    first = Circuit("a", neurons=[*neurons, (9, 9)], heads=heads, found="searched")
    second = Circuit("b", neurons=more, heads=[*more, (8, 8)], layers=layers, provenance={"k": 3})
    whole = {part: {layer for kind, layer in layers if kind == part} for part in ("attention", "mlp")}
    for union in (first + second, second + first):
        assert set(union.neurons) == {u for u in neurons | more | {(9, 9)} if u[0] not in whole["mlp"]}
        assert set(union.heads) == {u for u in heads | more | {(8, 8)} if u[0] not in whole["attention"]}
        assert set(union.layers) == layers
        assert len(union) == len(set(union.neurons)) + len(set(union.heads)) + len(layers)
        assert union.found == "searched" and {s["name"] for s in union.provenance["union"]} == {"a", "b"}
        assert union.only("heads") == Circuit(
            union.name, heads=union.heads, found="searched", provenance=union.provenance
        )
    assert (first + second).name == "a + b"


def test_circuits_of_results_know_their_ranking_their_texts_and_their_model() -> None:
    found, heads = neurons(), scores()
    top = Circuit.from_neurons(found, 5)
    assert set(top.neurons) == set(found.top(5)) and top.seen_texts == {"random-12x2-0-0", "random-12x2-0-1"}
    assert set(Circuit.from_neurons(found, 5, score="t").neurons) == set(found.top(5, "t"))
    previous = Circuit.from_heads(heads, 3, score="previous_token")
    assert set(previous.heads) == set(heads.top(3, "previous_token")) and previous.name == "previous_token heads"
    assert previous.provenance["result"]["model"] == heads.provenance.model
    union = previous + (top + Circuit("mine", heads=[(2, 2)]))
    assert union.seen_texts == top.seen_texts and union.sizes == top.sizes | previous.sizes
    assert union.label.endswith(f"(5 neurons, {len(union.heads)} heads)") and union.kinds == ("neurons", "heads")
    assert Circuit("one", layers=[("mlp", 1)], heads=[(0, 1)]).label == "one (1 head, 1 layer part)"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "an empty circuit 'x'"),
        ({"name": "", "heads": [(0, 0)]}, "an empty circuit ''"),
        ({"heads": [(0, 0), (1, 1), (1, 1)]}, r"heads with \(1, 1\)"),
        ({"heads": [(0, -1)]}, r"heads with \(0, -1\)"),
        ({"neurons": [(-1, 0)]}, r"neurons with \(-1, 0\)"),
        ({"layers": [("norm", 0)]}, r"layers with \('norm', 0\).*'attention' or 'mlp'"),
        ({"heads": [(0, 0)], "provenance": {"value": {1, 2}}}, "JSON can hold"),
        ({"heads": [(0, 0)], "sizes": {"layers": 3}}, "sizes='layers'.*'n_layers'"),
    ],
)
def test_what_is_no_circuit_is_refused(options: dict, match: str) -> None:
    with pytest.raises(InputError, match=match):
        Circuit(**({"name": "x"} | options))


def test_a_model_that_cannot_be_the_circuits_is_refused() -> None:
    anatomy = loaded("llama_gqa").anatomy
    everything: dict[str, Any] = {
        "neurons": [(N_LAYERS - 1, D_MLP - 1)], "heads": [(N_LAYERS - 1, N_HEADS - 1)], "layers": [("mlp", 0)]
    }  # fmt: skip
    Circuit("last", **everything).check(anatomy)
    for wrong, match in (
        ({"heads": [(0, N_HEADS)]}, f"head {N_HEADS} of layer 0 in circuit 'x'.*heads 0 to {N_HEADS - 1}"),
        ({"neurons": [(N_LAYERS, 0)]}, f"neuron 0 of layer {N_LAYERS}"),
        ({"layers": [("attention", N_LAYERS)]}, f"attention of layer {N_LAYERS}"),
    ):
        with pytest.raises(InputError, match=match):
            Circuit("x", **wrong).check(anatomy)
    found = Circuit.from_heads(scores(), 1)
    found.check(anatomy)
    with pytest.raises(InputError, match=r"found in a model with .*'n_heads': 4.*of this model, with .*'n_heads': 12"):
        found.check(dataclasses.replace(anatomy, n_heads=12))
    with pytest.raises(InputError, match="the same n_heads"):
        found + Circuit("other", heads=[(0, 0)], sizes={"n_heads": 12})
    with pytest.raises(InputError, match="'layers' of induction heads"):
        found.only("layers")


# --- on disk -------------------------------------------------------------------------------------------------------


def test_a_saved_circuit_comes_back_equal(tmp_path: Path) -> None:
    found = Circuit.from_heads(scores(), 3) + Circuit.from_neurons(neurons(), 4)
    for circuit in (found, Circuit("späte Köpfe", heads=[(2, 1)], layers=[("mlp", 0)], found="by eye")):
        circuit.save(tmp_path / "circuit.json")
        back = Circuit.load(tmp_path / "circuit.json")
        assert back == circuit and back.seen_texts == circuit.seen_texts and hash(back) == hash(circuit)
        assert back != Circuit("other", heads=[(2, 1)])
    assert [path.name for path in tmp_path.iterdir()] == ["circuit.json"]


def damaged(**changes: Any) -> str:
    record = {"format": "mechrep circuit", "version": 1, "name": "x", "neurons": [], "heads": [[0, 1]], "layers": [],
              "found": "", "provenance": {}, "sizes": {}}  # fmt: skip
    return json.dumps({key: value for key, value in (record | changes).items() if value is not ...})


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (damaged()[:-5], "a file written by Circuit.save"),
        ("[1, 2]", "no record"),
        (damaged(format="result"), "no circuit"),
        (damaged(version=3), "version 3 of its layout; expected: version 1 or 2"),
        (damaged(heads=...), "'heads'"),
        (damaged(heads=[[0]]), "a file written by Circuit.save"),
        (damaged(heads=[]), "an empty circuit"),
        (damaged(heads=[[0, "a"]]), "a file written by Circuit.save"),
        (damaged(name=7), "of other types"),
        (damaged(colour="red"), "colour"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "circuit.json"
    path.write_text(damaged(), encoding="utf-8")
    assert Circuit.load(path) == Circuit("x", heads=[(0, 1)])
    path.write_text(text, encoding="utf-8")
    with pytest.raises(StoreError, match=match):
        Circuit.load(path)


def test_what_cannot_be_read_or_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file"):
        Circuit.load(tmp_path / "missing.json")
    with pytest.raises(StoreError, match="a place to write"):
        Circuit("x", heads=[(0, 0)]).save(tmp_path / "missing" / "circuit.json")
