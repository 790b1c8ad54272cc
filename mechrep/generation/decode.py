"""``generate``: continue the texts of a corpus, greedily or by sampling, each row under its own intervention.

There are two decoders, tested to give the same tokens.  The fast one, over the plain view, computes every distinct
prefix once, keeps a key-value cache of slots, lets finished rows leave and waiting ones enter, and edits each row in
its own way.  The reference one, over the TransformerLens view, recomputes the whole text for every token.

The cache (:class:`SlotCache`) has a fixed number of slots over one preallocated buffer.  All rows write their newest
token into the same column, so one decoding step is one ordinary forward pass.  A row that enters late is laid to the
*left* of the current column; the columns before its first token are masked.  Nothing is ever concatenated: a step
writes one column, and attention reads a view.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrep.errors import InputError
from mechrep.generation.patched_model import is_patched
from mechrep.generation.slot_cache import SlotCache
from mechrep.interventions.apply import EditTable
from mechrep.interventions.ops import Intervention
from mechrep.models.model import Model
from mechrep.progress import progress_bar
from mechrep.text.corpus import Corpus, CorpusLike
from mechrep.text.watch import watch_for

StopReason = Literal["eos", "stopped", "length"]
StopRule = str | Callable[[list[int]], bool]


class Watch(Protocol):
    """Looks at one text as it grows; says when to stop."""

    def push(self, token: int) -> bool:
        """Take the next token; true once the text may end here."""
        ...


@dataclass(frozen=True)
class Request:
    """One text to continue.

    Attributes:
        prompt: ids of the text so far; at least one.
        max_new_tokens: continue by at most so many tokens.
        intervention: what to change while continuing, or ``None``.
        start: first edited position.
        text: number of the text; decides its random stream and its resampled values, whatever batch it is in.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    intervention: Intervention | None = None
    start: int = 0
    text: int = 0


@dataclass(frozen=True)
class Decoding:
    """How texts are continued: when one ends, how the next token is chosen, and by which decoder.

    Attributes:
        stop_when: ``"eos"``; the name of a detector preset (``"hiraoka2025"``, ``"mechrep"``), which stops a text
            when the detector has fired on prompt and continuation; a function of the ids so far; or several of these.
            ``None`` always continues to the end.
        temperature: 0 is greedy; sampling gives the same text whatever batch it is in.
        top_k: sample among so many most probable tokens (all by default).
        seed: of the sampling.
        suppress: ids that are never produced.
        view: ``"plain"`` (fast), ``"transformer_lens"`` (the reference: every token recomputes the text), or
            ``"auto"``: the fast one where the model has it.

    Raises:
        InputError: a temperature, a number of tokens, a preset or a view that does not exist.

    Example:
        >>> Decoding(temperature=0.7, top_k=20).stop_when
        'eos'
        >>> Decoding(top_k=0)
        Traceback (most recent call last):
        mechrep.errors.InputError: given: temperature=0.0, top_k=0; ...
    """

    stop_when: StopRule | Sequence[StopRule] | None = "eos"
    temperature: float = 0.0
    top_k: int | None = None
    seed: int = 0
    suppress: Sequence[int] = ()
    view: Literal["auto", "plain", "transformer_lens"] = "auto"

    def __post_init__(self) -> None:
        if not self.temperature >= 0 or (self.top_k is not None and self.top_k < 1):
            raise InputError(
                f"temperature={self.temperature}, top_k={self.top_k}", "temperature >= 0, top_k >= 1", "correct them"
            )
        if self.view not in ("auto", "plain", "transformer_lens"):
            raise InputError(f"view={self.view!r}", "'auto', 'plain' or 'transformer_lens'", "choose one")
        for rule in self.rules:
            if isinstance(rule, str) and rule != "eos":
                watch_for(rule)  # refuses an unknown preset before any work is done

    @property
    def rules(self) -> tuple[StopRule, ...]:
        """The rules that end a text, one by one."""
        given = self.stop_when
        if given is None:
            return ()
        return (given,) if isinstance(given, str) or callable(given) else tuple(given)

    @property
    def stops_at_eos(self) -> bool:
        """Whether an end-of-text id ends a text."""
        return "eos" in self.rules

    def uniforms(self, request: Request) -> Float[np.ndarray, " step"]:
        """The text's own random numbers, one per step: the same in any batch."""
        return np.random.default_rng([self.seed, request.text]).random(request.max_new_tokens)


