"""The engine: every outcome under every condition, shard by shard, into one table.

Conditions are rows of batches, never runs of the model of their own.  With a store, finished shards are kept under a
fingerprint of weights, texts, conditions and settings, and the same call goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.ablation.effects import ABLATION, BASELINE, Condition, Effects
from mechrep.ablation.forecast import say_forecast
from mechrep.ablation.outcomes import Cost, Outcome
from mechrep.errors import InputError
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
    shards = _Shards(model, [intervention for _, intervention in cells], options, journal)
    tables = []
    total, what = sum(map(len, places)), str(config.get("study", "a table"))
    # With a store the parts are small and each shows nothing of its own.
    with progress_bar(total, what, "condition", False if journal is None else options.progress) as bar:
        for outcome, asked in zip(outcomes, places, strict=True):
            table = torch.full((len(outcome.measures), len(cells), len(outcome.units)), torch.nan, dtype=torch.float64)
            for some, values in shards.measured(outcome, asked):
                table[:, some] = values.double()
                bar.update(len(some))
            tables.append(table)
    return Effects(
        provenance,
        conditions,
        [measure for outcome in outcomes for measure in outcome.measures],
        [list(map(str, outcome.units)) for outcome in outcomes for _ in outcome.measures],
        [list(map(str, outcome.clusters)) for outcome in outcomes for _ in outcome.measures],
        stacked(tables),
        dict(notes or {}),
    )


@dataclass
class _Shards:
    """Measures conditions part by part; with a journal each part is kept, and small enough to lose little.

    Attributes:
        number: of the next shard, over all outcomes.
    """

    model: Model
    interventions: Sequence[Intervention | None]
    run: Run
    journal: Journal | None
    number: int = 0

    def measured(self, outcome: Outcome, asked: Sequence[int]) -> Iterator[tuple[list[int], Tensor]]:
        """Places of conditions and their values, until all that were asked for are there."""
        most = max(1, _ROWS_PER_SHARD // len(outcome.units))
        least = min(most, max(1, _FIRST_SHARD // len(outcome.units)))  # of fewer rows each costs more
        size, first = most if self.journal is None else least, 0
        while first < len(asked):
            found = self._kept(asked[first:])
            if found is None:
                some, begun = list(asked[first : first + size]), time.monotonic()
                shown = self.run.progress if self.journal is None else False
                values = _values(self.model, outcome, [self.interventions[i] for i in some], self.run, shown)
                seconds = max(time.monotonic() - begun, 1e-3)
                size = min(most, max(least, int(len(some) * _SECONDS_PER_SHARD / seconds)))
                if self.journal is not None:
                    self.journal.keep(self.number, [{"places": some, "values": one.tolist()} for one in values])
            else:
                some, values = found
            yield some, values
            first, self.number = first + len(some), self.number + 1

    def _kept(self, asked: Sequence[int]) -> tuple[list[int], Tensor] | None:
        """The next shard, if it is there and holds what is asked for next: more draws than before cut it otherwise."""
        records = None if self.journal is None else self.journal.find(self.number)
        if not records:
            return None
        some = records[0].get("places")
        if not some or some != list(asked[: len(some)]):
            return None
        return some, torch.tensor([record["values"] for record in records], dtype=torch.float64)


def _values(
    model: Model, outcome: Outcome, interventions: Sequence[Intervention | None], run: Run, progress: bool | None
) -> Float[Tensor, "measure intervention unit"]:
    """What an outcome measures; what this run has measured before, whichever study asked, is not measured again."""
    which = (model.fingerprint(), type(outcome).__name__, repr(sorted(outcome.facts.items())), *map(str, outcome.units))
    known = run.once(("measured", which, *((m.name, m.copy) for m in outcome.measures)), dict[Any, Tensor])
    # What differs from text to text is known by its first texts alone: it is always measured.
    keys = [
        object() if one is not None and one.differs_by_text else fingerprint_of(model, [one]) for one in interventions
    ]
    missing = {key: one for key, one in zip(keys, interventions, strict=True) if key not in known}
    if missing:
        found = outcome.values(list(missing.values()), progress)
        known |= dict(zip(missing, found.unbind(1), strict=True))
    return torch.stack([known[key] for key in keys], 1)


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
    for what, keys in (("condition", facts), ("measure", names)):
        twice = [key for key, count in Counter(keys).items() if count > 1]
        if twice:
            raise InputError(f"{what} {twice[0]} twice", "each once", "rename one of them")


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
