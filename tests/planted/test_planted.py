"""What every planted model promises: its views agree, and its module is the architecture that it names."""

from __future__ import annotations

import pytest
import torch

from tests.planted.by_hand import (
    BUILDERS,
    planted,
)
from tests.planted.texts import repeats, words
from tests.planted.workbench import BOS, EOS, FAMILIES, GATED, PAD, PARALLEL, ROTARY
from tests.tiny_models import families


@pytest.mark.parametrize("family", families(*FAMILIES))
@pytest.mark.parametrize("builder", BUILDERS)
def test_the_views_agree_and_the_model_is_what_it_is_meant_to_be(builder: str, family: str) -> None:
    model = planted(builder, family).model  # load_model has checked the contract
    tokens = torch.tensor([repeats(20), [*words(40, seed=3), 5]])
    assert (model.tl(tokens) - model.plain_logits(tokens)).abs().max() < 1e-3
    anatomy = model.anatomy
    sizes = (anatomy.n_layers, anatomy.n_heads, anatomy.d_head, anatomy.d_model, anatomy.d_mlp, anatomy.d_vocab)
    assert len({*sizes, anatomy.n_ctx}) >= len(sizes)  # four layers and four heads in one family
    assert (anatomy.gated, anatomy.parallel) == (family in GATED, family in PARALLEL)
    assert (anatomy.n_kv_heads < anatomy.n_heads) == (family == "llama_gqa")
    assert (anatomy.positions == "standard") == (family not in ROTARY)
    assert model.special_ids == {BOS, EOS, PAD} and model.bos_id == BOS
    assert model.encode("w3 w62", prepend_bos=True) == [BOS, 3, 62]
    assert "bias" not in {name.rpartition(".")[2] for name, p in model.plain.named_parameters() if p.any()}
