"""The sink patch on planted sinks, where the answer is known, against plain loops, and where there is no sink."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mechrep.ablation.effects import Effects
from mechrep.errors import InputError, NothingFoundError
from mechrep.interventions import SinkPatch
from mechrep.models.load import load_model
from mechrep.models.nulls import reinitialised
from mechrep.report.view import view_of
from mechrep.run import Run
from mechrep.studies import sink_patch
from mechrep.studies.sink_patch import NOT_INSTALLED, run_patch_study, run_repair_study
from mechrep.text.corpus import Corpus
from tests.planted.sinks import SinkModel, bos_sink_model, sink_model
from tests.planted.workbench import BOS, WORDS

REPEATS, TOKENS = 40, [20, 30, 40]


def texts_of(planted: SinkModel, rows: int = 4) -> Corpus:
    """Texts of different words after BOS, not all of one length."""
    generator = np.random.default_rng(0)
    texts = [[BOS, *generator.permutation(WORDS)[: 20 + i].tolist()] for i in range(rows)]
    return Corpus.from_tokens(texts, model=planted.model, bos_policy="prepended")


@functools.cache
def planted(kind: str, family: str) -> SinkModel:
    return sink_model(family) if kind == "repeats" else bos_sink_model(family)


@functools.cache
def study(kind: str, family: str, found: bool = False) -> Effects:
    known = planted(kind, family)
    patch = None if found else SinkPatch(known.sink_layer, known.sink_neuron[1])
    return run_patch_study(
        known.model,
        patch,
        texts=texts_of(known, rows=8),
        tokens=TOKENS,
        repeats=REPEATS,
        controls=() if found or kind == "bos" else ("random", "layer_matched"),
        run=Run(effort="quick"),
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_the_patch_keeps_bos_and_stops_the_drift_and_controls_do_not(family: str) -> None:
    effects = study("repeats", family)
    first, typical, repeat = (effects.of(name) for name in ("first_norm", "typical_norm", "repeat_norm"))
    assert first[1].mean() == pytest.approx(first[0].mean(), rel=1e-3)
    assert (repeat[0] > 5 * typical[0].mean()).all() and (repeat[1] < 2 * typical[0].mean()).all()
    drift = effects.of("drifted")
    assert drift[0].all() and not drift[1].any() and drift[2:].all(), "patched, and not by any control"
    units = [one for condition in effects.conditions[2:] for one in condition.components.get("neurons", [])]
    assert list(planted("repeats", family).sink_neuron) not in units


def test_where_only_bos_is_a_sink_there_is_no_drift_to_stop() -> None:
    effects = study("bos", "llama")
    assert effects.of("drifted")[0].tolist() == [0, 0, 0]
    first, typical = effects.of("first_norm"), effects.of("typical_norm")
    assert (first[1] == first[0]).all() and first[0].mean() > 20 * typical[0].mean()


def test_the_sink_is_found_where_no_patch_is_given() -> None:
    known, effects = planted("repeats", "llama"), study("repeats", "llama", found=True)
    assert effects.provenance.config["patch"]["layer"] == known.sink_layer
    np.testing.assert_allclose(effects.of("repeat_norm"), study("repeats", "llama").of("repeat_norm")[:2], rtol=1e-5)


def test_numbers_are_those_of_a_plain_loop() -> None:
    known, effects = planted("repeats", "llama"), study("repeats", "llama")
    model, corpus = known.model, texts_of(known, rows=8)
    patch = SinkPatch(known.sink_layer, known.sink_neuron[1])
    for row, hooks in ((0, []), (1, patch.hooks(model))):
        for text in range(len(corpus)):
            tokens = torch.tensor([corpus.row(text)])
            logits = model.run_with_hooks(tokens, fwd_hooks=hooks)[0]
            loss = torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:])
            assert effects.of("loss")[row, text] == pytest.approx(float(loss), rel=1e-3)
        for number, token in enumerate(TOKENS):
            tokens = torch.tensor([[BOS, *[token] * REPEATS]])
            best = model.run_with_hooks(tokens, fwd_hooks=hooks)[0].argmax(-1)
            expected = [int(best[n]) == token for n in range(REPEATS // 2, REPEATS)]
            assert effects.of("continued")[row, number] == pytest.approx(np.mean(expected))


def test_the_model_is_as_it_was_and_the_result_can_be_kept(tmp_path: Path) -> None:
    effects = study("repeats", "llama")
    again = planted("repeats", "llama").model
    assert again.plain is not None
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in again.plain.modules())
    effects.save(tmp_path / "result")
    assert Effects.load(tmp_path / "result").summary().equals(effects.summary())


def test_no_sink_nothing_to_patch() -> None:
    untrained = reinitialised(load_model("mechrep-tiny"))
    few = {"texts": ["The sea was calm that day.", "It rained, and it rained."], "run": Run(effort="quick")}
    with pytest.raises(NothingFoundError, match="norm sink"):
        run_patch_study(untrained, **few)
    with pytest.raises(NothingFoundError, match="norm sink"):
        run_repair_study(untrained, **few)


@pytest.mark.parametrize(
    "options",
    [
        {"patch": SinkPatch(9, 1)},
        {"patch": SinkPatch(1, 99)},
        {"patch": SinkPatch(1, 1, when="last")},
        {"controls": ["other"]},
        {"controls": ["random", "random"]},
        {"repeats": 1},
        {"tokens": []},
        {"tokens": [20, 20]},
        {"patch": SinkPatch(1, range(60))},
    ],
)
def test_bad_input_is_refused_before_the_long_work(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_patch, "measure_effects", lambda *_, **__: pytest.fail("measured"))
    known = planted("repeats", "llama")
    with pytest.raises(InputError):
        run_patch_study(known.model, texts=texts_of(known), **{"patch": SinkPatch(1, 1), **options})


def test_the_planted_sink_is_repaired_and_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    known = planted("repeats", "llama")
    options: dict[str, Any] = {"texts": texts_of(known, rows=8), "repeats": REPEATS, "run": Run(effort="quick")}
    study = run_repair_study(known.model, **options, tasks=())
    assert (study.sink.layer, study.sink.neurons[0][1]) == known.sink_neuron
    claims = study.claims().set_index("claim")
    assert claims.loc["drifted", "effect"] == -1 and claims["family"].nunique() == 1
    assert "first_norm" not in claims.index, "the patch leaves the first position as it is"
    section = study.section()
    assert section.fields["left_out"] and set(section.tables) == {"patch"} and not section.variant
    assert "first_norm" not in set(section.tables["patch"]["measure"])
    assert len(view_of(section).claims) == len(claims)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else find(name))
    assert run_repair_study(known.model, **options).left_out == NOT_INSTALLED


def test_without_drift_there_is_nothing_to_repair_and_only_the_costs_are_claimed() -> None:
    known = planted("bos", "llama")
    study = run_repair_study(
        known.model, texts=texts_of(known, rows=8), repeats=REPEATS, tasks=(), run=Run(effort="quick")
    )
    section = study.section()
    assert section.variant == "nothing_drifts" and not section.tables and not section.figures
    assert set(section.claims["claim"]) <= {"attention", "loss"}
    assert len(view_of(section).claims) == len(section.claims)
