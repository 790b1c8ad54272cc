"""What a token can be coloured by, and how it is asked for: ``"L18N264"``, ``"L2H0"``, ``"norm L5"``, and so on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from mechrep.errors import InputError
from mechrep.guards import each_once, within
from mechrep.models.anatomy import Anatomy, Site
from mechrep.models.units import check_unit
from mechrep.notation import read_unit, split_names, unit_name

Kind = Literal["neuron", "head", "norm", "surprisal", "given"]
Asked: TypeAlias = "str | tuple[int, int] | Mapping[str, Any]"  # one of them, or several in a sequence

_FORMS = "'L18N264' or (18, 264), a neuron; 'L2H0', a head; 'norm L5'; 'surprisal'; or {'name': one number per token}"
UNITS: dict[Kind, str] = {"neuron": "activation", "head": "attention", "norm": "norm", "surprisal": "nats", "given": ""}
_SITES: dict[Kind, Site] = {"neuron": Site.GATE_ACT, "head": Site.PATTERN, "norm": Site.RESID_POST}


@dataclass(frozen=True, eq=False)
class Quantity:
    """Something that has a number for every token.

    Attributes:
        name: as the viewer shows it.
        kind: where it comes from.
        layer: of a neuron, a head or a norm (that of the residual stream behind the layer).
        number: of a neuron or a head.
        values: of a quantity that was handed over.
    """

    name: str
    kind: Kind
    layer: int = -1
    number: int = -1
    values: Float64[np.ndarray, " pos"] | None = None

    @property
    def site(self) -> Site | None:
        """Where it is read; ``None`` for what is not read at one site."""
        return _SITES.get(self.kind)

    def check(self, anatomy: Anatomy, length: int) -> None:
        """Refuse what the model, or a text of this length, does not have.

        Raises:
            InputError: a layer, neuron or head that does not exist, or values of another number than tokens.
            MissingPartError: a kind of model that cannot show it.
        """
        if self.kind in ("neuron", "head"):
            check_unit(anatomy, "neurons" if self.kind == "neuron" else "heads", self.layer, self.number)
        if self.site is not None:
            anatomy.check_site(self.site, self.layer)
        if self.values is not None and self.values.shape != (length,):
            raise InputError(
                f"{'x'.join(map(str, self.values.shape))} values for {self.name!r}",
                f"one for each of the {length} tokens, BOS included",
                "model.encode(text) gives the tokens; a neuron under a name of your own is {'name': 'L18N264'}",
            )


def read_quantities(asked: Asked | Iterable[Asked]) -> list[Quantity]:
    """What was asked for, one by one.

    Args:
        asked: one quantity or several, in the notations above, or their names with commas between; in a mapping the
            keys are names, and the values either numbers or again a notation.

    Raises:
        InputError: what is none of them, or two of one name.

    Example:
        >>> [one.name for one in read_quantities(["surprisal", (18, 264), {"mine": [0.5, 1.0]}])]
        ['surprisal', 'L18N264', 'mine']
        >>> [one.layer for one in read_quantities("norm L5, L2H0")]
        [5, 2]
    """
    if isinstance(asked, str | Mapping) or _is_pair(asked) or not isinstance(asked, Iterable):
        asked = [asked]  # pyright: ignore[reportAssignmentType]
    found = [one for part in asked for one in _read(part)]
    each_once("quantities", (one.name for one in found), least=0, remedy="leave out the second, or rename it")
    return found


def _is_pair(given: object) -> bool:
    return isinstance(given, tuple | list) and len(given) == 2 and all(isinstance(part, Integral) for part in given)


def _read(part: Any) -> list[Quantity]:
    if isinstance(part, Mapping):
        return [_named(str(name), value) for name, value in part.items()]
    if _is_pair(part):
        layer, neuron = (int(number) for number in part)
        return [Quantity(unit_name("neuron", layer, neuron), "neuron", layer, neuron)]
    if not isinstance(part, str):
        raise InputError(f"the quantity {part!r:.60}", _FORMS, "name it that way")
    return [_noted(one) for one in split_names(part)]


def _noted(text: str) -> Quantity:
    written = text.strip()
    if written.lower() == "surprisal":
        return Quantity("surprisal", "surprisal")
    if match := re.fullmatch(r"norm L(\d{1,9})", written, re.ASCII):
        return Quantity(f"norm L{int(match[1])}", "norm", int(match[1]))
    if re.fullmatch(r"L\d{1,9}[HN]\d{1,9}", written, re.ASCII):
        kind, layer, number = read_unit(written)
        return Quantity(unit_name(kind, layer, number), "head" if kind == "head" else "neuron", layer, number)
    raise InputError(f"the quantity {text!r:.60}", _FORMS, "correct it")


def _named(name: str, value: Any) -> Quantity:
    if isinstance(value, str):
        return replace(_noted(value), name=name)
    try:
        numbers = value.detach().cpu().double().numpy() if isinstance(value, Tensor) else np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"values of {name!r} ({error})", "one number per token", "pass a list or an array") from error
    if numbers.ndim != 1:
        raise InputError(
            f"values of {name!r} of shape {tuple(numbers.shape)}", "one number per token", "choose a row or a column"
        )
    return Quantity(name, "given", values=numbers)


def heads_of(layers: Iterable[int], anatomy: Anatomy) -> list[Quantity]:
    """All heads of some layers.

    Raises:
        InputError: a layer that does not exist or has no attention.

    Example:
        >>> import mechrep
        >>> [one.name for one in heads_of([1], mechrep.load_model("mechrep-tiny").anatomy)]
        ['L1H0', 'L1H1']
    """
    found: list[Quantity] = []
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise InputError(f"layers={layers!r}", "layers in a list", "pass layers=[12], or several")
    for layer in dict.fromkeys(layers):
        layer = within("layer", layer, 0, anatomy.n_layers - 1, "a layer")
        anatomy.check_site(Site.PATTERN, layer)
        found += [Quantity(unit_name("head", layer, head), "head", layer, head) for head in range(anatomy.n_heads)]
    return found


def maps_wanted(quantities: Sequence[Quantity], layers: Iterable[int], anatomy: Anatomy) -> list[tuple[int, int]]:
    """``(layer, head)`` of every map: heads that are quantities, and all heads of the layers, in order."""
    heads = [*heads_of(layers, anatomy), *(one for one in quantities if one.kind == "head")]
    return sorted({(one.layer, one.number) for one in heads})
