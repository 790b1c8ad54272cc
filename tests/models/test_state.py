"""What the user does to the shared object after loading: honoured on every path, or refused; never stale numbers."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import mechrep
from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError, ModelError
from mechrep.interventions.apply import logits
from mechrep.measures.sink_norms import SinkNorms
from mechrep.models.anatomy import Site
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.models.reading import read_activations
from mechrep.models.state import byte_sums
from mechrep.text.corpus import Corpus
from tests.families import zoo
from tests.tiny_models import D_MODEL, fresh, random_tokens, tiny

TOKENS = random_tokens(2, 9)
PUSH = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(1)) * 5


def push(_module: Any, _args: Any, output: Any) -> Any:
    return (output[0] + PUSH, *output[1:]) if isinstance(output, tuple) else output + PUSH


def corpus(model: Model) -> Corpus:
    return Corpus.from_tokens([row.tolist() for row in TOKENS], model=model, bos_policy="absent")


def ratios(model: Model, store: Path | None = None) -> Tensor:
    return CorpusCache(model, corpus(model), store=store).run(SinkNorms()).ratio


# --- training mode --------------------------------------------------------------------------------------------------


def test_dropout_is_refused_on_every_path_of_the_plain_view() -> None:
    module = copy.deepcopy(tiny("gpt2"))
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.5
    model = load_model(module)
    texts = corpus(model)
    module.transformer.h[1].attn.train()  # one part is enough
    for path in (
        lambda: CorpusCache(model, texts).get(Site.RESID_POST, layers=[1]),
        lambda: mechrep.generate(model, texts, max_new_tokens=2),
        lambda: logits(model, TOKENS),
        lambda: model.plain_logits(TOKENS),
    ):
        with pytest.raises(InputError, match="training mode"):
            path()
    module.eval()
    assert torch.equal(model.plain_logits(TOKENS), model.plain_logits(TOKENS))


def test_an_object_in_training_mode_is_put_into_evaluation_mode_and_that_is_said() -> None:
    with pytest.warns(UserWarning, match="training mode"):
        model = load_model(copy.deepcopy(tiny("gpt2")).train())
    assert not any(part.training for part in model.plain.modules())  # pyright: ignore


# --- weights --------------------------------------------------------------------------------------------------------


def in_place(module: nn.Module) -> None:
    module.get_parameter(first_matrix(module)).mul_(1.5)


def behind_torchs_back(module: nn.Module) -> None:
    module.get_parameter(first_matrix(module)).data.mul_(1.5)


def rows_swapped(module: nn.Module) -> None:
    weight = module.get_parameter(first_matrix(module))
    weight.data[[0, 1]] = weight.data[[1, 0]]  # every sum over the whole stays


def put_in_anew(module: nn.Module) -> None:
    name = first_matrix(module)
    owner, _, last = name.rpartition(".")
    setattr(module.get_submodule(owner), last, nn.Parameter(module.get_parameter(name) * 1.5))


def first_matrix(module: nn.Module) -> str:
    return next(
        name
        for name, weight in module.named_parameters()
        if weight.ndim == 2 and any(end in name for end in ("q_proj", "c_attn", "query_key_value"))
    )


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2", "gpt_neox", "bloom"])
@pytest.mark.parametrize("change", [in_place, behind_torchs_back, rows_swapped, put_in_anew])
def test_both_views_the_fingerprint_and_the_store_follow_the_weights(family: str, change: Any, tmp_path: Path) -> None:
    module = fresh(family).requires_grad_(False)
    model = load_model(module)
    before, identity, queries = ratios(model, tmp_path), model.fingerprint(), model(TOKENS)
    assert model.fingerprint() == identity and torch.equal(ratios(model, tmp_path), before)
    change(module)
    assert model.fingerprint() != identity
    torch.testing.assert_close(model(TOKENS), module(TOKENS).logits, atol=1e-4, rtol=1e-4)
    assert (model(TOKENS) - queries).abs().max() > 1e-4
    assert torch.equal(ratios(model, tmp_path), ratios(load_model(module)))


# --- hooks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2", "gemma2"])
def test_a_hook_on_the_hugging_face_object_steers_both_views_and_no_store_answers(family: str, tmp_path: Path) -> None:
    module = fresh(family)
    model = load_model(module)
    before, identity = ratios(model, tmp_path), model.fingerprint()
    queries = CorpusCache(model, corpus(model)).get(Site.Q, layers=[2])
    layer = model.handles.layers[0]  # pyright: ignore
    hook = layer.register_forward_hook(push)
    steered = ratios(model, tmp_path)
    assert model.steered and model.fingerprint() not in (identity, model.fingerprint())
    assert not torch.allclose(steered, before) and torch.equal(steered, ratios(model))
    assert not torch.allclose(CorpusCache(model, corpus(model)).get(Site.Q, layers=[2]), queries)
    torch.testing.assert_close(model(TOKENS), module(TOKENS).logits, atol=1e-4, rtol=1e-4)
    hook.remove()
    assert not model.steered and model.fingerprint() == identity
    torch.testing.assert_close(CorpusCache(model, corpus(model)).get(Site.Q, layers=[2]), queries)
    assert torch.equal(ratios(model, tmp_path), before)


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2"])
def test_hooks_added_through_transformer_lens_are_honoured_by_reading_and_writing(family: str, tmp_path: Path) -> None:
    module = fresh(family)
    model = load_model(module)
    texts, before = corpus(model), ratios(model, tmp_path)
    written = [mechrep.generate(model, texts, max_new_tokens=4).row(i) for i in range(2)]

    def steer(activation: Tensor, hook: Any = None) -> Tensor:
        return activation + PUSH

    by_hand = copy.deepcopy(module)
    load_model(by_hand).handles.layers[0].register_forward_hook(push)  # pyright: ignore
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_post", steer)]):
        torch.testing.assert_close(ratios(model, tmp_path), ratios(load_model(by_hand)), atol=1e-4, rtol=1e-4)
        longer = mechrep.generate(model, texts, max_new_tokens=4)
        torch.testing.assert_close(logits(model, TOKENS), by_hand(TOKENS).logits, atol=1e-4, rtol=1e-4)
    expected = mechrep.generate(load_model(by_hand), texts, max_new_tokens=4)
    assert [longer.row(i) for i in range(2)] == [expected.row(i) for i in range(2)] != written
    assert torch.equal(ratios(model, tmp_path), before)
    model.add_hook("blocks.0.hook_resid_post", steer)
    torch.testing.assert_close(ratios(model), ratios(load_model(by_hand)), atol=1e-4, rtol=1e-4)
    model.reset_hooks()
    assert torch.equal(ratios(model, tmp_path), before)


def test_hooks_on_both_views_are_refused() -> None:
    model = load_model(fresh("llama"))
    model.add_hook("blocks.0.hook_resid_post", lambda activation, hook=None: activation + PUSH)
    model.handles.layers[1].register_forward_hook(push)  # pyright: ignore
    with pytest.raises((InputError, ModelError), match="hooks"):
        ratios(model)


def test_interventions_go_with_a_hook_of_the_users_own() -> None:
    module = fresh("llama_gqa")
    model = load_model(module)
    model.handles.layers[0].register_forward_hook(push)  # pyright: ignore
    cut = mechrep.Neurons([(1, 3)], when="all")
    down = module.model.layers[1].mlp.down_proj

    def without(_module: Any, args: Any) -> Any:
        kept = args[0].clone()
        kept[..., 3] = 0
        return (kept,)

    found = logits(model, TOKENS, cut)
    hook = down.register_forward_pre_hook(without)
    torch.testing.assert_close(found, module(TOKENS).logits, atol=1e-5, rtol=1e-5)
    hook.remove()


# --- everything else that decides what the object computes ------------------------------------------------------------


def _epsilon(module: Any) -> None:
    module.model.layers[1].input_layernorm.variance_epsilon = 1.0


def _scale(module: Any) -> None:
    module.model.layers[1].self_attn.scaling *= 3


def _rotary(module: Any) -> None:
    module.model.rotary_emb.inv_freq.mul_(0.5)


def _other_rotary(module: Any) -> None:
    module.model.rotary_emb.inv_freq = module.model.rotary_emb.inv_freq * 0.5


def _forward(module: Any) -> None:
    mlp = module.model.layers[0].mlp
    usual = mlp.forward
    mlp.forward = lambda x: 3 * usual(x)


def _pruned(module: Any) -> None:
    prune.l1_unstructured(module.model.layers[1].mlp.down_proj, "weight", 0.5)


@pytest.mark.parametrize("change", [_epsilon, _scale, _rotary, _other_rotary, _forward, _pruned])
def test_settings_buffers_and_another_forward_are_seen_by_both_views_and_the_store(change: Any, tmp_path: Path) -> None:
    module: Any = copy.deepcopy(tiny("llama_gqa"))
    model = load_model(module)
    before, _ = ratios(model, tmp_path), model.tl
    change(module)
    wanted = module(TOKENS, use_cache=False).logits
    assert not torch.equal(ratios(model), before)
    assert torch.equal(ratios(model, tmp_path), ratios(model))
    assert torch.equal(logits(model, TOKENS), wanted)
    assert torch.allclose(model(TOKENS), wanted, atol=1e-4)


def test_a_hook_for_all_modules_is_one_of_the_users_own(tmp_path: Path) -> None:
    module: Any = copy.deepcopy(tiny("llama_gqa"))
    model = load_model(module)
    before = ratios(model, tmp_path)
    mlp = module.model.layers[0].mlp
    hook = nn.modules.module.register_module_forward_hook(lambda part, _args, out: 2 * out if part is mlp else None)
    try:
        assert model.steered and not torch.equal(ratios(model, tmp_path), before)
    finally:
        hook.remove()
    assert torch.equal(ratios(model, tmp_path), before)


def test_torchs_own_hooks_on_the_transformer_lens_view_are_honoured() -> None:
    module: Any = copy.deepcopy(tiny("llama_gqa"))
    model = load_model(module)
    hook = module.model.layers[0].register_forward_hook(push)
    wanted = module(TOKENS, use_cache=False).logits
    hook.remove()
    hook = model.tl.blocks[0].register_forward_hook(push)
    assert torch.allclose(logits(model, TOKENS), wanted, atol=1e-4) and model.steered
    hook.remove()
    assert model.fast and not model.steered


@pytest.mark.parametrize("place", ["layers.1.mlp", "layers.1.mlp.act_fn", "layers.2", "embed_tokens"])
def test_other_parts_than_those_that_were_loaded_are_refused_until_it_is_loaded_again(place: str) -> None:
    module: Any = copy.deepcopy(tiny("llama_gqa"))
    model = load_model(module)
    parent, _, name = place.rpartition(".")
    setattr(module.model.get_submodule(parent), name, copy.deepcopy(module.model.get_submodule(place)))
    for path in (lambda: ratios(model), lambda: logits(model, TOKENS), lambda: model.tl, lambda: model(TOKENS)):
        with pytest.raises(InputError, match="parts"):
            path()
    assert torch.equal(logits(load_model(module), TOKENS), module(TOKENS, use_cache=False).logits)


def test_what_was_read_inside_a_patched_model_is_not_filed_as_the_model(tmp_path: Path) -> None:
    module: Any = copy.deepcopy(tiny("llama_gqa"))
    model, other = load_model(module), load_model(module)
    before, _ = ratios(model, tmp_path), other.tl
    with mechrep.PatchedModel(module, mechrep.SinkPatch(0, [3])):
        assert torch.equal(ratios(other, tmp_path), ratios(other)) and other.steered
        with pytest.raises(InputError, match="PatchedModel"):
            other(TOKENS)
    assert torch.equal(ratios(other, tmp_path), before)


def test_what_was_read_under_autocast_is_not_filed_as_the_model(tmp_path: Path) -> None:
    model = load_model(copy.deepcopy(tiny("llama_gqa")))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = ratios(model, tmp_path)
        assert torch.equal(ratios(model, tmp_path), rounded)
    assert not torch.equal(ratios(model, tmp_path), rounded)


def test_a_fingerprint_stays_as_it_is_while_the_model_is_used() -> None:
    model = load_model(copy.deepcopy(tiny("llama_gqa")))
    before = model.fingerprint()
    mechrep.generate(model, corpus(model), max_new_tokens=3)
    CorpusCache(model, corpus(model)).get(Site.PATTERN)
    view = model.tl
    model(TOKENS)
    assert model.fingerprint() == before and model.tl is view
    assert load_model(copy.deepcopy(tiny("llama_gqa"))).fingerprint() == before


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_compiled_later_is_refused_because_hooks_can_be_passed_over(whole: bool) -> None:
    module: Any = copy.deepcopy(tiny("llama_gqa"))
    model = load_model(module)
    if whole:
        module.compile(backend="eager")
    else:
        module.model.layers[0].forward = torch.compile(module.model.layers[0].forward, backend="eager")
    for path in (lambda: ratios(model), lambda: logits(model, TOKENS)):
        with pytest.raises(InputError, match="compiled"):
            path()


def test_bytes_are_summed_of_pieces_of_longer_tensors_too() -> None:
    for whole in (torch.arange(20, dtype=torch.bfloat16), torch.arange(20.0), torch.arange(20) > 3):
        for begin in range(4):
            piece = whole[begin:]
            assert byte_sums(piece) == byte_sums(piece.clone())
            assert byte_sums(piece) != byte_sums(piece.flip(0))


def test_a_forward_of_the_users_own_on_experts_is_neither_passed_over_nor_lost() -> None:
    model = load_model(zoo.build(zoo.families()["Mixtral"]))
    assert model.handles is not None
    experts: Any = model.handles.experts[0]
    usual = experts.forward
    own = experts.forward = lambda *args, **named: 2 * usual(*args, **named)
    with pytest.raises(ModelError, match="forward"):
        read_activations(model, model.probe_tokens(), {Site.MLP_POST: [0]}, lambda *_: None)
    assert experts.forward is own
    del experts.forward
    experts.forward = functools.partial(type(experts).forward, experts)  # as accelerate leaves it
    left = experts.forward
    read_activations(model, model.probe_tokens(), {Site.MLP_POST: [0]}, lambda *_: None)
    assert experts.forward is left
