"""``Heads``: both views give what transformers' own attention gives when its heads are edited by hand."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import DynamicCache

from mechrep.interventions import Heads, Intervention, Neurons, add, mean, resample, scale, to_bos
from mechrep.interventions.apply import EditTable
from mechrep.interventions.hooks import position_mask
from mechrep.models.anatomy import Site
from mechrep.models.load import load_model
from mechrep.models.model import Model
from tests.interventions.heads_by_hand import ByHand, Change, logits_by_hand
from tests.tiny_models import D_MLP, D_MODEL, N_HEADS, N_LAYERS, PARTS, families, loaded, random_tokens, tiny

FAMILIES = families("llama", "llama_gqa", "gpt2", "gpt_neox", "gemma2", "qwen2")
D_HEAD = D_MODEL // N_HEADS
TOKENS = random_tokens(3, 18)
STARTS = torch.tensor([0, 7, 17])
EVERYWHERE = torch.zeros(3, dtype=torch.long)
UNITS = [(0, 1), (0, 2), (1, 3), (2, 0)]
NEURONS = [(0, 3), (0, 40), (1, 5), (2, 7)]
TABLE = torch.randn(N_LAYERS, N_HEADS, D_HEAD, generator=torch.Generator().manual_seed(1))
BANK = torch.randn(4, N_LAYERS, N_HEADS, D_HEAD, generator=torch.Generator().manual_seed(2))

OPS: dict[str, tuple[Any, Change | None]] = {
    "zero": ("zero", lambda z, layer, head: torch.zeros_like(z)),
    "scale": (scale(-2.5), lambda z, layer, head: z * -2.5),
    "add": (add(TABLE), lambda z, layer, head: z + TABLE[layer, head]),
    "mean": (mean(TABLE), lambda z, layer, head: TABLE[layer, head].expand_as(z)),
    "to_bos": ("to_bos", None),
}


def reference(
    model: Model, intervention: Intervention, starts: Tensor | None = STARTS, texts: Sequence[int] | None = None
) -> Tensor:
    return model.run_with_hooks(TOKENS, fwd_hooks=intervention.hooks(model, starts, texts=texts))


def fast(
    model: Model,
    interventions: Sequence[Intervention | None],
    starts: Tensor = STARTS,
    texts: Sequence[int] = (0, 1, 2),
    tokens: Tensor = TOKENS,
) -> Tensor:
    firsts = tokens[:, 0].tolist()
    table = EditTable(model, interventions, texts, first_tokens=firsts, starts=starts.tolist())
    with table.applied():
        table.aim(torch.arange(len(tokens)), position_mask(starts, tokens.shape[1]))
        return model.plain_logits(tokens)


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=5e-4, rtol=1e-4)


# --- each operation, each family, each view ------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_is_the_edit_by_hand(family: str, op: str) -> None:
    model, by_hand = loaded(family), [ByHand(UNITS, OPS[op][1])]
    edit = Heads(UNITS, OPS[op][0])
    expected = logits_by_hand(family, TOKENS, by_hand, STARTS)
    assert (expected - tiny(family)(TOKENS).logits).abs().amax(dim=(1, 2)).min() > 0.05
    close(reference(model, edit), expected)
    close(fast(model, [edit] * 3), expected)
    everywhere = logits_by_hand(family, TOKENS, by_hand, EVERYWHERE)
    close(reference(model, Heads(UNITS, OPS[op][0], when="all"), None), everywhere)
    close(fast(model, [Heads(UNITS, OPS[op][0], when="all")] * 3, EVERYWHERE), everywhere)


@pytest.mark.parametrize("op", ["zero", "to_bos"])
def test_last_without_starts_edits_the_newest_position_of_every_call(op: str) -> None:
    model = loaded("llama_gqa")
    expected = logits_by_hand("llama_gqa", TOKENS, [ByHand(UNITS, OPS[op][1])], torch.tensor([17, 17, 17]))
    close(reference(model, Heads(UNITS, op, when="last"), None), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_resampling_sets_all_heads_of_a_row_to_one_sample(family: str) -> None:
    model, edit, texts = loaded(family), Heads(UNITS, resample(BANK, seed=3)), (8, 2, 5)
    samples = [drawn(edit, model, text) for text in texts]
    assert len(set(samples)) > 1
    chosen = BANK[samples]
    by_hand = [ByHand(UNITS, lambda z, layer, head: chosen[:, layer, head][:, None].expand_as(z))]
    expected = logits_by_hand(family, TOKENS, by_hand, STARTS)
    close(reference(model, edit, texts=texts), expected)
    close(fast(model, [edit] * 3, texts=texts), expected)


def drawn(edit: Heads, model: Model, text: int) -> int:
    """Number of the sample that all heads of a text take, together."""
    edits = edit.edits(model.anatomy, text)
    values = torch.stack([edits[Site.Z, layer].offset.view(N_HEADS, D_HEAD)[head] for layer, head in UNITS])
    samples = torch.stack([BANK[:, layer, head] for layer, head in UNITS], dim=1)
    (same,) = (samples == values).flatten(1).all(-1).nonzero().flatten().tolist()
    return same


def test_heads_and_neurons_draw_the_same_sample_from_banks_of_one_size() -> None:
    model, neurons = loaded("llama"), torch.arange(4.0)[:, None, None].expand(4, N_LAYERS, D_MLP)
    for text in range(10):
        edits = Neurons([(0, 3)], resample(neurons, seed=3)).edits(model.anatomy, text)
        assert edits[Site.GATE_ACT, 0].offset[3] == drawn(Heads(UNITS, resample(BANK, seed=3)), model, text)


# --- what these edits are equal to ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_zero_everywhere_is_a_model_without_these_columns_of_the_output_projection(family: str) -> None:
    model, cut = loaded(family), copy.deepcopy(tiny(family))
    for layer, head in UNITS:
        output = PARTS[family].of(cut, "attention_output", layer)
        rows = output.weight.T if isinstance(output, nn.Linear) else output.weight  # GPT-2: [heads * d_head, d_model]
        rows[head * D_HEAD : (head + 1) * D_HEAD] = 0
    expected = cut(TOKENS).logits
    close(reference(model, Heads(UNITS, "zero", when="all"), None), expected)
    close(fast(model, [Heads(UNITS, "zero", when="all")] * 3, EVERYWHERE), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_slices_after_the_output_projection_are_not_heads(family: str) -> None:
    model, sliced = loaded(family), copy.deepcopy(tiny(family))
    for layer, head in UNITS:

        def cut(_module: Any, _args: Any, out: Tensor, head: int = head) -> Tensor:
            out = out.clone()
            out[..., head * D_HEAD : (head + 1) * D_HEAD] = 0
            return out

        PARTS[family].of(sliced, "attention_output", layer).register_forward_hook(cut)
    difference = reference(model, Heads(UNITS, "zero", when="all"), None) - sliced(TOKENS).logits
    assert difference.abs().max() > 0.5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [0, 2])
def test_all_heads_of_a_layer_at_zero_leave_the_bias_alone(family: str, layer: int) -> None:
    model, silent = loaded(family), copy.deepcopy(tiny(family))
    output = PARTS[family].of(silent, "attention_output", layer)
    output.register_forward_hook(
        lambda _module, _args, out: torch.zeros_like(out) + (0 if output.bias is None else output.bias)
    )
    every = Heads([(layer, head) for head in range(N_HEADS)], "zero", when="all")
    close(reference(model, every, None), silent(TOKENS).logits)
    close(fast(model, [every] * 3, EVERYWHERE), silent(TOKENS).logits)


def test_heads_of_one_group_moved_to_the_first_position_give_the_same_value() -> None:
    """Of four query heads that share two value heads, 0 and 1 become equal, and 1 and 2 do not."""
    model, seen = loaded("llama_gqa"), {}
    moved = Heads([(1, head) for head in range(N_HEADS)], "to_bos", when="all")

    def keep(z: Tensor, hook: Any) -> None:
        seen["z"] = z.clone()

    model.run_with_hooks(TOKENS, fwd_hooks=[*moved.hooks(model), (model.anatomy.hook_name(Site.Z, 1), keep)])
    z = seen["z"]
    assert torch.equal(z, z[:, :1].expand_as(z))
    assert torch.equal(z[:, :, 0], z[:, :, 1]) and torch.equal(z[:, :, 2], z[:, :, 3])
    assert (z[:, :, 1] - z[:, :, 2]).abs().max() > 0.1


@pytest.mark.parametrize("family", families("llama", "llama_gqa", "gpt_neox", "gemma2", "qwen2"))
def test_where_a_head_gives_one_constant_value_its_mean_and_the_first_value_are_it(family: str) -> None:
    """One token over and over: with rotary positions every value is the same, and so is every mean of them."""
    model, tokens = loaded(family), torch.full((3, 18), 9)
    names = [model.anatomy.hook_name(Site.Z, layer) for layer in range(N_LAYERS)]
    clean, cache = model.run_with_cache(tokens, names_filter=names)
    own = torch.stack([cache[name][0, 11] for name in names])
    for op in (mean(own), resample(own[None]), to_bos()):
        close(fast(model, [Heads(UNITS, op)] * 3, tokens=tokens), clean)
        hooks = Heads(UNITS, op).hooks(model, STARTS)
        close(model.run_with_hooks(tokens, fwd_hooks=hooks), clean)
    assert (fast(model, [Heads(UNITS, mean(TABLE))] * 3, tokens=tokens) - clean).abs().max() > 0.05


def test_a_head_without_value_can_be_removed_without_a_trace() -> None:
    module = copy.deepcopy(tiny("llama_gqa"))
    module.get_submodule("model.layers.1.self_attn.v_proj").weight[D_HEAD:] = 0  # value head 1: query heads 2 and 3
    model = load_model(module)
    clean = model.plain_logits(TOKENS)
    for op in ("zero", "to_bos"):
        assert torch.equal(fast(model, [Heads([(1, 2), (1, 3)], op)] * 3), clean)
        assert not torch.equal(fast(model, [Heads([(1, 1)], op)] * 3), clean)


@pytest.mark.parametrize("op", ["zero", "to_bos"])
def test_positions_before_the_start_do_not_change(op: str) -> None:
    model, clean = loaded("gpt2"), tiny("gpt2")(TOKENS).logits
    for logits in (reference(model, Heads(UNITS, op)), fast(model, [Heads(UNITS, op)] * 3)):
        for row, start in enumerate(STARTS.tolist()):
            close(logits[row, :start], clean[row, :start])
            assert (logits[row, start:] - clean[row, start:]).abs().max() > 0.05


# --- several at once -----------------------------------------------------------------------------------------------

CUT_NEURONS = ByHand(NEURONS, lambda a, layer, neuron: torch.zeros_like(a), "neuron")
SOME = [(0, 1), (1, 3), (2, 2)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("starts", [EVERYWHERE, STARTS])
def test_values_of_the_first_position_feel_the_edits_below_them(family: str, starts: Tensor) -> None:
    """Neurons and heads of lower layers change what is attended to at position 0, where they are edited there."""
    model = loaded(family)
    both = Heads(SOME, "to_bos") + Neurons(NEURONS) + Heads([(0, 3), (1, 0)], mean(TABLE))
    by_hand = [ByHand(SOME, None), CUT_NEURONS, ByHand([(0, 3), (1, 0)], OPS["mean"][1])]
    expected = logits_by_hand(family, TOKENS, by_hand, starts)
    close(reference(model, both, starts), expected)
    close(fast(model, [both] * 3, starts), expected)
    table = EditTable(model, [both] * 3, [0, 1, 2], first_tokens=TOKENS[:, 0].tolist(), starts=[1, 1, 1])
    with table.applied():
        table.aim(torch.arange(3), position_mask(starts, TOKENS.shape[1]))
        clean_values = model.plain_logits(TOKENS)
    assert ((clean_values - expected).abs().amax(dim=(1, 2)) > 0.05).tolist() == (starts == 0).tolist()


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2"])
@pytest.mark.parametrize(("one", "other"), [("add", "scale"), ("scale", "add"), ("zero", "add"), ("mean", "scale")])
def test_a_sum_applies_both_in_order(family: str, one: str, other: str) -> None:
    model, (first, second) = loaded(family), (OPS[one], OPS[other])
    both = Heads(UNITS, first[0]) + Heads(SOME, second[0])
    expected = logits_by_hand(family, TOKENS, [ByHand(UNITS, first[1]), ByHand(SOME, second[1])], STARTS)
    close(reference(model, both), expected)
    close(fast(model, [both] * 3), expected)
    other_way = Heads(SOME, second[0]) + Heads(UNITS, first[0])
    assert (reference(model, other_way) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2"])
@pytest.mark.parametrize("other", ["scale", "add", "zero"])
def test_attention_is_moved_before_z_is_edited_whichever_is_named_first(family: str, other: str) -> None:
    model, moved, edited = loaded(family), Heads(UNITS, "to_bos"), Heads(UNITS, OPS[other][0])
    expected = logits_by_hand(family, TOKENS, [ByHand(UNITS, None), ByHand(UNITS, OPS[other][1])], STARTS)
    for both in (moved + edited, edited + moved, moved + edited + moved):
        close(reference(model, both), expected)
        close(fast(model, [both] * 3), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_mixed_rows_is_row_by_row(family: str) -> None:
    model, tokens = loaded(family), random_tokens(6, 14, seed=4)
    tokens[1, 0] = tokens[0, 0]
    moved = Heads(SOME, "to_bos")
    rows = [moved, moved + Neurons(NEURONS), None, Heads(UNITS, resample(BANK)), moved, Neurons(NEURONS, "add")]
    starts, texts = torch.tensor([0, 0, 3, 5, 9, 0]), [4, 5, 6, 7, 8, 9]
    mixed = fast(model, rows, starts, texts, tokens)
    for row, intervention in enumerate(rows):
        alone = fast(model, [intervention], starts[row : row + 1], texts[row : row + 1], tokens[row : row + 1])
        close(mixed[row], alone[0])
    close(mixed[2], tiny(family)(tokens[2:3]).logits[0])


def test_any_number_of_first_tokens_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = loaded("llama_gqa"), random_tokens(7, 9, seed=4)
    starts, rows = torch.tensor([0, 3, 0, 0, 2, 8, 0]), [Heads(SOME, "to_bos") + Neurons(NEURONS)] * 7
    whole = fast(model, rows, starts, range(7), tokens)
    monkeypatch.setattr("mechrep.interventions.apply._FIRST_TOKENS_PER_BATCH", 3)
    close(fast(model, rows, starts, range(7), tokens), whole)


def intervention_of(drawn: list[tuple[str, list[tuple[int, int]]]]) -> tuple[Intervention, list[ByHand]]:
    parts: list[Intervention] = []
    by_hand = []
    for kind, units in drawn:
        if kind == "neurons":
            parts.append(Neurons(units, "zero"))
            by_hand.append(ByHand(units, lambda a, layer, neuron: torch.zeros_like(a), "neuron"))
        else:
            parts.append(Heads(units, OPS[kind][0]))
            by_hand.append(ByHand(units, OPS[kind][1]))
    return functools.reduce(lambda one, other: one + other, parts), by_hand


@settings(max_examples=30)
@given(
    drawn=st.lists(
        st.tuples(
            st.sampled_from(["neurons", *OPS]),
            st.lists(st.tuples(st.integers(0, N_LAYERS - 1), st.integers(0, N_HEADS - 1)), min_size=1, unique=True),
        ),
        min_size=1,
        max_size=4,
    ),
    starts=st.lists(st.integers(0, 18), min_size=3, max_size=3),
)
def test_any_sum_from_anywhere_on(drawn: list[tuple[str, list[tuple[int, int]]]], starts: list[int]) -> None:
    model, (intervention, by_hand) = loaded("llama_gqa"), intervention_of(drawn)
    expected = logits_by_hand("llama_gqa", TOKENS, by_hand, torch.tensor(starts))
    close(reference(model, intervention, torch.tensor(starts)), expected)
    close(fast(model, [intervention] * 3, torch.tensor(starts)), expected)


# --- how the plain view does it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2", "gemma2"])
def test_windows_whose_first_half_is_in_the_cache(family: str) -> None:
    """The pass that is edited does not hold position 0; Gemma 2's sliding layers have forgotten it by then."""
    model, begin = loaded(family), 11
    edit = Heads(UNITS, "to_bos", when="all") + Neurons(NEURONS, when="all")
    expected = logits_by_hand(family, TOKENS, [ByHand(UNITS, None), CUT_NEURONS], torch.tensor([begin] * 3))
    table = EditTable(model, [edit] * 3, [0, 1, 2], first_tokens=TOKENS[:, 0].tolist(), starts=[begin] * 3)
    cache = DynamicCache()
    assert model.plain is not None
    model.plain(input_ids=TOKENS[:, :begin], past_key_values=cache, use_cache=True)
    with table.applied():
        table.aim(torch.arange(3), torch.ones(3, TOKENS.shape[1] - begin, dtype=torch.bool))
        logits = model.plain(input_ids=TOKENS[:, begin:], past_key_values=cache, use_cache=True).logits
    close(logits, expected[:, begin:])


