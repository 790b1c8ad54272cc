"""``head_dissociation``: cut the heads of one condition all together, and see what *both* conditions lose.

Heads are found on one half of the prompts and cut on the other, beside as many random and layer-matched heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from mechrep.errors import InputError
from mechrep.generation.conditions.joined import COPIES, joined_conditions
from mechrep.interventions import Heads
from mechrep.interventions.base import Intervention, When
from mechrep.models.model import Model
from mechrep.provenance import provenance_of
from mechrep.stats import paired_bootstrap_interval
from mechrep.studies.contrast.ablation import ablation_contrast, reference_of
from mechrep.studies.contrast.shards import copy_scores
from mechrep.studies.contrast.texts import cyclic_texts, labels_of
from mechrep.studies.head_controls import control_heads
from mechrep.text.corpus import Corpus

Unit = tuple[int, int]
HeadSet = tuple[str, str, int, list[Unit]]  # condition that they matter in, selection, draw, heads


def head_dissociation(
    model: Model,
    conditions: Sequence[Corpus],
    *,
    k: int,
    op: str = "mean",
    controls: Sequence[str] = ("random",),
    draws: int = 5,
    reference: Corpus | None = None,
    when: When = "all",
    copies: int = COPIES,
    strict: bool = True,
    seed: int = 0,
    store: str | Path | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Cut the ``k`` heads that matter most in each condition, together, in texts on which they were not found.

    Args:
        model: the model.
        conditions: natural and induced, built from one list of prompts.
        k: heads cut together.
        op: as in :func:`~mechrep.studies.contrast.ablation.ablation_contrast`, as are ``reference`` to ``copies``.
        controls: ``"random"``, ``"layer_matched"``, see :func:`mechrep.studies.head_controls.control_heads`.
        draws: of each control.
        reference: as there.
        when: as there.
        copies: as there.
        strict: refuse controls that cannot be drawn; otherwise they are left out, and ``attrs["left_out"]`` of the
            table says why.
        seed: of the split and the draws.
        store: folder in which finished shards of texts are kept.
        progress: show a progress bar.

    Returns:
        One row per set of heads and condition: ``heads_of`` (the condition that they matter in), ``selection``
        (``"top"`` or a control), ``draw``, ``heads``, ``condition``, the mean ``effect`` (change of log p, nats per
        token), ``low`` and ``high`` (bootstrap over texts), ``n``.

    Raises:
        InputError: fewer than two prompts in a condition, ``k`` larger than there are heads, controls that cannot be
            drawn.

    Example:
        >>> import mechrep
        >>> from mechrep.generation.conditions import induced_condition, natural_condition
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> prompts = mechrep.generation.sample_prompts(model, 8)
        >>> natural = natural_condition(model, prompts, max_new_tokens=100)
        >>> induced = induced_condition(model, prompts, 2, "cycle", max_new_tokens=100)
        >>> table = head_dissociation(model, [natural, induced], k=1, op="zero", draws=1, copies=1)
        >>> sorted(set(table["heads_of"])), sorted(set(table["selection"]))
        (['induced', 'natural'], ['random', 'top'])
    """
    joined = cyclic_texts(joined_conditions(*conditions, n_ctx=model.anatomy.n_ctx, copies=copies))
    find, test = halves(joined, seed)
    known = reference_of(model, reference) if op in ("mean", "resample") else None
    effects = ablation_contrast(
        model, [find], ops=[op], reference=reference, when=when, copies=copies, seed=seed, store=store,
        progress=progress,
    ).head_effects()  # fmt: skip
    tops = {condition: effects.top(k, condition) for condition in dict.fromkeys(labels_of(find))}
    sets, left_out = _head_sets(model, tops, controls, range(seed, seed + draws), strict)
    cut = op if known is None else known.op(op, seed)
    cuts: list[Intervention | None] = [None, *(Heads(units, cut, when) for *_, units in sets)]
    config = {"study": "head dissociation", "sets": [list(one) for one in sets], "op": op, "when": when}
    if known is not None:
        config["reference"] = [float(known.mean.double().sum()), len(known.samples)]
    by_copy = copy_scores(
        model, test, cuts, when=when, copies=copies, store=store, progress=progress, what="cutting sets of heads",
        provenance=provenance_of(model, test, config | {"copies": copies, "seed": seed}),
    )  # fmt: skip
    values = _known_mean(by_copy)
    changes, labels = values[:, 1:] - values[:, :1], np.array(labels_of(test), dtype=object)
    rows = []
    for number, (owner, selection, draw, units) in enumerate(sets):
        for condition in dict.fromkeys(labels):
            here = changes[labels == condition, number]
            here = here[~np.isnan(here)]
            ends = paired_bootstrap_interval(here, seed=seed)
            names = " ".join(f"{layer}.{head}" for layer, head in units)
            rows.append((owner, selection, draw, names, condition, here.mean(), *ends, len(here)))
    columns = ["heads_of", "selection", "draw", "heads", "condition", "effect", "low", "high", "n"]
    frame = pd.DataFrame(rows, columns=columns)
    frame.attrs["left_out"] = left_out
    return frame


def _head_sets(
    model: Model, tops: dict[str, list[Unit]], controls: Sequence[str], seeds: Sequence[int], strict: bool
) -> tuple[list[HeadSet], dict[str, str]]:
    """Sets to cut, and why some control is not among them."""
    anatomy, sets, left_out = model.anatomy, [], {}
    for condition, top in tops.items():
        sets.append((condition, "top", 0, top))
        for control in controls:
            try:
                drawn = [
                    control_heads(control, top, n_layers=anatomy.n_layers, n_heads=anatomy.n_heads, seed=one)
                    for one in seeds
                ]
            except InputError as error:
                if strict:
                    raise
                left_out[f"{control}, {condition}"] = str(error)
                continue
            sets += [(condition, control, draw, units) for draw, units in enumerate(drawn)]
    return sets, left_out


def _known_mean(values: Float[np.ndarray, "text cut copy"]) -> Float[np.ndarray, "text cut"]:
    """Mean over the copies that a text has; NaN where it has none."""
    counts = (~np.isnan(values)).sum(-1)
    return np.divide(np.nansum(values, -1), counts, out=np.full(counts.shape, np.nan), where=counts > 0)


def halves(corpus: Corpus, seed: int) -> tuple[Corpus, Corpus]:
    """Two halves of the prompts, each with texts of every condition; a prompt's texts stay together.

    Raises:
        InputError: a condition with fewer than two prompts.
    """
    generator, labels = np.random.default_rng(seed), np.array(labels_of(corpus), dtype=object)
    prompts, chosen = corpus.frame["prompt"].to_numpy(dtype=object), set()
    memberships: dict[str, str] = {}
    for prompt, label in zip(prompts, labels, strict=True):
        memberships[prompt] = memberships.get(prompt, "") + label
    for membership in dict.fromkeys(memberships.values()):
        group = [prompt for prompt, own in memberships.items() if own == membership]
        order = generator.permutation(len(group))
        chosen |= {group[i] for i in order[: (len(group) + 1) // 2]}
    mask = np.array([prompt in chosen for prompt in prompts])
    for name in dict.fromkeys(labels):
        if not mask[labels == name].any() or mask[labels == name].all():
            raise InputError(
                f"condition {name!r} with {int((labels == name).sum())} texts", "at least two prompts", "try more"
            )
    return corpus.select(mask), corpus.select(~mask)
