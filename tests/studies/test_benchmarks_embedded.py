"""Questions made from the embedded text: gold answers are found in it, and nothing else gives them away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

import mechrep
from mechrep.ablation.benchmark_tasks import (
    CONTEXT,
    EMBEDDED_TASKS,
    ENDING,
    PASSAGE,
    SKIPPED,
    TASKS,
    Question,
    continuation_questions,
    read_documents,
    recall_questions,
)
from mechrep.ablation.benchmarks import Questions, benchmark_study
from mechrep.errors import InputError
from mechrep.models import tiny

TEXT = " ".join(tiny.held_out_text().split())
MAKERS = [continuation_questions, recall_questions]
Maker = Callable[..., list[Question]]


def in_text(words: str) -> bool:
    """Whether the text has this stretch, from word to word."""
    return f" {words} " in f" {TEXT} "


def test_the_right_continuation_follows_in_the_text_and_no_other_does() -> None:
    for question in continuation_questions():
        gold = question["gold"]
        assert len(question["query"].split()) == CONTEXT
        for place, choice in enumerate(question["choices"]):
            assert in_text(choice) and len(choice.split()) == ENDING
            assert in_text(f"{question['query']} {choice}") == (place == gold)
        assert len({len(choice) for choice in question["choices"]}) == 1, "length gives nothing away"


def test_the_right_word_follows_in_the_passage_and_the_others_stand_elsewhere_in_it() -> None:
    for question in recall_questions():
        whole, again = question["query"].split("\n")
        passage, cut = whole.split(), len(again.split())
        assert in_text(whole) and len(passage) == PASSAGE and passage[:cut] == again.split()
        assert cut >= SKIPPED and passage[cut] == question["choices"][question["gold"]]
        for choice in question["choices"]:
            assert passage.count(choice) == 1, "so copying is never ambiguous"


def copier(question: Question) -> int:
    """Looks for the longest end of the second copy in the first one, and takes the word that followed."""
    whole, again = (part.split() for part in question["query"].split("\n"))
    ends = [i for i in range(1, len(whole)) if whole[:i][-len(again) :] == again]
    return question["choices"].index(whole[ends[0]])


def test_a_perfect_copier_is_always_right_and_guessing_is_at_chance() -> None:
    questions = recall_questions()
    assert all(copier(question) == question["gold"] for question in questions)
    for maker in MAKERS:
        made = maker()
        for always in range(4):
            assert np.mean([question["gold"] == always for question in made]) == 0.25


def test_neither_length_nor_place_in_the_passage_tells_the_word() -> None:
    questions = recall_questions(questions=800)
    lengths = [[len(choice) for choice in question["choices"]] for question in questions]
    shortest = np.mean([np.argmin(own) == question["gold"] for own, question in zip(lengths, questions, strict=True)])
    places = [[q["query"].split("\n")[0].split().index(choice) for choice in q["choices"]] for q in questions]
    latest = np.mean([np.argmax(own) == question["gold"] for own, question in zip(places, questions, strict=True)])
    # Four standard errors of a share of one fourth in 800; neighbouring passages overlap, which makes them larger.
    assert abs(shortest - 0.25) < 0.08 and abs(latest - 0.25) < 0.08


@pytest.mark.parametrize("maker", MAKERS)
def test_questions_differ_are_even_and_depend_on_the_seed_alone(maker: Maker) -> None:
    made = maker()
    assert len(made) == 100 and len({question["id"] for question in made}) == 100
    assert all(len(set(question["choices"])) == 4 for question in made)
    for start in range(0, 100, 4):
        assert sorted(question["gold"] for question in made[start : start + 4]) == [0, 1, 2, 3]
    assert made == maker() and made != maker(seed=1)
    words = len(TEXT.split())
    quarters = Counter(4 * int(question["id"]) // words for question in made[:40])
    assert min(quarters[quarter] for quarter in range(4)) >= 3, "a few questions are from all over the text"


@pytest.mark.parametrize("maker", MAKERS)
def test_texts_that_are_too_short_are_refused(maker: Maker) -> None:
    for text, questions in (("a word or two", 1), (TEXT, 0), (TEXT, 10**6), ("the sea " * 400, 4)):
        with pytest.raises(InputError):
            maker(text, questions=questions)


def test_they_are_benchmarks_without_a_folder_and_files_are_not() -> None:
    assert EMBEDDED_TASKS == ("continuation", "recall")
    for name, maker in zip(EMBEDDED_TASKS, MAKERS, strict=True):
        documents = read_documents(TASKS[name], None, 3)
        assert [d["choices"] for d in documents] == [q["choices"] for q in maker()[:3]]
        assert [d["target"] for d in documents] == [q["gold"] for q in maker()[:3]]
    with pytest.raises(InputError, match=r"no folder for winogrande.*continuation, recall"):
        read_documents(TASKS["winogrande"], None)


def test_they_are_asked_through_the_harness_without_data() -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install mechrep[evals]")
    model = mechrep.load_model("mechrep-tiny")
    one, asked = mechrep.Neurons([(0, 1)], when="all"), Questions(EMBEDDED_TASKS, limit=2)
    result = benchmark_study(model, one, questions=asked, controls=())
    facts = result.notes["benchmarks"].values()
    assert [one["questions"] for one in facts] == [2, 2] and {one["chance"] for one in facts} == {0.25}
    assert not any(result.of(f"{name} truncated").any() for name in EMBEDDED_TASKS)
