"""Two workers of a real Ray cluster on this machine: their numbers are those of one process, whatever happens to them.

Slow to start, so one cluster serves all tests (`make test-ray`).  ``RAY_ADDRESS`` names one that is there already.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import mechrep
from mechrep import ray_engine
from mechrep.ablation.effects import Condition
from mechrep.ablation.outcomes import HeldOutLoss, LoopDecoding, Regeneration, looping_texts
from mechrep.ablation.run import measure_effects
from mechrep.cli import main
from mechrep.errors import EngineError, InputError
from mechrep.interventions.ops import Heads, Intervention
from mechrep.journal import Journal
from mechrep.measures.attention_sinks import AttentionSinks
from mechrep.measures.first_token import FirstTokenDetection
from mechrep.measures.neurons import RepetitionNeurons
from mechrep.measures.sink_norms import SinkNorms
from mechrep.run import Run
from tests.cache.counting import model as family

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'mechrep[ray]'")
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[Run]:
    """A run on two workers, of one core each."""
    own = {} if "RAY_ADDRESS" in os.environ else {"address": "local", "num_cpus": 2, "include_dashboard": False}
    if own:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **own)
    yield Run(engine="ray", workers=2, progress=False)
    ray.shutdown()


def beside(cluster: Run, **options: Any) -> Run:
    """Another run, which has measured nothing yet, on the same workers."""
    return Run(engine="ray", workers=2, progress=False, made={("engine", 2, None): cluster.crew}, **options)


@pytest.fixture(scope="module")
def model() -> mechrep.Model:
    return mechrep.load_model("mechrep-tiny")


@pytest.fixture(scope="module")
def texts(model: mechrep.Model) -> mechrep.Corpus:
    rows = [[0, *range(20 + i, 50 + i), *[9 + i, 8, 7, 6 + i, 5] * 5] for i in range(12)]
    return mechrep.Corpus.from_tokens(rows, model=model).with_cycles()


def cells(number: int = 8) -> list[Any]:
    heads = [Heads([(layer, head)], when="all") for layer in range(4) for head in range(2)][:number]
    return [(Condition(), None), *((Condition(f"h{i}", "ablation", 1), one) for i, one in enumerate(heads))]


def outcomes(model: mechrep.Model, texts: mechrep.Corpus) -> list[Any]:
    corpus, loops = looping_texts(texts)
    windows = mechrep.Corpus.from_tokens([[0, *range(20 + i, 51 + i)] for i in range(4)], model=model)
    prompts = [loop.onset for loop in loops]
    written = Regeneration("still_looping", model, corpus, prompts, loops, LoopDecoding(max_new_tokens=12))
    return [HeldOutLoss(model, windows), written]


class Loss(HeldOutLoss):
    """Falls over on purpose: where a file says how often, or always."""

    def __init__(self, model: mechrep.Model, corpus: mechrep.Corpus, marks: Path | None, error: bool = False) -> None:
        super().__init__(model, corpus)
        self.marks, self.error = marks, error

    def values(self, interventions: Sequence[Intervention | None], progress: bool | None) -> Any:
        """The loss; the first worker that comes here dies."""
        if self.error:
            raise InputError("this", "that", "nothing")
        mark = None if self.marks is None else self.marks / "died"
        if mark is None or not mark.exists():
            if mark is not None:
                mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().values(interventions, progress)


class Counting(HeldOutLoss):
    """Notes how much it was asked."""

    def values(self, interventions: Sequence[Intervention | None], progress: bool | None) -> Any:
        """The loss."""
        asked.append(len(interventions))
        return super().values(interventions, progress)


asked: list[int] = []


@pytest.fixture(autouse=True)
def two_conditions_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechrep.ablation.run._ROWS_PER_SHARD", 8)
    monkeypatch.setattr("mechrep.ablation.run._FIRST_SHARD", 8)


def test_a_reading_pass_has_the_sums_and_counts_of_one_process(
    cluster: Run, model: mechrep.Model, texts: mechrep.Corpus
) -> None:
    def analyzers() -> list[Any]:
        return [SinkNorms(), AttentionSinks(), RepetitionNeurons(r=5), FirstTokenDetection.of(model)]

    here, there = analyzers(), analyzers()
    mechrep.CorpusCache(model, texts, batch_size=2).run(*here)
    mechrep.CorpusCache(model, texts, batch_size=2, run=cluster).run(*there)
    for one, other in zip(here, there, strict=True):
        for name, value in one.state.items():
            torch.testing.assert_close(other.state[name], value, rtol=1e-9, atol=1e-9, msg=f"{one}: {name}")
    assert len(cluster.crew.idle) == 2, "both workers are there"  # pyright: ignore[reportAttributeAccessIssue]


def test_a_table_is_the_same_though_a_worker_dies_in_the_middle(
    cluster: Run, model: mechrep.Model, texts: mechrep.Corpus, tmp_path: Path
) -> None:
    two = outcomes(model, texts)
    here = measure_effects(model, cells(), two, config={})
    there = measure_effects(model, cells(), two, config={}, run=cluster)
    torch.testing.assert_close(there.values[0], here.values[0], rtol=1e-5, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(there.values[1:], here.values[1:], rtol=0, atol=0, equal_nan=True)
    dying = Loss(model, two[0].corpus, tmp_path)
    again = measure_effects(model, cells(), [dying], config={}, run=beside(cluster))
    assert (tmp_path / "died").exists()
    torch.testing.assert_close(again.values[0], here.values[0][:, :4], rtol=1e-5, atol=1e-6)


def test_a_store_of_a_run_that_was_stopped_is_finished_by_this_process(
    cluster: Run, model: mechrep.Model, texts: mechrep.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the other way round; nothing is computed twice, nothing is half written."""
    kept = 0
    real = Journal.keep

    def keep(self: Journal, shard: int, records: Any) -> None:
        nonlocal kept
        if kept == 2:
            raise KeyboardInterrupt
        kept += 1
        real(self, shard, records)

    loss = outcomes(model, texts)[:1]
    whole = measure_effects(model, cells(), loss, config={}).values
    stored = beside(cluster, store=tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Journal, "keep", keep)
        measure_effects(model, cells(), loss, config={}, run=stored)
    shards = sorted(path.name for path in tmp_path.rglob("shard-*.json"))
    assert shards == ["shard-00000.json", "shard-00001.json"] and not list(tmp_path.rglob("*.partial"))
    asked.clear()
    counting = [Counting(model, loss[0].corpus)]
    finished = measure_effects(model, cells(), counting, config={}, run=Run(store=tmp_path, progress=False))
    assert sum(asked) == len(cells()) - 4
    torch.testing.assert_close(finished.values, whole, rtol=1e-5, atol=1e-6)
    again = measure_effects(model, cells(), loss, config={}, run=beside(cluster, store=tmp_path))
    assert torch.equal(again.values, finished.values)


