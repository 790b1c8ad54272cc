"""Sweeps against the published way of doing them (``obvious.py``): the same texts, the same counts, the same losses."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mechrep
from mechrep.ablation import outcomes
from mechrep.ablation.effects import Effects
from mechrep.ablation.outcomes import LoopDecoding
from mechrep.ablation.study import Controls
from mechrep.ablation.sweeps import activation_sweep, deactivation_sweep, loss_sweep, rankings
from mechrep.cache import CorpusCache
from mechrep.errors import InputError, NothingFoundError
from mechrep.interventions import add, mean, scale
from mechrep.measures.neurons import RepetitionNeurons
from mechrep.models.load import load_model
from mechrep.run import Run
from mechrep.text.corpus import Corpus
from mechrep.text.cycles import exact_loop
from mechrep.text.families import loop_families
from tests.studies.loops import NEW, free, looping, model, module, neurons
from tests.studies.obvious import continued, losses, published_detector
from tests.tiny_models import random_tokens, tiny

FAMILIES = ("gpt_neox", pytest.param("llama_gqa", marks=pytest.mark.slow))
PUBLISHED = LoopDecoding("hiraoka2025", NEW, stop_early=False, prompt_length=20)
ONE_DRAW = Controls(["random"], draws=1)


def deactivated(family: str = "gpt_neox", **options: Any) -> Effects:
    settings: dict[str, Any] = {"ks": [6, 40], "controls": ONE_DRAW, "decoding": PUBLISHED, "neurons": neurons(family)}
    settings |= {"corpus": looping(family)} | options
    return deactivation_sweep(model(family), **settings)


def activated(family: str = "gpt_neox", **options: Any) -> Effects:
    settings: dict[str, Any] = {"ks": [10, 60], "controls": ONE_DRAW, "decoding": PUBLISHED}
    return activation_sweep(model(family), free(family), **(settings | {"neurons": neurons(family)} | options))


def written(
    family: str, corpus: Corpus, sweep: Effects, prompts: list[int], add: float | None
) -> list[list[list[int]]]:
    """Every text under every condition, written in the published way."""
    return [
        [
            continued(family, module(family), corpus.row(text)[:end], one.components.get("neurons", []), NEW, add=add)
            for text, end in enumerate(prompts)
        ]
        for one in sweep.conditions
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_deactivation_counts_what_the_published_way_counts(family: str) -> None:
    corpus = looping(family, 6)
    sweep = deactivated(family, corpus=corpus, ks=[40])
    onsets, starts = corpus.frame["onset"].tolist(), corpus.frame["start"].tolist()
    expected = written(family, corpus, sweep, onsets, None)
    repeating = [[published_detector(ids) is not None for ids in texts] for texts in expected]
    assert sweep.of("still_repeating").tolist() == repeating
    counts = sweep.wide()["still_repeating"].tolist()
    assert counts == [sum(row) for row in repeating]
    assert counts[0] == len(corpus) >= 6 and min(counts) < len(corpus)  # the baseline repeats; ablating does something
    for row, texts in enumerate(expected):
        for text, ids in enumerate(texts):
            cycle = corpus.row(text)[starts[text] : onsets[text]]
            loop = np.resize(cycle, len(ids) - onsets[text]).tolist()  # the old loop, as if it had gone on
            left = [i for i, (token, old) in enumerate(zip(ids[onsets[text] :], loop, strict=True)) if token != old]
            first = sweep.of("tokens_to_escape")[row, text]
            assert first == left[0] if left else np.isnan(first)
            assert sweep.of("escaped")[row, text] == bool(left)
    assert sweep.clusters[0] == loop_families(corpus)


@pytest.mark.parametrize("family", FAMILIES)
def test_activation_counts_what_the_published_way_counts(family: str) -> None:
    sweep, corpus = activated(family, ks=[60]), free(family)
    expected = written(family, corpus, sweep, [20] * len(corpus), 1.0)
    assert sweep.of().tolist() == [[published_detector(ids) is not None for ids in texts] for texts in expected]
    counts = sweep.wide()["newly_repeating"].tolist()
    assert counts[0] == 0 and max(counts) > 0  # boosting does something


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("preset", ["hiraoka2025", "mechrep"])
def test_stopping_early_changes_no_answer(family: str, preset: str) -> None:
    for study in (deactivated, activated):
        units = {"neurons": neurons(family).top(80)}
        both = [
            study(family, **units, decoding=LoopDecoding(preset, NEW, stop, prompt_length=20)) for stop in (False, True)
        ]
        patient, early = (sweep.of(sweep.measures[0].name) for sweep in both)
        assert np.array_equal(patient, early) and patient.any()


def test_no_more_is_written_than_the_old_loop_needs_for_its_copies() -> None:
    corpus, how = looping("gpt_neox", 6), LoopDecoding("mechrep", NEW, copies=3)
    sweep = deactivated(neurons=neurons("gpt_neox").top(60), corpus=corpus, ks=[60], decoding=how)
    onsets, periods = corpus.frame["onset"].tolist(), (corpus.frame["onset"] - corpus.frame["start"]).tolist()
    enough = [min(NEW, max(2 * period, 32 - period)) for period in periods]
    special = sorted(model("gpt_neox").special_ids)
    answers = [
        [
            exact_loop(ids[: onset + more], onset, eos_id=1, special_ids=special) is not None
            for ids, onset, more in zip(row, onsets, enough, strict=True)
        ]
        for row in written("gpt_neox", corpus, sweep, onsets, None)
    ]
    assert sweep.of().tolist() == answers and all(answers[0])


def test_texts_that_stay_in_their_loop_are_read_and_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = outcomes.run_requests
    monkeypatch.setattr(outcomes, "run_requests", lambda m, r, *a, **o: (asked.append(len(r)), real(m, r, *a, **o))[1])
    sweep = deactivated(corpus=looping("gpt_neox", 6), ks=[40], decoding=LoopDecoding("hiraoka2025", NEW))
    assert sum(asked) == int(sweep.of("escaped").sum()) < sweep.of("escaped").size


def test_the_default_detector_judges_what_was_written() -> None:
    units, corpus, decoding = neurons("gpt_neox").top(60), looping("gpt_neox", 6), LoopDecoding("mechrep", NEW, False)
    sweep = deactivated(neurons=units, corpus=corpus, ks=[60], decoding=decoding)
    onsets = corpus.frame["onset"].tolist()
    special = sorted(model("gpt_neox").special_ids)
    answers = [
        [exact_loop(ids, end, eos_id=1, special_ids=special) is not None for ids, end in zip(row, onsets)]  # noqa: B905
        for row in written("gpt_neox", corpus, sweep, onsets, None)
    ]
    assert sweep.of().tolist() == answers and 0 < np.sum(answers) < np.size(answers)


def test_texts_that_the_neurons_were_found_on_are_left_out_unless_the_protocol_says_otherwise() -> None:
    family = "gpt_neox"
    find, test = looping(family).split(0.5)
    found = CorpusCache(model(family), find).run(RepetitionNeurons("hiraoka2025", r=10))
    options: dict[str, Any] = {"neurons": found, "controls": (), "ks": [5]}
    everything = set(looping(family).frame["id"])
    assert set(deactivated(**options).units[0]) == everything  # the published protocol
    ours = LoopDecoding("mechrep", NEW)
    assert set(deactivated(**options, decoding=ours).units[0]) == set(test.frame["id"])
    with pytest.raises(InputError, match="searched inflates"):
        deactivated(**options, decoding=ours, corpus=find)
    other = load_model(copy.deepcopy(module(family)))
    with torch.no_grad():
        other.plain.lm_head.weight.mul_(2) if hasattr(other.plain, "lm_head") else other.plain.embed_out.weight.mul_(2)
    with pytest.raises(InputError, match="measure it on this model"):
        deactivation_sweep(other, test, neurons=found, ks=[5])


def test_whatever_decides_the_outcome_decides_where_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mechrep.ablation import outcomes

    calls, real = [], outcomes.run_requests
    monkeypatch.setattr(outcomes, "run_requests", lambda *a, **o: (calls.append(1), real(*a, **o))[1])
    sd, corpus = neurons("gpt_neox").normal_sd, looping("gpt_neox", 3)
    later = corpus.with_columns(onset=corpus.frame["onset"] + corpus.frame["onset"] - corpus.frame["start"])
    units = neurons("gpt_neox").top(30)
    common: dict[str, Any] = {"controls": (), "run": Run(store=tmp_path), "neurons": units, "ks": [12]}
    common |= {"corpus": corpus, "decoding": LoopDecoding("hiraoka2025", 24)}
    variants: list[dict[str, Any]] = [
        {}, {"op": add(sd)}, {"op": add(2 * sd)}, {"op": mean(sd)}, {"op": scale(0.5)},
        {"ks": [11]}, {"decoding": LoopDecoding("mechrep", 24)}, {"decoding": LoopDecoding("hiraoka2025", 23)},
        {"corpus": later}, {"corpus": corpus.select([0, 1])}, {"neurons": units[::-1]},
    ]  # fmt: skip
    for number, options in enumerate(variants, start=1):
        first = deactivated(**(common | options))
        assert len(calls) == number, f"{options} was answered with the numbers of another sweep"
        again = deactivated(**(common | options))
        assert len(calls) == number, f"{options} was computed twice"
        assert torch.equal(first.values.nan_to_num(-1), again.values.nan_to_num(-1))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"decoding": LoopDecoding("hiraoka2026")}, "hiraoka2026"),
        ({"op": "one"}, "op='one'"),
        ({"decoding": LoopDecoding(max_new_tokens=1000)}, "at most 256 positions"),
        ({"controls": ["nosuch"]}, "nosuch"),
        ({"controls": ["random", "random"]}, "each once"),
        ({"controls": ["bos_matched"]}, "bos_matched"),
        ({"ks": [31]}, "0 to 30, the neurons given"),
        ({"ks": []}, "at least one"),
        ({"neurons": []}, r"neurons=\[\]"),
        ({"neurons": [(9, 0)], "ks": [1], "controls": ()}, "layer 9"),
        ({"neurons": [(0, 48)], "ks": [1], "controls": ()}, "neuron 48 of layer 0"),
        ({"neurons": [(0, 1), (0, 1)], "ks": [2], "controls": ()}, "each once"),
        ({"controls": ["activation_matched"]}, "nothing to match by"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        deactivated(**({"neurons": neurons("gpt_neox").top(30), "ks": [12]} | options))


def test_settings_that_make_no_sense_are_refused_when_they_are_made() -> None:
    with pytest.raises(InputError, match="max_new_tokens=0"):
        LoopDecoding(max_new_tokens=0)
    with pytest.raises(InputError, match="draws=0"):
        Controls(["random"], draws=0)


def test_texts_that_do_not_suit_the_question_are_refused() -> None:
    loops, others = looping("gpt_neox"), free("gpt_neox")
    with pytest.raises(NothingFoundError, match="6 texts without an onset"):
        deactivated(corpus=others)
    with pytest.raises(InputError, match="0 <= start < onset < length"):
        deactivated(corpus=loops.with_columns(start=loops.frame["onset"]))
    for corpus, how in ((loops, PUBLISHED), (others, LoopDecoding(prompt_length=200))):
        with pytest.raises(NothingFoundError, match="loop-free"):
            activation_sweep(model("gpt_neox"), corpus, neurons=[(0, 1)], ks=[1], decoding=how)


def test_a_loss_sweep_equals_one_text_at_a_time_and_pairs_texts() -> None:
    one = load_model(copy.deepcopy(tiny("gpt_neox")))
    rows = random_tokens(6, 31, seed=3).tolist()
    ranking = [(layer, neuron) for neuron in range(40) for layer in (2, 1, 0)]
    controls = Controls(["layer_matched"], draws=2)
    effects = loss_sweep(one, Corpus.from_tokens(rows, model=one), neurons=ranking, ks=[0, 15], controls=controls)
    assert [(c.selection, c.k, c.seed) for c in effects.conditions] == [
        ("baseline", 0, 0), ("ablation", 15, 0), ("layer_matched", 15, 0), ("layer_matched", 15, 1),
    ]  # fmt: skip
    for row, condition in enumerate(effects.conditions):
        units = [tuple(unit) for unit in condition.components.get("neurons", [])]
        np.testing.assert_allclose(effects.of()[row], losses("gpt_neox", tiny("gpt_neox"), rows, units), rtol=1e-4)


def test_rankings_are_sizes_of_one_circuit() -> None:
    heads = [(2, 1), (3, 0), (1, 1)]
    made = rankings("heads", [3, 0, 1], heads=heads)
    assert [(one.name, len(one), set(one.heads)) for one in made] == [
        ("heads", 1, {(2, 1)}), ("heads", 3, set(heads)),
    ]  # fmt: skip
    with pytest.raises(InputError, match="numbers from 0 to 3"):
        rankings("heads", [4], heads=heads)


def test_on_the_embedded_model_too() -> None:
    embedded = mechrep.load_model("mechrep-tiny")
    rows = [[0, *range(30 + 3 * i, 60 + 3 * i), *list(range(9, 9 + i)) * 8] for i in (3, 5, 7)]
    corpus = Corpus.from_tokens(rows, model=embedded).with_cycles()
    units = [(layer, neuron) for neuron in range(60) for layer in range(4)]
    decoding = LoopDecoding("hiraoka2025", 40, stop_early=False)
    sweep = deactivation_sweep(embedded, corpus, neurons=units, ks=[200], controls=ONE_DRAW, decoding=decoding)
    for row, condition in enumerate(sweep.conditions):
        for text, onset in enumerate(corpus.frame["onset"].astype(int)):
            chosen = condition.components.get("neurons", [])
            ids = continued("llama", embedded.plain, corpus.row(text)[:onset], chosen, 40)
            assert sweep.of()[row, text] == (published_detector(ids) is not None)
