"""Attention sinks: norms, who rests on them, who writes them, runs of one token, and patches."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import mechrep
from tests.golden import api
from tests.golden.entries.heads import read
from tests.golden.entries.texts import windows
from tests.golden.flat import Record, of_frame, of_result, of_value, where
from tests.golden.registry import EMBEDDED, golden

TOKENS = [300, 301, 320]


@functools.cache
def sink(model: mechrep.Model) -> Any:
    """The sink of a model; where its norm has none, a neuron that stands for one."""
    found = mechrep.find_sink(model, texts=windows(model))
    return found if found.neurons else dataclasses.replace(found, layer=0, neurons=[[0, 3]])


@golden()
def sink_analyzers(model: mechrep.Model) -> Record:
    """Norms, attention to the first position, keys and values there, massive activations."""
    analyzers = [mechrep.SinkNorms(), mechrep.AttentionSinks(), api.SinkStates(), api.MassiveActivations()]
    record: Record = {}
    for analyzer, result in zip(analyzers, read(model, windows(model), *analyzers), strict=True):
        name = type(analyzer).__name__
        record |= of_result(result, name) | of_frame(name, result.to_frame())
        record |= of_value(f"{name} top", result.top(getattr(result, "n_massive", 3)))
    norms = read(model, windows(model), mechrep.SinkNorms(positions=8))[0]
    return record | of_value("layer", norms.layer) | of_value("layer of jump", norms.layer_of_jump)


@golden()
def repeat_norms(model: mechrep.Model) -> Record:
    """Norms along runs of one token, and where they go."""
    (result,) = read(model, api.repeated_tokens(model, TOKENS, 64), mechrep.RepeatNorms())
    typical = read(model, windows(model), mechrep.SinkNorms())[0].other_norm
    record = of_result(result) | of_value("moved", result.moved(1, typical)) | of_value("top", result.top(2, 1))
    return record | of_frame("table", result.to_frame()) | of_value("limit", api.limit_norms(model, TOKENS))


@golden()
def first_position(model: mechrep.Model) -> Record:
    """Attention to the first position, read in rows of queries."""
    corpus = api.repeated_tokens(model, TOKENS, 64)
    record = of_value("attention", mechrep.first_position_attention(model, corpus, queries=16))
    result = mechrep.attention_sinks(model, corpus, keys=16, queries=16)
    return record | of_result(result) | of_frame("table", result.to_frame())


@golden(slow=True)
def find_sink(model: mechrep.Model) -> Record:
    """What a model's sink is, by the rules of the search."""
    result = mechrep.find_sink(model, texts=windows(model))
    forced = mechrep.find_sink(model, texts=windows(model).select([0, 1]), layer=1)
    record = of_result(result, leave_out=("provenance", "reason", "moved_reason"))
    record |= {f"frames/{name}": getattr(result, name) for name in ("reason", "moved_reason")}
    return record | of_frame("table", result.to_frame()) | of_frame("with a layer given", forced.to_frame())


@golden(models=("mechrep-tiny",))
def known_sinks(_model: mechrep.Model) -> Record:
    """Sinks in the literature."""
    frame = mechrep.known_sinks()
    return of_value("sinks", [" ".join(map(str, row)) for row in frame.itertuples(index=False)])


@golden()
def sink_neurons(model: mechrep.Model) -> Record:
    """Who writes the sink, and what is left of its norm without them."""
    corpus = api.repeated_tokens(model, TOKENS, 32)
    result = api.sink_neurons(model, corpus, 0)
    record = of_result(result) | of_value("agreement", result.agreement()) | of_frame("table", result.to_frame())
    for score in ("contribution", "authors", "bos_only"):
        for place in ("first", "repeat"):
            record |= of_value(where(top=score, place=place), result.top(4, score, place))
    cut = api.sink_neuron_ablation(model, windows(model), result, k=2, draws=2)
    for number, name in enumerate(cut.cuts):
        key = where(cut=name, units=",".join(map(str, cut.units[number])))
        record |= of_value(f"ratio {number} {key}", cut.ratio[number])
        record |= of_value(f"removed {number} {key}", cut.removed[number])
    return record | of_frame("cut", cut.to_frame()) | of_value("row norms", api.row_norms(model, 0))


