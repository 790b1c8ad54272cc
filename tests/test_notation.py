"""One notation for heads, neurons and experts, read everywhere; and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechrep.ablation.circuit import Circuit
from mechrep.errors import InputError
from mechrep.interventions import Experts, Heads, Neurons
from mechrep.notation import as_pairs, checked_units, read_unit, unit_name


@given(st.sampled_from(["head", "neuron", "expert"]), st.integers(0, 99), st.integers(0, 99_999))
def test_a_name_is_read_back(kind: str, layer: int, number: int) -> None:
    assert read_unit(unit_name(kind, layer, number)) == (kind, layer, number)


@pytest.mark.parametrize("make", [Heads, Neurons, Experts])
def test_names_and_pairs_are_the_same_units(make: Any) -> None:
    letter = {Heads: "H", Neurons: "N", Experts: "E"}[make]
    pairs, names = [(2, 0), (13, 7)], [f"L2{letter}0", f"L13{letter}7"]
    for written in (pairs, names, ",".join(names), f" {names[0]} , {names[1]} ", [names[0], pairs[1]], iter(names)):
        assert make(written).units == ((2, 0), (13, 7))
    assert all(name in repr(make(names)) for name in names)


@pytest.mark.parametrize(
    "wrong", ["2:0", "18.264", "L2", "H0L2", "L2H", "L-1H0", "l2h0", "", "L2H0;L3H1", "L2H0,", "L²H0"]
)
def test_another_notation_is_refused_with_the_right_one(wrong: str) -> None:
    for make in (Heads, lambda text: as_pairs([text], "head"), lambda text: Circuit("c", heads=text)):
        with pytest.raises(InputError, match="L3H1"):
            make(wrong)


def test_a_unit_of_another_kind_or_named_twice_is_refused() -> None:
    with pytest.raises(InputError, match=r"L2N0, a neuron.*L2H0"):
        Heads("L2N0")
    with pytest.raises(InputError, match="twice"):
        Heads(["L2H0", (2, 0)])
    with pytest.raises(InputError, match="no pairs"):
        checked_units((2, 0), "head")  # what is typed first
    assert Circuit("c", heads="L2H0", neurons=["L1N5"]).components == {"neurons": [[1, 5]], "heads": [[2, 0]]}
