"""First-order estimates of ablating heads: beside derivatives of exact edits, and gradients of plain Hugging Face."""

from __future__ import annotations

import copy
import functools
import json

import numpy as np
import pytest
import scipy.stats
import torch
import transformers
from torch import Tensor

import mechrep
from mechrep.ablation.effect_plots import single_head_frame, single_heads_figure
from mechrep.ablation.outcomes import CopyAccuracy, LoopLogProbability, looping_texts
from mechrep.ablation.score import ScoredText, score_tokens
from mechrep.ablation.screening import (
    WeightedText,
    agreement,
    estimated_effects,
    screened_heads,
    screening_of,
)
from mechrep.ablation.study import StudyTexts, agreements, single_head_sweep
from mechrep.interventions import Heads
from mechrep.interventions.ops import mean, resample, scale
from mechrep.models.model import Model
from mechrep.run import Run
from mechrep.stats import sign_flip_p_values
from mechrep.text.stimuli import random_repeats
from tests.tiny_models import N_HEADS, N_LAYERS, families, loaded, random_tokens

SHAPES = [(23, 12, 11), (23, 12, 11), (15, 6, 0)]  # length, first predicted, first edited
TEXTS = [
    ScoredText(tuple(random_tokens(1, length, seed=i)[0].tolist()), first, start, i)
    for i, (length, first, start) in enumerate(SHAPES)
]
WEIGHTS = [torch.linspace(0.5, 1.5, len(text.tokens) - text.first) for text in TEXTS]
GIVEN = [WeightedText(text, weights) for text, weights in zip(TEXTS, WEIGHTS, strict=True)]
UNITS = [(layer, head) for layer in range(N_LAYERS) for head in range(N_HEADS)]


def without_plain_view(model: Model) -> Model:
    other = copy.copy(model)
    other.plain = None
    return other


def weighted(scored: list) -> Tensor:
    """``[text, intervention]``."""
    return torch.stack(
        [scores.log_probability @ weights.double() for scores, weights in zip(scored, WEIGHTS, strict=True)]
    )


@pytest.mark.parametrize("family", families("llama_gqa", "gpt2", "gemma2", "bloom"))
def test_an_estimate_is_the_derivative_of_scaling_a_head(family: str) -> None:
    model, step = loaded(family), 1e-2
    found = estimated_effects(model, GIVEN)
    ends = [
        weighted(score_tokens(model, TEXTS, [Heads([unit], scale(1 + sign * step)) for unit in UNITS]))
        for sign in (-1, 1)
    ]
    derivative = (ends[0] - ends[1]) / (2 * step)  # of doing less, which ablating is
    assert torch.allclose(found.flatten(1), derivative, atol=2e-3, rtol=0.02)
    assert found.abs().max() > 0.05
    slow = estimated_effects(without_plain_view(model), GIVEN)
    assert torch.allclose(found, slow, atol=1e-4)


def test_it_is_what_plain_hugging_face_gives_by_gradient_times_change() -> None:
    model = mechrep.load_model("mechrep-tiny")
    tokens = torch.tensor([[0, *range(30, 42), *[9, 8, 7, 6, 5] * 4]])
    start, first, seen = 16, 17, {}
    plain = copy.deepcopy(model.plain)
    assert plain is not None
    for number, layer in enumerate(plain.model.layers):

        def keep(_module: object, args: tuple[Tensor, ...], number: int = number) -> tuple[Tensor, ...]:
            args[0].retain_grad()
            seen[number] = args[0]
            return args

        layer.self_attn.o_proj.register_forward_pre_hook(keep)
    logs = plain(input_ids=tokens).logits.log_softmax(-1)[0, first - 1 : -1]
    logs.gather(1, tokens[0, first:, None]).mean().backward()
    heads = model.anatomy.n_heads
    by_hand = torch.stack(
        [-(z.grad * z)[0, start:].unflatten(-1, (heads, -1)).sum((0, 2)).detach() for z in seen.values()]
    )
    text = ScoredText(tuple(tokens[0].tolist()), first, start, 0)
    n = tokens.shape[1] - first
    found = estimated_effects(model, [WeightedText(text, torch.full((n,), 1 / n))])[0]
    assert torch.allclose(found.float(), by_hand, atol=1e-5)


def test_other_operations_go_to_where_they_put_a_head() -> None:
    model = loaded("llama_gqa")
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(3, N_LAYERS, N_HEADS, model.anatomy.d_head, generator=generator)
    zero = estimated_effects(model, GIVEN)
    held = estimated_effects(model, GIVEN, mean(torch.zeros_like(bank[0])))
    assert torch.allclose(zero, held)
    once, twice = (estimated_effects(model, GIVEN, mean(factor * bank[0])) for factor in (1.0, 2.0))
    assert torch.allclose(twice - once, once - zero, atol=1e-4), "linear in where the head is put"
    assert not torch.allclose(estimated_effects(model, GIVEN, resample(bank)), once)
    bos = estimated_effects(model, GIVEN, "to_bos")
    assert bos.isfinite().all() and not torch.allclose(bos, zero)


def test_weights_of_the_model_ask_for_gradients_as_before() -> None:
    model = loaded("llama_gqa")
    assert model.plain is not None
    before = [weight.requires_grad for weight in model.plain.parameters()]
    print_before = model.fingerprint()
    estimated_effects(model, GIVEN[:1])
    assert [weight.requires_grad for weight in model.plain.parameters()] == before
    assert all(weight.grad is None for weight in model.plain.parameters()) and model.fingerprint() == print_before


