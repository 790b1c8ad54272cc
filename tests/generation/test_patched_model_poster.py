"""The published fragment of the sink patch is right for one text in one call, and nowhere else; ours is everywhere."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from mechrep.generation.patched_model import PatchedModel
from mechrep.interventions import SinkPatch
from tests.generation.patch_by_hand import BOS, LAYER, NEURONS, logits_by_hand, poster_snippet
from tests.tiny_models import random_tokens, tiny

PAD = 2
TEXTS = [[BOS, *random_tokens(1, 13, seed=1)[0].tolist()], random_tokens(1, 9, seed=2)[0].tolist()]
NEURON = NEURONS[0]


def patched_or_poster(ours: bool, module: nn.Module) -> Any:
    return PatchedModel(module, SinkPatch(LAYER, NEURON)) if ours else poster_snippet(module, "llama", NEURON)


def by_hand(text: Sequence[int]) -> Tensor:
    return logits_by_hand(tiny("llama"), "llama", text, [NEURON])


def near(one: Tensor, other: Tensor) -> bool:
    return bool(torch.allclose(one, other, rtol=1e-4, atol=1e-4))


@torch.no_grad()
def one_text(module: Any) -> bool:
    """What the poster was made for: one text after BOS, in one call."""
    return near(module(torch.tensor([TEXTS[0]])).logits[0], by_hand(TEXTS[0]))


@torch.no_grad()
def batch(module: Any) -> bool:
    texts = [TEXTS[0], [BOS, *random_tokens(1, 13, seed=9)[0].tolist()]]
    logits = module(torch.tensor(texts)).logits
    return all(near(logits[row], by_hand(text)) for row, text in enumerate(texts))


@torch.no_grad()
def batch_as_wide_as_long(module: Any) -> bool:
    """Three texts of four tokens: the wrong broadcast fits."""
    texts = [[BOS, *row] for row in random_tokens(3, 3, seed=9).tolist()]
    logits = module(torch.tensor(texts)).logits
    return all(near(logits[row], by_hand(text)) for row, text in enumerate(texts))


@torch.no_grad()
def left_padding(module: Any) -> bool:
    mask = torch.tensor([[0] * 3 + [1] * len(TEXTS[0])])
    ids = torch.tensor([[PAD] * 3 + TEXTS[0]])
    logits = module(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0)).logits
    return near(logits[0, 3:], by_hand(TEXTS[0]))


@torch.no_grad()
def no_bos(module: Any) -> bool:
    return near(module(torch.tensor([TEXTS[1]])).logits[0], by_hand(TEXTS[1]))


@torch.no_grad()
def one_token_prompt(module: Any) -> bool:
    cache = DynamicCache()
    pieces = [module(torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits[0] for token in TEXTS[0]]
    return near(torch.cat(pieces), by_hand(TEXTS[0]))


@torch.no_grad()
def chunked_prefill(module: Any) -> bool:
    cache = DynamicCache()
    pieces = [
        module(torch.tensor([TEXTS[0][begin : begin + 5]]), past_key_values=cache, use_cache=True).logits[0]
        for begin in range(0, 14, 5)
    ]
    return near(torch.cat(pieces), by_hand(TEXTS[0]))


@torch.no_grad()
def turns(module: Any) -> bool:
    texts, caches = [TEXTS[0], [BOS, *random_tokens(1, 13, seed=9)[0].tolist()]], [DynamicCache(), DynamicCache()]
    for cache, text in zip(caches, texts, strict=True):
        module(torch.tensor([text[:-1]]), past_key_values=cache, use_cache=True)
    last = [
        module(torch.tensor([text[-1:]]), past_key_values=cache, use_cache=True).logits[0, -1]
        for cache, text in zip(caches, texts, strict=True)
    ]
    return all(near(got, by_hand(text)[-1]) for got, text in zip(last, texts, strict=True))


CASES = [batch, batch_as_wide_as_long, left_padding, no_bos, one_token_prompt, chunked_prefill, turns]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_poster_fragment_fails_where_the_patched_model_does_not(case: Any) -> None:
    module = copy.deepcopy(tiny("llama"))
    with patched_or_poster(False, module):
        assert one_text(module), "the fragment is right where it was meant to be"
    with patched_or_poster(True, module):
        assert one_text(module) and case(module)
    with patched_or_poster(False, module):
        try:
            right = case(module)
        except (RuntimeError, KeyError):
            right = False  # it cannot be broadcast, or no value has been kept
    assert not right
