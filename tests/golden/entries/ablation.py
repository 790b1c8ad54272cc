"""Circuits cut out of a model, and benchmarks."""

from __future__ import annotations

import functools
from typing import Any

import mechrep
from tests.golden import api
from tests.golden.entries.heads import read, scores
from tests.golden.entries.neurons import neurons
from tests.golden.entries.texts import free, halves, repeats, windows, written
from tests.golden.flat import Record, of_frame, of_value, where
from tests.golden.registry import EMBEDDED, golden

KINDS = ("neurons", "heads", "layers")


def of_ablation(name: str, result: Any) -> Record:
    """Values per measure, condition and text, the parts that each condition cuts, and the tables."""
    record: Record = {}
    cells = []
    for cell in result.conditions:
        cells.append(where(**{key: cell[key] for key in ("circuit", "part", "selection", "k", "op", "seed")}))
        cut = [f"{kind} " + "/".join(f"{a}.{b}" for a, b in cell[kind]) for kind in KINDS if cell[kind]]
        record[f"{name} cut {cells[-1]}"] = cut
    for number, measure in enumerate(result.measures):
        key = f"{name} " + where(measure=measure["outcome"], copy=measure["copy"])
        record[f"{key} texts"] = list(result.texts[number])
        record[f"{key} trials"] = measure["trials"]
        for cell, values in zip(cells, result.values[number], strict=True):
            record |= of_value(f"{key} {cell}", values[: len(result.texts[number])])
    return record | of_frame(f"{name} table", result.to_frame()) | of_frame(f"{name} summary", result.summary())


@functools.cache
def circuit(model: mechrep.Model) -> mechrep.Circuit:
    """The best heads with the best neurons."""
    return mechrep.Circuit.from_heads(scores(model), 2) + mechrep.Circuit.from_neurons(neurons(model), 8)


@golden()
def circuits(model: mechrep.Model) -> Record:
    """Circuits of every source, and their labels."""
    (sinks,) = read(model, windows(model), mechrep.AttentionSinks())
    made = [
        circuit(model),
        mechrep.Circuit.from_heads(sinks, 2),
        mechrep.Circuit.from_heads(scores(model), 1, score="previous_token"),
        mechrep.Circuit.from_neurons(neurons(model), 3, score="t"),
    ]
    record: Record = {}
    for one in made:
        record |= of_value(f"{one.label} neurons", one.neurons) | of_value(f"{one.label} heads", one.heads)
        record |= {f"{one.label} found": one.found, f"{one.label} seen texts": sorted(one.seen_texts)}
    return record


@golden(slow=True)
def ablation_study(model: mechrep.Model) -> Record:
    """The outcomes of one pass: loops, copying, loss; a union and a layer, all operations, both times."""
    layer = mechrep.Circuit("last MLP", layers=[("mlp", model.anatomy.n_layers - 1)])
    settings: dict[str, Any] = {
        "corpus": halves(model)[1], "repeats": repeats(model), "windows": windows(model), "seeds": 2, "copies": 2,
        "progress": False,
    }  # fmt: skip
    first = mechrep.studies.ablation_study(
        model,
        [circuit(model), layer],
        ops=["zero", ("zero", "to_bos")],
        controls=["random", "layer_matched"],
        **settings,
    )
    everywhere = mechrep.studies.ablation_study(
        model, circuit(model), when="all", controls=["random"], outcomes=["loop_log_probability", "loss"], **settings
    )
    record = of_ablation("from onset", first) | of_ablation("everywhere", everywhere)
    return record | of_value("frames/top", [str(cell) for cell in first.top(3)])


@golden()
def ablation_of_rankings(model: mechrep.Model) -> Record:
    """Rankings cut at several sizes, with matched controls."""
    (sinks,) = read(model, windows(model), mechrep.AttentionSinks())
    outcomes = ["loop_log_probability", "loss"]
    settings: dict[str, Any] = {
        "corpus": halves(model)[1], "windows": windows(model), "seeds": 2, "copies": 1, "outcomes": outcomes,
        "progress": False,
    }  # fmt: skip
    heads = mechrep.studies.ablation_study(
        model, scores(model), ks=[1, 2], controls=["layer_matched"], sinks=sinks, **settings
    )
    units = mechrep.studies.ablation_study(
        model, neurons(model), ks=[4, 16], controls=["activation_matched", "random"], **settings
    )
    return of_ablation("heads", heads) | of_ablation("neurons", units)


