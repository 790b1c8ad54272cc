"""``HeadHistory``: what every head does in natural loops and in induced copying, at every checkpoint.

Curves are made from it (:mod:`mechrep.studies.checkpoints.head_curves`): how specialised the heads are, whether two
conditions rest on the same ones, and when either changes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from torch import Tensor, tensor

from mechrep.errors import InputError
from mechrep.provenance import Provenance
from mechrep.results import Result
from mechrep.studies.checkpoints.change_points import bootstrap_means, draw_counts
from mechrep.studies.checkpoints.head_effects import HEAD_EFFECTS, INDUCED, INDUCTION, NATURAL
from mechrep.studies.checkpoints.result import CheckpointResult

ELIGIBLE = "induced, not looping"  # the published condition: texts that do not loop by themselves
CONDITIONS = (NATURAL, INDUCED, ELIGIBLE, INDUCTION)
LEAST_UNITS = 8  # fewer texts say nothing about a mean over texts
DRAWS = 1000


@dataclass(frozen=True, eq=False)
class HeadHistory(Result):
    """What every head does in every text, at every checkpoint.

    Attributes:
        natural: what a head adds to the logit of a natural loop's next token over that of its best rival; NaN where a
            prompt does not loop by itself.
        induced: the same for the next token of prompts that were shown twice.
        induction: attention of a head on what followed the earlier copy, on random repeats, for groups of texts.
        revisions: names of the checkpoints, in the order of training.
        steps: of training; NaN where unknown.
        tokens: seen; NaN where unknown.
    """

    natural: Float[Tensor, "checkpoint prompt layer head"]
    induced: Float[Tensor, "checkpoint prompt layer head"]
    induction: Float[Tensor, "checkpoint group layer head"]
    revisions: Sequence[str]
    steps: Sequence[float]
    tokens: Sequence[float]

    @classmethod
    def of_checkpoints(cls, result: CheckpointResult) -> HeadHistory:
        """The history of the heads of which a result of :func:`mechrep.studies.over_checkpoints` has the numbers.

        Args:
            result: measured with :func:`~mechrep.studies.checkpoints.head_effects.head_effects_measure`.

        Raises:
            InputError: a result without that measure.
        """
        names = [name for name in result.measures if result.sources[name] == HEAD_EFFECTS]
        if not names:
            raise InputError(f"measures {result.measures[:6]}", "head effects", "measure head_effects_measure() too")
        units = [tuple(map(int, name.split("/")[1].split("."))) for name in names if name.startswith(f"{NATURAL}/")]
        shape = (max(layer for layer, _ in units) + 1, max(head for _, head in units) + 1)
        tables = {
            condition: tensor(
                np.stack([result.of(f"{condition}/{layer}.{head}") for layer, head in units], axis=2)
            ).unflatten(2, shape)
            for condition in (NATURAL, INDUCED, INDUCTION)
        }
        return cls(
            Provenance(result.provenance.model, result.provenance.corpus, {"study": "head history"}),
            **tables,
            revisions=list(result.revisions),
            steps=list(result.steps),
            tokens=list(result.tokens),
        )

    def of(self, condition: str) -> Float[np.ndarray, "checkpoint unit layer head"]:
        """Effects by text (attention by group of random repeats); NaN where a text is not of this condition.

        Args:
            condition: ``"natural"``, ``"induced"``, ``"induced, not looping"`` or ``"induction"``.

        Raises:
            InputError: another condition.
        """
        if condition not in CONDITIONS:
            raise InputError(f"condition {condition!r}", f"one of {CONDITIONS}", "choose one of these")
        if condition == ELIGIBLE:
            return np.where(np.isnan(self.natural.numpy()), self.induced.numpy(), np.nan)
        return {NATURAL: self.natural, INDUCED: self.induced, INDUCTION: self.induction}[condition].numpy()

    def counts(self) -> pd.DataFrame:
        """How many texts (or groups) each condition has at each checkpoint: ``revision, condition, n, enough``."""
        rows = [
            (revision, condition, n, n >= LEAST_UNITS)
            for condition in CONDITIONS
            for revision, n in zip(self.revisions, map(int, self.known(condition).sum(1)), strict=True)
        ]
        return pd.DataFrame(rows, columns=["revision", "condition", "n", "enough"])

    def means(self, condition: str) -> Float[np.ndarray, "checkpoint layer head"]:
        """Mean effects; NaN at a checkpoint with fewer than :data:`LEAST_UNITS` texts."""
        values, known = self.of(condition), self.known(condition)
        means = np.full((len(values), *values.shape[2:]), np.nan)
        for place, has in enumerate(known):
            if has.sum() >= LEAST_UNITS:
                means[place] = values[place, has].mean(0)
        return means

    def to_frame(self) -> pd.DataFrame:
        """One row per checkpoint, condition and head: mean over texts with its 95 % interval (bootstrap), texts."""
        rows = []
        for condition, place in itertools.product(CONDITIONS, range(len(self.revisions))):
            drawn = self.drawn(condition, place)
            n, mean = int(self.known(condition)[place].sum()), self.means(condition)[place]
            ends = np.full((2, mean.size), np.nan) if drawn is None else np.percentile(drawn, [2.5, 97.5], axis=0)
            for unit, (low, high) in enumerate(ends.T):
                layer, head = divmod(unit, mean.shape[1])
                rows.append((self.revisions[place], condition, layer, head, mean[layer, head], low, high, n))
        return pd.DataFrame(
            rows, columns=["revision", "condition", "layer", "head", "value", "low", "high", "n"]
        )  # fmt: skip

    def known(self, condition: str) -> Bool[np.ndarray, "checkpoint unit"]:
        """Whether a text is of a condition."""
        return np.asarray(~np.isnan(self.of(condition)).any((2, 3)))

    def drawn(
        self, condition: str, place: int, draws: int = DRAWS, seed: int = 0
    ) -> Float[np.ndarray, "draw head"] | None:
        """Mean effects of all heads, layer by layer, in every draw of texts; ``None`` where there are too few.

        The draws are the same at every checkpoint, and for all conditions of prompts.

        Args:
            condition: as in :meth:`of`.
            place: number of the checkpoint.
            draws: of the bootstrap.
            seed: of the draws.
        """
        known = self.known(condition)[place]
        if known.sum() < LEAST_UNITS:
            return None
        values = np.where(known[:, None, None], self.of(condition)[place], np.nan).reshape(len(known), -1)
        own = seed * 1009 + int(condition == INDUCTION)  # groups of random repeats are no prompts
        return bootstrap_means(values.T, draw_counts(len(known), draws, own))
