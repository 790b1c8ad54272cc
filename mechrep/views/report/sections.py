"""Which sections a study makes; a new section adds its line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mechrep.errors import InputError
from mechrep.studies.head_study import HeadStudy
from mechrep.studies.repetition_study import RepetitionStudy
from mechrep.views.report.ablation_section import ablation_section
from mechrep.views.report.heads_section import heads_section
from mechrep.views.report.neurons_section import neurons_section
from mechrep.views.report.section import Section

SECTIONS: Mapping[type, tuple[Callable[[Any], Section], ...]] = {
    RepetitionStudy: (neurons_section,),
    HeadStudy: (heads_section, ablation_section),
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
