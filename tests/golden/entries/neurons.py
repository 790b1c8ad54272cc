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
    (result,) = mechrep.CorpusCache(model, halves(model)[0], progress=False).run(analyzer)
    return result


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
        record |= of_result(result, name) | of_frame(f"{name} table", result.to_frame(10))
        for score in ("delta", "t", "dprime"):
            record |= of_value(f"{name} top by {score}", result.top(8, score))
        record |= of_value(f"{name} layer counts", result.layer_counts(20))
    return record


def of_sweep(sweep: Any) -> Record:
    """What became of every text under every condition, and the tables."""
    record: Record = {}
    for (selection, k, seed), cell in sweep.outcome_frame().groupby(["selection", "k", "seed"], sort=False):
        for column in cell.columns.drop(["selection", "k", "seed"]):
            key = where(measure=column, selection=selection, k=k, seed=seed)
            record |= of_value(key, cell[column].tolist())
    return record | of_frame("table", sweep.to_frame()) | of_frame("summary", sweep.summary())


@golden()
def deactivation_sweep(model: mechrep.Model) -> Record:
    """The found neurons and all controls, on texts that the search has not seen."""
    sweep = mechrep.studies.deactivation_sweep(
        model, loops(model), neurons=neurons(model), ks=[0, 7, 70], controls=CONTROLS, seeds=2, max_new_tokens=80,
        progress=False,
    )  # fmt: skip
    return of_sweep(sweep)


@golden()
def activation_sweep(model: mechrep.Model) -> Record:
    """The found neurons boosted in texts without a loop."""
    sweep = mechrep.studies.activation_sweep(
        model, free(model), neurons=neurons(model), ks=[7, 70], controls=CONTROLS, seeds=2, prompt_length=30,
        max_new_tokens=80, progress=False,
    )  # fmt: skip
    return of_sweep(sweep)


@golden()
def loss_sweep(model: mechrep.Model) -> Record:
    """Loss while neurons are cut, and boosted."""
    record: Record = {}
    for op in ("zero", "add"):
        result = mechrep.studies.loss_sweep(
            model, windows(model), neurons=neurons(model), ks=[7, 70], controls=CONTROLS, seeds=2, op=op, progress=False
        )
        for (selection, k, seed), losses in zip(result.conditions, result.losses, strict=True):
            record |= of_value(where(measure="loss", op=op, selection=selection, k=k, seed=seed), losses)
        record |= of_frame(f"{op} table", result.to_frame())
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
