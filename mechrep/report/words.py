"""The words of the report: Markdown files with fields, filled with numbers; here no sentence is composed.

``text/NAME.md`` holds blocks under headings: ``# title``, ``# lead`` and, for another case, ``# lead: VARIANT``;
``# claim: KEY`` (``which component | what is claimed``); ``# answer: KEY VERDICT`` (a sentence for the first screen);
``# main figure`` (the key of the one beside the claims; by default the first); ``# table: KEY`` (its caption);
``# figure: KEY`` (its caption), ``# figure title: KEY`` (in place of the figure's own); ``# view: KEY`` and
``# view title: KEY`` (of a text to look at); ``# notes``, ``# limits``, ``# source``.  A field in braces is replaced by
a number or a short name; what it may contain never becomes markup.  Of Markdown it knows ``**bold**``, code between
backticks, ``[words](#place)``, lists of lines that begin with a dash, and blank lines between paragraphs.
"""

from __future__ import annotations

import functools
import html
import math
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mechrep.errors import InputError
from mechrep.sections import plain_value
from mechrep.tables import MINUS
from mechrep.tables import column_texts as column_texts
from mechrep.tables import number as number

TEXT = Path(__file__).parent / "text"
_FIELD = "\ue000{}\ue001"  # private characters: they mark a field's place while the rest becomes HTML
_ARXIV = re.compile(r"arXiv[: ](\d{4}\.\d{4,5})")


# --- values -----------------------------------------------------------------------------------------------------------


def few(names: str) -> str:
    """A list of names, of which more than three are counted; ``{names:few}`` in the texts.

    Example:
        >>> few("L1H0, L2H0"), few("L1H0, L2H0, L2H3, L4H1")
        ('L1H0, L2H0', 'L1H0, L2H0 + 2 more')
    """
    each = names.split(", ")
    return names if len(each) <= 3 else f"{', '.join(each[:2])} + {len(each) - 2} more"


def clean(value: Any) -> Any:
    """Like :func:`~mechrep.sections.plain_value`, and infinite numbers are ``None``, too: JSON has no word for them."""
    if isinstance(value, Mapping):
        return {str(key): clean(one) for key, one in value.items()}
    value = plain_value(value)
    if isinstance(value, list):
        return [clean(one) for one in value]
    return None if isinstance(value, float) and math.isinf(value) else value


# --- fields -----------------------------------------------------------------------------------------------------------


class _Fields(string.Formatter):
    """Python's format, with plain names only, the report's numbers, and ``few``."""

    def __init__(self, place: str) -> None:
        self.place = place

    def get_field(  # pyright: ignore[reportIncompatibleMethodOverride] - no numbered fields here
        self, field_name: str, _args: Any, kwargs: Mapping[str, Any]
    ) -> tuple[Any, str]:
        if field_name not in kwargs:
            known = ", ".join(sorted(kwargs)) or "none"
            raise InputError(f"{self.place} uses {{{field_name}}}", f"one of the section's fields: {known}",
                             "correct the text, or give the section this field")  # fmt: skip
        return kwargs[field_name], field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        value = plain_value(value)
        if value is None or not format_spec:
            return number(value)
        if format_spec == "few":
            return few(number(value))
        try:
            text = format(value, format_spec)
        except (ValueError, TypeError) as error:
            raise InputError(f"{self.place}: {value!r} as {format_spec!r}", "a format that fits the value",
                             f"correct the text ({error})") from error  # fmt: skip
        if not isinstance(value, (int, float)):
            return text
        return text.replace("-", MINUS).replace("%", "\u00a0%")


def _filled(text: str, fields: Mapping[str, Any], place: str) -> tuple[str, list[str]]:
    """The text with marks for its fields, and what belongs there."""
    formatter, values, parts = _Fields(place), [], []
    try:
        pieces = list(formatter.parse(text))
    except ValueError as error:
        raise InputError(f"{place}: {error}", "fields like {name} or {name:.1f}", "write {{ for a brace") from error
    for literal, name, spec, _ in pieces:
        parts.append(literal)
        if name is not None:
            parts.append(_FIELD.format(len(values)))
            value, _ = formatter.get_field(name, (), fields)
            values.append(formatter.format_field(value, spec or ""))
    return "".join(parts), values


def _put(text: str, values: Sequence[str]) -> str:
    return re.sub(_FIELD.format(r"(\d+)"), lambda match: values[int(match[1])], text)


def to_text(text: str, fields: Mapping[str, Any], place: str) -> str:
    """The block as plain text: fields filled, markup taken away, one line per paragraph or bullet.

    Example:
        >>> to_text("**{n}** of [heads](#term-head)", {"n": 1408}, "here")
        '1,408 of heads'
    """
    marked, values = _filled(text, fields, place)
    marked = re.sub(r"\[([^\]]+)\]\([^)\s]+\)", r"\1", marked).replace("**", "").replace("`", "")
    return "\n".join(_put(line, values) for line in _lines(marked))


