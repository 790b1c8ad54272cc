"""What is left of pretrained models without some heads and neurons: plain transformers says the same."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from torch import Tensor

import mechrep
from mechrep.ablation.score import ScoredText, score_tokens
from mechrep.generation.decode import generate
from mechrep.generation.patched_model import PatchedModel, intervened
from mechrep.interventions.apply import logits
from mechrep.interventions.ops import Heads, Neurons, SinkPatch
from mechrep.measures.sink_norms import SinkNorms
from mechrep.text.corpus import Corpus
from tests.real import by_hand
from tests.real.conftest import Real

pytestmark = pytest.mark.real
WRITTEN = 10  # tokens of each continuation


def alike(found: Tensor, expected: Tensor) -> None:
    off = (found.double() - expected.double()).abs().max() / expected.double().abs().max()
    assert found.shape == expected.shape and off < 1e-4, f"off by {off:.2g} of the largest"


def neurons_of(real: Real) -> list[tuple[int, int]]:
    """Sink neurons, and a few of each of some other layers."""
    layer, numbers = real.sink
    others = [(place, number) for place in (2, 9, 14) for number in range(0, 400, 25)]
    return [*((layer, number) for number in numbers), *others]


def test_norms_without_the_sink_neurons(real: Real) -> None:
    layer, numbers = real.sink
    units, rows = [(layer, number) for number in numbers], real.prose()
    corpus = Corpus.from_tokens(rows, model=real.model)
    with intervened(real.model, Neurons(units, when="all")):
        result = mechrep.CorpusCache(real.model, corpus, progress=False).run(SinkNorms())
    with real.plain.zero_neurons(units):
        expected = by_hand.norm_profile([real.plain.look(row) for row in rows])
    torch.testing.assert_close(result.first_norm.double(), expected["first_norm"], rtol=1e-4, atol=0)
    torch.testing.assert_close(result.other_norm.double(), expected["other_norm"], rtol=1e-4, atol=0)


def test_log_probabilities_of_given_text_without_heads_and_neurons(real: Real) -> None:
    ids, _, onset = real.loops()[0]
    first, neurons = onset + 2, neurons_of(real)
    conditions = [None, Heads(real.heads), Neurons(neurons), Heads(real.heads) + Neurons(neurons)]
    (found,) = score_tokens(real.model, [ScoredText(tuple(ids), first, onset, 0)], conditions, progress=False)
    for row, (heads, cells) in enumerate([((), ()), (real.heads, ()), ((), neurons), (real.heads, neurons)]):
        with real.plain.zero_heads(heads, onset), real.plain.zero_neurons(cells, onset):
            expected = real.plain.log_probabilities(ids)[first - 1 :]
        alike(found.log_probability[row], expected)


@pytest.mark.parametrize("what", ["nothing", "both"])
def test_greedy_continuations_token_for_token(real: Real, what: str) -> None:
    heads, neurons = (real.heads, neurons_of(real)) if what == "both" else ((), ())
    intervention = Heads(heads) + Neurons(neurons) if what == "both" else None
    rows = [real.prose()[0][:9], real.loops()[1][0][:30]]
    starts = [4, 12]
    written = generate(
        real.model,
        Corpus.from_tokens(rows, model=real.model),
        max_new_tokens=WRITTEN,
        interventions=[intervention] * 2,
        starts=starts,
        progress=False,
    )
    for text, (row, start) in enumerate(zip(rows, starts, strict=True)):
        with ExitStack() as stack:
            stack.enter_context(real.plain.zero_heads(heads, start))
            stack.enter_context(real.plain.zero_neurons(neurons, start))
            expected = real.plain.continuation(row, WRITTEN)
        found = written.row(text)
        assert found == expected[: len(found)]
        assert len(found) == len(expected) or found[-1] in real.model.eos_ids


def test_the_patch_on_a_text_and_while_writing(real: Real) -> None:
    layer, numbers = real.sink
    patch, ids = (
        SinkPatch(layer, numbers),
        [*real.prose()[0], *[real.model.encode(" poem", prepend_bos=False)[-1]] * 24],
    )
    with real.plain.hold_up(layer, numbers, anchor=1):
        expected = real.plain.logits(ids)
        text = real.plain.continuation(ids[:24], WRITTEN)
    alike(logits(real.model, torch.tensor([ids]), patch)[0], expected)
    with torch.no_grad(), PatchedModel(real.model, patch) as patched:
        alike(patched(torch.tensor([ids])).logits[0], expected)
    corpus = Corpus.from_tokens([ids[:24]], model=real.model)
    written = generate(real.model, corpus, max_new_tokens=WRITTEN, interventions=patch, progress=False).row(0)
    assert written == text[: len(written)]
