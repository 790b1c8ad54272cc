"""The study of text kinds: planted mechanisms are told apart, nothing is computed twice, its section is complete."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mechrep
from mechrep.errors import NothingFoundError
from mechrep.report.render import report_json
from mechrep.report.view import view_of
from mechrep.run import Run
from mechrep.studies.natural_vs_induced_study import TextKindStudy, run_text_kind_study
from mechrep.text.corpus import Corpus
from tests.planted.two_mechanisms import prompts, two_mechanisms

NEW = 60


def run(listed: Corpus | None = None, store: Path | None = None, **options: Any) -> TextKindStudy:
    settings: dict[str, Any] = {"max_new_tokens": NEW, "k": 2, "op": "zero", "builders": {"text": 2}} | options
    model = two_mechanisms().model
    run = Run(store=store, effort="quick", progress=False)
    return run_text_kind_study(model, prompts=listed or prompts(model, 8), run=run, **settings)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kinds")


@pytest.fixture(scope="module")
def planted(store: Path) -> TextKindStudy:
    return run(store=store)


def test_planted_mechanisms_are_told_apart(planted: TextKindStudy) -> None:
    found = planted.contrasts["text"]
    table = found.head_table()
    assert {*zip(table["layer"][:2], table["head"][:2], strict=True)} == set(two_mechanisms().heads)
    assert len(planted.natural) == 8 and planted.flow["text"].set_index("flag").loc["copies_in_icl", "n"] == 8
    common = found.compared.query("measure == 'common'").iloc[0]
    assert common["value"] == pytest.approx(0.0, abs=1e-6) and common["control_high"] + common["baseline"] >= 0
    claims = planted.claims().set_index("claim")
    assert set(claims.index) == {"other_heads", "degree", "fewer_heads"}, "one family of loops cannot be halved"
    assert claims["family"].nunique() == 1


def test_loops_of_one_family_are_one_unit(planted: TextKindStudy) -> None:
    """All planted loops are one loop: however many prompts, natural texts are one independent unit."""
    assert len(set(planted.contrasts["text"].seen.clusters[:8])) == 1
    assert planted.claims().set_index("claim").loc["other_heads", "verdict"] == "too few"
    found = planted.contrasts["text"]
    assert found.sets is None and "two clusters" in found.left_out["sets of heads"]


def test_the_second_run_reads_what_the_first_one_kept(
    planted: TextKindStudy, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("computed again")

    monkeypatch.setattr("mechrep.studies.text_kind_outcomes.score_tokens", never)
    again = run(store=store).contrasts["text"]
    first = planted.contrasts["text"]
    assert torch.equal(again.ablated.values, first.ablated.values)
    assert np.array_equal(again.head_table().to_numpy(float), first.head_table().to_numpy(float), equal_nan=True)


def test_its_section_has_words_for_everything_that_it_shows(planted: TextKindStudy, tmp_path: Path) -> None:
    section = planted.section()
    record = report_json("planted", [section])
    assert [one["claim"] for one in record["claims"]] and section.variant == "text"
    assert {"flow", "heads_text", "compared_text", "kinds", "left_out"} <= set(section.tables)
    section.save(tmp_path / "section")
    assert type(section).load(tmp_path / "section").fields["prompts"] == 16


def test_what_cannot_be_built_is_said() -> None:
    model = two_mechanisms().model
    study = run(prompts(model, 3, free=False))
    assert study.contrasts == {} and "all of which loop" in study.left_out["text"] and study.control is None
    assert study.section().variant == "not_compared" and report_json("planted", [study.section()])["claims"] == []
    with pytest.raises(NothingFoundError, match="none of which loops"):
        run(prompts(model, 3, looping=False))


def test_where_each_token_costs_much_the_loops_of_the_run_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    from mechrep import run as efforts
    from mechrep.ablation import screening
    from mechrep.ablation import study as sweeps

    brief = dataclasses.replace(efforts.EFFORTS["quick"], loops=14, brief=4)
    monkeypatch.setitem(efforts.EFFORTS, "quick", brief)
    monkeypatch.setattr(sweeps, "ALL_EXACTLY", 1)
    monkeypatch.setattr(sweeps, "screened_heads", functools.partial(screening.screened_heads, first=2, sampled=3))
    model, run = mechrep.load_model("mechrep-tiny"), efforts.Run(effort="quick", progress=False)
    study = run_text_kind_study(model, k=2, run=run)
    (found,) = study.contrasts.values()
    assert list(study.contrasts) == ["cycle"] and found.patched is None and len(study.natural) == 12
    table = found.head_table()
    assert len(table) == model.anatomy.n_layers * model.anatomy.n_heads and table["D"].notna().all()
    assert {one.n for one in found.screened.values()} == {5} and len(found.screened) == 2
    assert "screened" in view_of(study.section()).section.tables
