"""Attention sinks: norms, who rests on them, who writes them, runs of one token, and patches."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import torch

import mechrep
from mechrep.ablation.sink_outcomes import SinkOnRepeats, SinkOnTexts
from mechrep.studies.sink_cause import SinkStage
from tests.golden import api
from tests.golden.entries.heads import read
from tests.golden.entries.texts import windows
from tests.golden.flat import Record, of_frame, of_result, of_value, where
from tests.golden.registry import EMBEDDED, TINY, expected, golden, known

TOKENS = [300, 301, 320]


@functools.cache
def sink(model: mechrep.Model) -> Any:
    """The sink of mechrep-tiny; in the others a neuron that stands for one."""
    found = mechrep.find_sink(model, texts=windows(model))
    return found if known(model) == TINY else dataclasses.replace(found, stages=[SinkStage.made_by([(0, 3)])])


@golden()
def sink_analyzers(model: mechrep.Model) -> Record:
    """Norms, and attention to the first position."""
    analyzers = [mechrep.SinkNorms(), mechrep.AttentionSinks()]
    record: Record = {}
    for analyzer, result in zip(analyzers, read(model, windows(model), *analyzers), strict=True):
        name = type(analyzer).__name__
        record |= of_result(result, name) | of_frame(name, result.to_frame())
        record |= of_value(f"{name} top", result.top(3))
    norms = read(model, windows(model), mechrep.SinkNorms(positions=8))[0]
    return record | of_value("layer", norms.layer) | of_value("layer of jump", norms.layer_of_jump)


@golden()
def repeat_norms(model: mechrep.Model) -> Record:
    """Norms along runs of one token, and where they go."""
    (result,) = read(model, api.repeated_tokens(model, TOKENS, 64), mechrep.RepeatNorms())
    typical = read(model, windows(model), mechrep.SinkNorms())[0].other_norm
    record = of_result(result) | of_value("moved", result.moved(1, typical)) | of_value("top", result.top(2, 1))
    return record | of_frame("table", result.to_frame())


@golden()
def first_position(model: mechrep.Model) -> Record:
    """Attention to the first position, read in rows of queries."""
    corpus = api.repeated_tokens(model, TOKENS, 64)
    record = of_value("attention", mechrep.first_position_attention(model, corpus))
    result = mechrep.attention_sinks(model, corpus, keys=16)
    return record | of_result(result) | of_frame("table", result.to_frame())


@golden(slow=True)
def find_sink(model: mechrep.Model) -> Record:
    """What a model's sink is, by the rules of the search."""
    result = mechrep.find_sink(model, texts=windows(model))
    forced = mechrep.find_sink(model, texts=windows(model).select([0, 1]), layer=1)
    drawn = ("null_rises", "null_alphas", "stages", "moved")  # beside null models and draws; tables of their own
    verdicts = ("norm_found", "heads_found", "rows")
    record = of_result(result, leave_out=("provenance", *drawn, *verdicts))
    record |= {f"frames/{name}": getattr(result, name) for name in ("norm_found", "heads_found")}
    record |= of_frame("stages", result.stage_frame()) | of_frame("moved", result.moved_frame())
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
    corpus, ratios = windows(model), []
    conditions = sorted({key.split(" ", 1)[1] for key in _recorded(model, "sink_neurons") if key.startswith("ratio ")})
    units = [[(0, int(one)) for one in key.split("units=")[1].split(",") if one] for key in conditions]
    zeros = [mechrep.Neurons(some, "zero", when="all") if some else None for some in units]
    for layer in range(model.anatomy.n_layers):
        first, others = SinkOnTexts(model, corpus, layer, loss=False).values(zeros, False)
        ratios.append(first.mean(1) / others.mean(1))  # the windows are equally long
    table = torch.stack(ratios, dim=1)
    for key, own in zip(conditions, table, strict=True):
        whole = table[conditions.index("0 cut=none units=")]
        removed = torch.where(whole > 1, 1 - (own - 1) / (whole - 1), torch.nan)
        record |= of_value(f"ratio {key}", own.float()) | of_value(f"removed {key}", removed.float())
    return record | of_value("row norms", api.row_norms(model, 0))


@golden()
def ov_cluster(model: mechrep.Model) -> Record:
    """Tokens whose values lie close, against random sets."""
    result = mechrep.ov_cluster(model, 300, 4, length=16, draws=(3, 2))
    record = (
        of_result(result) | of_value("vectors", api.ov_vectors(model, TOKENS)) | of_frame("table", result.to_frame())
    )
    return record | {"frames/p_signal": result.p_signal, "frames/p_norm": result.p_norm(0)}


def _recorded(model: mechrep.Model, entry: str) -> Record:
    return expected(known(model), entry) or {}


