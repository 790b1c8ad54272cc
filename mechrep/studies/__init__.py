"""Floor 4: studies, which put the floors below together: what changes when a part is cut or boosted?"""

from mechrep.studies.ablation.heads import HeadSweepResult as HeadSweepResult
from mechrep.studies.ablation.heads import single_head_sweep as single_head_sweep
from mechrep.studies.ablation.profiles import layer_profiles as layer_profiles
from mechrep.studies.ablation.result import AblationResult as AblationResult
from mechrep.studies.ablation.study import ablation_study as ablation_study
from mechrep.studies.benchmarks.result import BenchmarkResult as BenchmarkResult
from mechrep.studies.benchmarks.study import benchmark_study as benchmark_study
from mechrep.studies.card import measure_card as measure_card
from mechrep.studies.card_result import CardResult as CardResult
from mechrep.studies.circuit import Circuit as Circuit
from mechrep.studies.controls import CONTROLS as CONTROLS
from mechrep.studies.controls import control_units as control_units
from mechrep.studies.head_controls import control_heads as control_heads
from mechrep.studies.loss import LossResult as LossResult
from mechrep.studies.loss import loss_sweep as loss_sweep
from mechrep.studies.loss import token_losses as token_losses
from mechrep.studies.patch_result import PatchStudyResult as PatchStudyResult
from mechrep.studies.patch_study import run_patch_study as run_patch_study
from mechrep.studies.repeat_behaviour import repeat_behaviour as repeat_behaviour
from mechrep.studies.repeat_behaviour import sink_conditions as sink_conditions
from mechrep.studies.repeat_behaviour_result import RepeatBehaviourResult as RepeatBehaviourResult
from mechrep.studies.repetition_study import RepetitionStudy as RepetitionStudy
from mechrep.studies.repetition_study import run_repetition_study as run_repetition_study
from mechrep.studies.sweep_result import SweepResult as SweepResult
from mechrep.studies.sweeps import activation_sweep as activation_sweep
from mechrep.studies.sweeps import deactivation_sweep as deactivation_sweep
