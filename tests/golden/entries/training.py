"""Measures over checkpoints, and the card of a model."""

from __future__ import annotations

import mechrep
from mechrep.run import Run
from tests.golden import api
from tests.golden.entries.texts import windows
from tests.golden.flat import Record, of_frame, of_value, where
from tests.golden.registry import TINY, golden, known


def weights(model: mechrep.Model) -> dict[str, float]:
    """A measure of one's own."""
    return {"weights": float(sum(parameter.abs().sum() for parameter in model.plain.parameters()))}


@golden(slow=True, models=(TINY,))
def over_checkpoints(model: mechrep.Model) -> Record:
    """Two revisions: heads, sinks, loops, effects of heads, an analyzer and a function."""
    name = known(model)
    steps = [api.tiny.revisions(name)[0], api.tiny.revisions(name)[-1]]
    measures = [
        weights,
        mechrep.AttentionSinks(),
        api.measure_named("heads", sequences=16),
        api.measure_named("sinks", windows=16),
        api.measure_named("loops", prompts=8),
    ]
    run = Run(progress=False)
    table = mechrep.studies.over_checkpoints(measures, model=name, revisions=steps, corpus=windows(model), run=run)
    record: Record = of_value("steps", [condition.step for condition in table.conditions])
    record |= of_value("tokens", table.notes["tokens"])
    for measure in table.measures:
        for condition, values in zip(table.conditions, table.of(measure.name).tolist(), strict=True):
            record |= of_value(where(measure=measure.name, revision=condition.model), values)
    return record


@golden(slow=True, models=(TINY,))
def measure_card(model: mechrep.Model) -> Record:
    """The card's rows."""
    card = mechrep.studies.measure_card(model, prompts=16, nulls=0)
    values = {f"card {row.measure}": row.value for row in card.rows}
    return of_frame("table", card.to_frame()) | {key: of_value(key, value)[key] for key, value in values.items()}
