"""Where memory runs out, batches are halved and the numbers stay: a model that refuses more than so many rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import mechrep
from mechrep.ablation.score import ScoredText, score_tokens
from mechrep.ablation.screening import WeightedText, estimated_effects
from mechrep.cache import CorpusCache
from mechrep.errors import ModelError
from mechrep.generation import direct_step
from mechrep.generation.decode import Decoding, Request, run_requests
from mechrep.interventions import Heads, Neurons
from mechrep.models.anatomy import Site
from mechrep.models.memory import bytes_of_reading, bytes_of_writing, in_batches, is_out_of_memory, rows_that_fit
from tests.cache.counting import MeanOf, model, texts_of
from tests.tiny_models import PARTS, tiny

LENGTHS = (5, 9, 14, 9, 3, 11, 8)
WAYS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: 12"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 12 bytes."),
    MemoryError("Unable to allocate 3 GiB for an array"),
]


@contextmanager
def room_for(rows: int, family: str = "llama_gqa", error: BaseException = WAYS[0], layer: int = 1) -> Iterator[list]:
    """A layer of the model, not the first one, has no room for more rows; collects how many it was given."""
    target = tiny(family)
    part = PARTS[family].of(target, "layer", layer)
    kind, seen = type(part), []
    call = kind.__call__

    def limited(self: Any, *args: Any, **kwargs: Any) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        if self is part:
            seen.append(len(states))
            if len(states) > rows:
                raise error
        return call(self, *args, **kwargs)

    step = direct_step.Layer.__call__

    def limited_step(self: Any, stream: Any, *rest: Any) -> Any:
        if self.module is part:
            seen.append(len(stream))
            if len(stream) > rows:
                raise error
        return step(self, stream, *rest)

    kind.__call__, direct_step.Layer.__call__ = limited, limited_step
    try:
        yield seen
    finally:
        del kind.__call__
        direct_step.Layer.__call__ = step


def test_what_says_that_memory_ran_out() -> None:
    assert all(map(is_out_of_memory, WAYS))
    others = RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory"), KeyboardInterrupt()
    assert not any(map(is_out_of_memory, others))
    with pytest.raises(RuntimeError, match="mat1"):
        list(in_batches([1, 2], 2, lambda _: (_ for _ in ()).throw(others[0]), "reading"))


@pytest.mark.parametrize("room", [1, 2, 3, 5, 100])
def test_every_row_is_done_once_in_order_and_batches_stay_small(room: int) -> None:
    tried: list[int] = []

    def do(rows: torch.Tensor) -> list[int]:
        tried.append(len(rows))
        if len(rows) > room:
            raise WAYS[1]
        return rows.tolist()

    found = [row for _, some in in_batches(torch.arange(23), 16, do, "counting") for row in some]
    assert found == list(range(23))
    failed = [size for size in tried if size > room]
    assert tried[: len(failed)] == failed, "once it is known, nothing larger is tried again"


@pytest.mark.parametrize("error", WAYS)
def test_a_reading_pass_in_less_memory_has_the_same_sums(error: BaseException) -> None:
    cache = CorpusCache(model("llama_gqa"), texts_of(LENGTHS))
    whole, states = cache.run(MeanOf(Site.GATE_ACT)), cache.get(Site.RESID_POST)
    with room_for(2, error=error) as seen:
        less = cache.run(MeanOf(Site.GATE_ACT))
        assert max(seen) == len(LENGTHS) and seen.count(7) == 1
        torch.testing.assert_close(cache.get(Site.RESID_POST), states, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(less.mean, whole.mean, rtol=1e-4, atol=1e-7)
    assert less.positions == whole.positions == sum(LENGTHS)


def test_decoding_in_less_memory_writes_the_same_texts() -> None:
    loaded = model("llama_gqa")
    edits = [None, Heads([(0, 1)], when="all"), Neurons([(1, 3), (0, 2)], "zero", when="all")]
    requests = [Request(tuple(range(3 + i, 9 + 2 * i)), 12, edits[i % 3], 0, i) for i in range(9)]
    for decoding in (Decoding(None), Decoding(None, temperature=1.0, seed=3)):
        whole = run_requests(loaded, requests, decoding, progress=False)
        with room_for(4) as seen:
            less = run_requests(loaded, requests, decoding, progress=False)
        assert max(seen) == 9 and [one.ids for one in less] == [one.ids for one in whole]


def test_scores_and_estimates_in_less_memory_are_the_same() -> None:
    loaded = model("llama_gqa")
    texts = [ScoredText(tuple(range(3 + i, 13 + i)), 6, 5, i) for i in range(5)]
    edits = [None, Heads([(0, 1)], when="all"), Neurons([(0, 3)], "zero", when="all")]
    weighted = [WeightedText(text, torch.ones(4) / 4) for text in texts]
    scores, estimates = score_tokens(loaded, texts, edits), estimated_effects(loaded, weighted)
    with room_for(2):
        for one, other in zip(score_tokens(loaded, texts, edits), scores, strict=True):
            torch.testing.assert_close(one.log_probability, other.log_probability, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(estimated_effects(loaded, weighted), estimates, rtol=1e-3, atol=1e-6)


def test_where_not_even_one_row_fits_that_is_the_error() -> None:
    loaded = model("llama_gqa")
    with room_for(0):
        with pytest.raises(ModelError, match=r"one row.*reading activations.*device_map"):
            CorpusCache(loaded, texts_of(LENGTHS)).run(MeanOf(Site.GATE_ACT))
        with pytest.raises(ModelError, match=r"one row.*generating"):
            run_requests(loaded, [Request((3, 4, 5), 4)], progress=False)


def test_rows_are_counted_by_the_memory_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, cpu = model("llama_gqa"), torch.device("cpu")
    for free, rows in ((0, 1), (2000, 10), (10**9, 64)):
        monkeypatch.setattr("mechrep.models.memory.free_bytes", lambda _, free=free: free)
        assert rows_that_fit(cpu, 100, most=64) == rows
    long = mechrep.Corpus.from_tokens([list(range(3, 23))] * 40, model=loaded)
    for patterns in (False, True):
        row = bytes_of_reading(loaded.anatomy, 20, 4, patterns=patterns)
        monkeypatch.setattr("mechrep.models.memory.free_bytes", lambda _, row=row: 2 * 7 * row)
        sizes = [*map(len, CorpusCache(loaded, long).batches(range(40), patterns=patterns))]
        assert sizes == [7, 7, 7, 7, 7, 5]
        given = CorpusCache(loaded, long, batch_size=20).batches(range(40), patterns=patterns)
        assert [*map(len, given)] == [20, 20], "a size that was asked for is tried"
    monkeypatch.setattr("mechrep.models.memory.free_bytes", lambda _: 2 * 3 * bytes_of_writing(loaded.anatomy, 7, 4))
    with room_for(100) as seen:
        run_requests(loaded, [Request((3, 4, 5 + i), 4) for i in range(8)], progress=False)
    assert max(seen) == 3
