"""What a study of heads cuts: the circuits that its heads make, each with every control that can be drawn for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechrep.analyzers.heads.result import HeadScoreResult
from mechrep.analyzers.neuron_result import RepetitionNeuronResult
from mechrep.errors import InputError
from mechrep.interventions.base import When
from mechrep.models.model import Model
from mechrep.studies.ablation.conditions import Circuits, MatchBy, ablation_conditions, as_circuits
from mechrep.studies.ablation.result import AblationResult
from mechrep.studies.ablation.study import ablation_study
from mechrep.studies.circuit import Circuit
from mechrep.studies.controls import CONTROLS
from mechrep.studies.head_controls import HEAD_CONTROLS
from mechrep.studies.head_kinds import ON_REPEATS, HeadKind, heads_of
from mechrep.text.corpus import Corpus

BEST, INDUCTION, SELF_FINDING, CIRCUIT, JOINT = (
    "best induction head",
    "all induction heads",
    "self-finding heads",
    "induction circuit",
    "induction heads and repetition neurons",
)
Unit = tuple[int, int]


@dataclass(frozen=True)
class CircuitCut:
    """One circuit, cut, beside its controls.

    Attributes:
        circuit: what was cut.
        when: where: ``"from_onset"`` or ``"all"``.
        result: outcomes.
        left_out: controls that cannot be drawn for this circuit, and why.
    """

    circuit: Circuit
    when: When
    result: AblationResult
    left_out: Mapping[str, str]


@dataclass(frozen=True)
class CutSettings:
    """What all cuts of a study share.

    Attributes:
        texts: looping texts on which nothing was searched, and loop-free ones.
        windows: held-out text.
        scores: of heads, for ``"bos_matched"``.
        neurons: for ``"activation_matched"``.
        seeds: draws of each control.
        preset: of the detector.
        store: folder for finished shards.
        progress: show progress bars.
    """

    texts: Corpus
    windows: Corpus
    scores: HeadScoreResult
    neurons: RepetitionNeuronResult
    seeds: Sequence[int]
    preset: str
    store: str | Path | None
    progress: bool | None


def planned_circuits(
    kinds: Sequence[HeadKind], neurons: RepetitionNeuronResult, n_heads: int
) -> list[tuple[Circuit, When]]:
    """The circuits that these heads make, and where each is cut.

    The induction circuit is the induction heads with the previous-token heads below them.  It is cut at all positions,
    because a previous-token head does its work in the first copy.  The last one joins the induction heads with the
    published share of repetition neurons.

    Args:
        kinds: of :func:`mechrep.studies.head_kinds.head_kinds`.
        neurons: the ranking of the same model.
        n_heads: heads per layer.

    Returns:
        Circuits with ``when``; none where no head qualifies.
    """
    sizes = {"n_layers": len(neurons.delta), "n_heads": n_heads}
    induction = heads_of(kinds, "induction", ON_REPEATS)
    self_finding = heads_of(kinds, "self_finding")
    planned: list[tuple[Circuit, When]] = []

    def add(name: str, heads: Sequence[Unit], when: When = "from_onset") -> None:
        planned.append((Circuit(name, heads=heads, found="by their scores", sizes=sizes), when))

    if induction:
        add(BEST, induction[:1])
    if len(induction) > 1:
        add(INDUCTION, induction)
    if self_finding:
        add(SELF_FINDING, self_finding)
    highest = max((layer for layer, _ in induction), default=0)
    previous = [unit for unit in heads_of(kinds, "previous_token") if unit[0] < highest and unit not in induction]
    if previous:
        add(CIRCUIT, [*induction, *previous], "all")
    k = max(1, neurons.published_k)
    if induction:
        heads = Circuit(JOINT, heads=induction, sizes=sizes)
        together = heads + Circuit.from_neurons(neurons, k)
        facts: dict[str, Any] = {"found": together.found, "provenance": together.provenance}
        planned.append((Circuit(JOINT, neurons=together.neurons, heads=together.heads, **facts), "from_onset"))
    return planned


def cut_circuit(model: Model, circuit: Circuit, when: When, outcomes: Sequence[str], with_: CutSettings) -> CircuitCut:
    """Cut one circuit by zero, beside every control that can be drawn for it.

    Raises:
        InputError: see :func:`mechrep.studies.ablation.study.ablation_study`.
        NothingFoundError: no text of the kind that an outcome needs.
    """
    wanted = HEAD_CONTROLS if circuit.kinds == ("heads",) else tuple(dict.fromkeys((*CONTROLS, *HEAD_CONTROLS)))
    controls, left_out = drawable(model, circuit, wanted, with_)
    result = _ablate(model, circuit, controls, when, outcomes, with_)
    return CircuitCut(circuit, when, result, left_out)


def cut_ranking(model: Model, ks: Sequence[int], outcomes: Sequence[str], with_: CutSettings) -> AblationResult:
    """Cut the heads that score highest on induction, more and more of them, beside what can be drawn for every k."""
    controls, _ = drawable(model, with_.scores, HEAD_CONTROLS, with_, ks)
    return _ablate(model, with_.scores, controls, "from_onset", outcomes, with_, ks)


def drawable(
    model: Model, circuits: Circuits, wanted: Sequence[str], with_: CutSettings, ks: Sequence[int] | None = None
) -> tuple[list[str], dict[str, str]]:
    """Which controls can be drawn, and why the others cannot: layers may lack heads beside those cut."""
    chosen, match_by = as_circuits(circuits, ks), MatchBy(with_.scores, neurons=with_.neurons)
    left_out = {}
    for control in wanted:
        try:
            ablation_conditions(
                model, chosen, ops=["zero"], controls=[control], seeds=with_.seeds, match_by=match_by, when="all"
            )
        except InputError as error:
            left_out[control] = f"{error.given}; there are {error.expected}"
    return [control for control in wanted if control not in left_out], left_out


def _ablate(
    model: Model,
    circuits: Circuits,
    controls: Sequence[str],
    when: When,
    outcomes: Sequence[str],
    with_: CutSettings,
    ks: Sequence[int] | None = None,
) -> AblationResult:
    return ablation_study(
        model,
        circuits,
        corpus=with_.texts,
        ks=ks,
        controls=controls,
        seeds=with_.seeds,
        outcomes=outcomes,
        when=when,
        copies=2,
        windows=with_.windows,
        preset=with_.preset,
        head_scores=with_.scores,
        neurons=with_.neurons,
        held_out=False,  # the caller's texts are others already, or the same ones where a preset wants it so
        store=with_.store,
        progress=with_.progress,
    )
