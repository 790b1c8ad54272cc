"""The texts of a contrast study: joined conditions, as texts whose tokens are to be predicted."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from torch import Tensor

from mechrep.errors import InputError
from mechrep.interventions.base import When
from mechrep.studies.ablation.scores import ScoredText
from mechrep.text.corpus import Corpus


def labels_of(corpus: Corpus) -> list[str]:
    """Group of each text: its condition, or its builder where a condition has several."""
    pairs = corpus.frame[["condition", "builder"]].drop_duplicates()
    column = "builder" if pairs["condition"].duplicated().any() else "condition"
    return corpus.frame[column].astype(str).tolist()


def cyclic_texts(corpus: Corpus) -> Corpus:
    """The texts with a cycle.

    Raises:
        InputError: there is none.
    """
    has = corpus.frame["start"].notna()
    if not has.any():
        raise InputError(
            f"{len(corpus)} texts without a cycle",
            "a natural or an induced condition",
            "build some with mechrep.natural_condition",
        )
    return corpus.select(has)


def scored_texts(corpus: Corpus, when: When) -> list[ScoredText]:
    """Every text from its second copy on; ``"from_onset"`` edits from the position that predicts it.

    Raises:
        InputError: another ``when``.
    """
    if when not in ("from_onset", "all"):
        raise InputError(f"when={when!r}", "'from_onset' or 'all'", "choose one of these")
    onsets = corpus.frame["onset"].astype(int).tolist()
    return [
        ScoredText(tuple(corpus.row(i)), onset, 0 if when == "all" else onset - 1, i)
        for i, onset in enumerate(onsets)
    ]  # fmt: skip


def copy_means(
    corpus: Corpus, text: int, scores: Float[Tensor, "row token"], copies: int
) -> Float[np.ndarray, "row copy"]:
    """Means over the whole copies behind the first, without seams; NaN for copies that the text does not have."""
    period = int(corpus.frame["period"][text])
    skipped = 1 if bool(corpus.frame["seam"][text]) else 0
    means = np.full((len(scores), copies), np.nan)
    whole = min(copies, scores.shape[1] // period)
    by_copy = scores[:, : whole * period].double().unflatten(1, (whole, period)) if whole else scores[:, None, :0]
    if whole and period > skipped:
        means[:, :whole] = by_copy[..., skipped:].mean(-1).numpy()
    return means
