"""Circuit ablation: components x operations x amounts x seeds, beside controls, as one table."""

from mechrep.studies.ablation.heads import HeadSweepResult as HeadSweepResult
from mechrep.studies.ablation.heads import single_head_sweep as single_head_sweep
from mechrep.studies.ablation.profiles import layer_profiles as layer_profiles
from mechrep.studies.ablation.result import AblationResult as AblationResult
from mechrep.studies.ablation.study import ablation_study as ablation_study
