"""Positions that depend on length, windows and states: a text has the numbers that it has alone, whatever is around.

The oracle is the Hugging Face module: one text at a time, the whole of it at every step, nothing kept.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor

import mechrep
from mechrep.ablation.score import ScoredText, score_tokens
from mechrep.errors import InputError, ModelError
from mechrep.generation.patched_model import intervened
from mechrep.interventions.apply import logits
from mechrep.models.anatomy import Site
from mechrep.models.attention import read_attention_rows
from tests.families import oracles
from tests.families.zoo import SWITCH, Family, build, families, text

LENGTHS = (24, 40, SWITCH, 9, SWITCH + 1, 50)


@functools.cache
def made(name: str) -> tuple[Family, Any, mechrep.Model]:
    """A family, its module and the model of it."""
    family = families()[name]
    module = build(family)
    return family, oracles.plain(family, module), mechrep.load_model(module)


def texts_of(lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    return [[0, *text(length - 1, seed=seed)] for seed, length in enumerate(lengths)]


def alone(plain: Any, ids: list[int]) -> Tensor:
    return oracles.logits(plain, ids)


CHANGING = ["Phi-3, longrope", "Llama, dynamic NTK"]


@pytest.mark.parametrize("name", CHANGING)
def test_the_switch_is_found(name: str) -> None:
    *_, model = made(name)
    assert model.lengths is not None
    assert model.lengths.switch == SWITCH
    assert model.lengths.every == (name == "Llama, dynamic NTK")
    assert model.anatomy.n_ctx > SWITCH


@pytest.mark.parametrize("name", ["Llama", "Llama 3", "Gemma 3", "GPT-2", "MPT", "XGLM", "Qwen2.5-VL"])
def test_most_models_have_none(name: str) -> None:
    assert made(name)[2].lengths is None


@pytest.mark.parametrize("name", CHANGING)
def test_a_text_is_read_as_if_it_were_alone(name: str) -> None:
    family, plain, model = made(name)
    texts = texts_of()
    corpus = mechrep.Corpus.from_tokens(texts, model=model)
    together = mechrep.CorpusCache(model, corpus).get(Site.RESID_POST)
    backwards = mechrep.CorpusCache(model, corpus, batch_size=2).get(Site.RESID_POST)
    found = logits(model, corpus.tokens, lengths=corpus.lengths)
    for number, ids in enumerate(texts):
        right = oracles.look(family, plain, ids)
        for layer in range(family.n_layers):
            assert oracles.gap(together[layer, number, : len(ids)], right.after[layer]) < 1e-4
            assert oracles.gap(backwards[layer, number, : len(ids)], right.after[layer]) < 1e-4
        assert oracles.gap(found[number, : len(ids)], right.logits) < 1e-4


@pytest.mark.parametrize("name", CHANGING)
def test_what_was_read_before_does_not_matter(name: str) -> None:
    _, plain, model = made(name)
    for length in (60, 12, 50, SWITCH, 41, SWITCH):  # exactly at the switch dynamic angles stay as they were
        ids = texts_of((length,))[0]
        found = model.plain_logits(torch.tensor([ids]))[0]
        assert oracles.gap(found, alone(plain, ids)) < 1e-5


@pytest.mark.parametrize("name", CHANGING)
def test_rows_of_unknown_lengths_are_refused(name: str) -> None:
    *_, model = made(name)
    rows = torch.tensor([text(40), text(40, seed=1)])
    with pytest.raises(InputError, match="length"):
        logits(model, rows)
    with pytest.raises(InputError, match="length"):
        model.plain_logits(rows)
    with pytest.raises(InputError, match="length"):
        read_attention_rows(model, rows, lambda *_: None)
    assert logits(model, rows[:, :SWITCH]).shape[1] == SWITCH  # there all is the same


@pytest.mark.parametrize("name", CHANGING)
def test_both_views_keep_the_positions_of_every_text(name: str) -> None:
    family, plain, model = made(name)
    texts = texts_of((9, 40))
    corpus = mechrep.Corpus.from_tokens(texts, model=model)
    found = mechrep.CorpusCache(model, corpus, view="transformer_lens").get(Site.RESID_POST, layers=[2])[0]
    for number, ids in enumerate(texts):
        assert oracles.gap(found[number, : len(ids)], oracles.look(family, plain, ids).after[2]) < 1e-4


def longrope(name: str, **settings: Any) -> Any:
    """A tiny model of a family with the positions of Phi-3."""
    import transformers

    from tests.families.dense import GROUPED, rope
    from tests.families.zoo import liven, quietly

    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": SWITCH}
    positions = rope(rope_type="longrope", short_mscale=1.1, long_mscale=1.3, **factors)
    config = getattr(transformers, f"{name}Config")(**GROUPED, rope_parameters=positions, **settings)
    module = quietly(lambda: getattr(transformers, f"{name}ForCausalLM")(config)).eval().requires_grad_(False)
    liven(module)
    return module


@pytest.mark.parametrize("name", ["Phimoe", pytest.param("Phi3", marks=pytest.mark.slow)])
def test_families_with_a_switch_and_windows_of_their_own(name: str) -> None:
    """PhiMoE scales its angles by another factor in long texts; Phi-3 has windows too."""
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    settings = experts if name == "Phimoe" else {"original_max_position_embeddings": SWITCH}
    module = longrope(name, sliding_window=8, **settings)
    plain, model = copy.deepcopy(module), mechrep.load_model(module)
    assert model.lengths is not None and model.lengths.switch == SWITCH
    prompts = texts_of((28, 9, 40))
    corpus = mechrep.Corpus.from_tokens(prompts, model=model)
    written = mechrep.generate(model, corpus, max_new_tokens=8, stop_when=None)
    assert [written.row(i) for i in range(3)] == [oracles.continuation(plain, one, 8) for one in prompts]


def test_positions_that_depend_on_length_unseen_are_refused() -> None:
    """A rotary module that does not name its positions cannot be told lengths: the model is not measured at all."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    class Stretching(LlamaRotaryEmbedding):
        def forward(self, x: Tensor, **given: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore
            far = given["position_ids"].max() > SWITCH
            return super().forward(x, given["position_ids"] * (0.5 if far else 1.0))

    module = build(families()["Llama"])
    module.model.rotary_emb = Stretching(module.config)
    with pytest.raises(ModelError, match="how long"):
        mechrep.load_model(module)


# -- writing ------------------------------------------------------------------------------------------------------

WINDOWS = ["Mistral", "Gemma 2", "Gemma 3", "Llama 4", "GPT-Neo", "gpt-oss", "Qwen2, windows", "PhiMoE"]
STATES = ["Qwen3-Next", "Qwen3.5", "Jamba", "Falcon-H1", "Bamba", "LFM2", "GraniteMoE hybrid", "RecurrentGemma"]
PROMPTS, NEW = (24, 3, 40, 31, SWITCH, SWITCH + 1, 13), 14


def slow_but(names: list[str], *few: str) -> list[Any]:
    return [name if name in few else pytest.param(name, marks=pytest.mark.slow) for name in names]


def edited(family: Family, plain: Any, number: int, start: int) -> tuple[Any, Any]:
    """One of some edits, in mechrep and as plain hooks."""
    layer = family.with_attention[-1]
    heads, moved = [(layer, 1), (layer, 3)], [(family.with_attention[0], 2)]
    neurons = [(family.dense[0], 5), (family.dense[-1], 11)] if family.dense and family.act is not None else []
    kinds: list[tuple[Any, Any]] = [
        (None, oracles.zero_heads(family, plain, [])),
        (mechrep.Heads(heads, "zero", when="all"), oracles.zero_heads(family, plain, heads, start=start)),
    ]
    if not family.gated_attention:  # there moving is refused
        moving = mechrep.Heads(moved, "to_bos", when="all")
        kinds.append((moving, oracles.heads_to_first(family, plain, moved, start=start)))
    if neurons:
        cut = mechrep.Neurons(neurons, "zero", when="all")
        kinds.append((cut, oracles.change_neurons(family, plain, neurons, start=start)))
    return kinds[number % len(kinds)]


@pytest.mark.filterwarnings("ignore:.*reads the whole text")
@pytest.mark.parametrize("name", slow_but([*CHANGING, *WINDOWS, *STATES], *CHANGING, "Mistral", "Llama 4", "LFM2"))
def test_writing_is_one_pass_per_token(name: str) -> None:
    """Rows come and go, some are read token by token from their first edit on, all pass windows and switches."""
    family, plain, model = made(name)
    prompts = texts_of(PROMPTS)
    edits, starts, expected = [], [], []
    for number, prompt in enumerate(prompts):
        start = (0, len(prompt) - 1, 1, len(prompt) // 2)[(number // 4 + number) % 4]
        cut, oracle = edited(family, plain, number, start)
        with oracle:
            expected.append(oracles.continuation(plain, prompt, NEW))
        edits.append(cut)
        starts.append(start)
    corpus = mechrep.Corpus.from_tokens(prompts, model=model)
    for size in (3, 7):
        written = mechrep.generate(
            model, corpus, max_new_tokens=NEW, interventions=edits, starts=starts, batch_size=size, stop_when=None
        )
        assert [written.row(number) for number in range(len(prompts))] == expected


def test_where_nothing_can_be_kept_it_is_said_once() -> None:
    family = families()["RecurrentGemma"]
    model = mechrep.load_model(build(family))
    corpus = mechrep.Corpus.from_tokens(texts_of((5,)), model=model)
    with pytest.warns(UserWarning, match="whole text"):
        mechrep.generate(model, corpus, max_new_tokens=2)
    mechrep.generate(model, corpus, max_new_tokens=2)  # a second warning would be an error


def test_short_texts_of_dynamic_models_are_written_fast() -> None:
    family, plain, _ = made("Llama, dynamic NTK")
    model = mechrep.load_model(build(family))
    (prompt,) = texts_of((10,))
    corpus = mechrep.Corpus.from_tokens([prompt], model=model)
    written = mechrep.generate(model, corpus, max_new_tokens=8, stop_when=None)  # no warning
    assert written.row(0) == oracles.continuation(plain, prompt, 8)


@pytest.mark.parametrize("name", ["Phi-3, longrope"])
def test_the_reference_view_crosses_the_switch_too(name: str) -> None:
    _, plain, model = made(name)
    prompts = texts_of((28, 9))
    corpus = mechrep.Corpus.from_tokens(prompts, model=model)
    written = mechrep.generate(model, corpus, max_new_tokens=8, stop_when=None, view="transformer_lens")
    assert [written.row(i) for i in range(2)] == [oracles.continuation(plain, one, 8) for one in prompts]


@pytest.mark.filterwarnings("ignore:.*reads the whole text")
def test_sampling_does_not_notice_the_switch() -> None:
    """A text that is left by one decoder and taken up by the next draws on."""
    *_, model = made("Phi-3, longrope")
    (prompt,) = texts_of((28,))
    corpus = mechrep.Corpus.from_tokens([prompt], model=model)
    settings: dict[str, Any] = {"max_new_tokens": 12, "stop_when": None, "temperature": 1.0, "seed": 3}
    written = mechrep.generate(model, corpus, **settings).row(0)
    assert written == mechrep.generate(model, corpus, view="transformer_lens", **settings).row(0)
    assert len(written) == 40


# -- scoring ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", slow_but([*CHANGING, "Mistral", *STATES], *CHANGING, "LFM2", "Falcon-H1"))
def test_scores_are_those_of_the_text_alone(name: str) -> None:
    family, plain, model = made(name)
    texts = [ScoredText(tuple(ids), len(ids) // 2, len(ids) // 2 - 1, n) for n, ids in enumerate(texts_of())]
    heads = [(family.with_attention[-1], 1)]
    found = score_tokens(model, texts, [None, mechrep.Heads(heads, "zero", when="all")])
    for one, scores in zip(texts, found, strict=True):
        ids = torch.tensor(one.tokens)
        for row, off in enumerate(([], heads)):
            with oracles.zero_heads(family, plain, off, start=one.start):
                right = oracles.logits(plain, list(one.tokens)).log_softmax(-1)
            right = right[one.first - 1 : -1].gather(1, ids[one.first :, None])[:, 0]
            assert (scores.log_probability[row] - right).abs().max() < 1e-3


# -- other people's loops -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHANGING)
def test_a_patched_model_is_right_or_refuses(name: str) -> None:
    """transformers' own generate, past the switch and with rows on both sides of it."""
    family, plain, model = made(name)
    held = (3, 8, 20)
    for lengths in ((28,), (40,), (28, 9), (40, 9), (9, 5)):
        prompts = texts_of(lengths)
        ids = torch.tensor([[2] * (max(lengths) - len(row)) + row for row in prompts])
        settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
        try:
            with mechrep.PatchedModel(model, mechrep.SinkPatch(0, held)) as patched:
                written = patched.generate(ids, attention_mask=(ids != 2).long(), **settings).tolist()
        except InputError:
            assert len(lengths) == 2 or name == "Llama, dynamic NTK"
            assert max(lengths) + 6 > SWITCH
            continue
        for row, prompt in zip(written, prompts, strict=True):
            with oracles.holding_up(family, plain, 0, held, 1):
                assert row[max(lengths) - len(prompt) :] == oracles.continuation(plain, prompt, 6)


@pytest.mark.parametrize("name", CHANGING)
def test_a_harness_is_refused_rows_on_both_sides(name: str) -> None:
    _, plain, model = made(name)
    long, short = texts_of((40, 9))
    rows = torch.tensor([long, short + [2] * 31])
    with intervened(model, None) as module:
        for ids in (long, short):
            assert oracles.gap(module(torch.tensor([ids])).logits[0], alone(plain, ids)) < 1e-5
        with pytest.raises(InputError, match="alike"):
            module(rows, attention_mask=(rows != 2).long())
