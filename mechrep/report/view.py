"""What a section shows: its words with their fields filled, its claims, tables and figures as they are read.

The page, ``report.json`` and the terminal are three renderings of this one view.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup

from mechrep.ablation.effects import NOT_SUPPORTED, SUPPORTED, TOO_FEW, UNITS
from mechrep.errors import InputError
from mechrep.figures import counted
from mechrep.guards import each_once
from mechrep.pictures.figure import WIDTH, picture_of
from mechrep.report.words import Words, clean, number, words_of
from mechrep.sections import LEFT_OUT, MISSING, Section, plain_value, slug, slugs
from mechrep.tables import cells_of, chance, column_texts
from mechrep.viewer.still import still_of

VERDICTS = (SUPPORTED, TOO_FEW, NOT_SUPPORTED)  # in the order of the table of claims
_NOT_MADE = (MISSING, LEFT_OUT)  # sections that hold nothing but their reason
ROWS = 200  # rows of a table that the page holds; the Parquet file has all of them
_SCALED = ("baseline", "value", "effect", "low", "high", "control_low", "control_high")
_BESIDE = 520  # pixels of a figure that stands beside the claims, at most
_SMALL = (380, 150)  # pixels of a small picture
_SCALED_DOWN = 580  # pixels that a figure beside the claims is wide
_TITLE = 44  # pixels of a figure's upper margin that its title takes; the page sets the title above the figure


@dataclass(frozen=True)
class ClaimView:
    """One row of the table of claims, as text.

    Attributes:
        anchor: of the row in the table of claims.
        html: what is claimed, in words.
        who: of which component, where the words name one before a bar.
        text: both without markup.
        verdict: of :func:`mechrep.ablation.effects.judge`.
        level: the baseline's value and the value under the condition.
        effect: their difference.
        interval: its 95 % interval.
        unit: of effect, interval and range.
        range: of the effects of control draws or null models, see :func:`mechrep.stats.range_of_draws`.
        controls: how many of which kinds.
        q: corrected within the family.
        p: not corrected.
        family: the tests that were corrected together.
        tests: their number.
        row: the numbers.
        scaled: effect, low, high, control_low, control_high in the unit shown.
        told: what sentences about this claim can mention.
    """

    anchor: str
    html: Markup
    who: Markup
    text: str
    verdict: str
    level: tuple[str, str]
    effect: str
    interval: str
    unit: str
    range: str
    controls: str
    q: str
    p: str
    family: str
    tests: str
    row: Mapping[str, Any]
    scaled: Sequence[float | None]
    told: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class TableView:
    """One table.

    Attributes:
        anchor: of the table.
        caption: HTML.
        text: the caption without markup.
        columns: their names.
        numeric: which hold numbers.
        cells: rows as text, at most :data:`ROWS`.
        values: the same rows as JSON has them.
        total: rows of the whole table.
        file: of the whole table in the report's folder.
    """

    anchor: str
    caption: Markup
    text: str
    columns: Sequence[str]
    numeric: Sequence[bool]
    cells: Sequence[Sequence[str]]
    values: Sequence[Sequence[Any]]
    total: int
    file: str


def _as_script(record: Mapping[str, Any]) -> Markup:
    text = json.dumps(record, separators=(",", ":"), sort_keys=True)
    for mark, written in (("&", "\\u0026"), ("<", "\\u003c"), (">", "\\u003e")):
        text = text.replace(mark, written)  # no text from a model can end the element that holds it
    return Markup(text)


@dataclass(frozen=True)
class FigureView:
    """One figure.

    Attributes:
        anchor: of the figure.
        title: plain text.
        subtitle: plain text.
        caption: HTML.
        text: the caption without markup.
        height: pixels.
        record: data and layout.
        width: of the still picture in pixels.
    """

    anchor: str
    title: str
    subtitle: str
    caption: Markup
    text: str
    height: int
    record: Mapping[str, Any] = field(repr=False)
    width: int

    @property
    def json(self) -> Markup:
        """Data and layout, safe inside a ``<script>`` element."""
        return _as_script(self.record)

    @property
    def still(self) -> Markup:
        """A picture that needs no script."""
        return Markup(picture_of(self.record, width=self.width))

    @property
    def small(self) -> Markup:
        """Its first panel, small."""
        return Markup(picture_of(self.record, width=_SMALL[0], height=_SMALL[1], first=True))

    @property
    def part(self) -> Markup:
        """Its first panel, as large as a figure beside the claims."""
        return Markup(picture_of(self.record, width=_SCALED_DOWN, height=_BESIDE - 120, first=True))


@dataclass(frozen=True)
class TextView:
    """A text to look at.

    Attributes:
        anchor: of the text.
        title: plain text.
        caption: HTML.
        payload: what the viewer is given, see :meth:`mechrep.viewer.show.View.payload`.
    """

    anchor: str
    title: str
    caption: Markup
    payload: Mapping[str, Any]

    @property
    def text(self) -> str:
        """What it is, without markup."""
        return self.title

    @property
    def loops(self) -> bool:
        """Whether it has a loop to be looked at."""
        return self.payload.get("cycle") is not None

    @property
    def still(self) -> Markup:
        """A picture that needs no script."""
        return Markup(still_of(self.payload))

    @property
    def small(self) -> Markup:
        """Its loop, small."""
        return Markup(still_of(self.payload, width=_SMALL[0], brief=True))

    @property
    def json(self) -> Markup:
        """The payload, safe inside a ``<script>`` element."""
        return _as_script(self.payload)


@dataclass(frozen=True)
class SectionView:
    """One section, ready to be rendered.

    Attributes:
        section: the data.
        title: plain text.
        lead: paragraphs.
        lead_text: the same without markup, a line each.
        claims: rows of the table of claims.
        tables: in their order.
        figures: in their order.
        texts: to look at.
        notes: how it was measured.
        limits: what it cannot say.
        source: where the method comes from.
        plain: notes, limits and source without markup.
    """

    section: Section
    title: str
    lead: Sequence[Markup]
    lead_text: str
    claims: Sequence[ClaimView]
    tables: Sequence[TableView]
    figures: Sequence[FigureView]
    texts: Sequence[TextView]
    notes: Sequence[Markup]
    limits: Sequence[Markup]
    source: Sequence[Markup]
    plain: Mapping[str, str]

    @property
    def name(self) -> str:
        """The anchor."""
        return self.section.name

    @property
    def families(self) -> list[str]:
        """Of the claims' q-values."""
        families = dict.fromkeys(claim.family for claim in self.claims if claim.family)
        return [family for family in families if not family.endswith(("(0 tests)", "(1 test)"))]

    @property
    def supported(self) -> int:
        """How many claims are supported."""
        return sum(claim.verdict == SUPPORTED for claim in self.claims)

    @property
    def missing(self) -> bool:
        """Whether the model has nothing that this section could study, or not what it needs."""
        return self.section.variant in _NOT_MADE

    @property
    def null(self) -> bool:
        """Whether the section folds to one line: nothing to study, or no claim is supported and all could be judged."""
        return self.missing or (bool(self.claims) and all(claim.verdict == NOT_SUPPORTED for claim in self.claims))

    @property
    def why_null(self) -> str:
        """What stands on that line."""
        if self.missing:
            return "left out" if self.section.variant == LEFT_OUT else "nothing to study"
        return f"{counted(len(self.claims), 'claim')}, none supported"

    @property
    def main(self) -> FigureView | None:
        """The first figure, where it is not too tall to stand beside the claims."""
        return next((one for one in self.figures[:1] if one.height <= _BESIDE), None)

    @property
    def seen(self) -> TextView | None:
        """The first text with a loop: it stands in the question's own screen."""
        return next((one for one in self.texts if one.loops and not self.null), None)

    @property
    def holds(self) -> str:
        """What is folded away."""
        parts = [
            counted(len(self.figures) - (self.main is not None), "figure"),
            counted(len(self.tables), "table"),
            counted(len(self.texts) - (self.seen is not None), "text"),
            *(["method"] if self.notes else []),
            *(["limits"] if self.limits else []),
        ]
        return ", ".join(part for part in parts if not part.startswith("0 "))


