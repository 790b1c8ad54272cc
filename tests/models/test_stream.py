"""What really reaches the residual stream and the logits, on families that have something behind their modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mechrep.models.anatomy import Site
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.models.reading import read_activations
from mechrep.models.stream import FrozenNorm, Stream
from tests.families import zoo

# Norms behind, multipliers, factors and caps of the logits, experts, sequential and parallel blocks.
BEHIND = ("Gemma 2", "Gemma 3", "OLMo 2", "GLM-4", "Granite", "Cohere", "Falcon-H1", "GPT-2", "Qwen2-MoE", "MiniCPM3")


@pytest.fixture(scope="module", params=BEHIND)
def model(request: pytest.FixtureRequest) -> Model:
    return load_model(zoo.build(zoo.families()[request.param]))


def read(model: Model, sites: tuple[Site, ...], layer: int) -> dict[Site, Tensor]:
    seen: dict[Site, Tensor] = {}
    tokens = torch.tensor([zoo.text(12)])
    read_activations(model, tokens, {s: [layer] for s in sites}, lambda a, s, _l: seen.__setitem__(s, a.clone()))
    return seen


def test_a_weight_behind_a_norm_becomes_one_before_it() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, weight = torch.randn(5, 8, generator=generator) + 3, torch.randn(8, 4, generator=generator)
    gain, bias = torch.rand(8, generator=generator) + 0.5, torch.randn(8, generator=generator)
    layer, rms = torch.nn.LayerNorm(8), torch.nn.RMSNorm(8, eps=1e-6)
    for module, size in ((layer, vectors.std(-1, correction=0)), (rms, vectors.square().mean(-1).sqrt())):
        module.load_state_dict({"weight": gain, "bias": bias} if module is layer else {"weight": gain})
        norm = FrozenNorm.of(module, 8, weight)
        assert norm.centred == (module is layer)
        expected = (module(vectors) - module(torch.zeros(8))) * size[:, None] @ weight
        torch.testing.assert_close(vectors @ norm.fold(weight), expected, atol=1e-3, rtol=1e-4)


def test_heads_and_biases_add_up_to_what_attention_writes(model: Model) -> None:
    stream = Stream(model)
    for layer in range(model.anatomy.n_layers):
        seen = read(model, (Site.Z, Site.ATTN_OUT), layer)
        z, bias = seen[Site.Z].double(), stream.output_bias(layer)
        parts = torch.einsum("bphd,hdm->bphm", z, stream.head_outputs(layer).double())
        constant = torch.zeros_like(parts[:, :, :1]) if bias is None else bias.double().expand_as(parts[:, :, :1])
        parts = torch.cat([parts, constant], 2)
        behind = stream.behind(layer, "attention")
        added = stream.contributions(layer, "attention", parts, parts.sum(2)).sum(2)
        added = added if behind is None else added + behind.bias
        torch.testing.assert_close(added, seen[Site.ATTN_OUT].double(), atol=1e-4, rtol=1e-3)


def test_neurons_add_up_to_what_the_mlp_writes(model: Model) -> None:
    stream = Stream(model)
    for layer in range(model.anatomy.n_layers):
        sites = (Site.MLP_POST, Site.MLP_OUT, *((Site.ROUTER,) if model.anatomy.experts[layer] else ()))
        raw: list[Tensor] = []
        with stream.raw_outputs(layer, lambda output, raw=raw: raw.append(output.clone())):
            seen = read(model, sites, layer)
        output = raw[0].view_as(seen[Site.MLP_OUT])
        post = seen[Site.MLP_POST][..., : model.anatomy.neurons[layer]]
        factors = stream.neuron_factors(layer, post, seen.get(Site.ROUTER), output)
        behind, rows = stream.behind(layer, "mlp"), stream.neuron_outputs(layer)
        rows = rows if behind is None else behind.apply(rows)
        added = (post.double() * factors) @ rows.double()
        down: Any = model.handles.mlp_outputs[layer]  # pyright: ignore
        if getattr(down, "bias", None) is not None:
            added = added + down.bias
        torch.testing.assert_close(added, seen[Site.MLP_OUT].double(), atol=1e-4, rtol=1e-3)
        lengths = stream.neuron_lengths(layer)
        torch.testing.assert_close(lengths, rows.double().norm(dim=1))


def test_parts_add_up_to_the_residual_stream_and_the_stream_to_the_logits(model: Model) -> None:
    last = model.anatomy.n_layers - 1
    sites = (Site.RESID_PRE, Site.ATTN_OUT, Site.MLP_OUT, Site.RESID_POST)
    roles = model.trace.roles[last]  # pyright: ignore
    seen = read(model, sites, last)
    if roles.beside is None:
        made = seen[Site.RESID_PRE] + seen[Site.ATTN_OUT] + seen[Site.MLP_OUT]
        torch.testing.assert_close(made, seen[Site.RESID_POST], atol=1e-4, rtol=1e-4)
    expected = model.plain_logits(torch.tensor([zoo.text(12)]))
    torch.testing.assert_close(Stream(model).logits(seen[Site.RESID_POST]), expected, atol=1e-4, rtol=1e-3)


def test_the_unembedding_is_the_slope_of_the_logits_before_their_cap(model: Model) -> None:
    """A finite difference: the final norm's input moves, its scale held as it was."""
    stream = Stream(model)
    state = read(model, (Site.RESID_POST,), model.anatomy.n_layers - 1)[Site.RESID_POST][0, -1].double()
    step = torch.randn(len(state), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e-2
    norm = stream.final_norm
    moved = (state + step).float()[None]
    # the norm's own scale is taken out on both sides
    before = (stream.raw_logits(state.float()[None]).double() - _constant(stream)) * norm.scale(state.float()[None])
    after = (stream.raw_logits(moved).double() - _constant(stream)) * norm.scale(moved)
    expected = norm.apply(step.float()).double() @ stream.unembedding.double()
    scale = expected.abs().max()
    assert float(((after - before)[0] - expected).abs().max() / scale) < 2e-2


def _constant(stream: Stream) -> Tensor:
    bias = stream.final_norm.bias.double() @ stream.unembedding.double()
    own = stream.unembedding_bias
    return bias if own is None else bias + own.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "wanted"), [("Granite", (0.4, 0.4)), ("Falcon-H1", (0.9, 1.0)), ("Gemma 2", (1, 1))])
