"""States add up: any split of a corpus, in any batches, merged in any order, gives the same numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechrep.cache import CorpusCache
from mechrep.errors import InputError
from mechrep.measures.neurons import RepetitionNeuronResult, RepetitionNeurons
from mechrep.models.load import load_model
from tests.analyzers.by_hand import PROVENANCE, anatomy, observed, result_of
from tests.analyzers.looping_texts import NONE, as_corpus, random_loops
from tests.analyzers.oracle import Loop
from tests.tiny_models import tiny

R = 7
LOOPS = [*random_loops(8, seed=2), Loop([9] * 20, NONE, NONE)]
TABLES = [np.random.default_rng(i).normal(1, 2, (len(loop.ids), 2, 4)) for i, loop in enumerate(LOOPS)]


def check_equal(one: RepetitionNeuronResult, other: RepetitionNeuronResult, rtol: float = 1e-6) -> None:
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, Tensor):
            torch.testing.assert_close(a, b, rtol=rtol, atol=1e-7, equal_nan=True, msg=field.name)
        elif field.name == "texts":
            assert sorted(a) == sorted(b)
        elif field.name != "provenance":
            assert a == b, field.name


@settings(max_examples=25)
@given(data=st.data(), window=st.sampled_from(["published", "paper_form", "clean"]))
def test_any_split_merged_in_any_order_gives_the_same_numbers(data: st.DataObject, window: str) -> None:
    order = data.draw(st.permutations(range(len(LOOPS))))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(LOOPS) - 1), max_size=4)))
    parts = [part.tolist() for part in np.split(np.array(order), cuts)]
    parts = [part for part in parts if any(LOOPS[text].onset != NONE for text in part)]
    chosen = [text for part in parts for text in part]
    analyzers = [
        observed(
            [TABLES[text] for text in part],
            [LOOPS[text] for text in part],
            batch_size=data.draw(st.integers(1, 5)),
            name=f"part-{number}",
            r=R,
            window=window,
        )
        for number, part in enumerate(parts)
    ]
    whole = result_of([TABLES[text] for text in chosen], [LOOPS[text] for text in chosen], r=R, window=window)
    first, *others = data.draw(st.permutations(analyzers))
    for other in others:
        first.merge(other)
    names = [f"part-{n}-{i}" for n, part in enumerate(parts) for i, t in enumerate(part) if LOOPS[t].onset != NONE]
    merged = first.result(PROVENANCE)
    # Texts whose names are forgotten would be tested on although the neurons were found on them.
    assert sorted(merged.texts) == sorted(names) and merged.n_texts == len(names)
    check_equal(dataclasses.replace(merged, texts=whole.texts), whole)


def test_merging_leaves_the_other_analyzer_alone() -> None:
    one, other = (observed(TABLES[i : i + 3], LOOPS[i : i + 3], r=R, name=f"part-{i}") for i in (0, 3))
    before = {name: value.clone() for name, value in other.state.items()}
    one.merge(other)
    one.merge(observed(TABLES[6:8], LOOPS[6:8], r=R, name="part-6"))
    assert all(torch.equal(other.state[name], value) for name, value in before.items())
    assert one.state["texts"] == 8 and other.state["texts"] == 3


def test_only_like_is_merged_with_like() -> None:
    one = observed(TABLES[:3], LOOPS[:3], r=R)
    for other in (RepetitionNeurons(r=R + 1), RepetitionNeurons("hiraoka2025", r=R)):
        with pytest.raises(InputError, match="merge like with like"):
            one.merge(other)
    for width in (1, 3):  # 1 would broadcast
        narrow = RepetitionNeurons(r=R)
        narrow.prepare(anatomy(2, width), as_corpus(LOOPS).frame)
        with pytest.raises(InputError, match="one model and version"):
            one.merge(narrow)
        with pytest.raises(InputError, match="one model and version"):
            narrow.load_state(one.state)
    with pytest.raises(InputError, match="one model and version"):
        RepetitionNeurons(r=R).merge(one)  # it has not begun
    assert one.state["texts"] == 3


@pytest.mark.parametrize("view", ["plain", "transformer_lens"])
def test_the_batch_size_does_not_matter(view: str) -> None:
    model = load_model(tiny("gpt_neox"))
    corpus = as_corpus(LOOPS, model)
    results = []
    for batch_size in (1, 3, "auto"):
        result = CorpusCache(model, corpus, batch_size=batch_size, view=view).run(RepetitionNeurons(r=R))  # pyright: ignore[reportArgumentType]
        assert isinstance(result, RepetitionNeuronResult)
        results.append(result)
    for other in results[1:]:
        torch.testing.assert_close(results[0].delta, other.delta, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(results[0].standard_error, other.standard_error, rtol=1e-3, atol=1e-6)
        assert results[0].texts == other.texts and results[0].n_texts == other.n_texts == 8