def short_name(name: str) -> str:
    """A model as a page calls it: of a folder somewhere on a disk its last part, of anything else the whole.

    Example:
        >>> short_name("/data/models/net-135m"), short_name("C:\\\\nets\\\\net"), short_name("somebody/net")
        ('net-135m', 'net', 'somebody/net')
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part]
    far = name.startswith(("/", "~", ".")) or len(parts) > 2
    return parts[-1] if parts and far else name


def view_of(section: Section, texts: Path | None = None) -> SectionView:
    """Fill the words of a section.

    Args:
        section: the data.
        texts: folder of the words; by default mechrep's own.

    Raises:
        InputError: a heading or a field that is missing, a format that does not fit; the message names file and field.
    """
    called = section.provenance.model.get("name")
    if isinstance(called, str) and section.fields.get("model") == called:
        section = replace(section, fields={**section.fields, "model": short_name(called)})
    words, fields = words_of(section.name, texts), dict(section.fields)
    leads, heading = words, f"lead: {section.variant}" if section.variant else "lead"
    if section.variant in _NOT_MADE and heading not in words:
        leads, heading = words_of(section.variant), "lead"
    told = () if section.variant in _NOT_MADE else ("notes", "limits", "source")  # of what was measured
    plain = {name: words.text(name, fields) for name in told if name in words}
    blocks = {name: words.paragraphs(name, fields) for name in plain}
    lead_text = leads.text(heading, fields)
    return SectionView(
        section=section,
        title=words.text("title", fields),
        lead=leads.paragraphs(heading, fields),
        lead_text=lead_text,
        claims=_claims(section, words),
        tables=[_table(section, words, key, frame) for key, frame in section.tables.items()],
        figures=[
            _figure(section, words, key, section.figures[key], beside=place == 0)
            for place, key in enumerate(sorted(section.figures, key=lambda one: one != words.blocks.get("main figure")))
        ],
        texts=[_text(section, words, key, payload) for key, payload in section.views.items()],
        notes=blocks.get("notes", []),
        limits=blocks.get("limits", []),
        source=blocks.get("source", []),
        plain=plain,
    )


# --- claims -----------------------------------------------------------------------------------------------------------


def _claims(section: Section, words: Words) -> list[ClaimView]:
    views: list[ClaimView] = []
    for row in section.claims.to_dict("records"):
        facts = {str(name): plain_value(value) for name, value in row.items()}
        if not isinstance(facts.get("claim"), str) or facts.get("verdict") not in VERDICTS:
            raise InputError(
                f"a claim of section {section.name!r}: {facts}",
                "columns 'claim' and 'verdict'",
                "give the rows of judge, with the key of the claim's wording",
            )
        anchor = f"claim-{section.name}-{slug(facts['claim'])}"
        same = sum(re.fullmatch(re.escape(anchor) + r"(-\d+)?", view.anchor) is not None for view in views)
        views.append(_claim(facts, section.fields, words, f"{anchor}-{same + 1}" if same else anchor))
    return views


def _claim(row: Mapping[str, Any], fields: Mapping[str, Any], words: Words, anchor: str) -> ClaimView:
    unit, heading = UNITS[row.get("unit") or "score"], f"claim: {row['claim']}"
    told = dict(fields) | {name: value for name, value in row.items() if value not in (None, "")}
    names = ("effect", "low", "high", "control_low", "control_high")
    scaled = [None if row.get(name) is None else unit.scale * float(row[name]) for name in names]
    effect, low, high, least, most = column_texts(scaled, digits=3, more=1)
    percent = " %" if unit.scale == 100 else ""
    levels = [None if row.get(name) is None else unit.scale * float(row[name]) for name in ("baseline", "value")]
    largest = max((abs(level) for level in levels if level is not None), default=0.0)
    levels = [0.0 if level is not None and abs(level) < largest / 1000 else level for level in levels]
    before, after = (f"{text}{percent if value is not None else ''}"
                     for text, value in zip(column_texts(levels, 3, 1), levels, strict=True))  # fmt: skip
    kinds = str(row.get("controls") or "").replace("_", "-")
    (who, what), (who_text, what_text) = (words.parts(heading, told, way) for way in ("html", "text"))
    return ClaimView(
        anchor=anchor,
        html=Markup(what),
        who=Markup(who),
        text=f"{who_text}: {what_text}" if who_text else what_text,
        verdict=row["verdict"],
        level=(before, after),
        effect=effect,
        interval=_ends(low, high, scaled[1:3]),
        unit=unit.label,
        range=least if least == most and scaled[3] is not None else _ends(least, most, scaled[3:]),
        controls=f"{number(row.get('m'))} × {kinds}" if kinds else "",
        q=chance(row.get("q")),
        p=chance(row.get("p")),
        family=str(row.get("family") or ""),
        tests="".join(re.findall(r"\(([1-9]\d* tests?)\)$", str(row.get("family") or ""))),
        row=row,
        scaled=scaled,
        told=told,
    )


def _ends(low: str, high: str, values: Sequence[float | None]) -> str:
    return "" if None in values else f"{low} to {high}"


# --- tables and figures -----------------------------------------------------------------------------------------------


def _table(section: Section, words: Words, key: str, frame: pd.DataFrame) -> TableView:
    each_once(f"columns of table {key!r} of section {section.name!r}", frame.columns, least=0, remedy="rename one")
    kept, heading = _in_units(frame.head(ROWS)), f"table: {key}"
    columns, numeric, cells = cells_of(kept)
    return TableView(
        anchor=f"table-{section.name}-{slugs(section.tables)[key]}",
        caption=words.html(heading, section.fields),
        text=words.text(heading, section.fields),
        columns=columns,
        numeric=numeric,
        cells=cells,
        values=[[plain_value(value) for value in row] for row in kept.itertuples(index=False, name=None)],
        total=len(frame),
        file=f"sections/{section.name}/tables/{section.table_file(key)}.parquet",
    )


def _in_units(frame: pd.DataFrame) -> pd.DataFrame:
    """A table of effects in the units that claims and figures are in, where it has a column ``unit``."""
    if "unit" not in frame or not set(frame["unit"]) <= set(UNITS):
        return frame
    units = [UNITS[unit] for unit in frame["unit"]]
    numbers = {name: frame[name] * [unit.scale for unit in units] for name in _SCALED if name in frame}
    return frame.assign(**numbers, unit=[unit.label for unit in units])


def _figure(section: Section, words: Words, key: str, figure: go.Figure, beside: bool) -> FigureView:
    record, heading = json.loads(str(figure.to_json())), f"figure: {key}"
    called = str(section.provenance.model.get("name"))
    layout = record["layout"]
    title = layout.pop("title", {})
    margin, height = layout.get("margin", {}), int(layout.get("height", 420))
    margin["t"] = max(40, margin.get("t", 104) - _TITLE)
    layout |= {"margin": margin, "height": height if height <= 420 else height - _TITLE}
    own = f"figure title: {key}"
    return FigureView(
        anchor=f"figure-{section.name}-{slugs(section.figures)[key]}",
        # Labels of figures are escaped when they are made.
        title=words.text(own, section.fields) if own in words else html.unescape(title.get("text", "")),
        subtitle=html.unescape(title.get("subtitle", {}).get("text", "")).replace(called, short_name(called)),
        caption=words.html(heading, section.fields),
        text=words.text(heading, section.fields),
        height=layout["height"],
        record={"data": record["data"], "layout": layout},
        width=_SCALED_DOWN if beside and layout["height"] <= _BESIDE else WIDTH,
    )


def _text(section: Section, words: Words, key: str, payload: Mapping[str, Any]) -> TextView:
    return TextView(
        anchor=f"text-{section.name}-{slugs(section.views)[key]}",
        title=words.text(f"view title: {key}", section.fields),
        caption=words.html(f"view: {key}", section.fields),
        payload=payload,
    )


# --- as JSON ----------------------------------------------------------------------------------------------------------


def section_json(view: SectionView) -> dict[str, Any]:
    """Every word and number of a section; unknown numbers are ``None``."""
    section = view.section
    return {
        "name": section.name,
        "variant": section.variant,
        "title": view.title,
        "lead": view.lead_text,
        "fields": clean(section.fields),
        "claims": [claim_json(claim) for claim in view.claims],
        "tables": {
            table.anchor: {
                "caption": table.text,
                "columns": list(table.columns),
                "rows": clean(table.values),
                "total": table.total,
                "file": table.file,
            }
            for table in view.tables
        },
        "figures": {
            figure.anchor: {"title": figure.title, "subtitle": figure.subtitle, "caption": figure.text}
            for figure in view.figures
        },
        **view.plain,
        "provenance": clean(section.provenance.to_dict()),
    }


def claim_json(claim: ClaimView) -> dict[str, Any]:
    """One claim: its wording and its row."""
    return {"anchor": claim.anchor, "words": claim.text, **clean(claim.row)}
