"""Heads ablated and patched in both kinds of text: planted answers, one row at a time, texts really regenerated."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mechrep
from mechrep.ablation.effects import Effects
from mechrep.errors import InputError, NothingFoundError
from mechrep.generation.text_kinds import (
    control_texts,
    copy_run,
    induced_texts,
    joined_texts,
    natural_texts,
)
from mechrep.interventions import Heads
from mechrep.measures.text_kind_design import HeadEffects, agreement
from mechrep.models.model import Model
from mechrep.run import Run
from mechrep.studies.text_kind_effects import (
    ablation_contrast,
    compare_heads,
    halves,
    head_dissociation,
    head_effects,
    head_reference,
    patching_contrast,
    regenerated_contrast,
    sets_of_heads,
)
from mechrep.text.corpus import Corpus
from tests.planted.two_mechanisms import prompts, two_mechanisms
from tests.studies import loops

NEW = 60


@functools.cache
def kinds() -> tuple[Corpus, ...]:
    model, listed = two_mechanisms().model, prompts(two_mechanisms().model, 6)
    return tuple(build(model, listed, max_new_tokens=NEW) for build in (natural_texts, induced_texts, control_texts))


@functools.cache
def ablated() -> Effects:
    return ablation_contrast(
        two_mechanisms().model, list(kinds()), ops=["zero", "mean", "resample"], reference=kinds()[2],
        copies=2,
    )  # fmt: skip


@functools.cache
def loopers() -> tuple[Model, list[Corpus]]:
    """A random model that loops by itself, and its two kinds of text from the same prompts."""
    model, corpus = loops.model("llama"), loops.looping("llama")
    listed = Corpus.from_tokens([corpus.row(i)[:8] for i in range(6)], model=model)
    natural = natural_texts(model, listed, max_new_tokens=60)
    return model, [natural, induced_texts(model, listed, 2, "cycle", max_new_tokens=60)]


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


# --- ablation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["zero", "mean", "resample"])
def test_induced_copying_depends_on_exactly_the_planted_heads_and_the_loop_on_none(op: str) -> None:
    effects, planted = head_effects(ablated(), op=op), two_mechanisms().heads
    induced, natural = effects.mean("induced"), effects.mean("natural")
    for layer, head in np.ndindex(*induced.shape):
        if (layer, head) in planted:
            assert induced[layer, head] < -3
        else:
            assert abs(induced[layer, head]) < 1e-6
    assert np.abs(natural).max() < 1e-4
    table = effects.contrast()
    assert set(effects.top(2, "induced")) == {*zip(table["layer"][:2], table["head"][:2], strict=True)} == set(planted)
    # Facilitates, and more so when induced: the quadrant of copying heads.
    assert (table["S"][:2] < -1.5).all() and (table["D"][:2] < -1.5).all()
    assert effects.compare(2, swaps=20)["shared_top"].value == 0
    assert effects.concentration().set_index(["text_kind", "measure"])["value"]["induced", "effective_heads"] < 2.1


def test_each_head_is_compared_with_the_others_under_the_same_operation() -> None:
    draws = ablated().draws()
    n = two_mechanisms().model.anatomy.n_layers * two_mechanisms().model.anatomy.n_heads
    assert set(draws["m"]) == {n - 1} and set(draws["control"]) == {"other heads"}
    table = ablated().summary()
    strong, natural = table["effect"].abs() > 1, table["measure"] == "log_probability, natural"
    assert set(table["verdict"][natural]) == {"too few"}, "all natural loops are one family"
    assert set(table["verdict"][~natural & strong]) == {"too few"}, "six texts that agree, among many tests"
    assert set(table["verdict"][~natural & ~strong]) == {"not supported"}


def test_slices_of_the_attention_output_are_no_heads() -> None:
    """What the copying head writes lies in the slice of another number, whose own head does nothing."""
    planted = two_mechanisms(induction=(1, 3))
    model, (_, (layer, head)) = planted.model, planted.heads
    induced = induced_texts(model, prompts(model, 2), max_new_tokens=NEW)
    joined = joined_texts(induced, n_ctx=model.anatomy.n_ctx, copies=1)
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
    effects = {(op, copy): head_effects(result, op=op, copy=copy) for op in ("zero", "mean") for copy in (1, 2)}
    labels = joined_texts(*built, n_ctx=model.anatomy.n_ctx, copies=2).frame["text_kind"].tolist()
    with torch.no_grad():
        reads = [
            torch.stack([
                model.tl.run_with_cache(torch.tensor([reference.row(i)]))[1][f"blocks.{layer}.attn.hook_z"][0, 1:]
                for layer in range(model.anatomy.n_layers)
            ]) for i in range(3)
        ]  # fmt: skip
    means = torch.cat(reads, dim=1).mean(1)  # [layer head d_head]
    joined = joined_texts(*built, n_ctx=model.anatomy.n_ctx, copies=2)
    for text in (0, len(joined) - 1):
        ids, onset = joined.row(text), int(joined.frame["onset"][text])
        period, start = int(joined.frame["period"][text]), 0 if when == "all" else onset - 1
        for copy in (1, 2):
            places = range(onset + (copy - 1) * period, onset + copy * period)
            whole = np.mean(log_probabilities(model, ids, places, []))
            baseline = result.of(f"log_probability, {labels[text]}", copy)[0]
            assert float(baseline[text - labels.index(labels[text])]) == pytest.approx(whole, abs=1e-4)
            for number, (layer, head) in enumerate([(0, 1), (2, 3)] * 2):
                op = number // 2
                value = 0.0 if op == 0 else means[layer, head]
                cut_one = np.mean(log_probabilities(model, ids, places, hold(layer, head, value, start)))
                found = float(effects["mean" if op else "zero", copy].values[text, layer, head])
                assert found == pytest.approx(cut_one - whole, abs=1e-3)
    assert head_effects(result).values.std() > 0.01


def test_seams_count_in_no_average() -> None:
    """The first token of an induced copy is left out: with it the mean over a copy would be another."""
    model, corpus = two_mechanisms().model, kinds()[1]
    joined = joined_texts(corpus, n_ctx=model.anatomy.n_ctx, copies=1)
    ids, onset = joined.row(0), int(joined.frame["onset"][0])
    mean = np.mean(log_probabilities(model, ids, range(onset + 1, onset + 10), []))
    with_seam = np.mean(log_probabilities(model, ids, range(onset, onset + 10), []))
    result = ablation_contrast(model, [corpus], ops=["zero"], copies=1)
    assert float(result.of()[0, 0]) == pytest.approx(mean, abs=1e-5) and abs(mean - with_seam) > 1e-5


# --- regenerated ----------------------------------------------------------------------------------------------------


def test_regenerated_texts_are_those_of_one_generation_per_head() -> None:
    model, built = loopers()
    new, result = 8, regenerated_contrast(*loopers(), op="zero", sample=3, max_new_tokens=8)
    corpus, effects = Corpus.concatenate(*built), head_effects(result)
    names = corpus.frame["id"].tolist()
    shares = np.concatenate([result.of("copied_share, natural")[0], result.of("copied_share, induced")[0]])
    tokens = np.concatenate([result.of("new_tokens, natural"), result.of("new_tokens, induced")], axis=1)
    for unit in [None, (0, 2), (2, 1)]:
        for text, name in enumerate(effects.ids):
            number = names.index(name)
            row = corpus.row(number)[: int(corpus.frame["prompt_length"][number])]
            written = mechrep.generate(
                model, Corpus.from_tokens([row], model=model), max_new_tokens=new, progress=False,
                interventions=None if unit is None else Heads([unit], "zero", "all"),
                decoding=mechrep.Decoding(view="transformer_lens"),
            )  # fmt: skip
            start, onset = (int(corpus.frame[column][number]) for column in ("start", "onset"))
            share = copy_run(written.row(0)[len(row) :], corpus.row(number)[start:onset]) / new
            found = shares[text] if unit is None else shares[text] + effects.values[text, unit[0], unit[1]]
            assert float(found) == pytest.approx(share, abs=1e-6)
            place = 0 if unit is None else 1 + unit[0] * model.anatomy.n_heads + unit[1]
            assert tokens[place, text] == len(written.row(0)) - len(row)
    assert len(effects.ids) == 6


def test_the_cheap_answer_is_the_expensive_one_at_a_twentieth_of_the_tokens() -> None:
    """Known mechanisms, all texts regenerated under every ablation: same heads, same signs, far fewer tokens."""
    model, built, new = two_mechanisms().model, list(kinds()[:2]), 100
    result = regenerated_contrast(model, built, op="zero", sample=None, max_new_tokens=new)
    again = head_effects(result)
    table = agreement(head_effects(ablated()), again, k=2).set_index("text_kind")
    assert table.loc["induced", "top_shared"] == 2 and table.loc["induced", "signs"] == 1.0
    assert np.abs(again.mean("natural")).max() == 0, "no ablation stops the natural loop"
    for layer, head in two_mechanisms().heads:
        assert again.mean("induced")[layer, head] < -0.2
    generated = sum(result.of(f"new_tokens, {kind}").sum() for kind in ("natural", "induced"))
    assert 20 * built[0].frame.attrs["new_tokens"] <= generated


# --- patching ------------------------------------------------------------------------------------------------------


def test_a_patch_puts_in_what_the_donor_had() -> None:
    model, (natural, induced) = loopers()
    result = patching_contrast(model, [natural], induced, copy=1)
    receiving, giving = (joined_texts(one, n_ctx=model.anatomy.n_ctx, copies=1) for one in (natural, induced))
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
            assert float(head_effects(result).values[text, layer, head]) == pytest.approx(patched - whole, abs=1e-3)
    assert np.abs(result.effect_of()).max() > 0.01
    same = patching_contrast(model, [natural], natural, copy=1)
    assert np.abs(same.effect_of()).max() < 1e-4, "a text patched from itself"


def test_patching_finds_the_head_that_carries_the_copy() -> None:
    model, (natural, induced, control) = two_mechanisms().model, kinds()
    effects = head_effects(patching_contrast(model, [induced], control)).mean("induced")
    head = two_mechanisms().heads[1]
    assert effects[head] < -3 and np.abs(np.delete(effects.ravel(), head[0] * 4 + head[1])).max() < 1e-5
    with pytest.raises(NothingFoundError, match="as long"):
        patching_contrast(model, [natural], control, copy=3)


# --- sets of heads -------------------------------------------------------------------------------------------------


def test_heads_found_on_one_half_of_the_texts_matter_on_the_other() -> None:
    model, run = two_mechanisms().model, Run(effort="quick")
    effects = head_dissociation(
        model, [kinds()[1]], k=2, op="zero", controls=["random", "layer_matched"], copies=2, run=run
    )
    table = effects.to_frame().set_index("selection")["effect"]
    (planted,) = [one.components["heads"] for one in effects.conditions if one.selection == "ablation"]
    assert {tuple(head) for head in planted} == set(two_mechanisms().heads) and table["ablation"] < -3
    for control in ("random", "layer_matched"):
        assert (table[[control]].abs() < 1e-4).all() and len(table[[control]]) > 5
    with pytest.raises(InputError, match="two clusters"):
        head_dissociation(model, list(kinds()[:2]), k=2, op="zero", run=run)  # all planted loops are one


def test_no_control_holds_a_head_of_either_set() -> None:
    tops = {"natural heads": [(0, 0), (1, 1)], "induced heads": [(0, 1), (1, 2)]}
    named = {head for heads in tops.values() for head in heads}
    kinds_of_control = ["random", "layer_matched"]
    cells, left_out = sets_of_heads(two_mechanisms().model, tops, kinds_of_control, "zero", "zero", Run(effort="quick"))
    drawn = [one for one, _ in cells if one.selection in kinds_of_control]
    assert drawn and not any(named & {tuple(head) for head in one.components["heads"]} for one in drawn)
    assert {one.name for one, _ in cells} == {"baseline", *tops} and not left_out
    large = {name: [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)] for name in ("natural heads", "induced heads")}
    cells, left_out = sets_of_heads(two_mechanisms().model, large, kinds_of_control, "zero", "zero", Run())
    assert len(cells) == 3 and len(left_out) == 4, "too few other heads are left: said, and not refused"


def test_halves_split_prompts_and_families_and_not_texts() -> None:
    joined = Corpus.concatenate(*loopers()[1])
    one, other = halves(joined, seed=3)
    assert not set(one.frame["prompt"]) & set(other.frame["prompt"]) and len(one) + len(other) == len(joined)
    assert set(one.frame["text_kind"]) == set(other.frame["text_kind"]) == {"natural", "induced"}
    family = joined.with_columns(family=["f", "f", "f", *(f"g{i}" for i in range(3, len(joined)))])
    sides = [set(part.frame["prompt"]) & set(joined.frame["prompt"][:3]) for part in halves(family, seed=1)]
    assert set() in sides, "a family is on one side, with all that its prompts wrote"
    with pytest.raises(InputError, match="two clusters"):
        halves(joined.select([0]), seed=0)


# --- one run, files, the store ---------------------------------------------------------------------------------------


def test_the_same_ablations_are_measured_once_in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model, run = two_mechanisms().model, Run(effort="quick")
    first = ablation_contrast(model, list(kinds()[:2]), ops=["zero"], copies=1, run=run)
    assert ablation_contrast(model, list(kinds()[:2]), ops=["zero"], copies=1, run=run) is first
    other = ablation_contrast(model, list(kinds()[:2]), ops=["zero"], when="from_onset", copies=1, run=run)
    assert not torch.equal(other.values, first.values)


def test_a_store_gives_back_what_was_measured(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, built = two_mechanisms().model, list(kinds()[:2])
    first = ablation_contrast(model, built, ops=["zero"], copies=1, run=Run(store=tmp_path))

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("computed again")

    monkeypatch.setattr("mechrep.studies.text_kind_outcomes.score_tokens", never)
    again = ablation_contrast(model, built, ops=["zero"], copies=1, run=Run(store=tmp_path))
    assert torch.equal(again.values, first.values)
    again.save(tmp_path / "result")
    assert np.array_equal(head_effects(Effects.load(tmp_path / "result")).values, head_effects(first).values)


def test_a_reference_is_the_mean_over_all_positions_but_the_first() -> None:
    model, corpus = two_mechanisms().model, kinds()[2]
    reference = head_reference(model, corpus)
    with torch.no_grad():
        reads = [
            model.tl.run_with_cache(torch.tensor([corpus.row(i)]))[1]["blocks.1.attn.hook_z"][0, 1:]
            for i in range(len(corpus))
        ]
    assert (reference.mean[1] - torch.cat(reads).mean(0)).abs().max() < 1e-4
    sample = reference.samples[0, 1]
    assert (torch.cat(reads) - sample).flatten(1).abs().max(1).values.min() < 1e-4


def test_bad_input() -> None:
    model, (natural, _, control) = two_mechanisms().model, kinds()
    with pytest.raises(InputError, match="erase"):
        ablation_contrast(model, [natural], ops=["erase"])
    with pytest.raises(InputError, match="without a cycle"):
        ablation_contrast(model, [control], ops=["zero"])
    with pytest.raises(InputError, match="copy=0"):
        patching_contrast(model, [natural], control, copy=0)
    with pytest.raises(InputError, match="erase"):
        regenerated_contrast(model, [natural], op="erase")
    with pytest.raises(InputError, match="copy 7"):
        head_effects(ablated(), op="zero", copy=7)
    with pytest.raises(InputError, match="at least one"):
        ablation_contrast(model, [], ops=["zero"])


def test_planted_differences_are_supported_and_swapped_ones_are_not() -> None:
    """Three heads for each kind; the same at half the strength; the same."""
    generator, three = np.random.default_rng(0), [3.0, 2.0, 1.0]

    def made(induced: dict[int, float], natural: dict[int, float], n: int = 24) -> HeadEffects:
        values = 0.05 * generator.normal(size=(2 * n, 4, 5))
        for rows, carried in ((slice(0, n), induced), (slice(n, 2 * n), natural)):
            for head, size in carried.items():
                values[rows, head // 5, head % 5] -= size * (1 + 0.1 * generator.normal(size=n))
        return HeadEffects(values, ["induced"] * n + ["natural"] * n, [f"p{i}" for i in range(n)] * 2, "made up")

    heads = dict(zip((4, 11, 7), three, strict=True))
    others = dict(zip((1, 13, 18), three, strict=True))
    tables = {
        name: compare_heads(effects, 3, swaps=400).set_index("measure")["verdict"]
        for name, effects in {
            "other heads": made(heads, others),
            "half": made(heads, {head: size / 2 for head, size in heads.items()}),
            "same": made(heads, heads),
            "swapped": made(heads, others).swapped(3),
            "one against three": made({4: 3.0}, heads),
        }.items()
    }
    assert (tables["other heads"][["common", "shared_top", "differing_heads"]] == "supported").all()
    assert tables["half"]["differing_heads"] == "supported" and tables["half"]["shared_top"] == "not supported"
    assert (tables["same"] == "not supported").all() and tables["swapped"]["differing_heads"] == "not supported"
    assert tables["one against three"]["gini"] == "supported"
    few = compare_heads(made(heads, others, n=3), 3, swaps=200).set_index("measure")["verdict"]
    assert few["common"] == "too few"
