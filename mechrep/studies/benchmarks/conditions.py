"""Conditions of a benchmark study: the untouched model, interventions under their names, and controls of each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mechrep.errors import InputError
from mechrep.interventions.base import Combined, Intervention
from mechrep.interventions.heads import Heads
from mechrep.interventions.neurons import Neurons
from mechrep.interventions.sink_patch import SinkPatch
from mechrep.models.anatomy import Anatomy
from mechrep.studies.benchmarks.result import UNTOUCHED
from mechrep.studies.circuit import Circuit
from mechrep.studies.controls import control_units
from mechrep.studies.head_controls import control_heads

BENCHMARK_CONTROLS = ("layer_matched", "random")
Changes = Intervention | Circuit | Mapping[str, Intervention | Circuit] | None
_NAMED_UNITS = 8


@dataclass(frozen=True)
class BenchmarkCondition:
    """One column of the table.

    Attributes:
        condition: name of the intervention, ``"original"`` for none.
        selection: ``"none"``, ``"intervention"`` or the name of a control.
        seed: of the control's draw.
        intervention: what is done.
    """

    condition: str = UNTOUCHED
    selection: str = "none"
    seed: int = 0
    intervention: Intervention | None = None

    def record(self) -> dict[str, Any]:
        """The cell, and in words what is done."""
        return {
            "condition": self.condition,
            "selection": self.selection,
            "seed": self.seed,
            "done": "nothing" if self.intervention is None else in_words(self.intervention),
        }


def benchmark_conditions(
    changes: Changes, anatomy: Anatomy, *, controls: Sequence[str], seeds: Sequence[int]
) -> list[BenchmarkCondition]:
    """The untouched model, then every intervention with its controls.

    Args:
        changes: one intervention, called ``"patched"``, or several by name; a circuit is cut to zero.
        anatomy: of the model.
        controls: kinds of controls, see :data:`BENCHMARK_CONTROLS`.
        seeds: one draw of each kind per seed.

    Raises:
        InputError: an unknown control or one named twice, an intervention named ``"original"`` or one for which none
            can be drawn.

    Example:
        >>> import mechrep
        >>> cut = mechrep.Neurons([(3, 7)], when="all")
        >>> anatomy = mechrep.load_model("mechrep-tiny").anatomy
        >>> conditions = benchmark_conditions(cut, anatomy, controls=["layer_matched"], seeds=[0, 1])
        >>> [(one.condition, one.selection, one.seed) for one in conditions[1:]]
        [('patched', 'intervention', 0), ('patched', 'layer_matched', 0), ('patched', 'layer_matched', 1)]
    """
    if not set(controls) <= set(BENCHMARK_CONTROLS) or len(set(controls)) < len(controls):
        raise InputError(f"controls={list(controls)}", f"some of {BENCHMARK_CONTROLS}, each once", "correct the list")
    named = changes if isinstance(changes, Mapping) else {} if changes is None else {"patched": changes}
    conditions = [BenchmarkCondition()]
    for name, change in named.items():
        if name == UNTOUCHED:
            raise InputError(f"an intervention named {name!r}", "another name", "rename it")
        if isinstance(change, Circuit):
            change.check(anatomy)
        chosen = change.intervention(when="all") if isinstance(change, Circuit) else change
        conditions.append(BenchmarkCondition(name, "intervention", 0, chosen))
        for kind in controls:
            conditions += [BenchmarkCondition(name, kind, seed, draw(kind, chosen, anatomy, seed)) for seed in seeds]
    return conditions


def draw(kind: str, intervention: Intervention, anatomy: Anatomy, seed: int) -> Intervention:
    """The same operation on as many other neurons or heads.

    Raises:
        InputError: an intervention on other things, or on more units than are left to draw from.

    Example:
        >>> import mechrep
        >>> anatomy = mechrep.load_model("mechrep-tiny").anatomy
        >>> control = draw("layer_matched", SinkPatch(1, [3, 8]), anatomy, seed=0)
        >>> control.layer, len(control.neurons), {3, 8}.isdisjoint(control.neurons)
        (1, 2, True)
    """
    if isinstance(intervention, Combined):
        return Combined(tuple(draw(kind, part, anatomy, seed) for part in intervention.parts))
    sizes: dict[str, Any] = {"n_layers": anatomy.n_layers, "seed": seed}
    if isinstance(intervention, Heads):
        heads = control_heads(kind, intervention.units, n_heads=anatomy.n_heads, **sizes)
        return Heads(heads, intervention.op, intervention.when)
    if isinstance(intervention, Neurons):
        units = control_units(kind, intervention.units, d_mlp=anatomy.d_mlp, **sizes)
        return Neurons(units, intervention.op, intervention.site, intervention.when)
    if isinstance(intervention, SinkPatch):
        units = control_units(kind, intervention.units, d_mlp=anatomy.d_mlp, **sizes)
        by_layer: dict[int, list[int]] = {}
        for layer, neuron in units:
            by_layer.setdefault(layer, []).append(neuron)
        patches = [SinkPatch(layer, neurons, intervention.when) for layer, neurons in by_layer.items()]
        return patches[0] if len(patches) == 1 else Combined(tuple(patches))
    raise InputError(
        f"controls of {type(intervention).__name__}", "an intervention on neurons or heads", "pass controls=()"
    )


def in_words(intervention: Intervention) -> str:
    """What is done to what, short.

    Example:
        >>> in_words(Neurons([(1, 2), (3, 4)], when="all") + SinkPatch(0, [7]))
        'zero: neurons 1.2, 3.4; held at the first token after BOS: neuron 0.7'
    """
    if isinstance(intervention, Combined):
        return "; ".join(in_words(part) for part in intervention.parts)
    if not isinstance(intervention, (Neurons, Heads, SinkPatch)):
        return type(intervention).__name__
    held = isinstance(intervention, SinkPatch)
    what = "neuron" if held else intervention.unit
    listed = [f"{layer}.{number}" for layer, number in intervention.units]
    more = f" and {len(listed) - _NAMED_UNITS} more" if len(listed) > _NAMED_UNITS else ""
    done = "held at the first token after BOS" if held else intervention.op.name
    return f"{done}: {what}{'s' * (len(listed) > 1)} {', '.join(listed[:_NAMED_UNITS])}{more}"


def identity(intervention: Intervention | None, anatomy: Anatomy) -> str:
    """Fingerprint of everything that an intervention changes in a model of this anatomy."""
    digest = hashlib.sha256()
    if intervention is not None:
        for (site, layer), edit in sorted(intervention.edits(anatomy).items()):
            digest.update(f"{site.value} {layer}".encode())
            for numbers in (edit.factor, edit.offset):
                digest.update(numbers.double().contiguous().numpy().tobytes())
        digest.update(repr((sorted(intervention.holds(anatomy).items()), intervention.when)).encode())
    return digest.hexdigest()[:16]
