"""``information_cut``: does the loop go on when its low-information tokens are hidden or exchanged?

Attention is not effect.  In a text of at least two copies the last one is foretold from the text before it, and before
that one of two things is done to a set of earlier tokens:

* ``"mask"``: the queries that foretell the last copy cannot see them, in any layer.  Everything before those queries
  is as it was.
* ``"swap"``: they are other tokens, drawn from the corpus, the same one at the same place of every copy.  So the text
  is a loop as it was; only the tokens left alone are scored.

The set is the tokens of low surprisal; beside it stand sets of other tokens, as many and as near: each low token is
paired with the nearest other one in its own part of the text (before the loop, or in it), and a low token without
such a neighbour belongs to neither set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mechrep.errors import InputError, ModelError, NothingFoundError
from mechrep.measures.token_information import GROUPS, TokenFacts
from mechrep.models.model import Model
from mechrep.progress import progress_bar
from mechrep.provenance import provenance_of
from mechrep.results import Result
from mechrep.stats import paired_bootstrap_interval
from mechrep.text.corpus import Corpus

Way = Literal["mask", "swap"]
REACH = 16  # positions between a low token and its partner, at most
_SAME_LOGITS = 1e-2  # between our own causal mask and the model's


@dataclass(frozen=True, eq=False)
class InformationCut(Result):
    """Mean log-probability, in nats per token, of the last copy of each text.

    Attributes:
        untouched: of the text as it is, on the tokens that both cuts leave alone.
        low: with low-information tokens cut, mean over draws.
        others: with as many others cut, mean over draws.
        pairs: tokens in each set, mean over draws, counted in the first copy and before it.
        distance: mean distance of the partners, in positions.
        ids: of the texts that were used.
        conditions: of these.
        way: ``"mask"`` or ``"swap"``.
        left_out: texts without a pair, or without a token left to score.
    """

    untouched: Float[Tensor, " text"]
    low: Float[Tensor, " text"]
    others: Float[Tensor, " text"]
    pairs: Float[Tensor, " text"]
    distance: Float[Tensor, " text"]
    ids: Sequence[str]
    conditions: Sequence[str]
    way: str
    left_out: int

    def to_frame(self) -> pd.DataFrame:
        """One row per text."""
        columns = {name: getattr(self, name).numpy() for name in ("untouched", "low", "others", "pairs", "distance")}
        return pd.DataFrame({"id": list(self.ids), "condition": list(self.conditions), **columns})

    def summary(self) -> pd.DataFrame:
        """What each cut changes, by condition, with 95 % bootstrap intervals over texts.

        ``low`` and ``others`` are changes against the untouched text, ``low - others`` what low information adds: below
        0, the loop leans on low-information tokens more than on others.
        """
        rows = []
        for condition, part in self.to_frame().groupby("condition", sort=False):
            changes = {
                "low": part["low"] - part["untouched"],
                "others": part["others"] - part["untouched"],
                "low - others": part["low"] - part["others"],
            }
            for name, values in changes.items():
                low, high = paired_bootstrap_interval(values.to_numpy(dtype=float))
                rows.append((condition, name, float(values.mean()), low, high, len(values)))
        return pd.DataFrame(rows, columns=["condition", "cut", "change", "low", "high", "n_texts"])


@torch.no_grad()
def information_cut(
    model: Model,
    corpus: Corpus,
    facts: TokenFacts,
    *,
    way: Way = "mask",
    draws: int = 4,
    seed: int = 0,
    progress: bool | None = None,
) -> InformationCut:
    """Hide or exchange low-information tokens, and as many others, and score the last copy.

    Args:
        model: the model; ``"mask"`` needs its plain view.
        corpus: texts with cycles of at least two copies.
        facts: of this corpus.
        way: ``"mask"`` or ``"swap"``.
        draws: sets of partners (and of new tokens) per text.
        seed: of the draws.
        progress: show a progress bar.

    Raises:
        InputError: another way, no draw, facts of other texts.
        NothingFoundError: no text with a pair and something left to score.
        ModelError: ``"mask"`` for a model without a plain view, or one that does not obey a mask.

    Limits: hidden tokens can still act through what later tokens took from them before the last copy.  A swap also
    changes what the model expects.  In loops of period 1 no token of the loop has a partner.

    Example:
        >>> import mechrep
        >>> from mechrep.measures.token_information import token_facts
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.text.random_repeats(model, n=12, copies=3, sequences=2)
        >>> cut = information_cut(model, corpus, token_facts(model, corpus, reference=corpus), draws=1)
        >>> cut.summary()["cut"].tolist()
        ['low', 'others', 'low - others']
    """
    if way not in ("mask", "swap") or draws < 1 or facts.source.shape != corpus.tokens.shape:
        raise InputError(
            f"way={way!r}, draws={draws}, facts of {len(facts.source)} texts for {len(corpus)}",
            "'mask' or 'swap', at least one draw, facts of this corpus",
            "correct them",
        )
    corpus.check_model(model)
    if way == "mask" and (not model.fast):
        raise ModelError(f"{model.name} without a plain view", "a model with one", "choose way='swap'")
    measured, names, conditions = [], [], []
    with progress_bar(len(corpus), "cutting tokens", "text", progress) as bar:
        for text in range(len(corpus)):
            numbers = _cut_text(model, corpus, facts, text, way, draws, np.random.default_rng([seed, text]))
            bar.update(1)
            if numbers is not None:
                measured.append(numbers)
                names.append(str(corpus.frame["id"][text]))
                condition = corpus.frame["condition"][text] if "condition" in corpus.frame else None
                conditions.append("all" if pd.isna(condition) else str(condition))
    if not measured:
        raise NothingFoundError(
            f"{len(corpus)} texts, none with a low-information token that has a partner and a token left to score",
            "cycles of several different tokens, in at least two copies",
            "use texts with longer periods",
        )
    columns = torch.tensor(measured, dtype=torch.float64).T
    config = {"study": "information cut", "way": way, "draws": draws, "seed": seed, "facts": facts.fingerprint()}
    return InformationCut(
        provenance_of(model, corpus, config), *columns, ids=names, conditions=conditions, way=way,
        left_out=len(corpus) - len(measured),
    )  # fmt: skip


def _cut_text(
    model: Model, corpus: Corpus, facts: TokenFacts, text: int, way: Way, draws: int, generator: np.random.Generator
) -> tuple[float, float, float, float, float] | None:
    """Untouched, low, others, pairs, distance of one text; None where it cannot be used."""
    if pd.isna(corpus.frame["start"][text]):
        return None
    start, period = int(corpus.frame["start"][text]), int(corpus.frame["period"][text])
    copies = (int(corpus.lengths[text]) - start) // period
    if copies < 2:
        return None
    end = start + copies * period
    first = end - period  # of the last copy
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
        left = ~(sets[0] | sets[1])[first:] if way == "swap" else torch.ones(period, dtype=torch.bool)
        for chosen in sets:
            rows.append(_swapped(row, source, chosen, corpus, generator) if way == "swap" else row)
            hidden.append(chosen & (torch.arange(end) < first - 1))  # a query always sees itself
            scored.append(left)
    if not all(bool(left.any()) for left in scored):
        return None
    rows, hidden = [row, *rows], [torch.zeros(end, dtype=torch.bool), *hidden]
    tokens = torch.stack(rows).to(model.device)
    logits = _masked_logits(model, tokens, torch.stack(hidden), first - 1) if way == "mask" else _logits(model, tokens)
    log_p = logits[:, first - 1 : -1].float().log_softmax(-1).gather(-1, tokens[:, first:, None])[..., 0].cpu().double()
    keep = torch.stack(scored).double()
    cut = (log_p[1:] * keep).sum(-1) / keep.sum(-1)
    untouched = ((log_p[0] * keep).sum(-1) / keep.sum(-1)).mean()
    low_mean, others_mean = cut.view(draws, 2).mean(0).tolist()
    return float(untouched), low_mean, others_mean, float(np.mean(pairs)), float(np.mean(distances))


def paired_tokens(
    low: Bool[np.ndarray, " pos"], start: int, generator: np.random.Generator, reach: int = REACH
) -> np.ndarray:
    """Pairs ``[pair, (low, other)]`` of positions, every position once, partners in the same part of the text.

    Args:
        low: of the text up to the end of the first copy.
        start: of the first copy; position 0 takes no part.
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


