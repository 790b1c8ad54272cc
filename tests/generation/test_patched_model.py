"""``PatchedModel`` is one pass over the whole text by hand, however the text reaches the model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import DynamicCache

from mechrep.errors import InputError
from mechrep.generation.decode import generate
from mechrep.generation.patched_model import PatchedModel
from mechrep.interventions import Neurons, SinkPatch
from mechrep.models.load import load_model
from mechrep.models.state import is_patched
from mechrep.text.corpus import Corpus
from tests.generation.patch_by_hand import BOS, LAYER, NEURONS, held, logits_by_hand, text_by_hand
from tests.tiny_models import families, random_tokens, tiny

# Sliding windows are shorter than the texts.
FAMILIES = families("llama_gqa", "gemma2", "mistral", "gpt2", "gpt_neox")
PATCH = SinkPatch(LAYER, NEURONS)
PAD = 2
TEXTS = [
    [BOS, *random_tokens(1, 13, seed=1)[0].tolist()],
    random_tokens(1, 9, seed=2)[0].tolist(),  # no BOS
    [BOS, *random_tokens(1, 4, seed=3)[0].tolist()],
    [BOS],
    [7],
]


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def padded(texts: Sequence[Sequence[int]], *, left: bool = True) -> dict[str, Tensor]:
    """Ids and mask of a batch."""
    width = max(map(len, texts))
    rows, masks = [], []
    for text in texts:
        pad = [PAD] * (width - len(text))
        rows.append([*pad, *text] if left else [*text, *pad])
        masks.append([0] * len(pad) + [1] * len(text) if left else [1] * len(text) + [0] * len(pad))
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}


def places(mask: Tensor) -> Tensor:
    """Position of every token in its text, as ``generate`` makes it."""
    return (mask.cumsum(1) - 1).clamp_min(0)


def module_of(family: str) -> nn.Module:
    return copy.deepcopy(tiny(family))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("left", [True, False])
@torch.no_grad()
def test_a_padded_batch_is_every_text_alone(family: str, left: bool) -> None:
    module, batch = module_of(family), padded(TEXTS, left=left)
    expected = [logits_by_hand(module, family, text) for text in TEXTS]
    untouched = module(torch.tensor([TEXTS[0]])).logits[0]
    assert (expected[0] - untouched).abs().max() > 0.01, "a patch without effect would prove nothing"
    with PatchedModel(module, PATCH) as patched:
        logits = patched(**batch, position_ids=places(batch["attention_mask"])).logits
    for row, text in enumerate(TEXTS):
        close(logits[row, -len(text) :] if left else logits[row, : len(text)], expected[row])
    close(module(torch.tensor([TEXTS[0]])).logits[0], untouched)


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_writes_what_recomputing_by_hand_writes(family: str) -> None:
    """Left padding, a prompt of BOS alone (the level comes with the first new token), a prompt without BOS."""
    module = module_of(family)
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": PAD}
    expected = [text_by_hand(module, family, text, 8)[-8:] for text in TEXTS]
    with PatchedModel(module, PATCH) as patched:
        for more in ({}, {"use_cache": False}, {"prefill_chunk_size": 3}):
            written = patched.generate(**padded(TEXTS), **options, **more)
            assert written[:, -8:].tolist() == expected, more


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_static_cache(family: str) -> None:
    module = module_of(family)
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": PAD}
    expected = [text_by_hand(module, family, text, 6)[-6:] for text in TEXTS]
    with PatchedModel(module, PATCH) as patched:
        written = patched.generate(**padded(TEXTS), **options, cache_implementation="static", disable_compile=True)
    assert written[:, -6:].tolist() == expected


@settings(max_examples=25)
@given(
    cuts=st.lists(st.integers(1, 5), min_size=1, max_size=16),
    lengths=st.lists(st.integers(1, 16), min_size=1, max_size=4),
    with_bos=st.lists(st.booleans(), min_size=4, max_size=4),
)
@torch.no_grad()
def test_any_pieces_of_any_batch(cuts: list[int], lengths: list[int], with_bos: list[bool]) -> None:
    """A left-padded batch in pieces of any length gives the logits of each whole text."""
    module = tiny("llama")
    tokens = random_tokens(len(lengths), 16, seed=sum(lengths)).tolist()
    texts = [([BOS] if bos else []) + row[:n] for row, n, bos in zip(tokens, lengths, with_bos, strict=False)]
    batch = padded(texts)
    mask, positions = batch["attention_mask"], places(batch["attention_mask"])
    with PatchedModel(module, PATCH) as patched:
        cache, pieces, begin = None, [], 0
        for cut in [*cuts, 99]:
            end = min(begin + cut, mask.shape[1])
            if begin == end:
                break
            out = patched(
                input_ids=batch["input_ids"][:, begin:end],
                attention_mask=mask[:, :end],
                position_ids=positions[:, begin:end],
                past_key_values=cache,
                use_cache=True,
            )
            pieces.append(out.logits)
            cache, begin = out.past_key_values, end
    logits = torch.cat(pieces, dim=1)
    for row, text in enumerate(texts):
        close(logits[row, -len(text) :], logits_by_hand(module, "llama", text))


def continued(patched: Any, cache: Any, ids: Sequence[Sequence[int]]) -> Tensor:
    """Logits of more tokens after what is in a cache."""
    with torch.no_grad():
        return patched(torch.tensor(ids), past_key_values=cache, use_cache=True).logits


def test_two_texts_that_take_turns_and_a_copied_prefix() -> None:
    module = tiny("llama")
    one, other = TEXTS[0], [BOS, *random_tokens(1, 13, seed=9)[0].tolist()]
    with PatchedModel(module, PATCH) as patched:
        caches = [DynamicCache(), DynamicCache()]
        logits: list[list[Tensor]] = [[], []]
        for begin in range(0, 14, 2):
            for number, text in enumerate((one, other)):
                logits[number].append(continued(patched, caches[number], [text[begin : begin + 2]])[0])
        copied = copy.deepcopy(caches[0])
        continued(patched, caches[0], [[9, 9, 9]])
        after_copy = continued(patched, copied, [[8]])
    for number, text in enumerate((one, other)):
        close(torch.cat(logits[number]), logits_by_hand(module, "llama", text))
    close(after_copy[0, -1], logits_by_hand(module, "llama", [*one, 8])[-1])


def test_caches_that_are_cropped_repeated_selected_and_reordered() -> None:
    module = tiny("llama")
    texts = [TEXTS[0], [BOS, *random_tokens(1, 13, seed=9)[0].tolist()]]
    with PatchedModel(module, PATCH) as patched:
        cache: Any = DynamicCache()
        continued(patched, cache, texts)
        cache.reorder_cache(torch.tensor([1, 0]))
        swapped = continued(patched, cache, [[8], [9]])
        cache.batch_repeat_interleave(2)
        repeated = continued(patched, cache, [[3], [4], [5], [6]])
        cache.batch_select_indices(torch.tensor([3]))
        selected = continued(patched, cache, [[10]])
        cache.crop(-16)  # BOS is left, the anchor is gone and comes anew
        cropped = continued(patched, cache, [[20, 21, 22]])
        cache.reset()
        fresh = continued(patched, cache, [[5, 6, 7]])

    def last(text: Sequence[int]) -> Tensor:
        return logits_by_hand(module, "llama", text)[-1]

    one, other = texts
    close(swapped[:, -1], torch.stack([last([*other, 8]), last([*one, 9])]))
    rows = [[*other, 8, 3], [*other, 8, 4], [*one, 9, 5], [*one, 9, 6]]
    close(repeated[:, -1], torch.stack([last(row) for row in rows]))
    close(selected[0, -1], last([*rows[3], 10]))
    assert len(rows[3]) + 1 - 16 == 1
    close(cropped[0, -1], last([BOS, 20, 21, 22]))
    close(fresh[0, -1], last([5, 6, 7]))


def test_beam_search_with_and_without_a_cache() -> None:
    """Without a cache every step is the whole text, which needs no memory."""
    module = tiny("llama")
    options: dict[str, Any] = {"max_new_tokens": 10, "num_beams": 4, "do_sample": False, "pad_token_id": PAD}
    with PatchedModel(module, PATCH) as patched:
        cached = patched.generate(**padded(TEXTS), **options)
        whole = patched.generate(**padded(TEXTS), **options, use_cache=False)
    assert cached.tolist() == whole.tolist()
    assert cached.tolist() != module.generate(**padded(TEXTS), **options).tolist()  # pyright: ignore


# --- the wrapper ---------------------------------------------------------------------------------------------------


def test_the_wrapper_stands_in_for_the_model_and_leaves_no_trace() -> None:
    module = module_of("llama")
    ids = torch.tensor([TEXTS[0]])
    with torch.no_grad():
        before = module(ids).logits
        hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())
        patched = PatchedModel(module, PATCH)
        assert is_patched(module) and patched.config is module.config and patched.device == ids.device
        assert patched.eval() is module and (patched(ids).logits != before).any()
        assert (module(ids).logits == patched(ids).logits).all(), "the model itself is patched"
        patched.remove()
        patched.remove()
        assert (module(ids).logits == before).all() and not is_patched(module)
    assert hooks == sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())
    with pytest.raises(AttributeError):
        patched.no_such_thing  # noqa: B018


def test_a_mechrep_model_and_several_layers() -> None:
    model = load_model(module_of("llama"))
    text = torch.tensor([TEXTS[0]])
    both = SinkPatch(0, [1, 2]) + SinkPatch(LAYER, NEURONS)
    with PatchedModel(model, both), torch.no_grad():
        assert model.plain is not None
        plain = model.plain(text).logits
    reference = model.run_with_hooks(text, fwd_hooks=both.hooks(model))
    close(plain, reference)
    assert not torch.allclose(reference, model.run_with_hooks(text, fwd_hooks=PATCH.hooks(model)))


def test_another_bos() -> None:
    module, text = tiny("llama"), [9, *TEXTS[1]]
    with PatchedModel(module, PATCH, bos_id=9), torch.no_grad():
        logits = module(torch.tensor([text])).logits[0]
    assert not torch.allclose(logits, logits_by_hand(module, "llama", text), rtol=1e-4, atol=1e-4)
    with torch.no_grad(), held(module, "llama", 1):
        close(logits, module(torch.tensor([text])).logits[0])


@torch.no_grad()
def test_what_cannot_be_right_is_refused() -> None:
    module = module_of("llama")
    ids = torch.tensor([TEXTS[0]])
    unpatched = DynamicCache()
    module(ids, past_key_values=unpatched, use_cache=True)
    with PatchedModel(module, PATCH) as patched:
        with pytest.raises(InputError, match="no row began under this patch"):
            patched(ids, past_key_values=unpatched, use_cache=True)
        with pytest.raises(InputError, match="embeddings in place of input_ids"):
            patched(inputs_embeds=module.get_input_embeddings()(ids))  # pyright: ignore
        with pytest.raises(InputError, match="several texts in one row"):
            patched(ids, position_ids=torch.tensor([[*range(7), *range(7)]]))
        with pytest.raises(InputError, match="attention_mask"):
            patched(ids, attention_mask=torch.ones(1, 3))
        with pytest.raises(InputError, match="run on its own"):
            module.get_submodule("model.layers.1.mlp")(torch.zeros(1, 2, 32))
        cache: Any = DynamicCache()
        patched(ids, past_key_values=cache, use_cache=True)
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys.repeat(2, 1, 1, 1), layer.values.repeat(2, 1, 1, 1)
        with pytest.raises(InputError, match="1 rows began"):
            patched(torch.tensor([[5], [5]]), past_key_values=cache, use_cache=True)


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        (Neurons([(1, 2)], when="all"), "on a plain model"),
        (SinkPatch(1, [2], when="last"), "on a plain model"),
        (SinkPatch(3, [2]), "layer 3"),
        (SinkPatch(1, [48]), "neuron 48"),
    ],
)
def test_patches_that_do_not_fit_are_refused_before_anything_is_hooked(patch: Any, message: str) -> None:
    module = module_of("llama")
    with pytest.raises(InputError, match=message):
        PatchedModel(module, patch)
    assert not is_patched(module) and not any(part._forward_hooks for part in module.modules())


def test_models_of_another_kind_and_the_engine_are_refused() -> None:
    with pytest.raises(InputError, match="Linear"):
        PatchedModel(nn.Linear(2, 2), PATCH)
    model = load_model(module_of("llama"))
    corpus = Corpus.from_tokens([TEXTS[0]], model=model)
    with PatchedModel(model, PATCH), pytest.raises(InputError, match="inside a PatchedModel"):
        generate(model, corpus, max_new_tokens=2)


def test_a_fused_gate_and_up_projection() -> None:
    """Phi-3 keeps gate and up-projection in one matrix; the same weights apart are a Llama."""
    from transformers import Phi3Config, Phi3ForCausalLM

    llama = module_of("llama")
    config: Any = llama.config
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "bos_token_id", "eos_token_id",
             "pad_token_id", "tie_word_embeddings")  # fmt: skip
    phi = Phi3ForCausalLM(Phi3Config(**{name: getattr(config, name) for name in sizes})).eval().requires_grad_(False)
    weights = llama.state_dict()
    for layer in range(3):
        at = f"model.layers.{layer}."
        attention = [weights.pop(f"{at}self_attn.{part}_proj.weight") for part in "qkv"]
        weights[f"{at}self_attn.qkv_proj.weight"] = torch.cat(attention)
        branches = [weights.pop(f"{at}mlp.{part}_proj.weight") for part in ("gate", "up")]
        weights[f"{at}mlp.gate_up_proj.weight"] = torch.cat(branches)
    phi.load_state_dict(weights)
    with PatchedModel(phi, PATCH), torch.no_grad():
        close(phi(torch.tensor([TEXTS[0]])).logits[0], logits_by_hand(llama, "llama", TEXTS[0]))
