"""``patching_contrast``: what a head wrote in another text, put in the place of what it writes in a repeating one.

At the position that predicts the first token of a copy, ``z`` of one head is replaced by what it was in a donor text:
of another condition, or of a text without repetition.  Donors are from the same prompt where there is one, else drawn.
A donor with a cycle gives the position that predicts the same copy, one without gives the same position in the text,
so that heads which attend by position see the same distances.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.cache.corpus_cache import CorpusCache
from mechrep.errors import InputError, NothingFoundError
from mechrep.generation.conditions.joined import joined_conditions
from mechrep.interventions import Heads, mean
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.provenance import provenance_of
from mechrep.studies.ablation.scores import ScoredText, score_tokens
from mechrep.studies.contrast.ablation import all_heads
from mechrep.studies.contrast.result import HeadContrastResult
from mechrep.studies.contrast.shards import in_shards
from mechrep.studies.contrast.texts import cyclic_texts, labels_of
from mechrep.text.corpus import Corpus


def patching_contrast(
    model: Model,
    conditions: Sequence[Corpus],
    donors: Corpus,
    *,
    copy: int = 1,
    seed: int = 0,
    store: str | Path | None = None,
    progress: bool | None = None,
) -> HeadContrastResult:
    """Patch every head alone, from donor texts into the texts of conditions.

    ``effect = log p(e | z_h from the donor) - log p(e)`` at the position that predicts the first token ``e`` of a copy
    (the second, where the seam is not the text's own), in nats.

    Args:
        model: the model.
        conditions: texts that are patched.
        donors: a condition, whose texts give ``z``; its own texts are not patched.
        copy: copy whose first token is predicted, from 1, the second copy, on.
        seed: of the choice of donors.
        store: folder in which finished shards of texts are kept.
        progress: show a progress bar.

    Returns:
        A result with one operation, named after the donors' builder; NaN for texts without a donor that is as long.

    Raises:
        InputError: fewer than one copy, conditions that cannot be joined.
        NothingFoundError: no text has a donor that is as long.

    Source: interchange of activations between runs: Vig et al. 2020 (arXiv 2004.12265), Geiger et al. 2021
    (2106.02997).

    Limits: one position is patched; what heads wrote into earlier ones stays.

    Example:
        >>> import mechrep
        >>> from mechrep.generation.conditions import induced_condition, natural_condition
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> prompts = mechrep.generation.sample_prompts(model, 4)
        >>> natural = natural_condition(model, prompts, max_new_tokens=100)
        >>> induced = induced_condition(model, prompts, 2, "cycle", max_new_tokens=100)
        >>> patching_contrast(model, [natural], induced).ops
        ['patched from icl_from_cycle(2)']
    """
    if copy < 1:
        raise InputError(f"copy={copy}", "1, the second copy, or a later one", "choose another")
    joined = joined_conditions(*conditions, n_ctx=model.anatomy.n_ctx, copies=copy)
    giving = joined_conditions(donors, n_ctx=model.anatomy.n_ctx, copies=copy)
    for corpus in (joined, giving):
        corpus.check_model(model)
    corpus, heads, cache = cyclic_texts(joined), all_heads(model), CorpusCache(model, giving, progress=False)
    config = {"study": "patching contrast", "donors": donors.fingerprint(), "copy": copy, "seed": seed}
    provenance = provenance_of(model, corpus, config)

    def patched(text: int) -> np.ndarray:
        place = _place(corpus, text, copy)
        chosen = (
            None if place is None else _donor(corpus, text, place, giving, copy, np.random.default_rng([seed, text]))
        )
        if place is None or chosen is None:
            return np.full(len(heads) + 1, np.nan)
        table = _outputs(cache, *chosen)
        asked = ScoredText(tuple(corpus.row(text)[: place + 1]), place, place - 1, text)
        (scores,) = score_tokens(model, [asked], [None, *(Heads([one], mean(table)) for one in heads)], progress=False)
        return scores.log_probability[:, 0].numpy()

    found = in_shards(
        corpus.frame["id"].astype(str).tolist(), lambda texts: [patched(text) for text in texts],
        provenance=provenance, store=store, what="patching heads", progress=progress,
    )  # fmt: skip
    values = torch.from_numpy(np.stack(found))
    size = (1, len(corpus), 1, model.anatomy.n_layers, model.anatomy.n_heads)
    effects, untouched = (values[:, 1:] - values[:, :1]).view(size), values[:, :1].clone()
    if untouched.isnan().all():
        raise NothingFoundError(
            f"{len(giving)} donors, none as long as any of {len(corpus)} texts at the position asked about",
            "donors that reach that far",
            "build controls with more max_new_tokens, or patch from another condition",
        )
    name = "+".join(sorted(set(donors.frame["builder"])))
    return HeadContrastResult(
        provenance,
        effects=effects.contiguous(),
        untouched=untouched,
        ops=[f"patched from {name}"],
        ids=corpus.frame["id"].tolist(),
        conditions=labels_of(corpus),
        prompts=corpus.frame["prompt"].tolist(),
        new_tokens=0,
    )


def _place(corpus: Corpus, text: int, copy: int) -> int | None:
    """Position of the first token of a copy that counts; ``None`` if the text ends before it."""
    facts = corpus.frame.iloc[text]
    place = int(facts["start"]) + copy * int(facts["period"]) + int(bool(facts["seam"]))
    return place if place < int(corpus.lengths[text]) else None


def _donor(
    corpus: Corpus, text: int, place: int, donors: Corpus, copy: int, generator: np.random.Generator
) -> tuple[int, int] | None:
    """A donor text, and the position in it that predicts; ``None`` if no donor is long enough."""
    places = []
    for donor in range(len(donors)):
        cyclic = not np.isnan(donors.frame["copies"][donor])
        found = _place(donors, donor, copy) if cyclic else place
        places.append(found if found is not None and found <= int(donors.lengths[donor]) else None)
    usable = [donor for donor, found in enumerate(places) if found is not None]
    if not usable:
        return None
    same = [donor for donor in usable if donors.frame["prompt"][donor] == corpus.frame["prompt"][text]]
    chosen = same[0] if same else usable[int(generator.integers(len(usable)))]
    found = places[chosen]
    assert found is not None
    return chosen, found - 1


def _outputs(cache: CorpusCache, text: int, position: int) -> Float[Tensor, "layer head d_head"]:
    """What all heads write at one position."""
    return cache.get(Site.Z, texts=[text], positions=slice(position, position + 1))[:, 0, 0].float()
