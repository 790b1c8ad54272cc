"""``generate``: continue the texts of a corpus, greedily or by sampling, each row under its own intervention.

There are three decoders, tested to give the same tokens.  The fast one, over the plain view, computes every distinct
prefix once, keeps what the layers need of earlier tokens in the slots of a
:class:`~mechrep.generation.slot_cache.SlotCache`, lets finished rows leave and waiting ones enter, and edits each row
in its own way.  Where nothing can be kept, the whole text is read again for every token, on the plain view; the
reference does so on the TransformerLens view.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

from mechrep.errors import InputError
from mechrep.generation.direct_parts import next_step
from mechrep.generation.requests import Continuation as Continuation
from mechrep.generation.requests import Decoding as Decoding
from mechrep.generation.requests import Request as Request
from mechrep.generation.requests import check_requests, edits_of
from mechrep.generation.requests import choose_tokens as choose_tokens
from mechrep.generation.requests import push_next as push_next
from mechrep.generation.slot_cache import SlotCache, kept_by, prefill, why_not_kept
from mechrep.generation.slot_texts import SlotTexts
from mechrep.generation.whole_texts import decode_reference, write_whole
from mechrep.guards import Count, guarded, nearest, within
from mechrep.interventions.apply import first_edited
from mechrep.interventions.ops import Intervention
from mechrep.models.finite import no_number
from mechrep.models.memory import attempt, bytes_of_writing, fewer, rows_that_fit
from mechrep.models.model import Model
from mechrep.models.state import is_patched
from mechrep.progress import progress_bar
from mechrep.text.corpus import Corpus, CorpusLike

NEW_TOKENS = 200  # that are written where nothing is said
_USUAL = Decoding()
_TOKENS_PER_PREFILL = 4096
_STEPS = 4  # between two looks at what was written; what a text writes beyond its end in them is dropped
_SPARE_COLUMNS = 1.5  # room to move before the cache must be shifted, over the longest text


@torch.no_grad()
def decode(
    model: Model,
    requests: Sequence[Request],
    decoding: Decoding,
    *,
    batch_size: int = 256,
    progress: bool | None = None,
    what: str = "generating",
) -> list[Continuation]:
    """Continue every request on the plain view; answers in the order of the requests.

    Raises:
        InputError: requests that cannot be decoded, or a model that a ``PatchedModel`` is at work in.
    """

    check_requests(model, requests, decoding)
    if is_patched(model.plain):  # its rows would come and go unseen
        raise InputError(
            f"{model.name} inside a PatchedModel", "the model as it is", "remove the patch and pass interventions=patch"
        )
    answers = [Continuation(request, decoding, model.eos_ids) for request in requests]
    longest = max(len(one.prompt) + one.max_new_tokens for one in requests)
    per_row = bytes_of_writing(model.anatomy, longest, model.dtype.itemsize)
    size = rows_that_fit(model.device, per_row, min(batch_size, len(requests)))
    with progress_bar(len(requests), what, "text", progress) as bar:
        for upto, as_long in kept_spans(model):
            while some := [one for one in answers if one.reason is None and len(one.ids) <= upto]:
                slots = min(size, len(some))
                done = attempt(partial(_write_in_slots, model, some, slots, (upto, as_long), bar.update))
                size = size if done else fewer(slots, what)  # what is written by then stays
        left = [one for one in answers if one.reason is None]
        if left:
            write_whole(model, left, batch_size, bar.update)
    return answers


def _write_in_slots(
    model: Model,
    answers: Sequence[Continuation],
    slots: int,
    span: tuple[int, int | None],
    done: Callable[[int], object],
) -> None:
    run = _SlotRun(model, answers, slots, *span)
    with run.edits.applied():
        while run.busy:
            done(run.advance())


def kept_spans(model: Model) -> list[tuple[int, int | None]]:
    """Up to which lengths texts can go on from what is kept of their earlier tokens.

    Keys that were made with the angles of a short text are wrong in a long one, so a text that passes the switch of
    its model's positions is read anew there; and where every length has angles of its own nothing can be kept.

    Returns:
        For each span the longest text in it, and the length whose angles all of its texts have (``None``: positions do
        not depend on length).

    Example:
        >>> import mechrep
        >>> kept_spans(mechrep.load_model("mechrep-tiny"))[0][1] is None
        True
    """
    if why_not_kept(model):
        return []
    rule, n_ctx = model.lengths, model.anatomy.n_ctx
    if rule is None:
        return [(n_ctx, None)]
    spans: list[tuple[int, int | None]] = [(rule.switch, rule.switch), (n_ctx, n_ctx)]
    return spans[:1] if rule.every else spans


class _SlotRun:
    """Texts that go on from what the slots keep of them.

    Args:
        model: the model.
        answers: what is to be continued, none longer than ``upto``.
        slots: rows at a time.
        upto: texts that grow longer than this leave.
        as_long: the length whose angles they all have.
    """

    def __init__(
        self, model: Model, answers: Sequence[Continuation], slots: int, upto: int, as_long: int | None
    ) -> None:
        self.model, self.answers, self.upto, self.as_long = model, answers, upto, as_long
        self.decoding = answers[0].decoding
        self.edits = edits_of(model, answers)
        # Taken from the end, so longest prefixes first: later rows then always fit to the left of the current column.
        # Equal prefixes are neighbours, so that those entering together are computed once.
        self.prefixes = [answer.ids[: _prefix_length(answer)] for answer in answers]
        self.kinds = [self._kind(row) for row in range(len(answers))]
        self.waiting = sorted(range(len(answers)), key=lambda row: (len(self.prefixes[row]), *self.kinds[row]))
        longest = min(upto, max(len(one.request.prompt) + one.request.max_new_tokens for one in answers))
        capacity, kinds = max(int(longest * _SPARE_COLUMNS), longest + _STEPS), kept_by(model)
        self.cache = SlotCache(model.anatomy.n_layers, slots, capacity, model.device, kinds)
        self.texts = SlotTexts(slots, longest + _STEPS, self.decoding, model.device)
        self.rows: list[int | None] = [None] * slots  # which request each slot serves
        self.fed = [0] * slots  # tokens of each slot's text that have been read
        self.step = next_step(model, self.cache)

    @property
    def busy(self) -> bool:
        return bool(self.waiting) or any(row is not None for row in self.rows)

    def advance(self) -> int:
        """Some tokens for every row in a slot; returns how many texts ended."""
        self._refill()
        steps = self._steps()
        self.cache.make_room(steps)
        self.texts.begin_block(known=any(answer.length > fed + 1 for answer, fed in self._there()))
        settled = self._settled()
        if settled:
            self.edits.aim(self.texts.rows, self.texts.there[:, None])
        with self._angles(len(self.rows)):
            for _ in range(steps):
                self._step(settled)
        return self._take(steps)

    def _there(self) -> list[tuple[Continuation, int]]:
        """The texts in the slots, and how many tokens of each have been read."""
        return [(self.answers[row], fed) for row, fed in zip(self.rows, self.fed, strict=True) if row is not None]

    def _settled(self) -> bool:
        """Whether every row is edited by now, so that a step edits what the one before it did."""
        return not self.edits.held.layers and all(answer.request.start <= fed for answer, fed in self._there())

    def _steps(self) -> int:
        """So many that the longest text does not pass its span, and that not all have ended before."""
        there = self._there()
        room = self.upto - max(fed for _, fed in there)
        left = max(len(answer.request.prompt) + answer.request.max_new_tokens - 1 - fed for answer, fed in there)
        return min(_STEPS, room, left)

    def _step(self, settled: bool) -> None:
        """One token for every row; the device is asked for nothing."""
        texts = self.texts
        if not settled:
            edited, places = texts.there & (texts.next >= texts.starts), texts.next.where(texts.there, -1)
            self.edits.aim(texts.rows, edited[:, None], places[:, None])
        texts.write(self.step(self.cache, texts.feed(), texts.next))

    def _angles(self, rows: int) -> AbstractContextManager[None]:
        return nullcontext() if self.as_long is None else self.model.each_alone(torch.full((rows,), self.as_long))

    def _take(self, steps: int) -> int:
        """Record what was written, each text up to its end; texts that have ended leave."""
        ids, fired = self.texts.read(steps)
        ended, left = 0, []
        for slot, row in enumerate(self.rows):
            if row is None:
                continue
            answer = self.answers[row]
            known = max(0, answer.length - 1 - self.fed[slot])  # were there already
            until = ids[slot].index(-1) if -1 in ids[slot] else steps
            answer.extend(ids[slot][known:until], None if fired is None else fired[slot][known:until])
            if until < steps and answer.reason is None:
                raise no_number(self.model.name, self.model.dtype, "logits")
            self.fed[slot] += steps
            ended += answer.reason is not None
            if answer.reason is not None or answer.length > self.upto:
                left.append(slot)
        for slot in left:
            self.rows[slot] = None
        if left:
            self.cache.leave(left)
            self.texts.leave(left)
        return ended

    def _refill(self) -> None:
        """Let waiting rows into free slots, a good number at a time; else drop slots that stay empty."""
        free = [slot for slot, row in enumerate(self.rows) if row is None]
        if not free:
            return
        if self.waiting:
            if len(free) >= max(1, len(self.rows) // 8) or len(free) == len(self.rows):
                self._enter(free[: len(self.waiting)])
        elif len(free) > len(self.rows) // 8:
            kept = [slot for slot, row in enumerate(self.rows) if row is not None]
            self.cache.keep(kept)
            self.texts.keep(kept)
            self.rows, self.fed = [self.rows[slot] for slot in kept], [self.fed[slot] for slot in kept]

    def _enter(self, slots: list[int]) -> None:
        places = [(slot, self.waiting.pop()) for slot in slots]
        together: dict[int, list[tuple[int, int]]] = {}
        for slot, row in places:  # a state is what the last token left: only texts of one length are read together
            together.setdefault(len(self.prefixes[row]) if self.cache.states else 0, []).append((slot, row))
        for some in together.values():
            for part in _split_by_prefix(some, self.kinds):
                self._read_prefixes(part)
        for slot, row in places:
            self.rows[slot], self.fed[slot] = row, len(self.prefixes[row])
        rows = [row for _, row in places]
        self.texts.enter(slots, rows, [self.answers[row] for row in rows], [self.fed[slot] for slot in slots])

    def _kind(self, row: int) -> _Kind:
        """Rows that agree in this have equal prefixes under equal edits."""
        prefix, start = tuple(self.prefixes[row]), self.answers[row].request.start
        edited = self.edits.changes(row) and start < len(prefix)
        alone = row if self.edits.holds(row) else -1  # its own level is caught while its prefix is read
        return prefix, int(self.edits.conditions[row]) if edited else 0, start if edited else 0, alone

    def _touched(self, row: int) -> bool:
        """Whether something is edited or caught while the row's prefix is read."""
        _, condition, _, alone = self.kinds[row]
        return condition > 0 or alone >= 0

    def _read_prefixes(self, places: Sequence[tuple[int, int]]) -> None:
        """Read what stands before the last token of some rows, each under its edits, and lay it into their slots."""
        distinct: dict[_Kind, int] = {}
        readers: list[int] = []
        for _, row in places:
            if self.prefixes[row] and self.kinds[row] not in distinct:
                distinct[self.kinds[row]] = len(readers)
                readers.append(row)
        computed = None
        if readers:
            device, longest = self.model.device, max(len(self.prefixes[row]) for row in readers)
            lengths, starts = (
                torch.tensor(numbers, device=device)[:, None]
                for numbers in (
                    [len(self.prefixes[row]) for row in readers],
                    [self.answers[row].request.start for row in readers],
                )
            )
            positions = torch.arange(longest, device=device)[None]
            inside = positions < lengths
            self.edits.rest()
            if any(self._touched(row) for row in readers):
                self.edits.aim(
                    torch.tensor(readers, device=device), inside & (positions >= starts), positions.where(inside, -1)
                )
            with self._angles(len(readers)):
                computed = prefill(self.model, [self.prefixes[row] for row in readers])
        numbers = [distinct.get(self.kinds[row], 0) for _, row in places]
        self.cache.enter(
            [slot for slot, _ in places], computed, numbers, [len(self.prefixes[row]) for _, row in places]
        )


