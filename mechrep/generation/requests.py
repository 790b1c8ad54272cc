"""What is asked of a decoder, and the text that it makes: requests, rules, continuations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechrep.errors import InputError
from mechrep.guards import Count, NotNegative, Seed, check_fields
from mechrep.interventions.apply import EditTable
from mechrep.interventions.ops import Intervention
from mechrep.models.finite import no_number
from mechrep.models.model import Model
from mechrep.text.watch import watch_for

StopReason = Literal["eos", "stopped", "length"]


@runtime_checkable
class Watch(Protocol):
    """Looks at one text as it grows; says when to stop."""

    def push(self, token: int) -> bool:
        """Take the next token; true once the text may end here."""
        ...


@runtime_checkable
class WatchMaker(Protocol):
    """A rule that remembers: it gives every text a watch of its own."""

    def watch(self, prompt: Sequence[int]) -> Watch:
        """A watch over the text that begins so."""
        ...


StopRule = str | WatchMaker | Callable[[list[int]], bool]


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
            when the detector has fired on prompt and continuation; a function of the ids so far; a
            :class:`WatchMaker`; or several of these.
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
        >>> Decoding(top_k=20)
        Traceback (most recent call last):
        mechrep.errors.InputError: given: top_k=20 with temperature=0; ...
    """

    stop_when: StopRule | Sequence[StopRule] | None = "eos"
    temperature: NotNegative = 0.0
    top_k: Count | None = None
    seed: Seed = 0
    suppress: Sequence[int] = ()
    view: Literal["auto", "plain", "transformer_lens"] = "auto"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.top_k is not None and self.temperature == 0:
            raise InputError(
                f"top_k={self.top_k} with temperature=0", "a temperature above 0, to sample", "set it, or drop top_k"
            )
        for rule in self.rules:
            if isinstance(rule, str) and rule != "eos":
                watch_for(rule)  # refuses an unknown preset before any work is done

    @property
    def rules(self) -> tuple[StopRule, ...]:
        """The rules that end a text, one by one."""
        given = self.stop_when
        if given is None:
            return ()
        return (given,) if isinstance(given, str | WatchMaker) or callable(given) else tuple(given)

    @functools.cached_property
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
        self._functions = [rule for rule in self.decoding.rules if not isinstance(rule, str | WatchMaker)]

    @functools.cached_property
    def uniforms(self) -> Float[np.ndarray, " step"]:
        """The random numbers that decide its tokens, one by one; nothing where none is drawn."""
        return self.decoding.uniforms(self.request) if self.decoding.temperature > 0 else np.empty(0)

    @functools.cached_property
    def _watches(self) -> list[Watch]:
        """Made when the first token is looked at: many texts are watched all at once instead."""
        prompt, rules = self.request.prompt, self.decoding.rules
        watches: list[Watch] = [watch_for(rule)(prompt) for rule in rules if isinstance(rule, str) and rule != "eos"]
        watches += [rule.watch(prompt) for rule in rules if isinstance(rule, WatchMaker)]
        for token in self.tokens:
            for watch in watches:
                watch.push(token)
        return watches

    @property
    def ids(self) -> list[int]:
        """Prompt and continuation."""
        return [*self.request.prompt, *self.tokens]

    @property
    def length(self) -> int:
        """Tokens of prompt and continuation."""
        return len(self.request.prompt) + len(self.tokens)

    def token_at(self, position: int) -> int:
        """One of them."""
        prompt = self.request.prompt
        return prompt[position] if position < len(prompt) else self.tokens[position - len(prompt)]

    def uniform(self) -> float:
        """The random number that decides the next token."""
        return float(self.uniforms[len(self.tokens)]) if self.decoding.temperature > 0 else 0.0

    def push(self, token: int) -> None:
        """Take one more token and see whether the text ends with it."""
        watches = self._watches
        self.tokens.append(token)
        fired = [watch.push(token) for watch in watches]
        self._end(any(fired), self._functions)

    def extend(self, tokens: Sequence[int], fired: Sequence[int] | None = None) -> None:
        """Take tokens up to the one with which the text ends; what was written beyond is dropped.

        Args:
            tokens: the next ones.
            fired: 1 for each with which the text may end by a rule, else 0; by default its rules are asked.
        """
        for place, token in enumerate(tokens):
            if fired is None:
                self.push(token)
            else:
                self.tokens.append(token)
                self._end(bool(fired[place]), ())
            if self.reason is not None:
                return

    def _end(self, fired: bool, functions: Sequence[Callable[[list[int]], bool]]) -> None:
        if self.decoding.stops_at_eos and self.tokens[-1] in self.eos_ids:
            self.reason = "eos"
        elif fired or any(function(self.ids) for function in functions):
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
        if len(request.prompt) + request.max_new_tokens > model.anatomy.n_ctx:
            raise InputError(
                f"prompt {number} of {len(request.prompt)} tokens and {request.max_new_tokens} new ones",
                f"at most {model.anatomy.n_ctx} positions",
                "shorten the prompt or lower max_new_tokens",
            )


