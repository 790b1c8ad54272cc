"""Repetition neurons: which they are, and what cutting or boosting them does."""

from __future__ import annotations

import functools
from typing import Any

import mechrep
from tests.golden import api
from tests.golden.entries.texts import free, halves, loops, windows
from tests.golden.flat import Record, of_frame, of_result, of_value, where
from tests.golden.registry import golden

CONTROLS = ("random", "layer_matched", "activation_matched")


@functools.cache
def neurons(model: mechrep.Model) -> mechrep.RepetitionNeuronResult:
    """Neurons found on one half of the loops."""
    analyzer = mechrep.RepetitionNeurons("hiraoka2025", r=10)
    return mechrep.CorpusCache(model, halves(model)[0], progress=False).run(analyzer)


_OF_EXPERTS = ("normal_routed", "repetition_routed", "d_expert")  # these models have none


@golden()
def repetition_neurons(model: mechrep.Model) -> Record:
    """Both presets, a window and a site of one's own."""
    makers = {
        "mechrep": mechrep.RepetitionNeurons(),
        "hiraoka2025": mechrep.RepetitionNeurons("hiraoka2025", r=10),
        "paper_form": mechrep.RepetitionNeurons(window="paper_form", r=5, site="mlp_post"),
    }
    record: Record = {}
    results = mechrep.CorpusCache(model, loops(model), progress=False).run(*makers.values())
    for name, result in zip(makers, results, strict=True):
        known = of_result(result, name, ("provenance", *_OF_EXPERTS))
        record |= known | of_frame(f"{name} table", result.to_frame())
        for score in ("delta", "t", "dprime"):
            record |= of_value(f"{name} top by {score}", result.top(8, score))
        record |= of_value(f"{name} layer counts", result.layer_counts(20))
    return record


def of_sweep(effects: Any, names: dict[str, str]) -> Record:
    """What became of every text, untouched and with the first neurons ablated; the names of measures when recorded.

    Control draws are left out: see ``components.py``.
    """
    record: Record = {}
    selections = {"baseline": "none", "ablation": "top"}
    for place, one in enumerate(effects.conditions):
        key = where(selection=selections[one.selection], k=one.k, seed=one.seed)
        record[f"cut {key}"] = "/".join(f"{a}.{b}" for a, b in one.components.get("neurons", ()))
        for number, measure in enumerate(effects.measures):
            if measure.name in names:
                record |= of_value(f"measure={names[measure.name]} {key}", effects.values[number, place])
        if "loss" not in names:
            record |= of_value(f"measure=text {key}", effects.units[0])
    return record | of_frame("summary", effects.summary())


SWEPT = {
    "still_repeating": "repeating",
    "newly_repeating": "repeating",
    "tokens_to_escape": "escaped_at",
    "relooped": "relooped",
    "new_period": "new_period",
}


@golden(slow=True)
def deactivation_sweep(model: mechrep.Model) -> Record:
    """The found neurons, on texts that the search has not seen."""
    effects = mechrep.studies.deactivation_sweep(
        model, loops(model), neurons=neurons(model), ks=[0, 7, 70], controls=(),
        decoding=api.LoopDecoding(max_new_tokens=80), run=mechrep.studies.Run(progress=False),
    )  # fmt: skip
    return of_sweep(effects, SWEPT)


@golden(slow=True)
def activation_sweep(model: mechrep.Model) -> Record:
    """The found neurons boosted in texts without a loop."""
    effects = mechrep.studies.activation_sweep(
        model, free(model), neurons=neurons(model), ks=[7, 70], controls=(),
        decoding=api.LoopDecoding(max_new_tokens=80, prompt_length=30), run=mechrep.studies.Run(progress=False),
    )  # fmt: skip
    return of_sweep(effects, SWEPT)


@golden(slow=True)
def loss_sweep(model: mechrep.Model) -> Record:
    """Loss while neurons are cut, and boosted."""
    record: Record = {}
    for op in ("zero", "add"):
        effects = mechrep.studies.loss_sweep(
            model, windows(model), neurons=neurons(model), ks=[7, 70], controls=(), op=op,
            run=mechrep.studies.Run(progress=False),
        )  # fmt: skip
        for key, value in of_sweep(effects, {"loss": "loss"}).items():
            record[key.replace("measure=loss", f"measure=loss op={op}")] = value
    return record


@golden()
def token_losses(model: mechrep.Model) -> Record:
    """Loss under one intervention of every kind and operation."""
    anatomy = model.anatomy
    levels = api.mean(neurons(model).normal_mean.float())
    reference = api.head_reference(model, windows(model), progress=False)
    heads = [(1, 0), (2, 1)]
    cuts = {
        "none": None,
        "neurons zero": mechrep.Neurons([(1, 3), (2, 5)], "zero"),
        "neurons mean": mechrep.Neurons(neurons(model).top(20), levels),
        "neurons scale": mechrep.Neurons(neurons(model).top(20), api.scale(2.5), when="all"),
        "neurons add mlp_post": mechrep.Neurons([(1, 3)], "add", site="mlp_post", when="last"),
        "heads zero": mechrep.Heads(heads, "zero", "all"),
        "heads to_bos": mechrep.Heads(heads, "to_bos"),
        "heads mean": mechrep.Heads(heads, reference.op("mean")),
        "heads resample": mechrep.Heads(heads, reference.op("resample", 1)),
        "layer": mechrep.Circuit("layer", layers=[("mlp", anatomy.n_layers - 1)]).intervention("zero", "all"),
        "combined": mechrep.Heads(heads, "zero") + mechrep.Neurons([(0, 3)], "zero"),
    }
    losses = mechrep.studies.token_losses(model, windows(model), list(cuts.values()), progress=False)
    record = of_value("reference mean", reference.mean)
    for name, values in zip(cuts, losses, strict=True):
        record |= of_value(where(measure="loss", condition=name), values)
    return record