def _prefix_length(answer: Continuation) -> int:
    """Tokens that are read in one go: all but the last; or, where most of them stand before the edit, these alone.

    What stands before every edit is shared by all rows that have it, and a few edited tokens more are soon fed one by
    one; what is edited must be read for every row.
    """
    last, request = answer.length - 1, answer.request
    start = last if request.intervention is None else min(last, max(0, request.start))
    return last if last - start > start else start


_Kind = tuple[tuple[int, ...], int, int, int]


def _split_by_prefix(places: Sequence[tuple[int, int]], kinds: Sequence[_Kind]) -> Iterator[list[tuple[int, int]]]:
    """Slots and rows, in parts whose different prefixes make no larger a pass than memory is counted on for."""
    part: list[tuple[int, int]] = []
    seen: set[_Kind] = set()
    longest = 0
    for slot, row in places:
        longer = max(longest, len(kinds[row][0]))
        if part and len(seen | {kinds[row]}) * longer > _TOKENS_PER_PREFILL:
            yield part
            part, seen, longer = [], set(), len(kinds[row][0])
        part.append((slot, row))
        seen.add(kinds[row])
        longest = longer
    if part:
        yield part


@guarded
def generate(
    model: Model,
    corpus: CorpusLike,
    *,
    max_new_tokens: Count = NEW_TOKENS,
    decoding: Decoding | None = None,
    interventions: Intervention | Sequence[Intervention | None] | None = None,
    starts: Sequence[int] | None = None,
    batch_size: Count = 256,
    progress: bool | None = None,
    **fields: Any,
) -> Corpus:
    """Continue every text of ``corpus`` and return prompts and continuations as a new corpus.

    Decoding is batched over a key-value cache; rows that end make room for rows that wait; a prefix shared by several
    rows is computed once; each row has its own intervention and its own first edited position.  An edit is active
    from its start *in the text*, at every forward pass, so the result does not depend on batch or cache.

    Args:
        model: the model.
        corpus: the prompts, or what :meth:`mechrep.Corpus.of` makes some of; the whole of each text is its prompt.
        max_new_tokens: continue by at most so many tokens.
        decoding: when a text ends, how tokens are chosen, which view writes; by default greedy, up to EOS.
        interventions: one for all rows, or one (or ``None``) per row.
        starts: first edited position per row.  Default, by the intervention's ``when``: 0 for ``"all"``, the prompt's
            last position for ``"last"``, ``onset - 1`` from the frame for ``"from_onset"``, and for ``"auto"`` that
            where the text has an onset and else 0.
        batch_size: rows computed together at most; fewer where they do not fit the memory that is free.
        progress: show a progress bar; by default to people only.
        **fields: those of :class:`Decoding`, in place of ``decoding``: ``temperature=1.0, stop_when=None``.

    Returns:
        A corpus with the same frame, ``prompt_length`` set to the length of the prompt, and ``stop_reason``
        (``"eos"``, ``"stopped"`` by a rule, ``"length"``).

    Raises:
        InputError: a corpus made with another tokenizer, what is no corpus, prompts that do not leave room in the
            context, a number of interventions or starts that is not the number of rows, an onset that is missing, an
            unknown field, fields beside ``decoding``.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["And the king said"], model=model)
        >>> longer = mechrep.generate(model, corpus, max_new_tokens=8)
        >>> len(longer.row(0)) - len(corpus.row(0)), int(longer.frame["prompt_length"][0]) == len(corpus.row(0))
        (8, True)
        >>> mechrep.generate(model, corpus, max_new_tokens=8, temperature=1.0, seed=1).row(0) == longer.row(0)
        False
    """
    rules = decoding_of(decoding, fields)
    corpus = Corpus.of(corpus, model)
    corpus.check_model(model)
    requests = make_requests(corpus, max_new_tokens, interventions, starts)
    answers = run_requests(model, requests, rules, batch_size=batch_size, progress=progress)
    return answers_to_corpus(model, corpus, answers)


