"""Planted models, in which it is known what every ablation must do; every number against one row at a time."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import mechrep
from mechrep.ablation.circuit import Circuit
from mechrep.ablation.effect_plots import single_head_frame
from mechrep.ablation.effects import Effects
from mechrep.ablation.outcomes import LoopDecoding
from mechrep.ablation.study import Controls, StudyTexts, ablation_study, single_head_sweep
from mechrep.ablation.sweeps import deactivation_sweep
from mechrep.interventions import Heads
from mechrep.models.model import Model
from mechrep.text.corpus import Corpus
from mechrep.text.stimuli import random_repeats
from mechrep.text.windows import windows_of_text
from tests.planted.circuits import InductionCircuit, RepetitionNeuronCircuit, induction_circuit, repetition_neurons
from tests.planted.texts import prompts, repeats, words
from tests.studies.obvious import published_detector

Unit = tuple[int, int]
PERIOD = 9
NEW = 60


@functools.cache
def induction() -> InductionCircuit:
    return induction_circuit("llama_gqa")


@functools.cache
def amplified() -> RepetitionNeuronCircuit:
    return repetition_neurons("gpt_neox")


@functools.cache
def loops() -> Corpus:
    rows = [repeats(PERIOD, copies=3 + seed % 2, seed=seed) for seed in range(4)]
    return Corpus.from_tokens(rows, model=induction().model).with_cycles()


@functools.cache
def written() -> Corpus:
    """What the model with the amplifiers writes: most of it loops."""
    model = amplified().model
    texts = mechrep.generate(model, Corpus.from_tokens(prompts(8), model=model), max_new_tokens=120, progress=False)
    return texts.with_cycles(eos_id=model.eos_ids)


def study(model: Model, circuits: Any, **options: Any) -> Effects:
    given: dict[str, Any] = {"copies": 2, "repeats": random_repeats(model, n=9, sequences=3)}
    given |= {name: options.pop(name) for name in {"loops", "repeats", "windows", "decoding"} & set(options)}
    return ablation_study(model, circuits, **({"controls": (), "texts": StudyTexts(**given)} | options))


def effects(table: Effects, measure: str) -> dict[str, float]:
    """Mean effect of each circuit, over the repetitions of the loop where there are such."""
    frame = table.to_frame()
    known = (frame["measure"] == measure) & (frame["copy"] != 0).fillna(True) & (frame["selection"] == "ablation")
    return frame[known].groupby("name")["effect"].mean().to_dict()


# --- the induction circuit -----------------------------------------------------------------------------------------


def test_ablating_either_planted_head_destroys_copying_and_cutting_the_others_changes_nothing() -> None:
    planted = induction()
    circuits = [
        Circuit("previous", heads=[planted.previous_token]),
        Circuit("induction", heads=[planted.induction]),
        Circuit("both", heads=[planted.previous_token, planted.induction]),
        Circuit("idle", heads=[*planted.idle, planted.bos_rest]),
    ]
    outcomes = ["copy_accuracy", "loop_log_probability"]
    result = study(planted.model, circuits, loops=loops(), outcomes=outcomes, when="all")
    accuracy, drop, loop = (
        effects(result, name) for name in ("copy_accuracy", "copy_loss_drop", "loop_log_probability")
    )
    baseline = result.to_frame().query("selection == 'baseline'").set_index("measure")["value"]
    assert baseline["copy_accuracy"] == 1.0 and baseline["copy_loss_drop"] > 3
    for name in ("previous", "induction", "both"):
        assert accuracy[name] < -0.8 and drop[name] < -3 and loop[name] < -3
    assert abs(accuracy["idle"]) == 0 and abs(drop["idle"]) < 1e-4 and abs(loop["idle"]) < 1e-4


@pytest.mark.parametrize(("when", "op"), [("all", "zero"), ("from_onset", "zero"), ("all", "to_bos")])
def test_the_single_head_sweep_finds_exactly_the_two_planted_heads(when: Any, op: str) -> None:
    planted = induction()
    sweep = single_head_sweep(planted.model, texts=StudyTexts(loops=loops(), copies=2), op=op, when=when)
    both = {planted.previous_token, planted.induction}
    for repetition in (1, 2):
        table = single_head_frame(sweep, "loop_log_probability", repetition)
        assert set(zip(table["layer"][:2], table["head"][:2], strict=True)) == both
    assert (table["effect"][:2] < -0.3).all() and (table["effect"][2:].abs() < 1e-4).all()
    if when == "all" and op == "zero":
        assert (table["effect"][:2] < -3).all()


def test_what_a_head_wrote_before_the_onset_is_kept_unless_asked() -> None:
    """At the onset the previous-token head has done its work in the first repetition; the induction head has not."""
    planted = induction()
    heads = [Circuit("previous", heads=[planted.previous_token]), Circuit("induction", heads=[planted.induction])]
    early = effects(
        study(planted.model, heads, loops=loops(), outcomes=["loop_log_probability"]), "loop_log_probability"
    )
    assert early["induction"] < -3 and -1.5 < early["previous"] < -0.3


# --- the repetition neurons ----------------------------------------------------------------------------------------


def test_zeroing_the_amplifiers_stops_loops_and_the_detectors_do_not_matter() -> None:
    planted, texts = amplified(), written()
    circuits = [
        Circuit("amplifiers", neurons=planted.amplifiers),
        Circuit("detectors", neurons=planted.detectors),
        Circuit("union", neurons=planted.amplifiers[:1], heads=[planted.induction]),
    ]
    outcomes = ["still_looping", "newly_looping", "loop_log_probability"]
    decoding = LoopDecoding(max_new_tokens=NEW, prompt_length=11)
    result = study(planted.model, circuits, loops=texts, outcomes=outcomes, decoding=decoding)
    frame = result.to_frame().query("selection == 'ablation' and measure == 'still_looping'")
    shares = frame.set_index(["name", "part"])["value"].to_dict()
    assert shares["amplifiers", "whole"] == 0.0 and shares["detectors", "whole"] == 1.0
    assert shares["union", "whole"] == shares["union", "heads"] == 0.0 and ("union", "neurons") in shares
    loop = effects(result, "loop_log_probability")
    assert loop["amplifiers"] < -1 and abs(loop["detectors"]) < 0.01
    row = frame.iloc[0]
    assert row["texts"] == int(texts.frame["onset"].notna().sum()) >= 4
    free = result.to_frame().query("measure == 'newly_looping'")
    assert (free["value"] == 0.0).all() and set(free["texts"]) == {int(texts.frame["onset"].isna().sum())}


def test_the_share_that_still_loops_is_that_of_a_deactivation_sweep() -> None:
    planted, texts = amplified(), written()
    ranking = [*planted.amplifiers, *planted.detectors]
    ks, decoding = [2, 5, len(planted.amplifiers)], LoopDecoding(max_new_tokens=NEW)
    sweep = deactivation_sweep(planted.model, texts, neurons=ranking, ks=ks, controls=(), decoding=decoding)
    circuits = [Circuit("top", neurons=ranking[:k]) for k in ks]
    table = study(planted.model, circuits, loops=texts, outcomes=["still_looping"], decoding=decoding)
    expected = sweep.of("still_repeating")
    assert np.array_equal(table.of("still_looping"), expected) and 0 < expected[1:].mean() < 1


def test_texts_that_still_loop_are_counted_as_with_one_run_per_head() -> None:
    planted, new = induction(), 24
    model, anatomy = planted.model, planted.model.anatomy
    # Regenerated after two repetitions: after one, nothing but chance would lead back to its beginning.
    texts = loops().with_columns(start=1 + PERIOD, onset=1 + 2 * PERIOD)
    given = StudyTexts(loops=texts, decoding=LoopDecoding("hiraoka2025", new))
    sweep = single_head_sweep(model, outcomes=["still_looping"], texts=given)
    onsets = texts.frame["onset"].astype(int).tolist()
    prompts = Corpus.from_tokens([texts.row(i)[:onset] for i, onset in enumerate(onsets)], model=model)
    counts = []
    for layer, head in itertools.product(range(anatomy.n_layers), range(anatomy.n_heads)):
        written = mechrep.generate(
            model, prompts, max_new_tokens=new, interventions=Heads([(layer, head)], "zero", "last"),
            decoding=mechrep.Decoding(view="transformer_lens"), progress=False,
        )  # fmt: skip
        counts.append([float(published_detector(written.row(i)) is not None) for i in range(len(texts))])
    assert sweep.of("still_looping")[1:].tolist() == counts and 0 < np.mean(counts) < 1


# --- one row at a time ---------------------------------------------------------------------------------------------


def by_hand(model: Model, tokens: Sequence[int], start: int, heads: Sequence[Unit], neurons: Sequence[Unit]) -> Tensor:
    """Logits ``[pos d_vocab]`` of one text in TransformerLens' own hooks, ablated from ``start`` on."""
    hooks: list[tuple[str, Any]] = []
    for layer, head in heads:

        def zero_head(z: Tensor, hook: Any, head: int = head) -> Tensor:
            z[:, start:, head] = 0.0
            return z

        hooks.append((f"blocks.{layer}.attn.hook_z", zero_head))
    for layer, neuron in neurons:

        def zero_neuron(activation: Tensor, hook: Any, neuron: int = neuron) -> Tensor:
            activation[:, start:, neuron] = 0.0
            return activation

        hooks.append((f"blocks.{layer}.mlp.hook_post", zero_neuron))
    with torch.no_grad():
        return model.tl.run_with_hooks(torch.tensor([list(tokens)]), fwd_hooks=hooks)[0].double()


