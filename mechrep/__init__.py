"""mechrep: why does this language model repeat itself, and what happens if that mechanism is switched off?

The public names below are imported when they are first used, so ``import mechrep`` (and ``mechrep --help``)
does not pay for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mechrep import studies as studies
    from mechrep.analyzers.conditions.contrast import ConditionContrast as ConditionContrast
    from mechrep.analyzers.first_token.find_first_token import find_first_token as find_first_token
    from mechrep.analyzers.first_token.other_tokens import FirstTokenDetection as FirstTokenDetection
    from mechrep.analyzers.heads.composition import head_composition as head_composition
    from mechrep.analyzers.heads.copying import HeadCopying as HeadCopying
    from mechrep.analyzers.heads.copying import score_copying as score_copying
    from mechrep.analyzers.heads.induction import induction_heads as induction_heads
    from mechrep.analyzers.heads.ov import ov_scores as ov_scores
    from mechrep.analyzers.heads.qk_attribution import qk_attribution as qk_attribution
    from mechrep.analyzers.heads.qk_attribution import target_edges as target_edges
    from mechrep.analyzers.heads.scores import HeadScoreResult as HeadScoreResult
    from mechrep.analyzers.heads.scores import HeadScores as HeadScores
    from mechrep.analyzers.heads.scores import score_heads as score_heads
    from mechrep.analyzers.heads.suppression import CopySuppression as CopySuppression
    from mechrep.analyzers.neurons import RepetitionNeuronResult as RepetitionNeuronResult
    from mechrep.analyzers.neurons import RepetitionNeurons as RepetitionNeurons
    from mechrep.analyzers.sinks.attention_sinks import AttentionSinks as AttentionSinks
    from mechrep.analyzers.sinks.cluster import ov_cluster as ov_cluster
    from mechrep.analyzers.sinks.find_sink import find_sink as find_sink
    from mechrep.analyzers.sinks.first_position import attention_sinks as attention_sinks
    from mechrep.analyzers.sinks.first_position import first_position_attention as first_position_attention
    from mechrep.analyzers.sinks.known_sinks import known_sinks as known_sinks
    from mechrep.analyzers.sinks.norms import SinkNorms as SinkNorms
    from mechrep.analyzers.sinks.repeat_norms import RepeatNorms as RepeatNorms
    from mechrep.analyzers.token_information.attention import TokenInformation as TokenInformation
    from mechrep.cache.corpus_cache import CorpusCache as CorpusCache
    from mechrep.generation.conditions.builders import control_condition as control_condition
    from mechrep.generation.conditions.builders import induced_condition as induced_condition
    from mechrep.generation.conditions.builders import natural_condition as natural_condition
    from mechrep.generation.generate import generate as generate
    from mechrep.generation.patched_model import PatchedModel as PatchedModel
    from mechrep.interventions.heads import Heads as Heads
    from mechrep.interventions.neurons import Neurons as Neurons
    from mechrep.interventions.sink_patch import SinkPatch as SinkPatch
    from mechrep.models.anatomy import Anatomy as Anatomy
    from mechrep.models.anatomy import Site as Site
    from mechrep.models.load import load_model as load_model
    from mechrep.models.model import Model as Model
    from mechrep.studies.circuit import Circuit as Circuit
    from mechrep.text.corpus import Corpus as Corpus
    from mechrep.text.cycles import Cycle as Cycle
    from mechrep.text.cycles import detect_cycle as detect_cycle

_HOME = {
    "Anatomy": "mechrep.models.anatomy",
    "AttentionSinks": "mechrep.analyzers.sinks.attention_sinks",
    "Circuit": "mechrep.studies.circuit",
    "ConditionContrast": "mechrep.analyzers.conditions.contrast",
    "CopySuppression": "mechrep.analyzers.heads.suppression",
    "Corpus": "mechrep.text.corpus",
    "CorpusCache": "mechrep.cache.corpus_cache",
    "Cycle": "mechrep.text.cycles",
    "FirstTokenDetection": "mechrep.analyzers.first_token.other_tokens",
    "HeadCopying": "mechrep.analyzers.heads.copying",
    "HeadScoreResult": "mechrep.analyzers.heads.scores",
    "HeadScores": "mechrep.analyzers.heads.scores",
    "Heads": "mechrep.interventions.heads",
    "Model": "mechrep.models.model",
    "Neurons": "mechrep.interventions.neurons",
    "PatchedModel": "mechrep.generation.patched_model",
    "RepeatNorms": "mechrep.analyzers.sinks.repeat_norms",
    "RepetitionNeuronResult": "mechrep.analyzers.neurons",
    "RepetitionNeurons": "mechrep.analyzers.neurons",
    "SinkNorms": "mechrep.analyzers.sinks.norms",
    "SinkPatch": "mechrep.interventions.sink_patch",
    "Site": "mechrep.models.anatomy",
    "TokenInformation": "mechrep.analyzers.token_information.attention",
    "attention_sinks": "mechrep.analyzers.sinks.first_position",
    "control_condition": "mechrep.generation.conditions.builders",
    "detect_cycle": "mechrep.text.cycles",
    "find_first_token": "mechrep.analyzers.first_token.find_first_token",
    "find_sink": "mechrep.analyzers.sinks.find_sink",
    "first_position_attention": "mechrep.analyzers.sinks.first_position",
    "generate": "mechrep.generation.generate",
    "head_composition": "mechrep.analyzers.heads.composition",
    "induced_condition": "mechrep.generation.conditions.builders",
    "induction_heads": "mechrep.analyzers.heads.induction",
    "known_sinks": "mechrep.analyzers.sinks.known_sinks",
    "load_model": "mechrep.models.load",
    "natural_condition": "mechrep.generation.conditions.builders",
    "ov_cluster": "mechrep.analyzers.sinks.cluster",
    "ov_scores": "mechrep.analyzers.heads.ov",
    "qk_attribution": "mechrep.analyzers.heads.qk_attribution",
    "score_copying": "mechrep.analyzers.heads.copying",
    "score_heads": "mechrep.analyzers.heads.scores",
    "target_edges": "mechrep.analyzers.heads.qk_attribution",
}
_FLOORS = {"studies"}

__version__ = "0.1.0"
__all__ = [*sorted(_HOME), *sorted(_FLOORS)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name in _FLOORS:
        return importlib.import_module(f"mechrep.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'mechrep' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
