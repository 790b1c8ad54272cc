"""Prompts that a model begins by itself, and the loops that it falls into.

Nothing here depends on which loops the embedded model happens to write.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from mechrep.errors import InputError, NothingFoundError
from mechrep.generation import loops
from mechrep.generation.decode import generate
from mechrep.generation.loops import LoopPreset, PromptTexts, collect_loops, loop_preset, sample_prompts
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.text import detect_cycle
from mechrep.text.corpus import Corpus
from tests.generation.obvious import obvious_text
from tests.tiny_models import fresh, tiny


@functools.cache
def embedded() -> Model:
    return load_model("mechrep-tiny")


@functools.cache
def llama() -> Model:
    return load_model(copy.deepcopy(tiny("llama")))


@functools.cache
def looping_sometimes() -> Model:
    """A tied embedding that outweighs what the layers add: the text comes to one token, sooner or later."""
    module = fresh("gemma", seed=3)
    module.get_input_embeddings().weight.mul_(6)
    return load_model(module)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Presets that fit into the context of a tiny model."""
    for name, preset in loops.PRESETS.items():
        monkeypatch.setitem(loops.PRESETS, name, dataclasses.replace(preset, greedy=90, min_prefix=12))


def rows(corpus: Corpus) -> list[list[int]]:
    return [corpus.row(number) for number in range(len(corpus))]


# --- prompts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [embedded, llama])
def test_prompts_are_the_same_whatever_their_number(model) -> None:
    twelve = sample_prompts(model(), 12, length=7, seed=3)
    assert rows(sample_prompts(model(), 5, length=7, seed=3)) == rows(twelve)[:5]
    assert rows(sample_prompts(model(), 4, length=7, seed=3, first=8)) == rows(twelve)[8:]
    assert twelve.frame["id"].tolist()[8:] == sample_prompts(model(), 4, length=7, seed=3, first=8).frame["id"].tolist()
    assert rows(sample_prompts(model(), 12, length=7, seed=4)) != rows(twelve)
    assert len({tuple(row) for row in rows(twelve)}) == 12
    assert all(len(row) == 8 and row[0] == model().bos_id for row in rows(twelve))
    assert twelve.bos_policy == "prepended"


def test_a_sampled_eos_does_not_end_a_prompt() -> None:
    module = fresh("llama")
    module.get_submodule("lm_head").weight.zero_()  # every id equally likely, EOS among them
    prompts = sample_prompts(load_model(module, check=False), 40, length=20, top_k=None)
    assert set(prompts.lengths.tolist()) == {21}
    assert (prompts.tokens[:, 1:20] == 1).any()


def test_top_k_of_one_is_the_greedy_text() -> None:
    assert rows(sample_prompts(llama(), 2, length=9, top_k=1)) == [obvious_text("llama", [0], 9)] * 2


def test_a_model_that_cannot_begin_a_text_is_refused() -> None:
    nothing = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    with pytest.raises(InputError, match="no BOS and no EOS"):
        sample_prompts(load_model(fresh("llama", **nothing)), 1)


# --- loops ---------------------------------------------------------------------------------------------------------


@functools.cache
def collected(preset: str) -> Corpus:
    return collect_loops(embedded(), 3, n_others=2, preset=preset, seed=1, max_prompts=64)


@pytest.mark.parametrize("preset", ["hiraoka2025", "mechrep"])
def test_loops_of_the_embedded_model_are_confirmed_by_the_detector(preset: str) -> None:
    corpus, rule, special = collected(preset), loop_preset(preset), {embedded().bos_id, 1}
    looping = corpus.where(condition="looping")
    assert 1 <= len(looping) <= 3
    for number, row in enumerate(rows(looping)):
        facts = looping.frame.iloc[number]
        cycle = detect_cycle(row, preset, prompt_length=11, eos_id=1, special_ids=special)
        assert cycle is not None
        assert (facts["start"], facts["onset"], facts["period"]) == (cycle.start, cycle.onset, cycle.period)
        assert cycle.onset > rule.min_prefix
        assert cycle.copies >= rule.min_copies
        period, onset = cycle.period, cycle.onset
        assert row[onset : onset + period] == row[onset - period : onset], "the onset begins the second copy"
    for number, row in enumerate(rows(corpus)):
        facts = corpus.frame.iloc[number]
        assert facts["prompt_length"] == 11
        assert len(row) <= 211
        if facts["condition"] == "loop_free":
            assert detect_cycle(row, preset, prompt_length=11, eos_id=1, special_ids=special) is None
    assert set(corpus.frame["condition"]) <= {"looping", "loop_free"}


