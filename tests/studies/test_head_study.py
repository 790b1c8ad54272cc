"""The study of heads from end to end, on models in which it is known which head does what."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import mechrep
from mechrep.ablation.old_controls import ON_LOOPS, ON_REPEATS, PUBLISHED, head_kinds, heads_of
from mechrep.errors import InputError
from mechrep.measures.head_copying import HeadCopying
from mechrep.measures.head_scores import HeadScores
from mechrep.models.model import Model
from mechrep.report.old_heads_section import heads_section
from mechrep.report.write import report_html
from mechrep.studies import heads as head_study
from mechrep.studies.heads import BEST, CIRCUIT, JOINT, SELF_FINDING, HeadStudy, default_head_ks, run_head_study
from mechrep.text.corpus import Corpus
from tests.planted.circuits import repetition_neurons, self_finding_head
from tests.planted.texts import prompts, repeats, words
from tests.studies import loops
from tests.views import head_study_by_hand as by_hand

PERIOD = 9


@pytest.fixture(scope="module", autouse=True)
def known_text() -> Iterator[None]:
    """Held-out text in words that the planted models know."""

    def windows(model: Model, _: str) -> Corpus:
        last = model.anatomy.d_vocab - 1
        rows = [[model.bos_id or 0, *(min(word, last) for word in words(20, seed=seed))] for seed in range(3)]
        return Corpus.from_tokens(rows, model=model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_study, "windows_of_text", windows)
        yield


def marked(texts: Corpus) -> Corpus:
    """With the columns of a study: all loop, every second one is for testing."""
    splits = ["find" if i % 2 else "test" for i in range(len(texts))]
    return texts.with_columns(condition=["looping"] * len(texts), split=splits)


@functools.cache
def written() -> Corpus:
    """Loops that a planted model writes."""
    model = repetition_neurons("gpt_neox").model
    texts = mechrep.generate(model, Corpus.from_tokens(prompts(12), model=model), max_new_tokens=120, progress=False)
    texts = texts.with_cycles(eos_id=model.eos_ids)
    return marked(texts.select(texts.frame["onset"].notna() & (texts.frame["period"] > 2)))


def run(model: Model, corpus: Corpus, **options: Any) -> HeadStudy:
    settings: dict[str, Any] = {"period": PERIOD, "sequences": 4, "seeds": 2, "ks": [1, 2]}
    neurons = mechrep.RepetitionNeurons("hiraoka2025", r=5)
    (found,) = mechrep.CorpusCache(model, corpus, progress=False).run(neurons)
    return run_head_study(model, corpus=corpus, neurons=found, **(settings | options))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("heads")


@pytest.fixture(scope="module")
def planted(store: Path) -> HeadStudy:
    return run(repetition_neurons("gpt_neox").model, written(), store=store)


def test_the_planted_heads_are_found_and_no_others(planted: HeadStudy) -> None:
    circuit = repetition_neurons("gpt_neox")
    assert planted.heads_of("induction", ON_REPEATS) == [circuit.induction]
    assert planted.heads_of("previous_token") == [circuit.previous_token]
    assert planted.heads_of("self_finding") == []
    assert list(planted.example.patterns) == [circuit.induction]


def test_cutting_the_circuit_ends_copying_and_controls_do_not(planted: HeadStudy) -> None:
    circuit = repetition_neurons("gpt_neox")
    cuts = {cut.circuit.name: cut for cut in planted.cuts}
    assert list(cuts) == [BEST, CIRCUIT, JOINT]
    assert cuts[BEST].circuit.heads == (circuit.induction,) and cuts[BEST].when == "from_onset"
    assert set(cuts[CIRCUIT].circuit.heads) == {circuit.induction, circuit.previous_token}
    assert cuts[CIRCUIT].when == "all"
    frame = cuts[BEST].result.to_frame().set_index(["outcome", "selection"])
    assert frame.loc[("copy_accuracy", "none"), "value"].item() == 1.0
    assert frame.loc[("copy_accuracy", "top"), "value"].item() < 0.2
    assert frame.loc[("still_looping", "none"), "value"].item() == 1.0
    assert frame.loc[("still_looping", "top"), "value"].item() < 1.0
    kept = frame.loc["copy_accuracy"].loc["layer_matched", "value"]
    assert (kept == 1.0).all(), "idle heads of the same layer do nothing"
    tests = planted.single.tests("copy_accuracy")
    assert {(row.layer, row.head) for row in tests.head(2).itertuples()} == {circuit.induction, circuit.previous_token}


def test_heads_are_scored_and_cut_on_different_texts(planted: HeadStudy) -> None:
    split = planted.corpus.frame.set_index("id")["split"]
    assert planted.loop_scores.provenance.corpus["texts"] == int((split == "find").sum())
    for result in (planted.single, *(cut.result for cut in planted.cuts), planted.ranking):
        assert set(result.texts[0]) == set(split[split == "test"].index)
    assert planted.example.text_id in set(split[split == "test"].index)


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
    again = run(repetition_neurons("gpt_neox").model, written(), store=store)
    assert torch.equal(again.scores.scores, planted.scores.scores) and again.kinds == planted.kinds
    for mine, theirs in zip(again.cuts, planted.cuts, strict=True):
        pd.testing.assert_frame_equal(mine.result.to_frame(), theirs.result.to_frame())
    pd.testing.assert_frame_equal(again.single.to_frame(), planted.single.to_frame())


def test_a_planted_self_finding_head_is_found_by_both_rules_and_cut() -> None:
    circuit = self_finding_head("llama_gqa")
    rows = [repeats(PERIOD, copies=4, seed=seed) for seed in range(6)]
    corpus = marked(Corpus.from_tokens(rows, model=circuit.model).with_cycles())
    study = run(circuit.model, corpus, regenerate=False)
    for place in (ON_REPEATS, ON_LOOPS):
        assert study.heads_of("self_finding", place) == [circuit.self_finding]
    assert study.heads_of("induction") == []
    assert [cut.circuit.name for cut in study.cuts] == [SELF_FINDING]
    assert circuit.self_finding in study.example.patterns and study.profiles is None


def test_a_random_model_has_no_such_heads_and_nothing_is_cut() -> None:
    texts = loops.looping("gpt2")
    corpus = marked(texts.with_columns(period=texts.frame["onset"] - texts.frame["start"]))
    assert set(corpus.frame["period"]) == {1}, "it repeats single tokens, so loops cannot tell its heads apart"
    study = run(loops.model("gpt2"), corpus, regenerate=False)
    assert study.heads_of("induction") == study.heads_of("self_finding") == []
    assert not [cut for cut in study.cuts if cut.circuit.name != CIRCUIT] and study.profiles is None
    assert len(study.example.tokens) == len(study.example.patterns[study.scores.top(1)[0]])
    assert "cannot tell" in " ".join(heads_section(study).answer)
    assert report_html(study)


def test_what_even_attention_reaches_is_not_counted() -> None:
    """In loops of short period half of the attention is on earlier copies whatever a head does."""
    repeats_, loop = by_hand.scores(), by_hand.scores()
    loop.chance[1] = 0.55
    loop.scores[1][0, 0], loop.scores[1][0, 1] = 0.6, 0.9
    kinds = head_kinds(repeats_, by_hand.copying(), loop)
    assert heads_of(kinds, "self_finding", PUBLISHED) == [(0, 1), (0, 0)]
    assert heads_of(kinds, "self_finding", ON_LOOPS) == heads_of(kinds, "self_finding") == [(0, 1)]


def test_numbers_of_heads_follow_the_size_of_the_model() -> None:
    for n in (1, 2, 8, 144, 1024):
        ks = default_head_ks(n)
        assert ks == sorted(set(ks)) and ks[0] >= 1 and ks[-1] <= max(1, n // 2)


def test_what_cannot_be_studied_is_refused() -> None:
    model = repetition_neurons("gpt_neox").model
    one = written().select([0]).with_columns(split=["find"])
    with pytest.raises(InputError, match="1 looping text"):
        run_head_study(model, corpus=one)
