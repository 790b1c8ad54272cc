"""One operation on all units of some layers: all heads of an attention, all neurons of an MLP."""

from __future__ import annotations

from dataclasses import dataclass

from mechrep.interventions.hooks import Edits, When
from mechrep.interventions.ops import Heads, Intervention, Neurons, Op, as_op
from mechrep.models.anatomy import Anatomy
from mechrep.models.units import units_per_layer

Cut = Op | str | tuple[Op | str, Op | str]  # one operation, or one for neurons and one for heads


def as_ops(op: Cut) -> tuple[Op, Op]:
    """The operation on neurons and the one on heads.

    Example:
        >>> [op.name for op in as_ops(("zero", "to_bos"))]
        ['zero', 'to_bos']
    """
    pair = op if isinstance(op, tuple) else (op, op)
    return as_op(pair[0]), as_op(pair[1])


def op_name(op: Cut) -> str:
    """What an operation, or a pair of them, is called in tables."""
    return "/".join(dict.fromkeys(one.name for one in as_ops(op)))


@dataclass(frozen=True, eq=False, repr=False)
class WholeLayers(Intervention):
    """An operation on all heads of an attention, on all neurons of an MLP; biases of their output stay.

    Attributes:
        parts: ``("attention", layer)`` or ``("mlp", layer)``.
        for_neurons: the operation on neurons.
        for_heads: the operation on heads.
        when: as in every intervention.

    Raises:
        InputError: an operation that neurons or heads cannot take.
    """

    parts: tuple[tuple[str, int], ...]
    for_neurons: Op
    for_heads: Op
    when: When

    def __post_init__(self) -> None:
        self._of(())  # refuses an operation of the wrong kind

    def __repr__(self) -> str:
        shown = ", ".join(f"{part} {layer}" for part, layer in self.parts[:6]) + ", ..." * (len(self.parts) > 6)
        ops = dict.fromkeys((self.for_neurons.name, self.for_heads.name))
        return f"WholeLayers({shown}: {'/'.join(ops)}, when={self.when!r})"

    def _of(self, units: tuple[tuple[str, int, int], ...]) -> list[Neurons | Heads]:
        """The operations on ``(part, layer, number)`` units, of the kinds that this has."""
        kinds = {part for part, _ in self.parts}
        made: list[Neurons | Heads] = []
        if "mlp" in kinds:
            neurons = [(layer, number) for part, layer, number in units if part == "mlp"]
            made.append(Neurons(neurons, self.for_neurons, when=self.when))
        if "attention" in kinds:
            heads = [(layer, number) for part, layer, number in units if part == "attention"]
            made.append(Heads(heads, self.for_heads, self.when))
        return made

    def edits(self, anatomy: Anatomy, text: int = 0) -> Edits:
        """Edits of all units of these layers."""
        width = {"mlp": units_per_layer(anatomy, "neurons"), "attention": units_per_layer(anatomy, "heads")}
        units = tuple((part, layer, number) for part, layer in self.parts for number in range(width[part][layer]))
        edits: Edits = {}
        for operation in self._of(units):
            edits |= operation.edits(anatomy, text)
        return edits

    @property
    def differs_by_text(self) -> bool:
        """Whether one of the operations does."""
        return any(operation.differs_by_text for operation in self._of(()))
