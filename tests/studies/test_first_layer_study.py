"""The study of the first layer: a planted mark is supported beside null models, and a kept study is read again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from mechrep.ablation.effects import SUPPORTED, TOO_FEW
from mechrep.measures.first_token_detectors import first_layer_convergence
from mechrep.models.load import load_model
from mechrep.report.view import view_of
from mechrep.run import EFFORTS, Run
from mechrep.studies import first_layer
from mechrep.studies.first_layer import FirstLayerStudy, run_first_layer_study
from mechrep.text.corpus import Corpus
from tests.analyzers.first_token_by_hand import planted
from tests.planted.texts import words

SMALL = {"token_ids": [300, 301], "prefix": [302, 303], "triples": 60, "repeats": 40}
NULLS = 2


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
def found() -> FirstLayerStudy:
    model = planted("llama_gqa").model
    corpus = Corpus.from_tokens([words(60, seed=seed) for seed in range(8)], model=model, bos_policy="absent")
    run = Run(effort="quick", progress=False)
    return run_first_layer_study(
        model, texts=corpus, token_ids=[10, 11], prefix=[0, 20], triples=200, repeats=60, run=run
    )


def test_it_holds_what_the_measures_give(study: FirstLayerStudy) -> None:
    direct = first_layer_convergence(load_model("mechrep-tiny"), [300, 301], prefix=[302, 303], repeats=40)
    assert torch.equal(study.convergence.distance, direct.distance)
    assert study.convergence.median_slope == direct.median_slope and study.convergence.agrees == direct.agrees
    assert study.mass.identity_error.max() < 1e-4 and len(study.nulls) == NULLS
    assert study.model_name == "mechrep-tiny" and study.provenance.config["study"] == "first-layer"
    low, high = study.slope_interval
    slopes = study.convergence.head_slope.numpy()
    assert np.nanmin(slopes) - 1e-6 <= low <= study.convergence.median_slope + 1e-6
    assert study.convergence.median_slope - 1e-6 <= high <= np.nanmax(slopes) + 1e-6


def test_a_planted_mark_is_supported_and_two_nulls_are_too_few(study: FirstLayerStudy, found: FirstLayerStudy) -> None:
    fixture = planted("llama_gqa")
    assert fixture.detector_head is not None
    assert (found.detectors.layer, found.detectors.neurons[0]) == fixture.detector
    assert (0, found.best_head) == fixture.detector_head
    claims = found.claims().set_index("claim")
    assert claims["verdict"].tolist() == [SUPPORTED] * 3 and (claims["m"] == 19).all()
    assert (
        claims.loc["detector", "value"] == 1.0
        and claims.loc["detector", "control_high"] < claims.loc["detector", "effect"]
    )
    assert study.claims()["verdict"].tolist() == [TOO_FEW] * 3 and (study.claims()["m"] == NULLS).all()
    assert found.last_distance < found.first_distance


def test_the_section_has_words_for_all_that_it_holds(study: FirstLayerStudy, found: FirstLayerStudy) -> None:
    for one in (study, found):
        view = view_of(one.section())
        assert len(view.claims) == 3 and len(view.tables) == 3
        assert len(view.figures) == (4 if one.heads.sink_layer is None else 5)
        assert view.tables[0].total == one.heads.n_heads + 1


def test_the_same_study_is_read_and_another_is_not(
    study: FirstLayerStudy, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise AssertionError("made again")

    for name in ("first_token_detectors", "_null"):
        monkeypatch.setattr(first_layer, name, refuse)
    monkeypatch.setitem(EFFORTS, "quick", dataclasses.replace(EFFORTS["quick"], nulls=NULLS))
    model = load_model("mechrep-tiny")
    again = run_first_layer_study(model, **SMALL, run=Run(store=store, effort="quick", progress=False))
    assert torch.equal(again.detectors.values, study.detectors.values) and again.nulls == study.nulls
    with pytest.raises(AssertionError, match="made again"):
        run_first_layer_study(model, **SMALL, run=Run(store=store, effort="quick", seed=1, progress=False))
