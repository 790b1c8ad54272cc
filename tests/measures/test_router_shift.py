"""Router shift: by hand, planted, calibrated, and merged; neurons of experts with the share of tokens beside them."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import mechrep
from mechrep.cache.corpus_cache import Batch, CorpusCache
from mechrep.errors import MissingPartError, NothingFoundError
from mechrep.measures.neurons import RepetitionNeurons
from mechrep.measures.router_shift import RouterShift, RouterShiftResult
from mechrep.models.anatomy import Anatomy, Site
from mechrep.models.model import Model
from mechrep.models.nulls import shuffled
from mechrep.models.reading import read_activations
from mechrep.provenance import Provenance
from mechrep.studies.router_shift import router_claims, run_router_shift_study
from mechrep.text.corpus import Corpus
from tests.families.words import worded
from tests.families.zoo import text

PAIRS, LENGTH, START, ONSET, EXPERTS = 10, 60, 25, 32, 6
PROVENANCE = Provenance({"name": "by hand"}, {"texts": 2 * PAIRS}, {})


@functools.cache
def anatomy() -> Anatomy:
    """Three layers, the first without experts, the second with fewer."""
    dense = mechrep.load_model("mechrep-tiny").anatomy
    return dataclasses.replace(
        dense, n_layers=3, experts=(0, 4, EXPERTS), d_expert=8, neurons=(352,) * 3, attention_layers=(0, 1, 2),
        missing=frozenset(),
    )  # fmt: skip


def frame() -> pd.DataFrame:
    places = {"start": [START, None] * PAIRS, "onset": [ONSET, None] * PAIRS}
    return pd.DataFrame({name: pd.array(values, "Int64") for name, values in places.items()}).assign(
        id=[f"text-{i}" for i in range(2 * PAIRS)]
    )


def routing(seed: int, chosen: int | None = None) -> dict[int, Tensor]:
    """Two experts for every token, at random; in loops ``chosen`` of layer 2 is one of them from the onset on."""
    draw, made = torch.Generator().manual_seed(seed), {}
    for layer, experts in ((1, 4), (2, EXPERTS)):
        scores = torch.rand(2 * PAIRS, LENGTH, experts, generator=draw)
        if chosen is not None and layer == 2:
            scores[::2, ONSET:, chosen] += 1
        sent = torch.zeros(2 * PAIRS, LENGTH, EXPERTS)
        made[layer] = sent.scatter(-1, scores.topk(2).indices, 0.5)
    return made


def observed(given: dict[int, Tensor], texts: list[int], r: int = 12) -> RouterShift:
    analyzer, facts = RouterShift(r), frame()
    analyzer.prepare(anatomy(), facts)
    batch = Batch(
        torch.zeros(len(texts), LENGTH, dtype=torch.long),
        torch.full((len(texts),), LENGTH),
        tuple(texts),
        facts.iloc[texts],
    )
    for layer, sent in given.items():
        analyzer.observe(sent[texts], Site.ROUTER, layer, batch)
    analyzer.finish_batch(batch)
    return analyzer


def result_of(seed: int, chosen: int | None = None) -> RouterShiftResult:
    return observed(routing(seed, chosen), list(range(2 * PAIRS))).result(PROVENANCE)


def test_shares_are_those_counted_by_hand() -> None:
    given, result, r = routing(3), result_of(3), 12
    for pair in range(PAIRS):
        for side, row in (("loops", 2 * pair), ("controls", 2 * pair + 1)):
            for window, (begin, end) in enumerate(((START - r, START), (START, ONSET), (ONSET, ONSET + r))):
                expected = (given[2][row, begin:end] > 0).double().mean(0)
                assert torch.allclose(getattr(result, side)[pair, window, 2].double(), expected, atol=1e-6)
    assert result.loops[:, :, 0].isnan().all() and result.loops[:, :, 1, 4:].isnan().all()
    table = result.to_frame()
    assert len(table) == 4 + EXPERTS and table["shift_from_before"].is_monotonic_decreasing


def test_parts_merge_to_the_whole() -> None:
    given, order = routing(4), np.random.default_rng(0).permutation(2 * PAIRS).tolist()
    first, second = observed(given, order[:7]), observed(given, order[7:])
    first.merge(second)
    assert torch.allclose(first.result(PROVENANCE).loops, result_of(4).loops, equal_nan=True)


def test_an_expert_that_is_chosen_only_after_the_onset_is_found() -> None:
    claims = router_claims(result_of(5, chosen=3), draws=199)
    found = claims[claims["verdict"] == "supported"]
    assert set(zip(found["layer"], found["expert"], strict=True)) == {(2, 3)} and set(found["against"]) == {
        "before",
        "first",
    }
    assert (found["shift"] > 0.4).all()


def test_of_routing_at_random_few_claims_are_supported() -> None:
    wrong = [(router_claims(result_of(seed), draws=99)["verdict"] == "supported").any() for seed in range(10, 70)]
    assert np.mean(wrong) <= 0.1


@functools.cache
def mixture() -> tuple[Model, Corpus]:
    model = worded("DeepSeek-V3")
    loops = [[0, *text(20, seed=seed), *text(4, seed=seed + 50) * 6] for seed in range(8)]
    others = [[0, *text(50, seed=seed + 100)] for seed in range(8)]
    return model, Corpus.from_tokens([*loops, *others], model=model).with_cycles()


def test_on_a_model_shares_are_those_of_its_router() -> None:
    model, corpus = mixture()
    study = run_router_shift_study(model, corpus=corpus, r=10)
    result, there = study.result, model.anatomy.layers_with(Site.ROUTER)
    assert len(result.texts) == 8 and result.n_dropped == 0
    row, onset = corpus.row(0), int(corpus.frame["onset"].iloc[0])
    seen: dict[int, Tensor] = {}
    tokens = torch.tensor([row])
    read_activations(
        model, tokens, {Site.ROUTER: there}, lambda sent, _site, layer: seen.__setitem__(layer, sent[0] != 0)
    )
    for layer in there:
        assert torch.allclose(result.loops[0, 2, layer], seen[layer][onset : onset + 10].float().mean(0), atol=1e-6)
        assert result.loops[0, 2, layer].sum() == pytest.approx(2)  # two experts for every token
    assert set(study.claims["layer"]) == set(there) and "supported" in study.to_frame()
    null = run_router_shift_study(shuffled(model), corpus=corpus, r=10)
    assert (null.claims.query("against == 'first'")["verdict"] != "supported").all()


def test_what_cannot_be_measured_is_refused() -> None:
    model, corpus = mixture()
    with pytest.raises(MissingPartError):
        run_router_shift_study(mechrep.load_model("mechrep-tiny"))
    with pytest.raises(NothingFoundError):
        CorpusCache(model, corpus.select(range(8)), progress=False).run(RouterShift())


def test_neurons_of_experts_stand_beside_the_share_of_tokens_that_reach_them() -> None:
    model, corpus = mixture()
    corpus = corpus.select(range(8))
    result = CorpusCache(model, corpus, progress=False).run(RepetitionNeurons(r=10))
    anatomy, layer = model.anatomy, model.anatomy.layers_with(Site.ROUTER)[-1]
    frame = result.to_frame()
    assert len(frame) == sum(anatomy.neurons) and set(frame[frame["layer"] == layer]["expert"]) == {-1, *range(4)}
    assert (frame[frame["expert"] < 0]["repetition_routed"] == 1).all() and (
        frame[frame["layer"] == 0]["expert"] == -1
    ).all()
    acts, sent = [], []
    for i in range(8):
        onset, kept = int(corpus.frame["onset"].iloc[i]), {}
        read_activations(
            model, torch.tensor([corpus.row(i)]), {Site.GATE_ACT: [layer], Site.ROUTER: [layer]},
            lambda values, site, _layer, kept=kept: kept.__setitem__(site, values[0].double()),
        )  # fmt: skip
        acts.append(kept[Site.GATE_ACT][onset - 1 : onset + 9])
        sent.append(kept[Site.ROUTER][onset - 1 : onset + 9] != 0)
    for row in frame[(frame["layer"] == layer) & (frame["expert"] >= 0)].head(10).itertuples():
        number = row.expert * anatomy.d_expert + row.neuron_of_expert
        assert number == row.neuron
        here = torch.cat(sent)[:, row.expert]
        assert row.repetition_routed == pytest.approx(float(here.double().mean()), abs=1e-6)
        expected = float(torch.cat(acts)[here, number].mean())
        assert row.repetition_where_routed == pytest.approx(expected, abs=1e-4) or not bool(here.any())
