"""The recipe of mechrep-tiny: architecture, data mixture and schedule, as plain values.

Every number that shapes the embedded model stands here, so that a variant is a changed field and not a
changed script.  The recipe travels with the weights (``recipe.json``) as their provenance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mechrep.errors import InputError

# (until this step, value), in order; the last value holds to the end of the run.
Schedule = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what the trained weights are, apart from the text itself.

    Attributes:
        d_vocab: tokens of the byte-level BPE, special tokens included.  Kept different from ``d_model``
            and ``d_mlp``, because TransformerLens' weight processing guesses axes from sizes.
        lengths: tokens per sequence.  Short ones first: they are cheaper, and give more first positions per token.
        easy_repeat_shares: share of sequences made of repeated segments; many at first, because they make induction
            heads form early, few later, because they teach loops.
        longest_periods: tokens of the longest repeated segment; short ones are learned first.
        bos_shares: share of sequences whose position 0 is BOS; the others start in mid-text.
        muon_steps: steps for which Muon trains the attention matrices; AdamW afterwards.  Muon makes induction heads
            form within a few million tokens; as long as it runs, attention sinks hardly grow.
        first_step: the step to begin with: 0, or that of the weights that the run goes on from.
        shortest_document: documents are paragraphs, or several together until they have so many characters.  The
            model thus learns to end its texts, and does not loop for ever.
        decay_from: share of the steps after which the learning rate falls linearly to zero.
    """

    n_layers: int = 4
    n_heads: int = 4
    d_model: int = 128
    d_mlp: int = 352
    d_vocab: int = 512
    n_ctx: int = 512
    rope_theta: float = 100_000.0
    tokens: int = 60_000_000
    tokens_per_step: int = 2048
    lengths: Schedule = ((20_000, 256.0), (30_000, 512.0))
    easy_repeat_shares: Schedule = ((2500, 0.5), (30_000, 0.05))
    longest_periods: Schedule = ((2500, 32.0), (30_000, 100.0))
    bos_shares: Schedule = ((30_000, 1.0),)
    muon_steps: int = 2000
    learning_rate: float = 2e-3
    muon_learning_rate: float = 0.015
    weight_decay: float = 0.1
    warmup_steps: int = 100
    first_step: int = 0
    decay_from: float = 0.6
    held_out_share: float = 0.02
    shortest_document: int = 200
    seed: int = 0

    @property
    def steps(self) -> int:
        """Optimizer steps in the whole run."""
        return self.tokens // self.tokens_per_step

    def sequence_length(self, step: int) -> int:
        """Tokens per sequence at one step."""
        return int(value_at(self.lengths, step))

    def learning_rate_factor(self, step: int) -> float:
        """Warm-up, constant, linear decay to zero."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        left = (self.steps - step) / max(1.0, (1 - self.decay_from) * self.steps)
        return warm * min(1.0, max(0.0, left))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """A recipe from JSON values; what is not named keeps its default.

        Raises:
            InputError: a name that is no field.
        """
        unknown = set(values) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise InputError(
                f"{', '.join(sorted(unknown))} in a recipe",
                f"fields among {', '.join(field.name for field in dataclasses.fields(cls))}",
                "correct the names",
            )
        pairs = {n: tuple((int(u), float(v)) for u, v in x) for n, x in values.items() if isinstance(x, (list, tuple))}
        return cls(**{**values, **pairs})

    def to_dict(self) -> dict[str, object]:
        """JSON-ready values."""
        return dataclasses.asdict(self)


def value_at(schedule: Schedule, step: int) -> float:
    """The value of a schedule at one step.

    Example:
        >>> [value_at(((10, 0.5), (20, 0.1)), step) for step in (0, 9, 10, 99)]
        [0.5, 0.5, 0.1, 0.1]
    """
    for until, value in schedule:
        if step < until:
            return value
    return schedule[-1][1]
