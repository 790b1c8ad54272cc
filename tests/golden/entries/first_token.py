"""How the first layer knows the first token."""

from __future__ import annotations

import mechrep
from tests.golden import api
from tests.golden.entries.heads import read
from tests.golden.entries.texts import loops, windows
from tests.golden.flat import Record, of_frame, of_result, of_value
from tests.golden.registry import TINY, golden


@golden()
def first_token_detection(model: mechrep.Model) -> Record:
    """How much attention goes to other tokens, on texts and on loops."""
    record: Record = {}
    for name, corpus in {"windows": windows(model), "loops": loops(model).select([0, 1])}.items():
        (result,) = read(model, corpus, mechrep.FirstTokenDetection.of(model, 24))
        record |= of_result(result, name) | of_frame(name, result.to_frame())
    return record


@golden()
def first_token_detectors(model: mechrep.Model) -> Record:
    """Neurons that tell first tokens from the same tokens elsewhere."""
    result = api.first_token_detectors(model, windows(model), triples=60, k=4, shuffles=3)
    record = of_result(result) | of_frame("table", result.to_frame())
    return record | of_value("top by published", result.top(3, "published")) | of_value("frames/found", result.found)


@golden()
def first_layer_head_cuts(model: mechrep.Model) -> Record:
    """Which heads of the first layer the mark needs."""
    result = api.first_layer_head_cuts(model, windows(model), triples=60)
    record = of_result(result, leave_out=("provenance", "sink_reason"))
    record |= of_value("frames/carriers", result.carriers()) | of_value("top", result.top(2))
    return record | of_frame("table", result.to_frame())


@golden()
def first_layer_convergence(model: mechrep.Model) -> Record:
    """What repeating a token does to the first layer."""
    result = api.first_layer_convergence(model, [300, 301], prefix=[302, 303], repeats=60)
    record = of_result(result, leave_out=("provenance", "theory_words", "expected_rates"))
    return record | of_frame("table", result.to_frame()) | of_value("frames/agrees", result.agrees)


@golden(models=(TINY,))
def find_first_token(model: mechrep.Model) -> Record:
    """All parts of the search together, and its verdict."""
    result = mechrep.find_first_token(
        model, texts=windows(model), token_ids=[300], prefix=[301], triples=60, repeats=40
    )
    record = of_result(result, leave_out=("provenance", "reason"))
    return record | of_frame("table", result.to_frame()) | of_value("frames/reason", result.reason)
