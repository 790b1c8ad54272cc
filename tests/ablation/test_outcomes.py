"""Escapes, new loops and censoring, on pairs of texts made by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechrep.ablation.outcomes import LoopLogProbability, OldLoop, looping_texts, outcome_of
from mechrep.text.corpus import Corpus
from tests.tiny_models import loaded

PREFIX, CYCLE, EOS = [20, 21, 22, 23], [5, 6, 7], 1
OLD = OldLoop(4, 7, (5, 6, 7))
PROMPT = [*PREFIX, *CYCLE]
OLD_LOOP = CYCLE * 20
NEW_LOOP = [30, 31] * 25
NOISE = list(range(40, 60))


def outcome(continuation: list[int], *, preset: str = "mechrep", old: OldLoop | None = OLD) -> dict[str, Any]:
    return outcome_of([*PROMPT, *continuation], len(PROMPT), preset=preset, old=old, eos_id=EOS, special_ids=[0, 1, 2])


@pytest.mark.parametrize("preset", ["mechrep", "hiraoka2025"])
@pytest.mark.parametrize(
    ("continuation", "repeating", "escaped_at", "relooped", "new_period"),
    [
        (OLD_LOOP, True, None, False, None),  # stays
        (NOISE, False, 0, False, None),  # leaves at once
        ([5, 6, 7, 5, *NOISE], False, 4, False, None),  # leaves inside the second copy after the onset
        (NOISE + NEW_LOOP, True, 0, True, 2),  # finds another loop
        ([5, 6, *NOISE, *CYCLE * 15], True, 2, True, 3),  # comes back to the same tokens: a loop after an escape
        (OLD_LOOP + NOISE, True, 60, False, None),  # repeated for long, then left: that loop was the old one
        ([*OLD_LOOP, EOS], True, 60, False, None),  # the text ended, not the loop
        ([5, 6], False, None, False, None),  # cut off before anything can be said
    ],
)
def test_what_becomes_of_a_looping_text(
    preset: str,
    continuation: list[int],
    repeating: bool,
    escaped_at: int | None,
    relooped: bool,
    new_period: int | None,
) -> None:
    assert outcome(continuation, preset=preset) == {
        "repeating": repeating,
        "escaped_at": escaped_at,
        "relooped": relooped,
        "new_period": new_period,
        "new_tokens": len(continuation),
    }


def test_a_text_that_had_no_loop_never_escapes() -> None:
    assert outcome(NOISE + NEW_LOOP, old=None) | {"new_tokens": 0} == {
        "repeating": True,
        "escaped_at": None,
        "relooped": True,
        "new_period": 2,
        "new_tokens": 0,
    }
    assert outcome(NOISE, old=None)["relooped"] is False


@given(
    prefix=st.lists(st.integers(0, 9), max_size=6),
    cycle=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    copies=st.integers(0, 12),
    rest=st.lists(st.integers(0, 9), max_size=8),
)
def test_the_escape_is_the_first_token_that_the_loop_would_not_have(
    prefix: list[int], cycle: list[int], copies: int, rest: list[int]
) -> None:
    prompt = prefix + cycle
    ids = prompt + (cycle * 20)[:copies] + rest
    old = OldLoop(len(prefix), len(prompt), tuple(cycle))
    went_on = (cycle * 20)[: len(ids) - len(prompt)]
    differs = [
        i for i, (token, old_token) in enumerate(zip(ids[len(prompt) :], went_on, strict=True)) if token != old_token
    ]
    assert old.escape(ids) == (differs[0] if differs else None)
    assert old.escape(prompt) is None


def test_each_repetition_has_its_own_mean() -> None:
    """On a model whose repetitions differ, against one plain pass."""
    model, start, period = loaded("llama"), 6, 4
    row = [0, *range(10, 15), *[20, 31, 42, 23] * 4]
    corpus = Corpus.from_tokens([row], model=model).with_cycles()
    outcome = LoopLogProbability(model, *looping_texts(corpus), 3, "all")
    logits = model.plain_logits(torch.tensor([row]))[0].log_softmax(-1)
    told = [float(logits[place - 1, row[place]]) for place in range(start + period, len(row))]
    means = [told[0], *(sum(told[at : at + period]) / period for at in (0, 4, 8))]
    found = outcome.values([None], False)[:, 0, 0].tolist()
    assert found == pytest.approx(means, abs=1e-4) and min(abs(means[1] - means[2]), abs(means[2] - means[3])) > 1e-3
