"""The recipe of mechrep-tiny: architecture, data mixture and schedule, as plain values.

Every number that shapes the embedded model stands here, so that a variant is a changed field and not a
changed script.  The recipe travels with the weights (``recipe.json``) as their provenance.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what the trained weights are, apart from the text itself.

    Attributes:
        d_vocab: tokens of the byte-level BPE, special tokens included.  Kept different from ``d_model``
            and ``d_mlp``, because TransformerLens' weight processing guesses axes from sizes.
        easy_repeat_shares: share of sequences made of repeated segments while the share of the tokens
            spent is below each key; repeats come first because they make induction heads form early.
        bos_share: share of sequences whose position 0 is BOS; the others start in mid-text.
        short_context: sequence length until ``short_context_until``, then ``n_ctx``.
        decay_from: share of the tokens after which the learning rate falls linearly to zero.
    """

    n_layers: int = 4
    n_heads: int = 4
    d_model: int = 128
    d_mlp: int = 352
    d_vocab: int = 512
    n_ctx: int = 512
    tokens: int = 48_000_000
    tokens_per_step: int = 2048
    short_context: int = 256
    short_context_until: float = 0.25
    easy_repeat_shares: tuple[tuple[float, float], ...] = ((0.18, 0.5), (0.4, 0.1), (1.0, 0.0))
    bos_share: float = 0.9
    learning_rate: float = 2e-3
    muon_learning_rate: float = 0.015
    weight_decay: float = 0.1
    warmup_steps: int = 100
    decay_from: float = 0.6
    held_out_share: float = 0.02
    seed: int = 0

    @property
    def steps(self) -> int:
        """Optimizer steps in the whole run."""
        return self.tokens // self.tokens_per_step

    def sequence_length(self, step: int) -> int:
        """Tokens per sequence at one step."""
        return self.short_context if step < self.short_context_until * self.steps else self.n_ctx

    def easy_repeat_share(self, step: int) -> float:
        """Share of sequences made of repeated segments at one step."""
        for until, share in self.easy_repeat_shares:
            if step < until * self.steps:
                return share
        return self.easy_repeat_shares[-1][1]

    def learning_rate_factor(self, step: int) -> float:
        """Warm-up, constant, linear decay to zero."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        left = (self.steps - step) / max(1.0, (1 - self.decay_from) * self.steps)
        return warm * min(1.0, max(0.0, left))

    def to_dict(self) -> dict[str, object]:
        """JSON-ready values."""
        return dataclasses.asdict(self)
