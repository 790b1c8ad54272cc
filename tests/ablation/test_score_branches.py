"""Rows that part where an edit first sets them apart: the same scores as whole rows, for less work."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mechrep.ablation.score import Branches, ScoredText, parting_layers, score_tokens
from mechrep.interventions import Heads, Intervention, Neurons, SinkPatch, add
from mechrep.interventions.apply import EditTable
from mechrep.models.model import Model
from tests.tiny_models import GATED, N_HEADS, N_LAYERS, WITH_ALIBI, loaded, random_tokens

SHAPES = [(23, 12, 11), (23, 12, 11), (15, 6, 0)]
TEXTS = [
    ScoredText(tuple(random_tokens(1, length, seed=i)[0].tolist()), first, start, i)
    for i, (length, first, start) in enumerate(SHAPES)
]
EVERY_HEAD = [Heads([(layer, head)], "zero") for layer in range(N_LAYERS) for head in range(N_HEADS)]


def reference(family: str) -> Model:
    model = copy.copy(loaded(family))
    model.plain = None
    return model


@pytest.mark.parametrize("family", WITH_ALIBI)
def test_heads_cut_alone_score_as_in_whole_passes_of_the_other_view(family: str) -> None:
    """Every family, because each hands other things to its layers: masks, rotations, slopes."""
    late = Neurons([(N_LAYERS - 1, 3)], "zero") + Heads([(1, 2)], "zero")
    conditions: list[Intervention | None] = [*EVERY_HEAD[::3], None, late, Heads([(2, 1), (1, 0)], "to_bos")]
    fast, slow = (score_tokens(model, TEXTS, conditions) for model in (loaded(family), reference(family)))
    for one, other in zip(fast, slow, strict=True):
        assert (one.log_probability - other.log_probability).abs().max() < 1e-4
    assert (fast[0].log_probability - fast[0].log_probability[len(EVERY_HEAD[::3])]).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2"])
def test_neurons_held_at_an_early_level_are_held_here_too(family: str) -> None:
    conditions = [None, SinkPatch(1, [3, 7]), *EVERY_HEAD[:2]]
    fast, slow = (score_tokens(model, TEXTS, conditions) for model in (loaded(family), reference(family)))
    for one, other in zip(fast, slow, strict=True):
        assert (one.log_probability - other.log_probability).abs().max() < 1e-4
    assert (fast[0].log_probability[1] - fast[0].log_probability[0]).abs().max() > 1e-6


def test_layers_below_a_cut_compute_one_row_for_all() -> None:
    assert "llama" in GATED
    model, text, seen = loaded("llama"), TEXTS[0], []

    def count(_module: object, args: tuple[Tensor, ...]) -> None:
        seen.append(len(args[0]))

    assert model.handles is not None
    handles = [module.register_forward_pre_hook(count) for module in model.handles.attention_outputs]
    score_tokens(model, [text], [None, *EVERY_HEAD])
    for handle in handles:
        handle.remove()
    # The text's beginning, and then the clean row with one for each head up to this layer; before them a trial.
    expected = [1] * N_LAYERS + [1 + N_HEADS * (layer + 1) for layer in range(N_LAYERS)]
    assert seen[-len(expected) :] == expected


rows_of_batches = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4)), min_size=1, max_size=12)


@given(rows=rows_of_batches)
def test_rows_are_one_exactly_as_long_as_nothing_sets_them_apart(rows: list[tuple[int, int]]) -> None:
    n_layers = 4
    texts, first = [text for text, _ in rows], [layer for _, layer in rows]
    plan = Branches.of(texts, first, n_layers)
    assert len(plan.rows) == len(plan.sources) == len(plan.origins) == n_layers
    place = plan.result  # of each row among those of the layer, from the highest layer down
    for layer in reversed(range(n_layers)):
        for a in range(len(rows)):
            assert texts[plan.rows[layer][place[a]]] == texts[a]
            assert texts[plan.rows[0][plan.origins[layer][place[a]]]] == texts[a]
            for b in range(a):
                equal = texts[a] == texts[b] and first[a] > layer and first[b] > layer
                assert (place[a] == place[b]).item() == equal
        assert sorted(set(place.tolist())) == list(range(len(plan.rows[layer])))  # nothing else is computed
        for a in range(len(rows)):
            if first[a] <= layer:
                assert plan.rows[layer][place[a]] == a  # an edited row stands for itself
        if layer:
            place = plan.sources[layer][place]
    assert torch.equal(plan.sources[0], torch.arange(len(plan.rows[0])))


def test_the_lowest_edited_layer_of_every_row() -> None:
    model = loaded("llama_gqa")
    edits = [
        (None, N_LAYERS),
        (Heads([(1, 2)], "zero"), 1),
        (Heads([(2, 0)], "to_bos"), 2),
        (Neurons([(2, 5), (0, 1)], "zero"), 0),
        (SinkPatch(1, [4]), 1),
        (None, N_LAYERS),
    ]
    table = EditTable(
        model, [edit for edit, _ in edits], range(len(edits)), first_tokens=[5] * len(edits), starts=[3] * len(edits)
    )
    assert parting_layers(table, one_length=False).tolist() == [layer for _, layer in edits]


def test_rows_part_where_something_is_added_too() -> None:
    model = loaded("llama")
    conditions = [None, Neurons([(1, 3)], add(2.0)), Heads([(2, 0)], "zero")]
    table = EditTable(model, conditions, [0, 0, 0])
    assert parting_layers(table, one_length=True).tolist() == [N_LAYERS, 1, 2]
