"""The texts of an ablation study: looping ones with their loops, loop-free ones, and none that were searched."""

from __future__ import annotations

from collections.abc import Set

from mechrep.analyzers.windows import check_onsets
from mechrep.errors import InputError, NothingFoundError
from mechrep.studies.outcomes import OldLoop
from mechrep.text.corpus import Corpus


def unseen(corpus: Corpus, seen: Set[str]) -> Corpus:
    """The texts on which nothing was searched.

    Raises:
        InputError: none is left.
    """
    mask = corpus.frame["id"].isin(set(seen))
    if mask.all():
        raise InputError(
            "a corpus of exactly the texts on which the circuits were found",
            "texts that the search has not seen: testing where one searched inflates the effect",
            "find, test = corpus.split(); search on the one, ablate on the other (or pass held_out=False and say so)",
        )
    return corpus.select(~mask)


def looping_texts(corpus: Corpus) -> tuple[Corpus, list[OldLoop]]:
    """The texts with an onset, and the loop of each.

    Raises:
        NothingFoundError: no text with an onset.
        InputError: a loop that does not lie in its text.
    """
    known = "onset" in corpus.frame and "start" in corpus.frame
    has = corpus.frame["onset"].notna() & corpus.frame["start"].notna() if known else None
    if has is None or not has.any():
        raise NothingFoundError(
            f"{len(corpus)} texts without an onset",
            "texts in which a cycle was found",
            "call corpus.with_cycles() or collect loops with mechrep.generation.collect_loops",
        )
    texts = corpus.select(has)
    check_onsets(texts.frame, texts.lengths)
    places = zip(texts.frame["start"].astype(int), texts.frame["onset"].astype(int), strict=True)
    return texts, [OldLoop(start, onset, tuple(texts.row(i)[start:onset])) for i, (start, onset) in enumerate(places)]


def loop_free_texts(corpus: Corpus, length: int) -> Corpus:
    """The texts without an onset, of at least ``length`` tokens.

    Raises:
        NothingFoundError: there is none.
    """
    free = corpus.frame["onset"].isna().to_numpy() if "onset" in corpus.frame else True
    mask = (corpus.lengths.numpy() >= length) & free
    if not mask.any():
        raise NothingFoundError(
            f"{len(corpus)} texts, none of them loop-free and of {length} tokens or more",
            "loop-free texts to continue",
            "collect some with n_others=, or lower prompt_length",
        )
    return corpus.select(mask)
