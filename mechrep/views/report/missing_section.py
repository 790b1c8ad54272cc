"""The section of a part that had nothing to study: what was looked for, and that it was not found."""

from __future__ import annotations

from mechrep.studies.full_study import MissingStudy
from mechrep.views.report.section import Badge, Section


def missing_section(study: MissingStudy) -> Section:
    """An answer too: the part is named, and why there is no more to say."""
    return Section(
        title=f"{study.part.replace('-', ' ').capitalize()}: nothing to study in {study.model_name}",
        anchor=study.part,
        finding=f"This part was left out, {study.reason}.",
        badges=[Badge("none", "nothing found")],
        notes=[("Not found", "the part looked for what it needs and found none; the other parts do not depend on it.")],
    )
