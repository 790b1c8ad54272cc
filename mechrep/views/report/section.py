"""``Section``: a question, its answer, and what the answer rests on; the page is made of these.

A new section is a file with one function, ``xxx_section(study) -> Section``, and a line in
:mod:`mechrep.views.report.sections`.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mechrep.views.finding import Verdict
from mechrep.views.report.figures import ReportFigure
from mechrep.views.report.tables import ReportTable

escape = html.escape


@dataclass(frozen=True)
class Badge:
    """A verdict in a few words.

    Attributes:
        kind: ``"good"`` (found, beyond controls), ``"open"`` (not decided) or ``"none"`` (not found).
        words: plain text.
    """

    kind: Literal["good", "open", "none"]
    words: str

    @classmethod
    def of(cls, verdict: Verdict, what: str = "") -> Badge:
        """The badge of a verdict, with what it is about."""
        kinds: dict[Verdict, tuple[Literal["good", "open", "none"], str]] = {
            "beyond controls": ("good", "beyond every control"),
            "beyond controls, few texts": ("open", "beyond controls, but few texts"),
            "not beyond controls": ("none", "not beyond controls"),
            "no controls": ("open", "no controls"),
        }
        kind, words = kinds[verdict]
        return cls(kind, f"{what}: {words}" if what else words)


@dataclass(frozen=True)
class Section:
    """One question of the report.  All texts are plain; they are escaped when they become HTML.

    Attributes:
        title: the question.
        anchor: id of the section in the page, a word or two with hyphens; the navigation shows it.
        finding: the answer in one sentence.
        answer: paragraphs that say it with numbers, intervals and controls.
        badges: verdicts in a few words.
        figures: in the order of the argument.
        tables: after the figures.
        notes: how it was measured, as (what, how).
        limits: what it cannot say.
        source: where the method comes from.
        opening: finished HTML between the answer and the figures; who makes it escapes what stands in it.
        closing: the same after the tables.
    """

    title: str
    anchor: str
    finding: str
    answer: Sequence[str] = ()
    badges: Sequence[Badge] = ()
    figures: Sequence[ReportFigure] = ()
    tables: Sequence[ReportTable] = ()
    notes: Sequence[tuple[str, str]] = ()
    limits: Sequence[str] = ()
    source: str = ""
    opening: Sequence[str] = ()
    closing: Sequence[str] = ()

    @property
    def label(self) -> str:
        """What the navigation calls it."""
        return self.anchor.replace("-", " ").capitalize()

    def to_html(self) -> str:
        """The section as HTML.

        Example:
            >>> '<p class="lead">It is &lt;so&gt;.</p>' in Section("Is it so?", "so", "It is <so>.").to_html()
            True
        """
        parts = [
            f"<h2>{escape(self.title)}</h2>",
            f'<p class="lead">{escape(self.finding)}</p>',
            badges_html(self.badges),
            *(f"<p>{escape(paragraph)}</p>" for paragraph in self.answer),
            *self.opening,
            *(figure.to_html() for figure in self.figures),
            *(table.to_html() for table in self.tables),
            *self.closing,
            self._methods(),
        ]
        return f'<section id="{escape(self.anchor)}">{"".join(parts)}</section>'

    def _methods(self) -> str:
        parts = []
        if self.notes:
            lines = "".join(f"<li><b>{escape(what)}.</b> {escape(how)}</li>" for what, how in self.notes)
            parts.append(f"<h3>How it was measured</h3><ul>{lines}</ul>")
        if self.limits:
            lines = "".join(f"<li>{escape(line)}</li>" for line in self.limits)
            parts.append(f"<h3>What this cannot say</h3><ul>{lines}</ul>")
        if self.source:
            parts.append(f'<p class="note">{escape(self.source)}</p>')
        return "".join(parts)


def badges_html(badges: Sequence[Badge]) -> str:
    """Badges in a row; nothing of none."""
    spans = "".join(f'<span class="verdict {badge.kind}">{escape(badge.words)}</span>' for badge in badges)
    return f'<p class="badges">{spans}</p>' if spans else ""