def test_screening_takes_the_largest_and_a_sample_of_the_rest() -> None:
    estimates = torch.arange(60.0).view(6, 10) - 20
    estimates[5, 9] = torch.nan
    chosen = screened_heads({"one": estimates}, first=4, sampled=7, seed=3)
    assert chosen.first == [(5, 8), (5, 7), (5, 6), (5, 5)] and chosen.n_heads == 59
    assert len(set(chosen.sampled) - set(chosen.first)) == 7 and (5, 9) not in chosen.heads
    assert chosen.heads == sorted(chosen.heads)
    assert len(screened_heads({"one": estimates}, first=4, sampled=1000).heads) == 59
    again = screening_of(json.loads(json.dumps({"screened": chosen.facts})))
    assert again is not None and (again.first, again.sampled) == (chosen.first, chosen.sampled)
    assert torch.equal(again.estimates["one"].nan_to_num(), estimates.nan_to_num())
    found = agreement(chosen, "one", {unit: float(estimates[unit]) for unit in chosen.heads})
    assert (found.n, found.rank_correlation, found.missed) == (11, 1.0, 0)
    found = agreement(chosen, "one", {unit: 40.0 if unit in chosen.sampled else 0.1 for unit in chosen.heads})
    assert found.missed == 7 and found.rank_correlation < 0


def test_several_measures_choose_heads_by_turns() -> None:
    one, other = torch.zeros(2, 3), torch.zeros(2, 3)
    one[0, 1], one[0, 2], other[1, 0], other[0, 1] = 3.0, 2.0, -4.0, 1.0
    assert screened_heads({"one": one, "other": other}, first=3, sampled=0).first == [(0, 1), (1, 0), (0, 2)]


@functools.cache
def wide() -> Model:
    """More heads than are ablated one by one."""
    config = transformers.LlamaConfig(
        vocab_size=61, hidden_size=96, intermediate_size=48, num_hidden_layers=4, num_attention_heads=12,
        max_position_embeddings=96, bos_token_id=0, eos_token_id=1, tie_word_embeddings=False, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    return mechrep.load_model(transformers.LlamaForCausalLM(config).eval())


def test_a_sweep_of_many_heads_ablates_the_first_ones_and_some_others() -> None:
    rows = [[0, *random_tokens(1, 6, seed=i)[0].tolist(), *list(range(20, 24 + i)) * 3] for i in range(7)]
    texts = mechrep.Corpus.from_tokens(rows, model=wide()).with_cycles()
    effects = single_head_sweep(wide(), texts=StudyTexts(loops=texts, copies=1, brief=3), run=Run(progress=False))
    chosen = screening_of(effects.notes)
    assert chosen is not None and chosen.n_heads == 48 and (len(chosen.first), len(chosen.sampled)) == (20, 12)
    assert [tuple(one.components["heads"][0]) for one in effects.conditions[1:]] == chosen.heads
    (found,) = agreements(effects).values()
    table = single_head_frame(effects).set_index(["layer", "head"])["effect"]
    ranks = [
        [abs(float(value[unit])) for unit in chosen.heads]
        for value in (chosen.estimates["loop_log_probability 1"], table)
    ]
    assert (found.n, found.sampled) == (32, 12)
    assert found.rank_correlation == pytest.approx(scipy.stats.spearmanr(*ranks).statistic)
    change = effects.effect_of("loop_log_probability", 1)
    rest = [place for place, one in enumerate(effects.conditions) if one.name in effects.notes["middle"]]
    apart = change - np.median(change[rest], 0)
    place = int(np.abs(change.mean(1)).argmax())
    p = effects.summary().set_index("name").loc[effects.conditions[place].name]
    beside = sign_flip_p_values(apart[[place]], effects.clusters[1])[0]
    assert p[p["copy"] == 1]["p"].item() == pytest.approx(
        max(beside, sign_flip_p_values(change[[place]], effects.clusters[1])[0])
    )
    assert single_heads_figure(effects).data


def test_brief_texts_score_the_beginning_of_a_repetition() -> None:
    model = loaded("llama_gqa")
    corpus = mechrep.Corpus.from_tokens([[0, 30, 31, *[40, 41, 42, 43, 44] * 4]], model=model).with_cycles()
    texts, loops = looping_texts(corpus)
    whole, brief = (LoopLogProbability(model, texts, loops, 2, "from_onset", per) for per in (None, 3))
    assert len(brief.texts[0].tokens) == len(whole.texts[0].tokens) - 2
    (scores,) = score_tokens(model, whole.texts, [None])
    values = brief.values([None], False)[:, 0, 0]
    expected = [scores.log_probability[0, :1], scores.log_probability[0, :3], scores.log_probability[0, 5:8]]
    assert torch.allclose(values[:3], torch.stack([part.mean() for part in expected]), atol=1e-5)
    assert [one.label for one in brief.measures][-1] == "stays_in_loop"
    assert values[3] == float(scores.correct[0, :3].all())
    repeats = random_repeats(model, n=6, sequences=3)
    edits = [None, Heads([(1, 2)])]
    values = CopyAccuracy(model, repeats, last=2).values(edits, False)
    (scores, *_) = score_tokens(model, CopyAccuracy(model, repeats).texts, [None])
    assert values.shape == (1, 2, 3) and values[0, 0, 0] == scores.correct[0, -2:].double().mean()
