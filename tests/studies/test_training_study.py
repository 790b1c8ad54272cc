"""The study of training: effects by a second way, curves against planted heads, claims, what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import mechrep
from mechrep.ablation.effects import NOT_SUPPORTED, SUPPORTED, TOO_FEW
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError, NothingFoundError
from mechrep.generation.text_kinds import induced_texts, natural_texts
from mechrep.measures.head_scores import HeadScores
from mechrep.measures.mechanisms import fixed_prompts, head_effects, shown_twice
from mechrep.measures.natural_vs_induced import contrast_text_kinds
from mechrep.models import tiny as embedded
from mechrep.models.model import Model
from mechrep.report.view import view_of
from mechrep.run import Run
from mechrep.sections import Section
from mechrep.studies.checkpoints import measure_named, revisions_of
from mechrep.studies.training import TrainingStudy, flow_figure, run_training_study, study_of_checkpoints
from mechrep.studies.training_heads import (
    ELIGIBLE,
    KINDS,
    LEAST_UNITS,
    HeadCurves,
    HeadHistory,
    agreement_curves,
    curve_change_points,
    head_maps_figure,
    specialisation_curves,
)
from mechrep.text.stimuli import random_repeats
from tests.studies import training_by_hand as by_hand
from tests.tiny_models import tiny

PROMPTS = 12


# --- curves of planted heads ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def history() -> HeadHistory:
    return HeadHistory.of_checkpoints(by_hand.table({}, heads=by_hand.head_units(least_loops=3, place=5)))


def test_the_history_holds_what_was_measured(history: HeadHistory, tmp_path: Path) -> None:
    units = by_hand.head_units(least_loops=3, place=5)
    np.testing.assert_array_equal(history.of("natural")[:, :, 2, 1], units["natural/2.1"])
    np.testing.assert_array_equal(history.of("induction")[:, :, 3, 0], units["induction/3.0"])
    np.testing.assert_allclose(history.means("induced")[7, 1, 2], units["induced/1.2"][7].mean())
    history.save(tmp_path / "heads")
    again = HeadHistory.load(tmp_path / "heads")
    np.testing.assert_array_equal(again.of("natural"), history.of("natural"))
    frame = again.to_frame()
    row = frame[(frame["revision"] == history.revisions[7]) & (frame["kind"] == "induced")].iloc[5]
    assert (row["layer"], row["head"], row["n"]) == (1, 2, by_hand.PROMPTS)
    assert row["low"] < units["induced/1.2"][7].mean() < row["high"]
    with pytest.raises(InputError, match="kind="):
        history.of("copied")
    with pytest.raises(InputError, match="head effects"):
        HeadHistory.of_checkpoints(by_hand.table({"a": by_hand.share(3)}))


def test_too_few_texts_are_counted_and_give_no_number(history: HeadHistory) -> None:
    counts = history.counts().set_index(["kind", "revision"])
    last = history.revisions[-1]
    assert counts.loc[("natural", last), "n"] == 3 and not counts.loc[("natural", last), "enough"]
    assert counts.loc[(ELIGIBLE, last), "n"] == by_hand.PROMPTS - 3 and counts.loc[(ELIGIBLE, last), "enough"]
    assert counts.loc[(ELIGIBLE, history.revisions[0]), "n"] == 0
    for table, column in ((specialisation_curves(history), "kind"), (agreement_curves(history), "first")):
        row = table[(table["revision"] == last) & (table[column] == "natural")].iloc[0]
        assert np.isnan(row["value"]) and np.isnan(row["low"]) and row["m"] == 0
    assert LEAST_UNITS > 3


def test_specialisation_rises_where_heads_were_planted_and_not_in_noise(history: HeadHistory) -> None:
    curves = specialisation_curves(history).set_index(["kind", "revision"])
    before, behind = (curves.loc[("induced", history.revisions[place])] for place in (2, 8))
    assert behind["low"] > behind["control_high"] and behind["value"] > before["value"]
    assert before["low"] <= before["control_high"]  # noise of few texts looks specialised, and its control as much
    points = curve_change_points(history).set_index("name")
    for name in ("specialisation: induced", "specialisation: natural", "agreement: natural / induced"):
        earliest, latest = (history.revisions.index(points.loc[name, end]) for end in ("earliest", "latest"))
        assert earliest <= 5 < latest and points.loc[name, "verdict"] == SUPPORTED and points.loc[name, "effect"] > 0


def agreement_of(units: dict[str, np.ndarray]) -> pd.DataFrame:
    """Natural loops and induced repetition, judged at the last checkpoint."""
    history = HeadHistory.of_checkpoints(by_hand.table({}, heads=units))
    curves = HeadCurves(history, *[pd.DataFrame()] * 4)
    table = curves.last(agreement_curves(history))
    return table[(table["first"] == "natural") & (table["second"] == "induced")]


@pytest.mark.parametrize("same", [True, False])
def test_agreement_tells_the_same_heads_from_others(same: bool) -> None:
    units = by_hand.head_units(same=same)
    history = HeadHistory.of_checkpoints(by_hand.table({}, heads=units))
    last = agreement_of(units).iloc[0]
    assert last["verdict"] == (SUPPORTED if same else NOT_SUPPORTED)
    assert last["rank"] == pytest.approx(1.0 if same else -1.0, abs=0.1)
    assert (last["value"] > 0.95) == same and last["value"] <= last["best"] + 1e-9
    assert (last["lead_first"] == last["lead_second"]) == same and last["same_lead"] == float(same)
    shares = [np.abs(history.means(one)[-1]) / np.abs(history.means(one)[-1]).sum() for one in ("natural", "induced")]
    assert last["value"] == pytest.approx(1 - np.abs(shares[0] - shares[1]).sum() / 2)  # one minus total variation
    assert min(last["reliability_first"], last["reliability_second"]) > 0.9


def test_heads_of_a_layer_alike_in_both_kinds_are_no_evidence() -> None:
    """The layer alone decides: shuffling heads within layers agrees as well, so the larger p counts."""
    rng = np.random.default_rng(0)
    units = by_hand.head_units()
    for name in units:
        layer = int(name.split("/")[1].split(".")[0])
        units[name] = 2.0**layer + rng.normal(0, 0.01, units[name].shape)
    last = agreement_of(units).iloc[0]
    assert last["value"] > 0.99 and last["controls"] == "shuffled within layers" and last["verdict"] == NOT_SUPPORTED


def test_with_one_head_of_few_chance_does_as_well() -> None:
    """Of twelve heads one does all: heads that change places within layers meet it in a third of the draws."""
    units, rng = by_hand.head_units(), np.random.default_rng(1)
    for name in units:
        units[name] = rng.normal(2.0 if name.endswith("/2.1") else 0.0, 0.1, units[name].shape)
    last = agreement_of(units).iloc[0]
    assert last["value"] > 0.9 and last["lead_first"] == last["lead_second"] == "L2H1"
    assert last["verdict"] == NOT_SUPPORTED and last["p"] > 0.2


def test_two_heads_in_each_of_few_layers_cannot_be_told_apart() -> None:
    units = {name: values for name, values in by_hand.head_units().items() if name.endswith((".0", ".1"))}
    last = agreement_of(units).iloc[0]
    assert last["m"] == 2**by_hand.N_LAYERS - 1 and last["verdict"] == TOO_FEW


# --- the study --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted() -> TrainingStudy:
    return by_hand.study()


def test_what_comes_first(planted: TrainingStudy) -> None:
    assert planted.first == ["loops_naturally"], "loops of phrases are the same texts"
    pair = planted.order[planted.order["first"] == "loops_naturally"].iloc[0]
    assert pair["second"] == "induction" and pair["effect"] == 5 and pair["verdict"] == SUPPORTED
    turned = by_hand.study(loops=by_hand.share(8), induction=by_hand.score(3), heads={})
    assert turned.first == ["induction"] and turned.heads is None
    tie = by_hand.study(loops=by_hand.share(5), induction=by_hand.score(5), heads={})
    assert set(tie.first) == {"loops_naturally", "induction"}
    falls = by_hand.study(induction=-by_hand.score(7), heads={})
    assert "induction" not in falls.first


def test_the_section_holds_claims_tables_and_figures(planted: TrainingStudy, tmp_path: Path) -> None:
    section = planted.section()
    claims = section.claims.set_index("claim")
    assert {"loops", "induction", "loops-order", "same-heads", "specialised"} <= set(claims.index)
    assert (claims.loc[["loops", "induction", "loops-order", "same-heads"], "verdict"] == SUPPORTED).all()
    assert claims.loc["same-heads", "effect"] < claims.loc["same-heads", "value"]
    assert set(section.tables) == {"steps", "order", "agreement"}
    assert all(table.shape[1] <= 8 for table in section.tables.values())
    assert set(section.figures) == {"measures", "flow", "head-maps", "specialisation", "agreement"}
    section.save(tmp_path / "section")
    view = view_of(Section.load(tmp_path / "section"))
    assert len(view.claims) == len(section.claims) and len(view.figures) == 5


def test_a_study_of_few_measures_or_of_heads_alone_has_a_section_too() -> None:
    heads = study_of_checkpoints(by_hand.table({}, heads=by_hand.head_units()), prompts=by_hand.PROMPTS)
    assert heads.points.empty and heads.first == [] and len(view_of(heads.section()).claims)
    nothing = np.zeros((by_hand.CHECKPOINTS, by_hand.PROMPTS))
    flat = by_hand.study(loops=by_hand.share(99, before=0.1), copies=nothing, induction=by_hand.flat(), heads={})
    section = flat.section()
    assert flat.first == [] and SUPPORTED not in set(section.claims["verdict"])
    assert view_of(section).lead


def test_the_fate_of_every_prompt_is_counted_once() -> None:
    loops = (np.arange(6)[:, None] < np.array([6, 3, 0, 0])).astype(float)
    copies = np.where(loops > 0, np.nan, (np.arange(6)[:, None] >= np.array([9, 9, 4, 9])).astype(float))
    result = by_hand.table({"loops_naturally": loops, "copies_in_icl": copies})
    figure: Any = flow_figure(result)
    bands = [trace for trace in figure.data if "→" in trace.text]
    counts = {(round(trace.x[0]), trace.text): round(trace.y[-1] - trace.y[0]) for trace in bands}
    assert sum(counts.values()) == 5 * 4
    # Two prompts loop at the first checkpoint and at the next.
    assert [n for (place, text), n in counts.items() if place == 0 and text.count("loops naturally") == 2] == [2]
    assert len([trace for trace in figure.data if trace.showlegend]) == 3
    with pytest.raises(InputError, match="loops"):
        flow_figure(by_hand.table({"a": loops}))
    with pytest.raises(InputError, match="revisions"):
        flow_figure(result, ["step0", "step7"])


def test_maps_of_heads_stand_by_kind_and_checkpoint(history: HeadHistory) -> None:
    figure: Any = head_maps_figure(history, [history.revisions[0], history.revisions[-1]])
    assert len(figure.data) == 6 and np.isnan(np.array(figure.data[1].z, dtype=float)).all()  # too few loops at the end
    np.testing.assert_allclose(np.array(figure.data[2].z, dtype=float), history.means("induced")[0])
    with pytest.raises(InputError, match="revisions"):
        head_maps_figure(history, ["step3"])


# --- one real run -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Model:
    return mechrep.load_model("mechrep-tiny")


def test_effects_of_heads_are_those_of_the_contrast(model: Model) -> None:
    numbers: dict[str, Sequence[float]] = dict(head_effects(model, prompts=PROMPTS, sequences=4))  # pyright: ignore
    prompts, limit = fixed_prompts(model, PROMPTS)
    natural = natural_texts(model, prompts, max_new_tokens=limit)
    result = contrast_text_kinds(model, [natural], copies=2)
    effects = result.head_effects().values
    texts = [prompts.frame["id"].tolist().index(prompt) for prompt in result.prompts]
    for layer, head in ((0, 1), (model.anatomy.n_layers - 1, 0)):
        measured = np.array(numbers[f"natural/{layer}.{head}"])
        np.testing.assert_allclose(measured[texts], effects[:, layer, head], atol=1e-4)
        assert np.isnan(np.delete(measured, texts)).all() and len(measured) == PROMPTS
        assert not np.isnan(numbers[f"induced/{layer}.{head}"]).any()
    repeats = random_repeats(model, n=50, sequences=4)
    scores = CorpusCache(model, repeats, progress=False).run(HeadScores(bos_id=model.bos_id))
    table: Any = scores
    assert np.mean(numbers["induction/1.0"]) == pytest.approx(float(table.of("induction")[1, 0]), rel=1e-3)


def test_every_prompt_is_shown_as_the_builder_shows_those_that_do_not_loop(model: Model) -> None:
    prompts, _ = fixed_prompts(model, PROMPTS)
    own = shown_twice(model, prompts)
    theirs = induced_texts(model, prompts, 2, "text", max_new_tokens=16)  # too short to loop for most
    for i, prompt in enumerate(theirs.frame["prompt"]):
        place = own.frame["prompt"].tolist().index(prompt)
        assert own.row(place) == theirs.row(i)
        columns = ["start", "onset", "period", "prompt_length", "seam"]
        assert own.frame.loc[place, columns].tolist() == theirs.frame.loc[i, columns].tolist()


@pytest.mark.slow
def test_the_study_of_two_checkpoints_goes_on_from_its_store(model: Model, tmp_path: Path) -> None:
    revisions, run = [embedded.revisions()[0], embedded.revisions()[-1]], Run(store=tmp_path)
    study = run_training_study(model, revisions=revisions, prompts=PROMPTS, run=run)
    assert study.model_name == model.name and revisions_of(study.checkpoints) == revisions
    names = {measure.name for measure in study.checkpoints.measures}
    assert {"loops_naturally", "phrase_loops", "induction", "sink"} <= names
    assert not any("/" in name for name in names), "numbers of single heads stand apart"
    loops, phrases = (study.checkpoints.of(name) for name in ("loops_naturally", "phrase_loops"))
    assert (phrases <= loops).all()
    assert study.heads is not None and set(study.heads.counts["kind"]) == set(KINDS)
    known = ~np.isnan(study.heads.history.of("natural")[:, :, 0, 0])
    np.testing.assert_array_equal(known, loops == 1)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("shard*.json")}
    assert len(files) == 2 * 4
    again = run_training_study(model, revisions=revisions, prompts=PROMPTS, run=run)
    assert again.heads is not None
    pd.testing.assert_frame_equal(again.heads.agreement, study.heads.agreement)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("shard*.json")} == files


def test_a_ready_made_measure_is_known_by_its_own_source() -> None:
    names = ("heads", "sinks", "loops")
    assert len({measure_named(name).identity()["function"] for name in names}) == len(names)


def test_models_without_known_checkpoints(tmp_path: Path) -> None:
    module: Any = tiny("llama")
    with pytest.raises(NothingFoundError, match="mapping from names to folders"):
        run_training_study(mechrep.load_model(module))
    module.save_pretrained(tmp_path / "mine")
    with pytest.raises(NothingFoundError, match="not embedded"):
        run_training_study(mechrep.load_model(tmp_path / "mine"))


def test_bad_measures() -> None:
    with pytest.raises(InputError, match="measure='head'"):
        run_training_study("mechrep-tiny", measures=["head"])
