"""A direct step gives the logits of the model's own, is at work where it should be, and stands aside where it must."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import mechrep
from mechrep.generation import direct_parts
from mechrep.generation.direct_parts import next_step
from mechrep.generation.direct_step import Decoder, DirectStep
from mechrep.generation.slot_cache import SlotCache, kept_by, prefill, step
from mechrep.models.meter import metered
from mechrep.models.model import Model
from tests.tiny_models import SLIDING_WINDOW, fresh, loaded, random_tokens

DIRECT = ("llama", "llama_gqa", "gpt2", "gpt_neox", "gemma", "mistral", "qwen2")
LENGTHS = (5, 0, 20, 9)


def filled(model: Model, lengths: tuple[int, ...] = LENGTHS) -> SlotCache:
    """Slots with texts of several lengths, read by the model itself."""
    tokens = random_tokens(len(lengths), max(lengths), seed=3)
    prefixes = [row[: max(1, length)].tolist() for row, length in zip(tokens, lengths, strict=True)]
    cache = SlotCache(model.anatomy.n_layers, len(lengths), 60, model.device, kept_by(model))
    with torch.no_grad():
        cache.enter(list(range(len(lengths))), prefill(model, prefixes), list(range(len(lengths))), list(lengths))
    return cache


def written(way: Callable[..., torch.Tensor], cache: SlotCache, steps: int = 6) -> torch.Tensor:
    """Logits of some steps over the same tokens."""
    tokens = random_tokens(steps, len(cache.starts), seed=9)
    logits = []
    with torch.no_grad():
        for row in tokens:
            cache.make_room(1)
            logits.append(way(cache, row, cache.column - cache.starts))
    return torch.stack(logits)


def double(family: str) -> Model:
    return mechrep.load_model(fresh(family).double())


@pytest.mark.parametrize("lengths", [LENGTHS, (12, 12)])
@pytest.mark.parametrize("family", DIRECT)
def test_logits_are_those_of_the_model(family: str, lengths: tuple[int, ...]) -> None:
    """In double precision, from texts that the model has read, shorter and longer than a sliding window."""
    assert max(lengths) > SLIDING_WINDOW
    model = double(family)
    cache = filled(model, lengths)
    way = next_step(model, cache)
    assert isinstance(way, DirectStep)
    expected = written(partial(step, model.plain), filled(model, lengths))
    assert expected.std() > 1e-3
    torch.testing.assert_close(written(way, cache), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_as_the_model_does(dtype: torch.dtype) -> None:
    exact, model = double("llama_gqa"), mechrep.load_model(fresh("llama_gqa").to(dtype))
    truth = written(partial(step, exact.plain), filled(exact))
    way = next_step(model, filled(model))
    assert isinstance(way, DirectStep)
    own, direct = (written(one, filled(model)).double() for one in (partial(step, model.plain), way))
    assert (direct - truth).abs().max() <= 2 * (own - truth).abs().max()


def test_a_step_counts_as_one() -> None:
    model = loaded("llama_gqa")
    counts = []
    for way in (next_step(model, filled(model)), partial(step, model.plain)):
        cache = filled(model)
        with metered(model) as meter:
            written(way, cache, steps=3)
        counts.append((meter.written, meter.read, meter.logits))
    assert counts[0] == counts[1] == (3 * len(LENGTHS), 0, 3 * len(LENGTHS))


def hooked(part: nn.Module) -> None:
    part.register_forward_hook(lambda _module, _args, output: output * 2 if isinstance(output, torch.Tensor) else None)


def replaced(part: Any) -> None:
    inner = part.forward
    part.forward = lambda *args, **kwargs: inner(*args, **kwargs)


TOUCHED: dict[str, Callable[[Any], None]] = {
    "hook on a norm": lambda plain: hooked(plain.model.layers[1].input_layernorm),
    "hook on a layer": lambda plain: hooked(plain.model.layers[0]),
    "hook before a layer": lambda plain: plain.model.layers[0].register_forward_pre_hook(lambda *_: None),
    "hook on attention": lambda plain: hooked(plain.model.layers[2].self_attn),
    "hook on angles": lambda plain: hooked(plain.model.rotary_emb),
    "hook on the model": hooked,
    "another forward of a matrix": lambda plain: replaced(plain.model.layers[0].mlp.up_proj),
    "another forward of attention": lambda plain: replaced(plain.model.layers[0].self_attn),
}


@pytest.mark.parametrize("kind", TOUCHED)
def test_what_would_be_passed_over_is_not(kind: str) -> None:
    """Hooks and forwards of the user's own, before the first step is asked for and after it."""
    for asked_before in (False, True):
        model = mechrep.load_model(copy.deepcopy(fresh("llama_gqa")))
        cache = filled(model)
        if asked_before:
            assert isinstance(next_step(model, cache), DirectStep)
        TOUCHED[kind](model.plain)
        assert not isinstance(next_step(model, cache), DirectStep)


