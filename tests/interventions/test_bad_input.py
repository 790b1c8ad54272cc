"""What cannot be meant is refused, early, with what was given and what would be right."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from mechrep.errors import InputError
from mechrep.interventions import Heads, Neurons, Op, add, mean, resample, scale, to_bos, zero
from mechrep.interventions.apply import EditTable
from mechrep.models.load import load_model
from mechrep.models.model import Model
from tests.tiny_models import D_MLP, D_MODEL, N_HEADS, N_LAYERS, tiny
from tests.unchecked import as_users_call

HEADS = (N_LAYERS, N_HEADS, D_MODEL // N_HEADS)


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(copy.deepcopy(tiny("llama")))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"units": [(0, 1), (1, 1), (0, 1)]}, "twice"),
        ({"units": [(0, 1)], "site": "resid_pre"}, "site 'resid_pre'"),
        ({"units": [(0, 1)], "site": "up_proj"}, "site 'up_proj'"),
        ({"units": [(0, 1)], "site": "no_such_site"}, "no_such_site"),
        ({"units": [(0, 1)], "op": "boost"}, "op='boost'"),
        ({"units": [(0, 1)], "when": "first"}, "when='first'"),
        ({"units": [7]}, "units"),
        ({"units": [(0, 1, 2)]}, "units"),
        ({"units": [(0.5, 1)]}, "units"),
        ({"units": [(0, 1)], "op": "to_bos"}, "to_bos on neurons.*Heads"),
    ],
)
def test_malformed_arguments(arguments: dict[str, Any], complaint: str) -> None:
    unchecked_init = as_users_call(Neurons.__init__)  # as users call it: without the type checker of the tests
    with pytest.raises(InputError, match=complaint):
        unchecked_init(object.__new__(Neurons), **arguments)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"units": [(0, 1), (1, 1), (0, 1)]}, r"heads .*with \(0, 1\) twice"),
        ({"units": [(0, 1)], "op": "boost"}, "op='boost'.*'to_bos'"),
        ({"units": [(0, 1)], "op": "add"}, r"add\(1\) on heads.*a vector for every head.*add\(table\)"),
        ({"units": [(0, 1)], "op": add(-0.5)}, r"add\(-0.5\) on heads"),
        ({"units": [(0, 1)], "when": "first"}, "when='first'"),
        ({"units": [7]}, r"units that are no pairs.*\(layer, head\)"),
        ({"units": [(0, 1, 2)]}, "units"),
        ({"units": [(0.5, 1)]}, "units"),
    ],
)
def test_malformed_arguments_of_heads(arguments: dict[str, Any], complaint: str) -> None:
    unchecked_init = as_users_call(Heads.__init__)
    with pytest.raises(InputError, match=complaint):
        unchecked_init(object.__new__(Heads), **arguments)


@pytest.mark.parametrize(
    ("unit", "complaint"),
    [
        ((N_LAYERS, 0), f"layer {N_LAYERS}.*from 0 to {N_LAYERS - 1}"),
        ((-1, 0), "layer -1"),
        ((0, D_MLP), f"neuron {D_MLP} of layer 0.*from 0 to {D_MLP - 1}"),
        ((0, -1), "neuron -1"),
    ],
)
def test_units_that_the_model_does_not_have_are_refused_when_it_is_known(
    model: Model, unit: tuple[int, int], complaint: str
) -> None:
    edit = Neurons([(0, 0), unit], when="all")
    with pytest.raises(InputError, match=complaint):
        edit.hooks(model)
    with pytest.raises(InputError, match=complaint):
        EditTable(model, [edit], [0])


@pytest.mark.parametrize("op", ["zero", "to_bos"])
@pytest.mark.parametrize(
    ("unit", "complaint"),
    [
        ((N_LAYERS, 0), f"layer {N_LAYERS}.*from 0 to {N_LAYERS - 1}"),
        ((-1, 0), "layer -1"),
        ((0, N_HEADS), f"head {N_HEADS} of layer 0.*from 0 to {N_HEADS - 1}"),
        ((0, -1), "head -1"),
    ],
)
def test_heads_that_the_model_does_not_have_are_refused_when_it_is_known(
    model: Model, op: str, unit: tuple[int, int], complaint: str
) -> None:
    edit = Heads([(0, 0), unit], op, when="all")
    with pytest.raises(InputError, match=complaint):
        edit.hooks(model)
    with pytest.raises(InputError, match=complaint):
        EditTable(model, [edit], [0], first_tokens=[5], starts=[0])


@pytest.mark.parametrize("op", [mean(torch.zeros(N_LAYERS, D_MLP - 1)), resample(torch.zeros(2, N_LAYERS - 1, D_MLP))])
def test_a_table_of_another_model_is_refused(model: Model, op: Op) -> None:
    with pytest.raises(InputError, match="one value for every"):
        Neurons([(N_LAYERS - 1, D_MLP - 1)], op).hooks(model, torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize(
    "op",
    [
        mean(torch.zeros(N_LAYERS, D_MLP)),  # of neurons
        mean(torch.zeros(N_LAYERS, N_HEADS)),  # one number per head
        mean(torch.zeros(2, *HEADS)),  # a bank
        resample(torch.zeros(HEADS)),  # no bank
        resample(torch.zeros(0, *HEADS)),  # an empty one
        resample(torch.zeros(2, N_LAYERS + 1, *HEADS[1:])),
        add(torch.zeros(*HEADS[:2], HEADS[2] - 1)),
    ],
)
def test_a_table_that_is_not_of_the_models_heads_is_refused(model: Model, op: Op) -> None:
    with pytest.raises(InputError, match=r"one value for every unit.*3, 4, 8"):
        Heads([(0, 0)], op).hooks(model, torch.zeros(1, dtype=torch.long))


def test_a_bank_is_no_table_and_a_table_no_bank(model: Model) -> None:
    with pytest.raises(InputError, match="one value for every unit"):
        Neurons([(0, 0)], mean(torch.zeros(2, N_LAYERS, D_MLP))).hooks(model, torch.zeros(1, dtype=torch.long))
    with pytest.raises(InputError, match="bank="):
        as_users_call(resample)(torch.zeros(N_LAYERS, D_MLP))


def test_first_tokens_are_asked_for_where_attention_is_moved_to_them(model: Model) -> None:
    moved = Neurons([(0, 1)]) + Heads([(0, 1)], "to_bos")
    for known in ({}, {"first_tokens": [5]}, {"starts": [0]}):
        with pytest.raises(InputError, match=r"first tokens.*pass first_tokens= and starts="):
            EditTable(model, [moved], [0], **known)
    assert EditTable(model, [Heads([(0, 1)], "zero"), Neurons([(0, 1)])], [0, 1])


def test_a_model_without_a_plain_view_is_refused_there() -> None:
    model = load_model(copy.deepcopy(tiny("llama")))
    model.plain = model.handles = None
    with pytest.raises(InputError, match="use view='transformer_lens'"):
        EditTable(model, [Heads([(0, 1)], "to_bos")], [0], first_tokens=[5], starts=[0])
    with (
        pytest.raises(InputError, match="use view='transformer_lens'"),
        EditTable(model, [Heads([(0, 1)])], [0]).applied(),
    ):
        pass


def test_parts_must_begin_at_the_same_place() -> None:
    one, other = Neurons([(0, 1)], when="all"), Neurons([(0, 2)], when="last")
    with pytest.raises(InputError, match=r"\['all', 'last'\].*the same when"):
        _ = one + other
    assert (one + one).when == "all"


def test_starts_are_asked_for_where_they_are_needed(model: Model) -> None:
    with pytest.raises(InputError, match="without starts"):
        Neurons([(0, 1)], when="from_onset").hooks(model)
    with pytest.raises(InputError, match="resampling without starts"):
        Neurons([(0, 1)], resample(torch.zeros(2, N_LAYERS, D_MLP)), when="all").hooks(model)


def test_operations_have_names_that_say_what_they_do() -> None:
    table = torch.zeros(N_LAYERS, D_MLP)
    ops = [zero(), add(), add(-0.5), add(table), scale(2.0), mean(table), to_bos(), resample(table[None])]
    assert [op.name for op in ops] == ["zero", "add(1)", "add(-0.5)", "add", "scale(2)", "mean", "to_bos", "resample"]
    assert [op.differs_by_text for op in ops] == [False] * 7 + [True]


def test_operations_that_do_another_thing_have_another_fingerprint() -> None:
    def ops() -> list[Op]:
        neurons, heads = torch.zeros(N_LAYERS, D_MLP), torch.zeros(HEADS)
        return [
            zero(), to_bos(), scale(2.0), scale(2.0000001), add(), add(2.0), add(neurons), add(heads), mean(neurons),
            mean(neurons + 1), mean(heads), mean(heads + 1), resample(neurons[None]), resample(heads[None]),
            resample(heads[None], seed=1), resample(torch.stack([heads, heads])),
        ]  # fmt: skip

    fingerprints = [op.fingerprint for op in ops()]
    assert len(set(fingerprints)) == len(fingerprints)
    assert [op.fingerprint for op in ops()] == fingerprints
    # Stores that exist were filed under these.
    assert (zero().fingerprint, add().fingerprint) == ("968c238c96d00503", "5d73b1dd8e665fd9")


def test_interventions_are_values() -> None:
    edit = Neurons([(0, 1)])
    with pytest.raises(AttributeError):
        edit.when = "all"  # type: ignore[misc]
    assert edit.units == ((0, 1),)
    assert Neurons(iter([(0, 1)])).units == Heads(iter([(0, 1)])).units == edit.units
    with pytest.raises(AttributeError):
        Heads([(0, 1)]).op = scale(2.0)  # type: ignore[misc]
    as_from_numpy = object.__new__(Neurons)
    as_users_call(Neurons.__init__)(as_from_numpy, [(np.int64(0), np.int64(1))])
    (unit,) = as_from_numpy.units
    assert (unit, type(unit[0])) == ((0, 1), int)