def test_what_goes_wrong_in_a_worker_is_one_clear_error(
    cluster: Run, model: mechrep.Model, texts: mechrep.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = outcomes(model, texts)[0].corpus
    with pytest.raises(InputError, match="given: this; expected: that"):
        measure_effects(model, cells(), [Loss(model, corpus, None, error=True)], config={}, run=cluster)
    with monkeypatch.context() as patch:
        patch.setattr(ray_engine, "_TRIES", 2)
        with pytest.raises(EngineError, match=r"2 workers that died over the same part.*what is finished is kept"):
            measure_effects(model, cells(1), [Loss(model, corpus, None)], config={}, run=cluster)
    hook = model.plain.register_forward_hook(lambda *_: None)  # pyright: ignore[reportOptionalMemberAccess]
    try:
        with pytest.raises(InputError, match="hooks on it"):
            mechrep.CorpusCache(model, texts, run=cluster).run(SinkNorms())
    finally:
        hook.remove()
    with monkeypatch.context() as patch:
        patch.setattr(mechrep, "__version__", "99.0")
        with pytest.raises(EngineError, match=r"a worker on .* with mechrep .*mechrep 99\.0, as in this process"):
            mechrep.CorpusCache(model, texts, run=Run(engine="ray", workers=1, progress=False)).run(SinkNorms())


def test_a_cluster_that_does_not_answer_or_is_another_one_is_said_at_once(
    cluster: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"has joined the cluster.*ray\.shutdown"):
        Run(engine="ray", address="192.0.2.250:6379").crew.begin()
    with socket.create_server(("127.0.0.1", 0)) as server:
        silent = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(ray_engine, "_HEALTH_SECONDS", 3.0)
        with pytest.raises(EngineError, match=r"no answer within 3 seconds|no Ray cluster"):
            ray_engine._knock(silent)
    with pytest.raises(EngineError, match=rf"{silent}.*engine='local', which goes on from the store"):
        ray_engine._knock(silent)  # nobody listens there any more
    for nonsense in ("there", "host:", "host:port"):
        with pytest.raises(InputError, match="host:port"):
            ray_engine._knock(nonsense)
    command = ["verify", "mechrep-tiny", "--out", str(tmp_path), "--engine", "ray", "--address", "there:1", "--quiet"]
    assert main(command) == 1 and "has joined the cluster" in capsys.readouterr().err


def test_without_an_address_a_run_has_a_cluster_of_its_own(cluster: Run) -> None:
    """It does not join what somebody has started on this machine, nor wait for what has died here."""
    script = (
        "import ray; from mechrep import ray_engine; ray_engine._connect(None); "
        "print('own:', ray.get_runtime_context().gcs_address); ray.shutdown()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    ran = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    (own,) = re.findall(r"own: (\S+)", ran.stdout)
    assert own != ray.get_runtime_context().gcs_address


def test_the_code_of_the_page_runs(cluster: Run) -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "ray.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "ray.md", "exec"), names)
    whole = mechrep.CorpusCache(names["model"], names["texts"], batch_size=2).run(SinkNorms())
    torch.testing.assert_close(names["norms"].ratio, whole.ratio, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["llama_gqa", "gpt_neox"])
def test_a_model_of_ones_own_travels_with_its_weights(name: str) -> None:
    loaded = family(name)
    _ = loaded.tl  # a view that was built here stays here
    data, weights = ray_engine.packed_model(loaded)
    assert len(data) < sum(array.nbytes for array, *_ in weights) + 2**20
    for array, *_ in weights:
        array.setflags(write=False)  # as it is in shared memory
    there = ray_engine.unpacked_model(data, weights)
    assert there.fingerprint() == loaded.fingerprint() and there.tl_is_built is False
    tokens = loaded.probe_tokens()
    assert torch.equal(there.plain_logits(tokens), loaded.plain_logits(tokens))
    torch.testing.assert_close(there.tl(tokens), loaded.tl(tokens), rtol=1e-4, atol=1e-4)