@golden()
def ov_cluster(model: mechrep.Model) -> Record:
    """Tokens whose values lie close, against random sets."""
    result = mechrep.ov_cluster(model, 300, 4, length=16, sets=3, orders=2)
    record = (
        of_result(result) | of_value("vectors", api.ov_vectors(model, TOKENS)) | of_frame("table", result.to_frame())
    )
    return record | {"frames/p_signal": result.p_signal, "frames/p_norm": result.p_norm(0)}


def _conditions(record: Record, result: Any, fields: dict[str, str], conditions: list[str]) -> Record:
    for field, unit in fields.items():
        for number, condition in enumerate(conditions):
            value = getattr(result, field)[number]
            key = where(measure=field, unit=unit or None)
            record |= of_value(f"{key} {condition}", value if unit else float(value))
    return record


@golden(slow=True)
def sink_cut_study(model: mechrep.Model) -> Record:
    """The sink's neurons cut, beside controls."""
    result = mechrep.studies.sink_cut_study(
        model, sink(model), texts=windows(model), tokens=TOKENS, repeats=24, seeds=2, progress=False
    )
    cells = zip(result.cuts, result.selections, result.seeds, result.units, strict=True)
    conditions = [
        where(cut=cut, selection=selection, seed=seed, units="/".join(f"{layer}.{n}" for layer, n in units))
        for cut, selection, seed, units in cells
    ]
    by_text = dict.fromkeys(("first_norm", "typical_norm", "attention", "losses"), "text")
    by_token = dict.fromkeys(("repeat_norm", "continued", "p_next"), "token")
    record = _conditions({}, result, by_text | by_token, conditions)
    record |= of_value("head", result.head) | of_frame("table", result.to_frame())
    return record | of_frame("summary", result.summary())


@golden()
def run_patch_study(model: mechrep.Model) -> Record:
    """A patch that holds neurons at the first token's level, beside controls."""
    result = mechrep.studies.run_patch_study(
        model, mechrep.SinkPatch(0, [n for _, n in sink(model).neurons] or [3]), texts=windows(model), tokens=TOKENS,
        repeats=24, seeds=2, progress=False,
    )  # fmt: skip
    conditions = [
        where(selection=selection, seed=seed, units="/".join(f"{layer}.{n}" for layer, n in units))
        for selection, seed, units in zip(result.selections, result.seeds, result.units, strict=True)
    ]
    whole = dict.fromkeys(("first_norm", "typical_norm", "attention", "mean_attention"), "")
    by_token = dict.fromkeys(("repeat_norm", "moved", "continued", "drifted"), "token")
    record = _conditions({}, result, whole | by_token | {"losses": "text"}, conditions)
    record |= of_value("head", result.head) | of_frame("table", result.to_frame())
    return record | of_frame("summary", result.summary())


@golden()
def repeat_behaviour(model: mechrep.Model) -> Record:
    """What a model writes after a run of one token, untouched and under the cuts of sink neurons."""
    neurons = api.sink_neurons(model, windows(model), 0)
    cuts = mechrep.studies.sink_conditions(neurons, 2, draws=2)
    result = mechrep.studies.repeat_behaviour(model, TOKENS, [1, 4, 16], cuts, new_tokens=6, progress=False)
    record: Record = of_value("conditions", result.conditions)
    for field in ("p_next", "top_next", "run"):
        for condition, values in zip(result.conditions, getattr(result, field), strict=True):
            for n, value in zip(result.repeats, values.T, strict=True):
                record |= of_value(where(measure=field, condition=condition, repeats=n), value)
    chosen = mechrep.studies.repeat_behaviour(model, 4, [2], new_tokens=2, bos=False, progress=False)
    return record | of_frame("table", result.to_frame()) | of_value("chosen tokens", chosen.token_ids)


@golden(models=EMBEDDED)
def patched_model(model: mechrep.Model) -> Record:
    """A Hugging Face model under a patch: logits, and text written with a cache."""
    ids = windows(model).tokens[:2]
    with mechrep.PatchedModel(model, mechrep.SinkPatch(0, [3, 8])) as patched:
        record = of_value("logits", patched(ids).logits)
        text = patched.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    return record | of_value("text", text[:, ids.shape[1] :].flatten())
