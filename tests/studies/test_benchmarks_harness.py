"""Benchmarks through lm-evaluation-harness, beside a plain implementation that knows nothing of it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mechrep
from mechrep import run
from mechrep.ablation import benchmark_tasks
from mechrep.ablation.benchmark_tasks import TASKS, Document, read_documents, require_harness
from mechrep.ablation.benchmarks import Questions, benchmark_study, paired_answers
from mechrep.ablation.choices import score_choices
from mechrep.ablation.effects import Effects
from mechrep.errors import InputError
from mechrep.interventions import Heads, Intervention, Neurons, SinkPatch, scale
from mechrep.models.model import Model

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install mechrep[evals]")

CUT = Heads([(0, 0), (2, 1)], when="all") + Neurons([(1, n) for n in range(40)], scale(3.0), when="all")
TOLERANCE = 2e-3  # nats, of sums over up to 100 tokens in float32


@pytest.fixture(scope="module")
def model() -> Model:
    return mechrep.load_model("mechrep-tiny")


def pairs(document: Document) -> list[tuple[str, str]]:
    """Text and continuation of every choice."""
    if isinstance(document["text"], int):
        return [(choice, " " + document["target"]) for choice in document["choices"]]
    return [(document["text"], " " + choice) for choice in document["choices"]]


def plain_score(model: Model, text: str, choice: str, intervention: Intervention | None) -> float:
    """Sum of log-probabilities of the choice's tokens; one text at a time, on the TransformerLens view if edited."""
    ids, before = model.encode(text + choice), len(model.encode(text))
    count = len(ids) - before
    row = torch.tensor([ids[-(model.anatomy.n_ctx + 1) :]])
    if intervention is None:
        assert model.plain is not None
        logits = model.plain(row[:, :-1]).logits
    else:
        logits = model.run_with_hooks(row[:, :-1], fwd_hooks=intervention.hooks(model))
    scores = logits[0].double().log_softmax(-1)
    return sum(float(scores[t - 1, int(row[0, t])]) for t in range(row.shape[1] - count, row.shape[1]))


@torch.no_grad()
def check_against_plain_scores(
    model: Model, result: Effects, documents: list[Document], number: int, intervention: Intervention | None
) -> None:
    """Margins and answers under one condition of the only benchmark."""
    (task,) = result.notes["benchmarks"]
    metrics = {m.name.removeprefix(f"{task} "): result.of(m.name)[number] for m in result.measures}
    for document in documents:
        place = result.units[0].index(str(document["id"]))
        scores = [plain_score(model, *pair, intervention) for pair in pairs(document)]
        right = document["text"] if isinstance(document["text"], int) else document["target"]
        margin = scores[right] - max(score for choice, score in enumerate(scores) if choice != right)
        assert metrics["margin"][place] == pytest.approx(margin, abs=TOLERANCE)
        best, second = sorted(scores)[-1:-3:-1]
        if best - second > TOLERANCE:
            assert metrics["acc"][place] == (scores.index(best) == right)
        if "acc_norm" in metrics:
            per_character = [s / len(choice) for s, choice in zip(scores, document["choices"], strict=True)]
            assert metrics["acc_norm"][place] == (per_character.index(max(per_character)) == right)


