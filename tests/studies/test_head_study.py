"""The study of heads from end to end, on models in which it is known which head does what."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import false_discovery_control

import mechrep
from mechrep.ablation import texts as shared
from mechrep.errors import InputError, NothingFoundError
from mechrep.measures.head_copying import HeadCopying
from mechrep.measures.head_scores import HeadScores
from mechrep.models.model import Model
from mechrep.report.view import view_of
from mechrep.run import Run
from mechrep.studies.heads import (
    BEST,
    CIRCUIT,
    DUPLICATE,
    JOINT,
    HeadStudy,
    default_head_ks,
    planned_circuits,
    run_head_study,
)
from mechrep.studies.kinds_of_heads import ON_LOOPS, ON_REPEATS, HeadReadings, head_kinds, heads_of, heads_that_say
from mechrep.text.corpus import Corpus
from mechrep.text.stimuli import random_repeats
from tests.planted.circuits import repetition_neurons, self_finding_head
from tests.planted.texts import prompts, repeats, words
from tests.studies import loops

PERIOD = 9


@pytest.fixture(scope="module", autouse=True)
def known_text() -> Iterator[None]:
    """Held-out text in words that the planted models know."""

    def windows(model: Model, *_: Any, **__: Any) -> Corpus:
        last = model.anatomy.d_vocab - 1
        rows = [[model.bos_id or 0, *(min(word, last) for word in words(20, seed=seed))] for seed in range(3)]
        return Corpus.from_tokens(rows, model=model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared, "windows_of_text", windows)
        yield


def marked(texts: Corpus) -> Corpus:
    """With the columns of a study: all loop, every second one is for testing."""
    return texts.with_columns(split=["find" if i % 2 else "test" for i in range(len(texts))])


@functools.cache
def written() -> Corpus:
    """Loops that a planted model writes."""
    model = repetition_neurons("llama_gqa").model
    texts = mechrep.generate(model, Corpus.from_tokens(prompts(14), model=model), max_new_tokens=90, progress=False)
    texts = texts.with_cycles(eos_id=model.eos_ids)
    return marked(texts.select(texts.frame["onset"].notna() & (texts.frame["period"] > 2)))


def study_of(model: Model, corpus: Corpus, store: Path | None = None, **options: Any) -> HeadStudy:
    neurons = mechrep.RepetitionNeurons("hiraoka2025", r=5)
    found = mechrep.CorpusCache(model, corpus, progress=False).run(neurons)
    run = Run(store=store, effort="quick", progress=False)
    given = {"repeats": random_repeats(model, n=PERIOD, sequences=8), "ks": [1, 2]} | options
    return run_head_study(model, corpus=corpus, neurons=found, run=run, **given)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("heads")


@pytest.fixture(scope="module")
def planted(store: Path) -> HeadStudy:
    return study_of(repetition_neurons("llama_gqa").model, written(), store)


def test_the_planted_heads_are_found_and_no_others(planted: HeadStudy) -> None:
    circuit = repetition_neurons("llama_gqa")
    assert planted.heads_of("induction", ON_REPEATS) == [circuit.induction]
    assert planted.heads_of("previous_token") == [circuit.previous_token]
    assert planted.heads_of("duplicate_token") == []
    assert list(planted.example.patterns) == [circuit.induction] and planted.nulls == 19
    first = planted.kinds.groupby(["kind", "measured_on"]).first()
    assert first.loc[("induction", ON_REPEATS), ["verdict", "p", "m"]].tolist() == ["supported", 0.05, 19]


def test_ablating_the_circuit_ends_copying(planted: HeadStudy) -> None:
    circuit = repetition_neurons("llama_gqa")
    assert [(one.name, when) for one, when in planted.circuits] == [
        (BEST, "from_onset"), (CIRCUIT, "all"), (JOINT, "from_onset")
    ]  # fmt: skip
    heads = {one.name: set(one.heads) for one, _ in planted.circuits}
    assert heads[BEST] == heads[JOINT] == {circuit.induction}
    assert heads[CIRCUIT] == {circuit.induction, circuit.previous_token}
    table = planted.effects()
    best = table[(table["name"] == BEST) & (table["copy"].isna())].set_index("measure")
    assert best.loc["copy_accuracy", "baseline"] == 1.0 > 0.2 > best.loc["copy_accuracy", "value"]
    assert best.loc["still_looping", "baseline"] == 1.0 > best.loc["still_looping", "value"]
    assert best.loc["copy_accuracy", ["control_low", "control_high"]].tolist() == [0.0, 0.0], "idle heads do nothing"
    of = {"copy_accuracy": "copying", "copy_loss_drop": "copying", "loss": "cost"}
    asked = table["measure"].map(of).fillna("loops")
    for _, rows in table.groupby(asked):  # one question, one family: q as of its own tests alone
        tests = rows[rows["q"].notna()]
        assert np.allclose(tests["q"], false_discovery_control(tests["p"].to_numpy(float)))
    accuracy = planted.single.ranking("copy_accuracy")[:2]
    named = {tuple(planted.single.conditions[place].components["heads"][0]) for place in accuracy}
    assert named == {circuit.induction, circuit.previous_token}


def test_no_control_holds_a_head_of_a_circuit(planted: HeadStudy) -> None:
    named = {unit for one, _ in planted.circuits for unit in one.heads}
    for effects in planted.ablations:
        for condition in effects.conditions:
            drawn = {tuple(unit) for unit in condition.components.get("heads", [])}
            assert condition.selection in ("baseline", "ablation") or not drawn & named


def test_heads_are_scored_and_ablated_on_different_texts(planted: HeadStudy) -> None:
    split = planted.corpus.frame.set_index("id")["split"]
    assert planted.readings.loops.provenance.corpus["texts"] == int((split == "find").sum())
    for effects in (planted.single, planted.ranking, planted.ablations[0]):
        assert set(effects.units[0]) == set(split[split == "test"].index)
    assert planted.example.text_id in set(split[split == "test"].index)


def test_its_sections_have_words_for_everything_in_them(planted: HeadStudy) -> None:
    heads, ablation = planted.section()
    for section in (heads, ablation):
        view = view_of(section)
        assert len(view.claims) == len(section.claims) > 0 and len(view.figures) == len(section.figures)
    assert heads.fields["best"] == "L1H1" if repetition_neurons("llama_gqa").induction == (1, 1) else True
    assert set(heads.claims["claim"]) >= {"induction", "duplicate_token", "previous_token", "first_token"}
    assert ablation.fields["main"] == BEST and set(ablation.claims["claim"]) == {"loop", "looping", "copying", "loss"}
    assert len(ablation.claims[ablation.claims["claim"] == "loop"]) == len(planted.circuits)
    single = ablation.tables["single"]
    assert list(single) == ["rank", "head", "effect", "low", "high"], "heads alone are described, not judged"
    assert single["head"].iloc[0] == ablation.fields["single"]
    traces: Any = ablation.figures["single"].data
    assert not any("*" in text for trace in traces for text in np.ravel(trace.text))
    circuits = ablation.tables["effects"]
    names = ["nothing", BEST, CIRCUIT, "induction head and repetition neurons", "its neurons alone"]
    assert circuits["ablated"].tolist() == names and circuits["repeats predicted (%)"].iloc[0] == 100


def test_the_second_run_reads_what_the_first_one_kept(
    planted: HeadStudy, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("computed again")

    for path in ("outcomes.score_tokens", "outcomes.token_losses", "outcomes.run_requests"):
        monkeypatch.setattr(f"mechrep.ablation.{path}", never)
    observe = HeadScores.observe

    def one_text(self: HeadScores, activation: Any, site: Any, layer: int, batch: Any) -> None:
        assert len(batch.texts) == 1, "only the example is looked for again"
        observe(self, activation, site, layer, batch)

    monkeypatch.setattr(HeadScores, "observe", one_text)
    monkeypatch.setattr(HeadCopying, "observe", never)
    again = study_of(repetition_neurons("llama_gqa").model, written(), store)
    assert torch.equal(again.readings.repeats.scores, planted.readings.repeats.scores)
    pd.testing.assert_frame_equal(again.kinds, planted.kinds)
    pd.testing.assert_frame_equal(again.effects(), planted.effects())
    assert torch.equal(again.single.values.nan_to_num(), planted.single.values.nan_to_num())


@pytest.mark.slow
def test_a_planted_duplicate_token_head_is_found_on_both_kinds_of_text_and_ablated() -> None:
    circuit = self_finding_head("llama_gqa")
    rows = [repeats(PERIOD, copies=4, seed=seed) for seed in range(12)]
    corpus = marked(Corpus.from_tokens(rows, model=circuit.model).with_cycles())
    study = study_of(circuit.model, corpus, regenerate=False)
    for place in (ON_REPEATS, ON_LOOPS):
        assert study.heads_of("duplicate_token", place) == [circuit.self_finding]
    assert study.heads_of("induction") == []
    assert [one.name for one, _ in study.circuits] == [DUPLICATE]
    assert circuit.self_finding in study.example.patterns and study.profiles is None
    assert [view_of(section).name for section in study.section()] == ["heads", "ablation"]


@pytest.mark.slow
def test_a_random_model_has_no_such_heads_and_nothing_is_ablated() -> None:
    texts = loops.looping("gpt2")
    corpus = marked(texts.with_columns(period=texts.frame["onset"] - texts.frame["start"]))
    assert set(corpus.frame["period"]) == {1}, "it repeats single tokens, so loops cannot tell its heads apart"
    study = study_of(loops.model("gpt2"), corpus, regenerate=False)
    assert study.circuits == [] and study.ablations == [] and study.profiles is None
    on_loops = study.kinds[study.kinds["measured_on"] == ON_LOOPS]
    assert set(on_loops["verdict"]) == {"too few"} and on_loops["value"].isna().all()
    assert len(study.example.tokens) == len(study.example.patterns[study.readings.repeats.top(1)[0]])
    sections = study.section()
    assert sections[1].variant == "not_found" and all(view_of(section).lead_text for section in sections)


# --- kinds of heads -------------------------------------------------------------------------------------------------


@functools.cache
def readings() -> HeadReadings:
    """Of an untrained model, on few texts; the scores are replaced below."""
    model = loops.model("gpt_neox")
    repeated = random_repeats(model, n=8, sequences=8)
    cache = mechrep.CorpusCache(model, repeated, progress=False)
    scores, copying = cache.run(HeadScores(bos_id=None), HeadCopying(model))
    again = mechrep.CorpusCache(model, repeated, progress=False).run(HeadScores("hiraoka2025", bos_id=None))
    return HeadReadings(scores, copying, again)


def with_scores(
    score: float, says: float = 0.5, unit: tuple[int, int] = (1, 2), on: str = "repeats", seed: int = 0
) -> HeadReadings:
    """All heads score little, one of them so much on induction and duplicate token."""
    own, draw = readings(), torch.Generator().manual_seed(seed)
    tables = torch.rand(own.repeats.scores.shape, generator=draw) / 20
    tables[:2, unit[0], unit[1]] = score
    functional = torch.rand(own.copying.functional.shape, generator=draw) / 100
    functional[unit] = says
    named = {on: dataclasses.replace(getattr(own, on), scores=tables, standard_errors=torch.full_like(tables, 0.01))}
    other = "loops" if on == "repeats" else "repeats"
    named[other] = dataclasses.replace(getattr(own, other), scores=tables.clamp_max(0.05))
    return HeadReadings(copying=dataclasses.replace(own.copying, functional=functional), **named)


@functools.cache
def nulls(number: int = 19) -> list[HeadReadings]:
    return [with_scores(0.0, says=0.0, seed=seed) for seed in range(1, number + 1)]


def test_a_head_counts_that_exceeds_the_highest_head_of_every_null_model() -> None:
    table = head_kinds(with_scores(0.9), nulls())
    assert heads_of(table, "induction") == heads_of(table, "duplicate_token", ON_REPEATS) == [(1, 2)]
    row = table[(table["kind"] == "induction") & (table["measured_on"] == ON_REPEATS)].iloc[0]
    best = [float(null.repeats.induction.max()) for null in nulls()]
    assert row["effect"] == pytest.approx(0.9 - np.mean(best)) and row["m"] == 19 and row["p"] == 0.05
    assert row["control_high"] == pytest.approx(max(best) - np.mean(best))
    others = table[table["name"] != "L1H2"]
    assert not others["clear"].any() and (others["verdict"] != "supported").mean() > 0.9


def test_what_an_induction_head_says_is_told_beside_what_it_looks_at() -> None:
    for says, found in ((0.5, [(1, 2)]), (0.0, [])):
        table = head_kinds(with_scores(0.9, says=says), nulls())
        assert heads_of(table, "induction", ON_REPEATS) == [(1, 2)] and heads_that_say(table) == found
        assert heads_of(table, "duplicate_token", ON_REPEATS) == [(1, 2)]


def test_what_stands_out_by_little_is_supported_but_not_clear() -> None:
    table = head_kinds(with_scores(0.2), nulls())
    row = table[(table["kind"] == "duplicate_token") & (table["measured_on"] == ON_REPEATS)].iloc[0]
    assert row["verdict"] == "supported" and not row["clear"] and heads_of(table, "duplicate_token") == []


def test_with_few_null_models_nothing_can_be_found() -> None:
    table = head_kinds(with_scores(0.9), nulls()[:18])
    assert set(table["verdict"]) == {"too few"} and heads_of(table, "induction") == []


def test_what_uniform_attention_reaches_is_not_clear() -> None:
    """In loops of short period half of the attention is on earlier copies whatever a head does."""
    own = with_scores(0.9, on="loops")
    own.loops.scores[1, 0, 0] = 0.6
    loops_ = dataclasses.replace(own.loops, chance=torch.full_like(own.loops.chance, 0.55))
    table = head_kinds(dataclasses.replace(own, loops=loops_), nulls())
    rows = table[(table["kind"] == "duplicate_token") & (table["measured_on"] == ON_LOOPS)].set_index("name")
    assert rows.loc[["L1H2", "L0H0"], "published"].tolist() == [True, True]
    assert rows.loc[["L1H2", "L0H0"], "clear"].tolist() == [True, False]
    assert heads_of(table, "duplicate_token") == heads_of(table, "duplicate_token", ON_LOOPS) == [(1, 2)]


def test_a_model_without_such_heads_has_no_circuits() -> None:
    table = head_kinds(with_scores(0.02), nulls())
    neurons = loops.neurons("gpt_neox")
    assert planned_circuits(table, neurons, n_heads=4) == []
    names = [one.name for one, _ in planned_circuits(head_kinds(with_scores(0.9), nulls()), neurons, n_heads=4)]
    assert names == [BEST, DUPLICATE, JOINT]


def test_numbers_of_heads_follow_the_size_of_the_model() -> None:
    for n in (1, 2, 8, 144, 1024):
        ks = default_head_ks(n)
        assert ks == sorted(set(ks)) and ks[0] >= 1 and ks[-1] <= max(1, n // 2)


def test_what_cannot_be_studied_is_refused() -> None:
    model = repetition_neurons("llama_gqa").model
    with pytest.raises(NothingFoundError, match="families"):
        run_head_study(model, corpus=written().select([0]).with_columns(split=["find"]))
    with pytest.raises(InputError, match="a RepetitionNeuronResult of"):
        run_head_study(model, corpus=written(), neurons=loops.neurons("gpt_neox"))
