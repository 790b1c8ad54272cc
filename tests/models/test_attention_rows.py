"""Attention by rows: those of transformers' step-by-step attention, in every family, and nothing left changed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from mechrep.errors import InputError
from mechrep.models import attention
from mechrep.models.attention import computed_here, read_attention_column, read_attention_rows, reading_of, rows_agree
from mechrep.models.load import load_model
from mechrep.models.model import Model
from tests.families import zoo
from tests.tiny_models import FAMILIES, N_HEADS, N_LAYERS, SLIDING_WINDOW, fresh, random_tokens, tiny

pytestmark = pytest.mark.contract

LENGTH = 41


def loaded(family: str) -> Model:
    return load_model(copy.deepcopy(tiny(family)))


def blocks(model: Model, tokens: Tensor, queries: int, layers: list[int] | None = None) -> dict[int, Tensor]:
    """Patterns put together from their rows; blocks come in order and end with their last query."""
    size = tokens.shape[1]
    seen: dict[int, Tensor] = {}
    nexts: dict[int, int] = {}

    def keep(rows: Tensor, layer: int, first: int) -> None:
        assert first == nexts.get(layer, 0) and rows.shape[2] <= queries
        assert rows.shape[3] == first + rows.shape[2]
        seen.setdefault(layer, torch.zeros(len(tokens), N_HEADS, size, size))
        seen[layer][:, :, first : first + rows.shape[2], : rows.shape[3]] = rows
        nexts[layer] = first + rows.shape[2]

    read_attention_rows(model, tokens, keep, layers=layers, queries=queries)
    assert set(nexts.values()) == {size}
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_those_of_step_by_step_attention(family: str) -> None:
    tokens = random_tokens(2, LENGTH)
    witness: Any = copy.deepcopy(tiny(family))
    witness.set_attn_implementation("eager")
    expected = witness(tokens, output_attentions=True).attentions
    seen = blocks(loaded(family), tokens, 16)
    assert list(seen) == list(range(N_LAYERS))
    for layer, pattern in seen.items():
        torch.testing.assert_close(pattern, expected[layer], rtol=1e-5, atol=1e-6)
    if family == "mistral":
        assert LENGTH > 2 * SLIDING_WINDOW and (seen[0][:, :, SLIDING_WINDOW:, 0] == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("block", [7, 512])
def test_a_column_is_that_of_the_rows(family: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused attention in blocks and whole; with sliding windows, caps and shared keys; the pass goes on unchanged."""
    monkeypatch.setattr(attention, "_BLOCK", block)
    model, tokens = loaded(family), random_tokens(2, LENGTH)
    patterns = blocks(model, tokens, 16)
    for key in (0, 3, LENGTH - 1):
        columns: dict[int, Tensor] = {}
        read_attention_column(model, tokens, lambda c, layer, into=columns: into.update({layer: c}), key=key)
        assert list(columns) == list(range(N_LAYERS))
        for layer, column in columns.items():
            torch.testing.assert_close(column, patterns[layer][..., key], rtol=1e-4, atol=1e-6)
    some: list[int] = []
    read_attention_column(model, tokens, lambda _, layer: some.append(layer), layers=[1])
    assert some == [1]


