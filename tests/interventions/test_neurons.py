"""``Neurons``: each edit equals a torch hook on the activation module of a model that mechrep never touched."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mechrep.interventions import Intervention, Neurons, add, mean, resample, scale, zero
from mechrep.interventions.apply import EditTable
from mechrep.interventions.hooks import position_mask
from mechrep.models.anatomy import Site
from mechrep.models.load import load_model
from mechrep.models.model import Model
from tests.tiny_models import D_MLP, FAMILIES, GATED, N_LAYERS, PARTS, loaded, random_tokens, tiny

TOKENS = random_tokens(3, 18)
STARTS = torch.tensor([0, 7, 17])
NOWHERE = torch.tensor([18, 18, 18])
UNITS = [(0, 3), (0, 40), (1, 5), (2, 0), (2, D_MLP - 1)]
TABLE = torch.randn(N_LAYERS, D_MLP, generator=torch.Generator().manual_seed(1))
BANK = torch.randn(4, N_LAYERS, D_MLP, generator=torch.Generator().manual_seed(2))

Change = Callable[[Tensor, int, list[int]], Tensor]  # activations of some neurons, their layer and numbers
OPS: dict[str, tuple[Any, Change]] = {
    "zero": ("zero", lambda a, layer, n: torch.zeros_like(a)),
    "add": ("add", lambda a, layer, n: a + 1),
    "add(-3)": (add(-3.0), lambda a, layer, n: a - 3),
    "add table": (add(TABLE), lambda a, layer, n: a + TABLE[layer, n]),
    "scale": (scale(-2.5), lambda a, layer, n: a * -2.5),
    "mean": (mean(TABLE), lambda a, layer, n: TABLE[layer, n].expand_as(a)),
}


def oracle(family: str, changes: list[tuple[str, list[tuple[int, int]], Change]], starts: Tensor = STARTS) -> Tensor:
    """Logits of transformers' own model, edited by torch hooks; ``part`` of a change is a name in :class:`Parts`."""
    model = copy.deepcopy(tiny(family))
    mask = torch.arange(TOKENS.shape[1])[None] >= starts[:, None]
    for part, units, change in changes:
        for layer in sorted({layer for layer, _ in units}):
            neurons = [neuron for in_layer, neuron in units if in_layer == layer]

            def edited(
                activation: Tensor, layer: int = layer, neurons: list[int] = neurons, change: Change = change
            ) -> Tensor:
                out = activation.clone()
                out[..., neurons] = torch.where(
                    mask[..., None], change(activation[..., neurons], layer, neurons), activation[..., neurons]
                )
                return out

            module = PARTS[family].of(model, part, layer)
            if part == "activation":
                module.register_forward_hook(lambda _module, _args, out, edited=edited: edited(out))
            else:
                module.register_forward_pre_hook(lambda _module, args, edited=edited: (edited(args[0]),))
    return model(TOKENS).logits


def reference(model: Model, intervention: Intervention, starts: Tensor | None = STARTS) -> Tensor:
    return model.run_with_hooks(TOKENS, fwd_hooks=intervention.hooks(model, starts))


def fast(
    model: Model, interventions: list[Intervention | None], starts: Tensor = STARTS, texts: tuple = (0, 1, 2)
) -> Tensor:
    table = EditTable(model, interventions, texts)
    with table.applied():
        table.aim(torch.arange(len(texts)), position_mask(starts, TOKENS.shape[1]))
        return model.plain_logits(TOKENS)


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-4)


# --- each operation, each family, each view ------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_is_a_hook_on_the_activation_module(family: str, op: str) -> None:
    model = loaded(family)
    edit, change = Neurons(UNITS, OPS[op][0], when="from_onset"), OPS[op][1]
    expected = oracle(family, [("activation", UNITS, change)])
    assert (expected - tiny(family)(TOKENS).logits).abs().max() > 0.05
    close(reference(model, edit), expected)
    close(fast(model, [edit] * 3), expected)
    everywhere = oracle(family, [("activation", UNITS, change)], starts=torch.zeros(3))
    close(reference(model, Neurons(UNITS, OPS[op][0], when="all"), None), everywhere)


