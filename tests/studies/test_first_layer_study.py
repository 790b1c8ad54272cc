"""The study of the first layer: its parts are those of the analyzers, and a kept one is read and not made again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import mechrep
from mechrep.measures.first_token_detectors import first_layer_convergence
from mechrep.studies import first_layer as first_layer_study
from mechrep.studies.first_layer import FirstLayerStudy, run_first_layer_study
from tests.views import first_layer_study_by_hand as by_hand

SMALL = {"token_ids": [300, 301], "prefix": [302, 303], "triples": 60, "repeats": 40}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def study(store: Path) -> FirstLayerStudy:
    return run_first_layer_study(mechrep.load_model("mechrep-tiny"), **SMALL, store=store, progress=False)


def test_it_holds_what_the_analyzers_measure(study: FirstLayerStudy) -> None:
    direct = first_layer_convergence(mechrep.load_model("mechrep-tiny"), [300, 301], prefix=[302, 303], repeats=40)
    assert torch.equal(study.parts.convergence.distance, direct.distance)
    assert study.summary.slope == direct.median_slope and study.summary.agrees == direct.agrees
    assert study.parts.mass.identity_error.max() < 1e-4 and len(study.parts.null_aurocs) == 4
    assert study.summary.found == bool(study.summary.neurons)
    assert study.model_name == "mechrep-tiny" and study.provenance.config["study"] == "first-layer"


def test_the_same_study_is_read_and_another_is_not(
    study: FirstLayerStudy, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(first_layer_study, "first_token_parts", refuse)
    model = mechrep.load_model("mechrep-tiny")
    again = run_first_layer_study(model, **SMALL, store=store, progress=False)
    assert torch.equal(again.parts.detectors.values, study.parts.detectors.values)
    assert again.parts.null_aurocs == study.parts.null_aurocs and again.summary.reason == study.summary.reason
    with pytest.raises(AssertionError, match="made again"):
        run_first_layer_study(model, **SMALL, seed=1, store=store, progress=False)


def test_the_slope_lies_in_its_interval_and_near_is_a_tenth() -> None:
    study = by_hand.study()
    low, high = study.slope_interval
    assert low == pytest.approx(-1) and high == pytest.approx(-1) and study.summary.slope == pytest.approx(-1)
    assert study.first_distance == pytest.approx(0.5) and study.comes_near
    assert not by_hand.study(positions="standard").comes_near


def test_an_interval_over_tokens_holds_the_median_that_it_is_of(study: FirstLayerStudy) -> None:
    low, high = study.slope_interval
    slopes = study.parts.convergence.head_slope.numpy()
    assert np.nanmin(slopes) - 1e-6 <= low <= study.summary.slope + 1e-6
    assert study.summary.slope - 1e-6 <= high <= np.nanmax(slopes) + 1e-6
