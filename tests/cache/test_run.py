"""``CorpusCache.run``: one forward pass for all analyzers, nothing kept, no layer run in vain."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from mechrep.cache import Batch, CorpusCache
from mechrep.errors import InputError, NothingFoundError
from mechrep.interventions import Neurons, add, resample
from mechrep.measures.neurons import RepetitionNeurons
from mechrep.models.anatomy import Site
from tests.analyzers.looping_texts import as_corpus, random_loops
from tests.cache.counting import MeanOf, MeanResult, counted_layers, model, texts_of
from tests.tiny_models import N_LAYERS

LENGTHS = (5, 9, 14, 9, 3, 11)


def means(*results: object) -> list[Tensor]:
    assert all(isinstance(result, MeanResult) for result in results)
    return [result.mean for result in results]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("sites", [(Site.GATE_ACT,), (Site.GATE_ACT, Site.RESID_POST, Site.MLP_POST)])
def test_many_analyzers_cost_one_forward_pass(sites: tuple[Site, ...]) -> None:
    cache = CorpusCache(model("llama_gqa"), texts_of(LENGTHS), batch_size=2)
    with counted_layers("llama_gqa") as ran:
        together = cache.run_all([MeanOf(site) for site in sites])
    assert Counter(ran) == {(layer, 2): 3 for layer in range(N_LAYERS)}  # three batches of two texts
    alone = [cache.run(MeanOf(site)) for site in sites]
    for one, other in zip(means(*together), means(*alone), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


@pytest.mark.parametrize("site", [Site.GATE_ACT, Site.RESID_PRE, Site.UP_PROJ, Site.MLP_OUT])
def test_a_mean_over_the_corpus_is_the_mean_of_get(site: Site) -> None:
    corpus = texts_of(LENGTHS)
    cache = CorpusCache(model("llama_gqa"), corpus, batch_size=4)
    result = cache.run(MeanOf(site))
    assert isinstance(result, MeanResult) and result.positions == sum(LENGTHS)
    expected = cache.get(site).double().sum(dim=(1, 2)) / sum(LENGTHS)
    torch.testing.assert_close(result.mean, expected, rtol=1e-5, atol=1e-7)


def test_every_text_is_read_once_and_neighbours_are_of_like_length() -> None:
    analyzer = MeanOf(Site.RESID_POST)
    cache = CorpusCache(model("llama_gqa"), texts_of(LENGTHS), batch_size=4)
    cache.run(analyzer)
    assert analyzer.batches_seen == [(2, 5, 1, 3), (0, 4)]


def test_automatic_batches_hold_a_number_of_tokens_not_of_texts() -> None:
    cache = CorpusCache(model("llama_gqa"), texts_of((100,) * 100 + (10,) * 300))
    sizes = [(len(texts), int(cache.corpus.lengths[texts].max())) for texts in cache.batches(cache.order())]
    assert sum(count for count, _ in sizes) == 400 and max(count for count, _ in sizes) > 150
    assert all(count * longest <= 8192 for count, longest in sizes)


@pytest.mark.parametrize(("view", "family"), [("plain", "llama_gqa"), ("plain", "gpt_neox")])
def test_only_the_layers_that_somebody_needs_are_run(view: str, family: str) -> None:
    corpus = texts_of(LENGTHS, family)
    cache = CorpusCache(model(family), corpus, batch_size=10, view=view)  # pyright: ignore[reportArgumentType]
    for needed in range(1, N_LAYERS + 1):
        with counted_layers(family) as ran:
            cache.run(MeanOf(Site.GATE_ACT, needed), MeanOf(Site.RESID_POST, 1))
        assert ran == [(layer, len(LENGTHS)) for layer in range(needed)]


def test_the_transformer_lens_view_stops_early_too() -> None:
    loaded, ran = model("gpt_neox"), []
    cache = CorpusCache(loaded, texts_of(LENGTHS, "gpt_neox"), batch_size=10, view="transformer_lens")

    def hook(activation: Tensor, hook: object) -> None:
        ran.append(hook.name)  # pyright: ignore[reportAttributeAccessIssue]

    with loaded.tl.hooks(fwd_hooks=[(f"blocks.{layer}.hook_mlp_out", hook) for layer in range(N_LAYERS)]):
        cache.run(MeanOf(Site.ATTN_OUT, 2))
    assert len(ran) == 2 and all(name.startswith(f"blocks.{layer}.") for layer, name in enumerate(ran))


def test_what_is_handed_over_is_freed() -> None:
    """Memory must not grow with the corpus: at most the batch in hand is alive, and nothing after the run."""
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    class Watching(MeanOf):
        def observe(self, activation: Tensor, site: Site, layer: int, batch: Batch) -> None:
            nonlocal most
            super().observe(activation, site, layer, batch)
            alive.append(weakref.ref(activation))
            most = max(most, sum(reference() is not None for reference in alive))

    corpus = texts_of((20,) * 24)
    CorpusCache(model("llama_gqa"), corpus, batch_size=2).run(Watching(Site.GATE_ACT))
    gc.collect()
    assert len(alive) == 12 * N_LAYERS
    assert not any(reference() is not None for reference in alive)
    assert most <= 2  # the one in hand and the one before it


def test_a_run_can_be_repeated_and_begins_anew() -> None:
    cache = CorpusCache(model("llama_gqa"), texts_of(LENGTHS), batch_size=2)
    analyzer = MeanOf(Site.GATE_ACT)
    first = cache.run(analyzer)
    second = cache.run(analyzer)
    assert isinstance(first, MeanResult) and isinstance(second, MeanResult)
    assert torch.equal(first.mean, second.mean) and first.positions == second.positions == sum(LENGTHS)
    with pytest.raises(InputError, match="one of them twice"):
        cache.run(analyzer, analyzer)  # it would count everything twice
    with pytest.raises(InputError, match="0 analyzers"):
        cache.run()


def test_a_corpus_that_lacks_what_an_analyzer_needs_is_refused_before_anything_runs() -> None:
    cache = CorpusCache(model("llama_gqa"), texts_of(LENGTHS))
    with counted_layers("llama_gqa") as ran, pytest.raises(NothingFoundError, match="6 texts, none with an onset"):
        cache.run(MeanOf(Site.GATE_ACT), RepetitionNeurons())
    assert ran == []


def test_a_result_says_where_it_comes_from() -> None:
    loaded = model("llama_gqa")
    corpus = as_corpus(random_loops(3), loaded)
    result = CorpusCache(loaded, corpus).run(RepetitionNeurons(r=5))
    facts = result.provenance
    assert facts.model["fingerprint"] == loaded.fingerprint() and facts.model["dtype"] == "float32"
    assert facts.corpus["fingerprint"] == corpus.fingerprint() and facts.corpus["texts"] == 3
    assert facts.config == {"preset": "mechrep", "window": "clean", "r": 5, "site": "gate_act"}
    assert facts.versions["torch"] == torch.__version__


def test_one_analyzer_gives_one_result_and_a_list_always_a_tuple() -> None:
    cache = CorpusCache(model("llama_gqa"), texts_of(LENGTHS))
    (listed,) = cache.run_all([MeanOf(Site.GATE_ACT)])
    alone = cache.run(MeanOf(Site.GATE_ACT))
    one, two = cache.run(MeanOf(Site.GATE_ACT), MeanOf(Site.RESID_POST))
    assert all(isinstance(result, MeanResult) for result in (listed, alone, one, two))
    for wrong in (MeanOf, [MeanOf(Site.GATE_ACT)], "neurons"):
        with pytest.raises(InputError, match="an analyzer"):
            cache.run(wrong)  # pyright: ignore[reportCallIssue, reportArgumentType]


@pytest.mark.parametrize("view", ["plain", "transformer_lens"])
def test_reading_under_an_edit_begins_where_writing_would(view: Any) -> None:
    loaded = model("llama_gqa")
    corpus = texts_of(LENGTHS).with_columns(onset=[2, None, 1, None, None, 4])
    edit = Neurons([(0, 1), (1, 2)], add(3.0))
    seen = CorpusCache(loaded, corpus, intervention=edit, batch_size=4, view=view).get(Site.RESID_POST)
    for text, onset in enumerate(corpus.frame["onset"]):
        start = 0 if pd.isna(onset) else int(onset) - 1
        ids = corpus.tokens[text, : LENGTHS[text]][None]
        with loaded.hooks(fwd_hooks=edit.hooks(loaded, torch.tensor([start]))):
            _, cache = loaded.run_with_cache(ids)
        for layer in range(N_LAYERS):
            own = cache[loaded.anatomy.hook_name(Site.RESID_POST, layer)][0]
            torch.testing.assert_close(seen[layer, text, : len(own)], own, rtol=1e-3, atol=1e-4)
    with pytest.raises(InputError, match="no onset"):
        CorpusCache(loaded, corpus, intervention=Neurons([(0, 1)], when="from_onset"))
    with pytest.raises(InputError, match="last"):
        CorpusCache(loaded, corpus, intervention=Neurons([(0, 1)], when="last"))


def test_what_a_text_draws_does_not_depend_on_its_batch() -> None:
    loaded, corpus = model("llama_gqa"), texts_of((9, 9, 9, 9))
    a = loaded.anatomy
    bank = torch.randn(7, a.n_layers, a.d_mlp, generator=torch.Generator().manual_seed(0))
    drawn = Neurons([(0, n) for n in range(8)], resample(bank), when="all")
    together, alone = (
        CorpusCache(loaded, corpus, intervention=drawn, batch_size=size).get(Site.RESID_POST) for size in (4, 1)
    )
    torch.testing.assert_close(together, alone)
