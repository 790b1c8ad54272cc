"""Heads and neurons that a model really has, where layers differ: hybrids, experts, dense layers beside them.

Tables of heads are ``[layer head]`` and tables of neurons ``[layer neuron]`` whatever the layers hold.  What a layer
lacks has no number there: it is NaN, never 0, and ranked nowhere.

The neurons of routed experts stand one expert after the other: neuron ``n`` of expert ``e`` is number ``e * d_expert +
n`` of its layer.  Behind them stand those of a shared expert, which belong to no routed one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from mechrep.errors import InputError, MissingPartError
from mechrep.guards import within
from mechrep.models.anatomy import Anatomy

Kind = Literal["neurons", "heads"]


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
    within("layer", layer, 0, len(there) - 1, "a layer")
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
