"""The frame of the report: one file that holds its style, its script and plotly, and asks nobody for anything.

``Section``: a question, its answer, and what the answer rests on; the page is made of these.

A new section is a file with one function, ``xxx_section(study) -> Section``, and a line in
:mod:`mechrep.report.write`.

What the studies of a report hold: their results by name, as one record of provenance, and as files.

The report's tables as HTML.  Every cell is escaped, numbers stand right.

A figure's place in the report: what is drawn, how to read it, and where it misleads.

What the command line prints: text from a model with its loop marked, and plain tables.

A terminal obeys control characters, so those that a model wrote are shown and not sent.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go

from mechrep.ablation.circuit import Circuit
from mechrep.ablation.old_sweeps import SweepResult, Verdict
from mechrep.errors import StoreError
from mechrep.figures import GRID, INK, PAPER, PAPER_INK
from mechrep.report.terminal import described_texts as described_texts
from mechrep.results import Result
from mechrep.text.corpus import Corpus

_LONG = ("conditions", "circuits")  # settings of every condition: they stand whole in the saved results
_KEPT = (Result, Corpus, Circuit, pd.DataFrame)


def parts_of(study: Any, kind: type) -> Iterator[tuple[str, Any]]:
    """Everything of a kind that a study holds, by the names of its fields.

    What stands in a list or a mapping is named by its key or its number, what stands in a record of its own by the
    names of both fields.
    """
    for field in _fields(study):
        yield from _within(getattr(study, field), field, kind)


def _fields(record: Any) -> Sequence[str]:
    if dataclasses.is_dataclass(record):
        return [field.name for field in dataclasses.fields(record)]
    return record._fields  # a named tuple


def _within(value: Any, name: str, kind: type) -> Iterator[tuple[str, Any]]:
    if isinstance(value, kind):
        yield name, value
    elif isinstance(value, _KEPT):
        return
    elif dataclasses.is_dataclass(value) or hasattr(value, "_fields"):
        for field in _fields(value):
            yield from _within(getattr(value, field), f"{name}-{field}", kind)
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _within(one, f"{name}-{key}", kind)
    elif isinstance(value, (list, tuple)):
        for number, one in enumerate(value):
            yield from _within(one, f"{name}-{number}", kind)


def provenance_html(studies: Sequence[Any]) -> str:
    """Model, texts, versions and settings as folded JSON."""
    record: dict[str, Any] = {}
    for study in studies:
        part = record[_name(study)] = {"study": study.provenance.to_dict()}
        for name, result in parts_of(study, Result):
            part[name] = result.provenance.to_dict()
            part[name]["config"] = {key: value for key, value in part[name]["config"].items() if key not in _LONG}
    text = html.escape(json.dumps(record, indent=2, ensure_ascii=False, default=str))
    summary = "<summary>Provenance: model, texts, versions, settings</summary>"
    return f'<section id="provenance"><details>{summary}<pre>{text}</pre></details></section>'


def save_tables(studies: Any, folder: str | Path) -> Path:
    """Write the numbers of one study or several: tables as Parquet, results as safetensors with JSON.

    ``tables/`` holds one Parquet file per table, ``results/`` one folder per result (``Result.load`` reads it back),
    ``circuits/`` what was cut (``Circuit.load``, ``mechrep ablate``), ``corpus.parquet`` the texts; what a study has
    besides (``examples.json``, ``kinds.json``) is what its name says, and so is ``provenance.json``.

    Args:
        studies: one study, or several of different kinds (:mod:`mechrep.report.write` lists them).
        folder: made if it is missing.

    Returns:
        The folder.

    Raises:
        StoreError: the folder cannot be written.
    """
    target, given = Path(folder), list(studies) if isinstance(studies, Sequence) else [studies]
    try:
        (target / "tables").mkdir(parents=True, exist_ok=True)
        for study in given:
            _save_study(study, target)
        _write(target / "provenance.json", {_name(study): study.provenance.to_dict() for study in given})
    except OSError as error:
        raise StoreError(
            f"folder {target} ({error.strerror})", "a place to write", "free space or choose another"
        ) from error
    return target


def _save_study(study: Any, target: Path) -> None:
    for name, result in parts_of(study, Result):
        result.to_frame().to_parquet(target / "tables" / f"{name}.parquet")
        result.save(target / "results" / name)
        if isinstance(result, SweepResult):
            result.outcome_frame().to_parquet(target / "tables" / f"{name}_outcomes.parquet")
    for name, table in parts_of(study, pd.DataFrame):
        table.to_parquet(target / "tables" / f"{name}.parquet")
    for name, corpus in parts_of(study, Corpus):
        corpus.save(target / f"{name}.parquet")
    for name, circuit in parts_of(study, Circuit):
        (target / "circuits").mkdir(exist_ok=True)
        circuit.save(target / "circuits" / f"{name}.json")
    for name in ("examples", "kinds"):
        if isinstance(records := getattr(study, name, None), (list, tuple)):
            _write(target / f"{name}.json", [_plain(record) for record in records])


def _plain(record: Any) -> Any:
    return dataclasses.asdict(record) if dataclasses.is_dataclass(record) else record  # pyright: ignore


def _write(path: Path, record: Any) -> None:
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")


def _name(study: Any) -> str:
    return str(study.provenance.config.get("study", type(study).__name__))


_LONG_TABLE, _WRAPPED = 36, ' class="words"'


@dataclass(frozen=True)
class ReportTable:
    """A table that scrolls in its own box.

    Attributes:
        caption: above the table, plain text.
        head: names of the columns, plain text.
        rows: cells; columns of numbers are right-aligned, everything is escaped.
        note: below the table, plain text.

    Example:
        >>> "<td>&lt;b&gt;</td>" in ReportTable("one", ["name"], [["<b>"]]).to_html()
        True
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""

    def to_html(self) -> str:
        """Caption, table, note."""
        places = range(len(self.head))
        numeric = [all(shown(row[i])[:1] in "0123456789−+–∞" for row in self.rows) for i in places]
        kinds = [' class="number"' if is_number else "" for is_number in numeric]
        named = zip(self.head, kinds, strict=True)
        heads = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in named)
        lines = ["".join(_cell(shown(cell), kind) for cell, kind in zip(row, kinds, strict=True)) for row in self.rows]
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        below = f'<p class="note">{escape(self.note)}</p>' if self.note else ""
        return (
            f'<h3>{escape(self.caption)}</h3><div class="table" tabindex="0">'
            f'<table aria-label="{escape(self.caption)}"><thead><tr>{heads}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>{below}"
        )


