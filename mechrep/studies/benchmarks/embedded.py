"""Questions made from the embedded held-out text: benchmarks that need no file and no network.

1. ``continuation``: forty words of the text; which of four passages comes next?  One does, three stand elsewhere in the
   same text.  All four have as many words and as many characters, so that none is likelier for being shorter.
2. ``recall``: a passage, and the same passage again, cut before a word; which word comes?  One does, the other three
   stand in the passage too.  All four are drawn first and the asked one among them, so that without reading back there
   is nothing to tell them apart but what fits the sentence.  This is copying in context, which a patch may hurt.

Words are what blanks and line breaks separate, joined by single blanks: any tokenizer can read them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from mechrep.errors import InputError
from mechrep.models import tiny

Question = dict[str, Any]
QUESTIONS, CHOICES = 100, 4
CONTEXT, ENDING = 40, 8  # words shown, words of a continuation
PASSAGE, SKIPPED = 32, 8  # words of a passage that is shown twice; the first of them are never asked for
_APART = 100  # words between a false continuation and the place that is asked about
_ENOUGH = CHOICES * 2 * ENDING  # passages of one length, so that three of them do not overlap
_SHORTEST = 4  # letters of a word that is asked for


def continuation_questions(text: str | None = None, *, questions: int = QUESTIONS, seed: int = 0) -> list[Question]:
    """Which of four passages comes next?

    Args:
        text: held-out English by default.
        questions: how many, from places spread evenly over the text.
        seed: of the false continuations and the order of places and choices.

    Returns:
        Records with ``id`` (number of the first word that is shown), ``query``, ``choices`` and ``gold``; of every four
        in a row, each place among the choices is right once.

    Raises:
        InputError: no question asked for, or a text with too few places for them.

    Limits: a false continuation may betray itself by its first word alone.  That is language, too, but it does not
    need the forty words.

    Example:
        >>> first = continuation_questions()[0]
        >>> len(first["query"].split()), [len(choice.split()) for choice in first["choices"]]
        (40, [8, 8, 8, 8])
        >>> len({len(choice) for choice in first["choices"]})
        1
    """
    words = _words(text)
    endings = [" ".join(words[place : place + ENDING]) for place in range(len(words) - ENDING + 1)]
    by_length: dict[int, list[int]] = {}
    for place, ending in enumerate(endings):
        by_length.setdefault(len(ending), []).append(place)
    alike = {length: np.array(places) for length, places in by_length.items()}
    places = range(CONTEXT, len(endings))
    known = [place for place in places if (abs(alike[len(endings[place])] - place) >= _APART).sum() >= _ENOUGH]
    chosen, right, generator = _draw(known, questions, seed)
    made = []
    for place, gold in zip(chosen, right, strict=True):
        false = _elsewhere(place, alike[len(endings[place])], endings, generator)
        choices = [*false[:gold], endings[place], *false[gold:]]
        start = place - CONTEXT
        made.append({"id": str(start), "query": " ".join(words[start:place]), "choices": choices, "gold": gold})
    return made


def recall_questions(text: str | None = None, *, questions: int = QUESTIONS, seed: int = 0) -> list[Question]:
    """A passage shown twice and cut before a word: which word of it comes?

    Args:
        text: held-out English by default.
        questions: how many, from places spread evenly over the text.
        seed: of the words that are asked for and the order of places and choices.

    Returns:
        Records as in :func:`continuation_questions`; the choices stand in the order in which they were drawn.

    Raises:
        InputError: no question asked for, or a text with too few places for them.

    Limits: a model may also find the word because it fits, so the level is no measure of copying; the change under an
    intervention, beside that of ``continuation``, is what this is for.

    Example:
        >>> first = recall_questions()[0]
        >>> whole, again = first["query"].split("\\n")
        >>> whole.startswith(f"{again} {first['choices'][first['gold']]}")
        True
    """
    words = _words(text)
    plain = [word.strip(".,;:!?\"'()-_").lower() for word in words]
    asked = {}
    for start in range(len(words) - PASSAGE + 1):
        fit = _asked(words[start : start + PASSAGE], plain[start : start + PASSAGE])
        if len(fit) >= CHOICES:
            asked[start] = fit
    starts, right, generator = _draw(list(asked), questions, seed)
    made = []
    for start, gold in zip(starts, right, strict=True):
        passage = words[start : start + PASSAGE]
        chosen = generator.permutation(asked[start])[:CHOICES].tolist()
        query = f"{' '.join(passage)}\n{' '.join(passage[: chosen[gold]])}"
        made.append({"id": str(start), "query": query, "choices": [passage[place] for place in chosen], "gold": gold})
    return made


def _words(text: str | None) -> list[str]:
    return (tiny.held_out_text() if text is None else text).split()


def _draw(places: Sequence[int], questions: int, seed: int) -> tuple[list[int], list[int], np.random.Generator]:
    """Places to ask about, spread evenly but in a random order, and which choice is right there."""
    if not 1 <= questions <= len(places):
        raise InputError(
            f"{questions} questions from a text with {len(places)} places for one",
            "at least one question, and as many places",
            "use a longer text or ask for fewer",
        )
    generator = np.random.default_rng(seed)
    spread = np.linspace(0, len(places) - 1, questions).astype(int)
    right = [int(place) for _ in range(-(-questions // CHOICES)) for place in generator.permutation(CHOICES)]
    return [places[number] for number in generator.permutation(spread)], right[:questions], generator


def _elsewhere(
    place: int, places: Int[np.ndarray, " place"], endings: Sequence[str], generator: np.random.Generator
) -> list[str]:
    """Passages of the same length that overlap neither each other nor what is near the place asked about."""
    taken: list[int] = []
    for other in generator.permutation(places[abs(places - place) >= _APART]).tolist():
        apart = all(abs(other - one) >= ENDING for one in taken)
        if apart and endings[other] not in [endings[one] for one in (place, *taken)]:
            taken.append(other)
        if len(taken) == CHOICES - 1:
            return [endings[one] for one in taken]
    raise InputError(
        f"{len(taken)} different passages of {len(endings[place])} characters", f"{CHOICES - 1}", "use another text"
    )


def _asked(passage: Sequence[str], plain: Sequence[str]) -> list[int]:
    """Places of words that can be asked for: plain, not at the beginning, and there once however they are written."""
    counts = Counter(plain)
    return [
        place
        for place, word in enumerate(passage)
        if place >= SKIPPED and len(word) >= _SHORTEST and word.isalpha() and word.islower() and counts[word] == 1
    ]
