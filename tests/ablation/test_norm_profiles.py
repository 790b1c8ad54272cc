"""Norm ratios under many interventions at once are those of one intervention after the other."""

from __future__ import annotations

import pytest
import torch

from mechrep.ablation.norm_profiles import norm_profiles
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.interventions.ops import Heads, Neurons
from mechrep.measures.sink_norms import SinkNorms
from mechrep.models.load import load_model
from mechrep.text.corpus import Corpus
from tests.tiny_models import families, tiny


@pytest.mark.parametrize("family", families("llama_gqa", "gpt2", "gpt_neox", "gemma2"))
def test_many_at_once_are_one_after_the_other(family: str) -> None:
    model = load_model(tiny(family))
    rows = [[3, 9, 4, 8, 7, 6], [3, 5, 5], [3, 11, 12, 2, 9]]
    corpus = Corpus.from_tokens(rows, model=model, attention_mask=True)
    last = model.anatomy.n_layers - 1
    changes = [
        None,
        Neurons([(last, 3), (last, 1)], "zero", when="all"),
        Neurons([(0, 2)], "zero", when="all"),
        Heads([(last, 0)], when="all"),
        Neurons([(0, 1), (last, 2)], "zero", when="all"),
    ]
    together = norm_profiles(model, corpus, changes)
    for ratios, change in zip(together, changes, strict=True):
        alone = CorpusCache(model, corpus, intervention=change, progress=False).run(SinkNorms())
        torch.testing.assert_close(ratios[1:], alone.ratio[1:], rtol=1e-5, atol=1e-5)
    assert together[:, 0].isnan().all() and norm_profiles(model, corpus, changes, last=1).shape == (5, 2)
