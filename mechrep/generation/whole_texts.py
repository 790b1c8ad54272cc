"""Decoding that reads the whole text again for every token: the reference, and what is left where nothing can be kept.

No cache, so nothing can be remembered wrongly; slow, because every token costs a pass over all that stand before it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrep.generation.requests import Continuation, Decoding, Request, check_requests, edits_of, push_next
from mechrep.generation.slot_cache import why_not_kept
from mechrep.interventions.apply import EditTable
from mechrep.models.memory import in_batches
from mechrep.models.model import Model
from mechrep.progress import progress_bar

_TOKENS_PER_PASS = 8192
_LOGITS_PER_PASS = 2**27  # half a GiB in single precision

_said: WeakKeyDictionary[Model, set[str]] = WeakKeyDictionary()


def write_whole(model: Model, answers: Sequence[Continuation], batch_size: int, done: Callable[[int], object]) -> None:
    """Continue texts on the plain view, reading each anew for every token; says once why.

    Args:
        model: the model.
        answers: what is to be continued, to the end.
        batch_size: rows computed together at most.
        done: told how many texts have ended.
    """
    rule = model.lengths
    why = why_not_kept(model)
    if not why:
        why = f"beyond {'' if rule is None else rule.switch} tokens its positions are other ones at every length"
    if why not in _said.setdefault(model, set()):
        _said[model].add(why)
        warnings.warn(f"{model.name} reads the whole text for every token that it writes: {why}", stacklevel=6)
    edits = edits_of(model, answers)
    order, most = sorted(range(len(answers)), key=lambda row: -answers[row].length), batch_size
    with edits.applied():
        for begin in range(0, len(order), batch_size):
            live = order[begin : begin + batch_size]
            while live:
                size = min(most, _rows_per_pass(model, max(answers[row].length for row in live)))
                largest = 0
                for some, logits in in_batches(live, size, partial(_next_logits, model, edits, answers), "generating"):
                    push_next(model, [answers[row] for row in some], logits)
                    largest = max(largest, len(some))
                most = largest if largest < min(size, len(live)) else most
                ended = sum(answers[row].reason is not None for row in live)
                done(ended)
                live = [row for row in live if answers[row].reason is None]


def _rows_per_pass(model: Model, longest: int) -> int:
    """So many that tokens and logits have room: at most one position per row is turned into logits of every row."""
    return max(1, min(_TOKENS_PER_PASS // longest, math.isqrt(_LOGITS_PER_PASS // model.anatomy.d_vocab)))


def _next_logits(
    model: Model, edits: EditTable, answers: Sequence[Continuation], rows: Sequence[int]
) -> Float[Tensor, "batch d_vocab"]:
    """Logits behind the end of some texts, each under its own edits."""
    tokens, lengths = _padded([answers[row].ids for row in rows], model.device)
    positions = torch.arange(tokens.shape[1], device=model.device).expand_as(tokens)
    positions = positions.masked_fill(positions >= lengths[:, None], -1)
    starts = torch.tensor([answers[row].request.start for row in rows], device=model.device)
    edits.aim(torch.tensor(rows, device=model.device), (positions >= starts[:, None]) & (positions >= 0), positions)
    ends, place = (lengths - 1).unique(return_inverse=True)
    assert model.plain is not None
    with model.each_alone(lengths):
        logits = model.plain(input_ids=tokens, use_cache=False, logits_to_keep=ends).logits
    return logits[torch.arange(len(rows), device=logits.device), place.to(logits.device)]


def _padded(
    texts: Sequence[Sequence[int]], device: torch.device
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, " batch"]]:
    """Right-padded ids and their lengths."""
    lengths = torch.tensor([len(ids) for ids in texts])
    tokens = torch.zeros(len(texts), int(lengths.max()), dtype=torch.long)
    for row, ids in enumerate(texts):
        tokens[row, : len(ids)] = torch.tensor(ids)
    return tokens.to(device), lengths.to(device)


@torch.no_grad()
def decode_reference(
    model: Model, requests: Sequence[Request], decoding: Decoding, *, batch_size: int = 32, progress: bool | None = None
) -> list[Continuation]:
    """Continue every request on the TransformerLens view, recomputing the whole text for every token.

    Args:
        model: the model.
        requests: what to continue.
        decoding: the rules.
        batch_size: rows computed together.
        progress: show a progress bar.
    """
    check_requests(model, requests, decoding)
    answers = [Continuation(request, decoding, model.eos_ids) for request in requests]
    with progress_bar(len(requests), "generating (reference)", "text", progress) as bar:
        for answer_batch in _batches_of_one_intervention(answers, batch_size):
            while live := [answer for answer in answer_batch if answer.reason is None]:
                for _ in in_batches(live, len(live), partial(_reference_step, model), "generating"):
                    pass
            bar.update(len(answer_batch))
    return answers


def _batches_of_one_intervention(answers: Sequence[Continuation], size: int) -> list[list[Continuation]]:
    groups: dict[int, list[Continuation]] = {}
    for answer in answers:
        groups.setdefault(id(answer.request.intervention), []).append(answer)
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]


def _reference_step(model: Model, live: list[Continuation]) -> None:
    tokens, lengths = _padded([answer.ids for answer in live], model.device)
    hooks, intervention = [], live[0].request.intervention
    if intervention is not None:
        starts = torch.tensor([answer.request.start for answer in live])
        hooks = intervention.hooks(model, starts, texts=[answer.request.text for answer in live])
    with model.each_alone(lengths):
        logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
    push_next(model, live, logits[torch.arange(len(live)), (lengths - 1).to(logits.device)])
