"""mechrep: why does this language model repeat itself, and what happens if that mechanism is switched off?

The public names below are imported when they are first used, so ``import mechrep`` (and ``mechrep --help``)
does not pay for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mechrep import studies as studies
    from mechrep.ablation.circuit import Circuit as Circuit
    from mechrep.cache.corpus_cache import Analyzer as Analyzer
    from mechrep.cache.corpus_cache import CorpusCache as CorpusCache
    from mechrep.figures import save_figure as save_figure
    from mechrep.generation.compare import compare as compare
    from mechrep.generation.decode import Decoding as Decoding
    from mechrep.generation.decode import generate as generate
    from mechrep.generation.loops import collect_loops as collect_loops
    from mechrep.generation.patched_model import PatchedModel as PatchedModel
    from mechrep.generation.text_kinds import control_texts as control_texts
    from mechrep.generation.text_kinds import induced_texts as induced_texts
    from mechrep.generation.text_kinds import natural_texts as natural_texts
    from mechrep.interventions.ops import Experts as Experts
    from mechrep.interventions.ops import Heads as Heads
    from mechrep.interventions.ops import Neurons as Neurons
    from mechrep.interventions.ops import SinkPatch as SinkPatch
    from mechrep.measures.attention_sinks import AttentionSinks as AttentionSinks
    from mechrep.measures.attention_sinks import attention_sinks as attention_sinks
    from mechrep.measures.attention_sinks import first_position_attention as first_position_attention
    from mechrep.measures.first_token import FirstTokenDetection as FirstTokenDetection
    from mechrep.measures.head_circuits import head_composition as head_composition
    from mechrep.measures.head_circuits import ov_scores as ov_scores
    from mechrep.measures.head_copying import CopySuppression as CopySuppression
    from mechrep.measures.head_copying import HeadCopying as HeadCopying
    from mechrep.measures.head_copying import score_copying as score_copying
    from mechrep.measures.head_scores import HeadScoreResult as HeadScoreResult
    from mechrep.measures.head_scores import HeadScores as HeadScores
    from mechrep.measures.head_scores import induction_heads as induction_heads
    from mechrep.measures.head_scores import score_heads as score_heads
    from mechrep.measures.natural_vs_induced import TextKindContrast as TextKindContrast
    from mechrep.measures.neurons import RepetitionNeuronResult as RepetitionNeuronResult
    from mechrep.measures.neurons import RepetitionNeurons as RepetitionNeurons
    from mechrep.measures.ov_cluster import ov_cluster as ov_cluster
    from mechrep.measures.qk_attribution import qk_attribution as qk_attribution
    from mechrep.measures.qk_attribution import target_edges as target_edges
    from mechrep.measures.sink_norms import RepeatNorms as RepeatNorms
    from mechrep.measures.sink_norms import SinkNorms as SinkNorms
    from mechrep.measures.token_information import TokenInformation as TokenInformation
    from mechrep.models.anatomy import Anatomy as Anatomy
    from mechrep.models.anatomy import Site as Site
    from mechrep.models.load import load_model as load_model
    from mechrep.models.model import Model as Model
    from mechrep.run import Run as Run
    from mechrep.saved import load as load
    from mechrep.studies.find_sink import find_sink as find_sink
    from mechrep.studies.first_layer import find_first_token as find_first_token
    from mechrep.studies.known_sinks import known_sinks as known_sinks
    from mechrep.text.corpus import Corpus as Corpus
    from mechrep.text.cycles import detect_cycle as detect_cycle
    from mechrep.text.watch import Cycle as Cycle
    from mechrep.viewer.show import view as view

_HOME = {
    "Analyzer": "mechrep.cache.corpus_cache",
    "Anatomy": "mechrep.models.anatomy",
    "AttentionSinks": "mechrep.measures.attention_sinks",
    "Circuit": "mechrep.ablation.circuit",
    "CopySuppression": "mechrep.measures.head_copying",
    "Corpus": "mechrep.text.corpus",
    "CorpusCache": "mechrep.cache.corpus_cache",
    "Cycle": "mechrep.text.cycles",
    "Decoding": "mechrep.generation.decode",
    "Experts": "mechrep.interventions.ops",
    "FirstTokenDetection": "mechrep.measures.first_token",
    "HeadCopying": "mechrep.measures.head_copying",
    "HeadScoreResult": "mechrep.measures.head_scores",
    "HeadScores": "mechrep.measures.head_scores",
    "Heads": "mechrep.interventions.ops",
    "Model": "mechrep.models.model",
    "Neurons": "mechrep.interventions.ops",
    "PatchedModel": "mechrep.generation.patched_model",
    "RepeatNorms": "mechrep.measures.sink_norms",
    "RepetitionNeuronResult": "mechrep.measures.neurons",
    "RepetitionNeurons": "mechrep.measures.neurons",
    "Run": "mechrep.run",
    "SinkNorms": "mechrep.measures.sink_norms",
    "SinkPatch": "mechrep.interventions.ops",
    "Site": "mechrep.models.anatomy",
    "TextKindContrast": "mechrep.measures.natural_vs_induced",
    "TokenInformation": "mechrep.measures.token_information",
    "attention_sinks": "mechrep.measures.attention_sinks",
    "collect_loops": "mechrep.generation.loops",
    "compare": "mechrep.generation.compare",
    "control_texts": "mechrep.generation.text_kinds",
    "detect_cycle": "mechrep.text.cycles",
    "find_first_token": "mechrep.studies.first_layer",
    "find_sink": "mechrep.studies.find_sink",
    "first_position_attention": "mechrep.measures.attention_sinks",
    "generate": "mechrep.generation.decode",
    "head_composition": "mechrep.measures.head_circuits",
    "induced_texts": "mechrep.generation.text_kinds",
    "induction_heads": "mechrep.measures.head_scores",
    "known_sinks": "mechrep.studies.known_sinks",
    "load": "mechrep.saved",
    "load_model": "mechrep.models.load",
    "natural_texts": "mechrep.generation.text_kinds",
    "ov_cluster": "mechrep.measures.ov_cluster",
    "ov_scores": "mechrep.measures.head_circuits",
    "qk_attribution": "mechrep.measures.qk_attribution",
    "save_figure": "mechrep.figures",
    "score_copying": "mechrep.measures.head_copying",
    "score_heads": "mechrep.measures.head_scores",
    "target_edges": "mechrep.measures.qk_attribution",
    "view": "mechrep.viewer.show",
}
_FLOORS = {"studies"}

__version__ = "0.2.0"
__all__ = [*sorted(_HOME), *sorted(_FLOORS)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name in _FLOORS:
        return importlib.import_module(f"mechrep.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'mechrep' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "errors", "interventions"])
