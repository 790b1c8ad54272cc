"""The section on token information says what the numbers give, and never more than its controls leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from mechrep.measures.token_information_masks import InformationCut
from mechrep.report.old_information_section import attention_answer, cut_answer, information_section
from mechrep.report.page import Section, save_tables
from tests.views import information_study_by_hand as by_hand
from tests.views import study_by_hand
from tests.views.test_report import Page


def words(section: Section) -> str:
    return Page(section.to_html()).text.replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("loops", "free", "answer", "kind", "said"),
    [
        (2.0, 1.0, "more", "good", "and more than in texts that do not loop"),
        (2.0, 2.0, "more, but so do others", "none", "but not than in texts that do not loop"),
        (1.0, 1.0, "as much", "none", "is not found to be more than"),
        (0.5, 1.0, "less", "none", "is less than"),
        (2.0, None, "open", "open", "cannot be judged"),
    ],
)
def test_the_answer_follows_the_reader_and_the_controls(
    loops: float, free: float | None, answer: str, kind: str, said: str
) -> None:
    study = by_hand.study(loops, free)
    section = information_section(study)
    assert attention_answer(study) == answer and section.badges[0].kind == kind
    assert said in section.finding and section.finding.count("In loops of hand") == 1
    if loops != 1.0:
        assert f"(bias {loops:.2f}, 95" in section.finding.replace("\u00a0", " ") or f"{loops:.1f}" in section.finding


def test_few_texts_decide_nothing() -> None:
    study = by_hand.study(n=4)
    assert attention_answer(study) == cut_answer(study, "mask") == "open"
    assert {badge.kind for badge in information_section(study).badges} == {"open"}


@pytest.mark.parametrize(
    ("low", "others", "answer", "kind", "said"),
    [
        (-1.0, -0.2, "leans", "good", "lose more than without as many others (−0.80"),
        (-1.0, -1.0, "no difference", "none", "are not found to lose more than without as many others"),
        (-0.2, -1.0, "leans less", "none", "lose less than without as many others (+0.80"),
    ],
)
def test_a_cut_is_judged_by_what_as_many_other_tokens_do(
    low: float, others: float, answer: str, kind: str, said: str
) -> None:
    study = by_hand.study(low=low, others=others)
    section = information_section(study)
    assert cut_answer(study, "swap") == answer and [badge.kind for badge in section.badges[1:]] == [kind] * 2
    assert said in section.finding


def test_tables_hold_every_group_control_and_cut() -> None:
    section = information_section(by_hand.study())
    first = {str(row[0]): [str(cell) for cell in row] for row in section.tables[0].rows}
    assert 1.9 < float(first["low surprisal"][4][:4]) < 2.1 and first["newline"][4].startswith("1.00")
    assert 2.4 < float(first["low surprisal"][3][:4]) < 2.6, "0.5 of attention for 0.2 of the visible tokens"
    text = words(section)
    assert "in loops: 30 % and 0 %" in text, "sinks are told apart"
    assert "usual distances explain at: none; of these, more than every control text does: none" in text
    assert len(section.tables) == 3 and [row[-1] for row in section.tables[2].rows] == [1] * 6


def test_what_could_not_be_done_is_said_and_markup_stays_text() -> None:
    study = by_hand.study(name=f"net {study_by_hand.SCRIPT}", cuts={})
    section = information_section(study)
    source = section.to_html()
    assert study_by_hand.SCRIPT not in source and Page(source).open == []
    assert "Left out, texts of the model that do not loop: a reason" in words(section)
    assert "whether loops need these tokens could not be tried" in section.finding and len(section.badges) == 1


def test_save_tables_keeps_results_and_texts(tmp_path: Path) -> None:
    folder = save_tables(by_hand.study(), tmp_path)
    assert InformationCut.load(folder / "results" / "cuts-mask").left_out == 1
    names = {path.stem for path in (folder / "tables").glob("*.parquet")}
    assert {"bias-matched", "compared-held_out", "cuts-swap", "sinks"} <= names
    assert (folder / "corpus.parquet").is_file()
