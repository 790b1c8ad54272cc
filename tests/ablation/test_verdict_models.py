"""The verdict on real values: sets without a purpose on the embedded model, planted components on planted models."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

import mechrep
from mechrep.ablation.circuit import Circuit
from mechrep.ablation.effect_plots import single_head_frame
from mechrep.ablation.effects import NOT_SUPPORTED, SUPPORTED, Condition, Effects, Measure
from mechrep.ablation.outcomes import HeldOutLoss
from mechrep.ablation.study import Controls, StudyTexts, ablation_study, single_head_sweep
from mechrep.models import tiny
from mechrep.text.corpus import Corpus
from mechrep.text.windows import windows_of_text
from tests.ablation.null_studies import PROVENANCE, told, verdicts
from tests.planted.circuits import InductionCircuit, RepetitionNeuronCircuit, induction_circuit, repetition_neurons
from tests.planted.texts import repeats

Unit = tuple[int, int]


# --- sets without a purpose -----------------------------------------------------------------------------------------


def placebos(k: int, sets: int, windows: int) -> tuple[list[set[Unit]], torch.Tensor]:
    """Random sets of neurons, and the loss on each window without any and without each, ``[condition window]``."""
    model = mechrep.load_model("mechrep-tiny")
    texts = windows_of_text(model, tiny.held_out_text(), length=32, limit=windows)
    generator, width = np.random.default_rng(k), model.anatomy.d_mlp
    numbers = [generator.choice(model.anatomy.n_layers * width, k, replace=False) for _ in range(sets)]
    drawn = [[divmod(int(number), width) for number in one] for one in numbers]
    interventions = [Circuit("placebo", neurons=units).intervention("zero", "all") for units in drawn]
    return [set(one) for one in drawn], HeldOutLoss(model, texts).values([None, *interventions], False)[0]


def in_all_roles(sets: list[set[Unit]], values: torch.Tensor, runs: int, m: int) -> Effects:
    """Studies in which one set plays the set under test, and others that share no neuron with it are its draws."""
    generator = np.random.default_rng(0)
    conditions, rows = [Condition()], [0]
    for run in range(runs):
        own = int(generator.integers(len(sets)))
        free = [place for place, one in enumerate(sets) if place != own and not one & sets[own]]
        conditions.append(Condition(f"study {run}", "ablation", 1, "zero"))
        conditions += [Condition(f"study {run}", "random", 1, "zero", seed=draw) for draw in range(m)]
        rows += [1 + own, *(1 + generator.choice(free, m, replace=False))]
    ids = [[str(window) for window in range(values.shape[1])]]
    return Effects(PROVENANCE, conditions, [Measure("loss")], ids, ids, values[rows][None])


@pytest.mark.slow
@pytest.mark.parametrize("m", [19, 99])
@pytest.mark.parametrize(("k", "sets", "windows"), [(3, 300, 24), (14, 300, 16), (56, 1400, 10)])
def test_sets_without_a_purpose_stand_out_in_five_per_cent(k: int, sets: int, windows: int, m: int) -> None:
    """The rank in 3 to 7 per cent; of the verdict at most 7, fewer where the texts do not agree on so small effects."""
    effects = in_all_roles(*placebos_once(k, sets, windows), runs=400, m=m)
    ranks = (effects.draws()["p"] <= 0.05).to_numpy()
    found = verdicts(effects)
    assert 0.03 <= ranks.mean() <= 0.07, told(ranks)
    assert 0.01 <= found.mean() <= 0.07 and not (found & ~ranks).any(), told(found)


placebos_once = functools.cache(placebos)


# --- planted components ---------------------------------------------------------------------------------------------


@functools.cache
def induction() -> InductionCircuit:
    return induction_circuit("llama_gqa")


@functools.cache
def amplified() -> RepetitionNeuronCircuit:
    return repetition_neurons("gpt_neox")


def loops(model: mechrep.Model, n: int, period: int = 9) -> StudyTexts:
    """Loops of different words: each a family of its own."""
    rows = [repeats(period, copies=3, seed=seed) for seed in range(n)]
    return StudyTexts(loops=Corpus.from_tokens(rows, model=model).with_cycles(), copies=1)


def test_among_single_heads_exactly_the_planted_ones_are_supported() -> None:
    planted = induction()
    sweep = single_head_sweep(planted.model, texts=loops(planted.model, 10), when="all")
    table = single_head_frame(sweep)
    found = table[table["verdict"] == SUPPORTED]
    assert set(zip(found["layer"], found["head"], strict=True)) == {planted.previous_token, planted.induction}
    assert set(table["verdict"][2:]) == {NOT_SUPPORTED}


def test_among_eight_heads_six_texts_are_too_few() -> None:
    planted = induction()
    table = single_head_frame(single_head_sweep(planted.model, texts=loops(planted.model, 6), when="all"))
    assert table["verdict"][:2].tolist() == ["too few"] * 2 and table["q"][0] == pytest.approx(2 / 2**6 * 8 / 2)


def test_planted_neurons_are_supported_beside_random_ones_and_idle_ones_are_not() -> None:
    planted = amplified()
    circuits = [Circuit("amplifiers", neurons=planted.amplifiers), Circuit("detectors", neurons=planted.detectors)]
    controls = Controls(("random",), exclude=circuits)
    table = ablation_study(
        planted.model, circuits, outcomes=["loop_log_probability"], texts=loops(planted.model, 8), controls=controls
    )
    rows = table.summary().query("copy == 1").set_index("name")
    assert rows["verdict"].to_dict() == {"amplifiers": SUPPORTED, "detectors": NOT_SUPPORTED}
    assert (rows["m"] == 99).all() and rows.loc["amplifiers", "effect"] < -1


def test_parts_of_the_planted_neurons_are_found_with_a_power_of_four_fifths() -> None:
    """Every study ablates four of the amplifiers; its draws may hold no other amplifier."""
    planted, generator = amplified(), np.random.default_rng(0)
    exclude = [Circuit("amplifiers", neurons=planted.amplifiers)]
    parts = [generator.choice(len(planted.amplifiers), 4, replace=False) for _ in range(8)]
    circuits = [Circuit(f"part {i}", neurons=[planted.amplifiers[j] for j in part]) for i, part in enumerate(parts)]
    table = ablation_study(
        planted.model, circuits, outcomes=["loop_log_probability"], texts=loops(planted.model, 8),
        controls=Controls(("random",), exclude=exclude, draws=19),
    )  # fmt: skip
    found = (table.summary(within=["name", "copy"]).query("copy == 1")["verdict"] == SUPPORTED).to_numpy()
    assert len(found) == 8
    assert found.mean() >= 0.8, told(found)
