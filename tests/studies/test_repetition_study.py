"""The first main job from end to end, as small as it goes; no number of the embedded model is relied on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import mechrep
from mechrep.errors import InputError, StoreError
from mechrep.models.model import Model
from mechrep.studies import RepetitionStudy, run_repetition_study
from mechrep.studies import neurons as repetition_study
from mechrep.studies.neurons import default_ks, measure_loop_share

KS = [0, 14]


@pytest.fixture(scope="module")
def model() -> Model:
    return mechrep.load_model("mechrep-tiny")


@pytest.fixture(scope="module", autouse=True)
def small() -> Any:
    """Short windows of held-out text, few prompts for the share of loops, few new tokens."""
    with pytest.MonkeyPatch.context() as patch:
        windows, share = repetition_study.windows_of_text, repetition_study.measure_loop_share
        patch.setattr(repetition_study, "windows_of_text", lambda model, text: windows(model, text, length=64, limit=3))
        patch.setattr(
            repetition_study, "measure_loop_share", lambda model, preset, seed: share(model, preset, n=16, seed=seed)
        )
        yield


def study(model: Model, store: Path | None, preset: str = "mechrep") -> RepetitionStudy:
    return run_repetition_study(
        model, preset=preset, n_loops=8, n_others=2, ks=KS, seeds=1, controls=["layer_matched"], store=store
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def first(model: Model, store: Path) -> RepetitionStudy:
    return study(model, store)


def test_neurons_are_found_on_some_texts_and_tested_on_others(first: RepetitionStudy) -> None:
    looping = first.corpus.where(condition="looping")
    split = looping.frame.set_index("id")["split"]
    found_on, tested_on = set(first.neurons.texts), set(first.deactivation.outcome_frame()["text"])
    assert len(looping) >= 2 and tested_on == set(split[split == "test"].index)
    assert found_on <= set(split[split == "find"].index) and not found_on & tested_on
    assert len(tested_on) == len(looping) - round(0.8 * len(looping))
    free = first.corpus.frame[first.corpus.frame["condition"] == "loop_free"]["id"]
    if first.activation is not None:
        assert set(first.activation.outcome_frame()["text"]) <= set(free)
    for result in (first.deactivation, first.deactivation_loss, first.activation_loss):
        cells = result.to_frame()[["selection", "k"]].values.tolist()
        assert cells == [["none", 0], ["top", 14], ["layer_matched", 14]]
    assert first.provenance.config == {"study": "repetition", "preset": "mechrep", "ks": KS, "seed": 0}
    low, high = first.loop_share_interval
    assert 0 <= low <= first.loop_share <= high <= 1 and (first.loop_share * 16) % 1 == 0
    assert first.prompts >= len(first.corpus)


def test_examples_put_the_text_back_together(first: RepetitionStudy, model: Model) -> None:
    ids = first.corpus.frame["id"].tolist()
    assert 1 <= len(first.examples) <= 3
    for example in first.examples:
        parts = [example[name] for name in ("prompt", "loop_before", "first_copy", "loop")]
        assert "".join(parts) == model.decode(first.corpus.row(ids.index(example["text_id"])))
        assert example["k"] == 14 and example["text_id"] in set(first.deactivation.outcome_frame()["text"])


def test_the_second_run_reads_what_the_first_one_kept(
    first: RepetitionStudy, model: Model, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("computed again")

    monkeypatch.setattr(repetition_study, "collect_loops", never)
    monkeypatch.setattr("mechrep.ablation.old_sweeps.run_requests", never)
    monkeypatch.setattr("mechrep.cache.corpus_cache.read_activations", never)
    again = study(model, store)
    assert torch.equal(again.neurons.t, first.neurons.t) and again.neurons.provenance == first.neurons.provenance
    assert again.corpus.fingerprint() == first.corpus.fingerprint() and again.prompts == first.prompts
    pd.testing.assert_frame_equal(again.corpus.frame, first.corpus.frame, check_dtype=False)
    pd.testing.assert_frame_equal(again.deactivation.to_frame(), first.deactivation.to_frame())
    assert again.deactivation.outcomes == first.deactivation.outcomes
    assert torch.equal(again.deactivation_loss.losses, first.deactivation_loss.losses)
    assert again.examples == first.examples and again.loop_share == first.loop_share


def test_the_published_protocol_searches_and_tests_on_the_same_texts(model: Model, store: Path) -> None:
    published = study(model, store, "hiraoka2025")
    tested_on = set(published.deactivation.outcome_frame()["text"])
    assert tested_on == set(published.neurons.texts) == set(published.corpus.where(condition="looping").frame["id"])
    untouched = published.deactivation.to_frame().iloc[0]
    assert untouched["still_repeating"] == untouched["texts"]  # greedy from its own prefix
    assert torch.equal(published.neurons.delta, published.neurons.delta_published)
    if published.activation is not None:
        assert published.activation.to_frame()["newly_repeating"][0] == 0


def test_the_share_of_loops_is_counted_over_prompts(model: Model) -> None:
    share, (low, high) = measure_loop_share(model, "hiraoka2025", n=8, seed=3)
    assert (share * 8) % 1 == 0 and 0 <= low <= share <= high <= 1
    assert measure_loop_share(model, "hiraoka2025", n=8, seed=3)[0] == share


def test_numbers_of_neurons_follow_the_size_of_the_model() -> None:
    for n in (1, 48, 1408, 196_608, 458_752):
        ks = default_ks(n)
        assert ks[0] == 0 and ks == sorted(set(ks)) and 1 <= ks[-1] <= n
        assert max(1, int(0.005 * n)) in ks


def test_what_cannot_be_studied_is_refused(model: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="preset 'hiraoka2026'"):
        run_repetition_study(model, preset="hiraoka2026")
    with pytest.raises(InputError, match="1 looping text"):
        run_repetition_study(model, n_loops=1, n_others=0)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="a folder to write to"):
        study(model, tmp_path / "file" / "below")
