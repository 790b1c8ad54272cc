"""What the command line prints: text from a model with its loop marked, and plain tables.

A terminal obeys control characters, so those that a model wrote are shown and not sent.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterator, Sequence

import pandas as pd

from mechrep.studies.card_result import CardResult
from mechrep.text.corpus import Corpus

_KEPT = "\n\t"


def printable(text: str) -> str:
    """Text with control characters written out, except line ends and tabs.

    Example:
        >>> printable("red\\x1b[31m")
        'red\\\\x1b[31m'
    """
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in ("Cc", "Cf") and character not in _KEPT
        else character
        for character in text
    )


def marked_text(
    ids: Sequence[int],
    decode: Callable[[Sequence[int]], str],
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
    whole, done, text = decode(ids), 0, ""
    for place in sorted(marks):
        end = min(len(decode(ids[:place])), len(whole))
        text += printable(whole[done:end]) + marks[place]
        done = max(done, end)
    return text + printable(whole[done:])


def described_texts(corpus: Corpus, decode: Callable[[Sequence[int]], str]) -> Iterator[str]:
    """For each text of a corpus with cycles: whether and where it loops, and the text with its loop marked.

    Example:
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


def text_table(frame: pd.DataFrame) -> str:
    """A small table in columns of characters.

    Example:
        >>> print(text_table(pd.DataFrame({"k": [1, 20], "share": [0.5, 0.25]})))
         k  share
         1 0.5000
        20 0.2500
    """
    return frame.to_string(index=False, float_format=lambda number: f"{number:.4f}")


def card_table(card: CardResult) -> str:
    """A model's card in lines: value, its interval, the bar and whether it is reached, then what was measured.

    Example:
        >>> import mechrep
        >>> from mechrep.studies.card_result import CardRow, card_of
        >>> rows = [CardRow("sink", "best head", 0.5, least=0.6, note="layer 2, head 1")]
        >>> card = card_of(rows, mechrep.load_model("mechrep-tiny"), Corpus.from_tokens([[0]]))
        >>> print(card_table(card))
        sink
            0.500                  at least 0.6   NO    best head (layer 2, head 1)
    """
    lines: list[str] = []
    phenomenon = ""
    for row in card.card_rows():
        if row.phenomenon != phenomenon:
            phenomenon = row.phenomenon
            lines.append(printable(phenomenon))
        interval = "" if math.isnan(row.low) else f"[{row.low:.3f}, {row.high:.3f}]"
        shown = {None: "", True: "yes", False: "NO"}[row.shown]
        measure = printable(row.measure + (f" ({row.note})" if row.note else ""))
        lines.append(f"    {row.value:<8.3f} {interval:<16} {row.bar:<14} {shown:<4}  {measure}")
    return "\n".join(lines)