def log_probabilities(logits: Tensor, tokens: Sequence[int], places: range) -> list[float]:
    scores = logits.log_softmax(-1)
    return [float(scores[place - 1, tokens[place]]) for place in places]


@pytest.mark.parametrize("when", ["from_onset", "all"])
def test_every_number_is_that_of_one_row_at_a_time(when: Any) -> None:
    planted, texts = amplified(), written()
    model, copies = planted.model, 2
    text = " ".join(f"w{word}" for seed in range(4) for word in words(25, seed=seed))
    windows, random = windows_of_text(model, text, length=32, limit=3), random_repeats(model, n=9, sequences=2)
    union = Circuit("union", neurons=planted.amplifiers[::2], heads=[planted.previous_token, (0, 0)])
    outcomes = ["loop_log_probability", "copy_accuracy", "loss"]
    result = study(
        model, union, loops=texts, outcomes=outcomes, when=when, repeats=random, windows=windows,
        controls=Controls(["random", "layer_matched"], draws=1),
    )  # fmt: skip
    frame = result.unit_frame()
    rows = []
    for cell in result.conditions:
        heads, neurons = ([tuple(unit) for unit in cell.components.get(kind, [])] for kind in ("heads", "neurons"))
        for i in texts.frame.index[texts.frame["onset"].notna()]:
            start, onset = (int(texts.frame[name][i]) for name in ("start", "onset"))
            cycle = texts.row(i)[start:onset]
            ids, p = [*texts.row(i)[:onset], *cycle * copies], len(cycle)
            logits = by_hand(model, ids, 0 if when == "all" else onset - 1, heads, neurons)
            found = log_probabilities(logits, ids, range(onset, len(ids)))
            rows.append(("loop_log_probability", 0, texts.frame["id"][i], found[0]))
            rows += [
                ("loop_log_probability", c + 1, texts.frame["id"][i], np.mean(found[c * p : (c + 1) * p]))
                for c in range(copies)
            ]
        for i, name in enumerate(random.frame["id"]):
            ids = random.row(i)
            logits = by_hand(model, ids, 0, heads, neurons)
            places = range(11, 19)  # BOS, 9 tokens, the first of the second repetition: the others
            right = [int(logits[place - 1].argmax()) == ids[place] for place in places]
            rows.append(("copy_accuracy", None, name, np.mean(right)))
            first, second = (log_probabilities(logits, ids, part) for part in (range(1, 10), places))
            rows.append(("copy_loss_drop", None, name, np.mean(second) - np.mean(first)))
        for i, name in enumerate(windows.frame["id"]):
            ids = windows.row(i)
            logits = by_hand(model, ids, 15, heads, neurons)
            rows.append(("loss", None, name, -np.mean(log_probabilities(logits, ids, range(16, 32)))))
    expected = pd.DataFrame(rows, columns=["measure", "copy", "unit_id", "value"])
    assert len(result.conditions) == 1 + 3 * 3  # the union, its heads, its neurons; each with two controls
    for outcome in (*outcomes, "copy_loss_drop"):
        mine, theirs = (table[table["measure"] == outcome] for table in (frame, expected))
        mine, theirs = (table.sort_values(["unit_id", "copy"], kind="stable") for table in (mine, theirs))
        assert mine["unit_id"].tolist() == theirs["unit_id"].tolist()
        assert np.abs(mine["value"].to_numpy() - theirs["value"].to_numpy(dtype=float)).max() < 1e-4
        assert mine["value"].std() > 0.01