def test_looping_texts_are_greedy_from_their_prompts() -> None:
    looping = collected("mechrep").where(condition="looping")
    prompts = Corpus.from_tokens([row[:11] for row in rows(looping)], model=embedded())
    again = generate(embedded(), prompts, max_new_tokens=200, batch_size=1)
    assert all(row == longer[: len(row)] for row, longer in zip(rows(looping), rows(again), strict=True))
    sampled = [int(name.rsplit("-", 1)[1]) for name in looping.frame["id"]]
    everything = rows(sample_prompts(embedded(), max(sampled) + 1, seed=1))
    assert [everything[number] for number in sampled] == rows(prompts)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("n_loops", "n_others"), [(5, 3), (2, 0), (4, None)])
def test_as_many_texts_as_asked_for(n_loops: int, n_others: int | None) -> None:
    corpus = collect_loops(looping_sometimes(), n_loops, n_others=n_others, seed=2, max_prompts=300)
    counts = corpus.frame["condition"].value_counts().to_dict()
    others = n_loops if n_others is None else n_others
    assert counts == {"looping": n_loops, **({"loop_free": others} if others else {})}
    assert 0 < corpus.frame.attrs["prompts"] <= 300
    assert corpus.frame["id"].is_unique


@pytest.mark.usefixtures("short")
def test_the_texts_do_not_depend_on_how_they_were_batched() -> None:
    model = looping_sometimes()
    sources = [PromptTexts(model, seed=2, batch_size=size) for size in (24, 90)]
    one, other = (collect_loops(model, 3, n_others=3, max_prompts=200, texts=source) for source in sources)
    assert rows(one) == rows(other)
    assert one.frame["id"].tolist() == other.frame["id"].tolist()
    assert one.frame.attrs == other.frame.attrs


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("model", [looping_sometimes, embedded])
def test_ending_early_finds_what_the_finished_texts_hold(model) -> None:
    rule = loop_preset("hiraoka2025").within(model().anatomy.n_ctx)
    source = PromptTexts(model(), "hiraoka2025", seed=2)
    found = collect_loops(model(), 6, n_others=3, max_prompts=32, texts=source)
    tried, eos = found.frame.attrs["prompts"], model().eos_ids
    finished = generate(model(), sample_prompts(model(), tried, seed=2), max_new_tokens=rule.greedy)
    cycles = [detect_cycle(row, "hiraoka2025", prompt_length=11, eos_id=eos) for row in rows(finished)]
    assert found.frame.attrs["looped"] == sum(cycle is not None for cycle in cycles)
    late = [number for number, cycle in enumerate(cycles) if cycle is not None and cycle.onset > rule.min_prefix]
    looping = found.where(condition="looping")
    assert looping.frame["id"].tolist() == [f"sample-2-{number}" for number in late[:6]]
    for number, row, facts in zip(late, rows(looping), looping.frame.to_dict("records"), strict=False):
        cycle = cycles[number]
        assert (facts["start"], facts["onset"], facts["period"], facts["copies"]) == (
            cycle.start, cycle.onset, cycle.period, cycle.copies,
        )  # fmt: skip
        assert row == finished.row(number)[: len(row)]
        assert len(row) == min(len(finished.row(number)), max(cycle.end, cycle.onset + rule.after))
    free = found.where(condition="loop_free").frame["id"] if (found.frame["condition"] == "loop_free").any() else []
    for name in free:
        number = int(name.rsplit("-", 1)[1])
        assert found.row(found.frame["id"].tolist().index(name)) == finished.row(number) and cycles[number] is None


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("preset", ["hiraoka2025", "mechrep"])
def test_a_stopped_collection_goes_on_and_gives_the_same(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = looping_sometimes()
    monkeypatch.setattr(loops, "_BLOCK", 4)
    whole = collect_loops(model, 5, n_others=0, preset=preset, seed=2, max_prompts=16)
    written: list[int] = []

    def stops(*args: Any, **options: Any) -> Any:
        written.append(len(args[1]))
        if len(written) == 2:
            raise KeyboardInterrupt
        return generate(*args, **options)

    monkeypatch.setattr(loops, "generate", stops)
    with pytest.raises(KeyboardInterrupt):
        collect_loops(model, 5, n_others=0, max_prompts=16, texts=PromptTexts(model, preset, 2, tmp_path))
    again = collect_loops(model, 5, n_others=0, max_prompts=16, texts=PromptTexts(model, preset, 2, tmp_path))
    assert rows(again) == rows(whole) and again.frame.attrs == whole.frame.attrs
    pd.testing.assert_frame_equal(again.frame, whole.frame)
    assert sum(written) == whole.frame.attrs["prompts"] + written[1], "what was finished is not written again"


@pytest.mark.usefixtures("short")
def test_texts_of_prompts_are_the_same_however_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = looping_sometimes()
    monkeypatch.setattr(loops, "_BLOCK", 4)
    at_once, parts = PromptTexts(model, seed=5), PromptTexts(model, seed=5)
    pieces = [row for first, end in ((6, 10), (0, 6), (10, 11)) for row in rows(parts.between(first, end))]
    assert pieces[4:10] + pieces[:4] + pieces[10:] == rows(at_once.between(0, 11))


@pytest.mark.usefixtures("short")
def test_fewer_than_asked_for_when_the_prompts_run_out() -> None:
    corpus = collect_loops(looping_sometimes(), 1000, n_others=0, max_prompts=40)
    assert corpus.frame.attrs["prompts"] == 40
    assert 1 <= len(corpus) <= 40
    assert set(corpus.frame["condition"]) == {"looping"}


def test_nothing_found_says_where_it_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    unreachable = LoopPreset(greedy=40, min_prefix=10_000)
    monkeypatch.setitem(loops.PRESETS, "hiraoka2025", unreachable)
    with pytest.raises(NothingFoundError, match=r"70 prompts to LlamaForCausalLM.*after position 10000.*max_prompts"):
        collect_loops(llama(), 2, preset="hiraoka2025", max_prompts=70)


@pytest.mark.usefixtures("short")
def test_a_model_that_ends_every_text_at_once_never_loops() -> None:
    module = fresh("gpt2", tie_word_embeddings=False)
    head = module.get_output_embeddings()
    head.weight = torch.nn.Parameter(torch.zeros_like(head.weight), requires_grad=False)  # all logits equal: id 0 wins
    module.config.eos_token_id = module.generation_config.eos_token_id = 0
    with pytest.raises(NothingFoundError):
        collect_loops(load_model(module, check=False), 1, preset="hiraoka2025", max_prompts=64)


def test_unknown_presets_and_senseless_numbers_are_refused() -> None:
    with pytest.raises(InputError, match=r"preset='mahaut2025'.*hiraoka2025, mechrep"):
        collect_loops(llama(), 1, preset="mahaut2025")
    for numbers in ({"n_loops": 0}, {"n_loops": 1, "n_others": -1}, {"n_loops": 1, "max_prompts": 0}):
        with pytest.raises(InputError, match=f"{list(numbers)[-1]}="):
            collect_loops(llama(), **numbers)
    with pytest.raises(InputError):
        sample_prompts(llama(), 0)
