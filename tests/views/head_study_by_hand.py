"""A study of heads made by hand: every number in it is known, and its texts try to break the page."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch

from mechrep.ablation.circuit import Circuit
from mechrep.ablation.old_controls import head_kinds
from mechrep.ablation.old_study import AblationResult, HeadSweepResult
from mechrep.measures.head_copying import HeadCopyingResult
from mechrep.measures.head_scores import HeadScoreResult
from mechrep.measures.head_targets import SCORES
from mechrep.studies.heads import BEST, CIRCUIT, JOINT, CircuitCut, HeadStudy, LoopExample
from mechrep.text.corpus import Corpus
from tests.views import study_by_hand as by_hand

N_LAYERS, N_HEADS, N_TEXTS, TRIALS = by_hand.N_LAYERS, 4, 12, 10
COPIES, PREVIOUS, RESTS = (4, 1), (2, 3), (1, 0)  # the heads that do something
CONTROLS = {"random": [(0, 0), (5, 2)], "layer_matched": [(4, 0), (4, 2)], "bos_matched": [(3, 3), (3, 0)]}
MEASURES = [
    {"outcome": "loop_log_probability", "copy": 0, "trials": 0},
    {"outcome": "loop_log_probability", "copy": 1, "trials": 0},
    {"outcome": "copy_accuracy", "copy": None, "trials": TRIALS},
    {"outcome": "copy_loss_drop", "copy": None, "trials": 0},
    {"outcome": "loss", "copy": None, "trials": 0},
    {"outcome": "still_looping", "copy": None, "trials": 1},
    {"outcome": "newly_looping", "copy": None, "trials": 1},
]
UNTOUCHED = [-0.5, -0.25, 0.9, 3.0, 2.0, 1.0, 0.0]
# Change of each measure under the cut, and under the first draw of every control (the second does nothing).
CUT = [-0.5, -0.75, -0.8, -2.0, 0.1, -0.25, 0.0]
BESIDE = [-0.1, -0.1, -0.1, -0.2, 0.3, -0.25, 0.0]


def scores(found: bool = True, name: str = "hand") -> HeadScoreResult:
    """One induction head, one previous-token head and one sink head; no self-finding head."""
    table = torch.full((len(SCORES), N_LAYERS, N_HEADS), 0.05)
    if found:
        table[0][COPIES] = 0.9
    table[2][PREVIOUS], table[4][RESTS] = 0.8, 0.7
    chance = torch.full((len(SCORES),), 0.02)
    return HeadScoreResult(
        by_hand.provenance(name),
        scores=table,
        standard_errors=torch.full_like(table, 0.01),
        chance=chance,
        without_sink=table.clone(),
        sink_rows_dropped=torch.zeros(table.shape, dtype=torch.long),
        unexplained=torch.full((N_LAYERS, N_HEADS), 0.1),
        variants=torch.zeros(0, N_LAYERS, N_HEADS),
        variant_names=[],
        names=list(SCORES),
        n_queries=dict.fromkeys(SCORES, 100),
        n_texts=dict.fromkeys(SCORES, 32),
        not_used={"period-1": 2},
        missing={},
    )


def copying(name: str = "hand") -> HeadCopyingResult:
    """The induction head says what comes next, the others say nothing."""
    says = torch.zeros(N_LAYERS, N_HEADS)
    says[COPIES] = 0.3
    nothing, spread = torch.zeros(N_LAYERS, N_HEADS), torch.full((N_LAYERS, N_HEADS), 0.01)
    return HeadCopyingResult(
        by_hand.provenance(name),
        functional=says,
        dla=says.clone(),
        prefix=says.clone(),
        functional_null=nothing,
        functional_null_sd=spread,
        prefix_null=nothing.clone(),
        prefix_null_sd=spread.clone(),
        flat=torch.zeros(N_LAYERS, N_HEADS, dtype=torch.long),
        n_queries=100,
        n_texts=32,
    )


def values(changes: list[list[float]], measures: list[dict[str, Any]]) -> torch.Tensor:
    """A table whose means are the untouched values plus these changes, the same in every text for means."""
    table = torch.zeros(len(measures), len(changes), N_TEXTS, dtype=torch.float64)
    for number, one in enumerate(measures):
        base = UNTOUCHED[MEASURES.index(one)]
        for condition, change in enumerate(changes):
            mean = base + change[MEASURES.index(one)]
            if one["trials"] == 1:  # a text loops or does not
                table[number, condition] = (torch.arange(N_TEXTS) < round(mean * N_TEXTS)).double()
            else:
                table[number, condition] = mean + 0.01 * (torch.arange(N_TEXTS) % 2 - 0.5) * (condition == 1)
    return table


def ablation(
    pieces: dict[tuple[str, str], dict[str, list[tuple[int, int]]]],
    *,
    cut: list[float] | None = None,
    controls: dict[str, list[tuple[int, int]]] | None = None,
    measures: list[dict[str, Any]] | None = None,
    ks: tuple[int, ...] | None = None,
    name: str = "hand",
) -> AblationResult:
    """Every piece, ``(circuit, part)`` with its components, under one cut and two draws of each control."""
    measures, nothing = MEASURES if measures is None else measures, [0.0] * len(MEASURES)
    conditions: list[dict[str, Any]] = [_cell("none", "whole", "none", 0, {}) | {"op": "none"}]
    changes = [nothing]
    for (circuit, part), components in pieces.items():
        for k in ks or (sum(map(len, components.values())),):
            conditions.append(_cell(circuit, part, "top", k, components))
            changes.append(CUT if cut is None else cut)
            for selection, draws in (CONTROLS if controls is None else controls).items():
                for seed, unit in enumerate(draws):
                    conditions.append(_cell(circuit, part, selection, k, {"heads": [unit]}, seed))
                    changes.append(nothing if seed else BESIDE)
    texts = [[f"text-{i}" for i in range(N_TEXTS)] for _ in measures]
    return AblationResult(by_hand.provenance(name), conditions, measures, texts, values(changes, measures))


def _cell(
    circuit: str, part: str, selection: str, k: int, components: dict[str, list[tuple[int, int]]], seed: int = 0
) -> dict[str, Any]:
    cell = {"circuit": circuit, "part": part, "selection": selection, "k": k, "op": "zero", "seed": seed}
    listed = {kind: [list(unit) for unit in components.get(kind, [])] for kind in ("neurons", "heads", "layers")}
    return cell | listed


def sweep(name: str = "hand") -> HeadSweepResult:
    """Every head cut alone; only the head that copies matters."""
    units = [(layer, head) for layer in range(N_LAYERS) for head in range(N_HEADS)]
    measures, nothing = MEASURES[:5], [0.0] * len(MEASURES)
    conditions = [_cell("none", "whole", "none", 0, {}) | {"op": "none"}]
    conditions += [_cell(f"{unit[0]}.{unit[1]}", "whole", "single", 1, {"heads": [unit]}) for unit in units]
    table = values([nothing, *(CUT if unit == COPIES else nothing for unit in units)], measures)
    texts = [[f"text-{i}" for i in range(N_TEXTS)] for _ in measures]
    return HeadSweepResult(by_hand.provenance(name), conditions, measures, texts, table)


def cuts(name: str = "hand", **changes: Any) -> list[CircuitCut]:
    """The head that copies; it with the previous-token head, everywhere; it with neurons."""
    best = Circuit(BEST, heads=[COPIES])
    circuit = Circuit(CIRCUIT, heads=[PREVIOUS, COPIES])
    joint = Circuit(JOINT, heads=[COPIES], neurons=[(5, 7)])
    pieces = {
        (JOINT, "whole"): {"heads": [COPIES], "neurons": [(5, 7)]},
        (JOINT, "neurons"): {"neurons": [(5, 7)]},
        (JOINT, "heads"): {"heads": [COPIES]},
    }
    circuit_alone = {(CIRCUIT, "whole"): {"heads": [PREVIOUS, COPIES]}}
    return [  # only the first cut was tried on loop-free texts
        CircuitCut(best, "from_onset", ablation({(BEST, "whole"): {"heads": [COPIES]}}, name=name, **changes), {}),
        CircuitCut(
            circuit,
            "all",
            ablation(circuit_alone, controls={"random": [(0, 0)]}, measures=MEASURES[:6], name=name),
            {"layer_matched": "2 heads for the control 'layer_matched'; there are 1"},
        ),
        CircuitCut(
            joint, "from_onset", ablation(pieces, measures=MEASURES[:6], name=name), {"bos_matched": "not for neurons"}
        ),
    ]


def study(name: str = "hand", *, found: bool = True, **changes: Any) -> HeadStudy:
    """A whole study; its texts hold markup.  ``found=False``: no head copies and nothing was cut."""
    result, says = scores(found, name), copying(name)
    corpus = Corpus.from_tokens([[0, 5, 6, 5, 6]] * 3, source="hand").with_columns(
        condition=["looping"] * 3, split=["find", "find", "test"]
    )
    profiles = pd.DataFrame(
        {"layer": range(N_LAYERS), "neurons": 0, "heads": [0, 0, 0, 0, 1, 0], "neuron_share": 0.0, "head_share": 0.0}
    ).assign(overlap=0.25, null=0.2, null_low=0.0, null_high=0.5, p=0.4)
    ranking = {("induction heads", "whole"): {"heads": [COPIES]}}
    tokens = ["<s>", by_hand.SCRIPT, " a", " b", " a", " b"]
    return HeadStudy(
        model_name=name,
        preset="mechrep",
        corpus=corpus,
        scores=result,
        copying=says,
        loop_scores=scores(found, name),
        kinds=head_kinds(result, says, scores(found, name)),
        neurons=by_hand.neurons(name),
        single=sweep(name),
        ranking=ablation(ranking, ks=(1, 2), measures=MEASURES[:5], name=name),
        cuts=cuts(name, **changes) if found else [],
        profiles=profiles if found else None,
        example=LoopExample("text-0 " + by_hand.SCRIPT, tokens, 3, 2, {COPIES: torch.eye(len(tokens))}),
        provenance=by_hand.provenance(name, study="heads", seeds=[0, 1], note=by_hand.SCRIPT),
    )
