"""What mechrep needs from TransformerLens, on every family: two views of the same weights that say the same.

The third witness is the Hugging Face model itself, never seen by TransformerLens, read with plain torch hooks.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mechrep.models.anatomy import Site
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.models.reading import View, choose_view, read_activations
from tests import tiny_models
from tests.tiny_models import FAMILIES, GATED, GROUPED, PARTS, WITH_ALIBI, fresh, random_tokens, tiny

pytestmark = pytest.mark.contract

SITES = (Site.RESID_PRE, Site.RESID_POST, Site.GATE_ACT, Site.MLP_POST, Site.Z)
LAYERS = range(tiny_models.N_LAYERS)
TOKENS = random_tokens(2, 24)  # three sliding windows long


def read(model: Model, view: View) -> dict[tuple[Site, int], Tensor]:
    seen: dict[tuple[Site, int], Tensor] = {}

    def keep(activation: Tensor, site: Site, layer: int) -> None:
        assert (site, layer) not in seen
        seen[site, layer] = activation.clone()

    read_activations(model, TOKENS, dict.fromkeys(SITES, LAYERS), keep, view=view)
    return seen


def witness(family: str) -> dict[tuple[Site, int], Tensor]:
    """The same activations by torch hooks, and products written out, on a model that only transformers knows."""
    model, parts = copy.deepcopy(tiny(family)), PARTS[family]
    seen: dict[tuple[Any, int], Tensor] = {}

    def output(site: Any, layer: int) -> Any:
        return lambda _module, _args, out: seen.__setitem__((site, layer), out.clone())

    def entry(site: Any, layer: int) -> Any:
        return lambda _module, args: seen.__setitem__((site, layer), args[0].clone())

    for layer in LAYERS:
        parts.of(model, "activation", layer).register_forward_hook(output(Site.GATE_ACT, layer))
        parts.of(model, "attention_output", layer).register_forward_pre_hook(entry(Site.Z, layer))
        if parts.up_projection:
            parts.of(model, "up_projection", layer).register_forward_hook(output("up", layer))
    model.get_submodule(parts.final_norm).register_forward_pre_hook(entry(Site.RESID_POST, LAYERS[-1]))
    hidden = model(TOKENS, output_hidden_states=True).hidden_states
    for layer in LAYERS:
        seen[Site.RESID_PRE, layer] = hidden[layer]
        seen[Site.Z, layer] = seen[Site.Z, layer].unflatten(-1, (tiny_models.N_HEADS, -1))
        seen[Site.MLP_POST, layer] = seen[Site.GATE_ACT, layer] * seen.pop(("up", layer), torch.ones(()))
        if layer < LAYERS[-1]:
            seen[Site.RESID_POST, layer] = hidden[layer + 1]
    return seen


@pytest.mark.parametrize("family", WITH_ALIBI)
def test_anatomy_is_the_configuration(family: str) -> None:
    anatomy = load_model(tiny(family)).anatomy
    config = tiny(family).config
    assert (anatomy.n_layers, anatomy.n_heads, anatomy.d_model) == (3, 4, 32)
    assert (anatomy.d_head, anatomy.d_vocab) == (8, tiny_models.D_VOCAB)
    assert anatomy.d_mlp == (128 if family == "bloom" else tiny_models.D_MLP)
    assert anatomy.n_kv_heads == GROUPED.get(family, 4)
    assert anatomy.gated == (family in GATED)
    assert anatomy.parallel == (family == "gpt_neox")
    assert anatomy.architecture == type(tiny(family)).__name__
    assert anatomy.positions == {"gpt2": "standard", "bloom": "alibi"}.get(family, "rotary")
    assert anatomy.norm == ("RMS" if family in GATED else "LN")
    if family != "bloom":  # its configuration has no limit
        assert anatomy.n_ctx == config.max_position_embeddings
    expected = {"gpt_neox": {Site.RESID_MID, Site.UP_PROJ}}.get(family, set() if family in GATED else {Site.UP_PROJ})
    assert anatomy.missing == expected | {Site.ROUTER}


@pytest.mark.parametrize("family", WITH_ALIBI)
def test_logits_of_both_views_are_those_of_transformers(family: str) -> None:
    model = load_model(copy.deepcopy(tiny(family)))
    expected = tiny(family)(TOKENS).logits
    assert expected.std() > 0.5, "flat logits would prove nothing"
    torch.testing.assert_close(model.plain_logits(TOKENS), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(TOKENS), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", WITH_ALIBI)
def test_activations_of_both_views_are_those_of_torch_hooks(family: str) -> None:
    model = load_model(copy.deepcopy(tiny(family)))
    plain, reference, expected = read(model, "plain"), read(model, "transformer_lens"), witness(family)
    assert plain.keys() == reference.keys() == expected.keys()
    for place, value in expected.items():
        torch.testing.assert_close(plain[place], value, atol=1e-5, rtol=1e-5, msg=f"{place} differs")
        torch.testing.assert_close(reference[place], value, atol=1e-4, rtol=1e-4, msg=f"{place} differs")


@pytest.mark.parametrize("family", FAMILIES)
def test_gate_act_is_mlp_post_only_without_a_gate(family: str) -> None:
    seen = read(load_model(tiny(family)), "plain")
    for layer in LAYERS:
        difference = (seen[Site.GATE_ACT, layer] - seen[Site.MLP_POST, layer]).abs().max()
        assert difference > 0.1 if family in GATED else difference == 0


def test_reading_stops_early_and_refuses_what_a_view_lacks() -> None:
    model = load_model(copy.deepcopy(tiny("llama")))
    ran: list[int] = []
    assert model.plain is not None
    for layer in LAYERS:
        PARTS["llama"].of(model.plain, "activation", layer).register_forward_hook(
            lambda _module, _args, _out, layer=layer: ran.append(layer)
        )
    read_activations(model, TOKENS, {Site.MLP_POST: [0, 1]}, lambda *_: None, view="plain")
    assert ran == [0, 1]
    with pytest.raises(ValueError, match="scores"):
        read_activations(model, TOKENS, {Site.SCORES: [0]}, lambda *_: None, view="plain")
    with pytest.raises(ValueError, match="layer 3"):
        read_activations(model, TOKENS, {Site.Z: [3]}, lambda *_: None)
    assert choose_view(model, {Site.SCORES, Site.Z}) == "transformer_lens"
    assert choose_view(model, {Site.PATTERN, Site.Z}) == "plain"


@pytest.mark.parametrize("family", FAMILIES)
def test_views_share_their_parameters(family: str) -> None:
    module = fresh(family, seed=1)
    model = load_model(module)
    assert model.plain is module
    theirs = {parameter.data_ptr() for parameter in model.tl.parameters()}
    fused = ("c_attn", "query_key_value")  # TransformerLens splits these, and keeps the parts as its own
    apart = [n for n, p in module.named_parameters() if p.data_ptr() not in theirs and not any(f in n for f in fused)]
    assert not apart
    before = model.plain_logits(TOKENS)
    with torch.no_grad():
        PARTS[family].of(module, "mlp_output", 1).weight.mul_(-2)
    edited = model.plain_logits(TOKENS)
    assert (edited - before).abs().max() > 0.1
    torch.testing.assert_close(model(TOKENS), edited, atol=1e-4, rtol=1e-4)
    embedding = module.get_input_embeddings().weight
    (same,) = {id(p): p for p in model.tl.parameters() if p.data_ptr() == embedding.data_ptr()}.values()
    with torch.no_grad():
        same.mul_(torch.linspace(0.5, 1.5, same.shape[1]))
    again = model.plain_logits(TOKENS)
    assert (again - edited).abs().max() > 0.1
    torch.testing.assert_close(model(TOKENS), again, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_object_given_is_not_consumed_and_a_folder_is_the_same_model(family: str, tmp_path: Path) -> None:
    module = copy.deepcopy(tiny(family))
    names = [name for name, _ in module.named_parameters()]
    model = load_model(module)
    assert [name for name, _ in module.named_parameters()] == names
    module.save_pretrained(tmp_path)
    from_disk = load_model(tmp_path)
    torch.testing.assert_close(from_disk.plain_logits(TOKENS), model.plain_logits(TOKENS), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(from_disk(TOKENS), model(TOKENS), atol=1e-6, rtol=1e-6)
    assert from_disk.anatomy == model.anatomy
    assert from_disk.fingerprint() == model.fingerprint()