def asked(model: Model, changes: Any = None, *, controls: Any = (), draws: int = 2, **options: Any) -> Effects:
    """A study of the benchmarks in a folder; ``draws`` of each control."""
    own = {name: options.pop(name) for name in ("batch_size",) if name in options}
    store = options.pop("store", None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(run.EFFORTS, "quick", replace(run.EFFORTS["quick"], regenerated_draws=draws))
        how = run.Run(store=store, effort="quick")
        return benchmark_study(model, changes, questions=Questions(**options), controls=controls, run=how, **own)


@pytest.mark.parametrize("name", ["winogrande", "arc_challenge"])
def test_50_questions_get_the_scores_of_a_plain_implementation(model: Model, shared: Path, name: str) -> None:
    folder = shared / "data" / "benchmarks"
    result = asked(model, CUT, data=folder, tasks=[name], limit=50)
    documents = read_documents(TASKS[name], folder, 50)
    assert result.units[0] == [str(d["id"]) for d in documents] and len(documents) == 50
    check_against_plain_scores(model, result, documents, 0, None)
    check_against_plain_scores(model, result, documents[:10], 1, CUT)
    assert np.abs(result.effect_of(f"{name} margin")[1]).max() > 0.1, "the cut is one that matters"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mmlu", "hellaswag", "arc_easy"])
def test_the_other_benchmarks_do_too(model: Model, shared: Path, name: str) -> None:
    folder = shared / "data" / "benchmarks"
    patch = SinkPatch(0, list(range(100)))
    result = asked(model, patch, data=folder, tasks=[name], limit=50)
    documents = read_documents(TASKS[name], folder, 50)
    check_against_plain_scores(model, result, documents, 0, None)
    check_against_plain_scores(model, result, documents[:10], 1, patch)


# -- questions made here -------------------------------------------------------------------------------------------


def write_arc(folder: Path, queries: list[str], choices: list[str] | None = None) -> Path:
    rows = [
        {"id": f"q{n}", "query": query, "choices": choices or ["a small house", "the sea", "nobody"], "gold": n % 3}
        for n, query in enumerate(queries)
    ]
    (folder / "arc_easy.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


QUERIES = [f"Question: What did the {who} see?\nAnswer:" for who in ("king", "old man", "child", "dog", "captain")]


def test_what_is_too_long_loses_its_beginning_and_is_counted(model: Model, tmp_path: Path) -> None:
    long = "the ship sailed on and on over the grey water " * 40
    assert len(model.encode(long)) > model.anatomy.n_ctx
    write_arc(tmp_path, [QUERIES[0], long + QUERIES[1], QUERIES[2]])
    result = asked(model, data=tmp_path, tasks=["arc_easy"])
    assert result.of("arc_easy truncated").tolist() == [[0, 1, 0]]
    documents = read_documents(TASKS["arc_easy"], tmp_path)
    check_against_plain_scores(model, result, documents, 0, None)


def test_a_choice_longer_than_the_context_is_refused_by_name(model: Model, tmp_path: Path) -> None:
    write_arc(tmp_path, QUERIES[:1], ["so it went on and on " * 90, "the sea"])
    with pytest.raises(InputError, match=r"so it went.*context"):
        asked(model, data=tmp_path, tasks=["arc_easy"])


def test_an_intervention_that_does_nothing_changes_nothing(model: Model, tmp_path: Path) -> None:
    nothing = Neurons([(1, n) for n in range(20)], scale(1.0), when="all")
    result = asked(model, nothing, data=write_arc(tmp_path, QUERIES), tasks=["arc_easy"])
    assert bool((result.values[:, 1] == result.values[:, 0]).all())
    answers = paired_answers(result)[["gained", "lost", "mcnemar"]].values.tolist()
    assert answers == [[0, 0, 1.0]] * 2  # acc and acc_norm


def test_the_size_of_batches_changes_no_answer(model: Model, tmp_path: Path) -> None:
    write_arc(tmp_path, [*QUERIES, "Where?", "Question: " + "Once upon a time there was a king. " * 5])
    one, many = (asked(model, CUT, data=tmp_path, tasks=["arc_easy"], batch_size=size) for size in (1, 16))
    torch.testing.assert_close(one.values, many.values, atol=TOLERANCE, rtol=0.0)


def test_conditions_come_with_their_controls_in_order(model: Model, tmp_path: Path) -> None:
    changes = {"patched": SinkPatch(1, [3]), "both": CUT}
    result = asked(model, changes, data=write_arc(tmp_path, QUERIES), tasks=["arc_easy"], controls=["random"])
    assert [(c.name, c.selection, c.seed) for c in result.conditions] == [
        ("baseline", "baseline", 0),
        *[(name, kind, s) for name in changes for kind, s in (("ablation", 0), ("random", 0), ("random", 1))],
    ]
    assert result.notes["benchmarks"]["arc_easy"]["chance"] == pytest.approx(1 / 3)


def test_a_second_run_with_the_same_store_asks_nothing(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_arc(tmp_path, QUERIES)
    passes: list[Any] = []
    # Not of the module: one with a hook is another for a store.
    monkeypatch.setattr(
        benchmark_tasks, "score_choices", lambda *args, **options: passes.append(1) or score_choices(*args, **options)
    )
    options: dict[str, Any] = {"data": tmp_path, "tasks": ["arc_easy"], "store": tmp_path / "kept"}
    first = asked(model, CUT, **options)
    after_first = len(passes)
    again = asked(model, CUT, **options)
    assert 0 < after_first == len(passes)
    assert bool((first.values == again.values).all()) and first.notes == again.notes
    asked(model, SinkPatch(0, [1]), **options)
    assert len(passes) > after_first, "another intervention is another study"


def write_truthfulqa(folder: Path) -> None:
    rows = [
        {
            "question": f"What is the {what}?",
            "mc1_targets": {"It is the sea": 1, "It is a small dog": 0, "I have no comment": 0},
            "mc2_targets": {"It is a small dog": 0, "It is the sea": 1, "The sea": 1, "A dog": 0},
        }
        for what in ("sea", "answer")
    ]
    (folder / "truthfulqa.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


@torch.no_grad()
def test_truthfulqa_stands_after_six_answered_questions_and_mc2_is_the_share_of_the_true(
    model: Model, tmp_path: Path
) -> None:
    from mechrep.ablation.benchmark_tasks import _truthfulqa_text

    write_truthfulqa(tmp_path)
    result = asked(model, data=tmp_path, tasks=["truthfulqa", "truthfulqa_mc2"])
    # The examples are read out of the template by hand: what stands between its quotes, without the line continuations.
    examples = re.findall(r"(Q: .*?\nA: [^\n']*)", _truthfulqa_text())
    assert len(examples) == 6
    for number, document in enumerate(read_documents(TASKS["truthfulqa_mc2"], tmp_path)):
        text = "\n\n".join([*examples, f"Q: {document['question']}\nA:"])
        scores = [plain_score(model, text, " " + choice, None) for choice in document["choices"]]
        shares = torch.tensor(scores, dtype=torch.float64).softmax(0)
        value = result.of("truthfulqa_mc2 acc")[0, number]
        assert value == pytest.approx(float(shares[1] + shares[2]), abs=1e-3)
    assert result.summary().empty


def test_without_the_harness_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    require_harness()
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=r"pip install mechrep\[evals\]"):
        require_harness()


def test_models_that_cannot_be_asked_are_refused(model: Model, tmp_path: Path) -> None:
    from tests.tiny_models import tiny

    write_arc(tmp_path, QUERIES)
    with pytest.raises(InputError, match="no tokenizer"):
        asked(mechrep.load_model(tiny("llama")), data=tmp_path, tasks=["arc_easy"])
    with pytest.raises(InputError, match="batch_size"):
        asked(model, data=tmp_path, tasks=["arc_easy"], batch_size=0)
