"""``SinkPatch`` as TransformerLens hooks and in the decoder is the patch by hand; on planted sinks it does its work."""

from __future__ import annotations

import copy
import json
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechrep.errors import InputError
from mechrep.generation.decode import Decoding, generate
from mechrep.generation.patched_model import PatchedModel
from mechrep.interventions import Heads, Neurons, SinkPatch, add, scale
from mechrep.interventions.apply import EditTable
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import read_activations
from mechrep.text.corpus import Corpus
from tests.generation.patch_by_hand import BOS, LAYER, NEURONS, held, logits_by_hand, text_by_hand
from tests.planted.sinks import bos_sink_model, sink_model
from tests.planted.workbench import FAMILIES as PLANTED
from tests.planted.workbench import PAD, WORDS
from tests.tiny_models import PARTS, families, loaded, random_tokens, tiny

FAMILIES = ("llama_gqa", "gemma2", "gpt2", "gpt_neox")
PATCH = SinkPatch(LAYER, NEURONS)
TEXTS = [
    [BOS, *random_tokens(1, 13, seed=1)[0].tolist()],
    random_tokens(1, 9, seed=2)[0].tolist(),
    [BOS, *random_tokens(1, 4, seed=3)[0].tolist()],
    [BOS],
    [7],
]


def right_padded(texts: list[list[int]]) -> Tensor:
    width = max(map(len, texts))
    return torch.tensor([[*text, *[2] * (width - len(text))] for text in texts])


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def rows_of(corpus: Corpus) -> list[list[int]]:
    return [corpus.row(number) for number in range(len(corpus))]


# --- the value -----------------------------------------------------------------------------------------------------


def test_it_is_a_value_that_json_holds() -> None:
    patch = SinkPatch(2, iter([5, 3]), when="last")
    assert patch == SinkPatch.from_dict(json.loads(json.dumps(patch.to_dict()))) and patch != SinkPatch(2, [5, 3])
    assert hash(patch) == hash(SinkPatch(2, (5, 3), "last"))
    assert SinkPatch(2, 5) == SinkPatch(2, [5]) and patch.units == ((2, 5), (2, 3))
    found = SimpleNamespace(patch=(2, [5, 3]))
    for named in ("L2N5, L2N3", ["L2N5", (2, 3)], found):
        assert SinkPatch(named, when="last") == patch
    both = SinkPatch(0, [1]) + (SinkPatch(0, [2]) + Neurons([(1, 1)], when="all"))
    assert both.holds(loaded("llama_gqa").anatomy) == {0: (1, 2)}


@pytest.mark.parametrize(
    "bad",
    [
        lambda: SinkPatch(1, []),
        lambda: SinkPatch(1),
        lambda: SinkPatch("L1N2, L2N2"),
        lambda: SinkPatch("L1H2"),
        lambda: SinkPatch(SimpleNamespace(patch=None)),
        lambda: SinkPatch(1, [2, 2]),
        lambda: SinkPatch(1, [2.5]),  # pyright: ignore
        lambda: SinkPatch(1, "34"),  # pyright: ignore
        lambda: SinkPatch(1, [2], when="now"),  # pyright: ignore
        lambda: SinkPatch.from_dict({"layer": 1, "neuron": 2}),
        lambda: PATCH + Neurons([(0, 1)], when="last"),
        lambda: SinkPatch(3, [2]).hooks(loaded("llama_gqa")),
        lambda: SinkPatch(-1, [2]).hooks(loaded("llama_gqa")),
        lambda: SinkPatch(1, [48]).hooks(loaded("llama_gqa")),
        lambda: EditTable(loaded("llama_gqa"), [PATCH], [0]),
    ],
)
def test_bad_patches_are_refused(bad: Any) -> None:
    with pytest.raises((InputError, TypeError)):
        bad()


# --- whole texts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_on_a_batch_are_every_text_by_hand(family: str) -> None:
    model = loaded(family)
    logits = model.run_with_hooks(right_padded(TEXTS), fwd_hooks=PATCH.hooks(model))
    for row, text in enumerate(TEXTS):
        close(logits[row, : len(text)], logits_by_hand(tiny(family), family, text))


