"""Floor 4: studies, which put the floors below together: what changes when a part is cut or boosted?"""

from mechrep.studies.controls import CONTROLS as CONTROLS
from mechrep.studies.controls import control_units as control_units
from mechrep.studies.loss import LossResult as LossResult
from mechrep.studies.loss import loss_sweep as loss_sweep
from mechrep.studies.loss import token_losses as token_losses
from mechrep.studies.repetition_study import RepetitionStudy as RepetitionStudy
from mechrep.studies.repetition_study import run_repetition_study as run_repetition_study
from mechrep.studies.sweep_result import SweepResult as SweepResult
from mechrep.studies.sweeps import activation_sweep as activation_sweep
from mechrep.studies.sweeps import deactivation_sweep as deactivation_sweep
