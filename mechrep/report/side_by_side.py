"""Several models on one page: the same claims in one table, a column for each model; then the first screen of each."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from mechrep.disk import write_whole
from mechrep.errors import InputError
from mechrep.guards import each_once
from mechrep.report.build import facts_of, is_report, load_sections, write_page
from mechrep.report.front import CLAIMS, MAIN, Front, front_of
from mechrep.report.render import Intro, glossary, made_of, page_of
from mechrep.report.view import ClaimView, SectionView, claim_json, view_of
from mechrep.report.words import words_of

_ELLIPSIS = "…"


@dataclass(frozen=True)
class Column:
    """One model.

    Attributes:
        name: as its report calls it.
        href: of its page, seen from the page of all.
        anchor: of its part of the page.
        front: its first screen.
        made: what it cost, where and when.
        command: that made it.
        views: the sections of its report.
    """

    name: str
    href: str
    anchor: str
    front: Front
    made: str
    command: str
    views: Sequence[SectionView]


@dataclass(frozen=True)
class Line:
    """One claim about all models.

    Attributes:
        section: its section.
        kind: what it is about, where that is the same in all models.
        what: the claim, without the names of components.
        cells: the claim of each model; ``None`` where it was not measured.
    """

    section: str
    kind: str
    what: Markup
    cells: Sequence[ClaimView | None]


def write_side_by_side(reports: Sequence[str | Path], out: str | Path, *, texts: Path | None = None) -> Path:
    """Put the reports of several models onto one page, and write the same as ``report.json``; nothing is computed.

    Args:
        reports: folders that :func:`~mechrep.report.build.build_report` wrote, one per model.
        out: folder of the page; made if it is missing.
        texts: folder of the words; by default mechrep's own.

    Returns:
        The page.

    Raises:
        InputError: fewer than two reports, one twice, or ``out`` is one of them.
        StoreError: there is no report in a folder, or the page cannot be written.
    """
    folders, target = [Path(folder) for folder in reports], Path(out)
    check_folders(folders, target)
    columns = [_column(folder, target, place, texts) for place, folder in enumerate(folders)]
    names = [one.name for one in columns]
    columns = [  # models in folders of one name, or one model twice
        replace(one, name=f"{one.name} ({folder})") if names.count(one.name) > 1 else one
        for one, folder in zip(columns, folders, strict=True)
    ]
    lines = lines_of(columns, texts)
    intro = Intro(words_of("side-by-side", texts), {"models": len(columns), "names": _listed(columns)})
    page = page_of(
        "side-by-side.html.j2", columns=columns, lines=lines, words=intro, glossary=glossary(texts), main=CLAIMS
    )
    record = {
        "models": [{"name": one.name, "report": one.href, "command": one.command} for one in columns],
        "claims": [_line_json(line, columns) for line in lines],
    }
    write_whole(target / "report.json", json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False), parents=True)
    write_whole(target / "report.html", page)
    return target / "report.html"


def check_folders(folders: Sequence[Path], out: Path) -> None:
    """Refuse reports that cannot stand side by side, before anything is computed for them.

    Args:
        folders: of the reports, finished or not.
        out: of the page of all.

    Raises:
        InputError: fewer than two, one twice, or ``out`` is the report of one model.
    """
    each_once("reports", (str(folder.resolve()) for folder in folders), least=2, remedy="name another report")
    if is_report(out):
        raise InputError(f"{out}, the report of one model", "a folder for the page of all", "choose another --out")


def lines_of(columns: Sequence[Column], texts: Path | None = None) -> list[Line]:
    """The claims of all models, those of the first screen first; the same claim of each model in one line.

    Args:
        columns: the models.
        texts: folder of the words; by default mechrep's own.
    """
    found: dict[tuple[str, str, str, int], dict[int, ClaimView]] = {}
    for place, column in enumerate(columns):
        seen: dict[tuple[str, str, str], int] = {}
        for view in column.views:
            for claim in view.claims:
                key = (view.name, str(claim.row["claim"]), _kind(claim))
                seen[key] = seen.get(key, 0) + 1
                found.setdefault((*key, seen[key]), {})[place] = claim
    order = {pair: place for place, pair in enumerate(MAIN)}
    keys = sorted(found, key=lambda key: (key[3] > 1, order.get(key[:2], len(order))))
    return [
        Line(
            section,
            kind,
            Markup(words_of(section, texts).parts(f"claim: {claim}", _Unnamed(found[section, claim, kind, n]))[1]),
            [found[section, claim, kind, n].get(place) for place in range(len(columns))],
        )
        for section, claim, kind, n in keys
    ]


def _kind(claim: ClaimView) -> str:
    """What a claim is about, where that is no component of one model: no number stands in it."""
    who = Markup(claim.who).striptags()
    return "" if re.search(r"\d", who) else who


class _Dots(str):
    """Stands where models differ, whatever format was asked for."""

    def __format__(self, _spec: str) -> str:
        return str(self)


class _Unnamed(dict[str, Any]):
    """Fields of a claim, with dots in place of names of components and of numbers that differ between the models."""

    def __init__(self, claims: Mapping[int, ClaimView]) -> None:
        first, *others = [claim.told for claim in claims.values()]
        differs = {name for name, value in first.items() if any(other.get(name) != value for other in others)}
        differs |= {name for name, value in first.items() if isinstance(value, str) and re.search(r"\d", value)}
        super().__init__({**first, **dict.fromkeys(differs, _Dots(_ELLIPSIS))})


def _column(folder: Path, target: Path, place: int, texts: Path | None) -> Column:
    facts = facts_of(folder)
    page = write_page(folder, texts=texts)
    views = [view_of(section, texts) for section in load_sections(folder)]
    return Column(
        name=facts.name,
        href=quote(Path(os.path.relpath(page.resolve(), target.resolve())).as_posix()),
        anchor=f"model-{place + 1}",
        front=front_of(views, texts),
        made=made_of(views, facts.costs),
        command=facts.command,
        views=views,
    )


def _listed(columns: Sequence[Column]) -> str:
    *first, last = [column.name for column in columns]
    return f"{', '.join(first)} and {last}"


def _line_json(line: Line, columns: Sequence[Column]) -> dict[str, Any]:
    cells = {one.anchor: claim and claim_json(claim) for one, claim in zip(columns, line.cells, strict=True)}
    return {"section": line.section, "about": line.kind, "claim": Markup(line.what).striptags(), "models": cells}
