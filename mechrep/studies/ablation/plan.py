"""From the names of outcomes to measurements, and from conditions to a table of values, shard by shard."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.errors import InputError
from mechrep.generation.loops import collect_loops
from mechrep.interventions.base import When
from mechrep.models import tiny
from mechrep.models.model import Model
from mechrep.provenance import Provenance, provenance_of
from mechrep.studies.ablation.conditions import AblationCondition
from mechrep.studies.ablation.outcomes import CopyAccuracy, HeldOutLoss, LoopLogProbability, Outcome
from mechrep.studies.ablation.regenerate import Regeneration
from mechrep.studies.ablation.texts import loop_free_texts, looping_texts, unseen
from mechrep.studies.journal import Journal
from mechrep.text.corpus import Corpus
from mechrep.text.random_repeats import random_repeats
from mechrep.text.windows import windows_of_text

CHEAP_OUTCOMES = ("loop_log_probability", "copy_accuracy", "loss")
OUTCOMES = (*CHEAP_OUTCOMES, "still_looping", "newly_looping")
_COLLECTED = 64  # texts of each kind, where the model has to write them itself
_PERIOD, _REPEATS_SEED = 50, 1_000_003  # random repeats on which no head was scored
_ROWS_PER_SHARD = 4096


@dataclass(frozen=True)
class Settings:
    """What outcomes are measured on, and how; see :func:`mechrep.studies.ablation.study.ablation_study`."""

    corpus: Corpus | None
    repeats: Corpus | None
    windows: Corpus | None
    when: When
    copies: int
    preset: str
    max_new_tokens: int
    prompt_length: int

    def outcomes(self, model: Model, names: Sequence[str], seen: Set[str]) -> dict[str, Outcome]:
        """The measurements of these names, on texts outside ``seen``.

        Raises:
            InputError: an unknown name, one given twice, none at all, an unknown ``when``, texts that do not serve.
            NothingFoundError: no text of the kind that an outcome needs.
        """
        if not names or not set(names) <= set(OUTCOMES) or len(set(names)) < len(names):
            raise InputError(f"outcomes={list(names)}", f"some of {OUTCOMES}, each once", "choose among these")
        if self.when not in ("from_onset", "all"):
            raise InputError(f"when={self.when!r}", "'from_onset' or 'all'", "choose one of these")
        makers: dict[str, Callable[[], Outcome]] = {
            "loop_log_probability": lambda: self._log_probability(model, texts()),
            "copy_accuracy": lambda: CopyAccuracy(model, self.repeats or _repeats(model)),
            "loss": lambda: HeldOutLoss(model, self.windows or windows_of_text(model, tiny.held_out_text())),
            "still_looping": lambda: self._still_looping(model, texts()),
            "newly_looping": lambda: self._newly_looping(model, texts()),
        }
        given = self.corpus
        if given is None and set(names) - {"copy_accuracy", "loss"}:
            others = _COLLECTED if "newly_looping" in names else 0
            given = collect_loops(model, _COLLECTED, n_others=others, preset=self.preset, progress=False)

        def texts() -> Corpus:
            assert given is not None
            given.check_model(model)
            return unseen(given, seen)

        return {name: makers[name]() for name in names}

    def _log_probability(self, model: Model, texts: Corpus) -> Outcome:
        looping, loops = looping_texts(texts)
        return LoopLogProbability(model, looping, loops, self.copies, self.when)

    def _still_looping(self, model: Model, texts: Corpus) -> Outcome:
        looping, loops = looping_texts(texts)
        return self._regeneration("still_looping", model, looping, [loop.onset for loop in loops])

    def _newly_looping(self, model: Model, texts: Corpus) -> Outcome:
        free = loop_free_texts(texts, self.prompt_length)
        return self._regeneration("newly_looping", model, free, [self.prompt_length] * len(free))

    def _regeneration(self, name: str, model: Model, texts: Corpus, cuts: list[int]) -> Outcome:
        return Regeneration(
            name, model, texts, cuts, when=self.when, preset=self.preset, max_new_tokens=self.max_new_tokens
        )


def _repeats(model: Model) -> Corpus:
    return random_repeats(model, n=min(_PERIOD, (model.anatomy.n_ctx - 1) // 2), seed=_REPEATS_SEED)


def run_plan(
    model: Model,
    conditions: Sequence[AblationCondition],
    outcomes: dict[str, Outcome],
    config: dict[str, Any],
    *,
    store: str | Path | None,
    progress: bool | None,
) -> dict[str, Any]:
    """Measure every outcome under every condition, a shard of conditions at a time.

    Returns:
        The fields of an :class:`~mechrep.studies.ablation.result.AblationResult`.
    """
    provenance = _provenance(model, conditions, outcomes, config)
    journal = None if store is None else Journal(Path(store), provenance)
    tables: list[Tensor] = []
    shard = 0
    for outcome in outcomes.values():
        per_shard = max(1, _ROWS_PER_SHARD // len(outcome.corpus))
        parts = []
        for first in range(0, len(conditions), per_shard):
            records = journal.find(shard) if journal is not None else None
            if records is None:
                cuts = [condition.intervention for condition in conditions[first : first + per_shard]]
                records = [{"values": table.tolist()} for table in outcome.values(cuts, progress)]
                if journal is not None:
                    journal.keep(shard, records)
            parts.append(torch.tensor([record["values"] for record in records], dtype=torch.float64))
            shard += 1
        tables.append(torch.cat(parts, dim=1))
    return {
        "provenance": provenance,
        "conditions": [condition.record() for condition in conditions],
        "measures": [one for outcome in outcomes.values() for one in outcome.measures],
        "texts": [outcome.corpus.frame["id"].tolist() for outcome in outcomes.values() for _ in outcome.measures],
        "values": _stack(tables),
    }


def _stack(tables: Sequence[Float[Tensor, "_ condition _"]]) -> Float[Tensor, "measure condition text"]:
    """All measures in one tensor; NaN beyond the texts of each."""
    longest = max(table.shape[2] for table in tables)
    return torch.cat([torch.nn.functional.pad(t, (0, longest - t.shape[2]), value=torch.nan) for t in tables])


def _provenance(
    model: Model, conditions: Sequence[AblationCondition], outcomes: dict[str, Outcome], config: dict[str, Any]
) -> Provenance:
    """Corpus: that of the first outcome; the texts and settings of all stand in the configuration."""
    measured = {
        name: {"texts": outcome.corpus.fingerprint(), "settings": _digest(outcome.facts)}
        for name, outcome in outcomes.items()
    }
    cells = _digest([condition.record() for condition in conditions])
    first = next(iter(outcomes.values()))
    return provenance_of(model, first.corpus, {**config, "outcomes": measured, "conditions": cells})


def _digest(value: Any) -> str:
    """Fingerprint of what decides the values, yet is too long to stand in a record."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
