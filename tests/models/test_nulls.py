"""Null models know nothing, have the sizes of the original, and leave it alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.models.nulls import reinitialised, shuffled
from tests.families import zoo
from tests.tiny_models import NAMES, families, fresh, random_tokens, tiny, tiny_tokenizer


def parts(model: Model) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Parameters of the plain view: weights, and those of norms."""
    module: Any = model.plain
    norms = {
        f"{name}.{key}"
        for name, part in module.named_modules()
        if isinstance(part, nn.LayerNorm) or type(part).__name__.endswith("RMSNorm")
        for key, _ in part.named_parameters()
    }
    named = dict(module.named_parameters())
    return {k: v for k, v in named.items() if k not in norms}, {k: v for k, v in named.items() if k in norms}


@pytest.mark.parametrize("family", families(*NAMES[:-1]))
def test_shuffled_weights_are_the_same_numbers_in_other_places(family: str) -> None:
    model = load_model(tiny(family))
    before = model.fingerprint()
    null = shuffled(model, seed=3)
    assert model.fingerprint() == before, "the original is left alone"
    (weights, norms), (drawn, kept) = parts(model), parts(null)
    assert weights.keys() == drawn.keys() and norms and norms.keys() == kept.keys()
    for name, weight in weights.items():
        assert torch.equal(weight.flatten().sort().values, drawn[name].flatten().sort().values), name
        if weight.unique().numel() > 1:
            assert not torch.equal(weight, drawn[name]), name
    assert all(torch.equal(norms[name], kept[name]) for name in norms)
    tokens = random_tokens(2, 9)
    with torch.no_grad():  # both views of the copy are one model, whatever TransformerLens splits
        torch.testing.assert_close(null.tl(tokens), null.plain_logits(tokens), atol=2e-4, rtol=2e-4)
        assert (null.tl(tokens) - model.tl(tokens)).abs().max() > 0.1


def test_reinitialised_weights_are_small_noise_and_no_bias() -> None:
    for family in ("llama", "gpt_neox"):
        model = load_model(fresh(family, initializer_range=0.05))
        weights, norms = parts(reinitialised(model, seed=1))
        assert all(torch.equal(kept, parts(model)[1][name]) for name, kept in norms.items())
        for name, weight in weights.items():
            if weight.ndim == 1:
                assert not weight.any(), name
            else:
                assert 0.04 < weight.std() < 0.06 and weight.mean().abs() < 0.01, name


def test_seeds_repeat_and_differ() -> None:
    model = load_model(tiny("llama"))
    for null in (shuffled, reinitialised):
        one, again, other = null(model, seed=1), null(model, seed=1), null(model, seed=2)
        assert one.fingerprint() == again.fingerprint() != other.fingerprint()
        assert one.name.startswith(model.name) and "seed 1" in one.name and one.name != other.name


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2", "gpt_neox", "gemma2"])
def test_a_copy_that_takes_the_place_of_an_earlier_one_is_as_good_as_new(family: str) -> None:
    model, tokens = load_model(tiny(family)), random_tokens(2, 9)
    before, earlier = model.fingerprint(), shuffled(model, seed=1)
    with torch.no_grad():
        earlier.run_with_cache(tokens)  # whatever is remembered of the old weights must go
        new, fresh_one = reinitialised(model, 2, earlier), reinitialised(model, 2)
        assert new.fingerprint() == fresh_one.fingerprint() and new.name == fresh_one.name
        assert model.fingerprint() == before
        torch.testing.assert_close(new.tl(tokens), fresh_one.tl(tokens))
        torch.testing.assert_close(new.plain_logits(tokens), fresh_one.plain_logits(tokens))
        for layer in range(model.anatomy.n_layers):
            for name in ("W_Q", "W_V", "W_O"):
                torch.testing.assert_close(getattr(new, name)[layer], getattr(fresh_one, name)[layer])
    with torch.no_grad():
        other = load_model(tiny("llama"))
        assert reinitialised(model, 2, other).fingerprint() == new.fingerprint() and other.name != new.name


def test_a_tied_embedding_stays_tied() -> None:
    null = shuffled(load_model(tiny("gpt2")))
    module: Any = null.plain
    assert module.lm_head.weight is module.transformer.wte.weight


def test_a_copy_reads_the_same_ids_though_the_tokenizer_is_gone_from_disk(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    model = load_model(tiny("llama"), tokenizer=tiny_tokenizer(folder))
    for file in folder.iterdir():
        file.unlink()
    null = shuffled(model)
    assert null.encode("w5 w6") == model.encode("w5 w6") == [0, 5, 6]
    assert torch.equal(null.to_tokens("w5 w6"), model.to_tokens("w5 w6"))
    assert null.tokenizer_fingerprint == model.tokenizer_fingerprint and null.bos_id == model.bos_id


def test_a_bridge_is_copied_whole() -> None:
    original = load_model(fresh("gpt2"))
    bridged = load_model(original.tl)  # its plain view is the wrapped module itself
    assert bridged.plain is original.tl.original_model
    null, tokens = shuffled(bridged, seed=1), random_tokens(2, 9)
    with torch.no_grad():
        torch.testing.assert_close(null.tl(tokens), null.plain_logits(tokens), atol=2e-4, rtol=2e-4)
        assert (null.tl(tokens) - bridged.tl(tokens)).abs().max() > 0.1


@pytest.mark.parametrize("null_of", [shuffled, reinitialised])
def test_what_training_learned_about_routing_is_gone_too(null_of: Any) -> None:
    """DeepSeek balances its experts by a buffer, which is no parameter."""
    model = load_model(zoo.build(zoo.families()["DeepSeek-V3"]))

    def biases(one: Model) -> list[torch.Tensor]:
        return [b for name, b in one.plain.named_buffers() if name.endswith("e_score_correction_bias")]  # pyright: ignore

    for bias in biases(model):
        bias.copy_(torch.arange(1.0, 1.0 + len(bias)))
    null = null_of(model, seed=1)
    again = null_of(model, seed=1, into=null_of(model, seed=2))
    assert biases(model) and all(not torch.equal(a, b) for a, b in zip(biases(null), biases(model), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(biases(null), biases(again), strict=True))
