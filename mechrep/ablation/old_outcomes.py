"""The cheap outcomes of an ablation study: teacher-forced, without generating a token.

The dear outcomes of an ablation study: texts are written again under the cut, and one looks whether they loop.

The texts of an ablation study: looping ones with their loops, loop-free ones, and none that were searched.

What became of a text: does it still repeat, when did it leave its loop, has it found another one?
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.ablation.old_loss import token_losses
from mechrep.ablation.score import ScoredText, score_tokens
from mechrep.errors import InputError, NothingFoundError
from mechrep.generation.decode import Decoding, Request, run_requests
from mechrep.interventions.ops import Intervention, When
from mechrep.measures.neurons import check_onsets
from mechrep.models.model import Model
from mechrep.text.corpus import Corpus
from mechrep.text.cycles import repeats_after_prompt


@dataclass(frozen=True)
class OldLoop:
    """The loop a text was in when it was cut at its onset.

    Attributes:
        start: first position of the first copy.
        onset: start of the second copy; the prompt ends here.
        cycle: ids of one copy.
    """

    start: int
    onset: int
    cycle: tuple[int, ...]

    def escape(self, ids: Sequence[int]) -> int | None:
        """How many tokens of the loop came after the onset before another one; ``None`` if no other one came."""
        for position in range(self.onset, len(ids)):
            if ids[position] != self.cycle[(position - self.start) % len(self.cycle)]:
                return position - self.onset
        return None


def outcome_of(
    ids: Sequence[int],
    prompt_length: int,
    *,
    preset: str,
    old: OldLoop | None,
    eos_id: int | None = None,
    special_ids: Sequence[int] = (),
) -> dict[str, Any]:
    """Facts about one text after an edit.

    Args:
        ids: prompt and continuation.
        prompt_length: tokens of the prompt.
        preset: see :func:`mechrep.text.cycles.repeats_after_prompt`.
        old: the loop before the edit; ``None`` for a text that had none.
        eos_id: cut the text there (default detector).
        special_ids: no cycle on their own.

    Returns:
        ``repeating``; ``escaped_at`` (tokens after the onset, ``None`` while in the loop); ``relooped`` (in a loop that
        reaches beyond its escape, or was free before); ``new_period`` of that loop; ``new_tokens``.
    """
    cycle = repeats_after_prompt(ids, prompt_length, preset, eos_id=eos_id, special_ids=special_ids)
    escaped_at = None if old is None else old.escape(ids)
    # A loop that ends before the escape is the old one.
    relooped = cycle is not None and (old is None or (escaped_at is not None and cycle.end > old.onset + escaped_at))
    return {
        "repeating": cycle is not None,
        "escaped_at": escaped_at,
        "relooped": relooped,
        "new_period": cycle.period if relooped and cycle is not None else None,
        "new_tokens": len(ids) - prompt_length,
    }


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
        corpus: random repeats, as :func:`mechrep.text.stimuli.random_repeats` makes them.
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
    """Loss on held-out text, nats per token; see :func:`mechrep.ablation.old_loss.token_losses`.

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


class Regeneration:
    """Share of texts that loop when they are written again from their prompt on, greedily.

    Args:
        name: ``"still_looping"`` or ``"newly_looping"``.
        model: the model.
        corpus: the texts.
        cuts: where each prompt ends.
        when: ``"from_onset"``: edited from the prompt's last position on; ``"all"``: everywhere.
        preset: of the detector, which also stops a text that has its answer.
        max_new_tokens: continue by so many tokens.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        corpus: Corpus,
        cuts: Sequence[int],
        *,
        when: When,
        preset: str,
        max_new_tokens: int,
    ) -> None:
        self.name, self.model, self.corpus, self.preset = name, model, corpus, preset
        self.prompts = [tuple(corpus.row(i)[:cut]) for i, cut in enumerate(cuts)]
        self.starts = [0 if when == "all" else cut - 1 for cut in cuts]
        self.decoding = Decoding(max_new_tokens, ["eos", preset])
        self.measures = [measure(name, trials=1)]
        self.facts: dict[str, Any] = {
            "preset": preset, "max_new_tokens": max_new_tokens, "when": when, "cuts": list(cuts)
        }  # fmt: skip

    def values(
        self, interventions: Sequence[Intervention | None], progress: bool | None
    ) -> Float[Tensor, "measure intervention text"]:
        """1 where a text loops, 0 where it does not."""
        requests = [
            Request(prompt, intervention, start, text)
            for intervention in interventions
            for text, (prompt, start) in enumerate(zip(self.prompts, self.starts, strict=True))
        ]
        answers = run_requests(self.model, requests, self.decoding, progress=progress, what=self.name)
        special = sorted(self.model.special_ids)
        loops = [
            repeats_after_prompt(
                answer.ids,
                len(answer.request.prompt),
                self.preset,
                eos_id=answer.ids[-1] if answer.reason == "eos" else None,
                special_ids=special,
            )
            is not None
            for answer in answers
        ]
        return torch.tensor(loops, dtype=torch.float64).view(1, len(interventions), len(self.prompts))


def unseen(corpus: Corpus, seen: Set[str]) -> Corpus:
    """The texts on which nothing was searched.

    Raises:
        InputError: none is left.
    """
    mask = corpus.frame["id"].isin(set(seen))
    if mask.all():
        raise InputError(
            "a corpus of exactly the texts on which the circuits were found",
            "texts that the search has not seen: testing where one searched inflates the effect",
            "find, test = corpus.split(); search on the one, ablate on the other (or pass held_out=False and say so)",
        )
    return corpus.select(~mask)


def looping_texts(corpus: Corpus) -> tuple[Corpus, list[OldLoop]]:
    """The texts with an onset, and the loop of each.

    Raises:
        NothingFoundError: no text with an onset.
        InputError: a loop that does not lie in its text.
    """
    known = "onset" in corpus.frame and "start" in corpus.frame
    has = corpus.frame["onset"].notna() & corpus.frame["start"].notna() if known else None
    if has is None or not has.any():
        raise NothingFoundError(
            f"{len(corpus)} texts without an onset",
            "texts in which a cycle was found",
            "call corpus.with_cycles() or collect loops with mechrep.generation.collect_loops",
        )
    texts = corpus.select(has)
    check_onsets(texts.frame, texts.lengths)
    places = zip(texts.frame["start"].astype(int), texts.frame["onset"].astype(int), strict=True)
    return texts, [OldLoop(start, onset, tuple(texts.row(i)[start:onset])) for i, (start, onset) in enumerate(places)]


def loop_free_texts(corpus: Corpus, length: int) -> Corpus:
    """The texts without an onset, of at least ``length`` tokens.

    Raises:
        NothingFoundError: there is none.
    """
    free = corpus.frame["onset"].isna().to_numpy() if "onset" in corpus.frame else True
    mask = (corpus.lengths.numpy() >= length) & free
    if not mask.any():
        raise NothingFoundError(
            f"{len(corpus)} texts, none of them loop-free and of {length} tokens or more",
            "loop-free texts to continue",
            "collect some with n_others=, or lower prompt_length",
        )
    return corpus.select(mask)