def test_queries_see_no_later_keys_where_a_family_gives_no_mask() -> None:
    model, tokens = loaded("llama_gqa"), random_tokens(2, LENGTH)
    plain: Any = model.plain
    masks: list[Any] = []

    def without(_module: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        masks.append(given["attention_mask"])
        return args, given | {"attention_mask": None}

    expected = blocks(model, tokens, 16)
    for layer in plain.model.layers:
        layer.self_attn.register_forward_pre_hook(without, with_kwargs=True)
    seen = blocks(model, tokens, 16)
    assert len(masks) == N_LAYERS and None not in masks
    for layer, pattern in seen.items():
        torch.testing.assert_close(pattern, expected[layer], rtol=1e-5, atol=1e-6)


def test_learned_sinks_take_their_share_of_a_column() -> None:
    model = load_model(zoo.build(zoo.families()["gpt-oss"]))
    tokens = random_tokens(2, LENGTH)
    heads = model.anatomy.n_heads
    whole = {layer: torch.zeros(2, heads, LENGTH) for layer in range(model.anatomy.n_layers)}
    columns: dict[int, Tensor] = {}

    def keep(rows: Tensor, layer: int, first: int) -> None:
        whole[layer][:, :, first : first + rows.shape[2]] = rows[..., 0]

    read_attention_rows(model, tokens, keep)
    read_attention_column(model, tokens, lambda column, layer: columns.update({layer: column}))
    assert reading_of(model).sinks
    for layer, column in columns.items():
        torch.testing.assert_close(column, whole[layer], rtol=1e-4, atol=1e-6)
    assert (columns[0][..., 0] < 1).all()


@pytest.mark.parametrize("queries", [1, 40, 41, 1000])
def test_the_size_of_blocks_changes_nothing(queries: int) -> None:
    model, tokens = loaded("llama_gqa"), random_tokens(2, LENGTH)
    whole, parts = blocks(model, tokens, LENGTH), blocks(model, tokens, queries, [2, 0])
    assert list(parts) == [0, 2]
    for layer, pattern in parts.items():
        torch.testing.assert_close(pattern, whole[layer], rtol=1e-4, atol=1e-5)


def test_the_model_is_left_as_it_was() -> None:
    model, tokens = loaded("gemma2"), random_tokens(1, LENGTH)
    plain: Any = model.plain
    before, logits = plain.config._attn_implementation, model.plain_logits(tokens)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_attention_rows(model, tokens, stop)
    assert plain.config._attn_implementation == before != "mechrep_rows"
    assert torch.equal(model.plain_logits(tokens), logits)


def test_families_that_compute_attention_on_their_own_are_refused() -> None:
    bloom = loaded("bloom")
    assert not rows_agree(bloom)
    with pytest.raises(InputError, match="attention interface"):
        read_attention_rows(bloom, random_tokens(1, 4), lambda *_: None)


def test_rows_that_disagree_with_the_reference_are_refused() -> None:
    """A family whose step-by-step function makes other patterns than queries and keys do."""
    module: Any = fresh("llama")
    module.model.layers[1].self_attn.register_forward_hook(
        lambda _module, _args, output: (output[0], None if output[1] is None else output[1].roll(1, dims=1))
    )
    assert not rows_agree(load_model(module))


def test_bad_questions_are_refused() -> None:
    model, tokens = loaded("llama"), random_tokens(1, 4)
    with pytest.raises(InputError, match="queries=0"):
        read_attention_rows(model, tokens, lambda *_: None, queries=0)
    with pytest.raises(InputError, match="layer 3"):
        read_attention_rows(model, tokens, lambda *_: None, layers=[3])


def test_another_default_type_of_torch_changes_nothing() -> None:
    module = copy.deepcopy(tiny("llama_gqa"))
    wanted = reading_of(load_model(module))
    torch.set_default_dtype(torch.float64)
    try:
        found = reading_of(load_model(copy.deepcopy(module)))
    finally:
        torch.set_default_dtype(torch.float32)
    assert (found.rows, found.plain, found.sinks) == (wanted.rows, wanted.plain, wanted.sinks)


def test_a_read_within_a_read_leaves_the_outer_one_as_it_was() -> None:
    model, tokens = loaded("llama_gqa"), random_tokens(2, 5)
    outer: list[int] = []
    inner: list[int] = []
    assert model.plain is not None
    with computed_here(model, lambda _rows, layer, _first: outer.append(layer), layers=[0]):
        read_attention_rows(model, tokens, lambda _rows, layer, _first: inner.append(layer), layers=[1])
        model.plain(input_ids=tokens, use_cache=False)
    assert (outer, inner) == ([0], [1])
