"""Any measure over a model's training: when does each mechanism appear, and in which order?"""

from mechrep.studies.checkpoints.change_points import ChangePoint as ChangePoint
from mechrep.studies.checkpoints.change_points import change_point as change_point
from mechrep.studies.checkpoints.head_curves import agreement_curves as agreement_curves
from mechrep.studies.checkpoints.head_curves import curve_change_points as curve_change_points
from mechrep.studies.checkpoints.head_curves import specialisation_curves as specialisation_curves
from mechrep.studies.checkpoints.head_effects import head_effects_measure as head_effects_measure
from mechrep.studies.checkpoints.head_history import HeadHistory as HeadHistory
from mechrep.studies.checkpoints.measures import MEASURES as MEASURES
from mechrep.studies.checkpoints.measures import Measure as Measure
from mechrep.studies.checkpoints.measures import measure_named as measure_named
from mechrep.studies.checkpoints.result import CheckpointResult as CheckpointResult
from mechrep.studies.checkpoints.revisions import GRID as GRID
from mechrep.studies.checkpoints.revisions import Checkpoint as Checkpoint
from mechrep.studies.checkpoints.revisions import list_checkpoints as list_checkpoints
from mechrep.studies.checkpoints.study import over_checkpoints as over_checkpoints