def _cell(text: str, kind: str) -> str:
    """One cell; a sentence in it may break."""
    return f"<td{kind or (_WRAPPED if len(text) > _LONG_TABLE else '')}>{escape(text)}</td>"


def shown(cell: object) -> str:
    """Whole numbers with separators, others with four decimals, so that they line up; text as it is.

    Example:
        >>> shown(1408), shown(-0.5), shown("a")
        ('1,408', '−0.5000', 'a')
    """
    if isinstance(cell, float):
        return decimals(cell, 4)
    return f"{cell:,}" if isinstance(cell, Integral) else str(cell)


def decimals(number: float, places: int = 2, *, sign: bool = False) -> str:
    """A number with a real minus sign; a dash where it is not known.

    Args:
        number: the number.
        places: decimals.
        sign: write a plus, too.

    Example:
        >>> decimals(-1.5), decimals(1.5, 1, sign=True), decimals(float("nan")), decimals(-0.001)
        ('−1.50', '+1.5', '–', '0.00')
    """
    if math.isnan(number):
        return "–"
    text = "∞" if math.isinf(number) else f"{abs(number):.{places}f}"
    if not text.strip("0."):
        return text
    return f"−{text}" if number < 0 else f"+{text}" if sign else text


def interval(value: float, low: float, high: float, places: int = 2, *, sign: bool = False) -> str:
    """A number with its interval in brackets.

    Example:
        >>> interval(0.5, 0.4, 0.6), interval(-0.5, -0.625, 0.125, 1)
        ('0.50 [0.40 to 0.60]', '−0.5 [−0.6 to 0.1]')
    """
    ends = (decimals(low, places, sign=sign), decimals(high, places, sign=sign))
    return f"{decimals(value, places, sign=sign)} [{ends[0]} to {ends[1]}]"


_TITLE = 44  # pixels of a figure's upper margin that its title takes; in the page it stands above the figure


