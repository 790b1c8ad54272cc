"""The decoders: a fast one over the plain view, and a slow, obvious one over the TransformerLens view.

The fast one computes every distinct prefix once, keeps a key-value cache of slots, lets finished rows leave and
waiting ones enter, and edits each row in its own way.  The reference one recomputes the whole text for every token.
They are tested to give the same tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mechrep.errors import InputError
from mechrep.generation.patched_model import is_patched
from mechrep.generation.requests import Continuation, Decoding, Request, check_requests
from mechrep.generation.sampling import choose_tokens
from mechrep.generation.slots import SlotCache
from mechrep.interventions.edits import transformer_lens_hooks
from mechrep.interventions.table import EditTable
from mechrep.models.model import Model
from mechrep.progress import progress_bar

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
        self.uniforms = np.stack([decoding.uniforms(r.text) for r in requests]) if decoding.temperature > 0 else None
        # Taken from the end, so longest prefixes first: later rows then always fit to the left of the current column.
        # Equal prefixes are neighbours, so that those entering together are computed once.
        self.prefix_lengths = [
            min(_prefix_length(request), self.edits.caught_at(row)) for row, request in enumerate(requests)
        ]
        self.waiting = sorted(
            range(len(requests)), key=lambda i: (self.prefix_lengths[i], requests[i].prompt[: self.prefix_lengths[i]])
        )
        longest = max(len(r.prompt) for r in requests) + decoding.max_new_tokens
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
                    uniforms[slot] = float(self.uniforms[row, len(self.answers[row].tokens)])
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
    model: Model, requests: Sequence[Request], decoding: Decoding, *, batch_size: int = 32, progress: bool | None = None
) -> list[Continuation]:
    """Continue every request on the TransformerLens view, recomputing the whole text for every token."""
    check_requests(model, requests, decoding)
    answers = [Continuation(request, decoding, model.eos_ids) for request in requests]
    with progress_bar(len(requests), "generating (reference)", "text", progress) as bar:
        for answer_batch in _batches_of_one_intervention(answers, batch_size):
            while live := [answer for answer in answer_batch if answer.reason is None]:
                _reference_step(model, live, decoding)
            bar.update(len(answer_batch))
    return answers


def _batches_of_one_intervention(answers: Sequence[Continuation], size: int) -> list[list[Continuation]]:
    groups: dict[int, list[Continuation]] = {}
    for answer in answers:
        groups.setdefault(id(answer.request.intervention), []).append(answer)
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]


def _reference_step(model: Model, live: list[Continuation], decoding: Decoding) -> None:
    texts = [answer.ids for answer in live]
    lengths = torch.tensor([len(ids) for ids in texts])
    tokens: Int[Tensor, "batch pos"] = torch.zeros(len(texts), int(lengths.max()), dtype=torch.long)
    for row, ids in enumerate(texts):
        tokens[row, : len(ids)] = torch.tensor(ids)
    hooks, intervention = [], live[0].request.intervention
    if intervention is not None:
        starts = torch.tensor([answer.request.start for answer in live])
        hooks = transformer_lens_hooks(intervention, model, starts, [answer.request.text for answer in live])
    logits = model.run_with_hooks(tokens.to(model.device), fwd_hooks=hooks)
    last = logits[torch.arange(len(texts)), (lengths - 1).to(logits.device)]
    if decoding.suppress:
        last[:, list(decoding.suppress)] = -torch.inf
    uniforms = torch.tensor(
        [float(decoding.uniforms(a.request.text)[len(a.tokens)]) for a in live], dtype=torch.float64
    )
    chosen = choose_tokens(last, uniforms.to(last.device), decoding.temperature, decoding.top_k)
    for answer, token in zip(live, chosen.tolist(), strict=True):
        answer.push(token)