@golden()
def bos_matched_control(model: mechrep.Model) -> Record:
    """Control heads that attend as much to the first position."""
    from mechrep.studies import control_heads, control_units

    sizes = {"n_layers": model.anatomy.n_layers, "n_heads": model.anatomy.n_heads}
    record: Record = {}
    for seed in range(3):
        for kind in ("random", "layer_matched", "bos_matched"):
            drawn = control_heads(kind, scores(model).top(1), seed=seed, scores=scores(model), **sizes)
            record |= of_value(where(heads=kind, seed=seed), drawn)
        for kind in ("random", "layer_matched", "activation_matched"):
            d_mlp, n_layers = model.anatomy.d_mlp, model.anatomy.n_layers
            chosen = neurons(model).top(5)
            units = control_units(kind, chosen, n_layers=n_layers, d_mlp=d_mlp, seed=seed, result=neurons(model))
            record |= of_value(where(neurons=kind, seed=seed), units)
    return record


@golden()
def ablation_by_writing(model: mechrep.Model) -> Record:
    """The dear outcomes: does a text still loop, does another begin to?"""
    result = mechrep.studies.ablation_study(
        model, circuit(model), corpus=written(model), outcomes=["still_looping", "newly_looping"], controls=["random"],
        seeds=2, max_new_tokens=60, prompt_length=30, progress=False,
    )  # fmt: skip
    return of_ablation("writing", result)


@golden()
def single_head_sweep(model: mechrep.Model) -> Record:
    """Every head cut alone."""
    result = mechrep.studies.single_head_sweep(
        model, halves(model)[1], outcomes=["loop_log_probability", "copy_accuracy", "loss"], copies=1,
        repeats=repeats(model).select([0, 1, 2, 3]), windows=windows(model).select([0, 1, 2, 3]), progress=False,
    )  # fmt: skip
    return of_ablation("heads", result) | of_frame("tests", result.tests()) | of_value("frames/top", result.top(3))


@golden()
def layer_profiles(model: mechrep.Model) -> Record:
    """Whether neurons and heads lie in the same layers."""
    profiles = mechrep.studies.layer_profiles(neurons(model), scores(model), k_neurons=40, k_heads=2, draws=200)
    counted = profiles[["layer", "neurons", "heads"]]
    return of_frame("table", profiles) | of_value("counts", {name: counted[name].tolist() for name in counted})


@golden(slow=True, models=EMBEDDED)
def benchmark_study(model: mechrep.Model) -> Record:
    """The embedded tasks, under a cut and a patch, with controls."""
    cuts = {"cut": mechrep.Neurons([(3, 7), (3, 8)], when="all"), "patch": mechrep.SinkPatch(0, [3])}
    result = mechrep.studies.benchmark_study(model, cuts, tasks=api.EMBEDDED_TASKS, limit=4, seeds=1, progress=False)
    cells = [where(**{name: cell[name] for name in ("condition", "selection", "seed")}) for cell in result.conditions]
    record: Record = {}
    for number, measure in enumerate(result.measures):
        key = where(**measure)
        record[f"{key} questions"] = list(
            map(str, result.questions[[t["task"] for t in result.tasks].index(measure["task"])])
        )
        for cell, values in zip(cells, result.values[number], strict=True):
            record |= of_value(f"{key} {cell}", values)
    for task, choices in zip(result.tasks, result.choices, strict=True):
        for cell, chosen in zip(cells, choices, strict=True):
            record |= of_value(f"choices task={task['task']} {cell}", chosen)
    return record | of_frame("table", result.to_frame()) | of_frame("summary", result.summary())


@golden(models=("mechrep-tiny",))
def questions(_model: mechrep.Model) -> Record:
    """The embedded tasks' questions."""
    record: Record = {}
    for name, make in {"continuation": api.continuation_questions, "recall": api.recall_questions}.items():
        asked = make(questions=3, seed=0)
        record |= {f"{name} {i}": [one["query"], *one["choices"], str(one["gold"])] for i, one in enumerate(asked)}
    return record


@golden()
def unused_texts(model: mechrep.Model) -> Record:
    """How many texts of each kind the entries read."""
    found, test = halves(model)
    return {"search": len(found), "test": len(test), "free": len(free(model))}
