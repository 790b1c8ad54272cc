"""The page: sections laid out as one HTML file that holds its style, its script and plotly, and loads nothing."""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from mechrep.figures import GRID, INK, PAPER, PAPER_INK
from mechrep.guards import each_once
from mechrep.report.front import front_of
from mechrep.report.view import VERDICTS, ClaimView, SectionView, claim_json, section_json, short_name, view_of
from mechrep.report.words import Words, clean, number, to_html, to_text, words_of
from mechrep.sections import Section, slug
from mechrep.viewer.assets import viewer_script, viewer_style

SHOWN = 12  # rows of a table before "show all"
LINES = 8  # claims of a section before they are folded
_WIDE, _HIGH, _MARGIN = 112, 24, 6  # pixels of the little drawing of an effect beside its controls


Costs = Mapping[str, Mapping[str, float]]  # what each part read, wrote and took


def render_page(
    model_name: str,
    sections: Sequence[Section],
    *,
    command: str = "",
    costs: Costs | None = None,
    redo: Mapping[str, str] | None = None,
    texts: Path | None = None,
) -> str:
    """One self-contained HTML page in three depths: a first screen, a screen for each question, and folded, everything.

    It opens from disk, loads nothing, prints, and is light or dark by the reader's setting (or ``#light``, ``#dark``).
    All text in fields, tables, captions and figures is shown as it is, never as markup.

    Args:
        model_name: as the page shows it.
        sections: in the order of the page.
        command: that makes this page again.
        costs: of each part, see :class:`mechrep.models.meter.Meter`.
        redo: by section, the command that makes it again; by default ``command``.
        texts: folder of the words; by default mechrep's own.

    Raises:
        InputError: no section, or two of one name; words or fields that are missing, with file and name.
    """
    model_name = short_name(model_name)
    views = _views(sections, texts)
    claims = ordered_claims(views)
    facts = _facts(views)
    return page_of(
        "page.html.j2",
        model_name=model_name,
        sections=views,
        claims=claims,
        front=front_of(views, texts),
        viewed=any(view.texts for view in views),
        section_of={claim.anchor: view for view in views for claim in view.claims},
        words=Intro(words_of("intro", texts), _counts(model_name, views)),
        tally=[(verdict, sum(claim.verdict == verdict for claim in claims)) for verdict in VERDICTS],
        glossary=_mentioned(glossary(texts), views, texts),
        facts=[*facts, *_cost_rows(costs or {})],
        made=made_of(views, costs or {}),
        command=command,
        redo={view.name: (redo or {}).get(view.name, command) for view in views},
        provenance=_provenance(views),
    )


def page_of(template: str, **values: Any) -> str:
    """A template of pages, filled: with style, script and figures inside, and a policy that lets only these run.

    Args:
        template: file of this package.
        values: that it mentions.
    """
    script = _asset("page.js").replace("\r\n", "\n")  # as HTML reads it, because the hash is taken of that
    plotly, plotly_hash = _packed_plotly()
    colours = json.dumps({"ink": INK, "grid": GRID, "paper": PAPER, "paper-ink": PAPER_INK})
    hashes = f"{_hash(script)} {plotly_hash} {_hash(viewer_script())}"
    return _template(template).render(
        **values,
        plotly=Markup(plotly),
        script=Markup(script),
        viewer=Markup(viewer_script()),
        viewer_style=Markup(viewer_style()),
        style=Markup(_asset("page.css")),
        colours=Markup(colours),
        policy=f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {hashes}",
    )


@functools.cache
def _packed_plotly() -> tuple[str, str]:
    """The library that draws figures, packed, and its hash: a browser unpacks it where the first figure is seen."""
    from plotly.offline import get_plotlyjs

    script = get_plotlyjs()
    return base64.b64encode(gzip.compress(script.encode(), 9, mtime=0)).decode(), _hash(script)


def report_json(
    model_name: str,
    sections: Sequence[Section],
    *,
    command: str = "",
    costs: Costs | None = None,
    texts: Path | None = None,
) -> dict[str, Any]:
    """Everything on the page as data: words, fields, claims, the rows of its tables, captions, provenance.

    Unknown numbers are ``None``, so that any program can read it.

    Args:
        model_name: as the page shows it.
        sections: in the order of the page.
        command: that makes this report again.
        costs: as there.
        texts: folder of the words; by default mechrep's own.

    Raises:
        InputError: as :func:`render_page`.
    """
    views = _views(sections, texts)
    return {
        "model": model_name,
        "command": command,
        "facts": dict(_facts(views)),
        "costs": {part: dict(cost) for part, cost in (costs or {}).items()},
        "counts": _counts(model_name, views),
        "claims": [claim_json(claim) for claim in ordered_claims(views)],
        "sections": [section_json(view) for view in views],
    }


def ordered_claims(views: Sequence[SectionView]) -> list[ClaimView]:
    """The claims of all sections: those that are supported first, otherwise in the order of the page."""
    claims = [claim for view in views for claim in view.claims]
    return sorted(claims, key=lambda claim: VERDICTS.index(claim.verdict))


def glossary(texts: Path | None = None) -> list[tuple[str, str, Markup]]:
    """Anchor, term and explanation of every term."""
    words = words_of("glossary", texts)
    return [(f"term-{slug(term)}", term, to_html(text, {}, words.place(term))) for term, text in words.blocks.items()]


