"""The conditions of an ablation study: which circuit, which part of it, with which operation, or which control."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mechrep.ablation.circuit import KINDS, Circuit
from mechrep.ablation.old_controls import CONTROLS, HEAD_CONTROLS, control_heads, control_units
from mechrep.errors import InputError
from mechrep.interventions.ops import Cut, Intervention, When, op_name
from mechrep.measures.attention_sinks import AttentionSinkResult
from mechrep.measures.head_scores import HeadScoreResult
from mechrep.measures.neurons import RepetitionNeuronResult
from mechrep.models.model import Model

Ranked = RepetitionNeuronResult | HeadScoreResult | AttentionSinkResult
Circuits = Circuit | Ranked | Sequence[Circuit | Ranked]
_DRAWN_FOR = {"neurons": CONTROLS, "heads": HEAD_CONTROLS, "layers": ("random",)}
ABLATION_CONTROLS = tuple(dict.fromkeys((*CONTROLS, *HEAD_CONTROLS)))
CELL = ["circuit", "part", "selection", "k", "op", "seed"]


@dataclass(frozen=True)
class AblationCondition:
    """One cell of a study.

    Attributes:
        circuit: name of the circuit under test; ``"none"`` for the untouched model.
        part: ``"whole"``, or ``"neurons"``, ``"heads"`` or ``"layers"``: of a circuit of several kinds these alone.
        selection: ``"none"``, ``"top"`` (the circuit) or the name of a control.
        k: number of components.
        op: name of the operation.
        seed: of the control's draw; 0 where nothing is drawn.
        cut: what is cut; ``None`` for the untouched model.
        intervention: the cut itself.
    """

    circuit: str = "none"
    part: str = "whole"
    selection: str = "none"
    k: int = 0
    op: str = "none"
    seed: int = 0
    cut: Circuit | None = None
    intervention: Intervention | None = None

    def record(self) -> dict[str, Any]:
        """The cell and its components, for JSON."""
        components = {
            kind: [] if self.cut is None else [list(pair) for pair in getattr(self.cut, kind)] for kind in KINDS
        }
        return {name: getattr(self, name) for name in CELL} | components


@dataclass(frozen=True)
class MatchBy:
    """What matched controls are matched by.

    Attributes:
        head_scores: for ``"bos_matched"``.
        sinks: for ``"bos_matched"``, optional.
        neurons: for ``"activation_matched"``.
    """

    head_scores: HeadScoreResult | None = None
    sinks: AttentionSinkResult | None = None
    neurons: RepetitionNeuronResult | None = None

    def or_from(self, result: Ranked | None) -> MatchBy:
        """The same, completed by the result that a circuit was cut from."""
        return MatchBy(
            self.head_scores or (result if isinstance(result, HeadScoreResult) else None),
            self.sinks or (result if isinstance(result, AttentionSinkResult) else None),
            self.neurons or (result if isinstance(result, RepetitionNeuronResult) else None),
        )


def as_circuits(circuits: Circuits, ks: Sequence[int] | None) -> list[tuple[Circuit, Ranked | None]]:
    """Circuits as they are, results cut at every ``k``, each with the result it came from.

    Raises:
        InputError: nothing, a result without ``ks`` or ``ks`` without a result, two circuits of one name and size.
    """
    given = list(circuits) if isinstance(circuits, Sequence) else [circuits]
    ranked = [one for one in given if not isinstance(one, Circuit)]
    try:
        numbers = sorted({operator.index(k) for k in ks or ()})
    except TypeError:
        numbers = []
    if not given or bool(ranked) != bool(numbers) or (numbers and numbers[0] < 1):
        raise InputError(
            f"{len(given) - len(ranked)} circuits and {len(ranked)} rankings with ks={ks}",
            "at least one of them; for rankings, numbers of components from 1 on",
            "pass ks= where there are rankings, and only there",
        )
    found: list[tuple[Circuit, Ranked | None]] = []
    for one in given:
        if isinstance(one, Circuit):
            found.append((one, None))
        elif isinstance(one, RepetitionNeuronResult):
            found += [(Circuit.from_neurons(one, k), one) for k in numbers]
        else:
            found += [(Circuit.from_heads(one, k), one) for k in numbers]
    names = [(circuit.name, len(circuit)) for circuit, _ in found]
    if len(set(names)) < len(names):
        raise InputError(f"circuits {names}", "one circuit for each name and size", "rename circuits")
    return found


def ablation_conditions(
    model: Model,
    circuits: Sequence[tuple[Circuit, Ranked | None]],
    *,
    ops: Sequence[Cut],
    controls: Sequence[str],
    seeds: Sequence[int],
    match_by: MatchBy,
    when: When,
) -> list[AblationCondition]:
    """The untouched model; each circuit, whole and by kinds, under each operation, with its controls.

    A control is drawn for what it is defined for: ``"random"`` for everything, ``"layer_matched"`` for neurons and
    heads, ``"activation_matched"`` for neurons alone, ``"bos_matched"`` for heads alone.

    Raises:
        InputError: a circuit of another model, an unknown control, one named twice or defined for no circuit, one
            that cannot be drawn, two operations of one name.
    """
    names = [op_name(op) for op in ops]
    if not names or len(set(names)) < len(names):
        raise InputError(f"ops {names}", "at least one, each name once", "study them one after the other")
    pieces = [(circuit, part, piece, result) for circuit, result in circuits for part, piece in _pieces(circuit)]
    usable = {control for *_, piece, _ in pieces for control in _controls_of(piece)}
    if not set(controls) <= usable or len(set(controls)) < len(controls):
        raise InputError(
            f"controls={list(controls)}", f"controls among {sorted(usable)}, each once", "leave the others out"
        )
    conditions = [AblationCondition()]
    for circuit, part, piece, result in pieces:
        circuit.check(model.anatomy)
        chosen = [("top", 0, piece)]
        for control in controls:
            if control in _controls_of(piece):
                by = match_by.or_from(result)
                chosen += [(control, seed, _draw(control, piece, model, seed, by)) for seed in seeds]
        for op, name in zip(ops, names, strict=True):
            conditions += [
                AblationCondition(
                    circuit.name, part, selection, len(piece), name, seed, cut, cut.intervention(op, when)
                )
                for selection, seed, cut in chosen
            ]
    return conditions


def _pieces(circuit: Circuit) -> list[tuple[str, Circuit]]:
    alone = [(kind, circuit.only(kind)) for kind in circuit.kinds] if len(circuit.kinds) > 1 else []
    return [("whole", circuit), *alone]


def _controls_of(piece: Circuit) -> set[str]:
    return set.intersection(*(set(_DRAWN_FOR[kind]) for kind in piece.kinds))


def _draw(control: str, piece: Circuit, model: Model, seed: int, by: MatchBy) -> Circuit:
    """As many other components of each kind."""
    anatomy, drawn = model.anatomy, {}
    if piece.neurons:
        if by.neurons is not None and tuple(by.neurons.delta.shape) != (anatomy.n_layers, anatomy.d_mlp):
            raise InputError(
                f"neurons= of {tuple(by.neurons.delta.shape)} neurons",
                f"a result of this model: {anatomy.n_layers} layers of {anatomy.d_mlp}",
                "measure them on this model",
            )
        drawn["neurons"] = control_units(
            control, piece.neurons, n_layers=anatomy.n_layers, d_mlp=anatomy.d_mlp, seed=seed, result=by.neurons
        )
    if piece.heads:
        drawn["heads"] = control_heads(
            control, piece.heads, n_layers=anatomy.n_layers, n_heads=anatomy.n_heads, seed=seed,
            scores=by.head_scores, sinks=by.sinks,
        )  # fmt: skip
    if piece.layers:
        generator = np.random.default_rng([seed, len(piece.layers)])
        drawn["layers"] = []
        for part in dict.fromkeys(part for part, _ in piece.layers):
            number = sum(listed == part for listed, _ in piece.layers)
            layers = generator.choice(anatomy.n_layers, number, replace=False).tolist()
            drawn["layers"] += [(part, layer) for layer in layers]
    return Circuit(f"{control} control of {piece.name}", found=f"drawn with seed {seed}", **drawn)
