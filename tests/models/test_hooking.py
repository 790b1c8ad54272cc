"""Hooks of a :class:`Model`: names that exist, edits that take effect, folding that keeps the predictions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from mechrep.errors import InputError, ModelError
from mechrep.models.anatomy import NEURON_SITES
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.models.reading import read_activations
from tests.families import zoo
from tests.tiny_models import D_MODEL, FAMILIES, NAMES, families, fresh, random_tokens, tiny

TOKENS = random_tokens(2, 16)
MID = "blocks.1.hook_resid_mid"
WITH_MID = families(*(name for name in NAMES if name != "gpt_neox"))


@pytest.fixture
def model() -> Model:
    return load_model(copy.deepcopy(tiny("llama")))


def nothing(activation: Tensor, hook: Any) -> None:
    """A hook that only looks."""


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    ["blocks.1.mlp.hook_posst", ["blocks.0.hook_resid_pre", "blocks.1.mlp.hook_posst"], {"blocks.1.mlp.hook_posst"}],
)
def test_a_typo_in_names_filter_is_refused_with_close_names(model: Model, names: Any) -> None:
    with pytest.raises(InputError, match=r"hook_posst'.*did you mean blocks\.\d\.mlp\.hook_post"):
        model.run_with_cache(TOKENS, names_filter=names)


@pytest.mark.parametrize("way", ["run_with_hooks", "hooks", "add_hook"])
def test_a_typo_in_a_hook_is_refused_before_anything_runs(model: Model, way: str) -> None:
    ran: list[str] = []
    pairs = [
        ("blocks.0.hook_resid_pre", lambda activation, hook: ran.append("hook")),
        ("blocks.0.hook_resid_prae", nothing),
    ]
    with pytest.raises(InputError, match=r"did you mean blocks\.\d\.hook_resid_pre"):
        if way == "run_with_hooks":
            model.run_with_hooks(TOKENS, fwd_hooks=pairs)
        elif way == "add_hook":
            model.add_hook(*pairs[1])
        else:
            with model.hooks(pairs):
                ran.append("context")
    assert ran == []
    model(TOKENS)
    assert ran == []


def test_right_names_pass_under_every_spelling(model: Model) -> None:
    for names in (
        "blocks.1.mlp.hook_post",
        ["blocks.1.mlp.out.hook_in"],
        None,
        lambda name: name.endswith("hook_post"),
    ):
        _, cache = model.run_with_cache(TOKENS, names_filter=names)
        assert len(cache) >= 1
    _, cache = model.run_with_cache(TOKENS, names_filter=["hook_embed"])
    assert torch.equal(cache["hook_embed"], tiny("llama").get_input_embeddings()(TOKENS))


def test_hooks_go_when_the_context_ends_and_what_is_added_stays_until_reset(model: Model) -> None:
    clean = model(TOKENS)
    cut = ("blocks.0.mlp.hook_post", lambda activation, hook: torch.zeros_like(activation))
    with model.hooks([cut]) as same:
        assert same is model
        inside = model(TOKENS)
    assert (inside - clean).abs().max() > 0.1
    assert torch.equal(model(TOKENS), clean)
    model.add_hook(*cut)
    assert torch.equal(model(TOKENS), inside)
    model.reset_hooks()
    assert torch.equal(model(TOKENS), clean)


# --- the residual stream after attention ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", WITH_MID)
def test_an_edit_returned_at_resid_mid_replaces_the_stream(family: str) -> None:
    model = load_model(copy.deepcopy(tiny(family)))
    _, clean = model.run_with_cache(TOKENS)
    mid = clean["resid_mid", 1].clone()
    new = mid + torch.randn(mid.shape, generator=torch.Generator().manual_seed(0))

    def in_place(activation: Tensor, hook: Any) -> None:
        activation.copy_(new)

    returned = model.run_with_hooks(TOKENS, fwd_hooks=[(MID, lambda activation, hook: new)])
    upstream = [("blocks.1.hook_attn_out", lambda activation, hook: activation + (new - mid))]
    torch.testing.assert_close(returned, model.run_with_hooks(TOKENS, fwd_hooks=[(MID, in_place)]))
    torch.testing.assert_close(returned, model.tl.run_with_hooks(TOKENS, fwd_hooks=[(MID, in_place)]))
    torch.testing.assert_close(returned, model.run_with_hooks(TOKENS, fwd_hooks=upstream), atol=1e-4, rtol=1e-4)
    with model.hooks([(MID, lambda activation, hook: new)]):
        torch.testing.assert_close(model(TOKENS), returned)
    model.add_hook(MID, lambda activation, hook: new)
    torch.testing.assert_close(model(TOKENS), returned)


def test_the_stream_after_the_edit_holds_the_edit(model: Model) -> None:
    """What the wrapped model does without mechrep: the MLP sees the edit, the residual stream does not."""
    zeros = (MID, lambda activation, hook: torch.zeros_like(activation))
    seen: dict[str, Tensor] = {}
    names = ("blocks.1.hook_mlp_out", "blocks.1.hook_resid_post")
    keep = [(name, lambda activation, hook, name=name: seen.update({name: activation.clone()})) for name in names]
    model.run_with_hooks(TOKENS, fwd_hooks=[zeros, *keep])
    torch.testing.assert_close(seen[names[1]], seen[names[0]])
    model.tl.run_with_hooks(TOKENS, fwd_hooks=[zeros, *keep])
    assert (seen[names[1]] - seen[names[0]]).abs().max() > 0.1


def test_looking_at_resid_mid_changes_nothing(model: Model) -> None:
    assert torch.equal(model.run_with_hooks(TOKENS, fwd_hooks=[(MID, nothing)]), model(TOKENS))


def test_a_function_that_selects_resid_mid_is_refused(model: Model) -> None:
    with pytest.raises(InputError, match="explicit names"):
        model.run_with_hooks(TOKENS, fwd_hooks=[(lambda name: "hook_resid" in name, nothing)])
    harmless = [(lambda name: name.endswith("hook_resid_pre"), nothing)]
    assert torch.equal(model.run_with_hooks(TOKENS, fwd_hooks=harmless), model(TOKENS))


# --- weight processing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_processing_keeps_the_predictions_and_leaves_the_plain_view_alone(family: str) -> None:
    module = copy.deepcopy(tiny(family))
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    model = load_model(module)
    raw, fingerprint = model(TOKENS), model.fingerprint()
    model.enable_compatibility_mode()
    assert model.processed
    assert model.fingerprint() != fingerprint
    torch.testing.assert_close(model(TOKENS).log_softmax(-1), raw.log_softmax(-1), atol=1e-4, rtol=1e-4)
    assert all(torch.equal(parameter, before[name]) for name, parameter in module.named_parameters())
    assert torch.equal(module(TOKENS).logits, tiny(family)(TOKENS).logits)


def test_processing_did_something(model: Model) -> None:
    raw = model(TOKENS)
    model.enable_compatibility_mode()
    torch.testing.assert_close(model(TOKENS).mean(-1), torch.zeros(TOKENS.shape), atol=1e-4, rtol=0)
    assert raw.mean(-1).abs().max() > 0.01


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"vocab_size": D_MODEL}),
        ("llama", {"intermediate_size": D_MODEL}),
        ("gpt2", {"vocab_size": D_MODEL}),
        ("gpt2", {"n_inner": D_MODEL}),
        ("gpt_neox", {"intermediate_size": D_MODEL}),
    ],
)
def test_shapes_that_would_be_folded_wrongly_are_refused_untouched(family: str, changes: dict[str, int]) -> None:
    model = load_model(fresh(family, **changes))
    tokens = TOKENS.clamp_max(D_MODEL - 1)
    raw = model(tokens)
    with pytest.raises(ModelError, match=f"d_model = {D_MODEL}"):
        model.enable_compatibility_mode()
    assert not model.processed
    assert torch.equal(model(tokens), raw)


@pytest.mark.parametrize("name", ["LFM2", "Mixtral", "DeepSeek-V3", "OPT", "Gemma 2"])
def test_neuron_sites_that_a_model_has_can_be_read(name: str) -> None:
    model = load_model(zoo.build(zoo.families()[name]))
    for site in sorted(NEURON_SITES):
        seen: list[int] = []
        layers = model.anatomy.layers_with(site)
        read_activations(model, model.probe_tokens(), {site: layers}, lambda _a, _s, layer: seen.append(layer))  # noqa: B023
        assert tuple(seen) == layers