@dataclass
class Continuation:
    """A request being answered: the ids added so far and why it ended, if it has."""

    request: Request
    decoding: Decoding
    eos_ids: frozenset[int]
    tokens: list[int] = field(default_factory=list)
    reason: StopReason | None = None

    def __post_init__(self) -> None:
        detectors = [rule for rule in self.decoding.rules if isinstance(rule, str) and rule != "eos"]
        self._watches: list[Watch] = [watch_for(rule)(self.request.prompt) for rule in detectors]
        self._functions = [rule for rule in self.decoding.rules if not isinstance(rule, str)]

    @property
    def ids(self) -> list[int]:
        """Prompt and continuation."""
        return [*self.request.prompt, *self.tokens]

    def push(self, token: int) -> None:
        """Take one more token and see whether the text ends with it."""
        self.tokens.append(token)
        fired = [watch.push(token) for watch in self._watches]
        if self.decoding.stops_at_eos and token in self.eos_ids:
            self.reason = "eos"
        elif any(fired) or any(function(self.ids) for function in self._functions):
            self.reason = "stopped"
        elif len(self.tokens) >= self.request.max_new_tokens:
            self.reason = "length"


def check_requests(model: Model, requests: Sequence[Request], decoding: Decoding) -> None:
    """Refuse what cannot be decoded, before anything is computed.

    Raises:
        InputError: no request, an empty prompt, ids the model does not have, no new token, more positions than its
            context, or nothing left to choose from.
    """
    suppressed = set(decoding.suppress)
    if not suppressed < set(range(model.anatomy.d_vocab)):
        raise InputError(
            f"suppress={sorted(suppressed)[:5]}...",
            f"some, not all, of the ids 0..{model.anatomy.d_vocab - 1}",
            "drop the others",
        )
    if not requests:
        raise InputError("no prompts", "at least one", "pass a corpus with texts")
    for number, request in enumerate(requests):
        if not request.prompt:
            raise InputError(f"prompt {number}, which is empty", "at least one token", "begin it with BOS")
        if not 0 <= min(request.prompt) <= max(request.prompt) < model.anatomy.d_vocab:
            raise InputError(
                f"prompt {number} with ids outside 0..{model.anatomy.d_vocab - 1}",
                "ids of this model",
                "encode it again",
            )
        if request.max_new_tokens < 1:
            raise InputError(f"max_new_tokens={request.max_new_tokens}", "at least 1", "ask for more")
        if len(request.prompt) + request.max_new_tokens > model.anatomy.n_ctx:
            raise InputError(
                f"prompt {number} of {len(request.prompt)} tokens and {request.max_new_tokens} new ones",
                f"at most {model.anatomy.n_ctx} positions",
                "shorten the prompt or lower max_new_tokens",
            )


def choose_tokens(
    logits: Float[Tensor, "batch d_vocab"], uniforms: Float[Tensor, " batch"], temperature: float, top_k: int | None
) -> Int[Tensor, " batch"]:
    """Next ids: the most probable one, or by inverting the cumulative distribution at ``uniforms``.

    Args:
        logits: scores of the next token.
        uniforms: one number in [0, 1) per row; not used when greedy.
        temperature: 0 is greedy; else the logits are divided by it.
        top_k: keep only so many most probable tokens.

    Example:
        >>> import torch
        >>> choose_tokens(torch.tensor([[0.0, 5.0, 1.0]]), torch.tensor([0.5]), 0.0, None)
        tensor([1])
    """
    if temperature == 0:
        return logits.argmax(-1)
    count = logits.shape[-1] if top_k is None else min(top_k, logits.shape[-1])
    best, ids = logits.double().topk(count, dim=-1)
    cumulative = (best / temperature).softmax(-1).cumsum(-1)
    picked = (cumulative <= uniforms.double()[:, None] * cumulative[:, -1:]).sum(-1).clamp_max(count - 1)
    return ids.gather(-1, picked[:, None]).squeeze(-1)


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
    with progress_bar(len(requests), what, "text", progress) as bar:
        run = _SlotRun(model, requests, decoding, min(batch_size, len(requests)))
        with run.edits.applied():
            while run.busy:
                bar.update(run.step())
    return run.answers


