"""How the first layer knows the first token."""

from __future__ import annotations

import dataclasses
from unittest import mock

import numpy as np
import torch

import mechrep
from mechrep.ablation.effects import Effects
from mechrep.run import EFFORTS, Run
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
    return record | of_value("top by published", result.top(3, "published"))


def ablated(effects: Effects) -> Record:
    """What is lost with each head of layer 0, and all, by operation; the areas and the norm without ablation."""
    heads = sum(one.k == 1 and one.op == "zero" for one in effects.conditions)
    names, record = [one.name for one in effects.measures], {}
    for measure in ("detector", "state", "norm"):
        lost = torch.full((2, heads + 1), torch.nan)
        if measure in names:
            lost = -torch.from_numpy(effects.effect_of(measure)[1:].mean(1)).reshape(2, heads + 1)
        record |= of_value(f"{measure}_loss", lost)
    area = {name: effects.of(name)[0].mean() for name in names}
    record |= of_value("detector_auroc", area["detector"]) | of_value("state_auroc", area["state"])
    return record | of_value("log_ratio", area.get("norm"))


@golden()
def first_layer_head_cuts(model: mechrep.Model) -> Record:
    """Which heads of the first layer the mark needs."""
    effects = api.first_layer_heads(model, windows(model), triples=60)
    record = ablated(effects) | of_value("sink_layer", effects.notes["sink_layer"])
    lost = -effects.effect_of("detector")[1 : model.anatomy.n_heads + 1].mean(1)
    order = np.argsort(-lost.astype(np.float32), kind="stable")[:2]
    record |= of_value("top", [(0, int(head)) for head in order])
    return record | of_value("detector", effects.notes["detector"]) | of_frame("table", effects.to_frame())


@golden()
def first_layer_convergence(model: mechrep.Model) -> Record:
    """What repeating a token does to the first layer."""
    result = api.first_layer_convergence(model, [300, 301], prefix=[302, 303], repeats=60)
    record = of_result(result, leave_out=("provenance", "expected_rates"))
    return record | of_frame("table", result.to_frame()) | of_value("frames/agrees", result.agrees)


@golden(slow=True, models=(TINY,))
def find_first_token(model: mechrep.Model) -> Record:
    """All parts of the search together."""
    options = {"token_ids": [300], "prefix": [301], "triples": 60, "repeats": 40}
    with mock.patch.dict(EFFORTS, {"quick": dataclasses.replace(EFFORTS["quick"], nulls=1)}):
        study = api.run_first_layer_study(model, texts=windows(model), **options, run=Run(effort="quick"))
    answer, repeats, distance = study.answer, study.repeats, study.repeats.relative("layer")
    heads = ablated(study.heads)
    facts = {
        "auroc": answer.auroc,
        "detector_loss": [*answer.lost.tolist(), answer.lost_together],
        "norm_loss": heads["norm_loss"][: len(answer.lost) + 1],
        "heads": answer.heads if answer.found else [],
        "neurons": answer.neurons if answer.found else [],
        "identity_error": float(study.mass.identity_error.max()),
        "same_value_error": float(study.mass.same_value_error.max()),
        "last_distance": float(distance[:, -1].median()),
        "layer": answer.layer,
        "mass": answer.mass,
        "uniform_mass": study.mass.uniform_mass,
        "pure_deviation": float(repeats.pure_deviation.max()),
        "repeats": repeats.repeats[-1],
        "shuffled_auroc": max(0.5, *study.detectors.shuffled_aurocs),
        "slope": repeats.median_slope,
        "state_auroc": answer.state_auroc,
    }
    record = {key: one for name, fact in facts.items() for key, one in of_value(name, fact).items()}
    return record | of_frame("claims", answer.claims)
