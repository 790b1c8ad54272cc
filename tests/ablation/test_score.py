"""Scores of mixed rows against one row at a time, with TransformerLens hooks spelled out: no part of mechrep."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mechrep.ablation import score as ablation_scores
from mechrep.ablation.score import ScoredText, score_tokens
from mechrep.interventions import Heads, Intervention, Neurons, resample
from mechrep.models.load import load_model
from mechrep.models.model import Model
from tests.tiny_models import D_MLP, D_VOCAB, GATED, N_LAYERS, SLIDING_WINDOW, random_tokens, tiny

FAMILIES = ("mistral", "gpt2", "llama_gqa")
HEADS, NEURONS = [(0, 1), (1, 3), (2, 0)], [(0, 3), (1, 40), (2, 7)]
# Shapes that are alone and shapes that are shared; edits from the first token, from the prefix's end, and later.
SHAPES = [(25, 12, 11), (25, 12, 11), (25, 12, 11), (17, 6, 0), (17, 6, 0), (21, 5, 9), (9, 1, 0)]
TEXTS = [
    ScoredText(tuple(random_tokens(1, length, seed=i)[0].tolist()), first, start, i)
    for i, (length, first, start) in enumerate(SHAPES)
]
assert max(length for length, *_ in SHAPES) > 3 * SLIDING_WINDOW


@functools.cache
def loaded(family: str, view: str = "plain") -> Model:
    model = load_model(copy.deepcopy(tiny(family)))
    if view == "transformer_lens":
        model.plain = None
    return model


def obvious(
    model: Model,
    text: ScoredText,
    *,
    heads: Sequence[tuple[int, int]] = (),
    neurons: Sequence[tuple[int, int]] = (),
    to_first: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of one text's tokens and whether each is the most probable one."""
    hooks: list[tuple[str, Any]] = []
    for layer, head in heads:

        def cut_head(z: Tensor, hook: Any, head: int = head) -> Tensor:
            z[:, text.start :, head] = 0.0
            return z

        def move_head(pattern: Tensor, hook: Any, head: int = head) -> Tensor:
            pattern[:, head, text.start :] = 0.0
            pattern[:, head, text.start :, 0] = 1.0
            return pattern

        name = f"blocks.{layer}.attn.hook_pattern" if to_first else f"blocks.{layer}.attn.hook_z"
        hooks.append((name, move_head if to_first else cut_head))
    for layer, neuron in neurons:

        def cut_neuron(activation: Tensor, hook: Any, neuron: int = neuron) -> Tensor:
            activation[:, text.start :, neuron] = 0.0
            return activation

        hooks.append((f"blocks.{layer}.mlp.hook_post", cut_neuron))
    with torch.no_grad():
        logits = model.tl.run_with_hooks(torch.tensor([text.tokens]), fwd_hooks=hooks)[0].double()
    places = range(text.first, len(text.tokens))
    scores = logits.log_softmax(-1)
    return (
        torch.stack([scores[t - 1, text.tokens[t]] for t in places]),
        torch.tensor([int(scores[t - 1].argmax()) == text.tokens[t] for t in places]),
    )


CONDITIONS: list[tuple[Intervention | None, dict[str, Any]]] = [
    (None, {}),
    (Heads(HEADS, "zero"), {"heads": HEADS}),
    (Heads(HEADS[1:], "to_bos"), {"heads": HEADS[1:], "to_first": True}),
    (Neurons(NEURONS, "zero"), {"neurons": NEURONS}),
    (Heads(HEADS, "zero") + Neurons(NEURONS, "zero"), {"heads": HEADS, "neurons": NEURONS}),
    (Heads([(1, 3)], "zero"), {"heads": [(1, 3)]}),
]


def check(model: Model, interventions: Sequence[Intervention | None], expected: Sequence[Sequence[Any]]) -> None:
    for text, scores, rows in zip(TEXTS, score_tokens(model, TEXTS, interventions), expected, strict=True):
        assert scores.log_probability.shape == (len(interventions), len(text.tokens) - text.first)
        for row, (log_probability, correct) in enumerate(rows):
            assert (scores.log_probability[row] - log_probability).abs().max() < 1e-4
            assert torch.equal(scores.correct[row], correct)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("view", ["plain", "transformer_lens"])
def test_mixed_rows_score_what_single_rows_score(family: str, view: str) -> None:
    assert family == "gpt2" or family in GATED
    expected = [[obvious(loaded(family), text, **by_hand) for _, by_hand in CONDITIONS] for text in TEXTS]
    check(loaded(family, view), [intervention for intervention, _ in CONDITIONS], expected)
    clean, cut = expected[0][0][0], expected[0][1][0]
    assert (clean - cut).abs().max() > 0.1  # the cuts do something


def test_neither_the_size_of_a_batch_nor_the_company_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    # In float64: rounding in float32 depends on the shape of a batch and on the threads, by up to 2e-5.
    model = load_model(copy.deepcopy(tiny("mistral")).double())
    interventions = [intervention for intervention, _ in CONDITIONS]
    together = score_tokens(model, TEXTS, interventions)
    monkeypatch.setattr(ablation_scores, "_TOKENS_PER_BATCH", 40)
    small = score_tokens(model, TEXTS, interventions)
    monkeypatch.setattr(ablation_scores, "LOGITS_PER_BATCH", D_VOCAB)
    for number, text in enumerate(TEXTS):
        (alone,) = score_tokens(model, [text], interventions)
        for other in (small[number], alone):
            assert (other.log_probability - together[number].log_probability).abs().max() < 1e-9
            assert torch.equal(other.correct, together[number].correct)


def test_resampling_depends_on_the_number_of_the_text_alone() -> None:
    model, bank = loaded("gpt2"), torch.randn(5, N_LAYERS, D_MLP, generator=torch.Generator().manual_seed(0))
    drawn = Neurons(NEURONS, resample(bank, seed=2))
    together = score_tokens(model, TEXTS, [drawn, None])
    for text, scores in list(zip(TEXTS, together, strict=True))[::-1]:
        (alone,) = score_tokens(model, [text], [drawn])
        assert (alone.log_probability[0] - scores.log_probability[0]).abs().max() < 1e-5
    (other,) = score_tokens(model, [ScoredText(TEXTS[0].tokens, 12, 11, number=3)], [drawn])
    assert (other.log_probability[0] - together[0].log_probability[0]).abs().max() > 1e-3
