"""Where a loop looks, by the information of the token."""

from __future__ import annotations

import functools
from typing import Any

import mechrep
from tests.golden import api
from tests.golden.entries.texts import loops, windows, written
from tests.golden.flat import Record, of_array, of_frame, of_result, of_value, where
from tests.golden.registry import golden


@functools.cache
def facts(model: mechrep.Model) -> Any:
    """Facts about the tokens of the loops."""
    return api.token_facts(model, loops(model), reference=windows(model))


@golden()
def token_facts(model: mechrep.Model) -> Record:
    """Classes, surprisal and frequency of tokens."""
    found = facts(model)
    record: Record = {}
    for field in ("groups", "values", "queries", "ends", "prompt", "source"):
        record |= of_array(field, getattr(found, field).float())
    return record


@golden(slow=True)
def token_information(model: mechrep.Model) -> Record:
    """Attention by class and information, both presets."""
    record: Record = {}
    corpus = written(model)
    for preset in ("mechrep", "mahaut2025"):
        result = api.token_information(model, corpus, reference=windows(model), preset=preset, progress=False)
        record |= of_result(result, preset)
        record |= of_value(f"{preset} bias", result.bias()) | of_value(f"{preset} top", result.top(3))
        record |= of_frame(f"{preset} table", result.to_frame(draws=50))
        record |= of_frame(f"{preset} matched", result.summary(matched=True, draws=200))
        record |= of_frame(f"{preset} summary", result.summary(draws=200)) | of_frame(f"{preset} sinks", result.sinks())
        compared = result.compare("looping", "loop_free", draws=200)
        record |= of_frame(f"{preset} compared", compared)
    return record


@golden()
def distance_profile(model: mechrep.Model) -> Record:
    """Attention by distance."""
    record = of_result(api.distance_profile(model, windows(model)))
    short = mechrep.CorpusCache(model, windows(model), progress=False).run(api.DistanceProfile(8))
    return record | of_result(short, "short") | of_frame("short", short.to_frame())


@golden(slow=True)
def information_cut(model: mechrep.Model) -> Record:
    """Loops without their low-information tokens."""
    record: Record = {}
    for way in ("mask", "swap"):
        effects = api.information_masking(model, loops(model), facts(model), way=way, draws=2)
        values = effects.of()
        record |= of_value(f"{way} texts", list(effects.units[0])) | of_value(
            f"{way} left out", effects.notes["left_out"]
        )
        for field, numbers in (("untouched", values[0]), ("low", values[1]), ("others", values[2:].mean(0))):
            record |= of_value(where(way=way, condition=field), numbers)
    return record
