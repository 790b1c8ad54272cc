"""How a study is run, apart from what it asks: where it keeps its work, how much effort it makes, what it shows."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from mechrep.engine import LOCAL, Engine
from mechrep.errors import InputError
from mechrep.guards import Count, Seed, check_fields, guarded, one_of

T = TypeVar("T")


@dataclass(frozen=True)
class Effort:
    """Sizes that a study takes from its effort.

    Attributes:
        loops: looping texts to collect.
        others: loop-free texts to collect.
        windows: windows of held-out text.
        tokens: tokens that are repeated, one stimulus each.
        draws: control draws of measures that only read.
        regenerated_draws: control draws of measures that write texts anew.
        nulls: null models.
        sequences: random repeats.
        curve: numbers of components of a curve over k.
        repeats: how often a repeated token stands in a row under ablations, at most.
        questions: of each benchmark.
        reading: tokens of ordinary text that are read under every draw of a control of sink neurons.
        brief: tokens of a text that are scored under an ablation, at most; ``None``: all.
    """

    loops: int
    others: int
    windows: int
    tokens: int
    draws: int
    regenerated_draws: int
    nulls: int
    sequences: int
    curve: int
    repeats: int
    questions: int
    reading: int
    brief: int | None = None


EFFORTS = {
    "quick": Effort(48, 8, 12, 8, 99, 19, 19, 16, 2, 128, 12, 1024),
    "standard": Effort(100, 20, 24, 12, 99, 39, 39, 24, 3, 192, 24, 2048),
    "full": Effort(400, 100, 100, 48, 199, 79, 79, 64, 8, 512, 200, 8192),
}
# The same for models in which one text costs as much as a hundred do in a model of a million weights.
LARGE_WEIGHTS = 20_000_000  # in the layers
EFFORTS_OF_LARGE = {
    "quick": Effort(16, 6, 8, 6, 99, 19, 19, 8, 1, 96, 6, 80, 8),
    "standard": Effort(48, 12, 16, 12, 99, 39, 39, 16, 2, 192, 24, 512, 24),
    "full": Effort(200, 50, 64, 48, 199, 79, 79, 32, 4, 512, 200, 4096),
}


ENGINES = ("local", "ray")


@runtime_checkable
class HasWeights(Protocol):
    """A model, as far as sizes depend on it."""

    @property
    def n_weights(self) -> int:
        """Weights in its layers; embeddings left out."""
        ...


@dataclass(frozen=True, eq=False)
class Run:
    """Options that every study, the report and the command line share.

    Attributes:
        store: folder that keeps finished work; the same call goes on where it stopped.
        seed: of prompts, splits and draws.
        effort: ``"quick"``, ``"standard"`` or ``"full"``: how many texts, draws and null models, see :data:`EFFORTS`.
        engine: ``"local"``: this process; ``"ray"`` (``mechrep[ray]``): workers of a Ray cluster read corpora and
            measure the rows of tables.
        workers: of Ray; by default one for each GPU, or for each core.
        address: of the cluster, ``"host:port"`` or ``"auto"``; by default the one that this process or ``RAY_ADDRESS``
            knows, or one that is started on this machine.
        batch_size: rows computed together; by default what fits.
        progress: show progress; by default to people and, line by line, in log files.

    Raises:
        InputError: an unknown effort or engine, a seed that is no whole number from 0 on, workers or an address without
            Ray.

    Example:
        >>> import mechrep
        >>> Run(effort="standard").sizes_on(mechrep.load_model("mechrep-tiny")).loops
        100
        >>> Run(effort="hasty")
        Traceback (most recent call last):
        mechrep.errors.InputError: given: effort='hasty'; expected: one of quick, standard, full; to do: choose one
    """

    store: str | Path | None = None
    seed: Seed = 0
    effort: str = "standard"
    engine: str = "local"
    workers: Count | None = None
    address: str | None = None
    batch_size: Count | None = None
    progress: bool | None = None
    made: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        check_fields(self)
        one_of("effort", self.effort, EFFORTS)
        one_of("engine", self.engine, ENGINES)
        self._check_workers()

    def _check_workers(self) -> None:
        if self.engine == "ray" and importlib.util.find_spec("ray") is None:
            raise InputError("engine='ray' without Ray", "the package ray", "pip install 'mechrep[ray]'")
        if self.engine == "local" and (self.workers is not None or self.address is not None):
            given = f"workers={self.workers}, address={self.address!r} with engine='local'"
            raise InputError(
                given, "engine='ray' beside them", "name it, or leave them out: this process is one worker"
            )

    @property
    def crew(self) -> Engine:
        """Who computes; workers stay from one study of this run to the next.

        Example:
            >>> Run().crew.workers
            1
        """
        if self.engine == "local":
            return LOCAL
        from mechrep.ray_engine import RayEngine

        return self.once(
            ("engine", self.workers, self.address), lambda: RayEngine(workers=self.workers, address=self.address)
        )

    @guarded
    def sizes_on(self, model: HasWeights) -> Effort:
        """How many texts, draws and null models this effort means; fewer texts in models of over 20 million weights.

        Draws and null models stay: with fewer of them no verdict could be reached.
        """
        return (EFFORTS if model.n_weights <= LARGE_WEIGHTS else EFFORTS_OF_LARGE)[self.effort]

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What was made under this key in this run, made now if it was not: loops, windows, null models.

        Example:
            >>> run = Run()
            >>> run.once("texts", lambda: [1, 2]) is run.once("texts", lambda: [1, 2])
            True
        """
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]
