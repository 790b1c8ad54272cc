"""Texts as people read them: what each token adds, the loop marked, nothing that a terminal would obey."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from mechrep.text.corpus import Corpus

Decode = Callable[[list[int]], str]
_UNFINISHED = "\ufffd"  # what decoders write for bytes that are no character yet
_LONGEST_CHARACTER = 4  # bytes, so at most so many tokens

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
    return "".join(marked_parts(ids, decode, prompt_length=prompt_length, start=start, onset=onset))


def marked_parts(
    ids: Sequence[int], decode: Decode, *, prompt_length: int, start: int | None, onset: int | None
) -> tuple[str, str]:
    """The same in two: the prompt with its bar, and what follows.

    Example:
        >>> marked_parts([0, 1, 2], lambda ids: "".join("│bc"[i] for i in ids), prompt_length=1, start=None, onset=None)
        ('││', 'bc')
    """
    marks = {prompt_length: "│"}
    if start is not None and onset is not None:
        marks[start] = marks.get(start, "") + "⟨"
        marks[onset] = "⟩" + marks.get(onset, "") + "⟪"
        marks[len(ids)] = marks.get(len(ids), "") + "⟫"
    # Many tokenizers decode a piece alone differently (no leading space), so only whole beginnings are decoded.
    ids = list(ids)
    whole, done, pieces = decode(ids), 0, {True: "", False: ""}
    for place in sorted(marks):
        end = min(len(decode(ids[:place])), len(whole))
        pieces[place <= prompt_length] += printable(whole[done:end]) + marks[place]
        done = max(done, end)
    return pieces[True], pieces[False] + printable(whole[done:])


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


def token_spans(ids: Sequence[int], decode: Decode) -> tuple[str, list[tuple[int, int]]]:
    """The text of some ids, and the characters that each of them writes.

    Tokens that are parts of one character have the span of that character.  Each piece is decoded behind the one before
    it, because many tokenizers drop the blank in front of a piece that stands alone.

    Args:
        ids: without special ones.
        decode: from ids to text.

    Example:
        >>> token_spans([0, 1], lambda ids: "".join(["the", " sea"][i] for i in ids))
        ('the sea', [(0, 3), (3, 7)])
    """
    ids, text, spans = list(ids), "", []
    context, done = 0, 0
    for end in range(1, len(ids) + 1):
        before, now = decode(ids[context:done]) if done else "", decode(ids[context:end])
        unfinished = now.endswith(_UNFINISHED) and end < len(ids) and end - done < _LONGEST_CHARACTER
        if unfinished:
            continue
        piece = now[len(before) :]
        spans += [(len(text), len(text) + len(piece))] * (end - done)
        text += piece
        context, done = done, end
    return text, spans


def token_texts(ids: Sequence[int], decode: Decode, special_ids: Collection[int] = ()) -> list[str]:
    """The text of each token, as it stands in the text: with its blank in front, special tokens by their names.

    Args:
        ids: of the text.
        decode: from ids to text, such as ``model.decode``.
        special_ids: ids that stand for themselves, such as BOS.

    Returns:
        One text per token; of the tokens that are parts of one character the first has it, and the others are empty.

    Example:
        >>> token_texts([2, 0, 1], lambda ids: "".join(["the", " sea", "<s>"][i] for i in ids), {2})
        ['<s>', 'the', ' sea']
    """
    texts: list[str] = []
    run: list[int] = []
    for token in [*ids, None]:
        if token is not None and token not in special_ids:
            run.append(token)
            continue
        if run:
            whole, spans = token_spans(run, decode)
            texts += ["" if i and spans[i] == spans[i - 1] else whole[slice(*spans[i])] for i in range(len(run))]
            run = []
        if token is not None:
            texts.append(decode([token]))
    return texts
