"""The dear way to the same question: write every text again under every cut, and see how long it goes on repeating.

It is here to check the cheap one on a sample, and to count what it saves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from mechrep.analyzers.conditions.effects import rank_correlation
from mechrep.errors import InputError
from mechrep.generation.conditions.flow import copy_run
from mechrep.generation.generate import run_requests
from mechrep.generation.requests import Decoding, Request
from mechrep.interventions import Heads
from mechrep.interventions.base import Intervention, When
from mechrep.models.model import Model
from mechrep.provenance import provenance_of
from mechrep.studies.contrast.ablation import all_heads, reference_of
from mechrep.studies.contrast.reference import OPS
from mechrep.studies.contrast.result import HeadContrastResult
from mechrep.studies.contrast.texts import cyclic_texts, labels_of
from mechrep.text.corpus import Corpus


def regenerated_contrast(
    model: Model,
    conditions: Sequence[Corpus],
    *,
    op: str = "mean",
    reference: Corpus | None = None,
    when: When = "all",
    texts: int | None = 16,
    max_new_tokens: int = 64,
    seed: int = 0,
    progress: bool | None = None,
) -> HeadContrastResult:
    """Write the texts of conditions again, greedily, with every head cut alone.

    ``effect`` is the change of the share of ``max_new_tokens`` that goes on with the cycle before another token comes.
    Where two copies meet at a seam that is not the text's own, the first token of the next copy is given.

    Args:
        model: the model.
        conditions: natural and induced.
        op: as in :func:`~mechrep.studies.contrast.ablation.ablation_contrast`, as are the next two.
        reference: as there.
        when: as there.
        texts: a sample of at most so many of each condition; ``None`` takes all.
        max_new_tokens: after each prompt.
        seed: of the sample, and of ``resample``.
        progress: show a progress bar.

    Returns:
        A result with one copy; ``new_tokens`` counts all that was generated.

    Raises:
        InputError: an unknown operation, prompts that leave no room, conditions without a cycle.

    Example:
        >>> import mechrep
        >>> from mechrep.generation.conditions import natural_condition
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> natural = natural_condition(model, mechrep.generation.sample_prompts(model, 4), max_new_tokens=100)
        >>> result = regenerated_contrast(model, [natural], op="zero", texts=1, max_new_tokens=4)
        >>> result.new_tokens <= 4 * (1 + model.anatomy.n_layers * model.anatomy.n_heads)
        True
    """
    if op not in OPS:
        raise InputError(f"op={op!r}", f"one of {OPS}", "choose one of these")
    corpus = _sample(cyclic_texts(Corpus.concatenate(*conditions)), texts, seed)
    heads, known = all_heads(model), reference_of(model, reference) if op in ("mean", "resample") else None
    cut = op if known is None else known.op(op, seed)
    cuts: list[Intervention | None] = [None, *(Heads([unit], cut, when) for unit in heads)]
    seams = corpus.frame["seam"].astype(int).tolist()  # a seam is given: nothing could foresee it
    ends = [int(end) + seam for end, seam in zip(corpus.frame["prompt_length"], seams, strict=True)]
    prompts = [corpus.row(i)[:end] for i, end in enumerate(ends)]
    requests = [
        Request(tuple(prompt), one, 0 if when == "all" else len(prompt) - 1, i)
        for one in cuts
        for i, prompt in enumerate(prompts)
    ]
    answers = run_requests(model, requests, Decoding(max_new_tokens), progress=progress, what="writing again")
    shares = np.array([_share(corpus, a.request.text, a.tokens, max_new_tokens) for a in answers])
    values = torch.from_numpy(shares).view(len(cuts), len(corpus))
    shape = (1, len(corpus), 1, model.anatomy.n_layers, model.anatomy.n_heads)
    config = {"study": "regenerated", "op": op, "when": when, "max_new_tokens": max_new_tokens, "seed": seed}
    return HeadContrastResult(
        provenance_of(model, corpus, config),
        effects=(values[1:] - values[:1]).T.reshape(shape).contiguous(),
        untouched=values[0][:, None].clone(),
        ops=[op],
        ids=corpus.frame["id"].tolist(),
        conditions=labels_of(corpus),
        prompts=corpus.frame["prompt"].tolist(),
        new_tokens=sum(len(answer.tokens) for answer in answers),
    )


def agreement(cheap: HeadContrastResult, dear: HeadContrastResult, *, k: int = 3) -> pd.DataFrame:
    """Do two ways of cutting heads rank and sign them alike?  On the texts that both have.

    Columns: ``condition``; ``rank_correlation``, Spearman's, over all heads, of the effects with their signs;
    ``top_shared`` of the first ``k`` by size; ``signs``, the share of the ``k`` largest of the first way whose sign is
    the same; ``n``.

    Args:
        cheap: of :func:`~mechrep.studies.contrast.ablation.ablation_contrast`.
        dear: of :func:`regenerated_contrast`.
        k: heads compared.

    Raises:
        InputError: no text in common.
    """
    common = [name for name in dear.ids if name in set(cheap.ids)]
    if not common:
        raise InputError("two results without a text in common", "the same conditions", "measure both on them")
    rows = []
    tables = [one.head_effects().values for one in (cheap, dear)]
    for condition in dict.fromkeys(dear.conditions):
        chosen = [name for name, own in zip(dear.ids, dear.conditions, strict=True) if own == condition]
        chosen = [name for name in chosen if name in set(common)]
        means = [
            table[[list(one.ids).index(name) for name in chosen]].mean(0).ravel()
            for table, one in zip(tables, (cheap, dear), strict=True)
        ]
        tops = [set(np.argsort(-np.abs(mean), kind="stable")[:k].tolist()) for mean in means]
        same = [np.sign(means[0][place]) == np.sign(means[1][place]) for place in tops[0]]
        (ranks,) = rank_correlation(means[0][None], means[1][None])
        rows.append((condition, float(ranks), len(tops[0] & tops[1]), float(np.mean(same)), len(chosen)))
    return pd.DataFrame(rows, columns=["condition", "rank_correlation", "top_shared", "signs", "n"])


def _sample(corpus: Corpus, texts: int | None, seed: int) -> Corpus:
    if texts is None:
        return corpus
    generator, labels = np.random.default_rng(seed), np.array(labels_of(corpus), dtype=object)
    chosen: list[int] = []
    for name in dict.fromkeys(labels):
        here = np.flatnonzero(labels == name)
        chosen += sorted(generator.choice(here, min(texts, len(here)), replace=False).tolist())
    return corpus.select(chosen)


def _share(corpus: Corpus, text: int, tokens: Sequence[int], limit: int) -> float:
    """Share of the new tokens that go on with the cycle."""
    start, onset = int(corpus.frame["start"][text]), int(corpus.frame["onset"][text])
    cycle, seam = corpus.row(text)[start:onset], int(corpus.frame["seam"][text])
    return copy_run(tokens, [*cycle[seam:], *cycle[:seam]]) / limit
