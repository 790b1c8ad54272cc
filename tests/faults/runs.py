"""Small runs of every kind that keeps its work, and a child process that does one of them until it is killed."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest
import torch

import mechrep
from mechrep.ablation import run as ablation_run
from mechrep.ablation.effects import Condition
from mechrep.ablation.outcomes import HeldOutLoss
from mechrep.ablation.run import measure_effects
from mechrep.cache import CorpusCache
from mechrep.cli import main
from mechrep.generation import loops
from mechrep.measures.neurons import RepetitionNeurons
from mechrep.measures.sink_norms import SinkNorms
from mechrep.models.meter import metered
from mechrep.report.build import build_report, load_sections
from mechrep.run import Run
from mechrep.studies.checkpoints import over_checkpoints

_PATIENCE = 900.0  # seconds that a child may take before it counts as hanging, on a busy machine too
_TOUCHES = {"os.rename": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0}  # event: which argument is the path
measured = [0]  # by the measures of checkpoints


def _model() -> mechrep.Model:
    return mechrep.load_model("mechrep-tiny")


def effects(model: mechrep.Model, folder: Path) -> Any:
    """A table of seven conditions, in shards of two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation_run, "_ROWS_PER_SHARD", 8)
        patch.setattr(ablation_run, "_FIRST_SHARD", 8)
        rows = [[0, *range(20 + i, 52 + i)] for i in range(4)]
        windows = mechrep.Corpus.from_tokens(rows, model=model)
        cells: list[Any] = [(Condition(), None)]
        for layer, head in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]:
            cells.append((Condition(f"L{layer}H{head}", "ablation", 1, "zero"), mechrep.Heads([(layer, head)])))
        run = Run(store=folder, progress=False)
        return measure_effects(model, cells, [HeldOutLoss(model, windows)], config={}, run=run).values.tolist()


