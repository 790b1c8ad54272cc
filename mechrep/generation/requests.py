"""What is asked of a decoder and what it gives back, one text at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Float

from mechrep.errors import InputError
from mechrep.interventions.base import Intervention
from mechrep.models.model import Model
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
        intervention: what to change while continuing, or ``None``.
        start: first edited position.
        text: number of the text; decides its random stream and its resampled values, whatever batch it is in.
    """

    prompt: tuple[int, ...]
    intervention: Intervention | None = None
    start: int = 0
    text: int = 0


@dataclass
class Decoding:
    """How all requests are continued.

    Attributes:
        max_new_tokens: at most so many.
        stop_when: ``"eos"``; the name of a detector preset (``"hiraoka2025"``, ``"mechrep"``), which stops a text
            when the detector has fired on prompt and continuation; a function of the ids so far; or several of these.
        temperature: 0 is greedy.
        top_k: sample among so many tokens (all by default).
        seed: of the sampling.
        suppress: ids that are never produced.
    """

    max_new_tokens: int
    stop_when: StopRule | Sequence[StopRule] | None = "eos"
    temperature: float = 0.0
    top_k: int | None = None
    seed: int = 0
    suppress: Sequence[int] = ()
    rules: tuple[StopRule, ...] = field(init=False)

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens={self.max_new_tokens}", "at least 1", "ask for more")
        if not self.temperature >= 0 or (self.top_k is not None and self.top_k < 1):
            raise InputError(
                f"temperature={self.temperature}, top_k={self.top_k}", "temperature >= 0, top_k >= 1", "correct them"
            )
        rules = self.stop_when
        one = rules is None or isinstance(rules, str) or callable(rules)
        self.rules = () if rules is None else (rules,) if one else tuple(rules)  # pyright: ignore
        for rule in self.rules:
            if isinstance(rule, str) and rule != "eos":
                watch_for(rule)  # refuses an unknown preset before any work is done

    @property
    def stops_at_eos(self) -> bool:
        """Whether an end-of-text id ends a text."""
        return "eos" in self.rules

    def uniforms(self, text: int) -> Float[np.ndarray, " step"]:
        """The text's own random numbers, one per step: the same in any batch."""
        return np.random.default_rng([self.seed, text]).random(self.max_new_tokens)


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
        elif len(self.tokens) >= self.decoding.max_new_tokens:
            self.reason = "length"


def check_requests(model: Model, requests: Sequence[Request], decoding: Decoding) -> None:
    """Refuse what cannot be decoded, before anything is computed.

    Raises:
        InputError: no request, an empty prompt, ids the model does not have, more positions than its context, or
            nothing left to choose from.
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
        if len(request.prompt) + decoding.max_new_tokens > model.anatomy.n_ctx:
            raise InputError(
                f"prompt {number} of {len(request.prompt)} tokens and {decoding.max_new_tokens} new ones",
                f"at most {model.anatomy.n_ctx} positions",
                "shorten the prompt or lower max_new_tokens",
            )
