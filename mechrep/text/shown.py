"""Texts as people read them: what each token adds, the loop marked, nothing that a terminal would obey."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from mechrep.text.corpus import Corpus

Decode = Callable[[list[int]], str]
_BEFORE = 16  # tokens that decide how the next one is written

_KEPT_WHITESPACE = "\n\t"


def printable(text: str) -> str:
    """Text with control characters written out, except line ends and tabs.

    Example:
        >>> printable("red\\x1b[31m")
        'red\\\\x1b[31m'
    """
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in ("Cc", "Cf") and character not in _KEPT_WHITESPACE
        else character
        for character in text
    )


def marked_text(
    ids: Sequence[int],
    decode: Decode,
    *,
    prompt_length: int,
    start: int | None,
    onset: int | None,
) -> str:
    """A text with a bar after its prompt, the first copy of its loop in single and the rest in double brackets.

    Args:
        ids: the whole text.
        decode: from ids to text.
        prompt_length: ids of the prompt.
        start: of the first copy, or ``None``.
        onset: of the second copy, or ``None``.

    Example:
        >>> marked_text([0, 1, 2, 1, 2], lambda ids: "".join("abc"[i] for i in ids), prompt_length=1, start=1, onset=3)
        'a│⟨bc⟩⟪bc⟫'
    """
    marks = {prompt_length: "│"}
    if start is not None and onset is not None:
        marks[start] = marks.get(start, "") + "⟨"
        marks[onset] = "⟩" + marks.get(onset, "") + "⟪"
        marks[len(ids)] = marks.get(len(ids), "") + "⟫"
    # Many tokenizers decode a piece alone differently (no leading space), so only whole beginnings are decoded.
    ids = list(ids)
    whole, done, text = decode(ids), 0, ""
    for place in sorted(marks):
        end = min(len(decode(ids[:place])), len(whole))
        text += printable(whole[done:end]) + marks[place]
        done = max(done, end)
    return text + printable(whole[done:])


def described_texts(corpus: Corpus, decode: Decode) -> Iterator[str]:
    """For each text of a corpus with cycles: whether and where it loops, and the text with its loop marked.

    Example:
        >>> from mechrep.text.corpus import Corpus
        >>> corpus = Corpus.from_tokens([[0, 1, 2, 3]]).with_cycles()
        >>> next(described_texts(corpus, lambda ids: "".join("abcd"[i] for i in ids))).splitlines()
        ['[1/1] no loop', '│abcd']
    """
    for number, facts in enumerate(corpus.frame.to_dict("records")):
        start, onset, said = None, None, "no loop"
        if not pd.isna(facts["onset"]):
            start, onset = int(facts["start"]), int(facts["onset"])
            said = f"onset {onset}, period {int(facts['period'])}, {facts['copies']:.1f} copies"
        prompt_length = int(facts["prompt_length"])
        text = marked_text(corpus.row(number), decode, prompt_length=prompt_length, start=start, onset=onset)
        yield f"[{number + 1}/{len(corpus)}] {said}\n{text}\n"


def token_texts(ids: Sequence[int], decode: Decode) -> list[str]:
    """What each token adds to the text; together they are the text.

    A token that is half of a character adds nothing, or the whole of it.

    Args:
        ids: the whole text.
        decode: from ids to text, such as ``model.decode``.

    Example:
        >>> token_texts([0, 1, 2], lambda ids: " ".join("abc"[i] for i in ids))
        ['a', ' b', ' c']
    """
    ids, pieces, done = list(ids), [], 0
    whole = decode(ids)
    for place in range(len(ids)):
        before = ids[max(0, place - _BEFORE) : place]
        length = len(decode([*before, ids[place]])) - (len(decode(before)) if before else 0)
        end = len(whole) if place == len(ids) - 1 else min(len(whole), done + max(0, length))
        pieces.append(whole[done:end])
        done = end
    return pieces