def decoding_of(decoding: Decoding | None, fields: Mapping[str, Any]) -> Decoding:
    """How texts are continued, given whole or field by field.

    Raises:
        InputError: both, or a field that does not exist.

    Example:
        >>> decoding_of(None, {"temperature": 0.7}).temperature
        0.7
    """
    known = [one.name for one in dataclasses.fields(Decoding)]
    for name in set(fields) - set(known):
        expected = f"an option of generate, or one of {', '.join(known)}"
        raise InputError(f"{name}={fields[name]!r:.40}", expected, nearest(name, known))
    if decoding is not None and fields:
        raise InputError(f"decoding= and {', '.join(fields)} beside it", "one of the two", "use Decoding(...) for all")
    return Decoding(**fields) if decoding is None else decoding


def run_requests(
    model: Model,
    requests: Sequence[Request],
    decoding: Decoding = _USUAL,
    *,
    batch_size: int = 256,
    progress: bool | None = None,
    what: str = "generating",
) -> list[Continuation]:
    """Decode requests on the fast view where there is one (``"auto"``), or on the view asked for."""

    if decoding.view == "plain" and not model.fast:
        raise InputError(f"view='plain' for {model.name}", "a model with a plain view", "use view='auto'")
    if not model.fast or decoding.view == "transformer_lens":
        return decode_reference(model, requests, decoding, batch_size=min(batch_size, 64), progress=progress)
    return decode(model, requests, decoding, batch_size=batch_size, progress=progress, what=what)