@torch.no_grad()
def test_anchors_may_be_given_and_a_later_start_keeps_the_level() -> None:
    model, text = loaded("llama_gqa"), TEXTS[0]
    given_anchor = model.run_with_hooks(torch.tensor([text]), fwd_hooks=PATCH.hooks(model, anchors=torch.tensor([4])))
    module = copy.deepcopy(tiny("llama_gqa"))
    with held(module, "llama_gqa", 4):
        close(given_anchor[0], module(torch.tensor([text])).logits[0])

    def from_nine(_module: Any, _args: Any, output: Tensor) -> Tensor:
        changed = output.clone()
        changed[:, 9:, NEURONS] = output[:, 1:2, NEURONS]
        return changed

    handle = PARTS["llama_gqa"].of(module, "up_projection", LAYER).register_forward_hook(from_nine)
    expected = module(torch.tensor([text])).logits
    handle.remove()
    later = SinkPatch(LAYER, NEURONS, when="from_onset").hooks(model, torch.tensor([9]))
    close(model.run_with_hooks(torch.tensor([text]), fwd_hooks=later), expected)


MIXTURES = {
    "patch": lambda: PATCH,
    "none": lambda: None,
    "two": lambda: SinkPatch(LAYER, [17, 3]) + SinkPatch(2, [1]),
    "after a cut": lambda: Neurons([(0, n) for n in range(0, 48, 2)], when="all") + PATCH,
    "same neurons": lambda: PATCH + Neurons([(LAYER, n) for n in NEURONS], add(1.5), when="all"),
    "scaled first": lambda: Neurons([(LAYER, n) for n in NEURONS], scale(-2.0), when="all") + PATCH,
    "heads": lambda: PATCH + Heads([(0, 1), (2, 0)], "to_bos", when="all"),
}


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_table_of_the_plain_view_is_the_hooks(family: str) -> None:
    """A different intervention in every row, all rows in one pass of whole texts."""
    model, texts = loaded(family), [TEXTS[0][:9], TEXTS[1]] * 4
    texts = texts[: len(MIXTURES)]
    tokens, chosen = torch.tensor(texts), [make() for make in MIXTURES.values()]
    table = EditTable(model, chosen, range(len(texts)), first_tokens=tokens[:, 0].tolist(), starts=[0] * len(texts))
    everywhere = torch.ones_like(tokens, dtype=torch.bool)
    table.aim(torch.arange(len(texts)), everywhere, torch.arange(9).expand_as(tokens))
    with table.applied():
        logits = model.plain_logits(tokens)
    for row, intervention in enumerate(chosen):
        hooks = [] if intervention is None else intervention.hooks(model)
        close(logits[row], model.run_with_hooks(tokens[row : row + 1], fwd_hooks=hooks)[0])


def test_a_pass_of_unknown_positions_or_without_its_anchor_is_refused() -> None:
    model, row = loaded("llama_gqa"), torch.arange(1)
    table = EditTable(model, [PATCH], [0], first_tokens=[BOS])
    everywhere = torch.ones(1, 3, dtype=torch.bool)
    with pytest.raises(InputError, match="positions are unknown"):
        table.aim(row, everywhere)
    with pytest.raises(InputError, match="went by unseen"):
        table.aim(row, everywhere, torch.tensor([[5, 6, 7]]))
    table.aim(row, everywhere, torch.tensor([[0, 1, 2]]))


# --- decoding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_writes_what_recomputing_by_hand_writes(family: str) -> None:
    model = loaded(family)
    corpus = Corpus.from_tokens(TEXTS, model=model)
    expected = [text_by_hand(tiny(family), family, text, 8) for text in TEXTS]
    ways: list[dict[str, Any]] = [
        {"batch_size": 2, "decoding": Decoding(None)},
        {"decoding": Decoding(None)},
        {"decoding": Decoding(None, view="transformer_lens")},
    ]
    for options in ways:
        written = generate(model, corpus, max_new_tokens=8, interventions=PATCH, **options)
        assert rows_of(written) == expected, options
    untouched = rows_of(generate(model, corpus, max_new_tokens=8, decoding=Decoding(None)))
    assert untouched != expected


