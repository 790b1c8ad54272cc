"""``find_sink`` on planted sinks, on models without one, and at its edges; the table of published sinks."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mechrep.ablation.norm_profiles import norm_profiles
from mechrep.errors import InputError
from mechrep.models.load import load_model
from mechrep.notation import unit_name
from mechrep.run import Run
from mechrep.studies import sink_cause
from mechrep.studies.find_sink import SinkResult, find_sink, read_sink
from mechrep.studies.known_sinks import known_sinks, matches_known
from mechrep.studies.sink_cause import SinkStage, stage_cause
from mechrep.text.corpus import Corpus
from tests.analyzers.sinks_by_hand import PROVENANCE, check_equal
from tests.planted.sinks import SinkModel, bos_sink_model, sink_model
from tests.planted.texts import words
from tests.planted.workbench import BOS
from tests.tiny_models import fresh, random_tokens, tiny

QUICK = Run(effort="quick", progress=False)


@functools.cache
def found(builder: Any, family: str) -> tuple[SinkModel, SinkResult]:
    """A planted model and what is found in it, once per process."""
    fixture = builder(family)
    rows = [[BOS, *words(30, seed=seed)] for seed in range(12)]
    texts = Corpus.from_tokens(rows, model=fixture.model, bos_policy="prepended")
    return fixture, find_sink(fixture.model, texts=texts, run=QUICK)


@pytest.mark.parametrize(("builder", "family"), [(sink_model, "llama_gqa"), (bos_sink_model, "gpt_neox")])
def test_a_planted_sink_is_found_with_its_layer_neuron_and_head(builder: Any, family: str, tmp_path: Path) -> None:
    fixture, result = found(builder, family)
    assert result.found and result.norm_found and result.heads_found and result.first_is_bos
    assert result.layer == fixture.sink_layer and result.neurons == [fixture.sink_neuron]
    assert result.top(1) == [fixture.sink_neuron] and result.best_head == fixture.sink_head
    for shown in (repr(result), result._repr_html_()):
        assert unit_name("neuron", *fixture.sink_neuron) in shown and unit_name("head", *fixture.sink_head) in shown
    assert list(fixture.sink_head) in result.sink_heads and result.largest_ratio > 20 > 5 * min(result.null_rises)
    (stage,) = result.stages
    assert stage.norm.layers == [fixture.sink_layer] and result.alpha[fixture.sink_head] > 0.9
    assert stage.carried and stage.removed > 0.9 and stage.removed_by_random < 0.1
    assert stage.heads and stage.attention > 0.5 > stage.attention_without
    assert len(result.null_rises) == len(result.null_alphas) == 19 and result.mean_length == 31
    claims = result.claims.set_index("name")
    assert claims["verdict"].tolist() == ["supported"] * 3 and claims["m"].tolist() == [
        19,
        19,
        QUICK.sizes_on(load_model("mechrep-tiny")).draws,
    ]
    assert (
        claims["p"].tolist()
        == [0.05, 0.05, 1 / (1 + QUICK.sizes_on(load_model("mechrep-tiny")).draws)]
        == claims["q"].tolist()
    )
    assert claims.loc["norm sink", "value"] == pytest.approx(stage.norm.rise) and stage.norm.rise > max(
        result.null_rises
    )
    table = result.to_frame()
    assert table["stage"].notna().tolist() == [layer >= fixture.sink_layer for layer in range(len(table))]
    assert (
        table["sink_heads"].sum() == len(result.sink_heads) == pytest.approx(result.head_share * result.alpha.numel())
    )
    result.save(tmp_path / "r")
    check_equal(SinkResult.load(tmp_path / "r"), result)


def shares(result: SinkResult, bos: bool) -> list[float]:
    return [row["moved"] for row in result.moved if row["bos"] == bos and row["kind"] == "all"]


def test_repeats_become_a_sink_where_the_first_layer_looks_for_other_tokens() -> None:
    _, result = found(sink_model, "llama_gqa")
    assert shares(result, True) == [1.0] and shares(result, False) == [1.0] and result.repeats == 319
    assert float(result.ratio_without.max()) > 20, "the first position is a sink whatever its token"
    _, result = found(bos_sink_model, "gpt_neox")
    assert shares(result, True) == [0.0] and math.isnan(shares(result, False)[0])
    assert float(result.ratio_without.max()) < 2


def test_texts_without_bos_are_read_with_it_as_well() -> None:
    fixture = sink_model("llama")
    result = find_sink(
        fixture.model, texts=Corpus.from_tokens([words(20, seed=s) for s in range(4)], model=fixture.model)
    )
    assert result.found and not result.first_is_bos
    assert result.layer == fixture.sink_layer and result.top(1) == [fixture.sink_neuron]
    assert float(result.ratio_without.max()) > 20


@pytest.mark.parametrize("again", [False, True])
def test_neurons_count_by_what_is_left_at_every_later_depth(again: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if, under every ablation, the last layer at which the stage stands wrote the norm again."""
    fixture = sink_model("llama_gqa")
    texts = Corpus.from_tokens([[BOS, *words(20, seed=s)] for s in range(14)], model=fixture.model)
    stages = read_sink(fixture.model, texts, QUICK).norms[True].stages
    stage = max(stages, key=lambda one: one.rise)
    assert stage.last > stage.peak

    def profiles(*args: Any) -> torch.Tensor:
        ratios = norm_profiles(*args)
        ratios[:, stage.last] = ratios[0, stage.last]
        return ratios

    if again:
        monkeypatch.setattr(sink_cause, "norm_profiles", profiles)
    found, row = stage_cause(fixture.model, texts, stage, [fixture.sink_head], QUICK)
    assert found.removed_at_peak > 0.9 and found.carried != again
    assert row["value"] == found.removed == pytest.approx(0.0 if again else found.removed_at_peak, abs=0.1)
    if not again:
        assert found.neurons == [list(fixture.sink_neuron)]