def test_what_a_layer_adds_is_found_where_it_is_little_beside_the_stream(
    name: str, wanted: tuple[float, float], dtype: torch.dtype
) -> None:
    family = zoo.families()[name]
    module = zoo.build(family)
    module.get_input_embeddings().weight[:, 5] = 1000.0  # one direction is huge, as in trained models
    trace = Model(None, module.to(dtype), tokenizer=None, name=name, revision=None).trace
    assert trace is not None
    for layer, role in enumerate(trace.roles):
        assert (role.multiplier, role.mlp_multiplier) == pytest.approx(wanted, rel=2e-2)
        assert role.attention_writes is family.part(module, layer, family.post_attention or family.attention)
        assert (role.beside is None) == (family.beside is None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_soft_cap_is_found_by_logits_that_it_hardly_touches(dtype: torch.dtype) -> None:
    module = zoo.build(zoo.families()["Gemma 2"])
    module.model.norm.weight.mul_(0.0).sub_(0.99 if dtype == torch.float32 else 0.0)
    trace = Model(None, module.to(dtype), tokenizer=None, name="", revision=None).trace
    assert trace is not None and trace.finish == (1.0, zoo.families()["Gemma 2"].softcap)


def test_a_second_mlp_is_not_taken_for_what_writes_beside_attention() -> None:
    module = zoo.build(zoo.families()["GraniteMoE hybrid"])
    module.get_input_embeddings().weight[:, 5] = 1000.0
    trace = Model(None, module.to(torch.bfloat16), tokenizer=None, name="", revision=None).trace
    assert trace is not None and all(role.beside is None for role in trace.roles)
