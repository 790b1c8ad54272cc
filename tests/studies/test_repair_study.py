"""The repair: it patches the sink that is found, asks the same questions before and after, and says where it cannot."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest

import mechrep
from mechrep.models.load import reinitialised
from mechrep.models.model import Model
from mechrep.provenance import provenance_of
from mechrep.report.old_patch_section import patch_section
from mechrep.studies import sink_patch as repair_study
from mechrep.studies.sink_patch import DRIFT, NOT_INSTALLED, RepairStudy, patch_changes, run_repair_study
from mechrep.text.corpus import Corpus
from tests.planted.sinks import sink_model
from tests.planted.texts import words
from tests.views import repair_study_by_hand as by_hand

TEXTS = ["The sea was calm that day.", "It rained, and it rained, and nobody came."]


class Sink:
    """What a search finds."""

    def __init__(self, model: Model, layer: int | None) -> None:
        self.layer, self.neurons, self.facts = layer, [[layer, 3], [layer, 5]], "no norm sink"
        self.provenance = provenance_of(model, Corpus.from_texts(TEXTS, model=model), {})


@pytest.fixture(scope="module")
def model() -> Model:
    return mechrep.load_model("mechrep-tiny")


@pytest.fixture
def small(model: Model, monkeypatch: pytest.MonkeyPatch) -> dict:
    """A sink that is there whatever the weights are, and few texts."""
    sink = Sink(model, layer=1)
    monkeypatch.setattr(repair_study, "find_sink", lambda *_args, **_options: sink)
    return {"texts": TEXTS, "repeats": 12, "seeds": 1, "limit": 4, "progress": False}


def test_the_sink_that_is_found_is_patched_and_asked_about(model: Model, small: dict) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install mechrep[evals]")
    study = run_repair_study(model, **small)
    assert (
        study.patch is not None and study.benchmarks is not None and (study.reason, study.benchmarks_reason) == ("", "")
    )
    assert (study.patch.layer, list(study.patch.neurons), study.patch.repeats) == (1, [3, 5], 12)
    assert set(study.patch.selections) == {"original", "patched", "random", "layer_matched", "activation_matched"}
    assert study.benchmarks.conditions[1]["done"] == "held at the first token after BOS: neurons 1.3, 1.5"
    assert [c["selection"] for c in study.benchmarks.conditions[2:]] == ["layer_matched", "random"]
    assert study.provenance.config["study"] == "patch" and study.provenance.config["patch"]["layer"] == 1


def test_without_the_harness_it_does_not_fail(model: Model, small: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair_study, "run_patch_study", lambda *_args, **_options: by_hand.patch())
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else find(name))
    study = run_repair_study(model, **small)
    assert study.patch is not None and study.benchmarks is None and study.benchmarks_reason == NOT_INSTALLED
    assert run_repair_study(model, **small, tasks=()).benchmarks_reason == "no benchmark was asked for"


def test_where_nothing_is_found_nothing_is_patched(model: Model) -> None:
    study = run_repair_study(reinitialised(model), texts=TEXTS, progress=False)
    assert (study.patch, study.benchmarks) == (None, None)
    assert study.reason and study.benchmarks_reason == "there is no patch to ask about"
    assert study.provenance.model["name"] == study.model_name and study.provenance.config["patch"] is None
    assert {field.name for field in dataclasses.fields(RepairStudy)} >= {"patch", "benchmarks", "reason"}


def test_a_planted_sink_is_repaired_beyond_every_control() -> None:
    planted = sink_model("llama_gqa")
    texts = Corpus.from_tokens([[0, *words(60, seed=seed)] for seed in range(8)], model=planted.model)
    study = run_repair_study(planted.model, texts=texts, repeats=60, seeds=1, tasks=(), progress=False)
    assert study.patch is not None and (study.patch.layer, study.patch.neurons[0]) == planted.sink_neuron
    drift = patch_changes(study.patch)[DRIFT]
    assert (drift.original, drift.patched, drift.verdict) == (1.0, 0.0, "beyond controls")
    section = patch_section(study)
    assert [badge.kind for badge in section.badges] == ["good", "none", "open"]