def choose_tokens(
    logits: Float[Tensor, "batch d_vocab"], uniforms: Float[Tensor, " batch"], temperature: float, top_k: int | None
) -> tuple[Int[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Next ids and their logits: the most probable one, or by inverting the cumulative distribution at ``uniforms``.

    Args:
        logits: scores of the next token.
        uniforms: one number in [0, 1) per row; not used when greedy.
        temperature: 0 is greedy; else the logits are divided by it.
        top_k: keep only so many most probable tokens.

    Example:
        >>> import torch
        >>> choose_tokens(torch.tensor([[0.0, 5.0, 1.0]]), torch.tensor([0.5]), 0.0, None)
        (tensor([1]), tensor([5.]))
    """
    if temperature == 0:
        best, ids = logits.max(-1)  # the first of equal ones, as argmax gives, in half of its time
        return ids, best
    count = logits.shape[-1] if top_k is None else min(top_k, logits.shape[-1])
    best, ids = logits.double().topk(count, dim=-1)
    cumulative = (best / temperature).softmax(-1).cumsum(-1)
    picked = (cumulative <= uniforms.double()[:, None] * cumulative[:, -1:]).sum(-1).clamp_max(count - 1)
    ids = ids.gather(-1, picked[:, None])
    return ids[:, 0], logits.gather(-1, ids)[:, 0]


def lost(chosen: Float[Tensor, "*batch"]) -> Bool[Tensor, "*batch"]:
    """Whether a chosen logit is no number: NaN is larger than everything to a maximum.

    Example:
        >>> lost(torch.tensor([torch.nan, torch.inf, 5.0])).tolist()
        [True, True, False]
    """
    return ~(chosen < torch.inf)


def push_next(model: Model, answers: Sequence[Continuation], logits: Float[Tensor, "batch d_vocab"]) -> None:
    """Choose a next token for every text, by its own rules, and record it.

    Raises:
        ModelError: logits that are no numbers.
    """
    if not answers:
        return
    decoding = answers[0].decoding
    if decoding.suppress:
        logits[:, list(decoding.suppress)] = -torch.inf
    uniforms = torch.tensor([answer.uniform() for answer in answers], dtype=torch.float64, device=logits.device)
    chosen, scores = choose_tokens(logits, uniforms, decoding.temperature, decoding.top_k)
    if bool(lost(scores).any()):
        raise no_number(model.name, model.dtype, "logits")
    for answer, token in zip(answers, chosen.tolist(), strict=True):
        answer.push(token)


def edits_of(model: Model, answers: Sequence[Continuation]) -> EditTable:
    """The edits of these texts, a row each."""
    requests = [answer.request for answer in answers]
    return EditTable(
        model,
        [request.intervention for request in requests],
        [request.text for request in requests],
        first_tokens=[request.prompt[0] for request in requests],
        starts=[request.start for request in requests],
    )