def _logits(model: Model, tokens: Int64[Tensor, "row pos"]) -> Tensor:
    return model.tl(tokens) if not model.fast else model.plain_logits(tokens)


def _masked_logits(
    model: Model, tokens: Int64[Tensor, "row pos"], hidden: Bool[Tensor, "row pos"], first_query: int
) -> Tensor:
    """Logits where queries from ``first_query`` on cannot see the hidden keys of their row.

    The mask is checked on row 0, which hides nothing: it has to give what the model gives without one.

    Raises:
        ModelError: it does not.
    """
    assert model.plain is not None
    rows, width = tokens.shape
    position = torch.arange(width)
    seen = (position[:, None] >= position).expand(rows, 1, width, width).clone()
    seen[:, 0, first_query:] &= ~hidden[:, None]
    mask = torch.zeros(seen.shape, dtype=model.dtype).masked_fill(~seen, torch.finfo(model.dtype).min)
    logits = model.plain(input_ids=tokens, attention_mask=mask.to(tokens.device), use_cache=False).logits
    error = (logits[0] - model.plain_logits(tokens[:1])[0]).abs().max().item()
    if error > _SAME_LOGITS * max(1.0, logits[0].abs().max().item()):
        raise ModelError(
            f"{model.name}, whose logits move by {error:.2g} under a mask that hides nothing",
            "a model that takes a mask of queries and keys",
            "choose way='swap'",
        )
    return logits
