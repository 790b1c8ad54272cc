"""Shards of this process, how large they are, and the options of a run that name workers; without a cluster."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mechrep.cache import CorpusCache
from mechrep.engine import LOCAL, Done, Engine, Pace
from mechrep.errors import EngineError, InputError
from mechrep.models.anatomy import Site
from mechrep.ray_engine import check_versions, places_on, unpacked_model
from mechrep.run import Run
from tests.cache.counting import MeanOf, model, texts_of

LENGTHS = (5, 9, 14, 9, 3, 11, 8)


class Apart(Engine):
    """Two workers as far as a study sees: shards are asked for ahead, and answered in their order."""

    workers, apart = 2, True  # pyright: ignore

    def __init__(self) -> None:
        self.shards: list[Any] = []

    def begin(self) -> None:
        """Always there."""

    def work(self, job: Any, shards: Any) -> Any:
        waiting: list[Any] = []
        for shard in shards:
            self.shards.append(shard)
            waiting.append(shard)
            if len(waiting) > 2:
                done = waiting.pop(0)
                yield Done(done, job.do(done), 0.01)
        for done in waiting:
            yield Done(done, job.do(done), 0.01)


def run_apart(**options: Any) -> tuple[Run, Apart]:
    engine, run = Apart(), Run(engine="ray", **options)
    run.made["engine", run.workers, run.address] = engine
    return run, engine


@pytest.mark.parametrize("stored", [False, True])
def test_many_small_shards_give_the_sums_of_one_pass(tmp_path: Path, stored: bool) -> None:
    run, engine = run_apart(store=tmp_path if stored else None)
    sites = (Site.GATE_ACT, Site.RESID_POST)
    whole = CorpusCache(model("llama_gqa"), texts_of(LENGTHS), batch_size=2).run(*map(MeanOf, sites))
    parts = CorpusCache(model("llama_gqa"), texts_of(LENGTHS), batch_size=2, run=run).run(*map(MeanOf, sites))
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one.mean, other.mean, rtol=1e-12, atol=0)
        assert one.positions == other.positions == sum(LENGTHS)
    assert [text for shard in engine.shards for batch in shard for text in batch] == [2, 5, 1, 3, 6, 0, 4]
    assert all(len(shard) == 1 for shard in engine.shards)  # two workers share four batches


def test_the_model_before_is_no_reason_to_refuse_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch keeps its memory for what comes; a device without memory stands for a GPU."""
    given_back: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append(True))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (64 * len(given_back), 64))
    weights: Any = [(np.zeros(64, np.uint8), torch.uint8, (64,), None)]
    assert unpacked_model(pickle.dumps("a model"), weights, "meta") == "a model"
    with pytest.raises(EngineError, match="a GPU that holds it"):
        unpacked_model(pickle.dumps("a model"), weights * 4, "meta")


def test_a_shard_takes_about_as_long_as_it_may_and_never_all_that_is_left_where_there_are_workers() -> None:
    here, apart = (Pace(engine, least=4, most=50, seconds=10.0) for engine in (LOCAL, Apart()))
    assert here.next(1000) == 4 and apart.next(1000) == 4 and apart.next(8) == 2 and apart.next(1) == 1
    for pace in (here, apart):
        pace.took(4, 2.0)
    assert here.next(1000) == 20 == apart.next(1000) and apart.next(40) == 10
    for pace in (here, apart):
        pace.took(20, 1e9)
    assert (here.next(1000), apart.next(1000)) == (4, 1)
    here.took(1, 0.0)
    assert here.next(1000) == 50


@pytest.mark.parametrize(
    ("nodes", "workers", "expected"),
    [
        ([{"CPU": 2.0}], None, (2, 1, 0)),
        ([{"CPU": 2.0}], 1, (1, 2, 0)),
        ([{"CPU": 2.0}], 8, (8, 0.25, 0)),  # more workers than cores share them
        ([{"CPU": 3.0}, {"CPU": 3.0}], 3, (3, 1, 0)),  # two of two cores do not fit one node of three
        ([{"CPU": 8.0, "GPU": 4.0}, {"CPU": 64.0}], None, (4, 2, 1)),  # by the GPUs
        ([{"CPU": 2.0, "GPU": 4.0}], None, (4, 0, 1)),
        ([{"object_store_memory": 1.0}], None, (1, 0.0, 0)),
    ],
)
def test_a_cluster_is_shared_out(nodes: list[dict[str, float]], workers: int | None, expected: tuple[Any, ...]) -> None:
    places = places_on(nodes, workers, with_gpu=True)
    assert (places.workers, places.cpus, places.gpus) == expected and places.threads >= 1
    assert places_on([{"CPU": 8.0, "GPU": 4.0}], None, with_gpu=False).gpus == 0
    with pytest.raises(InputError, match="5 on 4 GPUs"):
        places_on([{"CPU": 8.0, "GPU": 4.0}], 5, with_gpu=True)


def test_workers_without_ray_are_refused_and_so_is_ray_where_it_is_not_installed(monkeypatch: Any) -> None:
    for options in ({"workers": 2}, {"address": "auto"}):
        with pytest.raises(InputError, match="engine='ray' beside them"):
            Run(**options)  # pyright: ignore[reportArgumentType]
    for workers in (0, -1, True):
        with pytest.raises(InputError, match="from 1 on" if workers is not True else "workers"):
            Run(engine="ray", workers=workers)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    with pytest.raises(InputError, match=r"without Ray.*pip install 'mechrep\[ray\]'"):
        Run(engine="ray")


def test_a_worker_of_another_version_is_refused() -> None:
    import mechrep

    check_versions("here", {"mechrep": mechrep.__version__, "torch": str(torch.__version__)})
    for other in ("0.0.1", "that is not installed"):
        with pytest.raises(EngineError, match=rf"node7 with mechrep {other}.*mechrep {mechrep.__version__}, as in"):
            check_versions("node7", {"mechrep": other, "torch": str(torch.__version__)})
