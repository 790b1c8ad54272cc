"""Sets of components that the first version drew as controls, ablated one by one on today's engine.

Which sets are drawn may change; what the ablation of a set does may not.  The sets stand in the record itself, under
names that begin with ``cut``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mechrep
from tests.golden import api
from tests.golden.entries.texts import free, halves, repeats, windows
from tests.golden.flat import Record, of_value, where
from tests.golden.registry import expected, golden, known

_OPS = {"zero": "zero", "add": "add", "zero/to_bos": ("zero", "to_bos")}


def ablated(model: mechrep.Model, outcomes: list[Any], when: str, op: str, names: Mapping[str, str]) -> Record:
    """Every recorded set under the outcomes; ``names`` maps measures to the names under which they are recorded."""
    entry = "ablation_by_components"
    record = expected(known(model), entry) or {}
    prefix = names["prefix"]
    sets = {key.removeprefix(f"{prefix} cut "): key for key in record if key.startswith(f"{prefix} cut ")}
    assert sets, f"no sets for {prefix!r} in the record of {known(model)}: take them over from an older record"
    cells: list[Any] = [(api.Condition(), None)]
    for cell, key in sets.items():
        chosen = cell.partition("op=")[2].partition(" ")[0] or op
        circuit = mechrep.Circuit(cell, **_components(record[key]))
        condition = api.Condition(cell, "ablation", len(circuit), chosen)
        cells.append((condition, circuit.intervention(_OPS[chosen], when)))
    effects = api.measure_effects(model, cells, outcomes, config={}, run=mechrep.studies.Run(progress=False))
    found: Record = {key: record[key] for key in sets.values()}
    for number, measure in enumerate(effects.measures):
        if measure.name in names:
            for place, cell in enumerate(sets, 1):
                name = where(measure=names[measure.name], copy=measure.copy)
                values = effects.values[number, place, : len(effects.units[number])]
                found |= of_value(f"{prefix} {name} {cell}", values)
    return found


def _components(cut: list[str]) -> dict[str, list[tuple[Any, int]]]:
    parts: dict[str, list[tuple[Any, int]]] = {}
    for kind, listed in (part.split(" ") for part in cut):
        pairs = [unit.split(".") for unit in listed.split("/")]
        parts[kind] = [(one if kind == "layers" else int(one), int(number)) for one, number in pairs]
    return parts


@golden(slow=True)
def ablation_by_components(model: mechrep.Model) -> Record:
    """All sets: circuits' controls at once and everywhere, those of rankings, of writing and of the sweeps."""
    found, loops = api.looping_texts(halves(model)[1])
    copies, loss = api.CopyAccuracy(model, repeats(model)), api.HeldOutLoss(model, windows(model))

    def log_probability(copies: int, when: str) -> Any:
        return api.LoopLogProbability(model, found, loops, copies, when)

    names = {one: one for one in ("loop_log_probability", "copy_accuracy", "copy_loss_drop", "loss")}
    record: Record = {}
    for prefix, outcomes, when in (
        ("from onset", [log_probability(2, "from_onset"), copies, loss], "from_onset"),
        ("everywhere", [log_probability(2, "all"), loss], "all"),
        ("heads", [log_probability(1, "from_onset"), loss], "from_onset"),
        ("neurons", [log_probability(1, "from_onset"), loss], "from_onset"),
    ):
        record |= ablated(model, outcomes, when, "zero", {**names, "prefix": prefix})
    for op in ("zero", "add"):
        record |= ablated(model, [loss], "all", op, {"loss": "loss", "prefix": f"loss {op}"})
    return record | _written(model)


def _written(model: mechrep.Model) -> Record:
    """The sets whose texts are written anew."""
    texts, loops = api.looping_texts(halves(model)[1])
    prompts = [loop.onset for loop in loops]
    others = api.loop_free_texts(model, free(model), 30)
    names = {
        "still_looping": "still_looping",
        "newly_looping": "newly_looping",
        "repeating": "repeating",
        "tokens_to_escape": "escaped_at",
        "relooped": "relooped",
        "new_period": "new_period",
    }
    record: Record = {}
    for prefix, name, op in (("writing", "still_looping", "zero"), ("deactivation", "repeating", "zero")):
        how = api.LoopDecoding(max_new_tokens=60 if prefix == "writing" else 80)
        kept = names if prefix == "deactivation" else {name: name}
        outcome = api.Regeneration(name, model, texts, prompts, loops, how)
        when = "from_onset" if prefix == "writing" else "last"
        record |= ablated(model, [outcome], when, op, {**kept, "prefix": prefix})
    for prefix, name, op in (("writing", "newly_looping", "zero"), ("activation", "repeating", "add")):
        how = api.LoopDecoding(max_new_tokens=60 if prefix == "writing" else 80)
        outcome = api.Regeneration(name, model, others, [30] * len(others), None, how)
        when = "from_onset" if prefix == "writing" else "last"
        record |= ablated(model, [outcome], when, op, {name: name, "prefix": prefix})
    return record
