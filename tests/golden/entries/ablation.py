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


def of_ablation(name: str, effects: Any) -> Record:
    """Values per measure, condition and text, the parts that each condition ablates, and the tables.

    Control draws are left out: which sets are drawn may change, what an ablation does may not.
    """
    record: Record = {}
    cells = {}
    selections = {"baseline": "none", "ablation": "single" if "peers" in effects.notes else "top"}
    for place, one in enumerate(effects.conditions):
        if one.selection in selections:
            circuit = "none" if place == 0 else one.name
            if place and "peers" in effects.notes:
                circuit = "{}.{}".format(*one.components["heads"][0])
            facts = {"circuit": circuit, "part": one.part, "selection": selections[one.selection], "k": one.k}
            cells[place] = where(**facts, op=one.op or "none", seed=one.seed)
            cut = [f"{kind} " + "/".join(f"{a}.{b}" for a, b in units) for kind, units in one.components.items()]
            record[f"{name} cut {cells[place]}"] = cut
    for number, measure in enumerate(effects.measures):
        key = f"{name} " + where(measure=measure.name, copy=measure.copy)
        record[f"{key} texts"] = list(effects.units[number])
        record[f"{key} trials"] = measure.trials
        for place, cell in cells.items():
            record |= of_value(f"{key} {cell}", effects.values[number, place, : len(effects.units[number])])
    return record | of_frame(f"{name} summary", effects.summary())


def on(model: mechrep.Model, corpus: mechrep.Corpus, **texts: Any) -> Any:
    """The texts of a study."""
    return mechrep.studies.StudyTexts(loops=corpus, repeats=repeats(model), windows=windows(model), **texts)


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
    run, texts = mechrep.studies.Run(progress=False), on(model, halves(model)[1], copies=2)
    first = mechrep.studies.ablation_study(
        model,
        [circuit(model), layer],
        texts=texts,
        ops=["zero", ("zero", "to_bos")],
        controls=mechrep.studies.Controls(["random"], draws=2),
        run=run,
    )
    everywhere = mechrep.studies.ablation_study(
        model, circuit(model), texts=texts, when="all", controls=[], outcomes=["loop_log_probability", "loss"], run=run
    )
    return of_ablation("from onset", first) | of_ablation("everywhere", everywhere)


@golden(slow=True)
def ablation_of_rankings(model: mechrep.Model) -> Record:
    """Rankings ablated at several sizes."""
    settings: dict[str, Any] = {
        "texts": on(model, halves(model)[1], copies=1), "outcomes": ["loop_log_probability", "loss"], "controls": [],
        "run": mechrep.studies.Run(progress=False),
    }  # fmt: skip
    heads = [mechrep.Circuit.from_heads(scores(model), k) for k in (1, 2)]
    units = [mechrep.Circuit.from_neurons(neurons(model), k) for k in (4, 16)]
    study = mechrep.studies.ablation_study
    tables = {"heads": study(model, heads, **settings), "neurons": study(model, units, **settings)}
    return of_ablation("heads", tables["heads"]) | of_ablation("neurons", tables["neurons"])


@golden(slow=True)
def ablation_by_writing(model: mechrep.Model) -> Record:
    """The expensive outcomes: does a text still loop, does another begin to?"""
    from mechrep.ablation.outcomes import LoopDecoding

    texts = on(model, written(model), decoding=LoopDecoding(max_new_tokens=60, prompt_length=30))
    result = mechrep.studies.ablation_study(
        model, circuit(model), texts=texts, outcomes=["still_looping", "newly_looping"], controls=[],
        run=mechrep.studies.Run(progress=False),
    )  # fmt: skip
    return of_ablation("writing", result)


@golden(slow=True)
def single_head_sweep(model: mechrep.Model) -> Record:
    """Every head ablated alone."""
    few = [0, 1, 2, 3]
    texts = mechrep.studies.StudyTexts(
        loops=halves(model)[1], repeats=repeats(model).select(few), windows=windows(model).select(few), copies=1
    )
    result = mechrep.studies.single_head_sweep(
        model, outcomes=["loop_log_probability", "copy_accuracy", "loss"], texts=texts,
        run=mechrep.studies.Run(progress=False),
    )  # fmt: skip
    return of_ablation("heads", result)


@golden()
def layer_profiles(model: mechrep.Model) -> Record:
    """Whether neurons and heads lie in the same layers."""
    profiles = mechrep.studies.layer_profiles(neurons(model), scores(model), k_neurons=40, k_heads=2, draws=200)
    counted = profiles[["layer", "neurons", "heads"]]
    return of_frame("table", profiles) | of_value("counts", {name: counted[name].tolist() for name in counted})


@golden(slow=True, models=EMBEDDED)
def benchmark_study(model: mechrep.Model) -> Record:
    """The embedded tasks, under a cut and a patch."""
    cuts = {"cut": mechrep.Neurons([(3, 7), (3, 8)], when="all"), "patch": mechrep.SinkPatch(0, [3])}
    effects = mechrep.studies.benchmark_study(
        model, cuts, questions=api.Questions(api.EMBEDDED_TASKS, limit=4), controls=(),
        run=mechrep.studies.Run(progress=False),
    )  # fmt: skip
    record: Record = {}
    for number, measure in enumerate(effects.measures):
        task, metric = measure.name.split()
        if metric == "truncated":
            continue
        key = where(task=task, metric=metric)
        record[f"{key} questions"] = list(effects.units[number])
        for place, one in enumerate(effects.conditions):
            cell = where(condition=one.name if place else "original", selection="intervention" if place else "none")
            record |= of_value(f"{key} {cell} seed=0", effects.values[number, place, : len(effects.units[number])])
    return record | of_frame("summary", effects.summary())


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
