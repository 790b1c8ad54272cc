"""What can be measured on texts under an intervention: the outcomes of ablation studies, each by the one protocol.

Teacher-forced ones read known texts; :class:`Regeneration` has the model write texts anew, which is expensive.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.ablation.effects import Measure
from mechrep.ablation.score import ScoredText, score_tokens, token_losses
from mechrep.ablation.screening import WeightedText
from mechrep.errors import InputError, NothingFoundError
from mechrep.generation.decode import Continuation, Decoding, Request, run_requests
from mechrep.generation.loops import without_counter
from mechrep.guards import Count, check_fields, guarded
from mechrep.interventions.ops import Intervention, When
from mechrep.measures.neurons import check_onsets
from mechrep.models.model import Model
from mechrep.text.corpus import Corpus
from mechrep.text.cycles import exact_loop
from mechrep.text.families import loop_families


@dataclass(frozen=True)
class Cost:
    """Tokens that an outcome costs under one condition, at most.

    Attributes:
        read: tokens of forward passes over known texts.
        written: tokens of generation.
    """

    read: int = 0
    written: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.read + other.read, self.written + other.written)

    def times(self, number: int) -> Cost:
        """The cost of so many conditions."""
        return Cost(number * self.read, number * self.written)


@runtime_checkable
class Outcome(Protocol):
    """Something to measure on every unit under every intervention.

    Attributes:
        measures: the rows that :meth:`values` gives.
        units: ids of the units.
        clusters: the cluster of each unit, see :mod:`mechrep.text.families`.
        facts: what decides the values, for JSON; texts by their fingerprint.
        regenerates: whether texts are written anew: expensive, so fewer control draws are measured.
        cost: tokens per condition.
    """

    @property
    def measures(self) -> Sequence[Measure]: ...

    @property
    def units(self) -> Sequence[str]: ...

    @property
    def clusters(self) -> Sequence[str]: ...

    @property
    def facts(self) -> Mapping[str, Any]: ...

    @property
    def regenerates(self) -> bool: ...

    @property
    def cost(self) -> Cost: ...

    def values(
        self, interventions: Sequence[Intervention | None], progress: bool | None
    ) -> Float[Tensor, "measure intervention unit"]:
        """The values; NaN where a unit has none."""
        ...


@runtime_checkable
class Screens(Outcome, Protocol):
    """An outcome that is a weighted sum of tokens' log-probabilities: heads can be screened by its gradient.

    Attributes:
        screened: label of the measure that the weights make, ``"name"`` or ``"name copy"``.
    """

    @property
    def screened(self) -> str: ...

    def weighted(self) -> Sequence[WeightedText]:
        """The texts, and what each of their tokens counts."""
        ...


class _OnTexts:
    """What outcomes over the texts of a corpus share."""

    regenerates = False

    def __init__(self, model: Model, corpus: Corpus, clusters: Sequence[str] | None = None) -> None:
        corpus.check_model(model)
        self.model, self.corpus = model, corpus
        self.units = [str(name) for name in corpus.frame["id"]]
        self.clusters = list(clusters or self.units)
        self.measures: list[Measure] = []
        self.facts: dict[str, Any] = {"texts": corpus.fingerprint()}
        self.cost = Cost(read=int(corpus.lengths.sum()))


@dataclass(frozen=True)
class OldLoop:
    """The loop that a text was in at its onset.

    Attributes:
        start: first position of the first repetition.
        onset: start of the second repetition; the prompt ends here.
        cycle: ids of one repetition.
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


