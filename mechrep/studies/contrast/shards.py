"""Scores of many texts under many cuts, a shard of texts at a time, so that a stopped study goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mechrep.interventions.base import Intervention, When
from mechrep.models.model import Model
from mechrep.progress import progress_bar
from mechrep.provenance import Provenance
from mechrep.studies.ablation.scores import score_tokens
from mechrep.studies.contrast.texts import copy_means, scored_texts
from mechrep.studies.journal import Journal
from mechrep.text.corpus import Corpus

SHARD = 16  # texts: enough to fill batches, few enough to lose little


def in_shards(
    ids: Sequence[str],
    compute: Callable[[Sequence[int]], Sequence[np.ndarray]],
    *,
    provenance: Provenance,
    store: str | Path | None,
    what: str,
    progress: bool | None,
) -> list[np.ndarray]:
    """One array per text, computed shard by shard; finished shards are read back from the store.

    Args:
        ids: of the texts.
        compute: gives the arrays of some texts by their numbers; it must not depend on which texts share a shard.
        provenance: of the study: what the arrays depend on.
        store: folder of finished shards.
        what: name of the progress bar.
        progress: show it.

    Raises:
        StoreError: the store cannot be read or written.

    Example:
        >>> from mechrep.provenance import Provenance
        >>> def squares(texts):
        ...     return [np.array([text**2]) for text in texts]
        >>> nothing = Provenance({}, {}, {})
        >>> found = in_shards(["a", "b"], squares, provenance=nothing, store=None, what="", progress=False)
        >>> [one.tolist() for one in found]
        [[0.0], [1.0]]
    """
    journal = None if store is None else Journal(Path(store), provenance)
    found: list[np.ndarray] = []
    with progress_bar(len(ids), what, "text", progress) as bar:
        for shard, begin in enumerate(range(0, len(ids), SHARD)):
            numbers = range(begin, min(begin + SHARD, len(ids)))
            records = None if journal is None else journal.find(shard)
            if records is None:
                records = _records(ids, numbers, compute(numbers))
                if journal is not None:
                    journal.keep(shard, records)
            found += [np.array(record["values"], dtype=float) for record in records]
            bar.update(len(numbers))
    return found


def _records(ids: Sequence[str], numbers: Sequence[int], arrays: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    return [{"text": ids[i], "values": array.tolist()} for i, array in zip(numbers, arrays, strict=True)]


def copy_scores(
    model: Model,
    corpus: Corpus,
    cuts: Sequence[Intervention | None],
    *,
    when: When,
    copies: int,
    provenance: Provenance,
    store: str | Path | None = None,
    progress: bool | None = None,
    what: str = "cutting heads",
) -> Float[np.ndarray, "text cut copy"]:
    """Mean log-probability of each copy behind the first, for every text and cut; NaN where a text has no such copy.

    Args:
        model: the model.
        corpus: texts with cycles.
        cuts: ``None`` is the untouched model.
        when: ``"all"`` or ``"from_onset"``.
        copies: copies beyond the first.
        provenance: of the study.
        store: folder of finished shards.
        progress: show a progress bar.
        what: its name.

    Raises:
        InputError: another ``when``.
        StoreError: the store cannot be read or written.
    """
    texts = scored_texts(corpus, when)

    def compute(numbers: Sequence[int]) -> list[np.ndarray]:
        scored = score_tokens(model, [texts[i] for i in numbers], cuts, progress=False)
        return [copy_means(corpus, i, s.log_probability, copies) for i, s in zip(numbers, scored, strict=True)]

    ids = corpus.frame["id"].astype(str).tolist()
    found = in_shards(ids, compute, provenance=provenance, store=store, what=what, progress=progress)
    return np.stack(found)
