"""Decoding that computes the whole text for every token: the reference, and what models that keep states need.

No cache, so nothing can be remembered wrongly; slow, because every token costs a pass over all that stand before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrep.generation.decode import Continuation, Decoding, Request, check_requests, choose_tokens
from mechrep.interventions.apply import EditTable
from mechrep.models.model import Model
from mechrep.progress import progress_bar


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
