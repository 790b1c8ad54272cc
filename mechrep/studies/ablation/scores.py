"""Log-probabilities of given tokens under many interventions at once: the rows of a batch are (text, intervention).

The tokens before a text's first edited position are computed once for all of its interventions; from there on each
intervention is a row, edited through one :class:`~mechrep.interventions.table.EditTable`, and below the first layer
that it edits it is one row with all others (:mod:`~mechrep.studies.ablation.branches`).  Texts of one shape share
batches, so nothing is padded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechrep.interventions.base import Intervention
from mechrep.interventions.edits import transformer_lens_hooks
from mechrep.interventions.table import EditTable
from mechrep.models.model import Model
from mechrep.progress import progress_bar
from mechrep.studies.ablation.branches import Branches, first_edited_layers

_TOKENS_PER_BATCH = 2048
_LOGITS_PER_BATCH = 2**27  # half a GiB in single precision: a large vocabulary makes batches smaller


@dataclass(frozen=True)
class ScoredText:
    """A text whose tokens from ``first`` on are to be predicted, edited from ``start`` on.

    Attributes:
        tokens: the whole text.
        first: first predicted position, at least 1.
        start: first edited position.
        number: of the text, for resampling.
    """

    tokens: tuple[int, ...]
    first: int
    start: int
    number: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Texts that agree in this can share a batch: length, first prediction, tokens that no edit touches."""
        return len(self.tokens), self.first, min(self.start, self.first - 1)


@dataclass(frozen=True)
class TokenScores:
    """What a text's tokens got; ``token`` counts from the text's ``first``.

    Attributes:
        log_probability: in nats.
        correct: whether the token was the most probable one.
    """

    log_probability: Float[Tensor, "intervention token"]
    correct: Bool[Tensor, "intervention token"]


@torch.no_grad()
def score_tokens(
    model: Model,
    texts: Sequence[ScoredText],
    interventions: Sequence[Intervention | None],
    *,
    progress: bool | None = None,
    what: str = "scoring",
) -> list[TokenScores]:
    """Score every text under every intervention.

    Args:
        model: the model; on its plain view, or on the TransformerLens view where that is the only one.
        texts: what to predict.
        interventions: ``None`` is the untouched model.  Where an edit begins is the text's ``start``, not ``when``.
        progress: show a progress bar.
        what: its name.

    Returns:
        One :class:`TokenScores` per text, on the CPU.

    Example:
        >>> import mechrep
        >>> from mechrep.interventions import Heads
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> text = ScoredText((0, 5, 6, 7, 5, 6, 7), first=4, start=3, number=0)
        >>> (scores,) = score_tokens(model, [text], [None, Heads([(0, 0)])])
        >>> scores.log_probability.shape
        torch.Size([2, 3])
    """
    groups: dict[tuple[int, int, int], list[int]] = {}
    for index, text in enumerate(texts):
        groups.setdefault(text.shape, []).append(index)
    sizes = [(len(interventions), len(text.tokens) - text.first) for text in texts]
    kept = [(torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.bool)) for size in sizes]
    score = _reference if model.plain is None or model.processed else _fast
    with progress_bar(len(texts) * len(interventions), what, "row", progress) as bar:
        for group in groups.values():
            for rows, log_probability, correct in score(model, [texts[i] for i in group], interventions):
                for row, (text, condition) in enumerate(rows):
                    kept[group[text]][0][condition] = log_probability[row]
                    kept[group[text]][1][condition] = correct[row]
                bar.update(len(rows))
    return [TokenScores(*tensors) for tensors in kept]


Scored = tuple[list[tuple[int, int]], Tensor, Tensor]  # (text, intervention) of each row, and what the rows got