def _mentioned(
    terms: Sequence[tuple[str, str, Markup]], views: Sequence[SectionView], texts: Path | None
) -> list[tuple[str, str, Markup]]:
    """The terms that a page leads to, and those that their explanations lead to."""
    said = [*words_of("intro", texts).blocks.values()]
    for view in views:
        said += [*view.lead, *view.notes, *view.limits, *view.source, *(claim.html for claim in view.claims)]
        said += [one.caption for one in (*view.tables, *view.figures, *view.texts)]
    explained = {anchor: text for anchor, _, text in terms}
    found: set[str] = set()
    while said:
        new = set(re.findall(r"#(term-[\w-]+)", " ".join(map(str, said)))) & set(explained) - found
        found |= new
        said = [explained[anchor] for anchor in new]
    return [term for term in terms if term[0] in found]


def _views(sections: Sequence[Section], texts: Path | None) -> list[SectionView]:
    each_once("sections", (section.name for section in sections))
    return [view_of(section, texts) for section in sections]


def _counts(model_name: str, views: Sequence[SectionView]) -> dict[str, Any]:
    """What the introduction can mention."""
    claims = ordered_claims(views)
    tally = {verdict.replace(" ", "_"): sum(claim.verdict == verdict for claim in claims) for verdict in VERDICTS}
    return {"model": model_name, "sections": len(views), "claims": len(claims), **tally}


def _facts(views: Sequence[SectionView]) -> list[tuple[str, str]]:
    """Model, versions and date, of the section that was made last."""
    provenance = max((view.section.provenance for view in views), key=lambda one: one.made)
    model = provenance.model
    facts = {
        "Model": model.get("name"),
        "Revision": model.get("revision"),
        "Architecture": model.get("architecture"),
        "Weights": model.get("fingerprint"),
        "Precision": model.get("dtype"),
        "Computed on": model.get("device"),
        "mechrep": provenance.versions.get("mechrep"),
        "TransformerLens": provenance.versions.get("transformer-lens"),
        "Made": provenance.made.replace("T", " ").replace("+00:00", " UTC"),
    }
    return [(name, str(value)) for name, value in facts.items() if value]


def _cost_rows(costs: Costs) -> list[tuple[str, str]]:
    """What each part cost, in words, and all of them together."""
    names = ("seconds", "read", "written")
    whole = {"all parts": {name: sum(cost[name] for cost in costs.values()) for name in names}} if costs else {}
    return [
        (
            f"Cost of {part}",
            f"{in_time(cost['seconds'])}; {cost['read']:,.0f} tokens read, {cost['written']:,.0f} written",
        )
        for part, cost in {**costs, **whole}.items()
    ]


def made_of(views: Sequence[SectionView], costs: Costs) -> str:
    """What a report cost, where and when it was made, in one line.

    Args:
        views: its sections.
        costs: of its parts.
    """
    facts = dict(_facts(views))
    parts = [value for _, value in _cost_rows(costs)[-1:]]
    parts += [f"on {facts['Computed on']}"] if "Computed on" in facts else []
    parts += [facts["Made"], f"mechrep {facts.get('mechrep', '')}".strip()]
    return " · ".join(parts)


def in_time(seconds: float) -> str:
    """Seconds in words.

    Example:
        >>> in_time(42.4), in_time(130.0)
        ('42 s', '2 min 10 s')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _provenance(views: Sequence[SectionView]) -> str:
    """Settings and versions as JSON: what all sections share, then what each has of its own."""
    records = {view.name: clean(view.section.provenance.to_dict()) for view in views}
    first, *others = records.values()
    shared = {key: value for key, value in first.items() if all(one.get(key) == value for one in others)}
    own = {name: {key: value for key, value in one.items() if key not in shared} for name, one in records.items()}
    return json.dumps(shared | {"sections": own}, indent=2, ensure_ascii=False)


class Intro:
    """The introduction's words, for the template."""

    def __init__(self, words: Words, fields: dict[str, Any]) -> None:
        self.words, self.fields = words, fields

    def text(self, heading: str) -> str:
        """Plain."""
        return to_text(self.words.block(heading), self.fields, self.words.place(heading))

    def html(self, heading: str) -> Markup:
        """In a line."""
        return self.words.html(heading, self.fields)

    def paragraphs(self, heading: str) -> list[Markup]:
        """Blocks."""
        self.words.block(heading)
        return self.words.paragraphs(heading, self.fields)


def strip_svg(claim: ClaimView) -> Markup:
    """The effect with its interval (a dot on a line) over the range of its controls (a bar), and a mark at zero."""
    known = [value if value is not None and abs(value) < 1e100 else None for value in claim.scaled]
    effect, low, high, least, most = known
    if effect is None:
        return Markup("")
    ends = [0.0, *(value for value in known if value is not None)]
    span = (max(ends) - min(ends)) or 1.0

    def place(value: float) -> float:
        return round(_MARGIN + (value - min(ends)) / span * (_WIDE - 2 * _MARGIN), 1)

    middle, parts = _HIGH / 2, []
    if least is not None and most is not None:
        parts.append(f'<rect class="range" x="{place(least) - 2}" y="{middle - 5}" rx="2" height="10" '
                     f'width="{max(place(most) - place(least) + 4, 4):.1f}"/>')  # fmt: skip
    parts.append(f'<path class="zero" d="M{place(0.0)} 2V{_HIGH - 2}"/>')
    if low is not None and high is not None:
        parts.append(f'<path class="interval" d="M{place(low)} {middle}H{place(high)}"/>')
    parts.append(f'<circle class="effect" cx="{place(effect)}" cy="{middle}" r="4"/>')
    return Markup(
        f'<svg class="strip" viewBox="0 0 {_WIDE} {_HIGH}" width="{_WIDE}" height="{_HIGH}" aria-hidden="true">'
        f"{''.join(parts)}</svg>"
    )


def _template(name: str) -> Any:
    environment = Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "slug": slug, "strip": strip_svg}
    environment.globals |= {"SHOWN": SHOWN, "LINES": LINES}
    return environment.get_template(name)


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return resources.files("mechrep.report").joinpath(name).read_text(encoding="utf-8")
