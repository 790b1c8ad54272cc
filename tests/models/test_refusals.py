"""A model that breaks a promise is refused, and the message names the promise."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from mechrep.errors import ModelError
from mechrep.models.load import load_model
from mechrep.models.neurons import find_up_projections
from mechrep.models.parts import find_handles
from mechrep.models.sources import locate
from mechrep.models.wrapped import bridge
from tests.tiny_models import PARTS, fresh, random_tokens

pytestmark = pytest.mark.contract

_SMALL = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2}


def with_neighbours(stream: Tensor) -> Tensor:
    """What the texts of a batch have in common is added to each."""
    return stream + stream.mean(0, keepdim=True)


def with_later(stream: Tensor) -> Tensor:
    return stream + stream.mean(1, keepdim=True)


@pytest.mark.parametrize(
    ("part", "edit", "promise"),
    [
        ("model.layers.1.mlp", with_later, "a later token changes nothing before it"),
        ("model.layers.0.mlp", with_neighbours, "the same logits alone"),
        ("model.layers.0.mlp", torch.zeros_like, "removing all neurons of layer 0 changes the logits"),
        ("model.layers.2.mlp", lambda stream: stream * torch.nan, "logits are numbers"),
    ],
)
def test_a_broken_promise_is_named(part: str, edit: Callable[[Any], Any], promise: str) -> None:
    module = fresh("llama")
    load_model(module)
    module.get_submodule(part).register_forward_hook(lambda _module, _args, output: edit(output))
    with pytest.raises(ModelError, match=promise):
        load_model(module)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("site", ["hook_resid_post", "mlp.hook_post"])
def test_a_transformer_lens_view_that_computes_something_else_is_refused(
    family: str, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong_bridge(*args: Any) -> Any:
        made = bridge(*args)
        made.add_hook(f"blocks.1.{site}", lambda activation, hook: activation * 1.01, is_permanent=True)
        return made

    model = load_model(fresh(family))
    monkeypatch.setattr("mechrep.models.model.bridge", wrong_bridge)
    with pytest.raises(ModelError, match="two views that give the same logits"):
        _ = model.tl
    monkeypatch.undo()
    assert model.tl.cfg.n_layers == 3


def test_weights_put_in_later_are_seen_by_both_views() -> None:
    for family in ("llama", "gpt2", "gpt_neox"):
        module, tokens = fresh(family, seed=1), random_tokens(2, 9)
        model = load_model(module)
        before, print_before = model(tokens), model.fingerprint()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.data.mul_(0.9)  # no version counter sees this
        assert model.fingerprint() != print_before
        torch.testing.assert_close(model(tokens), module(tokens).logits, atol=1e-4, rtol=1e-4)
        assert (model(tokens) - before).abs().max() > 1e-3
        module.get_output_embeddings().weight = nn.Parameter(torch.zeros_like(module.get_output_embeddings().weight))
        torch.testing.assert_close(model(tokens), module(tokens).logits, atol=1e-4, rtol=1e-4)


def test_a_module_taken_for_another_is_refused() -> None:
    module = fresh("llama")
    handles = find_handles(module, 3)
    assert handles is not None
    swapped = dataclasses.replace(handles, activations=handles.activations[::-1])
    with pytest.raises(ModelError, match="up-projection in layer 0"):
        find_up_projections(module, swapped)


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
        (transformers.MambaConfig(**_SMALL, state_size=4), "without softmax attention"),
        (transformers.CTRLConfig(vocab_size=61, n_embd=32, dff=48, n_layer=2, n_head=4), "softmax attention"),
    ],
)
def test_other_architectures_are_refused(config: transformers.PretrainedConfig, complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        load_model(transformers.AutoModelForCausalLM.from_config(config).eval())


def test_a_name_that_is_nearly_an_embedded_one_is_refused_at_once() -> None:
    for name in ("mechrep-tinny", "mechrep-tiny-repeat", "mechrep_tiny"):
        with pytest.raises(ModelError, match="did you mean 'mechrep-tiny"):
            locate(name)


def test_without_a_network_the_hub_is_not_asked_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("socket.getaddrinfo", unknown)
    source = locate("someone/something")
    assert source.offline and not source.local
    begin = time.monotonic()
    with pytest.raises(ModelError, match="not known here"):
        load_model("someone/something")
    assert time.monotonic() - begin < 5
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "http://proxy"})
    assert not locate("someone/something").offline, "a proxy may know what this machine does not"
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: [])
    assert not locate("someone/something").offline
