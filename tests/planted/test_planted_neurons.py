"""What the planted repetition neurons promise; only their ranking at the end is mechrep's own."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pandas as pd
import pytest
import torch

from mechrep.cache import CorpusCache
from mechrep.measures.neurons import RepetitionNeuronResult, RepetitionNeurons
from mechrep.text.corpus import Corpus
from tests.planted.by_hand import (
    BACKGROUND,
    forward,
    greedy_rows,
    period_of_end,
    plain,
    planted,
)
from tests.planted.texts import prompts, repeats, words
from tests.planted.workbench import EOS, FAMILIES, GATED
from tests.tiny_models import families


@functools.cache
def looping_texts(family: str) -> list[list[int]]:
    """Prompts and what greedy decoding makes of them, where that is a loop."""
    texts = greedy_rows(plain(planted("repetition_neurons", family).model), prompts(24), 90)
    loops = [ids for ids in texts if EOS not in ids]
    assert 20 <= len(loops) < 24  # some words are met before, some texts end
    return loops


def loop_of(ids: Sequence[int]) -> tuple[int, int]:
    """Start and period of a text that ends in a loop: the first copy begins as early as it can."""
    period = period_of_end(ids, 48)
    assert period is not None
    start = len(ids) - period
    while ids[start - 1] == ids[start - 1 + period]:
        start -= 1
    return start, period


def as_corpus(family: str) -> Corpus:
    """The looping texts with their true starts and onsets."""
    texts = looping_texts(family)
    loops = [loop_of(ids) for ids in texts]
    frame = pd.DataFrame({"start": [start for start, _ in loops], "onset": [sum(loop) for loop in loops]})
    return Corpus.from_tokens(texts, model=planted("repetition_neurons", family).model, frame=frame)


@pytest.mark.parametrize("family", families(*FAMILIES))
def test_the_planted_neurons_fire_with_the_copies_and_only_then(family: str) -> None:
    fixture, n = planted("repetition_neurons", family), 20
    ids = [*repeats(n), *words(60)[n : n + 10], *words(60)[n : n + 4]]  # a second repeat after new words
    run = forward(plain(fixture.model), family, ids)
    copied = [
        max((j for j in range(2, i + 1) if ids[j - 1] == ids[i] and j - 1 < i), default=None) for i in range(len(ids))
    ]
    expected = torch.zeros(len(ids), run.activation[2].shape[-1])
    for i, j in enumerate(copied):
        if j is not None:
            for (_, neuron), act in zip(fixture.detectors, fixture.detector_acts, strict=True):
                expected[i, neuron] = act
            high, low = divmod(ids[j], 8)
            for number in (high, 8 + low):
                expected[i, fixture.amplifiers[number][1]] = fixture.amplifier_act
    seen = [neuron for _, neuron in fixture.neurons]
    assert len({*seen}) == 20 and {layer for layer, _ in fixture.neurons} == {2}
    torch.testing.assert_close(run.activation[2][:, seen], expected[:, seen], atol=5e-3, rtol=0)
    assert not run.activation[2][: n + 1, seen].any()  # exactly silent in the first copy
    everything = torch.stack(run.activation)
    everything[2, :, seen] = 0
    assert everything.max() < BACKGROUND


@pytest.mark.parametrize("family", families(*FAMILIES))
@pytest.mark.parametrize("preset", ["mechrep", "hiraoka2025"])
def test_they_are_the_top_of_mechreps_ranking(family: str, preset: str) -> None:
    fixture = planted("repetition_neurons", family)
    corpus, n = as_corpus(family), len(fixture.neurons)
    for view in ("plain", "transformer_lens"):
        result = CorpusCache(fixture.model, corpus, view=view).run(RepetitionNeurons(preset))
        assert isinstance(result, RepetitionNeuronResult)
        assert {*result.top(n)} == {*fixture.neurons}
        assert result.top(4) == [*fixture.detectors][::-1]  # by their activations
        planted_delta, others = float(result.delta[result.top(n)[-1]]), float(result.delta[result.top(n + 1)[-1]])
        assert planted_delta > 3 * others
        # One position of the window, onset - 1, is before the first repeat.
        loudest = float(result.delta[fixture.detectors[-1]])
        assert loudest == pytest.approx(fixture.detector_acts[-1] * 29 / 30, rel=0.01)


@pytest.mark.parametrize("family", families(*FAMILIES))
def test_the_product_is_no_substitute_for_the_activation(family: str) -> None:
    fixture = planted("repetition_neurons", family)
    result = CorpusCache(fixture.model, as_corpus(family)).run(RepetitionNeurons(site="mlp_post"))
    found = {*result.top(len(fixture.neurons))} & {*fixture.neurons}
    assert found == (set() if family in GATED else {*fixture.neurons})