@dataclass(frozen=True)
class ReportFigure:
    """A figure with its place in the report.

    Attributes:
        name: id of its element; unique in the page.
        figure: the figure.
        reading: how to read it.
        pitfall: where it misleads.
    """

    name: str
    figure: go.Figure
    reading: str
    pitfall: str

    def to_html(self) -> str:
        """Heading, an empty box that the page's script draws into, and the caption."""
        layout = self.figure.to_plotly_json()["layout"]
        words = layout["title"]
        title, subtitle = words["text"], words["subtitle"]["text"]  # both were escaped when the figure was made
        return (
            f'<figure id="figure-{self.name}"><h3>{title}</h3><p class="subtitle">{subtitle}</p>'
            f'<div class="plot" id="{self.name}" style="min-height:{_height(layout)}px" role="img" '
            f'aria-label="{html.escape(html.unescape(title))}"></div>'
            f"<figcaption>{html.escape(self.reading)} <strong>Mind:</strong> "
            f"{html.escape(self.pitfall)}</figcaption></figure>"
        )


def figures_json(figures: Iterable[ReportFigure]) -> str:
    """The figures without their titles (the page sets them), as JSON that can stand inside a ``<script>`` element.

    ``<``, ``>`` and ``&`` are written as escapes, so no text from a model can end the element.

    Example:
        >>> figure = go.Figure().update_layout(title={"text": "</script>", "subtitle": {"text": ""}})
        >>> "<" in figures_json([ReportFigure("one", figure, "", "")])
        False
    """
    parts = {}
    for part in figures:
        record = json.loads(str(part.figure.to_json()))
        layout = record["layout"]
        del layout["title"]
        margin = layout.get("margin", {})
        margin["t"] = max(40, margin.get("t", 104) - _TITLE)
        layout |= {"margin": margin, "height": _height(layout)}
        parts[part.name] = record
    text = json.dumps(parts, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _height(layout: dict) -> int:
    """Pixels in the page: a figure of many panels loses the room of its title, a plain one keeps it for its data."""
    height = int(layout.get("height", 420))
    return height if height <= 420 else height - _TITLE


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


escape = html.escape


def header_html(model_name: str, sections: Sequence[Section]) -> str:
    """The title, and every section's finding with a link to it."""
    findings = "".join(
        f'<li><a href="#{escape(section.anchor)}">{escape(section.title)}</a>'
        f"<p>{escape(section.finding)}</p>{badges_html(section.badges)}</li>"
        for section in sections
    )
    return (
        f'<header id="top"><p class="kicker">Repetition in <span class="model">{escape(model_name)}</span></p>'
        f'<h1>Why does {escape(model_name)} repeat itself?</h1><ol class="findings">{findings}</ol></header>'
    )


def navigation_html(sections: Sequence[Section]) -> str:
    """Links to all sections, which stay in sight."""
    anchors = [("top", "Findings"), *((section.anchor, section.label) for section in sections)]
    links = "".join(f'<a href="#{escape(anchor)}">{escape(label)}</a>' for anchor, label in anchors)
    return f'<nav aria-label="sections">{links}<a href="#provenance">Provenance</a></nav>'


def page_html(title: str, navigation: str, body: str, figures: str, plotly: str) -> str:
    """The whole page.  A content security policy forbids every request, and every script but two by their hashes.

    Args:
        title: plain text.
        navigation: HTML.
        body: HTML.
        figures: of :func:`mechrep.report.page.figures_json`.
        plotly: the library's source.
    """
    # Line ends are those of HTML, because the hashes are taken after they are read.
    script, plotly = (text.replace("\r\n", "\n").replace("\r", "\n") for text in (_asset("report.js"), plotly))
    hashes = " ".join(_hash(text) for text in (plotly, script))
    policy = f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {hashes}"
    colours = json.dumps({"ink": INK, "grid": GRID, "paper": PAPER, "paper-ink": PAPER_INK})
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="mechrep">
<title>{escape(title)}</title>
<style>
{_asset("report.css")}</style>
</head>
<body>
<button id="theme" type="button" aria-label="switch between light and dark">◐</button>
{navigation}
<main>
{body}
<noscript><p class="note">The figures are drawn by a script inside this file; this browser runs none.</p></noscript>
</main>
<script type="application/json" id="figures">{figures}</script>
<script type="application/json" id="colours">{colours}</script>
<script>{plotly}</script>
<script>{script}</script>
</body>
</html>
"""


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return resources.files("mechrep.report").joinpath(name).read_text(encoding="utf-8")


def text_table(frame: pd.DataFrame) -> str:
    """A small table in columns of characters.

    Example:
        >>> print(text_table(pd.DataFrame({"k": [1, 20], "share": [0.5, 0.25]})))
         k  share
         1 0.5000
        20 0.2500
    """
    return frame.to_string(index=False, float_format=lambda number: f"{number:.4f}")
