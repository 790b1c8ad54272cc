"""One notation for units, read and shown everywhere: ``L2H0`` a head, ``L18N264`` a neuron, ``L5E7`` an expert."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from mechrep.errors import InputError
from mechrep.guards import each_once, whole

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
    match = re.fullmatch(r"L(\d{1,9})([HNE])(\d{1,9})", text.strip(), re.ASCII)
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


def heads_and_neurons(text: str) -> dict[str, list[tuple[int, int]]]:
    """Units by name with commas between, by kind.

    Raises:
        InputError: another notation, or an expert.

    Example:
        >>> heads_and_neurons("L3H1,L2N57")
        {'head': [(3, 1)], 'neuron': [(2, 57)]}
    """
    found: dict[str, list[tuple[int, int]]] = {"head": [], "neuron": []}
    for part in split_names(text):
        kind, layer, unit = read_unit(part)
        if kind not in found:
            raise InputError(f"{text!r}, with an expert", "heads and neurons", "change experts with mechrep.Experts")
        found[kind].append((layer, unit))
    return found


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
        pairs = tuple((whole(layer), whole(number)) for layer, number in as_pairs(units, kind))
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        example = listed_units(kind, [(2, 0), (3, 1)])
        raise InputError(
            f"units that are no pairs ({error})", f"(layer, {kind}) pairs, or names such as {example}", "correct them"
        ) from None
    return tuple(each_once(f"{kind}s", pairs, least=0))


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


def neurons_of_one_layer(layer: Any, neurons: Iterable[int] | int | None = None) -> tuple[int, tuple[int, ...]]:
    """A layer and neurons of it.

    Args:
        layer: its number; or, alone, names or pairs of neurons, or an object with such a pair as its ``patch``.
        neurons: numbers of neurons in it, or one number.

    Raises:
        InputError: malformed, none, one twice, or neurons of several layers.

    Example:
        >>> neurons_of_one_layer("L1N5, L1N9"), neurons_of_one_layer(1, [5, 9])
        ((1, (5, 9)), (1, (5, 9)))
    """
    expected = "a layer and numbers of neurons in it, or names such as L1N5, L1N9"
    if neurons is None and hasattr(layer, "patch"):
        if layer.patch is None:
            raise InputError(f"a {type(layer).__name__} without sink neurons", expected, "name the neurons yourself")
        layer, neurons = layer.patch
    elif neurons is None and isinstance(layer, Iterable):
        units = checked_units(layer, "neuron")
        if len({place for place, _ in units}) != 1:
            raise InputError(f"neurons {listed_units('neuron', units)}", "neurons of one layer", "choose one layer")
        layer, neurons = units[0][0], [number for _, number in units]
    try:
        given = tuple(neurons) if isinstance(neurons, Iterable) else (neurons,)
        numbers = tuple(whole(neuron) for neuron in given)  # pyright: ignore[reportArgumentType]
        place = whole(layer)
    except TypeError as error:
        remedy = (
            "pass for instance SinkPatch(3, [5, 9]), SinkPatch('L3N5, L3N9') or SinkPatch(mechrep.find_sink(model))"
        )
        raise InputError(f"layer={layer!r}, neurons={neurons!r} ({error})", expected, remedy) from None
    return place, tuple(each_once("neurons", numbers))
