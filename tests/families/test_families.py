"""Families: the oracles against the models themselves, and a sample of the table that ``make families`` makes whole."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
from torch import Tensor

from tests.families import oracles
from tests.families.zoo import N_HEADS, Family, build, families, text

pytestmark = pytest.mark.contract

SAMPLE = (
    "GPT-2", "BLOOM", "Gemma 2", "OLMo 2", "Granite", "Phi-3, longrope", "Mixtral", "gpt-oss", "DeepSeek-V3", "BERT",
)  # fmt: skip
DECODERS = [name for name, family in families().items() if not family.refused]
IDS = [0, *text(23)]


def sampled(names: list[str]) -> list[Any]:
    """All names; those that are not in the sample are left to the slow tests."""
    return [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.slow) for name in names]


@functools.cache
def made(name: str) -> tuple[Family, Any]:
    """A family and its model: not to be changed."""
    return families()[name], build(families()[name])


def test_there_are_enough() -> None:
    from tests.families.capabilities import CAPABILITIES

    assert len(DECODERS) >= 45
    assert len({capability.name for capability in CAPABILITIES}) == len(CAPABILITIES) >= 18


@pytest.mark.parametrize("name", sampled(DECODERS))
def test_oracles_add_up_to_the_model(name: str) -> None:
    for what, off in oracles.check(*made(name), IDS).items():
        assert off < 1e-4, what


@pytest.mark.parametrize("name", sampled(DECODERS))
def test_texts_do_not_see_their_future(name: str) -> None:
    """Also the check that these are causal models, and that windows are shorter than the texts."""
    family, model = made(name)
    whole, part = oracles.logits(model, IDS), oracles.logits(model, IDS[:20])
    assert oracles.gap(whole[:20], part) < 1e-5
    assert whole.std() > 0.3, "flat logits would prove nothing"
    changed = oracles.logits(model, [*IDS[:20], 3 + IDS[20] % 50, *IDS[21:]])
    assert (changed[-1] - whole[-1]).abs().max() > 0
    if family.window is not None:
        pattern = oracles.look(family, oracles.plain(family, model), IDS).pattern
        assert min(float(rows[:, -1, : len(IDS) - family.window].abs().max()) for rows in pattern.values()) == 0


@pytest.mark.parametrize("name", sampled([name for name in DECODERS if families()[name].dense]))
def test_switching_off_is_what_weights_of_zero_do(name: str) -> None:
    family, model = made(name)
    layer, head = family.with_attention[-1], 2
    twin = copy.deepcopy(model)
    output = family.part(twin, layer, family.output)
    _silence(output, slice(head * _inputs(output) // N_HEADS, None))
    with oracles.zero_heads(family, model, [(layer, number) for number in range(head, N_HEADS)]):
        found = oracles.logits(model, IDS)
    assert oracles.gap(found, oracles.logits(twin, IDS)) < 1e-5
    layer, twin = family.dense[0], copy.deepcopy(model)
    _silence(family.part(twin, layer, family.down), slice(5, 9))
    with oracles.change_neurons(family, model, [(layer, number) for number in range(5, 9)]):
        found = oracles.logits(model, IDS)
    assert oracles.gap(found, oracles.logits(twin, IDS)) < 1e-5
    assert oracles.gap(found, oracles.logits(model, IDS)) > 1e-3


def _inputs(module: Any) -> int:
    return module.weight.shape[0 if type(module).__name__ == "Conv1D" else 1]


def _silence(module: Any, inputs: slice) -> None:
    weight = module.weight if type(module).__name__ == "Conv1D" else module.weight.T
    weight[inputs] = 0


@pytest.mark.parametrize("name", ["GPT-2", "Mistral", "gpt-oss", "Qwen3-Next", "DeepSeek-V3"])
def test_attention_at_the_first_position_is_that_row_of_the_pattern(name: str) -> None:
    """The pattern itself replaced, in the function that transformers asks for attention."""
    import sys

    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    family, model = made(name)
    layer, moved = family.with_attention[-1], [1, 3]
    asked = family.part(twin := oracles.plain(family, model), layer, family.attention)

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **settings: Any) -> Any:
        eager = sys.modules[type(module).__module__].eager_attention_forward
        read, pattern = eager(module, query, key, value, mask, **settings)
        if module is asked:
            first = value[:, :, 0].repeat_interleave(N_HEADS // value.shape[1], 1)[:, None]  # [batch 1 head d_head]
            read = read.clone()
            read[:, :, moved] = first[:, :, moved]
        return read, pattern

    with oracles.heads_to_first(family, model, [(layer, head) for head in moved]):
        found = oracles.logits(model, IDS)
    ALL_ATTENTION_FUNCTIONS["at_first"] = attention
    ALL_MASK_ATTENTION_FUNCTIONS.register("at_first", eager_mask)
    try:
        twin.set_attn_implementation("at_first")
        right = oracles.logits(twin, IDS)
    finally:
        del ALL_ATTENTION_FUNCTIONS["at_first"]
    assert oracles.gap(found, right) < 1e-5
    assert oracles.gap(found, oracles.logits(model, IDS)) > 1e-3


@pytest.mark.parametrize("name", sampled(list(families())))
def test_every_cell_is_right_or_says_why_not(name: str) -> None:
    from tests.families.table import row

    cells = row(name, families()[name])
    assert not {capability: cell for capability, cell in cells.items() if cell.startswith("WRONG")}
    if families()[name].refused:
        assert all(cell.startswith("not there") for cell in cells.values())


def test_cells_say_what_happened() -> None:
    from mechrep.errors import InputError
    from tests.families.capabilities import Capability, Case, Difference
    from tests.families.table import page, verdict

    def raising(error: Exception | None) -> str:
        def run(_: Any) -> str:
            if error is not None:
                raise error
            return "layers 1, 3"

        case: Any = object.__new__(Case)
        case.module = None
        return verdict(Capability("any", run), case)

    assert raising(None) == "right (layers 1, 3)"
    assert (
        raising(InputError("an apple", "a pear", "buy one"))
        == "not there, because this needs a pear; here it is an apple"
    )
    assert raising(Difference("off")).startswith("WRONG: off")
    assert raising(ZeroDivisionError("by zero")).startswith("WRONG: ZeroDivisionError")
    from tests.families.capabilities import CAPABILITIES

    columns = [capability.name for capability in CAPABILITIES]
    written = page({"Llama": dict.fromkeys(columns, "right"), "BERT": dict.fromkeys(columns, "not there, because")})
    assert written.count("| ✓ ") + written.count("✓ |") >= len(columns)
    assert "1. not there, because" in written