def test_hooks_where_modules_are_called_are_at_work() -> None:
    model = mechrep.load_model(copy.deepcopy(fresh("llama_gqa")))
    plain: Any = model.plain
    before = written(next_step(model, filled(model)), filled(model))
    for part in (plain.model.layers[0].mlp.act_fn, plain.model.layers[1].self_attn.v_proj):
        hooked(part)
    way = next_step(model, filled(model))
    assert isinstance(way, DirectStep)
    after = written(way, filled(model))
    torch.testing.assert_close(after, written(partial(step, plain), filled(model)), rtol=0, atol=1e-5)
    assert (after - before).abs().max() > 1e-3


def test_settings_and_weights_that_change_are_followed() -> None:
    model = mechrep.load_model(copy.deepcopy(fresh("llama_gqa")).double())
    plain: Any = model.plain
    seen = [written(next_step(model, filled(model)), filled(model))]
    for change in (
        lambda: setattr(plain.model.layers[0].input_layernorm, "variance_epsilon", 0.5),
        lambda: setattr(plain.model.layers[1].self_attn, "scaling", 0.9),
        lambda: plain.model.norm.weight.data.mul_(2.0),
        lambda: plain.model.layers[2].mlp.down_proj.weight.data.add_(0.1),
    ):
        change()
        way = next_step(model, filled(model))
        assert isinstance(way, DirectStep)
        seen.append(written(way, filled(model)))
        torch.testing.assert_close(seen[-1], written(partial(step, plain), filled(model)), rtol=0, atol=1e-10)
        assert (seen[-1] - seen[-2]).abs().max() > 1e-4


def wrong(decoder: Decoder, **attention: Any) -> Decoder:
    """The same decoder, one layer of which attends in another way."""
    first, *rest = decoder.layers
    return dataclasses.replace(
        decoder, layers=[dataclasses.replace(first, attention=dataclasses.replace(first.attention, **attention)), *rest]
    )


@pytest.mark.parametrize(
    ("family", "attention"),
    [("llama_gqa", {"scale": 0.3}), ("mistral", {"window": SLIDING_WINDOW - 1}), ("mistral", {"window": None})],
)
def test_a_step_that_is_wrong_is_not_taken(
    family: str, attention: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, found = mechrep.load_model(copy.deepcopy(fresh(family))), direct_parts._decoder_of
    assert isinstance(next_step(model, filled(model)), DirectStep)
    monkeypatch.setattr(direct_parts, "_decoder_of", lambda model: wrong(found(model), **attention))  # pyright: ignore
    direct_parts._found.clear()
    assert not isinstance(next_step(model, filled(model)), DirectStep)


def test_families_that_are_not_known_take_their_own_steps() -> None:
    """Soft caps on scores, and positions that are no rotation: the texts are right all the same (``test_engine``)."""
    for family in ("gemma2", "bloom"):
        model = loaded(family)
        assert not isinstance(next_step(model, filled(model)), DirectStep)
