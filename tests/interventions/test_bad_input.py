"""What cannot be meant is refused, early, with what was given and what would be right."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import numpy as np
import pytest
import torch

from mechrep.errors import InputError
from mechrep.interventions import Neurons, Op, add, mean, resample, scale, zero
from mechrep.interventions.edits import EditTable
from mechrep.models.load import load_model
from mechrep.models.model import Model
from tests.tiny_models import D_MLP, N_LAYERS, tiny


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(copy.deepcopy(tiny("llama")))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"units": [(0, 1), (1, 1), (0, 1)]}, "duplicates"),
        ({"units": [(0, 1)], "site": "resid_pre"}, "site 'resid_pre'"),
        ({"units": [(0, 1)], "site": "up_proj"}, "site 'up_proj'"),
        ({"units": [(0, 1)], "site": "no_such_site"}, "no_such_site"),
        ({"units": [(0, 1)], "op": "boost"}, "op='boost'"),
        ({"units": [(0, 1)], "when": "first"}, "when='first'"),
        ({"units": [7]}, "units"),
        ({"units": [(0, 1, 2)]}, "units"),
        ({"units": [(0.5, 1)]}, "units"),
    ],
)
def test_malformed_arguments(arguments: dict[str, Any], complaint: str) -> None:
    unchecked_init = inspect.unwrap(Neurons.__init__)  # as users call it: without the type checker of the tests
    with pytest.raises(InputError, match=complaint):
        unchecked_init(object.__new__(Neurons), **arguments)


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


@pytest.mark.parametrize("op", [mean(torch.zeros(N_LAYERS, D_MLP - 1)), resample(torch.zeros(2, N_LAYERS - 1, D_MLP))])
def test_a_table_of_another_model_is_refused(model: Model, op: Op) -> None:
    with pytest.raises(InputError, match="one value for every"):
        Neurons([(N_LAYERS - 1, D_MLP - 1)], op).hooks(model, torch.zeros(1, dtype=torch.long))


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
    ops = [zero(), add(), add(-0.5), add(table), scale(2.0), mean(table), resample(table[None])]
    assert [op.name for op in ops] == ["zero", "add(1)", "add(-0.5)", "add", "scale(2)", "mean", "resample"]
    assert [op.differs_by_text for op in ops] == [False] * 6 + [True]


def test_interventions_are_values() -> None:
    edit = Neurons([(0, 1)])
    with pytest.raises(AttributeError):
        edit.when = "all"  # type: ignore[misc]
    assert edit.units == ((0, 1),)
    assert Neurons(iter([(0, 1)])).units == edit.units
    as_from_numpy = object.__new__(Neurons)
    inspect.unwrap(Neurons.__init__)(as_from_numpy, [(np.int64(0), np.int64(1))])
    (unit,) = as_from_numpy.units
    assert (unit, type(unit[0])) == ((0, 1), int)
