"""The fast decoder gives the texts of obvious decoding, whatever comes together in a batch, on every family."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from mechrep.generation import decode
from mechrep.generation.decode import Decoding, generate
from mechrep.generation.slot_cache import SlotCache
from mechrep.interventions import Heads, Intervention, Neurons, SinkPatch, add, scale
from mechrep.models.model import Model
from mechrep.text.corpus import Corpus
from tests.generation.obvious import Edit, attach, obvious_text
from tests.tiny_models import FAMILIES, WITH_ALIBI, families, loaded, random_tokens, tiny

CUT = [(layer, neuron) for layer in range(3) for neuron in range(0, 48, 3)]
FEW = [(0, 1), (1, 7), (2, 46)]
KINDS: dict[str, tuple[Callable[[], Intervention | None], list[Edit]]] = {
    "none": (lambda: None, []),
    "zero": (lambda: Neurons(CUT), [Edit(CUT, 0, 0)]),
    "add": (lambda: Neurons(FEW, add(2.0)), [Edit(FEW, 1, 2)]),
    "product": (lambda: Neurons(CUT, scale(-1.5), site="mlp_post"), [Edit(CUT, -1.5, 0, "mlp_output")]),
    "sum": (lambda: Neurons(CUT) + Neurons(FEW, add(-3.0)), [Edit(CUT, 0, 0), Edit(FEW, 1, -3)]),
}
Row = tuple[int, str, int]  # length of the prompt, kind of intervention, first edited position
STEPS = 10
ROWS: list[Row] = [
    (1, "none", 0), (9, "zero", 4), (4, "add", 3), (12, "product", 0), (3, "sum", 9), (20, "zero", 19), (12, "add", 11),
    (20, "none", 0), (2, "sum", 1),
]  # fmt: skip


def prompts_of(rows: Sequence[Row], seed: int = 0) -> list[list[int]]:
    """Prompts that begin with the number of their row, so that a stop rule can tell them apart."""
    tokens = random_tokens(len(rows), 64, seed=seed)
    return [[3 + number, *tokens[number, 1:length].tolist()] for number, (length, _, _) in enumerate(rows)]


def texts_of(
    model: Model, rows: Sequence[Row], steps: int, *, seed: int = 0, batch_size: int = 256, **options: Any
) -> list[list[int]]:
    kinds = {kind: KINDS[kind][0]() for _, kind, _ in rows}
    corpus = generate(
        model,
        Corpus.from_tokens(prompts_of(rows, seed), model=model),
        max_new_tokens=steps,
        interventions=[kinds[kind] for _, kind, _ in rows],
        starts=[start for _, _, start in rows],
        batch_size=batch_size,
        decoding=Decoding(**{"stop_when": None, **options}),
    )
    return [corpus.row(number) for number in range(len(rows))]


def obvious_texts(family: str, rows: Sequence[Row], steps: int, seed: int = 0, **options: Any) -> list[list[int]]:
    return [
        obvious_text(family, prompt, steps, KINDS[kind][1], start, **options)
        for prompt, (_, kind, start) in zip(prompts_of(rows, seed), rows, strict=True)
    ]


@pytest.mark.parametrize("family", WITH_ALIBI)
def test_both_views_write_what_obvious_decoding_writes(family: str) -> None:
    """Prompts, starts and interventions of every row differ; sliding windows are shorter than the texts."""
    expected = obvious_texts(family, ROWS, STEPS)
    assert len({tuple(text[-STEPS:]) for text in expected}) == len(ROWS)
    assert any(len(set(text[-STEPS:])) > 2 for text in expected), "a constant text would prove little"
    assert texts_of(loaded(family), ROWS, STEPS, view="plain", batch_size=3) == expected
    assert texts_of(loaded(family), ROWS, STEPS, view="plain") == expected
    assert texts_of(loaded(family), ROWS, STEPS, view="transformer_lens", batch_size=4) == expected


def test_interventions_matter_here() -> None:
    untouched = [(length, "none", 0) for length, _, _ in ROWS]
    changed = [
        one != other
        for one, other in zip(
            obvious_texts("llama", ROWS, STEPS), obvious_texts("llama", untouched, STEPS), strict=True
        )
    ]
    assert sum(changed) >= 5


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the slots did: ``left`` and ``right`` (rows moved), ``keep`` (slots dropped), ``enter``."""
    seen: list[str] = []
    shift, keep, enter = SlotCache._shift, SlotCache.keep, SlotCache.enter

    def shifted(self: SlotCache, by: int) -> None:
        seen.append("left" if by < 0 else "right")
        shift(self, by)

    def kept(self: SlotCache, slots: list[int]) -> None:
        seen.append("keep")
        keep(self, slots)

    def entered(self: SlotCache, *args: Any) -> None:
        seen.append("enter")
        enter(self, *args)

    monkeypatch.setattr(SlotCache, "_shift", shifted)
    monkeypatch.setattr(SlotCache, "keep", kept)
    monkeypatch.setattr(SlotCache, "enter", entered)
    return seen


