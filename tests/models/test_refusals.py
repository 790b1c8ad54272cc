"""A model that breaks a promise is refused, and the message names the promise."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
import transformers
from torch import Tensor

from mechrep.errors import ModelError
from mechrep.models.load import check_contract, load_model
from mechrep.models.model import Model
from tests.tiny_models import PARTS, fresh, random_tokens, tiny

pytestmark = pytest.mark.contract

_SMALL = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2}


SAME_LOGITS, SOME_EFFECT = "both views give the same logits", "removing all neurons of layer {} changes the logits"


@pytest.mark.parametrize(
    ("family", "hook", "edit", "promise"),
    [
        ("llama", "blocks.1.attn.hook_pattern", lambda t: t * 0.5, "attention rows of layer 1 sum to 1"),
        ("gpt2", "blocks.1.attn.hook_pattern", lambda t: t * 0.5, "attention rows of layer 1 sum to 1"),
        ("llama", "blocks.0.hook_resid_post", lambda t: t * 1.01, SAME_LOGITS),
        ("gpt2", "blocks.0.hook_resid_post", lambda t: t * 1.01, SAME_LOGITS),
        ("llama", "blocks.2.mlp.hook_post", lambda t: t + 0.1, "mlp_post of layer 2 is act.gate. times the up"),
        ("gpt2", "blocks.2.mlp.hook_post", lambda t: t + 0.1, SAME_LOGITS),  # without a gate this is the activation
        ("llama", "blocks.0.mlp.hook_out", torch.zeros_like, SOME_EFFECT.format(0)),
        ("gpt2", "blocks.1.mlp.hook_out", torch.zeros_like, SOME_EFFECT.format(1)),
    ],
)
def test_a_broken_promise_is_named(family: str, hook: str, edit: Callable[[Tensor], Tensor], promise: str) -> None:
    model = load_model(copy.deepcopy(tiny(family)))
    check_contract(model)
    model.tl.add_hook(hook, lambda activation, hook: edit(activation), is_permanent=True)
    with pytest.raises(ModelError, match=promise):
        check_contract(model)


def test_key_heads_that_are_not_the_stated_number_are_refused() -> None:
    model = load_model(copy.deepcopy(tiny("llama")))
    model.anatomy = dataclasses.replace(model.anatomy, n_heads=8, n_kv_heads=8)
    with pytest.raises(ModelError, match="8 key heads"):
        check_contract(model)


def test_views_of_different_weights_are_refused() -> None:
    one, other = load_model(fresh("llama", seed=1)), fresh("llama", seed=2)
    with pytest.raises(ModelError, match="both views give the same logits"):
        check_contract(Model(one.tl, other, tokenizer=None, name="two models", revision=None))


def test_a_module_taken_for_another_is_refused() -> None:
    model = load_model(tiny("llama"))
    assert model.handles is not None
    swapped = dataclasses.replace(model.handles, activations=model.handles.activations[::-1])
    model.handles = swapped
    with pytest.raises(ModelError, match="both views give the same neuron activations"):
        check_contract(model)


def test_a_model_whose_neurons_write_nothing_is_refused_unless_the_check_is_off() -> None:
    module = fresh("llama")
    with torch.no_grad():
        PARTS["llama"].of(module, "mlp_output", 0).weight.zero_()
    with pytest.raises(ModelError, match=r"removing all neurons of layer 0 .* check=False"):
        load_model(module)
    unchecked = load_model(module, check=False)
    assert unchecked.plain is module


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (transformers.MambaConfig(**_SMALL, state_size=4), "attention-free"),
        (
            transformers.MixtralConfig(
                **_SMALL, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, num_local_experts=2
            ),
            "mixture-of-experts",
        ),
        (
            transformers.CTRLConfig(vocab_size=61, n_embd=32, dff=48, n_layer=2, n_head=4),
            "decoder that TransformerLens",
        ),
    ],
)
def test_other_architectures_are_refused(config: transformers.PretrainedConfig, complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        load_model(transformers.AutoModelForCausalLM.from_config(config))


def test_a_decoder_without_known_modules_works_on_the_transformer_lens_view() -> None:
    """OPT flattens batch and position inside its MLP, so its modules cannot be edited row by row."""
    config = transformers.OPTConfig(
        **_SMALL, ffn_dim=48, num_attention_heads=4, max_position_embeddings=64, word_embed_proj_dim=32
    )
    module = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    expected = module(random_tokens(2, 9)).logits
    model = load_model(module)
    assert model.plain is None
    torch.testing.assert_close(model.plain_logits(random_tokens(2, 9)), expected, atol=1e-5, rtol=1e-4)
