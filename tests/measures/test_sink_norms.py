"""``SinkNorms`` beside plain loops over hidden states, in splits and batches, and at its edges."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechrep.cache import CorpusCache
from mechrep.errors import InputError
from mechrep.measures.sink_norms import SinkNormResult, SinkNorms
from mechrep.models.anatomy import Site
from mechrep.models.load import load_model
from mechrep.text.corpus import Corpus
from tests.analyzers.sinks_by_hand import PROVENANCE, anatomy, check_equal, merged, observed
from tests.tiny_models import fresh, random_tokens, tiny

LENGTHS = (9, 1, 5, 12, 2)


def states(lengths: tuple[int, ...], seed: int = 0) -> dict[tuple[Site, int], list[Tensor]]:
    """Residual streams of two layers, in every depth another scale."""
    draw = np.random.default_rng(seed)
    places = [(Site.RESID_PRE, 0), (Site.RESID_POST, 0), (Site.RESID_POST, 1)]
    return {
        place: [torch.from_numpy(draw.normal(0, 10.0**i, (length, 8))).float() for length in lengths]
        for i, place in enumerate(places)
    }


def test_means_by_plain_loops() -> None:
    tables = states(LENGTHS)
    result = observed(SinkNorms(positions=3), tables, anatomy(2), batch_size=2).result(PROVENANCE)
    for depth, group in enumerate(tables.values()):
        norms = [[math.sqrt(sum(float(x) ** 2 for x in row)) for row in text] for text in group]
        others = [norm for text in norms for norm in text[1:]]
        assert result.first_norm[depth] == pytest.approx(np.mean([text[0] for text in norms]), rel=1e-6)
        assert result.other_norm[depth] == pytest.approx(np.mean(others), rel=1e-6)
        assert result.other_sd[depth] == pytest.approx(np.std(others), rel=1e-5)
        for place in range(3):
            there = [text[place] for text in norms if len(text) > place]
            assert result.by_position[depth, place] == pytest.approx(np.mean(there), rel=1e-6)
    logs = [np.mean([math.log(float(text[0].norm())) for text in group]) for group in tables.values()]
    np.testing.assert_allclose(result.jump, np.diff(logs), rtol=1e-5)
    assert (result.n_texts, result.n_others) == (5, sum(LENGTHS) - 5)
    frame = result.to_frame()
    assert frame["layer"].tolist() == [0, 1]
    np.testing.assert_allclose(frame["ratio"], (result.first_norm / result.other_norm)[1:], rtol=1e-6)


@settings(max_examples=15)
@given(data=st.data())
def test_any_split_in_any_batches_gives_the_same(data: st.DataObject) -> None:
    tables, sizes = states(LENGTHS), anatomy(2)
    whole = observed(SinkNorms(), tables, sizes).result(PROVENANCE)
    order = data.draw(st.permutations(range(len(LENGTHS))))
    cut = data.draw(st.integers(1, len(LENGTHS) - 1))
    parts = [
        observed(SinkNorms(), tables, sizes, texts=texts, batch_size=data.draw(st.integers(1, 4)))
        for texts in (order[:cut], order[cut:])
    ]
    check_equal(merged(parts).result(PROVENANCE), whole)


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2", "gpt_neox", "gemma2"])
def test_a_real_model_beside_its_hidden_states(family: str) -> None:
    module, model = tiny(family), load_model(tiny(family))
    rows = [row[:length] for row, length in zip(random_tokens(3, 14).tolist(), (14, 6, 1), strict=True)]
    with torch.no_grad():
        seen = [module(torch.tensor([row]), output_hidden_states=True).hidden_states for row in rows]  # pyright: ignore
    corpus = Corpus.from_tokens(rows, model=model)
    results = [
        CorpusCache(model, corpus, batch_size=size, view=view).run(SinkNorms())
        for size, view in ((1, "plain"), (3, "plain"), (3, "transformer_lens"))
    ]
    for other in results:
        assert isinstance(other, SinkNormResult)
        for depth in range(3):  # transformers' last hidden state has gone through the final norm
            first = np.mean([float(text[depth][0, 0].double().norm()) for text in seen])
            others = np.mean([float(norm) for text in seen for norm in text[depth][0, 1:].double().norm(dim=-1)])
            assert other.first_norm[depth] == pytest.approx(first, rel=1e-4)
            assert other.other_norm[depth] == pytest.approx(others, rel=1e-4)
    check_equal(results[0], results[1], rtol=1e-4)
    check_equal(results[0], results[2], rtol=1e-3)


def test_texts_of_one_token_have_no_ratio_and_no_sink() -> None:
    tables = states((1, 1))
    tables[Site.RESID_POST, 1] = [table * 1e9 for table in tables[Site.RESID_POST, 1]]
    result = observed(SinkNorms(), tables, anatomy(2)).result(PROVENANCE)
    assert result.first_norm.isfinite().all() and result.jump.isfinite().all()
    assert result.other_norm.isnan().all() and result.ratio.isnan().all() and math.isnan(result.largest_ratio)
    assert result.layer is None and result.n_others == 0 and result.by_position[:, 1:].isnan().all()
    assert not result.to_frame().empty


def test_a_planted_jump_is_the_layer() -> None:
    tables = states((9, 8))
    for text in tables[Site.RESID_POST, 1]:
        text[0] *= 50
    result = observed(SinkNorms(), tables, anatomy(2)).result(PROVENANCE)
    assert result.layer == 1 and result.largest_ratio > 20 and result.top(1) == [1]
    with pytest.raises(InputError, match="k = 3"):
        result.top(3)


def test_only_real_layers_of_a_folded_model_are_the_same() -> None:
    """Centring the weights of a LayerNorm model changes norms; folding nothing does not; RMS norms cannot centre."""
    corpus_rows = random_tokens(3, 9).tolist()

    def measured(family: str, **options: bool) -> Tensor:
        model = load_model(fresh(family))
        if options:
            model.enable_compatibility_mode(**options)
        corpus = Corpus.from_tokens(corpus_rows, model=model)
        result = CorpusCache(model, corpus).run(SinkNorms())
        assert isinstance(result, SinkNormResult)
        return result.other_norm

    for family in ("gpt_neox", "llama"):
        raw = measured(family)
        torch.testing.assert_close(measured(family, no_processing=True), raw, rtol=1e-4, atol=1e-5)
        centred = measured(family, no_processing=False)
        assert ((centred - raw).abs() > 1e-3 * raw).any() == (family == "gpt_neox")


def test_the_store_gives_it_back(tmp_path: Path) -> None:
    result = observed(SinkNorms(), states(LENGTHS), anatomy(2)).result(PROVENANCE)
    result.save(tmp_path / "result")
    check_equal(SinkNormResult.load(tmp_path / "result"), result)


def test_bad_settings_and_unlike_states_are_refused() -> None:
    with pytest.raises(InputError, match="positions=0"):
        SinkNorms(0)
    one = observed(SinkNorms(), states((3,)), anatomy(2))
    for other in (observed(SinkNorms(5), states((3,)), anatomy(2)), observed(SinkNorms(), states((3,)), anatomy(3))):
        with pytest.raises(InputError):
            one.merge(other)