def to_html(text: str, fields: Mapping[str, Any], place: str) -> Markup:
    """The block as HTML without a paragraph around it; text in fields stays text.

    Example:
        >>> print(to_html("**{n}** {name}", {"n": 2, "name": "<b>"}, "here"))
        <strong>2</strong> &lt;b&gt;
    """
    marked, values = _filled(text, fields, place)
    return Markup(_put(_inline(" ".join(_lines(marked))), [html.escape(value) for value in values]))


def blocks_html(text: str, fields: Mapping[str, Any], place: str) -> list[Markup]:
    """Paragraphs and lists, each with its element around it."""
    marked, values = _filled(text, fields, place)
    safe, blocks = [html.escape(value) for value in values], []
    for block in re.split(r"\n\s*\n", marked.strip()):
        lines = [_put(_inline(line.removeprefix("- ")), safe) for line in _lines(block)]
        if block.startswith("- "):
            blocks.append(Markup("<ul>" + "".join(f"<li>{line}</li>" for line in lines) + "</ul>"))
        elif block:
            blocks.append(Markup(f"<p>{' '.join(lines)}</p>"))
    return blocks


def _lines(text: str) -> list[str]:
    """Wrapped lines joined again: one per paragraph or bullet."""
    joined: list[str] = []
    for block in re.split(r"\n\s*\n", text.strip()):
        fresh = True
        for line in block.splitlines():
            if fresh or line.startswith("- "):
                joined.append(line.strip())
            else:
                joined[-1] += " " + line.strip()
            fresh = False
    return joined


def _inline(text: str) -> str:
    text = html.escape(text)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    text = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)
    text = re.sub(r"\[([^\]]+)\]\((#[\w-]+)\)", r'<a href="\2">\1</a>', text)
    text = re.sub(r"\[([^\]]+)\]\((https://[^\s)]+)\)", r'<a href="\2" rel="noreferrer">\1</a>', text)
    return _ARXIV.sub(r'<a href="https://arxiv.org/abs/\1" rel="noreferrer">arXiv \1</a>', text)


# --- files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Words:
    """One file of words, by heading.

    Attributes:
        file: its name, for messages.
        blocks: text by heading, in the order of the file.
    """

    file: str
    blocks: Mapping[str, str] = field(default_factory=dict)

    def __contains__(self, heading: str) -> bool:
        return heading in self.blocks

    def block(self, heading: str) -> str:
        """The text under a heading.

        Raises:
            InputError: there is none.
        """
        if heading not in self.blocks:
            raise InputError(f"{self.file} without the heading '# {heading}'", "one for everything a section holds",
                             f"write '# {heading}' and its words into {self.file}")  # fmt: skip
        return self.blocks[heading]

    def place(self, heading: str) -> str:
        """How messages name a block."""
        return f"{self.file}, '# {heading}'"

    def text(self, heading: str, fields: Mapping[str, Any]) -> str:
        """A block as plain text."""
        return to_text(self.block(heading), fields, self.place(heading))

    def html(self, heading: str, fields: Mapping[str, Any]) -> Markup:
        """A block as HTML that stands in a line."""
        return to_html(self.block(heading), fields, self.place(heading))

    def parts(self, heading: str, fields: Mapping[str, Any], way: str = "html") -> tuple[str, str]:
        """A block in two parts: before and after its bar; the first is empty where there is none.

        Args:
            heading: of the block.
            fields: that it mentions; a bar in them is none.
            way: ``"html"`` or ``"text"``.
        """
        written = to_html if way == "html" else to_text
        who, bar, what = self.block(heading).partition(" | ")
        parts = (who, what) if bar else ("", who)
        return str(written(parts[0], fields, self.place(heading))), str(written(parts[1], fields, self.place(heading)))

    def paragraphs(self, heading: str, fields: Mapping[str, Any]) -> list[Markup]:
        """A block as paragraphs and lists; none where the heading is missing."""
        return blocks_html(self.blocks.get(heading, ""), fields, self.place(heading))


def words_of(name: str, folder: Path | None = None) -> Words:
    """The words of ``text/NAME.md``.

    Args:
        name: of a section, or ``"intro"``, ``"glossary"``, ``"missing"``.
        folder: of the texts; by default mechrep's own.

    Raises:
        InputError: no such file, a heading twice, words above the first heading.

    Example:
        >>> "lead" in words_of("missing"), "claim: x" in words_of("missing")
        (True, False)
    """
    path = (folder or TEXT) / f"{name}.md"
    if not re.fullmatch(r"[a-z0-9]+([-_][a-z0-9]+)*", name) or not path.is_file():
        raise InputError(f"section {name!r}", f"a text {path.name} in {path.parent}", "write its words there")
    return _read(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _read(path: Path, _changed: int) -> Words:
    file = f"report/text/{path.name}"
    first, *pieces = re.split(r"^# +", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    blocks: dict[str, str] = {}
    for piece in pieces:
        heading, _, body = piece.partition("\n")
        if heading.strip() in blocks:
            raise InputError(f"{file} with the heading '# {heading.strip()}' twice", "each once", "join the two")
        blocks[heading.strip()] = body.strip()
    if first.strip():
        raise InputError(f"{file} with words above its first heading", "headings like '# title'", "add a heading")
    return Words(file, blocks)
