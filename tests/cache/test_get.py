"""``CorpusCache.get`` against torch hooks and TransformerLens itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mechrep.cache import CorpusCache
from mechrep.errors import InputError
from mechrep.models.anatomy import Site
from mechrep.text.corpus import Corpus
from tests.cache.counting import counted_layers, model, texts_of
from tests.tiny_models import D_VOCAB, N_HEADS, N_LAYERS, PARTS, fresh, tiny

LENGTHS = (7, 12, 3, 12)
FAMILIES = ("llama_gqa", "gpt_neox")


def from_transformer_lens(family: str, site: Site, corpus: Corpus, layers: range) -> Tensor:
    """One text at a time through TransformerLens' own cache, put together by hand; nothing is padded."""
    full, parts = int(corpus.lengths.max()), []
    anatomy, act = model(family).anatomy, PARTS[family].of(tiny(family), "activation", 0)
    for layer in layers:
        for text in range(len(corpus)):
            name = anatomy.hook_name(site, layer)
            kept = model(family).tl.run_with_cache(torch.tensor([corpus.row(text)]), names_filter=[name])[1][name]
            kept = act(kept[0]) if site is Site.GATE_ACT and anatomy.gated else kept[0]
            shape = list(kept.shape)
            axes = (1, 2) if site in (Site.SCORES, Site.PATTERN) else (0,)
            for axis in axes:
                shape[axis] = full
            padded = torch.zeros(shape)
            padded[tuple(slice(0, size) for size in kept.shape)] = kept
            parts.append(padded)
    return torch.stack(parts).unflatten(0, (len(layers), len(corpus)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", list(Site))
def test_every_site_is_what_its_hook_gives_text_by_text_and_zero_beyond(family: str, site: Site) -> None:
    corpus = texts_of(LENGTHS, family)
    if not model(family).anatomy.has(site):
        with pytest.raises(InputError, match=f"site '{site.value}'"):
            CorpusCache(model(family), corpus).get(site)
        return
    layers = range(1 if site is Site.EMBED else N_LAYERS)
    expected = from_transformer_lens(family, site, corpus, layers)
    for batch_size in (1, 3):
        got = CorpusCache(model(family), corpus, batch_size=batch_size).get(site, layers=layers)
        assert got.shape == expected.shape and got.device.type == "cpu"
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5)
        for row, length in enumerate(LENGTHS):
            beyond = got[:, row, :, length:] if site in (Site.SCORES, Site.PATTERN) else got[:, row, length:]
            assert (beyond == 0).all()


@pytest.mark.parametrize("site", [Site.RESID_POST, Site.Z, Site.K, Site.PATTERN])
def test_parts_are_slices_of_the_whole(site: Site) -> None:
    cache = CorpusCache(model("llama_gqa"), texts_of(LENGTHS), batch_size=2)
    whole = cache.get(site)
    assert torch.equal(cache[site, 1], whole[1])
    part = cache.get(site, layers=[2, 0], texts=[3, 1], positions=slice(2, 9, 3))
    rows = whole[[2, 0]][:, [3, 1]]
    expected = rows[..., 2:9:3, :] if site is Site.PATTERN else rows[:, :, 2:9:3]
    torch.testing.assert_close(part, expected, rtol=1e-5, atol=1e-6)
    assert cache.get(site, positions=slice(4, 4)).numel() == 0
    short = cache.get(site, texts=[2])
    assert short.shape[-2 if site is Site.PATTERN else 2] == LENGTHS[2]  # as long as the longest asked for


def test_patterns_are_rows_of_probabilities_and_heads_are_where_they_belong() -> None:
    corpus = texts_of(LENGTHS)
    cache = CorpusCache(model("llama_gqa"), corpus)
    pattern = cache[Site.PATTERN, 1]
    assert pattern.shape == (len(LENGTHS), N_HEADS, 12, 12)
    for row, length in enumerate(LENGTHS):
        torch.testing.assert_close(pattern[row, :, :length].sum(-1), torch.ones(N_HEADS, length))
        assert (pattern[row].triu(1) == 0).all()
    # z of a head is its pattern times the values of the group it belongs to
    values = cache[Site.V, 1].repeat_interleave(2, dim=2)
    mixed = torch.einsum("thqk,tkhd->tqhd", pattern, values)
    torch.testing.assert_close(cache[Site.Z, 1], mixed, rtol=1e-4, atol=1e-5)


def test_layers_above_the_highest_asked_for_are_not_run() -> None:
    cache = CorpusCache(model("llama_gqa"), texts_of(LENGTHS), batch_size=4)
    with counted_layers("llama_gqa") as ran:
        cache.get(Site.RESID_POST, layers=[0])
    assert ran == [(0, 4)]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"texts": [0, 4]}, "texts 4;.* 0 to 3"),
        ({"texts": [-1]}, "texts -1;.* 0 to 3"),
        ({"texts": [1, 1]}, r"texts \[1, 1\] with 1 twice"),
        ({"texts": []}, r"texts \[\].*at least one"),
        ({"layers": [N_LAYERS]}, "layers 3;.* 0 to 2"),
        ({"layers": []}, r"layers \[\]"),
        ({"layers": [1, 1]}, r"layers \[1, 1\]"),
    ],
)
def test_texts_and_layers_that_do_not_exist_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        CorpusCache(model("llama_gqa"), texts_of(LENGTHS)).get(Site.RESID_POST, **options)


def test_what_would_not_fit_is_refused_with_its_size_before_anything_runs() -> None:
    corpus, floats = texts_of(LENGTHS), 2**30 / 4
    bytes_of_one_layer = len(LENGTHS) * 12 * 32
    for limit, fits in ((bytes_of_one_layer * 0.99 / floats, False), (bytes_of_one_layer * 1.01 / floats, True)):
        cache = CorpusCache(model("llama_gqa"), corpus)
        with counted_layers("llama_gqa") as ran:
            if fits:
                states = cache.get(Site.RESID_POST, layers=[0], max_gib=limit)
                assert states.numel() == bytes_of_one_layer
            else:
                with pytest.raises(InputError, match=r"0\.00 GiB of resid_post.*fewer layers, texts or positions"):
                    cache.get(Site.RESID_POST, layers=[0], max_gib=limit)
        assert bool(ran) == fits
    patterns, limit = CorpusCache(model("llama_gqa"), corpus), N_HEADS * 3 * 3 * 1.01 / floats
    found = patterns.get(Site.PATTERN, layers=[1], texts=[2], max_gib=limit)
    assert found.numel() == N_HEADS * 9  # its own width counts
    with pytest.raises(InputError, match="GiB of pattern"):
        patterns.get(Site.PATTERN, layers=[1], texts=[0], max_gib=limit)


def test_a_corpus_of_another_vocabulary_or_a_bad_batch_size_is_refused() -> None:
    from mechrep.models.load import load_model

    bigger = load_model(fresh("llama_gqa", vocab_size=D_VOCAB + 3))
    with pytest.raises(InputError, match=f"vocabulary of {D_VOCAB}"):
        CorpusCache(bigger, texts_of(LENGTHS))
    for batch_size in (0, "all"):
        with pytest.raises(InputError, match="batch_size"):
            CorpusCache(model("llama_gqa"), texts_of(LENGTHS), batch_size=batch_size)


def test_marks_are_no_numbers_of_texts() -> None:
    cache = CorpusCache(model("llama_gqa"), texts_of((5, 3)))
    with pytest.raises(InputError, match="texts"):
        cache.get(Site.RESID_POST, texts=[True, False])
