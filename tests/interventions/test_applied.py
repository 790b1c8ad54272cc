"""Reading and logits under an intervention: both views agree, and so do the hooks of the reference."""

from __future__ import annotations

import pytest
import torch

import mechrep
from mechrep.errors import InputError
from mechrep.interventions.apply import fingerprint_of, logits
from mechrep.interventions.ops import Heads, Neurons, SinkPatch
from mechrep.measures.sink_norms import SinkNorms
from mechrep.models.anatomy import Site

INTERVENTIONS = [
    Heads([(1, 0), (2, 1)], when="all"),
    Heads([(1, 0)], "to_bos", when="all"),
    Neurons([(0, 3), (3, 7)], "zero", when="all"),
    Neurons([(2, 5)], "add", site=Site.MLP_POST, when="all"),
    SinkPatch(1, [3, 8]),
    Heads([(1, 0)], when="all") + Neurons([(3, 7)], when="all"),
]


@pytest.fixture(scope="module")
def model() -> mechrep.Model:
    return mechrep.load_model("mechrep-tiny")


@pytest.fixture(scope="module")
def corpus(model: mechrep.Model) -> mechrep.Corpus:
    return mechrep.Corpus.from_tokens([[0, *range(30, 50)], [0, *range(60, 70)], [0, 9, 8, 9, 8, 9]], model=model)


@pytest.mark.parametrize("intervention", INTERVENTIONS, ids=lambda one: type(one).__name__)
def test_logits_are_those_of_the_reference(model, corpus, intervention) -> None:
    with torch.no_grad():
        reference = model.run_with_hooks(corpus.tokens, fwd_hooks=intervention.hooks(model))
    fast = logits(model, corpus.tokens, intervention)
    inside = torch.arange(corpus.tokens.shape[1])[None] < corpus.lengths[:, None]
    torch.testing.assert_close(fast[inside], reference[inside], atol=2e-4, rtol=1e-4)
    assert not torch.allclose(fast[inside], logits(model, corpus.tokens)[inside], atol=1e-3)


def test_edits_begin_where_each_row_says(model, corpus) -> None:
    one, starts = Heads([(1, 0)], when="from_onset"), torch.tensor([5, 3, 2])
    fast, clean = logits(model, corpus.tokens, one, starts=starts), logits(model, corpus.tokens)
    for row, start in enumerate(starts.tolist()):
        torch.testing.assert_close(fast[row, :start], clean[row, :start], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(fast[row, start], clean[row, start], atol=1e-4)
    with pytest.raises(InputError, match="starts"):
        logits(model, corpus.tokens, one)


@pytest.mark.parametrize("intervention", INTERVENTIONS, ids=lambda one: type(one).__name__)
def test_analyzers_read_under_an_intervention_alike_on_both_views(model, corpus, intervention, tmp_path) -> None:
    plain, reference = (
        mechrep.CorpusCache(model, corpus, view=view, intervention=intervention, batch_size=2, progress=False)
        for view in ("plain", "transformer_lens")
    )
    one, other = plain.run(SinkNorms()), reference.run(SinkNorms())
    torch.testing.assert_close(one.other_norm, other.other_norm, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(plain[Site.RESID_POST, 3], reference[Site.RESID_POST, 3], rtol=1e-3, atol=1e-3)
    clean = mechrep.CorpusCache(model, corpus, store=tmp_path).run(SinkNorms())
    kept = mechrep.CorpusCache(model, corpus, store=tmp_path, intervention=intervention).run(SinkNorms())
    assert not torch.equal(clean.other_norm, kept.other_norm), "the store keeps the two apart"


def test_only_interventions_at_every_position_can_be_read_under(model, corpus) -> None:
    with pytest.raises(InputError, match="when='all'"):
        mechrep.CorpusCache(model, corpus, intervention=Heads([(0, 0)], when="last"))


def test_the_fingerprint_knows_components_values_order_and_place(model) -> None:
    variants = [[None], *([one] for one in INTERVENTIONS), [Heads([(1, 0), (2, 1)], when="last")], [None, None]]
    assert len({fingerprint_of(model, one) for one in variants}) == len(variants)
    again = [Heads([(1, 0), (2, 1)], when="all")]
    assert fingerprint_of(model, again) == fingerprint_of(model, [INTERVENTIONS[0]])
