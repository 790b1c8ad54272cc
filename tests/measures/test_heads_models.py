"""``HeadScores`` read off models: against transformers' own attention, on planted circuits, and where nothing is."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import mechrep
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError, ModelError
from mechrep.measures.head_scores import CLEAR as INDUCTION
from mechrep.measures.head_scores import HeadScoreResult, HeadScores, score_heads
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.nulls import reinitialised, shuffled
from mechrep.text.corpus import Corpus
from mechrep.text.stimuli import random_repeats
from tests.analyzers.by_hand import anatomy
from tests.measures.heads_by_hand import NAMES, Rules, Text, oracle
from tests.planted.circuits import induction_circuit, self_finding_head
from tests.planted.workbench import ROTARY
from tests.tiny_models import N_CTX, N_HEADS, N_LAYERS, families, tiny
from tests.tiny_models import loaded as model


def looping(family: str) -> Corpus:
    """Repeats with and without BOS, of unequal length, and a loop with a prefix."""
    corpora = [random_repeats(model(family), n=n, sequences=2, bos=bos) for n, bos in ((9, True), (6, False))]
    ids = [0, 50, 51, 52, *[7, 8, 9, 8] * 4]
    facts = pd.DataFrame({"id": ["loop"], "start": [4], "onset": [8], "period": [4], "copies": [4.0]})
    frames = pd.concat([*(c.frame[list(facts)] for c in corpora), facts], ignore_index=True)
    rows = [c.row(i) for c in corpora for i in range(2)]
    return Corpus.from_tokens([*rows, ids], model=model(family), attention_mask=True, frame=frames)


def run(family: str, corpus: Corpus, batch_size: int | str = "auto", **options: object) -> HeadScoreResult:
    analyzer = HeadScores(**({"bos_id": 0} | options))  # pyright: ignore[reportArgumentType]
    result = CorpusCache(model(family), corpus, batch_size=batch_size).run(analyzer)
    assert isinstance(result, HeadScoreResult)
    return result


@pytest.mark.parametrize("family", families("llama", "llama_gqa", "gpt2", "gpt_neox", "gemma2"))
def test_scores_are_those_of_transformers_attention_text_by_text(family: str) -> None:
    corpus, untouched = looping(family), copy.deepcopy(tiny(family))
    untouched.set_attn_implementation("eager")
    texts = []
    for i in range(len(corpus)):
        attention = untouched(torch.tensor([corpus.row(i)]), output_attentions=True).attentions
        fact = corpus.frame.iloc[i]
        loop = (int(fact["start"]), int(fact["period"]), int(fact["start"] + fact["copies"] * fact["period"]))
        texts.append(Text(corpus.row(i), torch.cat(attention).double().numpy(), loop))
    for options in ({}, {"preset": "hiraoka2025"}, {"form": "aligned", "copies": "newest"}):
        rules = {"queries": "after_onset", "average": "text"} if "preset" in options else options
        expected = oracle(texts, Rules(**rules))  # pyright: ignore[reportArgumentType]
        for batch_size in (2, "auto"):
            result = run(family, corpus, batch_size, **options)
            assert result.scores.shape == (len(NAMES), N_LAYERS, N_HEADS)
            np.testing.assert_allclose(result.scores, expected.scores, atol=1e-5)
            np.testing.assert_allclose(result.standard_errors, expected.standard_errors, atol=1e-5)
            np.testing.assert_allclose(result.chance, expected.chance, atol=1e-6)
            np.testing.assert_allclose(result.unexplained, expected.unexplained, atol=1e-5)


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2"])
def test_both_views_say_the_same(family: str) -> None:
    corpus = looping(family)
    plain, reference = (
        CorpusCache(model(family), corpus, view=view).run(HeadScores(bos_id=0))
        for view in ("plain", "transformer_lens")
    )
    assert isinstance(plain, HeadScoreResult) and isinstance(reference, HeadScoreResult)
    torch.testing.assert_close(plain.scores, reference.scores, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(plain.without_sink, reference.without_sink, atol=1e-4, rtol=1e-3, equal_nan=True)


def test_a_store_gives_the_same_result_without_reading_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = looping("llama_gqa")
    cache = CorpusCache(model("llama_gqa"), corpus, store=tmp_path)
    first = cache.run(HeadScores(bos_id=0, variants=["tl_mul"]))
    monkeypatch.setattr(HeadScores, "observe", None)
    again = cache.run(HeadScores(bos_id=0, variants=["tl_mul"]))
    assert isinstance(first, HeadScoreResult) and isinstance(again, HeadScoreResult)
    assert torch.equal(first.scores, again.scores) and torch.equal(first.variants, again.variants)
    assert again.n_queries == first.n_queries


def test_score_heads_is_the_analyzer_on_random_repeats() -> None:
    result = score_heads(model("llama_gqa"), n=12, sequences=40, seed=2)
    corpus = random_repeats(model("llama_gqa"), n=12, sequences=40, seed=2)
    torch.testing.assert_close(result.scores, run("llama_gqa", corpus).scores)
    assert result.n_queries == dict(zip(NAMES, [480, 480, 40 * 23, 40 * 24, 40 * 24], strict=True))
    assert result.n_texts["induction"] == 40 and not result.missing and not any(result.not_used.values())
    assert result.provenance.corpus["bos_policy"] == "prepended"


def test_the_embedded_model_has_an_induction_head_that_leans_on_nothing_else() -> None:
    result = score_heads(mechrep.load_model("mechrep-tiny"), sequences=16)
    layer, head = result.top(1)[0]
    assert result.induction[layer, head] > 10 * result.chance[0]
    assert result.duplicate_token[layer, head] < result.induction[layer, head] / 5


# -- nothing to find ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_random_models_do_not_match_prefixes(family: str) -> None:
    """Null: the same positions, read in texts whose second half repeats nothing.

    Positions are kept, because a random head may well like one distance better than another.
    """
    n, sequences = 20, 48
    repeats = random_repeats(model(family), n=n, sequences=sequences, seed=0)
    others = random_repeats(model(family), n=n, sequences=sequences, seed=1)
    mixed = torch.cat([repeats.tokens[:, : n + 1], others.tokens[:, 1 : n + 1]], dim=1)
    null_corpus = Corpus.from_tokens(mixed, model=model(family), attention_mask=True, frame=repeats.frame)
    found, null = (run(family, corpus, form="aligned") for corpus in (repeats, null_corpus))
    assert found.n_queries == null.n_queries
    apart = found.induction - null.induction
    band = 2.576 * (found.standard_errors[0].square() + null.standard_errors[0].square()).sqrt()
    assert (band > 1e-4).all() and (apart.abs() <= band).float().mean() >= 0.9  # 12 heads: at most one beyond 99 %
    assert (apart.abs() <= 2 * band).all()


@pytest.mark.parametrize("null", [shuffled, reinitialised])
def test_no_induction_head_is_found_where_nothing_was_learned(null: Callable[[Model, int], Model]) -> None:
    """Twenty seeds and the other kinds: ``benchmarks/false_positives_heads.py``."""
    for trained in (mechrep.load_model("mechrep-tiny"), induction_circuit("llama_gqa").model):
        for seed in range(3):
            scores = score_heads(null(trained, seed), n=20, sequences=8, seed=seed)
            assert (scores.adjusted[NAMES.index("induction")] < INDUCTION).all()


# -- planted circuits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", *ROTARY])
def test_planted_circuits_stand_out_and_nothing_else_does(family: str) -> None:
    """Learned positions and RoPE, one key-value head per query head and one for two."""
    circuit = induction_circuit(family)
    result = score_heads(circuit.model, n=12, sequences=6)
    planted = {
        "induction": circuit.induction,
        "previous_token": circuit.previous_token,
        "first_token": circuit.bos_rest,
    }
    for name in NAMES:
        scores, chance = result.of(name), result.chance[NAMES.index(name)]
        allowed = {planted[name]} if name in planted else set()
        if name == "first_token":
            allowed |= {circuit.induction}  # it rests on BOS in the first copy
            assert scores[circuit.induction].item() == pytest.approx(0.5, abs=1e-3)
        if name in planted:
            assert scores[planted[name]] > 0.99 and result.top(1, name) == [planted[name]]
        for layer, head in np.ndindex(*scores.shape):
            if (layer, head) not in allowed:
                assert scores[layer, head] < chance + 0.05, (name, layer, head)
    for unit in planted.values():
        assert result.unexplained[unit] < 0.01
    for unit in circuit.idle:
        torch.testing.assert_close(result.scores[:, *unit], result.chance, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "llama_gqa"])
def test_a_planted_self_finding_head_is_found_and_is_no_induction_head(family: str) -> None:
    planted = self_finding_head(family)
    result = score_heads(planted.model, n=12, copies=3, sequences=4)
    assert result.top(1, "duplicate_token") == [planted.self_finding]
    assert result.duplicate_token[planted.self_finding] > 0.99
    assert result.induction[planted.self_finding] < 0.01
    for unit in planted.idle:
        torch.testing.assert_close(result.scores[:, *unit], result.chance, atol=1e-4, rtol=0)
    corpus = random_repeats(planted.model, n=12, copies=3, sequences=4)
    published = CorpusCache(planted.model, corpus).run(HeadScores("hiraoka2025", bos_id=0))
    assert isinstance(published, HeadScoreResult) and published.above() == [planted.self_finding]


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_a_model_without_patterns_or_a_text_too_long_is_refused() -> None:
    bare = dataclasses.replace(anatomy(2, 4), missing=frozenset({Site.PATTERN}))
    with pytest.raises(ModelError, match="attention patterns"):
        HeadScores(bos_id=None).prepare(bare, looping("llama").frame)
    with pytest.raises(InputError, match=f"n_ctx = {N_CTX}"):
        score_heads(model("llama"), n=40, copies=4)