def written(model: mechrep.Model, folder: Path) -> Any:
    """Three blocks of four texts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops, "_BLOCK", 4)
        texts = loops.PromptTexts(model, store=folder)
        made = [texts.between(first, first + 4) for first in (0, 4, 8)]
        return [one.row(i) for one in made for i in range(len(one))]


def reading(model: mechrep.Model, folder: Path) -> Any:
    """Two analyzers over twelve texts, their sums kept after each batch."""
    rows = [[0, *(7 + (i * 5 + p % 6) % 200 for p in range(24))] for i in range(12)]
    facts = {"onset": [7] * 12, "start": [1] * 12, "period": [6] * 12, "copies": [4.0] * 12, "condition": "looping"}
    corpus = mechrep.Corpus.from_tokens(rows, model=model).with_columns(**facts)
    cache = CorpusCache(model, corpus, batch_size=2, store=folder, progress=False)
    assert cache.store is not None
    cache.store.seconds = 0
    neurons, norms = cache.run(RepetitionNeurons(r=4), SinkNorms())
    return [repr(neurons.to_frame().to_dict()), repr(norms.to_frame().to_dict())]


def _size(model: mechrep.Model) -> dict[str, float]:
    measured[0] += 1
    return {"weights": float(sum(p.abs().sum() for p in model.plain.parameters()))}  # pyright: ignore


def _spread(model: mechrep.Model) -> dict[str, float]:
    measured[0] += 1
    return {"spread": float(model.plain.get_output_embeddings().weight.std())}  # pyright: ignore


def checkpoints(_model: mechrep.Model, folder: Path) -> Any:
    """Two measures at three checkpoints."""
    run = Run(store=folder, progress=False)
    return over_checkpoints([_size, _spread], revisions=["step0", "step512", "step40000"], run=run).values.tolist()


def report(model: mechrep.Model, folder: Path) -> Any:
    """A report of two parts."""
    build_report(model, folder, only=["first-layer", "neurons"], run=Run(effort="quick", progress=False))
    shown = []
    for section in load_sections(folder):
        tables = [(name, table.to_json()) for name, table in section.tables.items()]
        figures = [(name, figure.to_json()) for name, figure in section.figures.items()]
        shown.append([section.name, repr(section.fields), section.claims.to_json(), tables, figures])
    return [*shown, (folder / "report.html").is_file(), (folder / "report.json").is_file()]


def command(_model: mechrep.Model, folder: Path) -> Any:
    """A command of one study, as a shell gives it; its exit code."""
    return main(["first-layer", "mechrep-tiny", "--effort", "quick", "--quiet", "--json", "--out", str(folder)])


JOBS: dict[str, Callable[[mechrep.Model, Path], Any]] = {
    one.__name__: one for one in (reading, effects, written, checkpoints, report, command)
}


@dataclass(frozen=True)
class Ended:
    """What became of a child.

    Attributes:
        killed: whether by a signal.
        outcome: what its job gave, as text: what is unknown is equal too.
        work: tokens read and written, or measures of checkpoints, up to the end or up to the last thing kept.
        events: changes it made to the folder.
        seconds: it took.
    """

    killed: bool
    outcome: str | None
    work: int
    events: int
    seconds: float


def child(job: str, model: mechrep.Model, folder: Path, *, at: int = 0, after: float = 0.0, by: int = SIGKILL) -> Ended:
    """Do a job in another process, killed before its ``at``-th change of the folder, or after so many seconds."""
    return Child(job, model, folder, at, by).ended(after)


class Child:
    """A process that does a job, begun now."""

    def __init__(self, job: str, model: mechrep.Model, folder: Path, at: int = 0, by: int = SIGKILL) -> None:
        self.log = folder.with_name(f"{folder.name} {os.urandom(4).hex()}.log")
        self.begun = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python 3.12 warns of threads; torch has one here
            self.process = os.fork()
        if self.process == 0:
            _be_child(job, model, folder, self.log, (at, by))

    def ended(self, after: float = 0.0) -> Ended:
        """Wait for it, or kill it after so many seconds."""
        status = None
        while status is None:
            time.sleep(0.002)
            ended, code = os.waitpid(self.process, os.WNOHANG)
            status = code if ended else None
            passed = time.monotonic() - self.begun
            if status is None and ((after and passed > after) or passed > _PATIENCE):
                os.kill(self.process, SIGKILL)
        lines = [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []
        failed = [line["failed"] for line in lines if "failed" in line]
        assert not failed, failed[0]
        done = [line for line in lines if "outcome" in line]
        moved = [line for line in lines if "from" in line and not Path(line["from"]).exists()]
        levels = [line["work"] for line in moved if "/states/" not in line["from"]]
        states = [line["work"] for line in moved if "/states/" in line["from"]]
        levels += [work for work in states if states.count(work) == 2]  # those of both analyzers
        return Ended(
            os.WIFSIGNALED(status),
            done[0]["outcome"] if done else None,
            done[0]["work"] if done else max(levels, default=0),
            done[0]["events"] if done else 0,
            time.monotonic() - self.begun,
        )


def _be_child(job: str, model: mechrep.Model, folder: Path, log: Path, death: tuple[int, int]) -> None:
    """Never returns."""
    line = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def say(**facts: Any) -> None:
        os.write(line, (json.dumps(facts) + "\n").encode())

    code = 1
    try:
        torch.set_num_threads(1)
        measured[0] = 0
        with metered(model) as meter:
            events = _watched(folder, death, lambda source: say(**{"from": source, "work": _work(meter)}))
            outcome = JOBS[job](model, folder)
            say(outcome=json.dumps(outcome), work=_work(meter), events=events[0])
        code = 0
    except BaseException:  # a child must not go on as a second pytest
        say(failed=traceback.format_exc())
    finally:
        os._exit(code)


def _work(meter: Any) -> int:
    return meter.passes + meter.steps + measured[0]


def _watched(folder: Path, death: tuple[int, int], kept: Callable[[str], None]) -> list[int]:
    """Counts changes of a folder, tells of what is moved into place there, and dies before the one that is meant."""
    inside, events = f"{folder}{os.sep}", [0]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, changes = str(arguments[0]), bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
        elif event in _TOUCHES:
            path, changes = str(arguments[_TOUCHES[event]]), True
        else:
            return
        if not changes or not path.startswith(inside):
            return
        events[0] += 1
        if events[0] == death[0]:
            os.kill(os.getpid(), death[1])
        if event == "os.rename" and any(part in path for part in ("/shard-", "/results/", "/states/")):
            kept(str(arguments[0]))

    sys.addaudithook(hook)
    return events
