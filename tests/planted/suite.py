"""The table of the planted suite: phenomenon x family x size, and what mechrep is asked about each model.

A seed is made of the three, so no two models have their parts in the same places.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from mechrep.models.model import Model
from tests.planted import asked
from tests.planted.asked import Answer, Truth
from tests.planted.circuits import induction_circuit, repetition_neurons, self_finding_head
from tests.planted.sinks import SinkModel, bos_sink_model, sink_model
from tests.planted.two_mechanisms import low_information_reader, several_loops
from tests.planted.workbench import ALL_FAMILIES, SIZES, Unit

Question = Callable[[Truth], Iterator[Answer]]


def _copies(model: Model, previous: Unit, induction: Unit, rest: Unit, **more: Any) -> Truth:
    """What is true wherever an induction circuit is planted."""
    heads = {"previous_token": {previous}, "induction": {induction}, "first_token": {rest}}
    return Truth(model, heads, half=frozenset({induction}), **more)


def _induction(family: str, size: str, seed: int) -> Truth:
    made = induction_circuit.__wrapped__(family, size, seed)
    return _copies(made.model, made.previous_token, made.induction, made.bos_rest)


def _duplicate(family: str, size: str, seed: int) -> Truth:
    made = self_finding_head.__wrapped__(family, size, seed, says=1.0)
    return Truth(made.model, {"duplicate_token": {made.self_finding}}, half=frozenset({made.self_finding}))


def _sink(made: SinkModel) -> Truth:
    first = None if made.detector is None else (made.detector, made.detector_heads)
    return Truth(made.model, {"first_token": made.heads}, made.neurons, made.repeats_approach, first=first)


def _loops(family: str, size: str, seed: int) -> Truth:
    made = repetition_neurons.__wrapped__(family, size, seed)
    circuit = (made.previous_token, made.induction, made.bos_rest)
    return _copies(made.model, *circuit, loops=made.neurons, amplifiers=made.amplifiers)


def _reader(family: str, size: str, seed: int) -> Truth:
    made = low_information_reader.__wrapped__(family, size, seed)
    return _copies(made.model, *made.circuit, reader=made.head)


def _kinds(family: str, size: str, seed: int) -> Truth:
    made = several_loops.__wrapped__(family, size, seed)
    return _copies(made.model, *made.heads, made.rest, copying=made.heads)


@dataclass(frozen=True)
class Phenomenon:
    """How it is planted, what is asked, what is asked although it was not planted, and how often in a quick sample."""

    plant: Callable[[str, str, int], Truth]
    asks: Question
    others: tuple[Question, ...]
    sampled: int = 1


PHENOMENA: dict[str, Phenomenon] = {
    "sink": Phenomenon(
        lambda *case: _sink(sink_model.__wrapped__(*case)), asked.sink, (asked.heads, asked.neurons, asked.reading)
    ),
    "sink in two stages": Phenomenon(
        lambda *case: _sink(sink_model.__wrapped__(*case, again=True)), asked.sink, (asked.neurons,)
    ),
    "sink of BOS": Phenomenon(
        lambda *case: _sink(bos_sink_model.__wrapped__(*case)),
        asked.sink,
        (asked.first_token, asked.heads),
        sampled=2,
    ),
    "induction": Phenomenon(_induction, asked.induction, (asked.sinks, asked.neurons, asked.first_token), sampled=5),
    "duplicate token": Phenomenon(_duplicate, asked.duplicate, (asked.sinks, asked.neurons), sampled=4),
    "repetition neurons": Phenomenon(_loops, asked.repetition, (asked.heads, asked.sinks), sampled=2),
    "first token": Phenomenon(
        lambda family, size, seed: _sink(sink_model.__wrapped__(family, size, seed)),
        asked.first_token,
        (asked.heads,),
        sampled=2,
    ),
    "low information": Phenomenon(_reader, asked.information, (asked.heads, asked.first_token), sampled=2),
    "text kinds": Phenomenon(_kinds, asked.text_kinds, (asked.sinks,)),
}


@dataclass(frozen=True)
class Case:
    """One model of the suite."""

    phenomenon: str
    family: str
    size: str

    def __str__(self) -> str:
        return f"{self.phenomenon}, {self.family}, {self.size}"

    @property
    def seed(self) -> int:
        """Of places and of everything without a purpose."""
        return zlib.crc32(str(self).encode())

    def answers(self, *, others: bool = False, judged: bool = True) -> list[Answer]:
        """What mechrep says; with ``others`` also about what was not planted; ``judged``: beside null models."""
        phenomenon = PHENOMENA[self.phenomenon]
        truth = replace(phenomenon.plant(self.family, self.size, self.seed), judged=judged)
        questions = [phenomenon.asks, *(phenomenon.others if others else ())]
        return [answer for question in questions for answer in question(truth)]


CASES = [Case(*one) for one in itertools.product(PHENOMENA, ALL_FAMILIES, SIZES)]
_sampled = [what for what, phenomenon in PHENOMENA.items() for _ in range(phenomenon.sampled)]
SAMPLE = [Case(what, ALL_FAMILIES[n % len(ALL_FAMILIES)], "small") for n, what in enumerate(_sampled)]
