"""The sweeps against the published way of doing it (``obvious.py``): the same texts, the same counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

import mechrep
from mechrep.ablation.old_sweeps import SweepResult
from mechrep.studies import activation_sweep, deactivation_sweep
from mechrep.text.corpus import Corpus
from mechrep.text.cycles import repeats_after_prompt
from tests.studies.loops import NEW, free, looping, model, module, neurons
from tests.studies.obvious import continued, published_detector

FAMILIES = ("llama_gqa", "gpt_neox")
PROMPT = 20


def deactivated(family: str, **options: Any) -> SweepResult:
    settings: dict[str, Any] = {"ks": [0, 6, 40], "controls": ["random"], "seeds": 1, "preset": "hiraoka2025"}
    settings |= {"max_new_tokens": NEW, "stop_early": False, "neurons": neurons(family)}
    return deactivation_sweep(model(family), looping(family), **(settings | options))


def activated(family: str, **options: Any) -> SweepResult:
    settings: dict[str, Any] = {"ks": [0, 10, 60], "controls": ["random"], "seeds": 1, "preset": "hiraoka2025"}
    settings |= {"max_new_tokens": NEW, "stop_early": False, "neurons": neurons(family), "prompt_length": PROMPT}
    return activation_sweep(model(family), free(family), **(settings | options))


def written(family: str, corpus: Corpus, sweep: SweepResult, cuts: list[int], add: float | None) -> pd.DataFrame:
    """Every text under every condition, written in the published way."""
    rows = []
    for selection, k, seed, units in sweep.provenance.config["conditions"]:
        for text, cut in enumerate(cuts):
            ids = continued(family, module(family), corpus.row(text)[:cut], units, NEW, add=add)
            row = {"selection": selection, "k": k, "seed": seed, "text": corpus.frame["id"].iloc[text]}
            rows.append(row | {"ids": ids, "repeating": published_detector(ids) is not None, "new": len(ids) - cut})
    return pd.DataFrame(rows)


def check_same(sweep: SweepResult, expected: pd.DataFrame) -> None:
    outcomes = sweep.outcome_frame()
    cell = ["selection", "k", "seed", "text"]
    assert outcomes[cell].values.tolist() == expected[cell].values.tolist()
    assert outcomes["repeating"].tolist() == expected["repeating"].tolist()
    assert outcomes["new_tokens"].tolist() == expected["new"].tolist()
    counts = expected.groupby(["selection", "k", "seed"], sort=False)["repeating"].sum()
    frame = sweep.to_frame().set_index(["selection", "k", "seed"])
    assert frame[sweep.count_name].tolist() == counts.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_deactivation_counts_what_the_published_way_counts(family: str) -> None:
    sweep, corpus = deactivated(family), looping(family)
    onsets, starts = corpus.frame["onset"].tolist(), corpus.frame["start"].tolist()
    expected = written(family, corpus, sweep, onsets, None)
    check_same(sweep, expected)
    counts = sweep.to_frame()["still_repeating"].tolist()
    assert counts[0] == len(corpus) >= 6 and min(counts) < len(corpus)  # K = 0 gives 100 %; cutting does something
    for outcome, ids in zip(sweep.outcomes, expected["ids"], strict=True):
        text = corpus.frame["id"].tolist().index(outcome["text"])
        cycle = corpus.row(text)[starts[text] : onsets[text]]
        loop = np.resize(cycle, len(ids) - onsets[text]).tolist()  # the old loop, as if it had gone on
        left = [i for i, (token, old) in enumerate(zip(ids[onsets[text] :], loop, strict=True)) if token != old]
        assert outcome["escaped_at"] == (left[0] if left else None)


@pytest.mark.parametrize("family", FAMILIES)
def test_activation_counts_what_the_published_way_counts(family: str) -> None:
    sweep, corpus = activated(family), free(family)
    check_same(sweep, written(family, corpus, sweep, [PROMPT] * len(corpus), 1.0))
    counts = sweep.to_frame()["newly_repeating"].tolist()
    assert counts[0] == 0 and max(counts) > 0  # K = 0 gives none; boosting does something


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("preset", ["hiraoka2025", "mechrep"])
def test_stopping_early_changes_no_answer(family: str, preset: str) -> None:
    for study, options in ((deactivated, {"held_out": False}), (activated, {})):
        patient, early = (study(family, preset=preset, stop_early=stop, **options) for stop in (False, True))
        answers = [[outcome["repeating"] for outcome in sweep.outcomes] for sweep in (patient, early)]
        assert answers[0] == answers[1] and any(answers[0])
        lengths = [[outcome["new_tokens"] for outcome in sweep.outcomes] for sweep in (patient, early)]
        assert sum(lengths[1]) < sum(lengths[0]) and all(b <= a for a, b in zip(*lengths, strict=True))
        assert "stopped" in {outcome["stop_reason"] for outcome in early.outcomes}


def test_the_default_detector_judges_what_was_written() -> None:
    sweep, corpus = deactivated("gpt_neox", preset="mechrep", held_out=False), looping("gpt_neox")
    onsets = corpus.frame["onset"].tolist()
    expected = written("gpt_neox", corpus, sweep, onsets, None)
    special = sorted(model("gpt_neox").special_ids)
    answers = [
        repeats_after_prompt(ids, onsets[number % len(corpus)], eos_id=1, special_ids=special) is not None
        for number, ids in enumerate(expected["ids"])
    ]
    assert [outcome["repeating"] for outcome in sweep.outcomes] == answers
    assert any(answers) and not all(answers)


def test_on_the_embedded_model_too() -> None:
    embedded = mechrep.load_model("mechrep-tiny")
    rows = [[0, *range(30 + 3 * i, 60 + 3 * i), *list(range(9, 9 + i)) * 8] for i in (3, 5, 7)]
    corpus = Corpus.from_tokens(rows, model=embedded).with_cycles()
    units = [(layer, neuron) for neuron in range(60) for layer in range(4)]
    sweep = deactivation_sweep(
        embedded, corpus, neurons=units, ks=[200], controls=["random"], seeds=1, preset="hiraoka2025",
        max_new_tokens=40, stop_early=False,
    )  # fmt: skip
    for (_, _, _, chosen), group in zip(
        sweep.provenance.config["conditions"], np.array_split(np.array(sweep.outcomes, dtype=object), 3), strict=True
    ):
        for text, outcome in enumerate(group):
            onset = int(corpus.frame["onset"].iloc[text])
            ids = continued("llama", embedded.plain, corpus.row(text)[:onset], chosen, 40)
            assert outcome["repeating"] == (published_detector(ids) is not None)
            assert outcome["new_tokens"] == len(ids) - onset
