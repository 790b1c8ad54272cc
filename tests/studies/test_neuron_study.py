"""The study of repetition neurons from end to end, as small as it goes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import false_discovery_control

import mechrep
from mechrep.ablation.texts import find_and_test, loop_share
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError, StoreError
from mechrep.measures.neurons import RepetitionNeuronResult, RepetitionNeurons
from mechrep.models.model import Model
from mechrep.run import Run
from mechrep.studies import RepetitionStudy, run_repetition_study
from mechrep.studies.neurons import default_ks, neurons_that_rise, rising_neurons
from mechrep.text.corpus import Corpus
from mechrep.text.families import loop_families

KS = [14]


@pytest.fixture(scope="module")
def model() -> Model:
    return mechrep.load_model("mechrep-tiny")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


def study(model: Model, store: Path | None, preset: str = "mechrep") -> RepetitionStudy:
    return run_repetition_study(model, preset=preset, ks=KS, run=Run(store=store, effort="quick"))


@pytest.fixture(scope="module")
def first(small_effort: None, model: Model, store: Path) -> RepetitionStudy:
    return study(model, store)


def test_neurons_are_found_on_some_families_and_tested_on_others(first: RepetitionStudy) -> None:
    find, test = find_and_test(first.corpus)
    assert set(first.neurons.texts) <= set(find.frame["id"])
    assert set(first.deactivation.units[0]) == set(test.frame["id"])
    looping = first.corpus.select(first.corpus.frame["onset"].notna())
    split = dict(zip(looping.frame["id"], looping.frame["split"], strict=True))
    sides: dict[str, set[str]] = {}
    for name, family in zip(looping.frame["id"], loop_families(looping), strict=True):
        sides.setdefault(family, set()).add(split[name])
    assert all(len(side) == 1 for side in sides.values()) and len(sides) > 1
    if first.activation is not None:
        free = first.corpus.where(split="other").frame["id"]
        assert set(first.activation.units[0]) <= set(free)


def test_claims_are_rows_of_the_one_verdict(first: RepetitionStudy) -> None:
    claims = first.claims()
    assert {"still_repeating", "escaped", "loss_zero", "loss_add"} <= set(claims["claim"])
    assert set(claims["k"]) == {first.claimed_k}
    judged = first.judged()
    for measures in (["still_repeating", "escaped"], ["newly_repeating"], ["loss"]):  # one question, one family
        tests = judged[judged["measure"].isin(measures) & judged["q"].notna()]
        assert len(tests) or "loss" not in measures, "the loss is always judged"
        if len(tests):
            assert np.allclose(tests["q"], false_discovery_control(tests["p"].to_numpy(float)))
    assert dict(zip(claims["claim"], claims["direction"], strict=True))["still_repeating"] == -1
    section = first.section()
    assert set(section.tables) == {"neurons", "effects", "examples"} and set(section.figures) >= {"profile"}
    table, shares = section.tables["effects"], claims[claims["unit"] == "share"]
    # one q for one test; what could not be judged has none
    assert table["q"].fillna(-1).tolist() == shares["q"].fillna(-1).tolist()
    assert table["effect"].tolist() == pytest.approx((100 * shares["effect"]).tolist(), abs=0.051)


def test_examples_put_the_text_back_together(first: RepetitionStudy, model: Model) -> None:
    _, test = find_and_test(first.corpus)
    for row, example in enumerate(first.examples.itertuples(index=False)):
        whole = "".join(example[:4])
        assert model.decode(test.row(row)).startswith(whole.rstrip("\ufffd")[:40])


def test_the_second_run_reads_what_the_first_one_kept(
    first: RepetitionStudy, model: Model, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("computed again")

    monkeypatch.setattr("mechrep.ablation.texts.collect_loops", never)
    monkeypatch.setattr("mechrep.ablation.outcomes.run_requests", never)
    monkeypatch.setattr("mechrep.ablation.outcomes.score_tokens", never)
    monkeypatch.setattr("mechrep.cache.corpus_cache.read_activations", never)
    again = study(model, store)
    assert torch.equal(again.neurons.t, first.neurons.t) and again.neurons.provenance == first.neurons.provenance
    assert again.corpus.fingerprint() == first.corpus.fingerprint()
    for one, other in ((again.deactivation, first.deactivation), (again.losses["add"], first.losses["add"])):
        pd.testing.assert_frame_equal(one.unit_frame(), other.unit_frame())


@pytest.mark.slow
def test_the_published_protocol_searches_and_tests_on_the_same_texts(
    small_effort: None, model: Model, store: Path
) -> None:
    published = study(model, store, "hiraoka2025")
    assert set(published.deactivation.units[0]) == set(published.neurons.texts)
    assert published.deactivation.of()[0].all()  # greedy from its own prefix
    assert torch.equal(published.neurons.delta, published.neurons.delta_published)


def test_the_share_of_loops_is_counted_over_prompts(model: Model) -> None:
    share, (low, high), n = loop_share(model, "hiraoka2025", Run(seed=3), n=8)
    assert n == 8 and (share * 8) % 1 == 0 and 0 <= low <= share <= high <= 1
    assert loop_share(model, "hiraoka2025", Run(seed=3), n=8)[0] == share


def test_numbers_of_neurons_follow_the_size_of_the_model() -> None:
    for n in (1, 48, 1408, 196_608, 458_752):
        for number in range(1, 7):
            ks = default_ks(n, number)
            assert ks == sorted(set(ks)) and ks[0] >= 1 and ks[-1] <= n and max(1, int(0.005 * n)) in ks


def test_what_cannot_be_studied_is_refused(small_effort: None, model: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="preset='hiraoka2026'"):
        run_repetition_study(model, preset="hiraoka2026")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="a folder to write to"):
        study(model, tmp_path / "file" / "below")
    with pytest.raises(InputError, match="effort='hasty'"):
        Run(effort="hasty")


@pytest.fixture(scope="module")
def rises(model: Model) -> list[RepetitionNeuronResult]:
    """Twenty results whose numbers are noise."""
    rows = [[0, *range(9 + i, 29 + i), *[40 + i, 41, 42, 43] * 5] for i in range(8)]
    result = CorpusCache(model, Corpus.from_tokens(rows, model=model).with_cycles()).run(RepetitionNeurons())
    draw = torch.Generator().manual_seed(0)
    tables = torch.randn(20, *result.t.shape, generator=draw)
    return [replace(result, t=table, delta=table, normal_mean=torch.ones_like(table)) for table in tables]


def test_noise_rises_in_one_model_of_twenty(rises: list[RepetitionNeuronResult]) -> None:
    """Each is compared with all the others: exactly one has the highest neuron, whatever the noise."""
    wide = [replace(one, t=100 * one.t) for one in rises]  # so that intervals of 1.96 on either side decide nothing
    found = [neurons_that_rise(rising_neurons(own, [one for one in wide if one is not own])) for own in wide]
    highest = max(range(20), key=lambda place: float(wide[place].t.max()))
    assert [bool(units) for units in found] == [place == highest for place in range(20)]


def test_neurons_that_rise_stand_out_from_every_null_model_and_by_one_percent(
    rises: list[RepetitionNeuronResult],
) -> None:
    own, nulls = rises[0], rises[1:]
    t, delta = own.t.clamp_max(2.0), own.delta.clone()
    t[2, 7], t[0, 3], t[1, 1] = 50.0, float("inf"), 60.0
    delta[2, 7], delta[0, 3], delta[1, 1] = 0.011, 0.5, 0.009  # of what it was before: 1
    table = rising_neurons(replace(own, t=t, delta=delta), nulls)
    assert neurons_that_rise(table) == [(0, 3), (2, 7)]
    draws = sorted(float(one.t.max()) for one in nulls)
    t[2, 7] = (draws[-2] + draws[-1]) / 2  # one null model is above it: p = 2 / 20
    rows = rising_neurons(replace(own, t=t, delta=delta), nulls).set_index("name")
    assert rows.loc["L2N7", "p"] == pytest.approx(0.1) and rows.loc["L2N7", "verdict"] == "not supported"
