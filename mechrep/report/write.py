"""``write_report``: one study or several as one HTML file that needs nothing else.

Which sections a study makes; a new section adds its line here.

The section of a part that had nothing to study: what was looked for, and that it was not found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mechrep.errors import InputError, StoreError
from mechrep.report.old_first_layer_section import first_layer_section
from mechrep.report.page import Badge, Section, figures_json, header_html, navigation_html, page_html, provenance_html
from mechrep.studies.first_layer import FirstLayerStudy
from mechrep.studies.full_study import MissingStudy


def missing_section(study: MissingStudy) -> Section:
    """An answer too: the part is named, and why there is no more to say."""
    return Section(
        title=f"{study.part.replace('-', ' ').capitalize()}: nothing to study in {study.model_name}",
        anchor=study.part,
        finding=f"This part was left out, {study.reason}.",
        badges=[Badge("none", "nothing found")],
        notes=[("Not found", "the part looked for what it needs and found none; the other parts do not depend on it.")],
    )


SECTIONS: Mapping[type, tuple[Callable[[Any], Section], ...]] = {
    FirstLayerStudy: (first_layer_section,),
    MissingStudy: (missing_section,),
}


def sections_of(study: Any) -> list[Section]:
    """The sections of one study.

    Raises:
        InputError: a study that no section is about.
    """
    for kind, makers in SECTIONS.items():
        if isinstance(study, kind):
            return [make(study) for make in makers]
    known = ", ".join(kind.__name__ for kind in SECTIONS)
    raise InputError(f"a {type(study).__name__}", f"one of {known}", "run one of these studies")


def write_report(studies: Any, path: str | Path) -> Path:
    """Write one self-contained HTML page: findings, and a section for each question.

    It opens from disk, loads nothing, prints, and is light or dark by the reader's setting (or ``#light``, ``#dark``).

    Args:
        studies: one study, or several of different kinds and of one model, in the order of the page;
            :mod:`mechrep.report.write` lists the kinds.
        path: the file; folders above it are made.

    Returns:
        The path.

    Raises:
        InputError: no study, two of one kind, or of two models.
        StoreError: the file cannot be written.
    """
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    page = report_html(studies)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(page, encoding="utf-8", newline="\n")
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)  # left only by a failure
    except OSError as error:
        raise StoreError(
            f"report {target} ({error.strerror})", "a place to write", "free space or choose another"
        ) from error
    return target


def report_html(studies: Any) -> str:
    """The page as text.

    Raises:
        InputError: as :func:`write_report`.
    """
    from plotly.offline import get_plotlyjs

    given = list(studies) if isinstance(studies, Sequence) else [studies]
    names, kinds = {study.model_name for study in given}, {type(study) for study in given}
    if len(names) != 1 or len(kinds) < len(given):
        raise InputError(
            f"{len(given)} studies of {sorted(names)}",
            "at least one study, one of each kind, all of one model",
            "write a report for each model",
        )
    sections = [section for study in given for section in sections_of(study)]
    (name,) = names
    body = "\n".join(
        [header_html(name, sections), *(section.to_html() for section in sections), provenance_html(given)]
    )
    figures = figures_json(figure for section in sections for figure in section.figures)
    return page_html(f"Repetition in {name}", navigation_html(sections), body, figures, get_plotlyjs())