class _SlotRun:
    """The state of one call of :func:`decode`."""

    def __init__(self, model: Model, requests: Sequence[Request], decoding: Decoding, slots: int) -> None:
        self.model, self.decoding = model, decoding
        self.answers = [Continuation(request, decoding, model.eos_ids) for request in requests]
        self.edits = EditTable(
            model,
            [request.intervention for request in requests],
            [request.text for request in requests],
            first_tokens=[request.prompt[0] for request in requests],
            starts=[request.start for request in requests],
        )
        self.uniforms = [decoding.uniforms(request) for request in requests] if decoding.temperature > 0 else None
        # Taken from the end, so longest prefixes first: later rows then always fit to the left of the current column.
        # Equal prefixes are neighbours, so that those entering together are computed once.
        self.prefix_lengths = [
            min(_prefix_length(request), self.edits.caught_at(row)) for row, request in enumerate(requests)
        ]
        self.waiting = sorted(
            range(len(requests)), key=lambda i: (self.prefix_lengths[i], requests[i].prompt[: self.prefix_lengths[i]])
        )
        longest = max(len(r.prompt) + r.max_new_tokens for r in requests)
        self.cache = SlotCache(model.anatomy.n_layers, slots, int(longest * _SPARE_COLUMNS), model.device)
        self.rows: list[int | None] = [None] * slots  # which request each slot serves
        parameters = inspect.signature(model.plain.forward).parameters if model.plain is not None else {}
        self.takes_positions = "position_ids" in parameters

    @property
    def busy(self) -> bool:
        return bool(self.waiting) or any(row is not None for row in self.rows)

    def step(self) -> int:
        """One token for every row in a slot; returns how many texts ended."""
        self._refill()
        mask = self.cache.before_step()
        tokens, positions = self._inputs()
        rows = torch.tensor([0 if row is None else row for row in self.rows], device=self.model.device)
        edited = torch.tensor(
            [row is not None and positions[i] >= self.answers[row].request.start for i, row in enumerate(self.rows)]
        )
        places = [-1 if row is None else position for row, position in zip(self.rows, positions, strict=True)]
        self.edits.aim(
            rows, edited.to(self.model.device)[:, None], torch.tensor(places, device=self.model.device)[:, None]
        )
        options: dict[str, Any] = {}
        if self.takes_positions:
            options["position_ids"] = torch.tensor(positions, device=self.model.device)[:, None]
        assert self.model.plain is not None
        logits = self.model.plain(
            input_ids=torch.tensor(tokens, device=self.model.device)[:, None],
            attention_mask=mask.long(),
            past_key_values=self.cache.hf,
            use_cache=True,
            **options,
        ).logits[:, -1]
        self.cache.after_step()
        return self._take(logits, positions)

    def _inputs(self) -> tuple[list[int], list[int]]:
        """The token that each slot feeds now, and its position."""
        tokens, positions = [], []
        for row, start in zip(self.rows, self.cache.starts.tolist(), strict=True):
            position = 0 if row is None else self.cache.column - start
            tokens.append(0 if row is None else self._token_at(row, position))
            positions.append(position)
        return tokens, positions

    def _token_at(self, row: int, position: int) -> int:
        prompt = self.answers[row].request.prompt
        return prompt[position] if position < len(prompt) else self.answers[row].tokens[position - len(prompt)]

    def _take(self, logits: Tensor, positions: list[int]) -> int:
        """Choose and record next tokens for the rows whose prompt is used up."""
        if self.decoding.suppress:
            logits[:, list(self.decoding.suppress)] = -torch.inf
        uniforms = torch.zeros(len(self.rows), dtype=torch.float64)
        ready = []
        for slot, row in enumerate(self.rows):
            if row is not None and positions[slot] >= len(self.answers[row].request.prompt) - 1:
                ready.append((slot, row))
                if self.uniforms is not None:
                    uniforms[slot] = float(self.uniforms[row][len(self.answers[row].tokens)])
        chosen = choose_tokens(
            logits, uniforms.to(logits.device), self.decoding.temperature, self.decoding.top_k
        ).tolist()
        ended = []
        for slot, row in ready:
            self.answers[row].push(chosen[slot])
            if self.answers[row].reason is not None:
                ended.append(slot)
                self.rows[slot] = None
        self.cache.leave(ended)
        return len(ended)

    def _refill(self) -> None:
        """Let waiting rows into free slots, a good number at a time; else drop slots that stay empty."""
        free = [slot for slot, row in enumerate(self.rows) if row is None]
        if not free:
            return
        if self.waiting:
            if len(free) >= max(1, len(self.rows) // 8) or len(free) == len(self.rows):
                self._enter(free[: len(self.waiting)])
        elif len(free) > len(self.rows) // 2:
            kept = [slot for slot, row in enumerate(self.rows) if row is not None]
            self.cache.keep(kept)
            self.rows = [self.rows[slot] for slot in kept]

    def _enter(self, slots: list[int]) -> None:
        entering = [self.waiting.pop() for _ in slots]
        lengths = [self.prefix_lengths[row] for row in entering]
        prefixes = [self.answers[row].request.prompt[:length] for row, length in zip(entering, lengths, strict=True)]
        distinct = {prefix: number for number, prefix in enumerate(dict.fromkeys(p for p in prefixes if p))}
        self.edits.rest()
        computed = _prefill(self.model, list(distinct)) if distinct else None
        self.cache.enter(slots, computed, [distinct.get(prefix, 0) for prefix in prefixes], lengths)
        for slot, row in zip(slots, entering, strict=True):
            self.rows[slot] = row


def _prefix_length(request: Request) -> int:
    """Tokens that no edit touches and that are not the prompt's last: they can be computed in one go, and shared."""
    last = len(request.prompt) - 1
    return last if request.intervention is None else min(last, max(0, request.start))


def _prefill(model: Model, prefixes: Sequence[tuple[int, ...]]) -> Any:
    """Keys and values of right-padded prefixes; causal attention keeps the padding out of what is read later."""
    from transformers import DynamicCache

    assert model.plain is not None
    tokens = torch.zeros(len(prefixes), max(map(len, prefixes)), dtype=torch.long)
    for row, prefix in enumerate(prefixes):
        tokens[row, : len(prefix)] = torch.tensor(prefix)
    cache = DynamicCache()  # without a configuration: sliding layers then keep all their columns
    model.plain(input_ids=tokens.to(model.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


@torch.no_grad()
def decode_reference(
    model: Model,
    requests: Sequence[Request],
    decoding: Decoding,
    *,
    batch_size: int = 32,
    progress: bool | None = None,
    view: str = "transformer_lens",
) -> list[Continuation]:
    """Continue every request, recomputing the whole text for every token.

    Args:
        model: the model.
        requests: what to continue.
        decoding: the rules.
        batch_size: rows computed together.
        progress: show a progress bar.
        view: ``"transformer_lens"`` or ``"plain"``.
    """
    check_requests(model, requests, decoding)
    answers = [Continuation(request, decoding, model.eos_ids) for request in requests]
    with progress_bar(len(requests), "generating (reference)", "text", progress) as bar:
        for answer_batch in _batches_of_one_intervention(answers, batch_size):
            while live := [answer for answer in answer_batch if answer.reason is None]:
                _reference_step(model, live, decoding, view)
            bar.update(len(answer_batch))
    return answers


def _batches_of_one_intervention(answers: Sequence[Continuation], size: int) -> list[list[Continuation]]:
    groups: dict[int, list[Continuation]] = {}
    for answer in answers:
        groups.setdefault(id(answer.request.intervention), []).append(answer)
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]


def _reference_step(model: Model, live: list[Continuation], decoding: Decoding, view: str) -> None:
    texts = [answer.ids for answer in live]
    lengths = torch.tensor([len(ids) for ids in texts])
    tokens: Int[Tensor, "batch pos"] = torch.zeros(len(texts), int(lengths.max()), dtype=torch.long)
    for row, ids in enumerate(texts):
        tokens[row, : len(ids)] = torch.tensor(ids)
    logits = _reference_logits(model, tokens.to(model.device), live, view)
    last = logits[torch.arange(len(texts)), (lengths - 1).to(logits.device)]
    if decoding.suppress:
        last[:, list(decoding.suppress)] = -torch.inf
    uniforms = torch.tensor([float(decoding.uniforms(a.request)[len(a.tokens)]) for a in live], dtype=torch.float64)
    chosen = choose_tokens(last, uniforms.to(last.device), decoding.temperature, decoding.top_k)
    for answer, token in zip(live, chosen.tolist(), strict=True):
        answer.push(token)


def _reference_logits(
    model: Model, tokens: Int[Tensor, "batch pos"], live: list[Continuation], view: str
) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits of whole texts, each under its request's intervention."""
    requests = [answer.request for answer in live]
    starts, texts = torch.tensor([one.start for one in requests]), [one.text for one in requests]
    if view == "transformer_lens":
        intervention = requests[0].intervention
        hooks = [] if intervention is None else intervention.hooks(model, starts, texts=texts)
        return model.run_with_hooks(tokens, fwd_hooks=hooks)
    edits = EditTable(
        model, [one.intervention for one in requests], texts, first_tokens=tokens[:, 0].tolist(), starts=starts.tolist()
    )
    rows, positions = torch.arange(len(tokens), device=tokens.device), torch.arange(tokens.shape[1])
    positions = positions.to(tokens.device)[None].expand(len(tokens), -1)
    edits.aim(rows, positions >= starts.to(tokens.device)[:, None], positions)
    with edits.applied():
        return model.plain_logits(tokens)


def keeps_states(model: Model) -> bool:
    """Whether some layers of the plain view carry a state from token to token (Mamba, gated delta nets, convolutions).

    A state has no columns: rows of a batch cannot come and go in it as in keys and values, so that such models compute
    whole texts for every token.

    Example:
        >>> import mechrep
        >>> keeps_states(mechrep.load_model("mechrep-tiny"))
        False
    """
    from transformers import DynamicCache

    config = getattr(model.plain, "config", None)
    return config is not None and any("Linear" in type(one).__name__ for one in DynamicCache(config=config).layers)


def generate(
    model: Model,
    corpus: CorpusLike,
    *,
    max_new_tokens: int,
    decoding: Decoding | None = None,
    interventions: Intervention | Sequence[Intervention | None] | None = None,
    starts: Sequence[int] | None = None,
    batch_size: int = 256,
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
            last position for ``"last"``, ``onset - 1`` from the frame for ``"from_onset"``.
        batch_size: rows computed together.
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
        near = difflib.get_close_matches(name, known, n=1)
        remedy = f"did you mean {near[0]}?" if near else "leave it out; temperature=0 is greedy, 1 samples"
        raise InputError(f"{name}={fields[name]!r:.40}", f"an option of generate, or one of {', '.join(known)}", remedy)
    if decoding is not None and fields:
        raise InputError(f"decoding= and {', '.join(fields)} beside it", "one of the two", "use Decoding(...) for all")
    return Decoding(**fields) if decoding is None else decoding


def run_requests(
    model: Model,
    requests: Sequence[Request],
    decoding: Decoding = Decoding(),
    *,
    batch_size: int = 256,
    progress: bool | None = None,
    what: str = "generating",
) -> list[Continuation]:
    """Decode requests on the fast view where there is one (``"auto"``), or on the view asked for."""
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}", "at least 1 row", "correct it")
    if decoding.view == "plain" and not model.fast:
        raise InputError(f"view='plain' for {model.name}", "a model with a plain view", "use view='auto'")
    if not model.fast or decoding.view == "transformer_lens":
        return decode_reference(model, requests, decoding, batch_size=min(batch_size, 64), progress=progress)
    if keeps_states(model):
        return decode_reference(model, requests, decoding, batch_size=batch_size, progress=progress, view="plain")
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
    requests = []
    for number, intervention in enumerate(per_row):
        prompt = tuple(corpus.row(number))
        start = starts[number] if starts is not None else default_start(corpus.frame, number, len(prompt), intervention)
        requests.append(Request(prompt, max_new_tokens, intervention, int(start), number))
    return requests


def default_start(frame: pd.DataFrame, number: int, prompt_length: int, intervention: Intervention | None) -> int:
    """First edited position of a row, by the intervention's ``when``.

    Raises:
        InputError: ``"from_onset"`` for a text without an onset.
    """
    if intervention is None or intervention.when == "all":
        return 0
    if intervention.when == "last":
        return prompt_length - 1
    onset = frame["onset"].iloc[number] if "onset" in frame else None
    if onset is None or pd.isna(onset):
        raise InputError(
            f"when='from_onset' for text {frame['id'].iloc[number]!r}, which has no onset",
            "texts in which a cycle was found",
            "call corpus.with_cycles(), use when='last', or pass starts=",
        )
    return max(0, int(onset) - 1)


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
