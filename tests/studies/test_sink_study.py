"""The study of sinks on a planted sink, where the answer is known, and on a model that knows nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mechrep.ablation.effects import Effects, example_effects
from mechrep.ablation.norm_profiles import excess_removed, norm_profiles
from mechrep.ablation.sink_outcomes import SinkOnRepeats, SinkOnTexts
from mechrep.ablation.study import Controls
from mechrep.errors import InputError, NothingFoundError
from mechrep.interventions.ops import Neurons
from mechrep.measures.sink_neurons import sink_neurons
from mechrep.models.anatomy import Site
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.models.nulls import reinitialised
from mechrep.report.view import view_of
from mechrep.run import EFFORTS, Run
from mechrep.studies.find_sink import SinkResult, find_sink
from mechrep.studies.sink_ablation import ALL, FIRST, changed, sink_ablation, sink_conditions
from mechrep.studies.sink_cause import SinkStage
from mechrep.studies.sinks import (
    ShownPattern,
    SinkStudy,
    head_on_stimuli,
    published_layer,
    run_sink_study,
    text_against_repeats_figure,
)
from mechrep.text.corpus import Corpus
from tests.planted.sinks import SinkModel, bos_sink_model, sink_model
from tests.planted.texts import words
from tests.planted.workbench import BOS
from tests.tiny_models import random_tokens, tiny

REPEATS, TOKENS = 24, [20, 30, 12, 16, 24, 28]
QUICK = Run(effort="quick", progress=False)
KINDS = Controls(["random", "layer_matched", "activation_matched"], draws=60)


def texts_of(model: Model, n: int = 7) -> Corpus:
    """BOS and different words, of different lengths."""
    rows = [[BOS, *words(20 - 2 * (seed % 3), seed=seed)] for seed in range(n)]
    return Corpus.from_tokens(rows, model=model, bos_policy="prepended")


@pytest.fixture(scope="module")
def planted() -> SinkModel:
    return sink_model("llama")


@pytest.fixture(scope="module")
def sink(planted: SinkModel) -> SinkResult:
    return find_sink(planted.model, texts=texts_of(planted.model), run=QUICK)


def with_more(sink: SinkResult, more: int = 1) -> SinkResult:
    """With so many neurons that do nothing."""
    assert sink.layer is not None
    return dataclasses.replace(
        sink, stages=[SinkStage.made_by([*sink.neurons, *((sink.layer, n) for n in range(more))])]
    )


@pytest.fixture(scope="module")
def ablation(planted: SinkModel, sink: SinkResult) -> Effects:
    return sink_ablation(
        planted.model, with_more(sink), texts=texts_of(planted.model), tokens=TOKENS, repeats=REPEATS, controls=KINDS,
        run=QUICK,
    )  # fmt: skip


def test_without_its_neuron_the_planted_sink_is_gone_and_controls_leave_it(ablation: Effects) -> None:
    summary = ablation.summary(within=["name"]).set_index(["name", "measure"])
    for name in (ALL, FIRST):
        rows = summary.loc[name]
        assert rows.loc["first_norm", "baseline"] > 900 and rows.loc["first_norm", "value"] < 30
        assert rows.loc["attention", "baseline"] > 0.9 and rows.loc["attention", "value"] < 0.3
        assert (rows.loc[["first_norm", "attention", "repeat_norm"], "verdict"] == "supported").all()
        assert abs(rows.loc["first_norm", ["control_low", "control_high"]].to_numpy(float)).max() < 1
        assert (rows["m"] >= 50).all() and rows.loc["repeat_norm", "n"] == len(TOKENS)
    sizes = {(one.name, one.k) for one in ablation.conditions[1:]}
    assert sizes == {(ALL, 2), (FIRST, 1)}


def test_no_draw_holds_a_sink_neuron_and_none_is_drawn_twice(ablation: Effects, sink: SinkResult) -> None:
    own = {tuple(unit) for unit in with_more(sink).neurons}
    drawn = [one for one in ablation.conditions if one.selection not in ("baseline", "ablation")]
    sets = [(one.name, one.selection, tuple(sorted(map(tuple, one.components["neurons"])))) for one in drawn]
    assert len(set(sets)) == len(sets) and not any(own & set(units) for *_, units in sets)
    layers = {layer for _, kind, units in sets if kind != "random" for layer, _ in units}
    assert layers == {sink.layer}


def test_numbers_are_those_of_a_plain_loop(planted: SinkModel, sink: SinkResult, ablation: Effects) -> None:
    model, corpus = planted.model, texts_of(planted.model)
    assert sink.layer is not None
    layer, (head_layer, head) = sink.layer, sink.best_head
    for place in (0, 1, 2, 65):
        units = [tuple(unit) for unit in ablation.conditions[place].components.get("neurons", [])]

        def zero(activation: torch.Tensor, hook: Any, units: Sequence[Any] = units) -> torch.Tensor:
            activation = activation.clone()
            activation[..., [neuron for where, neuron in units if hook.layer() == where]] = 0
            return activation

        sites = [(model.anatomy.hook_name(Site.MLP_POST, where), zero) for where in {unit[0] for unit in units}]
        found = {name: ablation.of(name)[place] for name in ("first_norm", "typical_norm", "attention", "loss")}
        for text in range(len(corpus)):
            tokens = torch.tensor([corpus.row(text)])
            with model.hooks(fwd_hooks=sites):
                logits, cache = model.run_with_cache(tokens)
            norms = cache["resid_post", layer][0].norm(dim=-1)
            assert found["first_norm"][text] == pytest.approx(float(norms[0]), rel=1e-3)
            assert found["typical_norm"][text] == pytest.approx(float(norms[1:].mean()), rel=1e-3)
            pattern = cache["pattern", head_layer][0, head, 1:, 0]
            assert found["attention"][text] == pytest.approx(float(pattern.mean()), abs=1e-3)
            loss = torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:])
            assert found["loss"][text] == pytest.approx(float(loss), rel=1e-3)
        for number, token in enumerate(TOKENS[:2]):
            tokens = torch.tensor([[BOS, *[token] * REPEATS]])
            with model.hooks(fwd_hooks=sites):
                logits, cache = model.run_with_cache(tokens)
            shares = logits[0, REPEATS // 2 : REPEATS].softmax(-1)
            assert ablation.of("p_next")[place, number] == pytest.approx(float(shares[:, token].mean()), abs=1e-4)
            best = (shares.argmax(-1) == token).float().mean()
            assert ablation.of("continued")[place, number] == pytest.approx(float(best))
            last = cache["resid_post", layer][0, -1].norm()
            assert ablation.of("repeat_norm")[place, number] == pytest.approx(float(last), rel=1e-3)


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2", "gpt_neox"])
def test_both_views_read_the_same_and_padding_never_counts(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(tiny(family))
    rows = [[0, *row[: 9 - i]] for i, row in enumerate(random_tokens(3, 9).tolist())]
    corpus = Corpus.from_tokens(rows, model=model)
    under = [None, Neurons([(1, 3), (2, 5)], "zero", when="all")]
    fast = SinkOnTexts(model, corpus, 1, (2, 1)).values(under, False)
    alone = [SinkOnTexts(model, corpus.select([i]), 1, (2, 1)).values(under, False) for i in range(3)]
    torch.testing.assert_close(fast, torch.cat(alone, dim=2), rtol=1e-4, atol=1e-5)
    short = SinkOnTexts(model, corpus, 1, loss=False).values(under, False)
    torch.testing.assert_close(short, fast[:2], rtol=1e-5, atol=1e-6)
    monkeypatch.setattr("mechrep.ablation.sink_outcomes.choose_view", lambda *_: "transformer_lens")
    torch.testing.assert_close(SinkOnTexts(model, corpus, 1, (2, 1)).values(under, False), fast, rtol=1e-3, atol=1e-4)
    assert (fast[:, 0] - fast[:, 1]).abs().amax(-1).min() > 0


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_the_planted_neuron_makes_the_excess_and_no_other_set_does(family: str) -> None:
    fixture = sink_model(family)
    corpus, layer = texts_of(fixture.model), fixture.sink_layer
    ranking = sink_neurons(fixture.model, corpus, layer).top(4)
    sets = [ranking[:1], ranking[:3], ranking[1:4], [(layer, 3), (layer, 50)]]
    zeros = [Neurons(units, "zero", when="all") for units in sets]
    removed = excess_removed(norm_profiles(fixture.model, corpus, [None, *zeros]))[:, layer + 1]
    assert removed[:2].min() > 0.95 and removed[2:].abs().max() < 0.1
    late = Corpus.from_tokens([[9, BOS, BOS, 10]], model=bos_sink_model("llama").model)
    ratios = norm_profiles(bos_sink_model("llama").model, late, [None, zeros[0]])
    assert excess_removed(ratios)[:, 2].isnan().all(), "there is no excess"


def test_conditions_are_shared_and_refused(planted: SinkModel, sink: SinkResult) -> None:
    model = planted.model
    cells = sink_conditions(model, sink.top(1), controls=Controls(draws=3), run=QUICK)
    assert [one.selection for one, _ in cells] == ["baseline", "ablation", *["layer_matched"] * 3]
    for bad in ({"neurons": []}, {"neurons": [(99, 0)]}, {"neurons": sink.top(1), "controls": ["other"]}):
        with pytest.raises(InputError):
            sink_conditions(model, **bad)
    with pytest.raises(NothingFoundError):
        sink_ablation(model, dataclasses.replace(sink, stages=[]), texts=texts_of(model))
    with pytest.raises(InputError, match="one token"):
        SinkOnTexts(model, Corpus.from_tokens([[BOS]], model=model), 0)
    with pytest.raises(InputError, match="repeats"):
        SinkOnRepeats(model, texts_of(model), 0)
    late = Neurons([(0, 1)], "zero", when="last")
    with pytest.raises(InputError, match="mid-text"):
        SinkOnTexts(model, texts_of(model), 0).values([late], False)


def test_the_table_can_be_kept_and_goes_on_where_it_stopped(
    planted: SinkModel, sink: SinkResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"texts": texts_of(planted.model), "tokens": TOKENS[:2], "repeats": 4}
    run = Run(store=tmp_path / "store", effort="quick", progress=False)
    first = sink_ablation(planted.model, sink, controls=Controls(draws=2), run=run, **options)
    first.save(tmp_path / "kept")
    assert Effects.load(tmp_path / "kept").summary().equals(first.summary())
    monkeypatch.setattr("mechrep.ablation.sink_outcomes.read_rows", lambda *_, **__: pytest.fail("read again"))
    again = sink_ablation(planted.model, sink, controls=Controls(draws=2), run=run, **options)
    torch.testing.assert_close(again.values, first.values, equal_nan=True)
    assert planted.model.plain is not None
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in planted.model.plain.modules())


def test_the_published_rule_says_why_it_is_silent(planted: SinkModel) -> None:
    rule = published_layer(planted.model)  # three layers
    assert rule.layer is None and rule.reason and rule.mlp_norms is not None
    assert len(rule.mlp_norms) == planted.model.anatomy.n_layers


def test_random_and_repeated_texts_are_as_long_as_the_others(planted: SinkModel, sink: SinkResult) -> None:
    corpus = texts_of(planted.model)
    seen = head_on_stimuli(planted.model, sink.best_head, corpus, TOKENS)
    assert (len(seen.random), len(seen.repeats), len(seen.text)) == (6, 6, len(corpus))
    assert float(seen.text.mean()) == pytest.approx(float(sink.alpha[seen.head]), abs=1e-3)
    assert seen.length == int(corpus.lengths.min())
    frame = seen.to_frame().set_index("kind")
    assert (frame["low"] <= frame["mean"]).all() and (frame["mean"] <= frame["high"]).all()


def test_text_and_repeats_have_their_own_tokens() -> None:
    shown = [
        ShownPattern(["<s>", " a", "b"], torch.eye(3)),
        ShownPattern(["c", "c"], torch.tensor([[1.0, 0], [0.25, 0.75]])),
    ]
    figure = text_against_repeats_figure(shown, head=(3, 1), name="<x>")
    first, second = (np.asarray(trace.z) for trace in figure.data)
    assert np.isnan(first[0, 1:]).all() and first[2].tolist() == [0.0, 0.0, 1.0]
    assert second[1].tolist() == [0.25, 0.75]
    assert list(figure.layout.xaxis.labelalias.values()) == ["&lt;s&gt;", "␣a", "b"]
    assert list(figure.layout.xaxis2.labelalias.values()) == ["c", "c"]
    assert "<x>" not in figure.to_json() and (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)


# --- the whole study ------------------------------------------------------------------------------------------------


def check_page(study: SinkStudy) -> None:
    """All words are there, all claims have one, and everything can be written as JSON."""
    section = study.section()
    view = view_of(section)
    assert len(view.claims) == len(section.claims) and len(view.tables) == len(section.tables)
    assert all(json.loads(figure.to_json()) for figure in section.figures.values())


@pytest.fixture(scope="module")
def untrained() -> SinkStudy:
    return run_sink_study(reinitialised(load_model("mechrep-tiny")), tokens=3, repeats=20, run=QUICK)


def test_a_model_that_knows_nothing_is_reported_without_a_cause(untrained: SinkStudy) -> None:
    assert not untrained.sink.found and untrained.ablation is None and untrained.neurons is None
    assert not untrained.sink.moved and untrained.known == "unknown"
    assert untrained.behaviour is not None and [one.name for one in untrained.behaviour.conditions] == ["baseline"]
    section = untrained.section()
    assert section.variant == "not_found" and "ablation" not in section.tables and "ablation" not in section.figures
    claims = section.claims.set_index("claim")["verdict"]
    assert set(claims.index) <= {"norm_sink", "sink_heads", "cluster"}
    assert (claims[["norm_sink", "sink_heads"]] == "not supported").all()
    check_page(untrained)
    check_page(dataclasses.replace(untrained, behaviour=None, cluster=None))


def test_what_nothing_has_changed_was_not_tested() -> None:
    effects = example_effects(shift=0.0)
    same = dataclasses.replace(effects, values=effects.values[:, :1].expand(-1, len(effects.conditions), -1))
    assert changed(same.summary()).empty and len(changed(effects.summary())) == 1
    one_draw = same.values.clone()
    one_draw[0, 5, 0] += 1
    assert len(changed(dataclasses.replace(same, values=one_draw).summary())) == 1


@pytest.mark.slow
def test_a_sink_is_told_with_its_neurons_its_ablation_and_its_repeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EFFORTS, "quick", dataclasses.replace(EFFORTS["quick"], draws=99))  # 19 are too few for 4 tests
    run = Run(store=tmp_path, effort="quick", progress=False)
    study = run_sink_study(load_model("mechrep-tiny"), tokens=6, repeats=16, run=run)
    section = study.section()
    assert study.sink.norm_found and study.ablation is not None and study.behaviour is not None and not section.variant
    claims = section.claims.set_index("claim")["verdict"]
    assert (claims[["norm_sink", "sink_heads", "without_attention"]] == "supported").all()
    assert (study.sink.claims["verdict"] == "supported").all()
    assert {"without_loss", "without_repeat_norm", "without_p_next"} <= set(claims.index)
    assert {"stages", "moved", "layers", "neurons", "stimuli"} <= set(section.tables) and len(
        section.tables["neurons"]
    ) == 5
    assert {"norms", "heads", "repeats", "attention", "ablation", "behaviour"} == set(section.figures)
    assert section.fields["norm_without"] < 2 < 10 < section.fields["norm_with"]
    reached = study.crossings()
    assert (reached["low"] <= reached["share"]).all()
    assert reached.loc[reached["reached"] == 0, "median"].isna().all() and (reached["high"] > 0.1).all()
    moved = study.sink.moved_frame()
    assert (moved["low"] <= moved["moved"]).where(moved["moved"].notna(), True).all()
    check_page(study)
    check_page(dataclasses.replace(study, sink=dataclasses.replace(study.sink, norm_found=False, stages=[])))
