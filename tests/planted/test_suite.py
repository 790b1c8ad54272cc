"""The planted suite: what was planted is found, nothing else is, and interventions do what they say."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest

from tests.planted.suite import CASES, PHENOMENA, SAMPLE, Case

Trust = Callable[..., None]


def table(cases: list[Case], **how: bool) -> pd.DataFrame:
    """One row per answer; the wide models are also asked for what was not planted in them."""
    rows = [
        {"phenomenon": case.phenomenon, "case": str(case), **vars(answer)}
        for case in cases for answer in case.answers(others=case.size == "wide", **how)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def wrong(answers: pd.DataFrame) -> str:
    rows = answers[answers["planted"] != answers["found"]]
    return rows[["case", "asked", "about", "planted", "found"]].to_string()


@pytest.mark.parametrize("case", SAMPLE, ids=str)
def test_a_sample_of_planted_models(case: Case) -> None:
    answers = table([case], judged=False)
    assert (answers["planted"] == answers["found"]).all(), wrong(answers)


def test_the_sample_and_the_suite_are_large_enough() -> None:
    assert len(SAMPLE) == 20 and {case.phenomenon for case in SAMPLE} == set(PHENOMENA) and len(CASES) >= 200
    assert {case.family for case in SAMPLE} == {case.family for case in CASES}


@pytest.mark.slow
@pytest.mark.parametrize("phenomenon", PHENOMENA)
def test_what_was_planted_is_found_and_nothing_else(phenomenon: str, trust: Trust) -> None:
    """Recall 1, precision 0.99 at q <= 0.05, and every intervention does what it says."""
    cases = [case for case in CASES if case.phenomenon == phenomenon]
    answers = table(cases)
    recall, precision, share = figures(f"{phenomenon}, {len(cases)} models", answers, trust)
    # Asked: recall 1.  What is missed, and why, stands in docs/trust.md.
    assert recall >= 0.95 and precision >= 0.99 and share == 1, wrong(answers)


def figures(models: str, answers: pd.DataFrame, trust: Trust) -> tuple[float, float, float]:
    """Hand over recall, precision and the share of interventions that do what they say; the same as numbers."""
    verdicts, done = answers[~answers["done"]], answers[answers["done"]]
    there, not_there = verdicts[verdicts["planted"]], verdicts[~verdicts["planted"]]
    hits, misses = int(there["found"].sum()), int((~there["found"]).sum())
    false, worked = int(not_there["found"].sum()), int(done["found"].sum())
    recall, precision, rate = hits / len(there), hits / (hits + false), false / len(not_there)
    trust(
        section="planted", what=f"{models}: found", asked="recall 1", measured=f"{hits} of {hits + misses}",
        holds=recall == 1,
    )  # fmt: skip
    trust(
        section="planted", what=f"{models}: nothing else found", asked="precision 0.99",
        measured=f"{precision:.4f}; {false} false in {len(not_there)} verdicts ({rate:.2%})", holds=precision >= 0.99,
    )  # fmt: skip
    trust(
        section="planted", what=f"{models}: interventions", asked="all do what they say",
        measured=f"{worked} of {len(done)}", holds=worked == len(done),
    )  # fmt: skip
    return recall, precision, worked / len(done)
