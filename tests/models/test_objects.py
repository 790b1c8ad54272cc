"""Models given as TransformerLens objects: a ``TransformerBridge`` or, in 3.9, a ``HookedTransformer``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mechrep.errors import ModelError
from mechrep.generation.decode import Decoding, generate
from mechrep.interventions import Neurons, add
from mechrep.models.anatomy import Site
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.models.reading import read_activations
from mechrep.text.corpus import Corpus
from tests.tiny_models import D_MLP, D_MODEL, D_VOCAB, GATED, random_tokens, tiny

pytestmark = pytest.mark.contract

TOKENS = random_tokens(2, 20)


def bridged(family: str) -> Any:
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    module = copy.deepcopy(tiny(family))
    return build_bridge_from_module(module, type(module).__name__, hf_config=module.config)


def hooked(*, gated: bool) -> Any:
    """A small random model of TransformerLens 3's own class; its biases are not zero."""
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
    except ImportError:
        pytest.skip("this TransformerLens has no HookedTransformer any more")
    kind: dict[str, Any] = {"act_fn": "gelu_new", "normalization_type": "LN", "positional_embedding_type": "standard"}
    if gated:
        kind = {"act_fn": "silu", "normalization_type": "RMS", "positional_embedding_type": "rotary", "rotary_dim": 8}
    config = HookedTransformerConfig(
        n_layers=2, d_model=D_MODEL, n_ctx=64, d_head=8, n_heads=4, d_mlp=D_MLP, d_vocab=D_VOCAB, gated_mlp=gated,
        seed=0, device="cpu", **kind,
    )  # fmt: skip
    model = HookedTransformer(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 or name.endswith("b_in"):
                parameter.normal_(0, 0.3, generator=generator)
    return model.eval().requires_grad_(False)


def only(model: Model, site: Site) -> list[Tensor]:
    seen: list[Tensor] = []
    layers = range(model.anatomy.n_layers)
    read_activations(model, TOKENS, {site: layers}, lambda activation, _site, _layer: seen.append(activation.clone()))
    return seen


def greedy(logits: Callable[[Tensor], Tensor], prompt: list[int], steps: int) -> list[int]:
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(logits(torch.tensor([ids]))[0, -1].argmax()))
    return ids


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2", "gpt_neox", "gemma2", "bloom"])
def test_a_bridge_keeps_both_views_and_generates(family: str) -> None:
    bridge = bridged(family)
    model = load_model(bridge)
    assert model.tl is bridge
    assert model.plain is bridge.original_model
    assert model.anatomy.gated == (family in GATED)
    torch.testing.assert_close(model(TOKENS), tiny(family)(TOKENS).logits, atol=1e-4, rtol=1e-4)
    prompts = [row.tolist()[:length] for row, length in zip(random_tokens(3, 9), (3, 9, 6), strict=True)]
    edit = Neurons([(0, 2), (2, 5)], add(2.0), when="last")
    for intervention in (None, edit):
        texts = [
            generate(model, Corpus.from_tokens(prompts, model=model), max_new_tokens=10,
                     interventions=intervention, batch_size=2, decoding=Decoding(None, view=view))
            for view in ("plain", "transformer_lens")
        ]  # fmt: skip
        assert [texts[0].row(i) for i in range(3)] == [texts[1].row(i) for i in range(3)]
        if intervention is None:
            expected = [greedy(lambda x: tiny(family)(x).logits, prompt, 10) for prompt in prompts]
            assert [texts[0].row(i) for i in range(3)] == expected


def test_a_processed_bridge_has_only_the_view_that_was_processed() -> None:
    bridge = bridged("llama")
    bridge.enable_compatibility_mode(disable_warnings=True)
    model = load_model(bridge)
    assert model.processed
    assert model.plain is None
    torch.testing.assert_close(
        model(TOKENS).log_softmax(-1), tiny("llama")(TOKENS).logits.log_softmax(-1), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("gated", [False, True])
def test_a_hooked_transformer_works_on_its_one_view(gated: bool) -> None:
    tl = hooked(gated=gated)
    model = load_model(tl)
    assert (model.plain, model.is_bridge, model.anatomy.gated) == (None, False, gated)
    assert (model.anatomy.n_layers, model.anatomy.d_mlp, model.anatomy.d_vocab) == (2, D_MLP, D_VOCAB)
    _, cache = tl.run_with_cache(TOKENS)
    activation = torch.nn.functional.silu if gated else lambda x: torch.nn.functional.gelu(x, approximate="tanh")
    for layer, seen in enumerate(only(model, Site.GATE_ACT)):
        torch.testing.assert_close(seen, activation(cache["pre", layer]), atol=1e-5, rtol=1e-5)
    prompts = [[4, 5, 6], [7, 8, 9, 10, 11, 12]]
    corpus = generate(model, Corpus.from_tokens(prompts, model=model), max_new_tokens=8, decoding=Decoding(None))
    assert [corpus.row(i) for i in range(2)] == [greedy(tl, prompt, 8) for prompt in prompts]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("op", ["zero", "add"])
def test_edits_of_a_hooked_transformer_are_edits_of_its_activation_function(gated: bool, op: str) -> None:
    tl = hooked(gated=gated)
    model = load_model(tl)
    clean = tl(TOKENS)
    edit = Neurons([(0, 3), (0, 9), (1, 4)], op, when="all")
    edited = model.run_with_hooks(TOKENS, fwd_hooks=edit.hooks(model))
    for layer, neurons in ((0, [3, 9]), (1, [4])):
        tl.blocks[layer].mlp.act_fn = changed(tl.blocks[layer].mlp.act_fn, neurons, op)
    assert (edited - clean).abs().max() > 0.01
    torch.testing.assert_close(edited, tl(TOKENS), atol=1e-4, rtol=1e-4)


def changed(activation: Callable[[Tensor], Tensor], neurons: list[int], op: str) -> Callable[[Tensor], Tensor]:
    def wrapped(pre: Tensor) -> Tensor:
        out = activation(pre).clone()
        out[..., neurons] = 0.0 if op == "zero" else out[..., neurons] + 1.0
        return out

    return wrapped


def test_an_unembedding_that_torch_has_quantised_is_named() -> None:
    head: Any = nn.Module()
    head.weight = lambda: None  # a method, as in torch.ao
    module: Any = copy.deepcopy(tiny("llama_gqa"))
    module.lm_head = head.eval()
    with pytest.raises(ModelError, match="unembedding"):
        load_model(module)
