"""``ablation_contrast``: every head cut alone, in natural loops and in induced copying, from cached continuations.

Nothing is generated: the conditions' texts and their expected tokens are known, and each (head, text) is one row of a
batch of teacher-forced scores (:mod:`mechrep.studies.ablation.scores`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from mechrep.errors import InputError
from mechrep.generation.conditions.joined import COPIES, joined_conditions
from mechrep.interventions import Heads
from mechrep.interventions.base import Intervention, When
from mechrep.models import tiny
from mechrep.models.model import Model
from mechrep.provenance import provenance_of
from mechrep.studies.contrast.reference import OPS, HeadReference, head_reference
from mechrep.studies.contrast.result import HeadContrastResult
from mechrep.studies.contrast.shards import copy_scores
from mechrep.studies.contrast.texts import cyclic_texts, labels_of
from mechrep.text.corpus import Corpus
from mechrep.text.windows import windows_of_text


def all_heads(model: Model) -> list[tuple[int, int]]:
    """All heads of a model, layer by layer."""
    return [(layer, head) for layer in range(model.anatomy.n_layers) for head in range(model.anatomy.n_heads)]


def reference_of(model: Model, reference: Corpus | None) -> HeadReference:
    """What heads write in the reference texts; by default windows of the embedded held-out text, which is English."""
    length = min(model.anatomy.n_ctx, 128)
    return head_reference(
        model, reference or windows_of_text(model, tiny.held_out_text(), length=length), progress=False
    )


def ablation_contrast(
    model: Model,
    conditions: Sequence[Corpus],
    *,
    ops: Sequence[str] = ("mean",),
    reference: Corpus | None = None,
    when: When = "all",
    copies: int = COPIES,
    seed: int = 0,
    store: str | Path | None = None,
    progress: bool | None = None,
) -> HeadContrastResult:
    """Cut every head alone and see what each condition loses.

    With the text ``prefix, cycle, cycle, ...`` and its tokens given, ``effect = mean over a copy's tokens of
    (log p with the head cut - log p without)``, in nats per token, for copies 1 (the second) to ``copies``.  The same
    estimator at the same positions for both conditions.

    Args:
        model: the model.
        conditions: natural and induced, built from one list of prompts; texts without a cycle are left out.
        ops: ``"mean"`` (the head's mean over reference text), ``"zero"``, ``"resample"`` (what all heads wrote at one
            position of it), ``"to_bos"``.
        reference: texts that do not repeat, for ``mean`` and ``resample``: a control condition; by default windows of
            the embedded held-out text.
        when: ``"all"``: cut at every position, so what a head writes into the first copy is gone too (as a
            previous-token head does); ``"from_onset"``: from the position that predicts the second copy on.
        copies: copies beyond the first.
        seed: of ``resample``.
        store: folder in which finished shards of texts are kept, so that a stopped run goes on.
        progress: show a progress bar.

    Raises:
        InputError: conditions that cannot be joined, none with a cycle, an unknown operation.
        StoreError: the store cannot be read or written.

    Source: cutting heads in both conditions is Mahaut & Franzon 2025's (arXiv 2504.01100), who write every text again
    under every cut and count loops.  A natural prompt loops by construction before the cut, so counts have a ceiling
    there and none in the induced condition; log-probabilities have none in either.

    Limits: heads that do the same work hide each other when each is cut alone.

    Example:
        >>> import mechrep
        >>> from mechrep.generation.conditions import induced_condition, natural_condition
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> prompts = mechrep.generation.sample_prompts(model, 6)
        >>> natural = natural_condition(model, prompts, max_new_tokens=100)
        >>> induced = induced_condition(model, prompts, 2, "cycle", max_new_tokens=100)
        >>> result = ablation_contrast(model, [natural, induced], ops=["zero"], copies=1)
        >>> result.new_tokens, len(result.contrast()) == model.anatomy.n_layers * model.anatomy.n_heads
        (0, True)
    """
    if not ops or not set(ops) <= set(OPS) or len(set(ops)) < len(ops):
        raise InputError(f"ops={list(ops)}", f"some of {OPS}, each once", "choose among these")
    joined = joined_conditions(*conditions, n_ctx=model.anatomy.n_ctx, copies=copies)
    joined.check_model(model)
    corpus, heads = cyclic_texts(joined), all_heads(model)
    known = reference_of(model, reference) if {"mean", "resample"} & set(ops) else None
    cuts: list[Intervention | None] = [None]
    for name in ops:
        op = name if known is None else known.op(name, seed)
        cuts += [Heads([unit], op, when) for unit in heads]
    config = {"study": "ablation contrast", "ops": list(ops), "when": when, "copies": copies, "seed": seed}
    if known is not None:
        config["reference"] = [float(known.mean.double().sum()), len(known.samples)]
    provenance = provenance_of(model, corpus, config)
    values = copy_scores(
        model, corpus, cuts, when=when, copies=copies, provenance=provenance, store=store, progress=progress
    )
    shape = (len(corpus), len(ops), model.anatomy.n_layers, model.anatomy.n_heads, copies)
    effects = (values[:, 1:] - values[:, :1]).reshape(shape).transpose(1, 0, 4, 2, 3)
    return HeadContrastResult(
        provenance,
        effects=torch.from_numpy(effects.copy()),
        untouched=torch.from_numpy(values[:, 0].copy()),
        ops=list(ops),
        ids=corpus.frame["id"].tolist(),
        conditions=labels_of(corpus),
        prompts=corpus.frame["prompt"].tolist(),
        new_tokens=0,
    )
