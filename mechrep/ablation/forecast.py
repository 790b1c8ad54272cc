"""What a table will cost before it is measured: tokens, minutes and memory, from a probe of one batch."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch

from mechrep.ablation.outcomes import Cost
from mechrep.interventions.apply import logits
from mechrep.models.model import Model

_PROBE = (8, 64)  # rows and tokens
_WORTH_SAYING = 0.5  # minutes

_speeds: WeakKeyDictionary[Model, tuple[float, float]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Forecast:
    """What a table costs at most: texts that stop early, and prefixes that rows share, make it cheaper.

    Attributes:
        read: tokens of forward passes over known texts.
        written: tokens of generation.
        minutes: on this machine, as busy as it is now.
        gib: memory of the weights and of one batch of logits.
    """

    read: int
    written: int
    minutes: float
    gib: float

    def __str__(self) -> str:
        return (
            f"at most {self.read:,} tokens to read and {self.written:,} to write, "
            f"{self.minutes:.1f} minutes, {self.gib:.1f} GiB"
        )


@torch.no_grad()
def forecast(model: Model, cost: Cost) -> Forecast:
    """Tokens of a cost, and what they mean on this machine.

    A batch of 8 rows of 64 tokens is read once per model, and 8 rows of one token, which is what writing costs a step.

    Example:
        >>> import mechrep
        >>> told = forecast(mechrep.load_model("mechrep-tiny"), Cost(read=10_000, written=100))
        >>> told.read, told.written, told.minutes > 0
        (10000, 100, True)
    """
    if model not in _speeds:
        _speeds[model] = (_seconds(model, _PROBE[1]), _seconds(model, 1))
    per_read, per_written = _speeds[model]
    weights = (model.tl if model.plain is None else model.plain).parameters()
    size = sum(weight.numel() * weight.element_size() for weight in weights)
    batch = 2048 * model.anatomy.d_vocab * 4
    minutes = (cost.read * per_read + cost.written * per_written) / 60
    return Forecast(cost.read, cost.written, minutes, (size + batch) / 2**30)


def _seconds(model: Model, length: int) -> float:
    """Seconds per token in rows of this length; the second pass counts."""
    tokens = model.probe_tokens()[:1, :1].repeat(_PROBE[0], min(length, model.anatomy.n_ctx))
    took = 0.0
    for _ in range(2):
        begun = time.perf_counter()
        logits(model, tokens, lengths=torch.full((len(tokens),), tokens.shape[1]))
        took = time.perf_counter() - begun
    return took / tokens.numel()


def say_forecast(model: Model, cost: Cost, what: str, shown: bool | None) -> None:
    """One line on standard error where the work is long and progress is not switched off."""
    if shown is False or not (cost.read or cost.written):
        return
    told = forecast(model, cost)
    if told.minutes >= _WORTH_SAYING:
        sys.stderr.write(f"{what}: {told}\n")
        sys.stderr.flush()