def make_requests(
    corpus: Corpus,
    max_new_tokens: int,
    interventions: Intervention | Sequence[Intervention | None] | None,
    starts: Sequence[int] | None,
) -> list[Request]:
    """One request per text, with the default start of its intervention where none is given."""
    per_row = [interventions] * len(corpus) if not isinstance(interventions, Sequence) else list(interventions)
    for name, values in (("interventions", per_row), ("starts", starts)):
        if values is not None and len(values) != len(corpus):
            raise InputError(f"{len(values)} {name} for {len(corpus)} texts", "one per text", "repeat or drop some")
    lengths = corpus.lengths.tolist()
    if starts is None:
        begins = first_edited(corpus.frame, lengths, per_row)
    else:
        begins = [within("starts:", place, 0, length + max_new_tokens - 1, "a position of a text")
                  for place, length in zip(starts, lengths, strict=True)]  # fmt: skip
    requests = []
    for number, intervention in enumerate(per_row):
        prompt = tuple(corpus.row(number))
        requests.append(Request(prompt, max_new_tokens, intervention, int(begins[number]), number))
    return requests


def answers_to_corpus(model: Model, corpus: Corpus, answers: Sequence[Continuation]) -> Corpus:
    """Prompts with their continuations; facts about cycles are dropped, because the text is another one now."""
    stale = [c for c in ("start", "onset", "period", "copies") if c in corpus.frame]
    frame = corpus.frame.drop(columns=stale).assign(
        prompt_length=[len(answer.request.prompt) for answer in answers],
        stop_reason=[answer.reason for answer in answers],
    )
    return Corpus.from_tokens(
        [a.ids for a in answers], model=model, attention_mask=True, frame=frame, bos_policy=corpus.bos_policy
    )