@pytest.mark.parametrize("op", ["zero", "add", "mean"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_an_edit_at_mlp_post_is_a_hook_before_the_output_projection(family: str, op: str) -> None:
    model = loaded(family)
    edit, change = Neurons(UNITS, OPS[op][0], site="mlp_post"), OPS[op][1]
    expected = oracle(family, [("mlp_output", UNITS, change)])
    close(reference(model, edit), expected)
    close(fast(model, [edit] * 3), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_adding_at_mlp_post_is_another_intervention_exactly_in_gated_mlps(family: str) -> None:
    model = loaded(family)
    at_activation, naive = (reference(model, Neurons(UNITS, "add", site=site)) for site in ("gate_act", "mlp_post"))
    if family in GATED:
        assert (at_activation - naive).abs().max() > 0.05
    else:
        close(at_activation, naive)
    zeros = [reference(model, Neurons(UNITS, "zero", site=site)) for site in ("gate_act", "mlp_post")]
    close(zeros[0], zeros[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_zero_everywhere_is_a_model_without_these_rows_of_w_out(family: str) -> None:
    model, cut = loaded(family), copy.deepcopy(tiny(family))
    for layer, neuron in UNITS:
        output = PARTS[family].of(cut, "mlp_output", layer)
        rows = output.weight.T if isinstance(output, nn.Linear) else output.weight  # GPT-2 keeps [d_mlp, d_model]
        assert rows.shape[0] == D_MLP
        rows[neuron] = 0
    close(reference(model, Neurons(UNITS, "zero", when="all"), None), cut(TOKENS).logits)
    close(reference(model, Neurons(UNITS, zero(), when="all"), None), cut(TOKENS).logits)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_positions_before_the_start_do_not_change(family: str) -> None:
    model, clean = loaded(family), tiny(family)(TOKENS).logits
    for logits in (reference(model, Neurons(UNITS, "add")), fast(model, [Neurons(UNITS, "add")] * 3)):
        for row, start in enumerate(STARTS.tolist()):
            close(logits[row, :start], clean[row, :start])
            assert (logits[row, start:] - clean[row, start:]).abs().max() > 0.05
    close(reference(model, Neurons(UNITS, "add"), NOWHERE), clean)


def test_last_without_starts_edits_the_newest_position_of_every_call() -> None:
    model = loaded("llama")
    expected = oracle("llama", [("activation", UNITS, OPS["add"][1])], starts=torch.tensor([17, 17, 17]))
    close(reference(model, Neurons(UNITS, "add", when="last"), None), expected)


def test_no_units_change_nothing() -> None:
    model = loaded("llama")
    close(reference(model, Neurons([], "add")), tiny("llama")(TOKENS).logits)
    assert not EditTable(model, [Neurons([], "add"), None, None], [0, 1, 2])


def test_a_neuron_that_is_silent_can_be_removed_without_a_trace() -> None:
    module = copy.deepcopy(tiny("llama"))
    module.get_submodule("model.layers.1.mlp.gate_proj").weight[5] = 0  # silu(0) = 0
    model = load_model(module)
    clean = model.plain_logits(TOKENS)
    assert torch.equal(fast(model, [Neurons([(1, 5)], "zero")] * 3), clean)
    assert not torch.equal(fast(model, [Neurons([(1, 6)], "zero")] * 3), clean)


# --- resampling ----------------------------------------------------------------------------------------------------


def drawn(edit: Neurons, model: Model, text: int) -> int:
    """Number of the sample that all units of a text take, together."""
    edits = edit.edits(model.anatomy, text)
    values = torch.stack([edits[Site.GATE_ACT, layer].offset[neuron] for layer, neuron in UNITS])
    samples = torch.stack([BANK[:, layer, neuron] for layer, neuron in UNITS], dim=-1)
    (same,) = (samples == values).all(-1).nonzero().flatten().tolist()
    return same


def test_resampling_draws_one_sample_per_text_for_all_units_together() -> None:
    model = loaded("llama")
    edit = Neurons(UNITS, resample(BANK, seed=3))
    draws = [drawn(edit, model, text) for text in range(40)]
    assert draws == [drawn(Neurons(UNITS, resample(BANK, seed=3)), model, text) for text in range(40)]
    assert set(draws) == {0, 1, 2, 3}
    assert draws != [drawn(Neurons(UNITS, resample(BANK, seed=4)), model, text) for text in range(40)]


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_resampling_sets_each_row_to_its_own_sample(family: str) -> None:
    model, edit = loaded(family), Neurons(UNITS, resample(BANK, seed=3))
    texts = (8, 2, 5)
    samples = [drawn(edit, model, text) for text in texts]
    assert len(set(samples)) > 1
    chosen = BANK[samples]
    expected = oracle(family, [("activation", UNITS, lambda a, layer, n: chosen[:, layer, n][:, None].expand_as(a))])
    close(model.run_with_hooks(TOKENS, fwd_hooks=edit.hooks(model, STARTS, texts=texts)), expected)
    close(fast(model, [edit] * 3, texts=texts), expected)


# --- several at once -----------------------------------------------------------------------------------------------

FIRST, SECOND = [(0, 3), (1, 5), (2, 7)], [(0, 3), (0, 4), (2, 7)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])
@pytest.mark.parametrize(("one", "other"), [("add", "scale"), ("scale", "add"), ("zero", "add"), ("mean", "scale")])
def test_a_sum_applies_both_in_order(family: str, one: str, other: str) -> None:
    model = loaded(family)
    both = Neurons(FIRST, OPS[one][0]) + Neurons(SECOND, OPS[other][0])
    expected = oracle(family, [("activation", FIRST, OPS[one][1]), ("activation", SECOND, OPS[other][1])])
    close(reference(model, both), expected)
    close(fast(model, [both] * 3), expected)
    other_way = Neurons(SECOND, OPS[other][0]) + Neurons(FIRST, OPS[one][0])
    assert (reference(model, other_way) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("gate_first", [True, False])
def test_edits_at_two_sites_happen_where_they_arise_whichever_is_named_first(family: str, gate_first: bool) -> None:
    model = loaded(family)
    gate, post = Neurons(FIRST, add(2.0)), Neurons(SECOND, scale(-3.0), site="mlp_post")
    both = gate + post if gate_first else post + gate
    changes = [("activation", FIRST, lambda a, layer, n: a + 2), ("mlp_output", SECOND, lambda a, layer, n: a * -3)]
    expected = oracle(family, changes)
    close(fast(model, [both] * 3), expected)
    close(reference(model, both), expected)


def test_three_parts_and_nested_sums_are_the_same() -> None:
    model = loaded("llama")
    a, b, c = Neurons(FIRST, "add"), Neurons(SECOND, scale(0.5)), Neurons([(2, 7)], mean(TABLE))
    close(reference(model, (a + b) + c), reference(model, a + (b + c)))
    assert (reference(model, a + b + c) - reference(model, a + b)).abs().max() > 1e-3
    assert (a + Neurons(UNITS, resample(BANK))).differs_by_text
    assert not (a + b).differs_by_text


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2", "mistral"])
def test_a_batch_of_mixed_rows_is_row_by_row(family: str) -> None:
    model = loaded(family)
    shared = Neurons(UNITS, "add")
    post = Neurons(SECOND, add(2.0), site="mlp_post")
    rows: list[Intervention | None] = [shared, None, shared + post]
    mixed = fast(model, rows)
    for row, intervention in enumerate(rows):
        alone = fast(model, [intervention] * 3)
        close(mixed[row], alone[row])
    close(mixed[1], tiny(family)(TOKENS).logits[1])
    resampled: list[Intervention | None] = [
        Neurons(UNITS, resample(BANK)),
        post,
        Neurons(FIRST, resample(BANK, seed=9)),
    ]
    mixed = fast(model, resampled, texts=(5, 6, 7))
    for row, intervention in enumerate(resampled):
        close(mixed[row], fast(model, [intervention] * 3, texts=(5, 6, 7))[row])


def test_a_table_edits_only_while_it_is_applied_and_aimed() -> None:
    model, clean = loaded("llama"), tiny("llama")(TOKENS).logits
    table = EditTable(model, [Neurons(UNITS, "add")] * 3, [0, 1, 2])
    everywhere = position_mask(torch.zeros(3, dtype=torch.long), TOKENS.shape[1])
    table.aim(torch.arange(3), everywhere)
    close(model.plain_logits(TOKENS), clean)
    with table.applied():
        assert (model.plain_logits(TOKENS) - clean).abs().max() > 0.05
        table.rest()
        close(model.plain_logits(TOKENS), clean)
        table.aim(torch.arange(3), everywhere)
    close(model.plain_logits(TOKENS), clean)