def test_first_positions_are_computed_once_for_all_rows_that_share_them() -> None:
    model, seen = loaded("llama"), []
    assert model.plain is not None
    handle = model.plain.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["input_ids"].tolist()), with_kwargs=True
    )
    moved, cut = Heads(SOME, "to_bos"), Heads(SOME, "zero")
    other = Heads(UNITS, "to_bos") + Neurons(NEURONS)
    EditTable(model, [cut] * 3, [0, 1, 2], first_tokens=[5, 6, 7], starts=[0, 0, 0])
    assert seen == [], "nothing attends to the first position"
    rows = [moved, moved, other, other, moved, other, None, cut, moved]
    table = EditTable(
        model, rows, range(9), first_tokens=[5, 5, 5, 5, 5, 5, 8, 9, 6], starts=[4, 9, 3, 0, 0, 0, 0, 0, 2]
    )
    handle.remove()
    assert seen == [[[5], [5], [5], [6]]], "token 5 untouched, under `other` and under `moved`; token 6 untouched"
    clean = model.plain_logits(TOKENS)
    with table.applied():
        assert torch.equal(model.plain_logits(TOKENS), clean), "the table rests until it is aimed"


@pytest.mark.contract
@pytest.mark.parametrize("family", ["llama_gqa", "gpt2"])
def test_a_model_given_as_a_bridge_is_edited_alike(family: str) -> None:
    sources = pytest.importorskip("transformer_lens.model_bridge.sources._bridge_builder")
    module = copy.deepcopy(tiny(family))
    bridge = sources.build_bridge_from_module(module, type(module).__name__, hf_config=module.config)
    model, both = load_model(bridge), Heads(SOME, "to_bos") + Heads([(0, 3), (1, 0)], "zero")
    by_hand = [ByHand(SOME, None), ByHand([(0, 3), (1, 0)], OPS["zero"][1])]
    expected = logits_by_hand(family, TOKENS, by_hand, STARTS)
    close(reference(model, both), expected)
    close(fast(model, [both] * 3), expected)
