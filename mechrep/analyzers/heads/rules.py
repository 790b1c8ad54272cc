"""Which copies, queries and texts count when heads are scored: the settings, and what they make of a batch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from mechrep.analyzers.heads.targets import (
    EXPLAINED,
    Copies,
    HeadTargets,
    Loops,
    aligned_copies,
    earlier_copies,
    head_targets,
    positions_in,
)
from mechrep.analyzers.heads.variants import NEED_PERIOD, VARIANTS, VariantTexts
from mechrep.cache.analyzer import Batch
from mechrep.errors import InputError, NothingFoundError

Form = Literal["id", "aligned"]
Queries = Literal["all", "after_onset"]
Average = Literal["query", "text", "threshold"]

PRESETS: dict[str, dict[str, str]] = {
    "mechrep": {"queries": "all", "average": "query"},
    "hiraoka2025": {"queries": "after_onset", "average": "text"},
}
NOT_USED: tuple[str, ...] = ("no onset", "period-1", "period-2", "no repeated token")
_CHOICES = {
    "copies": ("all", "newest", "oldest"),
    "form": ("id", "aligned"),
    "queries": ("all", "after_onset"),
    "average": ("query", "text", "threshold"),
}


@dataclass(frozen=True)
class HeadRules:
    """The settings of :class:`~mechrep.analyzers.heads.scores.HeadScores`, which explains them; made by :meth:`of`."""

    bos_id: int | None
    copies: Copies
    form: Form
    queries: Queries
    positions: int | None
    average: Average
    threshold: float
    variants: tuple[str, ...]

    @classmethod
    def of(cls, preset: str, variants: Sequence[str], **settings: Any) -> HeadRules:
        """A preset's settings with one's own; ``queries`` and ``average`` that are None stay the preset's.

        Raises:
            InputError: an unknown or contradicting setting.
        """
        _check_choice("preset", preset, PRESETS)
        settings |= {name: value for name, value in PRESETS[preset].items() if settings[name] is None}
        for name, known in _CHOICES.items():
            _check_choice(name, settings[name], known)
        for name in variants:
            _check_choice("variant", name, VARIANTS)
        positions, queries = settings["positions"], settings["queries"]
        if positions is not None and (positions < 1 or queries == "all"):
            raise InputError(
                f"positions={positions}, queries={queries!r}", "positions >= 1, queries='after_onset'", "correct them"
            )
        return cls(**settings, variants=tuple(variants))

    @property
    def need_loops(self) -> bool:
        """Whether texts without a loop have nothing to count."""
        return self.form == "aligned" or self.queries == "after_onset"

    def check_frame(self, frame: pd.DataFrame) -> None:
        """Refuse a corpus whose frame lacks what the settings need.

        Raises:
            InputError: a variant that needs periods, and a text without one.
            NothingFoundError: no text with a loop where one is needed.
        """
        if self.need_loops and not (positions_in(frame, "onset") >= 0).any():
            raise NothingFoundError(
                f"{len(frame)} texts, none with an onset",
                "texts in which a loop is marked",
                "mark cycles with corpus.with_cycles(), or choose queries='all' and form='id'",
            )
        if NEED_PERIOD.intersection(self.variants) and (positions_in(frame, "period") < 1).any():
            raise InputError(
                f"variants {list(self.variants)} for texts without a period",
                "repeats of a known period",
                "make the corpus with mechrep.text.random_repeats",
            )

    def look_at(self, batch: Batch) -> BatchTargets:
        """Everything about a batch that no layer changes."""
        tokens, lengths, loops = batch.tokens, batch.lengths, Loops.of(batch)
        has_bos = tokens[:, 0] == (-1 if self.bos_id is None else self.bos_id)
        aligned = self.form == "aligned"
        copies = aligned_copies(tokens, loops, self.copies) if aligned else earlier_copies(tokens, has_bos, self.copies)
        period_1, period_2 = loops.period == 1, (loops.period == 2) & (self.copies == "newest")
        confounded = torch.zeros(EXPLAINED + 1, len(tokens), dtype=torch.bool, device=tokens.device)
        confounded[:4] |= period_1  # all but the first token are the same keys
        confounded[0] |= period_2  # the newest induction target is the previous token
        targets = head_targets(copies, has_bos, self._queries(batch, loops), confounded)
        no_onset = (loops.onset < 0) & self.need_loops
        no_repeat = ~targets.valid[0].any(-1) & ~confounded[0] & ~no_onset
        texts = VariantTexts.of(tokens, lengths, loops.period.tolist()) if self.variants else []
        return BatchTargets(batch, targets, torch.stack([no_onset, period_1, period_2, no_repeat]), texts)

    def _queries(self, batch: Batch, loops: Loops) -> Bool[Tensor, "batch query_pos"]:
        """Real positions that may count."""
        position = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)[None]
        real = position < batch.lengths[:, None]
        if self.queries == "all":
            return real
        last = batch.lengths if self.positions is None else loops.onset + self.positions
        return real & (loops.onset[:, None] >= 0) & (position >= loops.onset[:, None]) & (position < last[:, None])


@dataclass(frozen=True)
class BatchTargets:
    """What is worked out once per batch, not once per layer.

    Attributes:
        batch: the batch.
        targets: targets of all queries.
        not_used: texts that a repetition score cannot use, by reason, in the order of ``NOT_USED``.
        variant_texts: the texts, sorted for published variants; none where no variant is asked for.
    """

    batch: Batch
    targets: HeadTargets
    not_used: Bool[Tensor, "reason batch"]
    variant_texts: Sequence[VariantTexts]


def _check_choice(what: str, given: object, known: Collection[str]) -> None:
    """Refuse a name that is not among those known.

    Raises:
        InputError: with the names that are.
    """
    if given not in known:
        raise InputError(f"{what} {given!r}", f"one of {list(known)}", "choose one of these")
