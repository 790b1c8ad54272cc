"""What can be done to a unit: every operation is ``a <- a * factor + offset`` with its own factor and offset per unit.

Writing all of them in this one form is what lets a batch hold a different operation in every row.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.errors import InputError


@dataclass(frozen=True, eq=False)
class Op:
    """One operation; build it with :func:`zero`, :func:`add`, :func:`scale`, :func:`mean` or :func:`resample`.

    Attributes:
        name: what the operation is called in tables.
        factor: what the activation is multiplied by.
        offset: what is then added: one number for all units, a table ``[layer neuron]``, or for ``resample`` a bank
            ``[sample layer neuron]`` of which every text draws one sample.
        seed: decides which sample a text draws.
    """

    name: str
    factor: float
    offset: float | Tensor = field(default=0.0, repr=False)
    seed: int = 0

    @property
    def differs_by_text(self) -> bool:
        """Whether two texts under this operation get different offsets."""
        return isinstance(self.offset, Tensor) and self.offset.ndim == 3

    @property
    def fingerprint(self) -> str:
        """Identity of name, numbers and seed, for filing what was computed with them."""
        values = torch.as_tensor(self.offset, dtype=torch.float64).cpu().contiguous()
        facts = (self.name, self.factor, self.seed, tuple(values.shape), values.numpy().tobytes())
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def offsets(self, layers: Tensor, neurons: Tensor, text: int) -> Float[Tensor, " unit"]:
        """The offset of each unit (given by its layer and neuron) in the text with this number."""
        if not isinstance(self.offset, Tensor):
            return torch.full((len(layers),), float(self.offset))
        table = self.offset
        if self.differs_by_text:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + text)
            table = table[int(torch.randint(0, len(table), (1,), generator=generator))]
        if layers.numel() and (int(layers.max()) >= table.shape[0] or int(neurons.max()) >= table.shape[1]):
            raise InputError(
                f"a table of shape {tuple(table.shape)} for {self.name}",
                "one value for every [layer neuron]",
                "use the model's own",
            )
        return table[layers, neurons].float()


def zero() -> Op:
    """``a <- 0``: the published deactivation.  Zero may lie far from anything the unit does on text."""
    return Op("zero", 0.0)


def add(value: float | Float[Tensor, "layer neuron"] = 1.0) -> Op:
    """``a <- a + value``: the published activation with 1.0.  A table such as ``2 * sd`` puts units on one scale."""
    return Op("add" if isinstance(value, Tensor) else f"add({value:g})", 1.0, value)


def scale(factor: float) -> Op:
    """``a <- a * factor``."""
    return Op(f"scale({factor:g})", factor)


def mean(values: Float[Tensor, "layer neuron"]) -> Op:
    """``a <- values``: each unit held at its mean, e.g. ``RepetitionNeuronResult.normal_mean``."""
    return Op("mean", 0.0, values)


def resample(bank: Float[Tensor, "sample layer neuron"], seed: int = 0) -> Op:
    """``a <- a sample``: all units of a text take the values of one drawn position of other text, jointly."""
    return Op("resample", 0.0, bank, seed)


_NAMED = {"zero": zero, "add": add}


def as_op(op: Op | str) -> Op:
    """An operation, or the name of one that needs no value (``"zero"``; ``"add"`` means +1).

    Example:
        >>> as_op("add").name
        'add(1)'
    """
    if isinstance(op, Op):
        return op
    if op not in _NAMED:
        raise InputError(
            f"op={op!r}", "an Op, 'zero' or 'add'", "build one with mechrep.interventions.mean(...) and so on"
        )
    return _NAMED[op]()
