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
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import mechrep
from mechrep.errors import ModelError
from mechrep.generation import decode, direct_parts
from mechrep.generation.direct_parts import next_step
from mechrep.generation.direct_step import Decoder, DirectStep
from mechrep.generation.slot_cache import SlotCache, kept_by, prefill, step
from mechrep.interventions import Heads, Neurons, SinkPatch
from mechrep.models.meter import metered
from mechrep.models.model import Model
from tests.families import zoo
from tests.tiny_models import SLIDING_WINDOW, fresh, loaded, random_tokens

DIRECT = ("llama", "llama_gqa", "gpt2", "gpt_neox", "gemma", "mistral", "qwen2")
OTHERS = ("Qwen3", "Gemma 3", "Qwen2, windows", "Llama, biases", "GPT-NeoX, sequential")
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
    made = zoo.build(zoo.families()[family]) if family in OTHERS else fresh(family)
    return mechrep.load_model(made.double())


def own_step(model: Model) -> Callable[..., torch.Tensor]:
    return partial(step, model.plain)


@pytest.mark.parametrize("lengths", [LENGTHS, (12, 12)])
@pytest.mark.parametrize("family", [*DIRECT, *OTHERS])
def test_logits_are_those_of_the_model(family: str, lengths: tuple[int, ...]) -> None:
    """In double precision, from texts that the model has read, shorter and longer than a sliding window."""
    assert max(lengths) > SLIDING_WINDOW
    model = double(family)
    cache = filled(model, lengths)
    way = next_step(model, cache)
    assert isinstance(way, DirectStep)
    expected = written(own_step(model), filled(model, lengths))
    assert expected.std() > 1e-3
    torch.testing.assert_close(written(way, cache), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_as_the_model_does(dtype: torch.dtype) -> None:
    exact, model = double("llama_gqa"), mechrep.load_model(fresh("llama_gqa").to(dtype))
    truth = written(own_step(exact), filled(exact))
    way = next_step(model, filled(model))
    assert isinstance(way, DirectStep)
    own, direct = (written(one, filled(model)).double() for one in (own_step(model), way))
    assert (direct - truth).abs().max() <= 2 * (own - truth).abs().max()


def test_a_step_counts_as_one() -> None:
    model = loaded("llama_gqa")
    counts = []
    for way in (next_step(model, filled(model)), own_step(model)):
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
    torch.testing.assert_close(after, written(own_step(model), filled(model)), rtol=0, atol=1e-5)
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
        torch.testing.assert_close(seen[-1], written(own_step(model), filled(model)), rtol=0, atol=1e-10)
        assert (seen[-1] - seen[-2]).abs().max() > 1e-4


def mine(module: Any, *args: Any, **kwargs: Any) -> Any:
    """An attention of the user's own."""
    output, weights = ALL_ATTENTION_FUNCTIONS["sdpa"](module, *args, **kwargs)
    return output * 0.5, weights


def set_attention(plain: Any) -> None:
    ALL_ATTENTION_FUNCTIONS.register("mine", mine)
    plain.set_attn_implementation("mine")


CHANGED: dict[str, tuple[str, Callable[[Any], Any], bool]] = {
    "a narrower window": ("mistral", lambda plain: setattr(plain.config, "sliding_window", 3), True),
    "an attention of one's own": ("llama_gqa", set_attention, False),
    "half precision": ("llama_gqa", lambda plain: plain.to(torch.bfloat16), True),
    "other angles": ("llama_gqa", lambda plain: plain.model.rotary_emb.inv_freq.mul_(2.0), True),
    "a class's own forward": ("gemma", lambda plain: None, True),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_what_changes_after_the_comparison_is_seen(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family, change, still = CHANGED[kind]
    model = mechrep.load_model(copy.deepcopy(fresh(family)))
    before = written(next_step(model, filled(model)), filled(model))
    change(model.plain)
    if kind == "a class's own forward":
        norm: Any = type(model.plain.model.norm)  # pyright: ignore
        one = norm.forward
        monkeypatch.setattr(norm, "forward", lambda self, x: one(self, x) * 2 + 1)
        still = False  # two and one more is no RMS norm, so the norms are called as they are
    way = next_step(model, filled(model))
    after, expected = written(way, filled(model)), written(own_step(model), filled(model))
    tolerance = 1e-5 if model.dtype is torch.float32 else 0.05
    torch.testing.assert_close(after, expected, rtol=0, atol=tolerance * float(expected.abs().max()))
    assert (after.float() - before).abs().max() > 1e-3
    assert isinstance(way, DirectStep) == still or kind == "a class's own forward"


def test_a_verdict_under_a_hook_is_not_kept() -> None:
    """A hook that silences attention would make every comparison come out equal."""
    model = mechrep.load_model(copy.deepcopy(fresh("llama_gqa")))
    plain: Any = model.plain
    hooks = [
        layer.self_attn.o_proj.register_forward_hook(lambda _m, _a, output: output * 0) for layer in plain.model.layers
    ]
    assert not isinstance(next_step(model, filled(model)), DirectStep)
    assert plain not in direct_parts._found
    for hook in hooks:
        hook.remove()
    assert isinstance(next_step(model, filled(model)), DirectStep)


def test_counting_does_not_count_the_comparison() -> None:
    model = mechrep.load_model(copy.deepcopy(fresh("llama_gqa")))
    cache = filled(model)
    with metered(model) as meter:
        assert isinstance(next_step(model, cache), DirectStep)
        assert (meter.steps, meter.passes, meter.logits) == (0, 0, 0)
        written(own_step(model), cache, steps=1)
    assert meter.written == len(LENGTHS), "the counting hooks are back"


def test_generating_takes_direct_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under edits of all kinds, each token in one."""
    model, taken = loaded("llama_gqa"), list[int]()
    one = type(next_step(model, filled(model))).__call__  # compared by now
    monkeypatch.setattr(DirectStep, "__call__", lambda *args: taken.append(1) or one(*args))
    edits = [None, Neurons([(0, 1), (2, 5)]), Heads([(0, 1)], "to_bos"), SinkPatch(1, [3, 7])]
    corpus = mechrep.Corpus.from_tokens(random_tokens(4, 9).tolist(), model=model)
    mechrep.generate(model, corpus, max_new_tokens=6, interventions=edits, stop_when=None)
    assert len(taken) == 6


def test_a_text_is_not_refused_for_what_is_written_behind_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows go on for some steps behind their end; from the third step on, one row has logits that are no numbers."""
    model, short = loaded("llama_gqa"), 17
    corpus = mechrep.Corpus.from_tokens([[0, short, 5, 9], [0, 18, 5, 9]], model=model)

    def lengths(of_short: int) -> list[int]:
        stop = lambda ids: len(ids) >= (of_short if ids[1] == short else 9)  # noqa: E731
        return mechrep.generate(model, corpus, max_new_tokens=6, stop_when=stop).lengths.tolist()

    usual = lengths(6)
    assert usual == [6, 9]

    def broken(model: Model, cache: SlotCache) -> Callable[..., torch.Tensor]:
        way, seen = next_step(model, cache), list[int]()

        def run(cache: SlotCache, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            logits = way(cache, tokens, positions)
            seen.append(1)
            bad = (rows.texts.ids[:, 1] == short)[:, None]
            return logits.masked_fill(bad, torch.nan) if len(seen) > 2 else logits

        return run

    started = decode._SlotRun.__init__
    rows: Any = None

    def noted(self: Any, *args: Any) -> None:
        nonlocal rows
        rows = self
        started(self, *args)

    monkeypatch.setattr(decode._SlotRun, "__init__", noted)
    monkeypatch.setattr(decode, "next_step", broken)
    assert lengths(6) == usual
    with pytest.raises(ModelError, match="logits"):
        lengths(7)


def wrong(decoder: Decoder, **attention: Any) -> Decoder:
    """The same decoder, one layer of which attends in another way."""
    first, *rest = decoder.layers
    return dataclasses.replace(
        decoder, layers=[dataclasses.replace(first, attention=dataclasses.replace(first.attention, **attention)), *rest]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "attention"),
    [
        ("llama_gqa", {"scale": 0.05}),
        ("mistral", {"window": SLIDING_WINDOW - 1}),
        ("mistral", {"window": SLIDING_WINDOW + 1}),
        ("mistral", {"window": None}),
    ],
)
def test_a_step_that_is_wrong_is_not_taken(
    family: str, attention: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, found = mechrep.load_model(copy.deepcopy(fresh(family)).to(dtype)), direct_parts._decoder_of
    assert isinstance(next_step(model, filled(model)), DirectStep)
    monkeypatch.setattr(direct_parts, "_decoder_of", lambda model: wrong(found(model), **attention))  # pyright: ignore
    direct_parts._found.clear()
    assert not isinstance(next_step(model, filled(model)), DirectStep)


@pytest.mark.parametrize("family", ["gemma2", "bloom", "Ministral", "OLMo", "Granite", "Qwen3-MoE"])
def test_families_that_were_not_read_take_their_own_steps(family: str) -> None:
    """Soft caps, factors beyond a length, clipped values: the texts are right all the same (``test_engine``)."""
    model = mechrep.load_model(zoo.build(zoo.families()[family])) if family in zoo.families() else loaded(family)
    assert not isinstance(next_step(model, filled(model)), DirectStep)