@settings(max_examples=12)
@given(
    rows=st.lists(
        st.tuples(st.integers(1, 14), st.booleans(), st.sampled_from(sorted(MIXTURES)), st.integers(0, 12)),
        min_size=1,
        max_size=5,
    ),
    steps=st.integers(1, 5),
    batch_size=st.integers(1, 7),
)
def test_any_mixture_of_rows_and_starts(rows: list[tuple[int, bool, str, int]], steps: int, batch_size: int) -> None:
    """The slots, whose rows come and go, against the TransformerLens view, which recomputes every text."""
    model = loaded("llama_gqa")
    tokens = random_tokens(len(rows), 14, seed=4).tolist()
    prompts = [
        [*([BOS] if bos else []), *row[: n - bos]][: max(n, 1)] for row, (n, bos, *_) in zip(tokens, rows, strict=True)
    ]
    made = {name: make() for name, make in MIXTURES.items()}
    options: dict[str, Any] = {
        "max_new_tokens": steps,
        "interventions": [made[name] for *_, name, _ in rows],
        "starts": [min(row[-1], len(prompt) + steps - 1) for row, prompt in zip(rows, prompts, strict=True)],
    }
    corpus = Corpus.from_tokens(prompts, model=model)
    reference = generate(model, corpus, decoding=Decoding(None, view="transformer_lens"), **options)
    assert rows_of(generate(model, corpus, decoding=Decoding(None), batch_size=batch_size, **options)) == rows_of(
        reference
    )


# --- planted sinks -------------------------------------------------------------------------------------------------

N = 200


def norms(model: Model, layer: int, tokens: Tensor, **call: Any) -> Tensor:
    """Norms after the layer ``[row pos]``; with a call of the plain view, or under TransformerLens hooks."""
    seen: list[Tensor] = []

    def keep(activation: Tensor, *_: Any, **__: Any) -> None:
        seen.append(activation.double().norm(dim=-1))

    if "fwd_hooks" in call:
        reading = (model.anatomy.hook_name(Site.RESID_POST, layer), lambda activation, hook: keep(activation))
        model.run_with_hooks(tokens, fwd_hooks=[*call["fwd_hooks"], reading])
    elif call:
        assert model.plain is not None and model.handles is not None
        with ExitStack() as stack:
            handle = model.handles.layers[layer].register_forward_hook(
                lambda _module, _args, output: keep(output[0] if isinstance(output, tuple) else output)  # pyright: ignore
            )
            stack.callback(handle.remove)
            model.plain(input_ids=tokens, **call)
    else:
        read_activations(model, tokens, {Site.RESID_POST: [layer]}, keep)
    return seen[0]


@pytest.mark.parametrize("family", families(*PLANTED))
@torch.no_grad()
def test_on_a_planted_sink_bos_stays_and_repeats_are_flat(family: str) -> None:
    planted = sink_model(family)
    model, layer = planted.model, planted.sink_layer
    patch = SinkPatch(layer, planted.sink_neuron[1])
    words = list(WORDS[:8])
    tokens = torch.tensor([[BOS, *[word] * N] for word in words])
    before, after = norms(model, layer, tokens), norms(model, layer, tokens, fwd_hooks=patch.hooks(model))
    typical = norms(model, layer, torch.tensor([[BOS, *words * 4]]))[0, 2:].max()
    assert (before[:, -1] > 5 * typical).all(), "planted: repeats become sinks"
    close(after[:, 0], before[:, 0])
    assert (after[:, 1:] <= 1.5 * typical).all()
    with PatchedModel(model, patch):
        close(norms(model, layer, tokens), after)
        # The same rows behind padding on the left, each a different length.
        pads = [0, 3, 1, 0, 7, 2, 5, 4]
        ids = torch.tensor([[PAD] * pad + row[: N + 1 - pad] for pad, row in zip(pads, tokens.tolist(), strict=True)])
        mask = torch.tensor([[0] * pad + [1] * (N + 1 - pad) for pad in pads])
        places = (mask.cumsum(1) - 1).clamp_min(0)
        shifted = norms(model, layer, ids, attention_mask=mask, position_ids=places)
        for row, pad in enumerate(pads):
            torch.testing.assert_close(shifted[row, pad:], after[row, : N + 1 - pad], rtol=1e-3, atol=1e-2)


@torch.no_grad()
def test_a_bos_in_mid_text_loses_its_sink_and_the_first_keeps_it() -> None:
    """There is no detector: whatever comes after the anchor is held."""
    planted = bos_sink_model("llama")
    model, layer = planted.model, planted.sink_layer
    tokens = torch.tensor([[BOS, *WORDS[:6], BOS, *WORDS[6:12]]])
    before = norms(model, layer, tokens)[0]
    after = norms(model, layer, tokens, fwd_hooks=SinkPatch(layer, planted.sink_neuron[1]).hooks(model))[0]
    close(after[0], before[0])
    assert before[7] > 0.9 * before[0] and after[7] < 0.1 * before[7]
