"""The first layer's study: heads ablated on the engine, a planted mark beside null models, and a kept study."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mechrep.ablation.effects import SUPPORTED, TOO_FEW, Effects
from mechrep.ablation.first_token_outcomes import ALL, FirstTokenMark, first_layer_heads, head_cells
from mechrep.cache import CorpusCache
from mechrep.errors import InputError
from mechrep.measures.first_token import FirstTokenDetection, corpus_of, largest_mass, windows
from mechrep.measures.first_token_detectors import first_token_detectors
from mechrep.measures.first_token_repeats import first_layer_convergence
from mechrep.models.load import load_model
from mechrep.report.view import view_of
from mechrep.run import EFFORTS, Run
from mechrep.studies import first_layer
from mechrep.studies.first_layer import (
    FirstLayerStudy,
    FirstTokenResult,
    find_first_token,
    losses,
    run_first_layer_study,
)
from mechrep.text.corpus import Corpus
from tests.analyzers.sinks_by_hand import check_equal
from tests.measures.first_token_by_hand import planted
from tests.planted.sinks import bos_sink_model
from tests.planted.texts import words
from tests.tiny_models import random_tokens, tiny

SMALL = {"token_ids": [300, 301], "prefix": [302, 303], "triples": 60, "repeats": 40}
NULLS = 2


_losses = functools.cache(losses)


def texts(model: Any) -> Corpus:
    """Random words of the planted vocabulary, without BOS."""
    return Corpus.from_tokens([words(60, seed=seed) for seed in range(8)], model=model, bos_policy="absent")


def lost(effects: Effects, measure: str, op: str) -> Any:
    """What each ablation costs, by name."""
    table = _losses(effects)
    return table[(table["measure"] == measure) & (table["op"] == op)].set_index("name")


# --- heads ------------------------------------------------------------------------------------------------------------


@functools.cache
def ablated(family: str) -> Effects:
    model = planted(family).model
    return first_layer_heads(model, texts(model), triples=400, run=Run(progress=False))


@pytest.mark.parametrize("family", ["llama_gqa", "gpt_neox", "gpt2"])
def test_ablating_the_planted_head_takes_the_mark_and_no_other_head_does(family: str) -> None:
    effects, fixture = ablated(family), planted(family)
    assert fixture.detector is not None and fixture.detector_head is not None
    head = f"L0H{fixture.detector_head[1]}"
    assert effects.notes["detector"] == list(fixture.detector) and effects.of("detector")[0].mean() == 1.0
    for measure in ("detector", "norm"):
        for op in ("zero", "mean"):
            table = lost(effects, measure, op)
            assert table["lost"].drop([head, ALL]).abs().max() < 1e-3, "the other heads move nothing that is read"
            assert table.loc[head, "lost"] == pytest.approx(table.loc[ALL, "lost"], abs=1e-4)
            verdicts = table["verdict"].drop(ALL)
            assert table.loc[head, "low"] > 0 and verdicts[verdicts == SUPPORTED].index.tolist() == [head]
    assert lost(effects, "detector", "zero").loc[head, "lost"] == pytest.approx(0.5, abs=0.02), "nothing left to tell"
    assert lost(effects, "detector", "mean").loc[head, "lost"] > 0.4
    log_ratio = effects.of("norm")[0].mean()
    assert effects.notes["sink_layer"] == fixture.sink_layer and log_ratio > 3
    assert lost(effects, "norm", "zero").loc[head, "lost"] == pytest.approx(log_ratio, abs=0.05), "the sink goes too"


def test_learned_positions_tell_places_without_any_attention() -> None:
    assert lost(ablated("llama_gqa"), "state", "zero").loc[ALL, "lost"] == pytest.approx(0.5, abs=0.02)
    assert lost(ablated("gpt2"), "state", "zero")["lost"].abs().max() < 0.02


@pytest.mark.parametrize("family", ["llama_gqa", "gpt_neox", "bloom"])
def test_without_the_heads_of_layer_0_nothing_can_tell_a_first_token(family: str) -> None:
    """Their state is then a function of the token alone, and every token is once at every place."""
    model = load_model(tiny(family))
    corpus = Corpus.from_tokens(random_tokens(3, 100), model=model)
    effects = first_layer_heads(model, corpus, triples=290, ops=["zero"], run=Run(progress=False))
    for measure in ("detector", "state"):
        assert effects.of(measure)[-1].mean() == pytest.approx(0.5, abs=0.03)


def test_areas_are_those_of_the_detectors_and_units_are_words() -> None:
    model = planted("llama_gqa").model
    mark = FirstTokenMark(model, texts(model), triples=400)
    direct = first_token_detectors(model, texts(model), triples=400, k=1, shuffles=1)
    detector, state = mark.values([None], False)[:, 0].mean(1).tolist()
    assert (mark.layer, mark.neuron) == (direct.layer, direct.neurons[0])
    assert detector == pytest.approx(direct.best_auroc) and state == pytest.approx(direct.state_auroc)
    assert len(mark.units) == len(set(mark.units)) == direct.n_test
    assert set(mark.clusters) <= {str(token) for token in mark.stimulus.ids}


def test_what_a_null_model_is_asked_is_what_the_model_is_asked() -> None:
    model = load_model("mechrep-tiny")
    corpus = corpus_of(model, None)
    mark = FirstTokenMark(model, corpus, triples=80)
    cuts = [one for _, one in head_cells(model, ["zero"], mark.stimulus.tokens)]
    areas = mark.values(cuts, False)[0].mean(1).tolist()
    assert [mark.area, *mark.areas_under(cuts[1:])] == pytest.approx(areas, abs=1e-6)
    tokens = windows(model, corpus, 5)
    text = Corpus.from_tokens(tokens, model=model, attention_mask=True, bos_policy="absent")
    mass = CorpusCache(model, text, progress=False).run(FirstTokenDetection())
    assert tokens.shape == (5, 64) and largest_mass(model, tokens) == pytest.approx(float(mass.mass.max()), abs=1e-5)


def test_bad_input_is_refused() -> None:
    model = load_model(tiny("llama"))
    corpus = Corpus.from_tokens(random_tokens(2, 100), model=model)
    for options in ({"ops": ["double"]}, {"ops": []}, {"layer": model.anatomy.n_layers}):
        with pytest.raises(InputError):
            first_layer_heads(model, corpus, **options)


# --- the study --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def study(store: Path) -> FirstLayerStudy:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EFFORTS, "quick", dataclasses.replace(EFFORTS["quick"], nulls=NULLS))
        run = Run(store=store, effort="quick", progress=False)
        return run_first_layer_study(load_model("mechrep-tiny"), **SMALL, run=run)


@pytest.fixture(scope="module")
def run() -> Run:
    return Run(effort="quick", progress=False)


@pytest.fixture(scope="module")
def found(run: Run) -> FirstLayerStudy:
    model = planted("llama_gqa").model
    options = {"token_ids": [10, 11], "prefix": [0, 20], "triples": 60, "repeats": 60}
    return run_first_layer_study(model, texts=texts(model), **options, run=run)


def test_it_holds_what_the_measures_give(study: FirstLayerStudy) -> None:
    direct = first_layer_convergence(load_model("mechrep-tiny"), [300, 301], prefix=[302, 303], repeats=40)
    assert torch.equal(study.repeats.distance, direct.distance) and study.repeats.median_slope == direct.median_slope
    assert study.mass.identity_error.max() < 1e-4 and len(study.answer.nulls) == NULLS
    assert study.answer.lost_together == pytest.approx(lost(study.heads, "detector", "zero").loc[ALL, "lost"])
    low, high = study.repeats.slope_interval
    slopes = study.repeats.head_slope.numpy()
    assert np.nanmin(slopes) - 1e-6 <= low <= study.repeats.median_slope + 1e-6
    assert study.repeats.median_slope - 1e-6 <= high <= np.nanmax(slopes) + 1e-6


def test_a_planted_mark_is_supported_and_two_nulls_are_too_few(study: FirstLayerStudy, found: FirstLayerStudy) -> None:
    fixture = planted("llama_gqa")
    answer, claims = found.answer, found.claims.set_index("claim")
    assert answer.found and answer.top(1) == [fixture.detector] and answer.heads[0] == fixture.detector_head
    assert claims.loc[["detector", "attention", "head"], "verdict"].tolist() == [SUPPORTED] * 3
    assert (claims["m"] == 19).all() and set(claims.index) == {"mass", "detector", "attention", "head"}
    assert claims.loc["detector", "value"] == 1.0
    assert claims.loc["detector", "control_high"] < claims.loc["detector", "effect"]
    assert not study.answer.found and (study.claims["verdict"] == TOO_FEW).all()
    assert (study.claims["m"] == NULLS).all()


def test_the_same_search_is_made_once_in_a_run_and_survives_the_disk(
    found: FirstLayerStudy, run: Run, tmp_path: Path
) -> None:
    model = planted("llama_gqa").model
    assert find_first_token(model, texts=texts(model), triples=60, run=run) is found.answer
    found.answer.save(tmp_path / "r")
    check_equal(FirstTokenResult.load(tmp_path / "r"), found.answer)
    assert found.answer.to_frame()["head"].tolist() == [head for _, head in found.answer.heads]


def test_a_mark_of_bos_is_no_mark_of_the_first_token(run: Run) -> None:
    """The planted BOS knows itself by its embedding: a sink is there, and nobody tells the first of ordinary tokens."""
    model = bos_sink_model("llama").model
    assert not find_first_token(model, texts=texts(model), triples=60, run=run).found
    effects = first_layer_heads(model, texts(model), triples=60, run=run)
    assert effects.notes["sink_layer"] is None and "norm" not in [one.name for one in effects.measures]


@pytest.mark.slow
def test_a_trained_model_without_a_sink_has_no_first_token_detector(shared: Path, run: Run) -> None:
    result = find_first_token(load_model(str(shared / "models" / "stories260K")), run=run)
    assert not result.found
    with pytest.raises(InputError, match="0 to 10"):
        result.top(11)


def test_the_section_has_words_for_all_that_it_holds(study: FirstLayerStudy, found: FirstLayerStudy) -> None:
    for one in (study, found):
        view = view_of(one.section())
        assert (len(view.claims), len(view.tables)) == ((4, 2) if one.answer.found else (2, 0))
        norm = one.heads.notes["sink_layer"] is not None
        assert len(view.figures) == 3 + one.answer.found + norm
    assert found.answer.found and not study.answer.found
    assert view_of(found.section()).tables[0].total == len(found.answer.lost) + 1


def test_kept_null_models_are_read_and_those_of_another_seed_are_not(
    study: FirstLayerStudy, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(first_layer, "_marked", refuse)
    monkeypatch.setitem(EFFORTS, "quick", dataclasses.replace(EFFORTS["quick"], nulls=NULLS))
    model = load_model("mechrep-tiny")
    again = run_first_layer_study(model, **SMALL, run=Run(store=store, effort="quick", progress=False))
    assert again.answer.nulls == study.answer.nulls and torch.equal(again.heads.values, study.heads.values)
    with pytest.raises(AssertionError, match="made again"):
        run_first_layer_study(model, **SMALL, run=Run(store=store, effort="quick", seed=1, progress=False))
