"""The conditions of a sweep: which units, under which name, how many, from which seed."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

from mechrep.analyzers.neuron_result import RepetitionNeuronResult
from mechrep.errors import InputError
from mechrep.interventions.neurons import Neurons
from mechrep.interventions.ops import Op
from mechrep.models.model import Model
from mechrep.studies.controls import Unit, as_ranking, control_units


@dataclass(frozen=True)
class Condition:
    """One cell of a sweep.

    Attributes:
        selection: ``"none"`` (the untouched model), ``"top"`` or the name of a control.
        k: number of neurons.
        seed: of the control's draw; 0 where nothing is drawn.
        units: the neurons.
    """

    selection: str
    k: int
    seed: int
    units: tuple[Unit, ...]

    def intervention(self, op: Op, when: str) -> Neurons | None:
        """The intervention of this condition; ``None`` for the untouched model."""
        return Neurons(self.units, op, when=when) if self.units else None  # pyright: ignore[reportArgumentType]


def sweep_conditions(
    model: Model,
    neurons: RepetitionNeuronResult | Sequence[Unit],
    ks: Sequence[int],
    controls: Sequence[str],
    seeds: Sequence[int],
) -> list[Condition]:
    """The untouched model, the first ``k`` neurons, and each control from each seed, for every ``k``.

    Raises:
        InputError: no ``k``, a ``k`` larger than the ranking, a control twice or one that cannot be drawn.
    """
    ranking = as_ranking(neurons)
    try:
        numbers = {operator.index(k) for k in ks}
    except TypeError:
        numbers = set()
    if not numbers or min(numbers) < 0 or max(numbers) > len(ranking):
        raise InputError(
            f"ks={ks}", f"a list of numbers from 0 to {len(ranking)}, the neurons given", "lower k or rank more neurons"
        )
    if len(set(controls)) < len(controls):
        raise InputError(f"controls={list(controls)}", "each control once", "raise seeds to draw it more often")
    result = neurons if isinstance(neurons, RepetitionNeuronResult) else None
    anatomy = model.anatomy
    if result is not None and tuple(result.delta.shape) != (anatomy.n_layers, anatomy.d_mlp):
        raise InputError(
            f"a result of {result.provenance.model['name']} with {tuple(result.delta.shape)} neurons",
            f"{anatomy.n_layers} layers of {anatomy.d_mlp} neurons",
            "use the model that the result was measured on",
        )
    conditions = [Condition("none", 0, 0, ())]
    for k in sorted(numbers - {0}):
        top = ranking[:k]
        conditions.append(Condition("top", k, 0, tuple(top)))
        for control in controls:
            for seed in seeds:
                drawn = control_units(
                    control, top, n_layers=anatomy.n_layers, d_mlp=anatomy.d_mlp, seed=seed, result=result
                )
                conditions.append(Condition(control, k, seed, tuple(drawn)))
    return conditions
