"""The study of conditions: planted mechanisms are told apart, nothing is computed twice, placebos find nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mechrep.errors import NothingFoundError
from mechrep.measures.text_kind_design import HeadEffects
from mechrep.models.model import Model
from mechrep.report.old_conditions_section import conditions_section
from mechrep.studies import natural_vs_induced_study as condition_study
from mechrep.studies import text_kind_effects as shards
from mechrep.studies.natural_vs_induced_study import ConditionStudy, run_condition_study
from mechrep.studies.text_kind_effects import ablation_contrast, compare_heads
from mechrep.text.corpus import Corpus
from tests.analyzers.planted_conditions import prompts, two_mechanisms
from tests.views import condition_study_by_hand as by_hand

NEW = 60


@pytest.fixture(scope="module", autouse=True)
def known_text() -> Iterator[None]:
    """Prompts in words that the planted model knows; half of them loop."""

    def windows(model: Model, _: str, **__: Any) -> Corpus:
        return prompts(model, 10)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(condition_study, "windows_of_text", windows)
        yield


def run(store: Path | None = None, **options: Any) -> ConditionStudy:
    settings: dict[str, Any] = {"max_new_tokens": NEW, "k": 2, "op": "zero", "seeds": 2, "patched": 3}
    return run_condition_study(two_mechanisms().model, store=store, progress=False, **(settings | options))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("conditions")


@pytest.fixture(scope="module")
def planted(store: Path) -> ConditionStudy:
    return run(store)


def test_planted_mechanisms_are_told_apart(planted: ConditionStudy) -> None:
    found = planted.contrasts["text"]
    heads = found.heads["ablation"]
    assert {(row.layer, row.head) for row in heads.itertuples() if row.fdr < 0.05} == set(two_mechanisms().heads)  # pyright: ignore
    assert found.answer == "other heads" and found.compared("differing_heads")["null_high"] <= 1
    assert len(planted.natural) == 10 and planted.flow["text"].set_index("flag").loc["copies_in_icl", "n"] == 10
    text = " ".join([conditions_section(planted).finding, *conditions_section(planted).answer])
    assert "rest on different heads" in text


def test_sets_are_cut_beside_controls_on_other_prompts(planted: ConditionStudy) -> None:
    sets = planted.contrasts["text"].sets
    assert sets is not None and set(sets["selection"]) >= {"top", "random"}
    top = sets[(sets["heads_of"] == "induced") & (sets["selection"] == "top")].set_index("condition")
    assert top.loc["induced", "high"] < -1 and abs(float(top.loc["natural", "effect"])) < 0.01  # pyright: ignore
    assert set(str(top["heads"].iloc[0]).split()) == {f"{layer}.{head}" for layer, head in two_mechanisms().heads}
    assert "no control text as long" in planted.contrasts["text"].left_out["patching"], "these end after a few words"


def test_the_second_run_reads_what_the_first_one_kept(
    planted: ConditionStudy, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("computed again")

    monkeypatch.setattr(shards, "score_tokens", never)
    monkeypatch.setattr("mechrep.studies.text_kind_effects.score_tokens", never)
    again = run(store)
    for shown, found in planted.contrasts.items():
        assert torch.equal(again.contrasts[shown].cut.effects, found.cut.effects)
        for name, table in found.heads.items():
            pd.testing.assert_frame_equal(again.contrasts[shown].heads[name], table)


def test_a_run_that_dies_goes_on_where_it_was(
    planted: ConditionStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five shards of four texts; the third one kills the run, and only the last three are computed afterwards."""
    model, conditions = two_mechanisms().model, [planted.natural, planted.contrasts["text"].induced]
    monkeypatch.setattr(shards, "SHARD", 4)
    real, calls = shards.score_tokens, []

    def dies(*arguments: Any, **options: Any) -> Any:
        calls.append(len(arguments[1]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(shards, "score_tokens", dies)
    with pytest.raises(KeyboardInterrupt):
        ablation_contrast(model, conditions, ops=["zero"], store=tmp_path)
    resumed = ablation_contrast(model, conditions, ops=["zero"], store=tmp_path)
    assert calls == [4, 4, 4, 4, 4, 4], "two shards before the end, the one that died, and three after it"
    monkeypatch.setattr(shards, "score_tokens", real)
    whole = ablation_contrast(model, conditions, ops=["zero"])
    assert torch.equal(resumed.effects, whole.effects) and torch.equal(resumed.untouched, whole.untouched)
    other = ablation_contrast(model, conditions, ops=["zero"], when="from_onset", store=tmp_path)
    assert not torch.equal(other.effects, whole.effects), "other settings have shards of their own"


def test_what_cannot_be_built_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = two_mechanisms().model
    monkeypatch.setattr(condition_study, "windows_of_text", lambda *_, **__: prompts(model, 3, free=False))
    study = run(builders=["text"])
    assert study.contrasts == {} and "all of which loop" in study.left_out["text"] and study.control is None
    assert "cannot be asked" in conditions_section(study).finding
    monkeypatch.setattr(condition_study, "windows_of_text", lambda *_, **__: prompts(model, 3, looping=False))
    with pytest.raises(NothingFoundError, match="none of which loops"):
        run()


def test_swapped_labels_find_nothing_and_planted_differences_are_found() -> None:
    found = {kind: by_hand.contrast(kind) for kind in ("other heads", "same heads", "not found")}
    for kind, one in found.items():
        assert one.answer == kind
    effects = found["other heads"].cut.head_effects()
    placebo = compare_heads(effects.swapped(3), by_hand.K, swaps=200).set_index("measure")
    assert placebo.loc["common", "p"] > 0.05 and placebo.loc["differing_heads", "value"] <= 1  # pyright: ignore


def test_common_effect_by_hand() -> None:
    values = np.zeros((4, 1, 4))
    values[:2, 0] = [3.0, 1.0, 0.0, 0.0]
    values[2:, 0] = [0.0, -1.0, -1.0, 0.0]
    effects = HeadEffects(values, ["induced"] * 2 + ["natural"] * 2, ["p", "q", "p", "q"], "made up")
    table = compare_heads(effects, 2, swaps=50).set_index("measure")
    assert table.loc["common", "value"] == pytest.approx(0.25)  # min(1/4, 1/2) of the second head
    assert table.loc["shared_top", "value"] == 1 and table.loc["gini", "value"] == pytest.approx(0.125)
    silent = HeadEffects(np.where(values < 0, 0.0, values), effects.conditions, effects.prompts, "made up")
    assert compare_heads(silent, 1, swaps=50)["value"][0] == 0, "where one condition needs no head, none is in common"
