"""Natural loops against copying that was asked for: one estimator for all conditions."""

from mechrep.analyzers.conditions.contrast import ConditionContrast as ConditionContrast
from mechrep.analyzers.conditions.contrast import contrast_conditions as contrast_conditions
from mechrep.analyzers.conditions.contrast_result import ConditionContrastResult as ConditionContrastResult
from mechrep.analyzers.conditions.effects import HeadEffects as HeadEffects
