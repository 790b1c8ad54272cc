"""What can be done to a unit: every operation is ``a <- a * factor + offset`` with its own factor and offset per unit.

Writing all of them in this one form is what lets a batch hold a different operation in every row.  A unit is a neuron,
with one number as its activation, or an attention head, with a vector ``[d_head]``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrep.errors import InputError


@dataclass(frozen=True, eq=False)
class Op:
    """One operation; build it with :func:`zero`, :func:`add`, :func:`scale`, :func:`mean` or one of the others.

    Attributes:
        name: what the operation is called in tables.
        factor: what the activation is multiplied by.
        offset: what is then added: one number for all units, a table ``[layer neuron]`` or ``[layer head d_head]``,
            or, where it differs by text, a bank of such tables ``[sample ...]`` of which every text draws one.
        seed: decides which sample a text draws.
        differs_by_text: whether ``offset`` is such a bank.
        moves_attention: ``factor`` is for a head's pattern, and ``offset`` is added to its weight on the first key.
    """

    name: str
    factor: float
    offset: float | Tensor = field(default=0.0, repr=False)
    seed: int = 0
    differs_by_text: bool = False
    moves_attention: bool = False

    @property
    def fingerprint(self) -> str:
        """Identity of name, numbers and seed, for filing what was computed with them."""
        values = torch.as_tensor(self.offset, dtype=torch.float64).cpu().contiguous()
        facts = (self.name, self.factor, self.seed, tuple(values.shape), values.numpy().tobytes())
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def offsets(
        self, layers: Int[Tensor, " unit"], numbers: Int[Tensor, " unit"], text: int, shape: tuple[int, ...]
    ) -> Float[Tensor, "unit ..."]:
        """The offset of each unit in the text with this number.

        Args:
            layers: layer of each unit.
            numbers: its number in the layer.
            text: number of the text, for resampling.
            shape: that of a table for the whole model: ``[layer neuron]`` or ``[layer head d_head]``.

        Raises:
            InputError: a table or bank of another shape.
        """
        if not isinstance(self.offset, Tensor):
            return torch.full((len(layers), *shape[2:]), float(self.offset))
        table = self.offset
        if tuple(table.shape[int(self.differs_by_text) :]) != shape or len(table) == 0:
            samples = "any number of tables of " if self.differs_by_text else ""
            raise InputError(
                f"a tensor of shape {tuple(table.shape)} for {self.name}",
                f"one value for every unit of the model: {samples}shape {shape}",
                "use the model's own",
            )
        if self.differs_by_text:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + text)
            table = table[int(torch.randint(0, len(table), (1,), generator=generator))]
        return table[layers, numbers].float().cpu()


def zero() -> Op:
    """``a <- 0``: the published deactivation.  Zero may lie far from anything the unit does on text."""
    return Op("zero", 0.0)


def add(value: float | Float[Tensor, "layer unit *d_head"] = 1.0) -> Op:
    """``a <- a + value``: the published activation of neurons with 1.0.

    A table such as ``2 * sd`` puts units on one scale.  Heads take a table only.
    """
    return Op("add" if isinstance(value, Tensor) else f"add({value:g})", 1.0, value)


def scale(factor: float) -> Op:
    """``a <- a * factor``."""
    return Op(f"scale({factor:g})", factor)


def mean(values: Float[Tensor, "layer unit *d_head"]) -> Op:
    """``a <- values``: each unit held at its mean, e.g. ``RepetitionNeuronResult.normal_mean``."""
    return Op("mean", 0.0, values)


def resample(bank: Float[Tensor, "sample layer unit *d_head"], seed: int = 0) -> Op:
    """``a <- a sample``: all units of a text take the values of one drawn position of other text, jointly."""
    return Op("resample", 0.0, bank, seed, differs_by_text=True)


def to_bos() -> Op:
    """A head attends to the first position alone: ``A(t, .) <- (1, 0, 0, ...)``, so that ``z(t) <- v(0)``."""
    return Op("to_bos", 0.0, 1.0, moves_attention=True)


_NAMED = {"zero": zero, "add": add, "to_bos": to_bos}


def as_op(op: Op | str) -> Op:
    """An operation, or the name of one that needs no value (``"zero"``, ``"to_bos"``; ``"add"`` means +1).

    Example:
        >>> as_op("add").name
        'add(1)'
    """
    if isinstance(op, Op):
        return op
    if op not in _NAMED:
        raise InputError(
            f"op={op!r}",
            f"an Op or one of {sorted(_NAMED)}",
            "build one with mechrep.interventions.mean(...) and so on",
        )
    return _NAMED[op]()
