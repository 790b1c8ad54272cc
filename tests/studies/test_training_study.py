"""The study of training: effects by a second way, curves against planted heads, verdicts, what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import mechrep
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError, NothingFoundError
from mechrep.generation.text_kinds import induced_condition, natural_condition
from mechrep.measures.head_scores import HeadScores
from mechrep.measures.natural_vs_induced import contrast_conditions
from mechrep.models import tiny as embedded
from mechrep.models.model import Model
from mechrep.report.old_training_section import training_section
from mechrep.studies.checkpoints import change_point, change_point_of_draws, fixed_prompts, measure_named, order_p_value
from mechrep.studies.training import run_training_study, study_of_checkpoints, training_study
from mechrep.studies.training_heads import (
    CONDITIONS,
    ELIGIBLE,
    LEAST_UNITS,
    HeadHistory,
    agreement_curves,
    curve_change_points,
    head_effects,
    shown_twice,
    specialisation_curves,
)
from mechrep.text.stimuli import random_repeats
from tests.tiny_models import tiny
from tests.views import training_study_by_hand as by_hand

PROMPTS = 12


# --- curves of planted heads ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def history() -> HeadHistory:
    return HeadHistory.of_checkpoints(by_hand.result({}, heads=by_hand.head_units(least_loops=3, place=5)))


def test_the_history_holds_what_was_measured(history: HeadHistory, tmp_path: Path) -> None:
    units = by_hand.head_units(least_loops=3, place=5)
    np.testing.assert_array_equal(history.of("natural")[:, :, 2, 1], units["natural/2.1"])
    np.testing.assert_array_equal(history.of("induction")[:, :, 3, 0], units["induction/3.0"])
    np.testing.assert_allclose(history.means("induced")[7, 1, 2], units["induced/1.2"][7].mean())
    history.save(tmp_path / "heads")
    again = HeadHistory.load(tmp_path / "heads")
    np.testing.assert_array_equal(again.of("natural"), history.of("natural"))
    frame = again.to_frame()
    row = frame[(frame["revision"] == history.revisions[7]) & (frame["condition"] == "induced")].iloc[5]
    assert (row["layer"], row["head"], row["n"]) == (1, 2, by_hand.PROMPTS)
    assert row["low"] < units["induced/1.2"][7].mean() < row["high"]
    with pytest.raises(InputError, match="condition"):
        history.of("copied")
    with pytest.raises(InputError, match="head effects"):
        HeadHistory.of_checkpoints(by_hand.result({"a": by_hand.share(3)}))


def test_too_few_texts_are_counted_and_give_no_number(history: HeadHistory) -> None:
    counts = history.counts().set_index(["condition", "revision"])
    last = history.revisions[-1]
    assert counts.loc[("natural", last), "n"] == 3 and not counts.loc[("natural", last), "enough"]
    assert counts.loc[(ELIGIBLE, last), "n"] == by_hand.PROMPTS - 3 and counts.loc[(ELIGIBLE, last), "enough"]
    assert counts.loc[(ELIGIBLE, history.revisions[0]), "n"] == 0
    for table, column in ((specialisation_curves(history), "condition"), (agreement_curves(history), "first")):
        row = table[(table["revision"] == last) & (table[column] == "natural")].iloc[0]
        assert np.isnan(row["value"]) and np.isnan(row["low"])
    assert set(agreement_curves(history)["verdict"]) >= {"too few texts", "beyond controls"}
    assert LEAST_UNITS > 3


def test_specialisation_rises_where_heads_were_planted_and_not_in_noise(history: HeadHistory) -> None:
    curves = specialisation_curves(history).set_index(["condition", "revision"])
    before, behind = (curves.loc[("induced", history.revisions[place])] for place in (2, 8))
    assert behind["low"] > behind["null_high"] and behind["low"] > before["high"]
    assert before["low"] <= before["null_high"]  # noise of few texts looks specialised, and its control as much
    points = curve_change_points(history).set_index("curve")
    for name in ("specialisation: induced", "specialisation: natural", "agreement: natural / induced"):
        earliest, latest = (history.revisions.index(points.loc[name, end]) for end in ("earliest", "latest"))
        assert earliest <= 5 < latest and points.loc[name, "clear"]
        assert points.loc[name, "size"] > 0 and points.loc[name, "p"] < 0.05


@pytest.mark.parametrize(("same", "verdict"), [(True, "beyond controls"), (False, "not beyond controls")])
def test_agreement_tells_the_same_heads_from_others(same: bool, verdict: str) -> None:
    history = HeadHistory.of_checkpoints(by_hand.result({}, heads=by_hand.head_units(same=same)))
    table = agreement_curves(history)
    last = table[(table["first"] == "natural") & (table["second"] == "induced")].iloc[-1]
    assert last["verdict"] == verdict
    assert last["rank"] == pytest.approx(1.0 if same else -1.0, abs=0.1)
    assert (last["value"] > 0.95) == same and last["value"] <= last["best"] + 1e-9
    assert (last["lead_first"] == last["lead_second"]) == same and last["same_lead"] == float(same)
    shares = [np.abs(history.means(one)[-1]) / np.abs(history.means(one)[-1]).sum() for one in ("natural", "induced")]
    assert last["value"] == pytest.approx(1 - np.abs(shares[0] - shares[1]).sum() / 2)  # one minus total variation
    assert last["shared"] == (3 if same else 0) and last["k"] == 3 and last["chance"] == pytest.approx(9 / 12)
    assert min(last["reliability_first"], last["reliability_second"]) > 0.9
    early = table[(table["first"] == "natural") & (table["second"] == "induced")].iloc[0]
    assert early["verdict"] == "not beyond controls"


def test_heads_of_a_layer_alike_in_both_conditions_are_no_evidence() -> None:
    """The layer alone decides: shuffling heads within layers agrees as well, so this is not beyond controls."""
    rng = np.random.default_rng(0)
    units = by_hand.head_units()
    for name in units:
        layer = int(name.split("/")[1].split(".")[0])
        units[name] = 2.0**layer + rng.normal(0, 0.01, units[name].shape)
    table = agreement_curves(HeadHistory.of_checkpoints(by_hand.result({}, heads=units)))
    pair = table[(table["first"] == "natural") & (table["second"] == "induced")]
    assert (pair["value"] > 0.99).all() and (pair["low"] > pair["random_high"]).any()
    assert set(pair["verdict"]) == {"controls cannot be beaten"}


def test_one_head_of_few_that_leads_in_both_may_do_so_by_chance() -> None:
    """Of twelve heads one does all: heads that change places meet it in a twelfth of the draws."""
    units, rng = by_hand.head_units(), np.random.default_rng(1)
    for name in units:
        units[name] = rng.normal(2.0 if name.endswith("/2.1") else 0.0, 0.1, units[name].shape)
    table = agreement_curves(HeadHistory.of_checkpoints(by_hand.result({}, heads=units)))
    last = table[(table["first"] == "natural") & (table["second"] == "induced")].iloc[-1]
    assert last["value"] > 0.9 and last["lead_first"] == last["lead_second"] == "2.1"
    assert last["verdict"] == "controls cannot be beaten"
    study = by_hand.study(heads=units)
    section = training_section(study)
    assert "cannot be told from chance among these heads" in section.finding
    assert any("it is more than chance is not shown" in paragraph for paragraph in section.answer)


def test_k_is_a_number_of_heads(history: HeadHistory) -> None:
    with pytest.raises(InputError, match="k = 13"):
        agreement_curves(history, k=13)


# --- change points ----------------------------------------------------------------------------------------------


def test_a_curve_of_means_has_the_same_step_by_either_way() -> None:
    units = by_hand.score(6, noise=0.3, seed=4)
    point, _ = change_point(units)
    rng = np.random.default_rng(0)
    drawn = np.stack([units[:, rng.integers(0, units.shape[1], units.shape[1])].mean(1) for _ in range(1000)])
    again, _ = change_point_of_draws(units.mean(1), drawn)
    assert (again.after, again.clear) == (point.after, point.clear) and again.size == pytest.approx(point.size)
    assert again.size_low == pytest.approx(point.size_low, abs=0.05)
    with pytest.raises(InputError, match="1 of 2"):
        change_point_of_draws(np.array([1.0, np.nan]), np.ones((3, 2)))


def test_shuffled_checkpoints_are_the_control_of_a_step() -> None:
    rng = np.random.default_rng(0)
    step = np.repeat([0.0, 1.0], 6)
    assert order_p_value(step) < 0.02
    null = [order_p_value(rng.permutation(step + rng.normal(0, 0.01, 12)), seed=seed) for seed in range(40)]
    assert np.mean(np.array(null) < 0.05) <= 0.15 and 0.3 < np.mean(null) < 0.7
    alone = np.array([0.0, *[1.0] * 11])
    assert order_p_value(alone) == pytest.approx(2 / 12, abs=0.05)  # one odd checkpoint is at an end so often
    assert order_p_value(np.ones(5)) == 1.0 and np.isnan(order_p_value(np.array([1.0, np.nan])))


def test_verdicts() -> None:
    study = by_hand.study(loops=by_hand.share(0), induction=-by_hand.score(7), heads={})
    assert study.verdict_of("loops_naturally") == "appears, by one checkpoint"
    assert study.verdict_of("induction") == "fades" and study.verdict_of("self_finding") == "no clear step"
    assert study.verdict_of("sink") is None
    assert "induction" not in {*study.order["first"], *study.order["second"]}
    starts = by_hand.study(loops=by_hand.share(99, before=0.9), heads={}).starts.set_index("measure")
    assert bool(starts.loc["loops_naturally", "there"]) and not bool(starts.loc["induction", "there"])
    assert study.first == ["loops_naturally"], "loops of phrases are the same texts"


# --- one real run -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Model:
    return mechrep.load_model("mechrep-tiny")


def test_effects_of_heads_are_those_of_the_contrast(model: Model) -> None:
    numbers: dict[str, Sequence[float]] = dict(head_effects(model, prompts=PROMPTS, sequences=4))  # pyright: ignore
    prompts, limit = fixed_prompts(model, PROMPTS)
    natural = natural_condition(model, prompts, max_new_tokens=limit)
    result = contrast_conditions(model, [natural], copies=2)
    effects = result.head_effects().values
    texts = [prompts.frame["id"].tolist().index(prompt) for prompt in result.prompts]
    for layer, head in ((0, 1), (model.anatomy.n_layers - 1, 0)):
        measured = np.array(numbers[f"natural/{layer}.{head}"])
        np.testing.assert_allclose(measured[texts], effects[:, layer, head], atol=1e-4)
        assert np.isnan(np.delete(measured, texts)).all() and len(measured) == PROMPTS
        assert not np.isnan(numbers[f"induced/{layer}.{head}"]).any()
    repeats = random_repeats(model, n=50, sequences=4)
    (scores,) = CorpusCache(model, repeats, progress=False).run(HeadScores(bos_id=model.bos_id))
    table: Any = scores
    assert np.mean(numbers["induction/1.0"]) == pytest.approx(float(table.of("induction")[1, 0]), rel=1e-3)


def test_every_prompt_is_shown_as_the_builder_shows_those_that_do_not_loop(model: Model) -> None:
    prompts, _ = fixed_prompts(model, PROMPTS)
    own = shown_twice(model, prompts)
    theirs = induced_condition(model, prompts, 2, "text", max_new_tokens=16)  # too short to loop for most
    for i, prompt in enumerate(theirs.frame["prompt"]):
        place = own.frame["prompt"].tolist().index(prompt)
        assert own.row(place) == theirs.row(i)
        columns = ["start", "onset", "period", "prompt_length", "seam"]
        assert own.frame.loc[place, columns].tolist() == theirs.frame.loc[i, columns].tolist()


@pytest.mark.slow
def test_the_study_of_two_checkpoints_goes_on_from_its_store(model: Model, tmp_path: Path) -> None:
    revisions = [embedded.revisions()[0], embedded.revisions()[-1]]
    study = run_training_study(model, revisions=revisions, prompts=PROMPTS, store=tmp_path)
    assert study.model_name == model.name and study.checkpoints.revisions == revisions
    assert {"loops_naturally", "phrase_loops", "induction", "sink"} <= set(study.checkpoints.measures)
    assert not any("/" in name for name in study.checkpoints.measures), "numbers of single heads stand apart"
    loops, phrases = (study.checkpoints.of(name) for name in ("loops_naturally", "phrase_loops"))
    assert (phrases <= loops).all()
    assert study.heads is not None and set(study.heads.counts["condition"]) == set(CONDITIONS)
    known = ~np.isnan(study.heads.history.of("natural")[:, :, 0, 0])
    np.testing.assert_array_equal(known, loops == 1)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("shard*.json")}
    assert len(files) == 2 * 4
    again = run_training_study(model, revisions=revisions, prompts=PROMPTS, store=tmp_path)
    pd.testing.assert_frame_equal(again.heads.agreement, study.heads.agreement)  # pyright: ignore
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("shard*.json")} == files


def test_a_ready_made_measure_is_known_by_its_own_source() -> None:
    names = ("heads", "sinks", "loops")
    assert len({measure_named(name).identity()["function"] for name in names}) == len(names)


def test_models_without_known_checkpoints(tmp_path: Path) -> None:
    module: Any = tiny("llama")
    with pytest.raises(NothingFoundError, match="mapping from names to folders"):
        run_training_study(mechrep.load_model(module))
    module.save_pretrained(tmp_path / "mine")
    with pytest.raises(NothingFoundError, match="a folder or an object"):
        run_training_study(mechrep.load_model(tmp_path / "mine"))


def test_bad_measures() -> None:
    with pytest.raises(InputError, match="measure 'head'"):
        training_study("mechrep-tiny", measures=["head"])
    only = study_of_checkpoints(by_hand.result({}, heads=by_hand.head_units()), prompts=by_hand.PROMPTS)
    assert only.points.empty and only.first == [] and only.heads is not None