def _fast(model: Model, texts: Sequence[ScoredText], interventions: Sequence[Intervention | None]) -> Iterator[Scored]:
    """Plain view; all texts have one shape."""
    length, first, begin = texts[0].shape
    if any(one is not None and one.holds(model.anatomy) for one in interventions):
        begin = 0  # levels are caught at a text's first token after BOS, which therefore must go by
    tokens = torch.tensor([text.tokens for text in texts], device=model.device)
    pairs = [(text, condition) for text in range(len(texts)) for condition in range(len(interventions))]
    table = EditTable(
        model,
        [interventions[condition] for _, condition in pairs],
        [texts[text].number for text, _ in pairs],
        first_tokens=[texts[text].tokens[0] for text, _ in pairs],
        starts=[texts[text].start for text, _ in pairs],
    )
    starts = torch.tensor([texts[text].start for text, _ in pairs], device=model.device)
    positions = torch.arange(begin, length - 1, device=model.device)[None]
    first_layers = first_edited_layers(table, model.anatomy.n_layers)
    size = min(_TOKENS_PER_BATCH, _LOGITS_PER_BATCH // model.anatomy.d_vocab) // positions.shape[1]
    with table.applied():
        for rows in torch.arange(len(pairs), device=model.device).split(max(1, size)):
            here = [pairs[row] for row in rows.tolist()]
            branches = Branches.of([text for text, _ in here], first_layers[rows].tolist(), model.anatomy.n_layers)

            def aim(some: Tensor, rows: Tensor = rows) -> None:
                chosen = rows[some]
                table.aim(chosen, positions >= starts[chosen, None], positions.expand(len(chosen), -1))

            distinct = sorted({text for text, _ in here})
            place = torch.tensor([distinct.index(text) for text, _ in here], device=model.device)
            table.rest()
            prefixes = _prefixes(model, tokens[distinct, :begin])
            chosen = tokens[distinct][place]
            with branches.applied(model, aim):
                assert model.plain is not None
                logits = model.plain(
                    input_ids=chosen[branches.rows[0], begin:-1],
                    logits_to_keep=length - first,
                    **_from(prefixes, [place[some] for some in branches.rows]),
                ).logits
            log_probability, correct = _judge(logits, chosen[branches.rows[-1], first:])
            yield here, log_probability[branches.result], correct[branches.result]


def _prefixes(model: Model, tokens: Int[Tensor, "text pos"]) -> Any:
    """Keys and values of the unedited beginnings; ``None`` where there are none."""
    from transformers import DynamicCache

    if tokens.shape[1] == 0:
        return None
    cache = DynamicCache()  # without a configuration: sliding layers then keep all their columns
    assert model.plain is not None
    model.plain(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def _from(prefixes: Any, rows: Sequence[Int[Tensor, " _"]]) -> dict[str, Any]:
    """Options that let a forward pass go on from these prefixes; for every layer, the prefix of each of its rows."""
    from transformers import DynamicCache

    if prefixes is None:
        return {"use_cache": False}
    cache = DynamicCache()
    for number, (layer, some) in enumerate(zip(prefixes.layers, rows, strict=True)):
        cache.update(layer.keys[some], layer.values[some], number)
    return {"past_key_values": cache, "use_cache": True}


def _reference(
    model: Model, texts: Sequence[ScoredText], interventions: Sequence[Intervention | None]
) -> Iterator[Scored]:
    """TransformerLens view; the whole texts once per intervention."""
    first = texts[0].first
    for some in torch.arange(len(texts)).split(max(1, _TOKENS_PER_BATCH // len(texts[0].tokens))):
        here = some.tolist()
        tokens = torch.tensor([texts[i].tokens for i in here], device=model.device)
        starts = torch.tensor([texts[i].start for i in here])
        for condition, intervention in enumerate(interventions):
            hooks = []
            if intervention is not None:
                hooks = transformer_lens_hooks(intervention, model, starts, [texts[i].number for i in here])
            logits = model.run_with_hooks(tokens, fwd_hooks=hooks)[:, first - 1 : -1]
            yield [(i, condition) for i in here], *_judge(logits, tokens[:, first:])


def _judge(
    logits: Float[Tensor, "row token d_vocab"], tokens: Int[Tensor, "row token"]
) -> tuple[Float[Tensor, "row token"], Bool[Tensor, "row token"]]:
    """Log-probability of each token, and whether it was the most probable one."""
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten(), reduction="none")
    return -losses.view_as(tokens).cpu(), (logits.argmax(-1) == tokens).cpu()
