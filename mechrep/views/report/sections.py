"""Which sections a study makes; a new section adds its line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mechrep.errors import InputError
from mechrep.studies.condition_study import ConditionStudy
from mechrep.studies.first_layer_study import FirstLayerStudy
from mechrep.studies.full_study import MissingStudy
from mechrep.studies.head_study import HeadStudy
from mechrep.studies.information_study import InformationStudy
from mechrep.studies.repair_study import RepairStudy
from mechrep.studies.repetition_study import RepetitionStudy
from mechrep.studies.sink_study import SinkStudy
from mechrep.studies.training_study import TrainingStudy
from mechrep.views.report.ablation_section import ablation_section
from mechrep.views.report.conditions_section import conditions_section
from mechrep.views.report.first_layer_section import first_layer_section
from mechrep.views.report.heads_section import heads_section
from mechrep.views.report.information_section import information_section
from mechrep.views.report.missing_section import missing_section
from mechrep.views.report.neurons_section import neurons_section
from mechrep.views.report.patch_section import patch_section
from mechrep.views.report.section import Section
from mechrep.views.report.sinks_section import sinks_section
from mechrep.views.report.training_section import training_section

SECTIONS: Mapping[type, tuple[Callable[[Any], Section], ...]] = {
    RepetitionStudy: (neurons_section,),
    HeadStudy: (heads_section, ablation_section),
    SinkStudy: (sinks_section,),
    FirstLayerStudy: (first_layer_section,),
    RepairStudy: (patch_section,),
    ConditionStudy: (conditions_section,),
    InformationStudy: (information_section,),
    TrainingStudy: (training_section,),
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
