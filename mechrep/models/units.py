"""Heads and neurons that a model really has, where layers differ: hybrids, experts, dense layers beside them.

Tables of heads are ``[layer head]`` and tables of neurons ``[layer neuron]`` whatever the layers hold.  What a layer
lacks has no number there: it is NaN, never 0, and ranked nowhere.

The neurons of routed experts stand one expert after the other: neuron ``n`` of expert ``e`` is number ``e * d_expert +
n`` of its layer.  Behind them stand those of a shared expert, which belong to no routed one.

One notation names a unit everywhere: ``L2H0`` a head, ``L18N264`` a neuron, ``L5E7`` an expert.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from mechrep.errors import InputError, MissingPartError
from mechrep.models.anatomy import Anatomy

Kind = Literal["neurons", "heads"]
_KINDS = {"H": "head", "N": "neuron", "E": "expert"}
_LETTERS = {kind: letter for letter, kind in _KINDS.items()}


def unit_name(kind: str, layer: int, number: int) -> str:
    """The name of a unit.

    Args:
        kind: ``"head"``, ``"neuron"`` or ``"expert"``.
        layer: its layer, from 0.
        number: its number in the layer.

    Example:
        >>> unit_name("neuron", 18, 264)
        'L18N264'
    """
    return f"L{layer}{_LETTERS[kind]}{number}"


def read_unit(text: str) -> tuple[str, int, int]:
    """Kind, layer and number of a unit that is named.

    Args:
        text: for instance ``"L2H0"`` (head 0 of layer 2) or ``"L18N264"`` (neuron 264 of layer 18).

    Raises:
        InputError: another notation.

    Example:
        >>> read_unit("L2H0")
        ('head', 2, 0)
    """
    match = re.fullmatch(r"L(\d+)([HNE])(\d+)", text.strip(), re.ASCII)
    if match is None:
        raise InputError(f"component {text!r}", "L3H1 for a head, L2N57 for a neuron, L5E7 for an expert", "correct it")
    return _KINDS[match[2]], int(match[1]), int(match[3])


def as_pairs(units: Iterable[Any] | str, kind: str) -> list[Any]:
    """Units by name as ``(layer, number)`` pairs; what is no name stays as it is.

    Args:
        units: names with commas between, or a list of names or pairs.
        kind: what they must be: ``"head"``, ``"neuron"`` or ``"expert"``.

    Raises:
        InputError: another notation, or a name of another kind.

    Example:
        >>> as_pairs("L2H0, L3H1", "head"), as_pairs(["L2N7", (3, 8)], "neuron")
        ([(2, 0), (3, 1)], [(2, 7), (3, 8)])
    """
    return [_pair(one, kind) if isinstance(one, str) else one for one in split_names(units)]


def split_names(units: Iterable[Any] | str) -> list[Any]:
    """A list of units; of one text the names between its commas."""
    return [part.strip() for part in units.split(",")] if isinstance(units, str) else list(units)


def _pair(name: str, kind: str) -> tuple[int, int]:
    found, layer, number = read_unit(name)
    if found != kind:
        example = unit_name(kind, layer, number)
        raise InputError(f"{name.strip()}, a {found}", f"a {kind}, such as {example}", "name units of one kind")
    return layer, number


def checked_units(units: Iterable[Any], kind: str) -> tuple[tuple[int, int], ...]:
    """Units as pairs, given as pairs or by name.

    Args:
        units: ``(layer, number)`` pairs, or names such as ``"L2H0"``, in a list or with commas between.
        kind: ``"head"``, ``"neuron"`` or ``"expert"``.

    Raises:
        InputError: neither, a name of another kind, or one twice.
    """
    try:
        pairs = tuple((operator.index(layer), operator.index(number)) for layer, number in as_pairs(units, kind))
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        example = listed_units(kind, [(2, 0), (3, 1)])
        raise InputError(
            f"units that are no pairs ({error})", f"(layer, {kind}) pairs, or names such as {example}", "correct them"
        ) from None
    if len(set(pairs)) != len(pairs):
        raise InputError("units with duplicates", f"every (layer, {kind}) once", "drop the duplicates")
    return pairs


def listed_units(kind: str, units: Sequence[tuple[int, int]], most: int = 6) -> str:
    """Names with commas between, of which only the first are shown.

    Args:
        kind: ``"head"``, ``"neuron"`` or ``"expert"``.
        units: ``(layer, number)`` pairs.
        most: how many are shown.

    Example:
        >>> listed_units("head", [(0, 1), (2, 0)]), listed_units("neuron", [(0, n) for n in range(50)], 2)
        ('L0H1, L2H0', 'L0N0, L0N1 and 48 more')
    """
    names = ", ".join(unit_name(kind, *unit) for unit in units[:most])
    return names if len(units) <= most else f"{names} and {len(units) - most} more"


def units_per_layer(anatomy: Anatomy, kind: Kind) -> tuple[int, ...]:
    """How many neurons, or heads, each layer has.

    Example:
        >>> import mechrep
        >>> units_per_layer(mechrep.load_model("mechrep-tiny").anatomy, "heads")
        (2, 2, 2, 2)
    """
    if kind == "neurons":
        return anatomy.neurons
    return tuple(anatomy.n_heads if n in anatomy.attention_layers else 0 for n in range(anatomy.n_layers))


def check_unit(anatomy: Anatomy, kind: Kind, layer: int, number: int) -> None:
    """Refuse a neuron or a head that its layer does not have.

    Raises:
        InputError: it does not; the message says how many it has.
    """
    check_number(units_per_layer(anatomy, kind), kind[:-1], layer, number)


def check_number(there: Sequence[int], unit: str, layer: int, number: int) -> None:
    """The same, given how many units each layer has.

    Raises:
        InputError: a layer or a unit that does not exist.
    """
    if not 0 <= layer < len(there):
        raise InputError(f"layer {layer}", f"a layer from 0 to {len(there) - 1}", "count layers from 0")
    if not 0 <= number < there[layer]:
        expected = f"a {unit} from 0 to {there[layer] - 1}" if there[layer] else f"a layer that has {unit}s"
        raise InputError(f"{unit} {number} of layer {layer}", expected, "check which model it is from")


def empty_table(anatomy: Anatomy, kind: Kind) -> Float64[Tensor, "layer number"]:
    """Zeros for the neurons or heads of every layer; NaN for what a layer does not have.

    Example:
        >>> import mechrep
        >>> empty_table(mechrep.load_model("mechrep-tiny").anatomy, "neurons").shape
        torch.Size([4, 352])
    """
    counts = torch.tensor(units_per_layer(anatomy, kind))
    width = anatomy.d_mlp if kind == "neurons" else anatomy.n_heads
    absent = torch.arange(width) >= counts[:, None]
    return torch.zeros(absent.shape, dtype=torch.float64).masked_fill(absent, torch.nan)


def expert_unit(anatomy: Anatomy, layer: int, expert: int, neuron: int) -> tuple[int, int]:
    """The ``(layer, neuron)`` under which a neuron of a routed expert stands in tables and interventions.

    Args:
        anatomy: of the model.
        layer: a layer with experts.
        expert: of the layer.
        neuron: of the expert.

    Raises:
        MissingPartError: a layer without routed experts.
        InputError: an expert or a neuron that does not exist.

    Example:
        >>> import dataclasses, mechrep
        >>> anatomy = mechrep.load_model("mechrep-tiny").anatomy
        >>> anatomy = dataclasses.replace(anatomy, experts=(0, 8, 8, 8), d_expert=44)
        >>> expert_unit(anatomy, 1, 2, 5), expert_of(anatomy, 1, 93)
        ((1, 93), (2, 5))
    """
    anatomy.check_layer(layer)
    experts = anatomy.experts[layer]
    if not experts:
        raise MissingPartError(f"experts of layer {layer}", "a layer with routed experts", "name its neuron itself")
    if not (0 <= expert < experts and 0 <= neuron < anatomy.d_expert):
        raise InputError(
            f"neuron {neuron} of expert {expert} of layer {layer}",
            f"an expert from 0 to {experts - 1}, a neuron from 0 to {anatomy.d_expert - 1}",
            "check which model it is from",
        )
    return layer, expert * anatomy.d_expert + neuron


def expert_of(anatomy: Anatomy, layer: int, neuron: int) -> tuple[int, int]:
    """Expert and neuron in it of a neuron of a layer; expert -1 for one that every token goes through.

    Raises:
        InputError: a neuron that the layer does not have.
    """
    check_unit(anatomy, "neurons", layer, neuron)
    if neuron >= anatomy.experts[layer] * anatomy.d_expert:
        return -1, neuron - anatomy.experts[layer] * anatomy.d_expert
    return divmod(neuron, anatomy.d_expert)
