"""What mechrep measures on pretrained models is what plain transformers gives, to 1e-4 of the number."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

import mechrep
from mechrep.measures.attention_sinks import AttentionSinks
from mechrep.measures.head_scores import HeadScores
from mechrep.measures.neurons import RepetitionNeurons
from mechrep.measures.sink_neurons import sink_neurons
from mechrep.measures.sink_norms import RepeatNorms, SinkNorms
from mechrep.models.contract import check_contract
from mechrep.models.load import load_model
from mechrep.text.corpus import Corpus
from mechrep.text.stimuli import random_repeats, repeated_tokens
from tests.real import by_hand
from tests.real.conftest import SMALL, Real

pytestmark = pytest.mark.real
TOLERANCE = 1e-4


def same(found: Tensor, expected: Tensor) -> None:
    """Every number to 1e-4 of itself: norms, which differ by orders of magnitude."""
    torch.testing.assert_close(found.double(), expected.double(), rtol=TOLERANCE, atol=0)


def alike(found: Tensor, expected: Tensor) -> None:
    """Every number to 1e-4 of the largest: scores and differences, of which most are next to nothing."""
    assert found.shape == expected.shape
    off = (found.double() - expected.double()).abs().max() / expected.double().abs().max()
    assert off < TOLERANCE, f"off by {off:.2g} of the largest"


def run(real: Real, rows: list[list[int]], *analyzers: Any) -> Any:
    corpus = Corpus.from_tokens(rows, model=real.model)
    return mechrep.CorpusCache(real.model, corpus, progress=False).run(*analyzers)


def test_the_contract_holds_and_oracles_of_families_add_up(real: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.families import oracles
    from tests.families.zoo import families

    check_contract(real.model)
    config = real.plain.module.config
    monkeypatch.setattr(oracles, "N_HEADS", config.num_attention_heads)
    monkeypatch.setattr(oracles, "D_MODEL", config.hidden_size)
    family = dataclasses.replace(
        families()["Llama" if real.name == SMALL else "Gemma 3"],
        n_layers=config.num_hidden_layers,
        n_kv=config.num_key_value_heads,
        window=None,
    )
    found = oracles.check(family, real.plain.module, real.prose()[0][:8])
    # Sums of thousands of neurons in single precision; behind Gemma's norms they are far larger than what remains.
    assert {what: off for what, off in found.items() if off >= (3e-4 if real.name == SMALL else 1e-3)} == {}


def test_the_tokenizer_adds_no_bos_of_its_own_and_the_loaded_model_names_one(real: Real) -> None:
    assert real.model.bos_id == real.bos
    ids = real.model.encode("The sea was calm.", prepend_bos=False)
    assert real.bos not in ids and real.model.encode("The sea was calm.", prepend_bos=True) == [real.bos, *ids]


@pytest.mark.parametrize("bos", [True, False])
def test_norms_by_depth(real: Real, bos: bool) -> None:
    rows = real.prose(bos)
    result = run(real, rows, SinkNorms())
    expected = by_hand.norm_profile([real.plain.look(row) for row in rows])
    same(result.first_norm, expected["first_norm"])
    same(result.other_norm, expected["other_norm"])
    alike(result.jump, expected["jump"])
    ratio = float((expected["first_norm"] / expected["other_norm"])[1:].max())
    assert (ratio > 10) == (bos or real.name == SMALL), "SmolLM2's sink is the place, Gemma's the token"


def test_the_sink_layer_and_what_its_neurons_write(real: Real) -> None:
    layer, neurons = real.sink
    rows = real.prose()
    norms = run(real, rows, SinkNorms())
    result = sink_neurons(real.model, Corpus.from_tokens(rows, model=real.model), layer)
    lengths = real.plain.neuron_lengths(real.plain.look(rows[0][:1]), layer, 0)
    alike(result.contribution[0], lengths)
    assert result.top(1) == [(layer, neurons[0])]
    if real.name == SMALL:
        assert norms.layer == layer and set(result.top(2)) == {(layer, neuron) for neuron in neurons}


def test_scores_of_all_heads(real: Real) -> None:
    corpus = random_repeats(real.model, n=20, sequences=2, seed=3)
    scores, sinks = mechrep.CorpusCache(real.model, corpus, progress=False).run(
        HeadScores(bos_id=real.model.bos_id), AttentionSinks()
    )
    texts = [corpus.row(text) for text in range(len(corpus))]
    seen = [real.plain.look(ids, patterns=True) for ids in texts]
    for name, expected in by_hand.head_scores(texts, seen, has_bos=True).items():
        alike(scores.of(name), expected)
    alike(sinks.alpha, by_hand.attention_to_first(seen))
    assert scores.ranking("induction")[0] in real.heads


def test_the_rise_of_every_neuron_at_the_onset(real: Real) -> None:
    loops = real.loops()
    corpus = Corpus.from_tokens([ids for ids, _, _ in loops], model=real.model).with_columns(
        start=[start for _, start, _ in loops], onset=[onset for _, _, onset in loops]
    )
    result = mechrep.CorpusCache(real.model, corpus, progress=False).run(RepetitionNeurons(r=10))
    seen = [real.plain.look(ids) for ids, _, _ in loops]
    alike(result.delta, by_hand.rise(seen, [one[1] for one in loops], [one[2] for one in loops], 10))


@pytest.mark.parametrize("bos", [True, False])
def test_norms_of_repeated_tokens(real: Real, bos: bool) -> None:
    words = (" poem", " company", ",")
    corpus = repeated_tokens(real.model, [real.model.encode(word, prepend_bos=False)[-1] for word in words], 64, bos)
    result = mechrep.CorpusCache(real.model, corpus, progress=False).run(RepeatNorms())
    for text in range(len(corpus)):
        norms = real.plain.look(corpus.row(text)).stream.double().norm(dim=-1)
        same(result.norm[text], norms[:, [n - 1 + bos for n in result.repeats]])
        if bos:
            same(result.bos_norm, norms[:, 0])


def test_published_values_match_and_a_renamed_folder_is_recognised(real: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    from mechrep.studies.verify import MATCH, recognise, verify_model

    monkeypatch.setattr(real.model, "name", "./anything")
    assert recognise(real.model) == ([real.name], "sizes and tokenizer")
    frame = verify_model(real.model).to_frame()
    assert len(frame) > 4 and frame[frame.verdict != MATCH].to_dict("records") == []


def test_a_model_that_breaks_a_promise_is_refused(real: Real) -> None:
    def later(_module: Any, _args: Any, output: Any) -> Any:
        value = output[0] if isinstance(output, tuple) else output
        value = value + value.flip(1)
        return (value, *output[1:]) if isinstance(output, tuple) else value

    handle = real.plain.layers[1].register_forward_hook(later)
    try:
        with pytest.raises(mechrep.errors.ModelError, match="later token"):
            load_model(real.plain.module)
    finally:
        handle.remove()
