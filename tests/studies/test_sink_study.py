"""The study of sinks on a planted sink, where the answer is known, and on a model that knows nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from mechrep.errors import InputError, NothingFoundError
from mechrep.measures.find_sink import SinkResult
from mechrep.models.anatomy import Site
from mechrep.models.load import load_model, reinitialised
from mechrep.report.old_sinks_section import sinks_section
from mechrep.report.page import parts_of
from mechrep.results import Result
from mechrep.studies.sink_ablation import MEASURES, SinkCutResult, attention_to_first, sink_cut_study
from mechrep.studies.sinks import SinkStudy, published_layer, run_sink_study
from tests.analyzers.sinks_by_hand import check_equal
from tests.planted.sinks import SinkModel, sink_model
from tests.planted.workbench import BOS
from tests.studies.test_patch_study import texts_of
from tests.views import sink_study_by_hand as by_hand

REPEATS, TOKENS = 24, [20, 30]


def sink_of(planted: SinkModel, more: int = 0) -> SinkResult:
    """What a search would find, with so many neurons that do nothing."""
    layer, neuron = planted.sink_neuron
    neurons = [[layer, neuron], *([layer, unit] for unit in range(more))]
    head = planted.sink_head
    alpha = torch.zeros(planted.model.anatomy.n_layers, planted.model.anatomy.n_heads)
    alpha[head] = 1.0
    profiles = {f"{name}profile": torch.zeros(len(alpha)) for name in ("", "excess_")}
    sizes = profiles | {"profile_z": torch.zeros(len(alpha)), "ratio": torch.ones(len(alpha) + 1), "alpha": alpha}
    return dataclasses.replace(by_hand.sink(), layer=layer, neurons=neurons, sink_heads=[list(head)], **sizes)


@pytest.fixture(scope="module")
def planted() -> SinkModel:
    return sink_model("llama")


@pytest.fixture(scope="module")
def cut(planted: SinkModel) -> SinkCutResult:
    return sink_cut_study(
        planted.model, sink_of(planted, 1), texts=texts_of(planted), tokens=TOKENS, repeats=REPEATS, seeds=2,
        progress=False,
    )  # fmt: skip


def test_without_its_neuron_the_planted_sink_is_gone_and_controls_leave_it(cut: SinkCutResult) -> None:
    summary = cut.summary().set_index(["cut", "measure"])
    for name in ("all", "first"):
        rows = summary.loc[name]
        assert rows.loc["first_norm", "untouched"] > 900 and rows.loc["first_norm", "value"] < 30
        assert bool(rows.loc["first_norm", "alike"]) and bool(rows.loc["first_norm", "beyond"])
        assert rows.loc["attention", "untouched"] > 0.9 and rows.loc["attention", "value"] < 0.3
        assert bool(rows.loc["attention", "beyond"]) and bool(rows.loc["repeat_norm", "beyond"])
        for control in ("random", "layer_matched", "activation_matched"):
            assert abs(rows.loc["first_norm", control]) < 1
    assert [len(cut.units[row]) for row, part in enumerate(cut.cuts) if part == "all"] == [2] * 7
    assert [len(cut.units[row]) for row, part in enumerate(cut.cuts) if part == "first"] == [1] * 7


def test_numbers_are_those_of_a_plain_loop(planted: SinkModel, cut: SinkCutResult) -> None:
    model, corpus = planted.model, texts_of(planted)
    layer, (head_layer, head) = cut.layer, cut.head
    for row in (0, 1, 2):

        def zero(activation: torch.Tensor, hook: Any, row: int = row) -> torch.Tensor:
            activation = activation.clone()
            activation[..., [neuron for place, neuron in cut.units[row] if hook.layer() == place]] = 0
            return activation

        sites = [
            (model.anatomy.hook_name(Site.MLP_POST, place), zero) for place in {unit[0] for unit in cut.units[row]}
        ]
        for text in range(len(corpus)):
            tokens = torch.tensor([corpus.row(text)])
            with model.hooks(fwd_hooks=sites):
                logits, cache = model.run_with_cache(tokens)
            norms = cache["resid_post", layer][0].norm(dim=-1)
            assert cut.first_norm[row, text] == pytest.approx(float(norms[0]), rel=1e-3)
            assert cut.typical_norm[row, text] == pytest.approx(float(norms[1:].mean()), rel=1e-3)
            pattern = cache["pattern", head_layer][0, head, 1:, 0]
            assert cut.attention[row, text] == pytest.approx(float(pattern.mean()), abs=1e-3)
            loss = torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:])
            assert cut.losses[row, text] == pytest.approx(float(loss), rel=1e-3)
        for number, token in enumerate(TOKENS):
            tokens = torch.tensor([[BOS, *[token] * REPEATS]])
            with model.hooks(fwd_hooks=sites):
                logits, cache = model.run_with_cache(tokens)
            shares = logits[0, REPEATS // 2 : REPEATS].softmax(-1)
            assert cut.p_next[row, number] == pytest.approx(float(shares[:, token].mean()), abs=1e-4)
            best = (shares.argmax(-1) == token).float().mean()
            assert cut.continued[row, number] == pytest.approx(float(best))
            last = cache["resid_post", layer][0, -1].norm()
            assert cut.repeat_norm[row, number] == pytest.approx(float(last), rel=1e-3)


def test_both_views_measure_the_same(planted: SinkModel, cut: SinkCutResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechrep.studies.sink_ablation.choose_view", lambda *_: "transformer_lens")
    slow = sink_cut_study(
        planted.model, sink_of(planted, 1), texts=texts_of(planted), tokens=TOKENS, repeats=REPEATS, controls=[],
        progress=False,
    )  # fmt: skip
    rows = [row for row, name in enumerate(cut.selections) if name in ("none", "top")]
    for name in MEASURES:
        torch.testing.assert_close(getattr(slow, name), getattr(cut, name)[rows], rtol=1e-3, atol=1e-3)
    assert slow.summary()["beyond"].isna().all()


def test_padding_never_counts(planted: SinkModel) -> None:
    corpus, head = texts_of(planted), planted.sink_head
    whole = attention_to_first(planted.model, corpus, head, "auto")
    alone = [attention_to_first(planted.model, corpus.select([text]), head, "auto") for text in range(len(corpus))]
    torch.testing.assert_close(whole, torch.cat(alone), rtol=1e-4, atol=1e-6)


def test_the_result_can_be_kept_and_the_model_is_as_it_was(
    planted: SinkModel, cut: SinkCutResult, tmp_path: Path
) -> None:
    cut.save(tmp_path / "cut")
    loaded = SinkCutResult.load(tmp_path / "cut")
    check_equal(loaded, cut)
    assert loaded.summary().equals(cut.summary()) and loaded.top(1) == [planted.sink_neuron]
    assert planted.model.plain is not None
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in planted.model.plain.modules())
    with pytest.raises(InputError, match="measure 'x'"):
        cut.draws("all", "x")
    with pytest.raises(InputError, match="cut 'x'"):
        cut.neurons_of("x")


def test_without_a_sink_there_is_nothing_to_cut(planted: SinkModel) -> None:
    with pytest.raises(NothingFoundError, match="nothing to cut"):
        sink_cut_study(planted.model, by_hand.sink(found=False), texts=texts_of(planted), progress=False)


def test_the_published_rule_says_why_it_is_silent(planted: SinkModel) -> None:
    rule = published_layer(planted.model)  # three layers
    assert rule.layer is None and "at least 6" in rule.reason and rule.mlp_norms is not None
    assert len(rule.mlp_norms) == planted.model.anatomy.n_layers


@pytest.fixture(scope="module")
def untrained() -> SinkStudy:
    return run_sink_study(reinitialised(load_model("mechrep-tiny")), tokens=3, repeats=20, progress=False)


def test_a_model_that_knows_nothing_is_reported_without_a_cause(untrained: SinkStudy) -> None:
    assert not untrained.sink.norm_found and untrained.ablation is None and untrained.ablation_reason
    assert untrained.moved()[4] and untrained.known == "unknown"
    assert untrained.behaviour is not None and list(untrained.behaviour.conditions) == ["none"]
    assert untrained.provenance.config["study"] == "sinks"
    names = [name for name, _ in parts_of(untrained, Result)]
    assert "sink" in names and "tables-norms" in names and "ablation" not in names
    section = sinks_section(untrained)
    assert all(badge.kind == "none" for badge in section.badges if "head" not in badge.words)


def test_random_and_repeated_texts_are_as_long_as_the_others(untrained: SinkStudy) -> None:
    seen = untrained.on_stimuli
    assert (len(seen.random), len(seen.repeats)) == (3, 3) and len(seen.text) == untrained.tables.norms.n_texts
    assert float(seen.text.mean()) == pytest.approx(float(untrained.sink.alpha[seen.head]), abs=1e-3)
    assert seen.length == untrained.sink.mean_length


@pytest.mark.slow
def test_a_stopped_study_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, options = load_model("mechrep-tiny"), {"tokens": 2, "repeats": 16, "seeds": 1, "behaviour": False}
    first = run_sink_study(model, **options, store=tmp_path, progress=False)
    monkeypatch.setattr("mechrep.studies.sinks.find_sink", lambda *_, **__: pytest.fail("searched again"))
    again = run_sink_study(model, **options, store=tmp_path, progress=False)
    check_equal(again.sink, first.sink)
    assert (again.ablation is None) == (first.ablation is None)
    if first.ablation is not None and again.ablation is not None:
        check_equal(again.ablation, first.ablation)
        assert first.ablation.summary().equals(again.ablation.summary())


def test_crossings_count_tokens_and_never_say_no_effect() -> None:
    frame = by_hand.study(moved=4).crossings()
    assert frame["reached"].tolist() == [4, 4] and frame["median"].tolist() == [30.0, 30.0]
    assert (frame["low"] < 0.4).all() and (frame["high"] > 0.4).all()
    none = by_hand.study(moved=0).crossings()
    assert none["reached"].tolist() == [0, 0] and none["median"].isna().all() and (none["high"] > 0.2).all()
