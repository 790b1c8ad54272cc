"""``Heads``: one operation on a set of attention heads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mechrep.errors import InputError
from mechrep.interventions.base import When
from mechrep.interventions.ops import Op
from mechrep.interventions.units import UnitIntervention
from mechrep.models.anatomy import Anatomy, Site


@dataclass(frozen=True, eq=False)
class Heads(UnitIntervention):
    """Apply ``op`` to attention heads, each at its own output ``z`` before the output projection mixes the heads.

    With the attention pattern ``A`` and the values ``v`` of the key-value head that ``h`` reads (under grouped-query
    attention number ``h // (n_heads / n_kv_heads)``)::

        z_h(t) = sum over s <= t of A_h(t, s) v_h(s)      [d_head];   attention output = b_O + sum over h of z_h W_O(h)

    ``"zero"`` removes the head: ``z_h <- 0``, the same as a model without the head's rows of ``W_O``.  ``scale``,
    ``mean`` and ``resample`` act on ``z_h`` alike.  ``"to_bos"`` leaves the head its output but not its choice: its
    pattern puts everything on the text's first position, ``z_h(t) <- v_h(0)``, which is where heads that have nothing
    to do tend to rest.  Slices of the attention output *after* ``W_O`` are not heads and are not edited here.

    Args:
        units: ``(layer, head)`` pairs.
        op: an operation of :mod:`mechrep.interventions.ops`, or ``"zero"`` / ``"to_bos"``.  ``mean`` takes a table
            ``[layer head d_head]``, ``resample`` a bank ``[sample layer head d_head]`` of which a text draws one
            sample for all its heads; ``add`` takes a table ``[layer head d_head]`` only, as one number in every
            direction of a head has no meaning.
        when: see :class:`~mechrep.interventions.base.Intervention`.

    Raises:
        InputError: duplicate or malformed units, ``add`` of a number; later, heads that the model lacks and tables of
            another shape.

    Source: heads as independent summands: Elhage et al. 2021 (*A Mathematical Framework for Transformer Circuits*);
    zeroing heads: Olsson et al. 2022 (arXiv 2209.11895); their mean: Wang et al. 2023 (arXiv 2211.00593).

    Limits: rows must begin at their first real token (right padding, as in a corpus), else ``"to_bos"`` means the
    padding.  The first position need not be a BOS.  After ``enable_compatibility_mode`` the bias of the values is part
    of ``b_O``: ``"zero"`` then leaves it in.

    Example:
        >>> import mechrep
        >>> from mechrep.interventions import Heads
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> tokens = model.to_tokens("again and again")
        >>> cut = Heads([(0, 0), (1, 1)], "to_bos", when="all")
        >>> changed = model.run_with_hooks(tokens, fwd_hooks=cut.hooks(model))
        >>> (changed != model(tokens)).any(-1)[0, :2].tolist()  # the first position attends to itself anyway
        [False, True]
    """

    unit: ClassVar[str] = "head"

    def __init__(self, units: Iterable[tuple[int, int]], op: Op | str = "zero", when: When = "from_onset") -> None:
        self._take(units, op, when)
        if not (self.op.moves_attention or isinstance(self.op.offset, Tensor) or self.op.offset == 0):
            raise InputError(
                f"{self.op.name} on heads: one number in all directions of a head",
                "a vector for every head",
                "use add(table) with a table [layer head d_head], or scale(factor)",
            )

    def where(self, anatomy: Anatomy) -> tuple[Site, tuple[int, ...]]:
        """``Z`` ``[head d_head]``, or ``PATTERN`` ``[head]`` where attention is moved."""
        if self.op.moves_attention:
            return Site.PATTERN, (anatomy.n_heads,)
        return Site.Z, (anatomy.n_heads, anatomy.d_head)
