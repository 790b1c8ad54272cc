"""Decoding with edited heads: the fast decoder, the reference and decoding by hand write the same texts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechrep.generation.decode import Decoding, Request, decode, generate
from mechrep.generation.whole_texts import decode_reference
from mechrep.interventions import Heads, Intervention, Neurons, add, mean, resample, scale
from mechrep.text.corpus import Corpus
from tests.interventions.heads_by_hand import ByHand, logits_by_hand
from tests.tiny_models import D_MODEL, N_HEADS, N_LAYERS, PARTS, SLIDING_WINDOW, families, loaded, random_tokens, tiny

FAMILIES = families("llama", "llama_gqa", "gpt2", "gpt_neox", "gemma2", "qwen2")
D_HEAD = D_MODEL // N_HEADS
SOME = [(0, 1), (1, 3), (1, 0), (2, 2)]
EVERY = [(layer, head) for layer in range(N_LAYERS) for head in range(N_HEADS)]
CUT = [(layer, neuron) for layer in range(N_LAYERS) for neuron in range(0, 48, 3)]
TABLE = torch.randn(N_LAYERS, N_HEADS, D_HEAD, generator=torch.Generator().manual_seed(1))
BANK = torch.randn(5, *TABLE.shape, generator=torch.Generator().manual_seed(2))

TO_BOS, ZERO = ByHand(SOME, None), ByHand(SOME, lambda z, layer, head: torch.zeros_like(z))
NO_NEURONS = ByHand(CUT, lambda a, layer, neuron: torch.zeros_like(a), "neuron")
KINDS: dict[str, tuple[Callable[[], Intervention | None], list[ByHand]]] = {
    "none": (lambda: None, []),
    "zero": (lambda: Heads(SOME), [ZERO]),
    "scale": (lambda: Heads(SOME, scale(-1.5)), [ByHand(SOME, lambda z, layer, head: -1.5 * z)]),
    "add": (lambda: Heads(SOME, add(TABLE)), [ByHand(SOME, lambda z, layer, head: z + TABLE[layer, head])]),
    "mean": (lambda: Heads(EVERY, mean(TABLE)), [ByHand(EVERY, lambda z, la, h: TABLE[la, h].expand_as(z))]),
    "to_bos": (lambda: Heads(SOME, "to_bos"), [TO_BOS]),
    "all to_bos": (lambda: Heads(EVERY, "to_bos"), [ByHand(EVERY, None)]),
    "neurons": (lambda: Neurons(CUT), [NO_NEURONS]),
    "both": (lambda: Neurons(CUT) + Heads(SOME, "to_bos"), [TO_BOS, NO_NEURONS]),
    "moved, scaled": (
        lambda: Heads(SOME, "to_bos") + Heads(EVERY[:7], scale(2.0)),
        [TO_BOS, ByHand(EVERY[:7], lambda z, layer, head: 2 * z)],
    ),
}
Row = tuple[int, str, int]  # length of the prompt, kind of intervention, first edited position
ROWS: list[Row] = [
    (1, "to_bos", 0), (9, "zero", 4), (4, "mean", 3), (12, "both", 0), (3, "both", 9), (20, "all to_bos", 19),
    (12, "none", 0), (20, "to_bos", 2), (2, "moved, scaled", 1), (5, "all to_bos", 0),
    (5, "neurons", 0),
]  # fmt: skip


def requests_of(rows: Sequence[Row], steps: int, seed: int = 0, shared_first: int | None = None) -> list[Request]:
    tokens = random_tokens(len(rows), 64, seed=seed)
    if shared_first is not None:
        tokens[::2, 0] = shared_first
    kinds = {kind: KINDS[kind][0]() for _, kind, _ in rows}
    return [
        Request(tuple(tokens[number, :length].tolist()), steps, kinds[kind], start, number)
        for number, (length, kind, start) in enumerate(rows)
    ]


def by_hand(family: str, requests: Sequence[Request], rows: Sequence[Row], steps: int) -> list[list[int]]:
    """Greedy texts, one at a time, everything recomputed for every token."""
    texts = []
    for request, (_, kind, start) in zip(requests, rows, strict=True):
        ids = list(request.prompt)
        for _ in range(steps):
            logits = logits_by_hand(family, torch.tensor([ids]), KINDS[kind][1], torch.tensor([start]))
            ids.append(int(logits[0, -1].argmax()))
        texts.append(ids)
    return texts


@pytest.mark.parametrize("family", FAMILIES)
def test_both_decoders_write_what_decoding_by_hand_writes(family: str) -> None:
    """Texts grow past sliding windows; half the rows have the same first token."""
    model, steps = loaded(family), 9
    assert steps + 1 > SLIDING_WINDOW
    requests = requests_of(ROWS, steps, shared_first=7)
    expected, decoding = by_hand(family, requests, ROWS, steps), Decoding(stop_when=None)
    assert len({tuple(text[-steps:]) for text in expected}) >= len(ROWS) - 1
    assert [a.ids for a in decode(model, requests, decoding, batch_size=5)] == expected
    assert [a.ids for a in decode_reference(model, requests, decoding)] == expected


def test_interventions_matter_here() -> None:
    requests = requests_of(ROWS, 1)
    untouched = [(length, "none", start) for length, _, start in ROWS]
    texts = [by_hand("llama_gqa", requests, rows, 8) for rows in (ROWS, untouched)]
    changed = [one != other for one, other in zip(*texts, strict=True)]
    assert sum(changed) >= 8


@settings(max_examples=15)
@given(
    rows=st.lists(
        st.tuples(st.integers(1, 12), st.sampled_from(sorted(KINDS)), st.integers(0, 14)), min_size=1, max_size=7
    ),
    steps=st.integers(1, 8),
    batch_size=st.integers(1, 8),
    shared_first=st.none() | st.just(5),
    seed=st.integers(0, 3),
)
def test_any_mixture_of_rows(rows: list[Row], steps: int, batch_size: int, shared_first: int | None, seed: int) -> None:
    requests = requests_of(rows, steps, seed, shared_first)
    answers = decode(loaded("llama_gqa"), requests, Decoding(stop_when=None), batch_size=batch_size)
    assert [answer.ids for answer in answers] == by_hand("llama_gqa", requests, rows, steps)


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2"])
@pytest.mark.parametrize("when", ["all", "last", "from_onset"])
def test_each_row_begins_where_its_when_says(family: str, when: str) -> None:
    model, cycle = loaded(family), [20, 21, 22]
    prompts = [[5, 6, 7, *cycle * 3], [9, *cycle * 4], [5, 30, *cycle * 3]]
    corpus = Corpus.from_tokens(prompts, model=model).with_cycles()
    starts = {
        "all": [0, 0, 0],
        "last": [len(prompt) - 1 for prompt in prompts],
        "from_onset": [int(onset) - 1 for onset in corpus.frame["onset"]],
    }[when]
    assert when != "from_onset" or starts == [5, 3, 4]
    edit = Heads(SOME, "to_bos", when=when) + Neurons(CUT, when=when)  # type: ignore[arg-type]
    expected = []
    for prompt, start in zip(prompts, starts, strict=True):
        request = Request(tuple(prompt), 8)
        expected += by_hand(family, [request], [(0, "both", start)], 8)
    for view in ("plain", "transformer_lens"):
        texts = generate(model, corpus, max_new_tokens=8, interventions=edit, decoding=Decoding(None, view=view))  # type: ignore[arg-type]
        assert [texts.row(number) for number in range(3)] == expected


@pytest.mark.parametrize("family", ["llama_gqa", "gpt_neox"])
def test_each_text_keeps_its_own_resampled_values(family: str) -> None:
    """The moved heads' values depend on the sample, where position 0 is edited too."""
    model = loaded(family)
    edit = Heads([(0, 0), (0, 1)], resample(BANK, seed=5)) + Heads([(1, 3), (2, 2)], "to_bos")
    starts = [0, 0, 0, 0, 4, 2, 0]
    requests = [
        Request((7, *row), 8, edit, start, text)
        for text, (row, start) in enumerate(zip(random_tokens(7, 6, seed=3).tolist(), starts, strict=True))
    ]
    decoding = Decoding(stop_when=None)
    texts = [answer.ids for answer in decode(model, requests, decoding, batch_size=4)]
    assert texts == [answer.ids for answer in decode_reference(model, requests, decoding, batch_size=3)]
    assert texts[::-1] == [answer.ids for answer in decode(model, requests[::-1], decoding, batch_size=2)]


@pytest.mark.parametrize("family", FAMILIES)
def test_last_is_the_edit_of_the_newest_position_in_cached_generation(family: str) -> None:
    """transformers' own ``generate`` with its cache, every call edited at its last position."""
    model, steps = loaded(family), 9
    prompts = [row[:length].tolist() for row, length in zip(random_tokens(3, 16, seed=5), (16, 7, 2), strict=True)]
    hugging_face = copy.deepcopy(tiny(family))
    for layer, head in SOME:

        def cut(_module: Any, args: Any, head: int = head) -> tuple[Any, ...]:
            z = args[0].clone()
            z[:, -1, head * D_HEAD : (head + 1) * D_HEAD] = 0
            return (z,)

        PARTS[family].of(hugging_face, "attention_output", layer).register_forward_pre_hook(cut)
    options = {"max_new_tokens": steps, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    published = [hugging_face.generate(torch.tensor([prompt]), **options)[0].tolist() for prompt in prompts]
    corpus = Corpus.from_tokens(prompts, model=model)
    texts = generate(
        model,
        corpus,
        max_new_tokens=steps,
        decoding=Decoding(None),
        interventions=Heads(SOME, when="last"),
        batch_size=2,
    )
    assert [texts.row(number) for number in range(3)] == published
