"""Cutting and patching heads in both conditions: planted answers, one row at a time, and texts really written again."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mechrep
from mechrep.errors import InputError, NothingFoundError
from mechrep.generation.text_kinds import (
    control_condition,
    copy_run,
    induced_condition,
    joined_conditions,
    natural_condition,
)
from mechrep.interventions import Heads
from mechrep.models.model import Model
from mechrep.studies.text_kind_effects import (
    HeadContrastResult,
    ablation_contrast,
    agreement,
    halves,
    head_dissociation,
    head_reference,
    patching_contrast,
    regenerated_contrast,
)
from mechrep.text.corpus import Corpus
from tests.analyzers.planted_conditions import prompts, two_mechanisms
from tests.studies import loops

NEW = 60


@functools.cache
def conditions() -> tuple[Corpus, ...]:
    model, listed = two_mechanisms().model, prompts(two_mechanisms().model, 6)
    return tuple(
        build(model, listed, max_new_tokens=NEW) for build in (natural_condition, induced_condition, control_condition)
    )


@functools.cache
def cut() -> HeadContrastResult:
    return ablation_contrast(
        two_mechanisms().model, list(conditions()), ops=["zero", "mean", "resample"], reference=conditions()[2],
        copies=2,
    )  # fmt: skip


@functools.cache
def loopers() -> tuple[Model, list[Corpus]]:
    """A random model that loops by itself, and its two conditions on the same prompts."""
    model, corpus = loops.model("llama"), loops.looping("llama")
    listed = Corpus.from_tokens([corpus.row(i)[:8] for i in range(6)], model=model)
    natural = natural_condition(model, listed, max_new_tokens=60)
    return model, [natural, induced_condition(model, listed, 2, "cycle", max_new_tokens=60)]


def log_probabilities(model: Model, ids: list[int], places: range, hooks: list[tuple[str, Any]]) -> list[float]:
    with torch.no_grad():
        scores = model.tl.run_with_hooks(torch.tensor([ids]), fwd_hooks=hooks)[0].double().log_softmax(-1)
    return [float(scores[place - 1, ids[place]]) for place in places]


def hold(layer: int, head: int, value: Tensor | float, start: int) -> list[tuple[str, Any]]:
    def hook(z: Tensor, hook: Any = None) -> Tensor:
        z = z.clone()
        z[:, start:, head] = value
        return z

    return [(f"blocks.{layer}.attn.hook_z", hook)]


# --- cutting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["zero", "mean", "resample"])
def test_induced_copying_depends_on_exactly_the_planted_heads_and_the_loop_on_none(op: str) -> None:
    effects, planted = cut().head_effects(op), two_mechanisms().heads
    induced, natural = effects.mean("induced"), effects.mean("natural")
    for layer, head in np.ndindex(*induced.shape):
        if (layer, head) in planted:
            assert induced[layer, head] < -3
        else:
            assert abs(induced[layer, head]) < 1e-6
    assert np.abs(natural).max() < 1e-4
    table = cut().contrast(op)
    assert {(row.layer, row.head) for row in table.itertuples() if row.fdr < 0.05} == set(planted)  # pyright: ignore
    assert {(row.layer, row.head) for row in table.itertuples() if row.holm < 0.05} == set(planted)  # pyright: ignore
    # Facilitates, and more so when induced: the quadrant of copying heads.
    assert (table["S"][:2] < -1.5).all() and (table["D"][:2] < -1.5).all()
    assert set(cut().top(2)) == set(planted) and effects.shared_top(2)["shared"] == 0
    assert effects.specialisation().set_index(["condition", "measure"])["value"]["induced", "effective_heads"] < 2.1


def test_slices_of_the_attention_output_are_no_heads() -> None:
    """What the copying head writes lies in the slice of another number, whose own head does nothing."""
    planted = two_mechanisms(induction=(1, 3))
    model, (_, (layer, head)) = planted.model, planted.heads
    induced = induced_condition(model, prompts(model, 2), max_new_tokens=NEW)
    joined = joined_conditions(induced, n_ctx=model.anatomy.n_ctx, copies=1)
    ids, onset = joined.row(0), int(joined.frame["onset"][0])
    places, width = range(onset + 1, len(ids)), model.anatomy.d_head

    def without(part: int) -> list[tuple[str, Any]]:
        def hook(out: Tensor, hook: Any = None) -> Tensor:
            out = out.clone()
            out[..., part * width : (part + 1) * width] = 0.0
            return out

        return [(f"blocks.{layer}.hook_attn_out", hook)]

    whole = np.mean(log_probabilities(model, ids, places, []))
    by_slice = [np.mean(log_probabilities(model, ids, places, without(part))) - whole for part in range(4)]
    by_head = [np.mean(log_probabilities(model, ids, places, hold(layer, h, 0.0, 0))) - whole for h in range(4)]
    assert int(np.argmin(by_head)) == head and by_head[head] < -3 and max(np.delete(np.abs(by_head), head)) < 1e-4
    wrong = int(np.argmin(by_slice))
    assert wrong != head and by_slice[wrong] < -3 and abs(by_slice[head]) < 0.1


@pytest.mark.parametrize("when", ["all", "from_onset"])
def test_every_effect_is_that_of_one_row_at_a_time(when: Any) -> None:
    model, built = loopers()
    reference = Corpus.from_tokens([loops.free("llama").row(i)[:20] for i in range(3)], model=model)
    result = ablation_contrast(model, built, ops=["zero", "mean"], reference=reference, when=when, copies=2)
    with torch.no_grad():
        reads = [
            torch.stack([
                model.tl.run_with_cache(torch.tensor([reference.row(i)]))[1][f"blocks.{layer}.attn.hook_z"][0, 1:]
                for layer in range(model.anatomy.n_layers)
            ]) for i in range(3)
        ]  # fmt: skip
    means = torch.cat(reads, dim=1).mean(1)  # [layer head d_head]
    joined = joined_conditions(*built, n_ctx=model.anatomy.n_ctx, copies=2)
    for text in (0, len(joined) - 1):
        ids, onset = joined.row(text), int(joined.frame["onset"][text])
        period, start = int(joined.frame["period"][text]), 0 if when == "all" else onset - 1
        for copy in (1, 2):
            places = range(onset + (copy - 1) * period, onset + copy * period)
            whole = np.mean(log_probabilities(model, ids, places, []))
            assert float(result.untouched[text, copy - 1]) == pytest.approx(whole, abs=1e-4)
            for number, (layer, head) in enumerate([(0, 1), (2, 3)] * 2):
                op = number // 2
                value = 0.0 if op == 0 else means[layer, head]
                cut_one = np.mean(log_probabilities(model, ids, places, hold(layer, head, value, start)))
                found = float(result.effects[op, text, copy - 1, layer, head])
                assert found == pytest.approx(cut_one - whole, abs=1e-3)
    assert result.head_effects().values.std() > 0.01


def test_seams_count_in_no_average() -> None:
    """The first token of an induced copy is left out: with it the mean over a copy would be another."""
    model, corpus = two_mechanisms().model, conditions()[1]
    joined = joined_conditions(corpus, n_ctx=model.anatomy.n_ctx, copies=1)
    ids, onset = joined.row(0), int(joined.frame["onset"][0])
    mean = np.mean(log_probabilities(model, ids, range(onset + 1, onset + 10), []))
    with_seam = np.mean(log_probabilities(model, ids, range(onset, onset + 10), []))
    result = ablation_contrast(model, [corpus], ops=["zero"], copies=1)
    assert float(result.untouched[0, 0]) == pytest.approx(mean, abs=1e-5) and abs(mean - with_seam) > 1e-5


# --- written again -------------------------------------------------------------------------------------------------


def test_texts_written_again_are_those_of_one_generation_per_head() -> None:
    model, built = loopers()
    new, result = 8, regenerated_contrast(*loopers(), op="zero", texts=3, max_new_tokens=8)
    corpus = Corpus.concatenate(*built)
    names, tokens = corpus.frame["id"].tolist(), 0
    for unit in [None, (0, 2), (2, 1)]:
        for text, name in enumerate(result.ids):
            number = names.index(name)
            row = corpus.row(number)[: int(corpus.frame["prompt_length"][number])]
            written = mechrep.generate(
                model, Corpus.from_tokens([row], model=model), max_new_tokens=new, progress=False,
                interventions=None if unit is None else Heads([unit], "zero", "all"), view="transformer_lens",
            )  # fmt: skip
            start, onset = (int(corpus.frame[column][number]) for column in ("start", "onset"))
            share = copy_run(written.row(0)[len(row) :], corpus.row(number)[start:onset]) / new
            expected = share if unit is None else share - float(result.untouched[text, 0])
            found = result.untouched[text, 0] if unit is None else result.effects[0, text, 0, unit[0], unit[1]]
            assert float(found) == pytest.approx(expected, abs=1e-6)
            tokens += len(written.row(0)) - len(row)
    assert result.new_tokens >= tokens and len(result.ids) == 6


def test_the_cheap_answer_is_the_dear_one_at_a_twentieth_of_the_tokens() -> None:
    """Known mechanisms, all texts written again under every cut: same heads, same signs, far fewer tokens."""
    model, built, new = two_mechanisms().model, list(conditions()[:2]), 100
    dear = regenerated_contrast(model, built, op="zero", texts=None, max_new_tokens=new)
    table = agreement(cut(), dear, k=2).set_index("condition")
    assert table.loc["induced", "top_shared"] == 2 and table.loc["induced", "signs"] == 1.0
    assert np.abs(dear.head_effects().mean("natural")).max() == 0, "no cut stops the natural loop"
    for layer, head in two_mechanisms().heads:
        assert dear.head_effects().mean("induced")[layer, head] < -0.2
    generated = built[0].frame.attrs["new_tokens"] + cut().new_tokens
    assert 20 * generated <= dear.new_tokens


# --- patching ------------------------------------------------------------------------------------------------------


def test_a_patch_puts_in_what_the_donor_had() -> None:
    model, (natural, induced) = loopers()
    result = patching_contrast(model, [natural], induced, copy=1)
    receiving, giving = (joined_conditions(one, n_ctx=model.anatomy.n_ctx, copies=1) for one in (natural, induced))
    for text in (0, 3):
        donor = giving.frame["prompt"].tolist().index(receiving.frame["prompt"][text])
        place, other = int(receiving.frame["onset"][text]), int(giving.frame["onset"][donor])
        with torch.no_grad():
            _, cache = model.tl.run_with_cache(torch.tensor([giving.row(donor)]))
        ids = receiving.row(text)[: place + 1]
        (whole,) = log_probabilities(model, ids, range(place, place + 1), [])
        for layer, head in [(0, 0), (1, 2), (2, 3)]:
            z = cache[f"blocks.{layer}.attn.hook_z"][0, other - 1, head]
            hooks = hold(layer, head, z, place - 1)
            (patched,) = log_probabilities(model, ids, range(place, place + 1), hooks)
            assert float(result.effects[0, text, 0, layer, head]) == pytest.approx(patched - whole, abs=1e-3)
    assert result.effects.abs().max() > 0.01
    same = patching_contrast(model, [natural], natural, copy=1)
    assert same.effects.abs().max() < 1e-4, "a text patched from itself"


def test_patching_finds_the_head_that_carries_the_copy() -> None:
    model, (natural, induced, control) = two_mechanisms().model, conditions()
    effects = patching_contrast(model, [induced], control).head_effects().mean("induced")
    head = two_mechanisms().heads[1]
    assert effects[head] < -3 and np.abs(np.delete(effects.ravel(), head[0] * 4 + head[1])).max() < 1e-5
    with pytest.raises(NothingFoundError, match="as long"):
        patching_contrast(model, [natural], control, copy=3)


# --- sets of heads -------------------------------------------------------------------------------------------------


def test_heads_found_on_one_half_of_the_prompts_matter_on_the_other() -> None:
    model = two_mechanisms().model
    table = head_dissociation(
        model, list(conditions()[:2]), k=2, op="zero", controls=["random", "layer_matched"], draws=3, copies=2
    )
    cells = table.set_index(["heads_of", "selection", "condition"]).sort_index()
    top = cells.loc[("induced", "top")]
    assert {*top["heads"]} == {"0.1 1.2"} or {*top["heads"]} == {"1.2 0.1"}
    assert float(top["effect"]["induced"]) < -3 and abs(float(top["effect"]["natural"])) < 1e-4
    for control in ("random", "layer_matched"):
        assert (cells.loc[("induced", control)]["effect"].abs() < 1e-4).all()
    assert set(table["draw"]) == {0, 1, 2} and (table["n"] == 3).all()


def test_halves_split_prompts_and_not_texts() -> None:
    joined = Corpus.concatenate(*loopers()[1])
    one, other = halves(joined, seed=3)
    assert not set(one.frame["prompt"]) & set(other.frame["prompt"]) and len(one) + len(other) == len(joined)
    assert set(one.frame["condition"]) == set(other.frame["condition"]) == {"natural", "induced"}
    with pytest.raises(InputError, match="two prompts"):
        halves(joined.select([0]), seed=0)


# --- swapped labels, files, bad input ------------------------------------------------------------------------------


def test_swapped_labels_make_the_contrast_vanish() -> None:
    for seed in range(5):
        table = cut().head_effects("zero").swapped(seed).contrast(draws=500)
        assert ((table["D_low"] <= 1e-9) & (table["D_high"] >= -1e-9)).mean() >= 0.7
        assert (table["D"].abs() < 1.5).all()


def test_a_reference_is_the_mean_over_all_positions_but_the_first() -> None:
    model, corpus = two_mechanisms().model, conditions()[2]
    reference = head_reference(model, corpus)
    with torch.no_grad():
        reads = [
            model.tl.run_with_cache(torch.tensor([corpus.row(i)]))[1]["blocks.1.attn.hook_z"][0, 1:]
            for i in range(len(corpus))
        ]
    assert (reference.mean[1] - torch.cat(reads).mean(0)).abs().max() < 1e-4
    sample = reference.samples[0, 1]
    assert (torch.cat(reads) - sample).flatten(1).abs().max(1).values.min() < 1e-4


def test_results_come_back_from_disk(tmp_path: Any) -> None:
    cut().save(tmp_path / "cut")
    again = HeadContrastResult.load(tmp_path / "cut")
    assert torch.equal(again.effects, cut().effects) and again.to_frame().equals(cut().to_frame())


def test_bad_input() -> None:
    model, (natural, _, control) = two_mechanisms().model, conditions()
    with pytest.raises(InputError, match="ops="):
        ablation_contrast(model, [natural], ops=["erase"])
    with pytest.raises(InputError, match="without a cycle"):
        ablation_contrast(model, [control], ops=["zero"])
    with pytest.raises(InputError, match="copy=0"):
        patching_contrast(model, [natural], control, copy=0)
    with pytest.raises(InputError, match="op='erase'"):
        regenerated_contrast(model, [natural], op="erase")
    with pytest.raises(InputError, match="copy 7"):
        cut().head_effects("zero", 7)
    with pytest.raises(InputError, match="at least one of each"):
        ablation_contrast(model, [], ops=["zero"])
