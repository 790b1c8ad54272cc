"""The cheap outcomes of an ablation study: teacher-forced, without generating a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.errors import InputError
from mechrep.interventions.base import Intervention, When
from mechrep.models.model import Model
from mechrep.studies.ablation.scores import ScoredText, score_tokens
from mechrep.studies.loss import token_losses
from mechrep.studies.outcomes import OldLoop
from mechrep.text.corpus import Corpus

Measure = dict[str, Any]


def measure(outcome: str, *, copy: int | None = None, trials: int = 0) -> Measure:
    """What one table of values is: its name, the copy of the loop, and of how many trials each value is the share.

    ``trials=0``: a mean and no share.
    """
    return {"outcome": outcome, "copy": copy, "trials": trials}


@runtime_checkable
class Outcome(Protocol):
    """Something to measure on every text under every intervention.

    Attributes:
        corpus: the texts.
        measures: the tables that :meth:`values` gives, see :func:`measure`.
        facts: settings that decide the values.
    """

    corpus: Corpus
    measures: list[Measure]
    facts: dict[str, Any]

    def values(
        self, interventions: Sequence[Intervention | None], progress: bool | None
    ) -> Float[Tensor, "measure intervention text"]:
        """The values; NaN where a text has none."""
        ...


class LoopLogProbability:
    """Log-probability of a loop's own continuation, teacher-forced, in nats per token.

    With the prompt ``ids[:onset]`` and the loop's ``cycle`` after it, over and over: copy ``c`` (from 1) is the mean of
    ``log p`` over the cycle's tokens in its ``c``-th repetition; copy 0 is the onset token alone.  A copy that would
    end beyond the model's context is missing.

    Args:
        model: the model.
        corpus: looping texts.
        loops: their loops.
        copies: so many copies.
        when: ``"from_onset"``: edited from the position that predicts the onset token on; ``"all"``: everywhere.
    """

    def __init__(self, model: Model, corpus: Corpus, loops: Sequence[OldLoop], copies: int, when: When) -> None:
        if copies < 1:
            raise InputError(f"copies={copies}", "at least 1", "ask for more")
        self.model, self.corpus, self.loops = model, corpus, loops
        room = [(model.anatomy.n_ctx - loop.onset) // len(loop.cycle) for loop in loops]
        self.whole = [min(copies, fits) for fits in room]
        self.measures = [measure("loop_log_probability", copy=copy) for copy in range(max(self.whole) + 1)]
        self.facts = {"copies": copies, "when": when, "loops": [[loop.start, loop.onset] for loop in loops]}
        self.texts = []
        for number, (loop, fits) in enumerate(zip(loops, self.whole, strict=True)):
            tokens = (*corpus.row(number)[: loop.onset], *(loop.cycle * fits or loop.cycle[:1]))
            self.texts.append(ScoredText(tokens, loop.onset, 0 if when == "all" else loop.onset - 1, number))

    def values(
        self, interventions: Sequence[Intervention | None], progress: bool | None
    ) -> Float[Tensor, "measure intervention text"]:
        """Means by copy."""
        size = (len(self.measures), len(interventions), len(self.texts))
        values = torch.full(size, torch.nan, dtype=torch.float64)
        scored = score_tokens(self.model, self.texts, interventions, progress=progress, what="loop log-probability")
        for text, (scores, loop, whole) in enumerate(zip(scored, self.loops, self.whole, strict=True)):
            values[0, :, text] = scores.log_probability[:, 0]
            if whole:
                by_copy = scores.log_probability.unflatten(1, (whole, len(loop.cycle))).mean(-1)
                values[1 : whole + 1, :, text] = by_copy.T
        return values


class CopyAccuracy:
    """How well random repeats are copied, edited at every position.

    ``copy_accuracy``: share of the tokens of the second copy that are the model's most probable ones;
    ``copy_loss_drop``: loss on the first copy minus loss on the second, nats per token.  The first token of the second
    copy cannot be foreseen and counts in neither.

    Args:
        model: the model.
        corpus: random repeats, as :func:`mechrep.text.random_repeats.random_repeats` makes them.
    """

    def __init__(self, model: Model, corpus: Corpus) -> None:
        corpus.check_model(model)
        needed = {"start", "onset", "period"}
        facts = corpus.frame[sorted(needed & set(corpus.frame))].dropna().drop_duplicates().to_dict("records")
        if len(facts) != 1 or set(facts[0]) != needed or facts[0]["period"] < 2:
            raise InputError(
                f"repeats with {len(facts)} kinds of start, onset and period",
                "texts that repeat alike, with a period of at least 2",
                "make them with mechrep.text.random_repeats",
            )
        self.model, self.corpus = model, corpus
        start, onset, self.period = (int(facts[0][name]) for name in ("start", "onset", "period"))
        self.first_copy = onset - max(1, start)  # a text without BOS begins with a token that nothing predicts
        self.facts = {"start": start, "onset": onset, "period": self.period}
        self.measures = [measure("copy_accuracy", trials=self.period - 1), measure("copy_loss_drop")]
        self.texts = [
            ScoredText(tuple(corpus.row(i)[: onset + self.period]), max(1, start), 0, i) for i in range(len(corpus))
        ]

    def values(
        self, interventions: Sequence[Intervention | None], progress: bool | None
    ) -> Float[Tensor, "measure intervention text"]:
        """Accuracy and loss drop."""
        scored = score_tokens(self.model, self.texts, interventions, progress=progress, what="copying")
        after = self.first_copy + 1
        accuracy = [scores.correct[:, after:].double().mean(1) for scores in scored]
        drop = [
            scores.log_probability[:, after:].mean(1) - scores.log_probability[:, : self.first_copy].mean(1)
            for scores in scored
        ]
        return torch.stack([torch.stack(accuracy, dim=1), torch.stack(drop, dim=1)])


class HeldOutLoss:
    """Loss on held-out text, nats per token; see :func:`mechrep.studies.loss.token_losses`.

    Args:
        model: the model.
        corpus: windows of one length.
    """

    def __init__(self, model: Model, corpus: Corpus) -> None:
        self.model, self.corpus = model, corpus
        self.facts: dict[str, Any] = {}
        self.measures = [measure("loss")]

    def values(
        self, interventions: Sequence[Intervention | None], progress: bool | None
    ) -> Float[Tensor, "measure intervention text"]:
        """Mean loss over the second half of each window, which is edited."""
        return token_losses(self.model, self.corpus, interventions, progress=progress).double()[None]
