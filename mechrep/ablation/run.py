"""Every outcome under every condition, shard by shard, into one table.

Conditions are rows of batches, never runs of the model of their own.  With a store, finished shards are kept under a
fingerprint of weights, texts, conditions and settings, and the same call goes on where it stopped.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.ablation.effects import ABLATION, BASELINE, Condition, Effects
from mechrep.ablation.forecast import say_forecast
from mechrep.ablation.outcomes import Cost, Outcome
from mechrep.engine import Pace
from mechrep.errors import InputError
from mechrep.guards import each_once
from mechrep.interventions.apply import fingerprint_of
from mechrep.interventions.ops import Intervention
from mechrep.journal import Journal
from mechrep.models.model import Model
from mechrep.progress import progress_bar
from mechrep.provenance import provenance_of
from mechrep.run import Run

_SECONDS_PER_SHARD = 60.0  # what a stopped run loses at most, roughly
_FIRST_SHARD, _ROWS_PER_SHARD = 256, 4096  # the beginnings of all texts are read once per shard

Cell = tuple[Condition, Intervention | None]


def measure_effects(
    model: Model,
    cells: Sequence[Cell],
    outcomes: Sequence[Outcome],
    *,
    config: Mapping[str, Any],
    run: Run | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Effects:
    """Measure every outcome under every condition.

    Outcomes that write texts anew are measured under the first ``run.sizes.regenerated_draws`` draws of each control;
    their values under the others are NaN.

    Args:
        model: the model.
        cells: conditions with what they do; the first is the baseline, ``None``.
        outcomes: what to measure, each with measures of its own names.
        config: settings of the study, for the provenance and the store.
        run: options.
        notes: for :attr:`Effects.notes`.

    Raises:
        InputError: no outcome, two conditions or two measures of one name, a first condition that is not the baseline.
        StoreError: a store that cannot be read or written.

    Example:
        >>> import mechrep
        >>> from mechrep.ablation.outcomes import HeldOutLoss
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> windows = mechrep.Corpus.from_tokens([[0, *range(20, 40)], [0, *range(50, 70)]], model=model)
        >>> cells = [(Condition(), None), (Condition("one head", "ablation", 1, "zero"), mechrep.Heads([(0, 0)]))]
        >>> effects = measure_effects(model, cells, [HeldOutLoss(model, windows)], config={})
        >>> effects.values.shape
        torch.Size([1, 2, 2])
    """
    options, conditions = run or Run(), [condition for condition, _ in cells]
    _check(conditions, outcomes)
    settings = dict(config) | {
        "conditions": [condition.facts | {"components": condition.components} for condition in conditions],
        "interventions": fingerprint_of(model, [intervention for _, intervention in cells]),
        "outcomes": [dict(outcome.facts) | {"measures": [m.name for m in outcome.measures]} for outcome in outcomes],
    }
    provenance = provenance_of(model, _Units(model, outcomes), settings)
    journal = None if options.store is None else Journal(Path(options.store), provenance)
    if journal is None or journal.find(0) is None:
        say_forecast(
            model,
            cost_of(cells, outcomes, options.sizes_on(model).regenerated_draws),
            str(config.get("study", "a table")),
            options.progress,
        )
    places = [
        _asked(conditions, options.sizes_on(model).regenerated_draws if outcome.regenerates else None)
        for outcome in outcomes
    ]
    engine = options.crew
    # Where parts are small or computed elsewhere, each shows nothing of its own.
    whole = journal is None and not engine.apart
    job = Table(
        model, list(outcomes), [intervention for _, intervention in cells], options.progress if whole else False
    )
    total, what = sum(map(len, places)), str(config.get("study", "a table"))
    with progress_bar(total, what, "condition", False if whole else options.progress) as bar:
        shards = _Shards(job, places, options, journal, bar.update)
        for done in engine.work(job, shards.asked()):
            shards.take(done.shard, done.answer, done.seconds)
    return Effects(
        provenance,
        conditions,
        [measure for outcome in outcomes for measure in outcome.measures],
        [list(map(str, outcome.units)) for outcome in outcomes for _ in outcome.measures],
        [list(map(str, outcome.clusters)) for outcome in outcomes for _ in outcome.measures],
        stacked(shards.tables),
        dict(notes or {}),
    )


@dataclass(frozen=True)
class Shard:
    """Some conditions of one outcome, with all of its units.

    Attributes:
        number: of the shard, over all outcomes.
        outcome: number of the outcome.
        places: of the conditions in the table.
        missing: places of those that nobody has measured yet, each different intervention once.
    """

    number: int
    outcome: int
    places: list[int]
    missing: list[int]


@dataclass
class Table:
    """The job: outcomes under interventions.

    Attributes:
        model: the model.
        outcomes: what is measured.
        interventions: of all conditions, ``None`` for the baseline.
        progress: show the progress of single shards.
    """

    model: Model
    outcomes: Sequence[Outcome]
    interventions: Sequence[Intervention | None]
    progress: bool | None

    def do(self, shard: Shard) -> Float[Tensor, "measure intervention unit"]:
        """Measure what is missing in a shard."""
        some = [self.interventions[place] for place in shard.missing]
        return self.outcomes[shard.outcome].values(some, self.progress).double()


class _Shards:
    """Cuts a table into shards and puts the answers together; with a journal each is kept, and small enough to lose.

    What this run has measured before, whichever study asked, is not measured again.

    Args:
        job: the table.
        places: conditions under which each outcome is measured.
        run: options.
        journal: where shards are kept.
        advance: told how many conditions are done.
    """

    def __init__(
        self,
        job: Table,
        places: Sequence[Sequence[int]],
        run: Run,
        journal: Journal | None,
        advance: Callable[[int], object],
    ) -> None:
        self.job, self.places, self.run, self.journal, self.advance = job, places, run, journal, advance
        # What differs from text to text is known by its first texts alone: it is always measured.
        self.keys = [
            object() if one is not None and one.differs_by_text else fingerprint_of(job.model, [one])
            for one in job.interventions
        ]
        self.known = [self._known(outcome) for outcome in job.outcomes]
        self.paces = [self._pace(outcome) for outcome in job.outcomes]
        self.tables = [
            torch.full((len(one.measures), len(job.interventions), len(one.units)), torch.nan, dtype=torch.float64)
            for one in job.outcomes
        ]

    def _known(self, outcome: Outcome) -> dict[Any, Tensor]:
        facts = repr(sorted(outcome.facts.items()))
        which = (self.job.model.fingerprint(), type(outcome).__name__, facts, *map(str, outcome.units))
        return self.run.once(("measured", which, *((m.name, m.copy) for m in outcome.measures)), dict[Any, Tensor])

    def _pace(self, outcome: Outcome) -> Pace:
        most = max(1, _ROWS_PER_SHARD // len(outcome.units))
        least = min(most, max(1, _FIRST_SHARD // len(outcome.units)))  # of fewer rows each costs more
        whole = self.journal is None and not self.run.crew.apart
        return Pace(self.run.crew, least=most if whole else least, most=most, seconds=_SECONDS_PER_SHARD)

    def asked(self) -> Iterator[Shard]:
        """The shards to compute; what is there already goes into the tables on the way."""
        number = 0
        for outcome, places in enumerate(self.places):
            first = 0
            while first < len(places):
                kept = self._kept(number, places[first:])
                if kept is None:
                    some = list(places[first : first + self.paces[outcome].next(len(places) - first)])
                    missing = {self.keys[i]: i for i in some if self.keys[i] not in self.known[outcome]}
                    shard = Shard(number, outcome, some, list(missing.values()))
                    if shard.missing:
                        yield shard
                    else:
                        self._keep(shard)
                else:
                    some, values = kept
                    self.tables[outcome][:, some] = values
                    self.advance(len(some))
                first, number = first + len(some), number + 1

    def take(self, shard: Shard, found: Float[Tensor, "measure intervention unit"], seconds: float) -> None:
        """Put what was measured into the table, and keep the shard."""
        self.paces[shard.outcome].took(len(shard.places), seconds)
        keys = [self.keys[place] for place in shard.missing]
        self.known[shard.outcome].update(zip(keys, found.unbind(1), strict=True))
        self._keep(shard)

    def _keep(self, shard: Shard) -> None:
        known = self.known[shard.outcome]
        values = torch.stack([known[self.keys[place]] for place in shard.places], 1)
        if self.journal is not None:
            self.journal.keep(shard.number, [{"places": shard.places, "values": one.tolist()} for one in values])
        self.tables[shard.outcome][:, shard.places] = values
        self.advance(len(shard.places))

    def _kept(self, number: int, asked: Sequence[int]) -> tuple[list[int], Tensor] | None:
        """The next shard, if it is there and holds what is asked for next: more draws than before cut it otherwise."""
        records = None if self.journal is None else self.journal.find(number)
        if not records:
            return None
        some = records[0].get("places")
        if not some or some != list(asked[: len(some)]):
            return None
        return some, torch.tensor([record["values"] for record in records], dtype=torch.float64)


def cost_of(cells: Sequence[Cell], outcomes: Sequence[Outcome], regenerated_draws: int) -> Cost:
    """Tokens that :func:`measure_effects` would read and write, at most."""
    conditions, total = [condition for condition, _ in cells], Cost()
    for outcome in outcomes:
        draws = regenerated_draws if outcome.regenerates else None
        total += outcome.cost.times(len(_asked(conditions, draws)))
    return total


def stacked(tables: Sequence[Float[Tensor, "_ condition _"]]) -> Float[Tensor, "measure condition unit"]:
    """Tables of several outcomes as one; NaN beyond the units of each."""
    longest = max(table.shape[2] for table in tables)
    return torch.cat([torch.nn.functional.pad(t, (0, longest - t.shape[2]), value=torch.nan) for t in tables])


def _asked(conditions: Sequence[Condition], draws: int | None) -> list[int]:
    """Places of the conditions that an outcome is measured under: of each control the first draws."""
    counts: Counter[Any] = Counter()
    places = []
    for place, condition in enumerate(conditions):
        counts[condition.of, condition.selection] += 1
        if (
            draws is None
            or condition.selection in (BASELINE, ABLATION)
            or counts[condition.of, condition.selection] <= draws
        ):
            places.append(place)
    return places


def _check(conditions: Sequence[Condition], outcomes: Sequence[Outcome]) -> None:
    if not outcomes or not conditions or conditions[0].selection != BASELINE:
        raise InputError(
            f"{len(conditions)} conditions and {len(outcomes)} outcomes",
            "the baseline first, and at least one outcome",
            "begin the conditions with Condition()",
        )
    facts = [tuple(condition.facts.values()) for condition in conditions]
    names = [(measure.name, measure.copy) for outcome in outcomes for measure in outcome.measures]
    for what, keys in (("conditions", facts), ("measures", names)):
        each_once(what, keys, remedy="rename one of them")


@dataclass(frozen=True)
class _Units:
    """The units of all outcomes, as the corpus of a provenance."""

    model: Model
    outcomes: Sequence[Outcome]

    def __len__(self) -> int:
        return max(len(outcome.units) for outcome in self.outcomes)

    def fingerprint(self) -> str:
        record = [(list(one.units), list(one.clusters), sorted(one.facts.items(), key=str)) for one in self.outcomes]
        return hashlib.sha256(repr(record).encode()).hexdigest()[:16]

    @property
    def bos_policy(self) -> str:
        return "prepended" if self.model.default_prepend_bos else "absent"

    @property
    def tokenizer(self) -> str | None:
        return self.model.tokenizer_fingerprint
