"""Choices of one text, scored under many interventions at once.

What the choices share, their text, is read once under each intervention; every choice goes on from what the layers keep
of it.  Below the first edited layer all interventions are one row (:class:`~mechrep.ablation.score.Branches`), in both
passes.  Where nothing can be kept, or what is kept depends on more than the text before it, every choice is read whole
(:func:`~mechrep.ablation.score.score_tokens`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechrep.ablation.score import Branches, ScoredText, judged_tokens, parting_layers, score_tokens
from mechrep.generation.slot_cache import has_states, shares_keys, why_not_kept
from mechrep.interventions.apply import EditTable
from mechrep.interventions.ops import Intervention
from mechrep.models.model import Model
from mechrep.progress import progress_bar

Choice = tuple[tuple[int, ...], tuple[int, ...]]  # the text, and what goes on with it
Scores = tuple[Float[Tensor, " intervention"], Bool[Tensor, " intervention"]]
_TOKENS_PER_BATCH = 2048
_LOGITS_PER_BATCH = 2**26


@torch.no_grad()
def score_choices(
    model: Model,
    choices: Sequence[Choice],
    interventions: Sequence[Intervention | None],
    *,
    progress: bool | None = None,
) -> dict[Choice, Scores]:
    """Sum of the log-probabilities of each choice's tokens after its text, and whether greedy decoding would say it.

    Args:
        model: a model with a plain view.
        choices: texts and continuations, at least one token of each.
        interventions: active at all positions; ``None`` is the baseline.
        progress: show a progress bar.

    Returns:
        By choice: one number per intervention, in nats.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> scores = score_choices(model, [((0, 5, 6, 7), (8, 9)), ((0, 5, 6, 7), (10,))], [None])
        >>> [scored.shape for scored, _ in scores.values()]
        [torch.Size([1]), torch.Size([1])]
    """
    together: dict[tuple[int, ...], list[Choice]] = {}
    whole: list[Choice] = []
    kept = not (why_not_kept(model) or has_states(model) or shares_keys(model) or model.lengths is not None)
    for choice in dict.fromkeys(choices):
        if kept and len(choice[0]) > _LATEST_ANCHOR + 1:
            together.setdefault(choice[0], []).append(choice)
        else:
            whole.append(choice)
    found: dict[Choice, Scores] = {}
    with progress_bar(len(together), "asking", "text", progress) as bar:
        for text, some in together.items():
            found |= _go_on(model, text, some, interventions)
            bar.update(1)
    texts = [ScoredText((*text, *choice), len(text), 0, number) for number, (text, choice) in enumerate(whole)]
    scored = score_tokens(model, texts, interventions, progress=progress, what="asking") if texts else []
    found |= {
        choice: (scores.log_probability.sum(1), scores.correct.all(1))
        for choice, scores in zip(whole, scored, strict=True)
    }
    return found


_LATEST_ANCHOR = 1  # levels are caught at position 0 or 1, which must be in the text that is read first


def _go_on(
    model: Model, text: tuple[int, ...], choices: Sequence[Choice], interventions: Sequence[Intervention | None]
) -> dict[Choice, Scores]:
    """Choices of one text.  What is fed for two of them alike is computed once: choices of one token are one row."""
    rows = list(dict.fromkeys((text[-1], *choice[:-1]) for _, choice in choices))
    width = max(map(len, rows))
    fed = torch.zeros(len(rows), width, dtype=torch.long, device=model.device)
    for number, row in enumerate(rows):
        fed[number, : len(row)] = torch.tensor(row)
    size = min(_TOKENS_PER_BATCH // len(text), _LOGITS_PER_BATCH // (model.anatomy.d_vocab * fed.numel()))
    parts: dict[Choice, list[tuple[Tensor, Tensor]]] = {choice: [] for choice in choices}
    for first in range(0, len(interventions), max(1, size)):
        for row, logits in _logits_after(model, text, fed, interventions[first : first + max(1, size)]):
            for choice in choices:
                if (text[-1], *choice[1][:-1]) == rows[row]:
                    wanted = torch.tensor(choice[1], device=logits.device).expand(len(logits), -1)
                    scores, correct = judged_tokens(logits[:, : len(choice[1])], wanted, model.name)
                    parts[choice].append((scores.double().sum(1), correct.all(1)))
    return {
        choice: (torch.cat([s for s, _ in some]), torch.cat([h for _, h in some])) for choice, some in parts.items()
    }


def _logits_after(
    model: Model,
    text: tuple[int, ...],
    fed: Int[Tensor, "choice pos"],
    interventions: Sequence[Intervention | None],
) -> Iterator[tuple[int, Float[Tensor, "intervention pos d_vocab"]]]:
    """Logits of every fed row after a text but its last token, row by row, under each intervention."""
    from transformers import DynamicCache

    n, layers, plain = len(interventions), model.anatomy.n_layers, model.plain
    assert plain is not None
    table = EditTable(model, interventions, [0] * n, first_tokens=[text[0]] * n, starts=[0] * n)
    first_layers = parting_layers(table, one_length=True).tolist()
    before = torch.tensor([text[:-1]], device=model.device)
    whole = Branches.of([0] * n, first_layers, layers)
    # Choice by choice, each under every intervention; all start as rows of the text's.
    after = Branches.of([row for row in range(len(fed)) for _ in range(n)], first_layers * len(fed), layers)

    def aimed(begin: int, length: int, under: Tensor) -> Any:
        def aim(some: Tensor) -> None:
            positions = torch.arange(begin, begin + length, device=model.device).expand(len(some), -1)
            table.aim(under[some].to(model.device), torch.ones_like(positions, dtype=torch.bool), positions)

        return aim

    conditions = torch.arange(n)
    with table.applied():
        read = DynamicCache()  # without a configuration: sliding layers then keep all their columns
        with whole.applied(model, aimed(0, before.shape[1], conditions)):
            plain(
                input_ids=before.expand(len(whole.rows[0]), -1), past_key_values=read, use_cache=True, logits_to_keep=1
            )
        kept, under = DynamicCache(), conditions.repeat(len(fed))
        given: Any
        for number, given in enumerate(read.layers):
            places = whole.places(number)[under[after.rows[number]]].to(given.keys.device)
            kept.update(given.keys[places], given.values[places], number)
        lowest = torch.arange(len(fed)).repeat_interleave(n)[after.rows[0]]
        with after.applied(model, aimed(before.shape[1], fed.shape[1], under)):
            ids = fed[lowest.to(model.device)]
            logits = plain(input_ids=ids, past_key_values=kept, use_cache=True, logits_to_keep=fed.shape[1]).logits
    result = after.result.view(len(fed), n)
    for row in range(len(fed)):
        yield row, logits[result[row].to(logits.device), -fed.shape[1] :]
