"""Who computes the shards of a study: this process, or many.

A study cuts its work into shards and merges what comes back.  It never knows who computed a shard: :class:`Local` does
so here, :class:`~mechrep.ray_engine.RayEngine` has workers of a Ray cluster do it.  Answers always come in the order of
the shards, so sums are added in one order, and a store that keeps them in this order has no gaps.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable


@runtime_checkable
class Job(Protocol):
    """Work that is cut into shards.

    Attributes:
        model: with which it is done; a worker has one of its own.
    """

    @property
    def model(self) -> Any: ...

    def do(self, shard: Any) -> Any:
        """Compute one shard; the answer depends on nothing but the job and the shard."""
        ...


@dataclass(frozen=True)
class Done:
    """A finished shard.

    Attributes:
        shard: what was asked.
        answer: what the job made of it.
        seconds: that it took.
    """

    shard: Any
    answer: Any
    seconds: float


class Engine(ABC):
    """Computes shards.

    Attributes:
        apart: whether workers are other processes: they show no progress, and shards are cut so that all have work.
    """

    apart: ClassVar[bool]

    @property
    @abstractmethod
    def workers(self) -> int:
        """How many compute at the same time."""

    @abstractmethod
    def begin(self) -> None:
        """Find out whether there is anybody to compute, before the work begins."""

    @abstractmethod
    def work(self, job: Job, shards: Iterable[Any]) -> Iterator[Done]:
        """Compute shards, in their order; the next ones are asked for when somebody is free to compute them."""


class Local(Engine):
    """This process computes one shard after the other.

    Example:
        >>> class Squares:
        ...     model = None
        ...     def do(self, shard: int) -> int:
        ...         return shard**2
        >>> [done.answer for done in Local().work(Squares(), range(3))]
        [0, 1, 4]
    """

    apart = False

    @property
    def workers(self) -> int:
        """One."""
        return 1

    def begin(self) -> None:
        """Nothing to find out."""

    def work(self, job: Job, shards: Iterable[Any]) -> Iterator[Done]:
        """Compute shards."""
        for shard in shards:
            begun = time.monotonic()
            answer = job.do(shard)
            yield Done(shard, answer, time.monotonic() - begun)


class Pace:
    """How much goes into the next shard: about so many seconds of work, and never more than a fair share.

    Args:
        engine: who computes.
        least: of fewer things each costs more; workers that would stand idle get fewer all the same.
        most: things in a shard.
        seconds: that a shard may take: what a stopped run loses.

    Example:
        >>> pace = Pace(Local(), least=2, most=100, seconds=30.0)
        >>> first = pace.next(left=100)
        >>> pace.took(first, seconds=1.0)
        >>> first, pace.next(left=98)
        (2, 60)
    """

    def __init__(self, engine: Engine, *, least: int, most: int, seconds: float) -> None:
        self.engine, self.most, self.seconds = engine, max(1, most), seconds
        self.size = max(1, least)
        self.least = 1 if engine.apart else self.size

    def next(self, left: int) -> int:
        """Things in the next shard, of those that are left."""
        size = min(self.size, self.most)
        if self.engine.apart:
            size = min(size, math.ceil(left / (2 * self.engine.workers)))
        return max(1, size)

    def took(self, things: int, seconds: float) -> None:
        """Learn from a finished shard."""
        self.size = max(self.least, int(min(self.most, things * self.seconds / max(seconds, 1e-3))))


LOCAL = Local()
