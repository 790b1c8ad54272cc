"""Attention patterns of the plain view: those of TransformerLens and of transformers, and nothing left changed."""

from __future__ import annotations

import copy
import dataclasses
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from mechrep.errors import InputError
from mechrep.models.anatomy import Site
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.models.reading import View, choose_view, patterns_agree, read_activations
from tests.tiny_models import N_HEADS, N_LAYERS, PARTS, WITH_ALIBI, fresh, random_tokens, tiny

pytestmark = pytest.mark.contract

LAYERS = range(N_LAYERS)
LENGTHS = (24, 7, 1)  # three sliding windows long, less than one, and a single token
PADDED = random_tokens(len(LENGTHS), max(LENGTHS))


def loaded(family: str) -> Model:
    return load_model(copy.deepcopy(tiny(family)))


def patterns(model: Model, tokens: Tensor, view: View) -> list[Tensor]:
    seen: dict[int, Tensor] = {}

    def keep(pattern: Tensor, _site: Site, layer: int) -> None:
        assert layer not in seen
        seen[layer] = pattern.clone()

    read_activations(model, tokens, {Site.PATTERN: LAYERS}, keep, view=view)
    assert list(seen) == list(LAYERS)
    return list(seen.values())


def implementation(module: Any) -> str:
    return module.config._attn_implementation


