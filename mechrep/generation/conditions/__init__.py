"""Paired corpora from one fixed list of prompts: natural loops, texts to be copied, and texts without repetition."""

from mechrep.generation.conditions.builders import control_condition as control_condition
from mechrep.generation.conditions.builders import induced_condition as induced_condition
from mechrep.generation.conditions.builders import natural_condition as natural_condition
from mechrep.generation.conditions.flow import Flow as Flow
from mechrep.generation.conditions.flow import condition_flow as condition_flow
from mechrep.generation.conditions.flow import copy_run as copy_run
from mechrep.generation.conditions.joined import joined_conditions as joined_conditions
from mechrep.generation.conditions.matching import match_lengths as match_lengths
from mechrep.generation.conditions.written import ConditionTexts as ConditionTexts
from mechrep.generation.conditions.written import write_texts as write_texts
