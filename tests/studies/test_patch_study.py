"""``run_patch_study`` on planted sinks, where the answer is known, against plain loops, and where there is no sink."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mechrep.ablation.old_controls import CONTROLS
from mechrep.errors import InputError, NothingFoundError
from mechrep.interventions import SinkPatch
from mechrep.models.load import load_model, reinitialised
from mechrep.studies.sink_patch import PatchStudyResult, run_patch_study
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
def study(kind: str, family: str, found: bool = False) -> PatchStudyResult:
    known = planted(kind, family)
    patch = None if found else SinkPatch(known.sink_layer, known.sink_neuron[1])
    return run_patch_study(
        known.model,
        patch,
        texts=texts_of(known),
        tokens=TOKENS,
        repeats=REPEATS,
        controls=[] if found or kind == "bos" else CONTROLS,
        seeds=2 if family == "llama" else 1,
        progress=False,
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_the_patch_keeps_bos_and_stops_the_drift_and_controls_do_not(family: str) -> None:
    result = study("repeats", family)
    summary = result.summary().set_index("measure")
    assert result.selections[:2] == ["original", "patched"] and len(result.selections) == (
        8 if family == "llama" else 5
    )
    assert result.first_norm[1] == pytest.approx(float(result.first_norm[0]), rel=1e-3)
    assert (result.repeat_norm[0] > 5 * result.typical_norm[0]).all()
    assert (result.repeat_norm[1] < 2 * result.typical_norm[0]).all()
    drift = summary.loc["share of tokens that drift"]
    assert (drift["original"], drift["patched"]) == (1, 0) and drift["high"] == -1
    for control in ("random", "layer_matched", "activation_matched"):
        assert drift[control] == 0
        assert all(result.units[row] != [list(planted("repeats", family).sink_neuron)] for row in result.of(control))


def test_where_only_bos_is_a_sink_there_is_no_drift_to_stop() -> None:
    result = study("bos", "llama")
    assert result.drifted[0].tolist() == [0, 0, 0] and result.moved_reason == ""
    assert result.first_norm[1] == pytest.approx(float(result.first_norm[0]))
    assert result.first_norm[0] > 20 * result.typical_norm[0]


def test_the_sink_is_found_where_no_patch_is_given() -> None:
    known, result = planted("repeats", "llama"), study("repeats", "llama", found=True)
    assert (result.layer, list(result.neurons)) == (known.sink_layer, [known.sink_neuron[1]])
    assert result.repeat_norm.allclose(study("repeats", "llama").repeat_norm[:2])


def test_numbers_are_those_of_a_plain_loop() -> None:
    known, result = planted("repeats", "llama"), study("repeats", "llama")
    model, corpus = known.model, texts_of(known)
    patch = SinkPatch(known.sink_layer, known.sink_neuron[1])
    for row, hooks in ((0, []), (1, patch.hooks(model))):
        for text in range(len(corpus)):
            tokens = torch.tensor([corpus.row(text)])
            logits = model.run_with_hooks(tokens, fwd_hooks=hooks)[0]
            loss = torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:])
            assert result.losses[row, text] == pytest.approx(float(loss), rel=1e-3)
        for number, token in enumerate(TOKENS):
            tokens = torch.tensor([[BOS, *[token] * REPEATS]])
            best = model.run_with_hooks(tokens, fwd_hooks=hooks)[0].argmax(-1)
            expected = [int(best[n]) == token for n in range(REPEATS // 2, REPEATS)]
            assert result.continued[row, number] == pytest.approx(np.mean(expected))
    frame = result.to_frame()
    assert np.allclose(frame["perplexity"], np.exp(frame["loss"]))


def test_both_views_measure_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechrep.studies.sink_patch.choose_view", lambda *_: "transformer_lens")
    known = planted("repeats", "llama")
    patch = SinkPatch(known.sink_layer, known.sink_neuron[1])
    slow = run_patch_study(
        known.model, patch, texts=texts_of(known), tokens=TOKENS, repeats=REPEATS, controls=["random"], seeds=2,
        progress=False,
    )  # fmt: skip
    fast = study("repeats", "llama")
    rows = [*fast.of("original"), *fast.of("patched"), *fast.of("random")]
    for name in ("first_norm", "typical_norm", "repeat_norm", "attention", "losses", "continued"):
        torch.testing.assert_close(getattr(slow, name), getattr(fast, name)[rows], rtol=1e-3, atol=1e-3)


def test_the_model_is_as_it_was_and_the_result_can_be_kept(tmp_path: Path) -> None:
    result = study("repeats", "llama")
    assert result.repeat_norm[1].max() < result.repeat_norm[0].min()
    again = planted("repeats", "llama").model
    assert again.plain is not None
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in again.plain.modules())
    result.save(tmp_path / "result")
    loaded = PatchStudyResult.load(tmp_path / "result")
    assert loaded.summary().equals(result.summary()) and loaded.top(1) == result.top(1)


def test_no_sink_nothing_to_patch() -> None:
    untrained = reinitialised(load_model("mechrep-tiny"))
    with pytest.raises(NothingFoundError, match="norm sink"):
        run_patch_study(untrained, texts=["The sea was calm that day.", "It rained, and it rained."], progress=False)


@pytest.mark.parametrize(
    "options",
    [
        {"patch": SinkPatch(9, 1)},
        {"patch": SinkPatch(1, 99)},
        {"patch": SinkPatch(1, 1, when="last")},
        {"controls": ["other"]},
        {"controls": ["random", "random"]},
        {"seeds": 0},
        {"repeats": 1},
        {"tokens": []},
        {"tokens": [20, 20]},
        {"patch": SinkPatch(1, range(60))},
    ],
)
def test_bad_input_is_refused_before_the_long_work(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechrep.studies.sink_patch._measure", lambda *_: pytest.fail("measured"))
    known = planted("repeats", "llama")
    with pytest.raises(InputError):
        run_patch_study(known.model, texts=texts_of(known), **{"patch": SinkPatch(1, 1), **options})
