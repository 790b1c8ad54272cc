"""``Neurons``: one operation on a set of neurons."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from mechrep.errors import InputError
from mechrep.interventions.base import When
from mechrep.interventions.ops import Op
from mechrep.interventions.units import UnitIntervention
from mechrep.models.anatomy import Anatomy, Site


@dataclass(frozen=True, eq=False)
class Neurons(UnitIntervention):
    """Apply ``op`` to neurons, at the site that the literature calls the neuron's activation unless told otherwise.

    Args:
        units: ``(layer, neuron)`` pairs, for instance ``result.top(50)``.
        op: an operation of :mod:`mechrep.interventions.ops`, or ``"zero"`` / ``"add"`` (+1).
        site: ``GATE_ACT`` (default) or ``MLP_POST``.  In a gated MLP adding at ``MLP_POST`` is another intervention:
            it ignores the up-projection.
        when: see :class:`~mechrep.interventions.base.Intervention`.

    Raises:
        InputError: duplicate or malformed units, a site that is no neuron site, an operation on attention; later,
            units the model lacks.

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

    unit: ClassVar[str] = "neuron"

    site: Site

    def __init__(
        self,
        units: Iterable[tuple[int, int]],
        op: Op | str = "zero",
        site: Site | str = Site.GATE_ACT,
        when: When = "from_onset",
    ) -> None:
        self._take(units, op, when)
        if site not in (Site.GATE_ACT, Site.MLP_POST):  # a Site equals its own value
            raise InputError(f"site {str(site)!r}", "gate_act or mlp_post", "choose one of these")
        if self.op.moves_attention:
            raise InputError(
                f"{self.op.name} on neurons", "an operation on activations", "use it with mechrep.interventions.Heads"
            )
        object.__setattr__(self, "site", Site(site))

    def where(self, anatomy: Anatomy) -> tuple[Site, tuple[int, ...]]:
        """The site, ``[d_mlp]``."""
        return self.site, (anatomy.d_mlp,)