@golden(slow=True)
def sink_cut_study(model: mechrep.Model) -> Record:
    """The sink's neurons ablated, beside the control draws of the record."""
    found, keys = sink(model), list(_recorded(model, "sink_cut_study"))
    conditions = sorted({key.split(" ", 2)[2] for key in keys if key.startswith("measure=")})
    named = [[one for one in key.split("units=")[1].split("/") if one] for key in conditions]
    units = [[tuple(map(int, one.split("."))) for one in some] for some in named]
    zeros = [mechrep.Neurons(some, "zero", when="all") if some else None for some in units]  # pyright: ignore
    outcomes = {
        "text": SinkOnTexts(model, windows(model), found.layer, found.best_head),
        "token": SinkOnRepeats(model, api.repeated_tokens(model, TOKENS, 24), found.layer),
    }
    record = of_value("head", list(found.best_head))
    for unit, outcome in outcomes.items():
        for measure, table in zip(outcome.measures, outcome.values(zeros, False), strict=True):
            name = "losses" if measure.name == "loss" else measure.name
            for key, values in zip(conditions, table, strict=True):
                record |= of_value(f"{where(measure=name, unit=unit)} {key}", values.float())
    effects = mechrep.studies.sink_ablation(model, found, texts=windows(model), tokens=TOKENS, repeats=24)
    return record | of_frame("summary", effects.summary())


@golden(slow=True)
def run_patch_study(model: mechrep.Model) -> Record:
    """A patch that holds neurons at the first token's level, and the same on the control neurons of the record."""
    sets = {
        key.partition(" ")[2]: key.split("units=")[1] for key in _recorded(model, "run_patch_study") if "units=" in key
    }
    sets = {key.removeprefix("unit=text ").removeprefix("unit=token "): units for key, units in sets.items()}
    cells: list[Any] = [(api.Condition(), None)]
    names = [next(key for key, units in sets.items() if not units)]
    for key, units in sorted(sets.items()):
        if units:
            ((layer, neuron),) = ([int(one) for one in unit.split(".")] for unit in units.split("/"))
            cells.append((api.Condition(key, "ablation", 1), mechrep.SinkPatch(layer, [neuron])))
            names.append(key)
    stimulus, head = api.repeated_tokens(model, TOKENS, 24), sink(model).best_head
    outcomes = [SinkOnTexts(model, windows(model), 0, head), SinkOnRepeats(model, stimulus, 0)]
    run = mechrep.studies.Run(progress=False)
    effects = api.with_drift(api.measure_effects(model, cells, outcomes, config={}, run=run))
    record = of_value("head", list(head))
    for measure in effects.measures:
        values = effects.of(measure.name)
        for key, row in zip(names, values, strict=True):
            if measure.name in ("first_norm", "typical_norm", "attention"):  # recorded as means
                record |= of_value(f"measure={measure.name} {key}", float(row.mean()))
            elif measure.name != "p_next":
                name, unit = ("losses", "text") if measure.name == "loss" else (measure.name, "token")
                record |= of_value(f"{where(measure=name, unit=unit)} {key}", row)
    return record


@golden()
def repeat_behaviour(model: mechrep.Model) -> Record:
    """What a model writes after a run of one token, as it is and without its sink neurons."""
    ranking, draw = api.sink_neurons(model, windows(model), 0).ranking(), np.random.default_rng(0)
    sets = {"sink": ranking[:2], "matched": ranking[2:4]}
    sets |= {f"random {i}": sorted(draw.choice(ranking[2:], 2, replace=False).tolist()) for i in range(2)}
    zeros = {name: mechrep.Neurons([(0, n) for n in units], "zero", when="all") for name, units in sets.items()}
    effects = mechrep.studies.repeat_behaviour(model, TOKENS, [1, 4, 16], zeros, new_tokens=6)
    names = ["none", *zeros]
    record: Record = of_value("conditions", names)
    for field, measure in {"p_next": "p_next", "top_next": "continues", "run": "run"}.items():
        for n in (1, 4, 16):
            for condition, values in zip(names, effects.of(measure, n), strict=True):
                record |= of_value(where(measure=field, condition=condition, repeats=n), values)
    chosen = mechrep.studies.repeat_behaviour(model, 4, [2], new_tokens=2, bos=False)
    tokens = [int(token) for token in chosen.units[0]]
    return record | of_frame("table", effects.to_frame()) | of_value("chosen tokens", tokens)


@golden(models=EMBEDDED)
def patched_model(model: mechrep.Model) -> Record:
    """A Hugging Face model under a patch: logits, and text written with a cache."""
    ids = windows(model).tokens[:2]
    with mechrep.PatchedModel(model, mechrep.SinkPatch(0, [3, 8])) as patched:
        record = of_value("logits", patched(ids).logits)
        text = patched.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    return record | of_value("text", text[:, ids.shape[1] :].flatten())