class LoopLogProbability(_OnTexts):
    """Log-probability of a loop's own continuation, teacher-forced, in nats per token.

    With the prompt ``ids[:onset]`` and the loop's ``cycle`` after it, over and over: repetition ``c`` (from 1) is the
    mean of ``log p`` over the cycle's tokens in its ``c``-th repetition; 0 is the onset token alone.  A repetition that
    would end beyond the model's context is missing.

    With ``per_copy`` also ``stays_in_loop``: 1 where all of these tokens of the next repetition are the most probable
    ones, so that greedy decoding would write them too, else 0.

    Args:
        model: the model.
        corpus: looping texts.
        loops: their loops.
        copies: so many repetitions.
        when: ``"from_onset"``: edited from the position that predicts the onset token on; ``"all"``: everywhere.
        per_copy: tokens at the beginning of each repetition that count; by default all.
    """

    @guarded
    def __init__(
        self,
        model: Model,
        corpus: Corpus,
        loops: Sequence[OldLoop],
        copies: Count,
        when: When,
        per_copy: Count | None = None,
    ) -> None:
        super().__init__(model, corpus, loop_families(corpus))
        self.loops = loops
        self.counted = [len(one.cycle) if per_copy is None else min(per_copy, len(one.cycle)) for one in loops]
        room = [(model.anatomy.n_ctx - loop.onset) // len(loop.cycle) for loop in loops]
        self.whole = [min(copies, fits) for fits in room]
        self.measures = [Measure("loop_log_probability", copy=copy) for copy in range(max(self.whole) + 1)]
        self.facts |= {"copies": copies, "when": when, "loops": [[loop.start, loop.onset] for loop in loops]}
        self.stays = per_copy is not None
        if self.stays:
            self.facts |= {"per_copy": per_copy}
            self.measures += [Measure("stays_in_loop", "share", trials=1)]
        self.texts = []
        for number, (loop, fits) in enumerate(zip(loops, self.whole, strict=True)):
            known = corpus.row(number)[: loop.onset]
            length = (fits - 1) * len(loop.cycle) + self.counted[number] if fits else 1
            tokens = (*known, *(loop.cycle * max(fits, 1))[:length])
            self.texts.append(ScoredText(tokens, loop.onset, 0 if when == "all" else loop.onset - 1, number))
        self.cost = Cost(read=sum(len(text.tokens) for text in self.texts))

    @property
    def screened(self) -> str:
        """The next repetition; the onset token where no whole one fits any text."""
        return f"loop_log_probability {min(1, max(self.whole))}"

    def weighted(self) -> list[WeightedText]:
        """The next repetition of each text, or the onset token where no whole one fits: what heads are screened by."""
        chosen = []
        for text, whole, counted in zip(self.texts, self.whole, self.counted, strict=True):
            weights = torch.zeros(len(text.tokens) - text.first)
            own = counted if whole else 1
            weights[:own] = 1 / own
            chosen.append(WeightedText(text, weights))
        return chosen

    def values(
        self, interventions: Sequence[Intervention | None], progress: bool | None
    ) -> Float[Tensor, "measure intervention text"]:
        """Means by repetition."""
        size = (len(self.measures), len(interventions), len(self.texts))
        values = torch.full(size, torch.nan, dtype=torch.float64)
        scored = score_tokens(self.model, self.texts, interventions, progress=progress, what="loop log-probability")
        for text, (scores, loop, whole) in enumerate(zip(scored, self.loops, self.whole, strict=True)):
            values[0, :, text] = scores.log_probability[:, 0]
            for copy in range(whole):
                begin = copy * len(loop.cycle)
                part = scores.log_probability[:, begin : begin + self.counted[text]]
                values[copy + 1, :, text] = part.mean(1)
            if self.stays and whole:
                values[-1, :, text] = scores.correct[:, : self.counted[text]].all(1).double()
        return values


class CopyAccuracy(_OnTexts):
    """How well random repeats are copied, edited at every position.

    ``copy_accuracy``: share of the tokens of the second half that are the model's most probable ones;
    ``copy_loss_drop``: loss on the first half minus loss on the second, nats per token.  The first token of the second
    half cannot be foreseen and counts in neither.

    Args:
        model: the model.
        corpus: random repeats, as :func:`mechrep.text.stimuli.random_repeats` makes them.
        last: only so many tokens at the end of the second half count, edited from the position that predicts the first
            of them on, and there is no ``copy_loss_drop``: for models in which each token costs much.
    """

    def __init__(self, model: Model, corpus: Corpus, last: int | None = None) -> None:
        super().__init__(model, corpus)
        needed = {"start", "onset", "period"}
        facts = corpus.frame[sorted(needed & set(corpus.frame))].dropna().drop_duplicates().to_dict("records")
        if len(facts) != 1 or set(facts[0]) != needed or facts[0]["period"] < 2:
            raise InputError(
                f"repeats with {len(facts)} kinds of start, onset and period",
                "texts that repeat alike, with a period of at least 2",
                "make them with mechrep.text.random_repeats",
            )
        start, onset, period = (int(facts[0][name]) for name in ("start", "onset", "period"))
        self.first_copy = onset - max(1, start)  # a text without BOS begins with a token that nothing predicts
        self.facts |= {"start": start, "onset": onset, "period": period}
        self.brief = last is not None
        counted = period - 1 if last is None else min(last, period - 1)
        self.measures = [Measure("copy_accuracy", "share", trials=counted)]
        first, begin = max(1, start), 0
        if last is None:
            self.measures.append(Measure("copy_loss_drop"))
        else:
            self.facts |= {"last": last}
            first = onset + period - counted
            begin = first - 1
        self.texts = [ScoredText(tuple(corpus.row(i)[: onset + period]), first, begin, i) for i in range(len(corpus))]

    def values(
        self, interventions: Sequence[Intervention | None], progress: bool | None
    ) -> Float[Tensor, "measure intervention text"]:
        """Accuracy and loss drop."""
        scored = score_tokens(self.model, self.texts, interventions, progress=progress, what="copying")
        after = 0 if self.brief else self.first_copy + 1
        accuracy = [scores.correct[:, after:].double().mean(1) for scores in scored]
        if self.brief:
            return torch.stack(accuracy, dim=1)[None]
        drop = [
            scores.log_probability[:, after:].mean(1) - scores.log_probability[:, : self.first_copy].mean(1)
            for scores in scored
        ]
        return torch.stack([torch.stack(accuracy, dim=1), torch.stack(drop, dim=1)])


class HeldOutLoss(_OnTexts):
    """Loss on held-out text, nats per token; see :func:`mechrep.ablation.score.token_losses`.

    Args:
        model: the model.
        corpus: windows of one length.
    """

    def __init__(self, model: Model, corpus: Corpus) -> None:
        super().__init__(model, corpus)
        self.measures = [Measure("loss")]

    def values(
        self, interventions: Sequence[Intervention | None], progress: bool | None
    ) -> Float[Tensor, "measure intervention text"]:
        """Mean loss over the second half of each window, which is edited."""
        return token_losses(self.model, self.corpus, interventions, progress=progress).double()[None]


_SPAN = 32  # tokens of a loop of short copies


@dataclass(frozen=True)
class LoopDecoding:
    """How texts are regenerated, and when they count as looping.

    Attributes:
        preset: of the detector, see :func:`mechrep.text.cycles.detect_cycle`.
        max_new_tokens: tokens to write; published: 160.
        stop_early: end a text as soon as its question is answered.
        prompt_length: tokens of a loop-free text that are kept; published: 50.
        copies: where the old loop is known, write no more than it takes to so many copies of it (and 32 tokens).
    """

    preset: str = "mechrep"
    max_new_tokens: Count = 160
    stop_early: bool = True
    prompt_length: Count = 50
    copies: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def tokens_for(self, loop: OldLoop | None) -> int:
        """Tokens to write, at most.

        Example:
            >>> LoopDecoding(copies=3).tokens_for(OldLoop(4, 24, tuple(range(20)))), LoopDecoding().tokens_for(None)
            (40, 160)
        """
        if loop is None or self.copies is None:
            return self.max_new_tokens
        period = len(loop.cycle)
        return min(self.max_new_tokens, max(self.copies * period, _SPAN) - period)

    def within(self, n_ctx: int, corpus: Corpus) -> LoopDecoding:
        """The same where these texts are regenerated by a model that reads so many positions: fewer tokens if need be.

        Args:
            n_ctx: positions.
            corpus: looping and loop-free texts; all get the same number of tokens.
        """
        onsets = corpus.frame["onset"].dropna().astype(int).tolist() if "onset" in corpus.frame else []
        room = n_ctx - max([self.prompt_length, *onsets])
        return replace(self, max_new_tokens=max(1, min(self.max_new_tokens, room)))


class Regeneration(_OnTexts):
    """What becomes of texts that are regenerated from their prompt on, greedily.

    Where the old loop is known, its continuation is read first under every condition: while each of its tokens is the
    most probable one, greedy decoding would write just these, and only rows that leave the loop are written.

    The first measure, ``name``: 1 where a text loops by the preset's detector, else 0.  Where the old loops are known
    also ``escaped`` (left the old loop at some point), ``tokens_to_escape``, ``relooped`` (escaped, yet looping) and
    ``new_period`` of that loop; NaN where there is none.

    Args:
        name: of the first measure.
        model: the model.
        corpus: the texts.
        prompts: where each prompt ends.
        loops: the loop that each text was in there; ``None`` for loop-free texts.
        decoding: the preset of the detector, how many tokens are written, and whether a text stops as soon as the
            detector has fired (escapes after that are not seen).
        when: ``"from_onset"``: edited from the prompt's last position on; ``"all"``: everywhere.
    """

    regenerates = True

    def __init__(
        self,
        name: str,
        model: Model,
        corpus: Corpus,
        prompts: Sequence[int],
        loops: Sequence[OldLoop] | None,
        decoding: LoopDecoding,
        when: When = "from_onset",
    ) -> None:
        super().__init__(model, corpus, loop_families(corpus))
        self.name, self.loops, self.how = name, loops, decoding
        self.prompts = [tuple(corpus.row(i)[:end]) for i, end in enumerate(prompts)]
        self.starts = [0 if when == "all" else end - 1 for end in prompts]
        self.measures = [Measure(name, "share", trials=1)]
        if loops is not None:
            self.measures += [
                Measure("escaped", "share", trials=1),
                Measure("tokens_to_escape", "count"),
                Measure("relooped", "share", trials=1),
                Measure("new_period", "count"),
            ]
        self.facts |= {"when": when, "prompts": list(prompts), **vars(decoding)}
        self.decoding = Decoding(["eos", decoding.preset] if decoding.stop_early else "eos")
        self.limits = [decoding.tokens_for(loop) for loop in loops or [None] * len(self.prompts)]
        self.drafts = [self._draft(text, loop) for text, loop in enumerate(loops or [])]
        read = sum(map(len, self.prompts)) + sum(len(draft.tokens) for draft in self.drafts)
        self.cost = Cost(read=read, written=sum(self.limits))

    def _request(self, text: int, intervention: Intervention | None) -> Request:
        return Request(self.prompts[text], self.limits[text], intervention, self.starts[text], text)

    def _draft(self, text: int, loop: OldLoop) -> Continuation:
        """What would be written while the text stays in its loop."""
        draft = Continuation(self._request(text, None), self.decoding, self.model.eos_ids)
        while draft.reason is None:
            draft.push(loop.cycle[len(draft.tokens) % len(loop.cycle)])
        return draft

    def values(
        self, interventions: Sequence[Intervention | None], progress: bool | None
    ) -> Float[Tensor, "measure intervention text"]:
        """What became of each text."""
        what = f"regenerating, {self.name.replace('_', ' ')}"
        answers: dict[tuple[int, int], Continuation] = {}
        if self.drafts:
            texts = [
                ScoredText(tuple(draft.ids), len(self.prompts[text]), self.starts[text], text)
                for text, draft in enumerate(self.drafts)
            ]
            scored = score_tokens(self.model, texts, interventions, progress=progress, what=f"{what}: read")
            for text, scores in enumerate(scored):
                stays = scores.correct.all(1).nonzero()[:, 0].tolist()
                answers |= {(number, text): self.drafts[text] for number in stays}
        left = [
            (number, text)
            for number in range(len(interventions))
            for text in range(len(self.prompts))
            if (number, text) not in answers
        ]
        if left:
            requests = [self._request(text, interventions[number]) for number, text in left]
            written = run_requests(self.model, requests, self.decoding, progress=progress, what=what)
            answers |= dict(zip(left, written, strict=True))
        special = sorted(self.model.special_ids)
        rows = [
            self._row(answers[number, text], text, special)
            for number in range(len(interventions))
            for text in range(len(self.prompts))
        ]
        table = torch.tensor(rows, dtype=torch.float64)
        return table.view(len(interventions), len(self.prompts), len(self.measures)).permute(2, 0, 1)

    def _row(self, answer: Continuation, text: int, special: Sequence[int]) -> list[float]:
        facts = outcome_of(
            answer.ids,
            len(self.prompts[text]),
            preset=self.how.preset,
            old=None if self.loops is None else self.loops[text],
            eos_id=answer.ids[-1] if answer.reason == "eos" else None,
            special_ids=special,
        )
        row = [facts["repeating"]]
        if self.loops is not None:
            row += [facts["escaped_at"] is not None, facts["escaped_at"], facts["relooped"], facts["new_period"]]
        return [float("nan") if value is None else float(value) for value in row]


def outcome_of(
    ids: Sequence[int],
    prompt_length: int,
    *,
    preset: str,
    old: OldLoop | None,
    eos_id: int | None = None,
    special_ids: Sequence[int] = (),
) -> dict[str, Any]:
    """Facts about one regenerated text.

    Args:
        ids: prompt and continuation.
        prompt_length: tokens of the prompt.
        preset: see :func:`mechrep.text.cycles.exact_loop`.
        old: the loop before; ``None`` for a text that had none.
        eos_id: end the text there (default detector).
        special_ids: no cycle on their own.

    Returns:
        ``repeating``; ``escaped_at`` (tokens after the onset, ``None`` while in the loop); ``relooped`` (in a loop that
        reaches beyond its escape, or was free before); ``new_period`` of that loop; ``new_tokens``.
    """
    cycle = exact_loop(ids, prompt_length, preset, eos_id=eos_id, special_ids=special_ids)
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


def unseen(corpus: Corpus, seen: Collection[str]) -> Corpus:
    """The texts on which nothing was searched.

    Raises:
        InputError: none is left.
    """
    mask = corpus.frame["id"].isin(set(seen))
    if mask.all():
        raise InputError(
            "a corpus of exactly the texts on which the components were found",
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


def loop_free_texts(model: Model, corpus: Corpus, length: int) -> Corpus:
    """The texts without an onset, nor a loop with a counter, of at least ``length`` tokens.

    Raises:
        NothingFoundError: there is none.
    """
    free = corpus.frame["onset"].isna().to_numpy() if "onset" in corpus.frame else True
    mask = (corpus.lengths.numpy() >= length) & free & without_counter(model, corpus)
    if not mask.any():
        raise NothingFoundError(
            f"{len(corpus)} texts, none of them loop-free and of {length} tokens or more",
            "loop-free texts to continue",
            "collect some with n_others=, or lower prompt_length",
        )
    return corpus.select(mask)
