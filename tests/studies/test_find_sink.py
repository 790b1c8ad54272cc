"""``find_sink`` on planted sinks, on models without one, and at its edges; the table of published sinks."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mechrep.errors import InputError
from mechrep.models.load import load_model
from mechrep.run import Run
from mechrep.studies.find_sink import SinkResult, find_sink, known_sinks, matches_known
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
    assert result.layer == fixture.sink_layer and result.neurons == [list(fixture.sink_neuron)]
    assert result.top(1) == [fixture.sink_neuron] and result.best_head == fixture.sink_head
    assert list(fixture.sink_head) in result.sink_heads and result.bos_ratio > 20 > 5 * min(result.null_ratios)
    assert result.excess_profile.argmax() == fixture.sink_layer and result.alpha[fixture.sink_head] > 0.9
    assert result.removed["neurons"] > 0.9 and result.removed["random"] < 0.1
    assert len(result.null_ratios) == len(result.null_alphas) == 19 and result.mean_length == 31
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
    assert claims.loc["norm sink", "value"] == result.bos_ratio > max(result.null_ratios)
    assert result.agreement["bos_only at first"] == 1.0
    table = result.to_frame()
    assert table["is_sink_layer"].tolist() == [layer == fixture.sink_layer for layer in range(len(table))]
    assert (
        table["sink_heads"].sum() == len(result.sink_heads) == pytest.approx(result.head_share * result.alpha.numel())
    )
    result.save(tmp_path / "r")
    check_equal(SinkResult.load(tmp_path / "r"), result)


def test_repeats_become_a_sink_where_the_first_layer_looks_for_other_tokens() -> None:
    _, result = found(sink_model, "llama_gqa")
    assert result.moved_share == 1.0 and result.moved_reason == "" and result.repeats == 319
    assert result.ratio_without_bos > 20, "the first position is a sink whatever its token"
    assert result.agreement["contribution at repeat"] == 1.0
    assert result.agreement["authors at repeat"] == result.agreement["authors at first"] == 0.0, "the decoy fools it"
    _, result = found(bos_sink_model, "gpt_neox")
    assert result.moved_share == 0.0 and result.moved_reason == "" and result.ratio_without_bos < 2
    assert set(result.agreement) == {"authors at first", "bos_only at first"}, "no repeat is in the state of a sink"


def test_texts_without_bos_say_so_and_leave_no_place_to_move_to() -> None:
    fixture = sink_model("llama")
    result = find_sink(
        fixture.model, texts=Corpus.from_tokens([words(20, seed=s) for s in range(4)], model=fixture.model)
    )
    assert result.found and not result.first_is_bos
    assert result.layer == fixture.sink_layer and result.top(1) == [fixture.sink_neuron]
    assert math.isnan(result.moved_share) and result.moved_reason == "no BOS"
    assert math.isnan(result.ratio_without_bos)


def test_a_trained_model_without_a_sink_has_none(shared: Path) -> None:
    result = find_sink(load_model(str(shared / "models" / "stories260K")))
    assert not result.found and not result.norm_found and not result.heads_found
    assert result.layer is None and result.neurons == [] and result.sink_heads == []
    assert result.first_is_bos and result.mean_length == 64
    assert result.bos_ratio < 3 and math.isnan(result.moved_share) and result.moved_reason == "no norm sink"
    assert result.claims["verdict"].tolist() == ["not supported", "not supported"]
    with pytest.raises(InputError, match="k = 1"):
        result.top(1)


@pytest.mark.parametrize("family", ["llama_gqa", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_models_that_were_never_trained_have_no_norm_sink(family: str) -> None:
    model = load_model(tiny(family))
    rows = [[0, *row] for row in random_tokens(6, 40).tolist()]
    result = find_sink(model, texts=Corpus.from_tokens(rows, model=model), run=Run(seed=1, progress=False))
    assert not result.norm_found and result.layer is None and result.first_is_bos
    assert max(result.null_ratios) < 5 and all(math.isfinite(alpha) for alpha in result.null_alphas)


def test_texts_of_one_token_find_nothing() -> None:
    model = load_model(tiny("llama"))
    result = find_sink(model, texts=Corpus.from_tokens([[0], [0]], model=model))
    assert not result.found and math.isnan(result.bos_ratio) and result.alpha.isnan().all()
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


def test_a_finding_matches_the_same_layer_and_a_published_first_neuron() -> None:
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
        assert matches_known(name, dataclasses.replace(result, neurons=neurons)) == expected, (name, neurons)
    with pytest.raises(InputError, match="model 'gpt2'"):
        matches_known("gpt2", result)


def test_torch_is_left_as_it_was() -> None:
    """Null models draw from generators of their own."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model = load_model(tiny("llama"))
    torch.manual_seed(5)
    find_sink(model, texts=Corpus.from_tokens([[0, 5, 6]], model=model))
    assert torch.equal(torch.rand(3), expected)
