"""``information_masking``: does the loop go on when its low-information tokens are hidden or exchanged?

Attention is not effect.  In a text of at least two repetitions the last one is foretold from the text before it, and
before that one of two things is done to a set of earlier tokens:

* ``"mask"``: the queries that foretell the last repetition cannot see them, in any layer.  Everything before those
  queries is as it was.
* ``"swap"``: they are other tokens, drawn from the corpus, the same one at the same place of every repetition.  So the
  text is a loop as it was; only the tokens left alone are scored.

The set is the tokens of low surprisal; its controls are sets of other tokens, as many and as near: each low token is
paired with the nearest other one in its own part of the text (before the loop, or in it), and a low token without
such a neighbour belongs to neither set.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mechrep.ablation.effects import ABLATION, Condition, Effects, Measure
from mechrep.ablation.score import (
    LOGITS_PER_BATCH,
    ScoredText,
    first_read,
    go_on_from,
    judged_tokens,
    prefixes_of,
    score_tokens,
)
from mechrep.errors import InputError, ModelError, NothingFoundError
from mechrep.guards import Count, guarded
from mechrep.journal import Journal
from mechrep.measures.token_facts import GROUPS, TokenFacts
from mechrep.models.model import Model
from mechrep.progress import progress_bar
from mechrep.provenance import Provenance, provenance_of
from mechrep.run import Run
from mechrep.text.corpus import Corpus
from mechrep.text.families import loop_families

Way = Literal["mask", "swap"]
LOW, PARTNERS = "low-information tokens", "nearest other tokens"
REACH = 16  # positions between a low token and its partner, at most
_TOKENS_PER_BATCH = 2048
_SAME_LOGITS = 1e-2  # between our own causal mask and the model's


@torch.no_grad()
@guarded
def information_masking(
    model: Model,
    corpus: Corpus,
    facts: TokenFacts,
    *,
    way: Way = "mask",
    draws: Count | None = None,
    run: Run | None = None,
) -> Effects:
    """Hide or exchange low-information tokens, and as many others, and score the last repetition.

    Measure ``loop_log_probability``: mean log p of the last repetition's tokens (of its first few, where the run's
    effort is ``brief`` on this model), nats per token.  Draws of partners
    differ in which low tokens have one, and (``"swap"``) in which tokens are left to score; changes are taken within a
    draw.

    Args:
        model: the model; ``"mask"`` needs its plain view.
        corpus: texts with cycles of at least two repetitions.
        facts: of this corpus.
        way: ``"mask"`` or ``"swap"``.
        draws: sets of partners (and of new tokens) per text; by default what the run's effort says.
        run: options.

    Returns:
        Effects with the condition ``"low-information tokens"`` and its controls, ``"nearest other tokens"``; the notes
        have the mean number of ``pairs`` of a text, their mean ``distance``, and the texts ``left_out``.

    Raises:
        InputError: another way, no draw, facts of other texts.
        NothingFoundError: no text with a pair and something left to score.
        ModelError: ``"mask"`` for a model without a plain view, or one that does not obey a mask.

    Limits: hidden tokens can still act through what later tokens took from them before the last repetition.  A swap
    also changes what the model expects.  In loops of period 1 no token of the loop has a partner.

    Example:
        >>> import mechrep
        >>> from mechrep.measures.token_facts import token_facts
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.text.random_repeats(model, n=12, copies=3, sequences=2)
        >>> effects = information_masking(model, corpus, token_facts(model, corpus, reference=corpus), draws=1)
        >>> effects.wide()["selection"].tolist()
        ['baseline', 'ablation', 'nearest other tokens']
    """
    options = run or Run()
    sizes = options.sizes_on(model)
    brief = sizes.brief
    usual = sizes.draws if brief is None or way == "mask" else sizes.regenerated_draws  # a swap reads whole texts
    number = usual if draws is None else draws
    if facts.source.shape != corpus.tokens.shape:
        raise InputError(
            f"facts of {len(facts.source)} texts for {len(corpus)}",
            "facts of this corpus",
            "correct them",
        )
    corpus.check_model(model)
    if way == "mask" and not model.fast:
        raise ModelError(f"{model.name} without a plain view", "a model with one", "choose way='swap'")
    config = {"study": "information masking", "way": way, "draws": number, "seed": options.seed, "brief": brief}
    provenance = provenance_of(model, corpus, config | {"facts": facts.fingerprint()})
    journal = None if options.store is None else Journal(Path(options.store), provenance)
    measured: list[list[float] | None] = []
    with progress_bar(len(corpus), f"low-information tokens, {way}", "text", options.progress) as bar:
        for text in range(len(corpus)):
            kept = None if journal is None else journal.find(text)
            if kept is None:
                generator = np.random.default_rng([options.seed, text])
                kept = [{"values": _one_text(model, corpus, facts, text, way, number, generator, brief)}]
                if journal is not None:
                    journal.keep(text, kept)
            measured.append(kept[0]["values"])
            bar.update(1)
    return _effects(provenance, corpus, measured, way, number)


def _effects(
    provenance: Provenance, corpus: Corpus, measured: Sequence[list[float] | None], way: str, draws: int
) -> Effects:
    used = [text for text, numbers in enumerate(measured) if numbers is not None]
    if not used:
        raise NothingFoundError(
            f"{len(corpus)} texts, none with a low-information token that has a partner and a token left to score",
            "cycles of several different tokens, in at least two repetitions",
            "use texts with longer periods",
        )
    numbers = torch.tensor([measured[text] for text in used], dtype=torch.float64).T
    conditions = [Condition(), Condition(LOW, ABLATION, op=way)]
    conditions += [Condition(LOW, PARTNERS, op=way, seed=draw) for draw in range(draws)]
    families = loop_families(corpus)
    notes = {
        "pairs": float(numbers[0].mean()), "distance": float(numbers[1].mean()), "left_out": len(corpus) - len(used),
    }  # fmt: skip
    return Effects(
        provenance,
        conditions,
        [Measure("loop_log_probability")],
        [[str(corpus.frame["id"][text]) for text in used]],
        [[families[text] for text in used]],
        numbers[2:][None].contiguous(),
        notes,
    )


def _one_text(
    model: Model,
    corpus: Corpus,
    facts: TokenFacts,
    text: int,
    way: Way,
    draws: int,
    generator: np.random.Generator,
    brief: int | None,
) -> list[float] | None:
    """Pairs, distance, baseline, low, and partners by draw of one text; None where it cannot be used."""
    if pd.isna(corpus.frame["start"][text]):
        return None
    start, period = int(corpus.frame["start"][text]), int(corpus.frame["period"][text])
    copies = (int(corpus.lengths[text]) - start) // period
    if copies < 2:
        return None
    first = start + (copies - 1) * period  # of the last repetition
    counted = period if brief is None else min(period, brief)
    end = first + counted
    row, source = corpus.tokens[text, :end], facts.source[text, :end]
    low = facts.groups[GROUPS.index("low_surprisal"), text, :end]
    rows, hidden, scored, pairs, distances = [], [], [], [], []
    for _ in range(draws):
        pair = paired_tokens(low[: start + period].numpy(), start, generator)
        if not len(pair):
            return None
        pairs.append(len(pair))
        distances.append(float(np.abs(pair[:, 0] - pair[:, 1]).mean()))
        sets = [torch.isin(source, torch.from_numpy(column)) for column in pair.T]
        left = ~(sets[0] | sets[1])[first:] if way == "swap" else torch.ones(counted, dtype=torch.bool)
        for chosen in sets:
            rows.append(_swapped(row, source, chosen, corpus, generator) if way == "swap" else row)
            hidden.append(chosen & (torch.arange(end) < first - 1))  # a query always sees itself
            scored.append(left)
    if not all(bool(left.any()) for left in scored):
        return None
    rows, hidden = [row, *rows], [torch.zeros(end, dtype=torch.bool), *hidden]
    log_p = _log_probabilities(model, torch.stack(rows), torch.stack(hidden), first, way)
    keep = torch.stack(scored).double()
    base = (log_p[0] * keep).sum(-1) / keep.sum(-1)
    changes = ((log_p[1:] * keep).sum(-1) / keep.sum(-1) - base).view(draws, 2)
    baseline = float(base.mean())
    values = [baseline, baseline + float(changes[:, 0].mean()), *(baseline + changes[:, 1]).tolist()]
    return [float(np.mean(pairs)), float(np.mean(distances)), *values]


def _log_probabilities(
    model: Model, rows: Int64[Tensor, "row pos"], hidden: Bool[Tensor, "row pos"], first: int, way: Way
) -> Float[Tensor, "row token"]:
    """Of the tokens from ``first`` on in every row; rows that are alike are computed once."""
    both = torch.cat([rows, hidden.long()], dim=1)
    distinct, places = torch.unique(both, dim=0, return_inverse=True)
    tokens, masks = distinct[:, : rows.shape[1]], distinct[:, rows.shape[1] :].bool()
    if way == "mask":
        return _masked(model, rows[0], masks, first)[places]
    texts = [ScoredText(tuple(row), first, 0, number) for number, row in enumerate(tokens.tolist())]
    return torch.cat([scores.log_probability for scores in score_tokens(model, texts, [None], progress=False)])[places]


def _masked(
    model: Model, row: Int64[Tensor, " pos"], hidden: Bool[Tensor, "mask pos"], first: int
) -> Float[Tensor, "mask token"]:
    """Log-probabilities of a text's tokens from ``first`` on, where the queries that foretell them see no hidden key.

    What lies before these queries is as it was under every mask, so it is read once where a model can go on from it.
    A mask that hides nothing is checked: it has to give what the model gives without one.

    Raises:
        ModelError: it does not.
    """
    assert model.plain is not None
    width, begin, tokens = len(row), first_read(model, (len(row), first, first - 1)), row[None].to(model.device)
    kept, position = width - first + 1, torch.arange(width)
    prefixes = prefixes_of(model, tokens[:, :begin])
    told = model.plain(input_ids=tokens, logits_to_keep=kept, use_cache=False).logits[0]
    causal = position[begin:, None] >= position
    asks = (position[begin:] >= first - 1)[:, None]
    size = min(_TOKENS_PER_BATCH // (width - begin), LOGITS_PER_BATCH // (model.anatomy.d_vocab * kept))
    parts = []
    for some in torch.cat([torch.zeros_like(hidden[:1]), hidden]).split(max(2, size)):
        seen = causal & ~(asks & some[:, None, :])
        mask = torch.zeros(seen.shape, dtype=model.dtype).masked_fill(~seen, torch.finfo(model.dtype).min)[:, None]
        logits = model.plain(
            input_ids=tokens[:, begin:].expand(len(some), -1),
            attention_mask=mask.to(tokens.device),
            logits_to_keep=kept,
            **go_on_from(prefixes, [torch.zeros(len(some), dtype=torch.long)] * model.anatomy.n_layers),
        ).logits
        if not parts:
            _check_mask(model, logits[0], told)
        parts.append(judged_tokens(logits[:, :-1], tokens[:, first:].expand(len(some), -1))[0].double())
    return torch.cat(parts)[1:]


def _check_mask(model: Model, masked: Tensor, told: Tensor) -> None:
    error = (masked - told).abs().max().item()
    if error > _SAME_LOGITS * max(1.0, told.abs().max().item()):
        raise ModelError(
            f"{model.name}, whose logits move by {error:.2g} under a mask that hides nothing",
            "a model that takes a mask of queries and keys",
            "choose way='swap'",
        )


def paired_tokens(
    low: Bool[np.ndarray, " pos"], start: int, generator: np.random.Generator, reach: int = REACH
) -> np.ndarray:
    """Pairs ``[pair, (low, other)]`` of positions, every position once, partners in the same part of the text.

    Args:
        low: of the text up to the end of the first repetition.
        start: of the first repetition; position 0 takes no part.
        generator: decides which low token chooses first, and between two equally near partners.
        reach: partners are at most so far apart.

    Example:
        >>> low = np.array([False, True, False, False, True, True])
        >>> paired_tokens(low, 4, np.random.default_rng(0)).tolist()
        [[1, 2]]
    """
    pairs: list[tuple[int, int]] = []
    for begin, end in ((1, start), (max(start, 1), len(low))):
        places = np.arange(begin, end)
        free = set(places[~low[begin:end]].tolist())
        for place in generator.permutation(places[low[begin:end]]).tolist():
            near = sorted(free, key=lambda other, place=place: (abs(other - place), generator.random()))
            if near and abs(near[0] - place) <= reach:
                free.discard(near[0])
                pairs.append((place, near[0]))
    return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)


def _swapped(
    row: Int64[Tensor, " pos"],
    source: Int64[Tensor, " pos"],
    chosen: Bool[Tensor, " pos"],
    corpus: Corpus,
    generator: np.random.Generator,
) -> Int64[Tensor, " pos"]:
    """The text with new tokens, one per place of the cycle, drawn as often as they are in the corpus' other tokens."""
    real = torch.arange(1, corpus.tokens.shape[1]) < corpus.lengths[:, None]
    pool = corpus.tokens[:, 1:][real]
    pool = pool[~torch.isin(pool, row)]  # nothing that the text has already
    if not len(pool):
        raise InputError("a corpus of one text", "other texts, to take tokens from", "add texts")
    new = row.clone()
    for place in source[chosen].unique().tolist():
        new[chosen & (source == place)] = pool[int(generator.integers(len(pool)))]
    return new