@pytest.mark.parametrize("family", families("llama_gqa", "gpt2", "mistral", "gemma2", "bloom"))
def test_rows_that_leave_enter_shift_and_compact(family: str, moves: list[str]) -> None:
    """Rows end at different lengths; waiting ones take over until the columns run out, at last few remain."""
    rows: list[Row] = [
        (18, "none", 0), (6, "add", 2), (6, "zero", 5), (3, "none", 0), (3, "add", 0), (2, "sum", 1), (2, "none", 0),
        (1, "none", 0), (5, "product", 3), (4, "none", 0), (1, "add", 0), (2, "zero", 1), (1, "none", 0), (3, "add", 2),
    ]  # fmt: skip
    ends = [20, 25, 9, 31, 8, 27, 6, 33, 7, 30, 12, 32, 29, 24]

    def stop(ids: list[int]) -> bool:
        return len(ids) >= ends[ids[0] - 3]

    expected = obvious_texts(family, rows, 32, stop=stop)
    assert {len(text) for text in expected} == set(ends)
    assert texts_of(loaded(family), rows, 32, view="plain", stop_when=stop, batch_size=3) == expected
    assert moves.count("enter") >= 4
    assert {"left", "right", "keep"} <= set(moves)


def test_one_row_at_a_time_and_rows_with_a_common_prefix(moves: list[str]) -> None:
    """The same prompt under several interventions: the common prefix is computed once."""
    model, prompt = loaded("llama"), random_tokens(1, 15)[0].tolist()
    kinds = ["none", "zero", "add", "sum", "product", "zero"]
    starts = [0, 14, 10, 14, 0, 3]
    corpus = Corpus.from_tokens([prompt] * len(kinds), model=model)
    expected = [obvious_text("llama", prompt, 9, KINDS[k][1], s) for k, s in zip(kinds, starts, strict=True)]
    shapes: list[tuple[int, ...]] = []
    assert model.plain is not None
    handle = model.plain.register_forward_pre_hook(
        lambda _module, _args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    for batch_size in (1, 2, 6):
        shapes.clear()
        texts = generate(
            model, corpus, max_new_tokens=9, decoding=Decoding(None), interventions=[KINDS[k][0]() for k in kinds],
            starts=starts, batch_size=batch_size,
        )  # fmt: skip
        assert [texts.row(i) for i in range(len(kinds))] == expected
    handle.remove()
    assert (4, 14) in shapes, "14 tokens, unedited for three rows, edited for two; 10 before a late edit; each once"


@pytest.mark.parametrize("family", families("llama_gqa", "gpt2", "gemma2"))
def test_held_neurons_and_edits_of_everything_read_a_prompt_in_one_go(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long prompts under ``when="all"``: as many passes as tokens are written, and the text of the reference view."""
    model = loaded(family)
    held = [SinkPatch(1, [3, 7]), SinkPatch(1, [4]), None, Neurons([(0, 1)], "zero", when="all")]
    corpus = Corpus.from_tokens([row for row in random_tokens(2, 16).tolist() for _ in held], model=model)
    steps: list[int] = []
    one = decode._SlotRun._step
    monkeypatch.setattr(decode._SlotRun, "_step", lambda *args: steps.append(1) or one(*args))
    options: dict[str, Any] = {"max_new_tokens": 6, "interventions": held * 2, "stop_when": None}
    fast = generate(model, corpus, view="plain", **options)
    assert len(steps) == 6
    slow = generate(model, corpus, view="transformer_lens", **options)
    assert [fast.row(i) for i in range(len(fast))] == [slow.row(i) for i in range(len(slow))]


class _Asked(TorchDispatchMode):
    """Notes what would make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        bits = name == "index" and any(one is not None and one.dtype == torch.bool for one in args[1])
        if name in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal") or bits:
            self.asked.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("lengths", [(9, 9, 9, 9, 9), (3, 12, 9, 1, 7)])
@pytest.mark.parametrize("family", ["llama_gqa", "gpt2", "mistral"])
def test_a_step_asks_the_device_for_nothing(
    family: str, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under edits of all kinds, greedily and by sampling, with the detectors; ids are read behind several steps."""
    model, asked = loaded(family), _Asked()
    one = decode._SlotRun._step

    def watched(*args: Any) -> None:
        with asked:
            one(*args)

    monkeypatch.setattr(decode._SlotRun, "_step", watched)
    edits = [None, Neurons(CUT), Heads([(0, 1)], "to_bos"), Heads([(1, 0)], "zero") + Neurons(FEW, add(1.0))]
    edits.append(SinkPatch(1, [3, 7]) if family == "llama_gqa" else None)
    prompts = [row[:length].tolist() for row, length in zip(random_tokens(5, 12), lengths, strict=True)]
    corpus = Corpus.from_tokens(prompts, model=model)
    rules: list[dict[str, Any]] = [
        {}, {"temperature": 1.0, "top_k": 5, "suppress": [4]}, {"stop_when": ["mechrep", "hiraoka2025"]},
    ]  # fmt: skip
    for options in rules:
        generate(model, corpus, max_new_tokens=9, interventions=edits, starts=[0, 2, 0, 5, 0], view="plain", **options)
    assert not asked.asked


@settings(max_examples=15)
@given(
    rows=st.lists(
        st.tuples(st.integers(1, 16), st.sampled_from(sorted(KINDS)), st.integers(0, 20)), min_size=1, max_size=7
    ),
    steps=st.integers(1, 12),
    batch_size=st.integers(1, 8),
    ends=st.lists(st.integers(1, 26), min_size=7, max_size=7),
    seed=st.integers(0, 3),
)
def test_any_mixture_of_rows(rows: list[Row], steps: int, batch_size: int, ends: list[int], seed: int) -> None:
    def stop(ids: list[int]) -> bool:
        return len(ids) >= ends[ids[0] - 3]

    rows = [(length, kind, min(start, length + steps - 1)) for length, kind, start in rows]
    expected = obvious_texts("llama_gqa", rows, steps, seed=seed, stop=stop)
    options = {"seed": seed, "stop_when": stop, "batch_size": batch_size}
    assert texts_of(loaded("llama_gqa"), rows, steps, view="plain", **options) == expected


# --- the published way of editing ----------------------------------------------------------------------------------


def last_position_text(family: str, prompt: list[int], edits: list[Edit], steps: int, *, use_cache: bool) -> list[int]:
    """The released recipe: a hook that edits the last position of every call that ``generate`` makes."""
    model = copy.deepcopy(tiny(family))
    with ExitStack() as stack:
        attach(stack, model, family, edits, lambda length: length - 1)
        options = {"max_new_tokens": steps, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
        return model.generate(torch.tensor([prompt]), use_cache=use_cache, **options)[0].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_last_is_the_hook_at_the_last_position_of_cached_generation(family: str) -> None:
    model = loaded(family)
    prompts = [row[:length].tolist() for row, length in zip(random_tokens(4, 16, seed=5), (16, 7, 11, 2), strict=True)]
    edits = [Edit(CUT, 0, 0)]
    corpus = Corpus.from_tokens(prompts, model=model)
    texts = generate(
        model, corpus, max_new_tokens=12, decoding=Decoding(None), interventions=Neurons(CUT, when="last"), batch_size=3
    )
    published = [last_position_text(family, prompt, edits, 12, use_cache=True) for prompt in prompts]
    assert [texts.row(i) for i in range(4)] == published
    assert [obvious_text(family, prompt, 12, edits, len(prompt) - 1) for prompt in prompts] == published


def test_without_a_cache_the_same_hook_is_another_intervention() -> None:
    prompts, edits = random_tokens(4, 12, seed=5).tolist(), [Edit(CUT, 0, 0)]
    cached, uncached = (
        [last_position_text("llama", prompt, edits, 12, use_cache=use_cache) for prompt in prompts]
        for use_cache in (True, False)
    )
    assert cached != uncached
