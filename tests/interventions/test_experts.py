"""Whole experts switched off: the output is what it is without what they write, and no other expert is scaled."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mechrep
from mechrep.ablation.score import token_losses
from mechrep.errors import InputError, MissingPartError
from mechrep.interventions.apply import logits
from mechrep.models.experts import ExpertShape, _factors
from tests.families.words import worded
from tests.families.zoo import text

TOKENS = torch.tensor([[0, *text(11)]])


@pytest.mark.parametrize("name", ["Mixtral", "DeepSeek-V3", "Llama 4"])
def test_an_expert_without_its_output_matrix(name: str) -> None:
    model, other = worded(name), worded(name)
    layer = model.anatomy.layers_with(mechrep.Site.ROUTER)[-1]
    changed = logits(model, TOKENS, mechrep.Experts([(layer, 1), (layer, 2)], when="all"))
    experts = other.handles.experts[layer]
    with torch.no_grad():
        experts.down_proj[1:3] = 0.0  # as if they had learned to write nothing
    assert torch.allclose(changed, other.plain_logits(TOKENS), atol=1e-4)
    assert (changed - model.plain_logits(TOKENS)).abs().max() > 1e-3


def test_what_does_not_exist_is_refused() -> None:
    model = worded("DeepSeek-V3")
    for wrong, error in (((0, 0), MissingPartError), ((1, 99), InputError)):
        with pytest.raises(error):
            logits(model, TOKENS, mechrep.Experts([wrong], when="all"))
    with pytest.raises(InputError):
        mechrep.Experts([(1, 0), (1, 0)])
    both = mechrep.Experts([(1, 0)], when="all") + mechrep.Neurons([(1, 0)], site="mlp_post", when="all")
    assert torch.isfinite(logits(model, TOKENS, both)).all()


def test_many_conditions_of_one_text_are_those_computed_alone() -> None:
    model = worded("DeepSeek-V3")
    corpus = mechrep.Corpus.from_tokens([[0, *text(31, seed=seed)] for seed in range(2)], model=model)
    cuts = [None, *(mechrep.Neurons([(1, number), (2, number)], when="all") for number in range(3))]
    together = token_losses(model, corpus, cuts)
    for place, cut in enumerate(cuts):
        assert torch.allclose(token_losses(model, corpus, [cut]), together[place : place + 1], atol=1e-5)


def test_neurons_of_a_shared_expert_are_held() -> None:
    model = worded("Qwen2-MoE")
    layer = model.anatomy.layers_with(mechrep.Site.ROUTER)[0]
    patch = mechrep.SinkPatch(layer, [model.anatomy.neurons[layer] - 1])
    with mechrep.PatchedModel(model, patch) as patched, torch.no_grad():
        held = patched(input_ids=TOKENS).logits
    assert torch.allclose(held, logits(model, TOKENS, patch), atol=1e-5)
    assert (held - model.plain_logits(TOKENS)).abs().max() > 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_clamped_experts_are_taken_apart_in_the_type_that_they_come_in(dtype: torch.dtype) -> None:
    experts: Any = worded("gpt-oss").handles.experts[0]
    draw = torch.Generator().manual_seed(0)
    raw = (3 * torch.randn(4000, 2 * ExpertShape.of(experts).neurons, generator=draw)).to(dtype)
    gate, act, up = _factors(experts, raw, gated=True)
    assert torch.equal(gate, raw[:, ::2])
    wanted = experts._apply_gate(raw.double())
    torch.testing.assert_close((act * up).double(), wanted, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)
