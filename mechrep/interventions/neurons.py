"""``Neurons``: one operation on a set of neurons."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from mechrep.errors import InputError
from mechrep.interventions.base import Edit, Edits, Intervention, When
from mechrep.interventions.ops import Op, as_op
from mechrep.models.anatomy import NEURON_SITES, Anatomy, Site


@dataclass(frozen=True, eq=False)
class Neurons(Intervention):
    """Apply ``op`` to neurons, at the site that the literature calls the neuron's activation unless told otherwise.

    Args:
        units: ``(layer, neuron)`` pairs, for instance ``result.top(50)``.
        op: an operation of :mod:`mechrep.interventions.ops`, or ``"zero"`` / ``"add"`` (+1).
        site: ``GATE_ACT`` (default) or ``MLP_POST``.  In a gated MLP adding at ``MLP_POST`` is another intervention:
            it ignores the up-projection.
        when: see :class:`~mechrep.interventions.base.Intervention`.

    Raises:
        InputError: duplicate or malformed units, a site that is no neuron site; later, units the model lacks.

    Source: Hiraoka & Inui 2025 (arXiv 2410.13497), deactivation ``a <- 0`` and activation ``a <- a + 1``.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> cut = mechrep.Neurons([(3, 7), (3, 8)], "zero", when="all")
        >>> tokens = model.to_tokens("again and again")
        >>> changed = model.run_with_hooks(tokens, fwd_hooks=cut.hooks(model))
        >>> bool((changed != model(tokens)).any())
        True
    """

    units: tuple[tuple[int, int], ...]
    op: Op
    site: Site = Site.GATE_ACT
    when: When = "from_onset"

    def __init__(
        self,
        units: Iterable[tuple[int, int]],
        op: Op | str = "zero",
        site: Site | str = Site.GATE_ACT,
        when: When = "from_onset",
    ) -> None:
        try:
            pairs = tuple((operator.index(layer), operator.index(neuron)) for layer, neuron in units)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"units that are no pairs ({error})", "(layer, neuron) pairs of whole numbers", "correct them"
            ) from None
        if len(set(pairs)) != len(pairs):
            raise InputError("units with duplicates", "every (layer, neuron) once", "drop the duplicates")
        if site not in (Site.GATE_ACT, Site.MLP_POST):  # a Site equals its own value
            raise InputError(f"site {str(site)!r}", "gate_act or mlp_post", "choose one of these")
        if when not in ("all", "last", "from_onset"):
            raise InputError(f"when={when!r}", "'all', 'last' or 'from_onset'", "choose one of these")
        for name, value in (("units", pairs), ("op", as_op(op)), ("site", Site(site)), ("when", when)):
            object.__setattr__(self, name, value)

    @property
    def differs_by_text(self) -> bool:
        """Whether two texts get different edits (resampling)."""
        return self.op.differs_by_text

    def edits(self, anatomy: Anatomy, text: int = 0) -> Edits:
        """One edit of full width per layer that holds one of the units."""
        for layer, neuron in self.units:
            anatomy.check_layer(layer)
            if not 0 <= neuron < anatomy.d_mlp:
                raise InputError(
                    f"neuron {neuron} of layer {layer}",
                    f"a neuron from 0 to {anatomy.d_mlp - 1}",
                    "check which model it is from",
                )
        units = torch.tensor(self.units, dtype=torch.long).reshape(-1, 2)
        values = self.op.offsets(units[:, 0], units[:, 1], text)
        edits: Edits = {}
        for layer in units[:, 0].unique().tolist():
            here = units[:, 0] == layer
            factor, offset = torch.ones(anatomy.d_mlp), torch.zeros(anatomy.d_mlp)
            factor[units[here, 1]] = self.op.factor
            offset[units[here, 1]] = values[here]
            edits[self.site, layer] = Edit(factor, offset)
        assert set(site for site, _ in edits) <= NEURON_SITES
        return edits