@pytest.mark.parametrize("family", WITH_ALIBI)
def test_real_rows_of_a_padded_batch_are_those_of_each_text_alone(family: str) -> None:
    """Against TransformerLens, and against transformers asked for its attentions, one text at a time."""
    model, untouched = loaded(family), copy.deepcopy(tiny(family))
    untouched.set_attn_implementation("eager")
    assert choose_view(model, {Site.PATTERN}) == "plain"
    batch = patterns(model, PADDED, "auto")
    assert all(torch.equal(a, b) for a, b in zip(batch, patterns(model, PADDED, "plain"), strict=True))
    for row, length in enumerate(LENGTHS):
        text = PADDED[row : row + 1, :length]
        reference = patterns(model, text, "transformer_lens")
        witness = untouched(text, output_attentions=True).attentions
        for layer in LAYERS:
            real = batch[layer][row, :, :length, :length]
            torch.testing.assert_close(real, reference[layer][0], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(real, witness[layer][0], atol=1e-5, rtol=1e-4)
            assert (batch[layer][row, :, :length, length:] == 0).all()
    last = batch[-1]
    assert last.shape == (len(LENGTHS), N_HEADS, 24, 24) and last.std() > 0.05, "flat patterns would prove nothing"


def count_hooks(module: Any) -> int:
    return sum(len(part._forward_hooks) for part in module.modules())


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2", "gpt_neox", "mistral"])
def test_attention_is_step_by_step_only_while_patterns_are_read(family: str) -> None:
    model = loaded(family)
    before, twin = implementation(model.plain), implementation(model.tl.original_model)
    assert before != "eager"
    hooks = count_hooks(model.plain)  # transformers leaves its own on modules whose attention was once asked for
    logits = model.plain_logits(PADDED)

    def inside(_activation: Tensor, site: Site, _layer: int) -> None:
        assert implementation(model.plain) == ("eager" if Site.PATTERN in wanted else before)
        assert implementation(model.tl.original_model) == twin
        if site is Site.PATTERN and stop:
            raise ZeroDivisionError

    stop = False
    for wanted in ({Site.PATTERN}, {Site.PATTERN, Site.Z}, {Site.Z}):
        read_activations(model, PADDED, dict.fromkeys(wanted, LAYERS), inside, view="plain")
        assert implementation(model.plain) == before
    wanted, stop = {Site.PATTERN}, True
    with pytest.raises(ZeroDivisionError):
        read_activations(model, PADDED, {Site.PATTERN: LAYERS}, inside)
    assert (implementation(model.plain), implementation(model.tl.original_model)) == (before, twin)
    assert torch.equal(model.plain_logits(PADDED), logits)
    assert count_hooks(model.plain) == hooks


def test_parts_with_settings_of_their_own_get_them_back() -> None:
    model = loaded("llama")
    assert model.plain is not None and model.handles is not None and model.handles.attentions is not None
    part: Any = model.handles.attentions[1]
    part.config = copy.deepcopy(part.config)
    part.config._attn_implementation = "eager"
    patterns(model, PADDED, "plain")
    assert (implementation(model.plain), implementation(part)) == ("sdpa", "eager")


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2", "bloom"])
def test_one_layer_exists_at_a_time(family: str) -> None:
    alive: list[weakref.ref[Tensor]] = []
    model = loaded(family)

    def receive(pattern: Tensor, _site: Site, _layer: int) -> None:
        assert all(reference() is None for reference in alive)
        alive.append(weakref.ref(pattern))

    assert patterns_agree(model)
    read_activations(model, PADDED, {Site.PATTERN: LAYERS}, receive, view="plain")
    assert len(alive) == N_LAYERS


def test_layers_above_the_last_one_asked_for_are_not_run() -> None:
    model = loaded("gpt_neox")
    assert model.plain is not None and patterns_agree(model)
    ran: list[int] = []
    for layer in LAYERS:
        PARTS["gpt_neox"].of(model.plain, "attention_output", layer).register_forward_hook(
            lambda _module, _args, _out, layer=layer: ran.append(layer)
        )
    read_activations(model, PADDED, {Site.PATTERN: [1]}, lambda *_: None)
    assert ran == [0, 1]


def no_weights(_module: Any, _args: Any, output: Any) -> Any:
    return output[0], None


def weights_of_other_heads(_module: Any, _args: Any, output: Any) -> Any:
    return output[0], None if output[1] is None else output[1].roll(1, dims=1)


def weights_of_another_shape(_module: Any, _args: Any, output: Any) -> Any:
    return output[0], None if output[1] is None else output[1][:, :2]


@pytest.mark.parametrize("returned", [no_weights, weights_of_other_heads, weights_of_another_shape])
def test_a_module_that_returns_no_pattern_or_another_is_read_through_transformer_lens(returned: Any) -> None:
    module, sound = fresh("llama_gqa"), load_model(fresh("llama_gqa"))
    module.model.layers[2].self_attn.register_forward_hook(returned)
    model = load_model(module)
    assert not patterns_agree(model) and patterns_agree(sound)
    assert choose_view(model, {Site.PATTERN}) == "transformer_lens"
    assert choose_view(model, {Site.Z}) == "plain"
    expected = patterns(sound, PADDED, "transformer_lens")
    assert all(torch.equal(a, b) for a, b in zip(patterns(model, PADDED, "auto"), expected, strict=True))
    with pytest.raises(InputError, match="view='plain' for pattern"):
        read_activations(model, PADDED, {Site.PATTERN: LAYERS}, lambda *_: None, view="plain")


def test_a_family_without_a_known_attention_module_is_read_through_transformer_lens() -> None:
    model = load_model(tiny("gpt2"), check=False)
    assert model.handles is not None
    model.handles = dataclasses.replace(model.handles, attentions=(None,) * N_LAYERS)
    assert choose_view(model, {Site.PATTERN}) == "transformer_lens"


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2", "gemma2"])
def test_a_given_bridge_serves_its_patterns_too(family: str) -> None:
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    module = copy.deepcopy(tiny(family))
    model = load_model(build_bridge_from_module(module, type(module).__name__, hf_config=module.config))
    before = implementation(model.plain)
    expected = patterns(loaded(family), PADDED, "plain")
    for view in ("auto", "transformer_lens"):
        for got, wanted in zip(patterns(model, PADDED, view), expected, strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
    assert implementation(model.plain) == before


def test_processed_weights_are_read_where_they_were_processed() -> None:
    model = loaded("llama")
    assert patterns_agree(model)
    model.enable_compatibility_mode()
    assert choose_view(model, {Site.PATTERN}) == "transformer_lens"
    with pytest.raises(InputError, match="a model with a plain view"):
        choose_view(model, {Site.PATTERN}, "plain")


def test_half_precision_agrees_too() -> None:
    model = load_model(copy.deepcopy(tiny("llama_gqa")).bfloat16())
    assert choose_view(model, {Site.PATTERN}) == "plain"