def test_a_trained_model_without_a_sink_has_none(shared: Path) -> None:
    result = find_sink(load_model(str(shared / "models" / "stories260K")))
    assert not result.found and not result.norm_found and not result.heads_found
    assert result.layer is None and result.neurons == [] and result.sink_heads == []
    assert result.first_is_bos and result.mean_length == 64
    assert result.largest_ratio < 3 and not result.moved and not result.stages
    assert result.claims["verdict"].tolist() == ["not supported", "not supported"]
    with pytest.raises(InputError, match="k = 1"):
        result.top(1)


@pytest.mark.parametrize("family", ["llama_gqa", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_models_that_were_never_trained_have_no_norm_sink(family: str) -> None:
    model = load_model(tiny(family))
    rows = [[0, *row] for row in random_tokens(6, 40).tolist()]
    result = find_sink(model, texts=Corpus.from_tokens(rows, model=model), run=Run(seed=1, progress=False))
    assert not result.norm_found and result.layer is None and result.first_is_bos
    assert max(result.null_rises) < 5 and all(math.isfinite(alpha) for alpha in result.null_alphas)


def test_texts_of_one_token_find_nothing() -> None:
    model = load_model(tiny("llama"))
    result = find_sink(model, texts=Corpus.from_tokens([[0], [0]], model=model))
    assert not result.found and math.isnan(result.largest_ratio) and result.alpha.isnan().all()
    assert result.claims["verdict"].tolist() == ["too few", "too few"]
    assert not result.to_frame().empty and result.best_head == (0, 0)


def test_what_cannot_be_searched_is_refused() -> None:
    model = load_model(fresh("gpt_neox"))
    with pytest.raises(InputError, match="no tokenizer"):
        find_sink(model)
    model.enable_compatibility_mode()
    with pytest.raises(InputError, match="centred weights"):
        find_sink(model, texts=Corpus.from_tokens([[0, 5]], model=model))


# -- published sinks -----------------------------------------------------------------------------------------------


def test_the_table_of_published_sinks_names_its_sources() -> None:
    table = known_sinks()
    assert (table["layer"] >= 0).all() and table["source"].str.contains(r"arXiv \d{4}\.\d{5}").all()
    assert not table.duplicated(["model", "layer", "source"]).any() and table["neurons"].map(len).min() >= 1
    for _, rows in table.groupby(["model", "layer"]):  # independent sources agree on the first neuron or two
        assert len({frozenset(neurons[:1]) & frozenset(rows["neurons"].iloc[0]) for neurons in rows["neurons"]}) == 1


def test_a_finding_matches_a_published_neuron_of_the_same_layer_that_comes_first() -> None:
    _, result = found(bos_sink_model, "gpt_neox")
    assert result.provenance != PROVENANCE
    for name, neurons, expected in (
        ("meta-llama/Llama-2-7b-hf", [[1, 7890], [1, 5]], True),
        ("Llama-2-7b", [[1, 10411]], True),
        ("huggyllama/llama-7b", [[2, 7003]], True),
        ("meta-llama/Meta-Llama-3-8B-Instruct", [[1, 198]], True),
        ("mistralai/Mistral-7B-v0.1", [[2, 7310]], False),
        ("meta-llama/Llama-2-7b-hf", [[1, 5], [1, 7890]], False),
        ("meta-llama/Llama-2-7b-hf", [], False),
        ("allenai/OLMo-1B-0724-hf", [[2, 8041]], True),
        ("allenai/OLMo-1B-0724-hf", [[1, 8041]], False),
    ):
        stages = [SinkStage.made_by([(layer, unit) for layer, unit in neurons])] if neurons else []
        sink = dataclasses.replace(result, stages=stages)
        assert matches_known(name, sink.found_neurons) == expected, (name, neurons)
    with pytest.raises(InputError, match="model 'gpt2'"):
        matches_known("gpt2", [])


def test_torch_is_left_as_it_was() -> None:
    """Null models draw from generators of their own."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model = load_model(tiny("llama"))
    torch.manual_seed(5)
    find_sink(model, texts=Corpus.from_tokens([[0, 5, 6]], model=model))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.slow
def test_a_sink_that_two_layers_write_is_found_without_naming_one() -> None:
    result = find_sink(load_model("mechrep-tiny-repeats"), run=QUICK)
    (stage,) = result.stages
    assert stage.norm.layers == [0, 1] and stage.norm.peak == 2 and (1, 334) in result.neurons
    assert shares(result, True)[0] > 0.5
