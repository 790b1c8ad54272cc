"""One operation on a set of units: what ``Neurons`` and ``Heads`` share."""

from __future__ import annotations

import operator
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from mechrep.errors import InputError
from mechrep.interventions.base import Edit, Edits, Intervention, When
from mechrep.interventions.ops import Op, as_op
from mechrep.models.anatomy import Anatomy, Site


@dataclass(frozen=True, eq=False)
class UnitIntervention(Intervention):
    """An operation on ``(layer, unit)`` pairs; subclasses say what a unit is and where it is edited."""

    unit: ClassVar[str]  # what one is called in errors

    units: tuple[tuple[int, int], ...]
    op: Op
    when: When

    def _take(self, units: Iterable[Any], op: Op | str, when: str) -> None:
        """Check and set what every subclass is given."""
        try:
            pairs = tuple((operator.index(layer), operator.index(number)) for layer, number in units)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"units that are no pairs ({error})", f"(layer, {self.unit}) pairs of whole numbers", "correct them"
            ) from None
        if len(set(pairs)) != len(pairs):
            raise InputError("units with duplicates", f"every (layer, {self.unit}) once", "drop the duplicates")
        if when not in ("all", "last", "from_onset"):
            raise InputError(f"when={when!r}", "'all', 'last' or 'from_onset'", "choose one of these")
        for name, value in (("units", pairs), ("op", as_op(op)), ("when", when)):
            object.__setattr__(self, name, value)

    @abstractmethod
    def where(self, anatomy: Anatomy) -> tuple[Site, tuple[int, ...]]:
        """The edited site, and the shape of one layer there: ``[unit]``, or ``[unit width]`` where a unit is wide."""

    @property
    def differs_by_text(self) -> bool:
        """Whether two texts get different edits (resampling)."""
        return self.op.differs_by_text

    def edits(self, anatomy: Anatomy, text: int = 0) -> Edits:
        """One edit of full width per layer that holds one of the units."""
        site, shape = self.where(anatomy)
        for layer, number in self.units:
            anatomy.check_layer(layer)
            if not 0 <= number < shape[0]:
                raise InputError(
                    f"{self.unit} {number} of layer {layer}",
                    f"a {self.unit} from 0 to {shape[0] - 1}",
                    "check which model it is from",
                )
        layers, numbers = torch.tensor(self.units, dtype=torch.long).reshape(-1, 2).unbind(-1)
        values = self.op.offsets(layers, numbers, text, (anatomy.n_layers, *shape))
        edits: Edits = {}
        for layer in layers.unique().tolist():
            here = layers == layer
            factor, offset = torch.ones(shape), torch.zeros(shape)
            factor[numbers[here]], offset[numbers[here]] = self.op.factor, values[here]
            edits[site, layer] = Edit(factor.flatten(), offset.flatten())
        return edits
