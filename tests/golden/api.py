"""Names that the golden record needs and the public facade does not offer: where they are defined today.

When code moves, this table is all that has to follow.  ``module:name`` where a name is another one there.
"""

from __future__ import annotations

import importlib
from typing import Any

HOMES = {
    "CONTRAST_MEASURES": "mechrep.measures.natural_vs_induced:MEASURES",
    "CLASSES": "mechrep.text.token_classes",
    "DistanceProfile": "mechrep.measures.distance_profile",
    "EMBEDDED_TASKS": "mechrep.ablation.benchmark_tasks",
    "Measure": "mechrep.studies.checkpoints",
    "VARIANTS": "mechrep.measures.head_targets",
    "agreement": "mechrep.measures.text_kind_design",
    "collect_loops": "mechrep.generation",
    "compare_heads": "mechrep.studies.text_kind_effects",
    "text_flow": "mechrep.generation.text_kinds",
    "contrast_text_kinds": "mechrep.measures.natural_vs_induced",
    "continuation_questions": "mechrep.ablation.benchmark_tasks",
    "detect_cycle": "mechrep.text.cycles",
    "distance_profile": "mechrep.measures.distance_profile",
    "first_layer_convergence": "mechrep.measures.first_token_repeats",
    "first_layer_heads": "mechrep.ablation.first_token_outcomes",
    "first_token_detectors": "mechrep.measures.first_token_detectors",
    "run_first_layer_study": "mechrep.studies.first_layer",
    "head_effects": "mechrep.studies.text_kind_effects",
    "head_reference": "mechrep.studies.text_kind_effects",
    "information_masking": "mechrep.ablation.masking",
    "joined_texts": "mechrep.generation.text_kinds",
    "mean": "mechrep.interventions",
    "measure_named": "mechrep.studies.checkpoints",
    "ov_vectors": "mechrep.measures.ov_cluster",
    "random_repeats": "mechrep.text",
    "recall_questions": "mechrep.ablation.benchmark_tasks",
    "reinitialised": "mechrep.models.nulls",
    "rep_n": "mechrep.text",
    "repeated_tokens": "mechrep.text",
    "resample": "mechrep.interventions",
    "row_norms": "mechrep.measures.sink_neurons",
    "sample_prompts": "mechrep.generation",
    "scale": "mechrep.interventions",
    "seq_rep_n": "mechrep.text",
    "shuffled": "mechrep.models.nulls",
    "sink_neurons": "mechrep.measures.sink_neurons",
    "tiny": "mechrep.models",
    "token_classes": "mechrep.text.token_classes",
    "token_facts": "mechrep.measures.token_facts",
    "token_information": "mechrep.measures.token_information",
    "Condition": "mechrep.ablation.effects",
    "CopyAccuracy": "mechrep.ablation.outcomes",
    "HeldOutLoss": "mechrep.ablation.outcomes",
    "LoopDecoding": "mechrep.ablation.outcomes",
    "LoopLogProbability": "mechrep.ablation.outcomes",
    "Questions": "mechrep.ablation.benchmarks",
    "Regeneration": "mechrep.ablation.outcomes",
    "looping_texts": "mechrep.ablation.outcomes",
    "loop_free_texts": "mechrep.ablation.outcomes",
    "measure_effects": "mechrep.ablation.run",
    "with_drift": "mechrep.studies.sink_patch",
    "windows_of_text": "mechrep.text",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home, _, other_name = HOMES[name].partition(":")
    module = importlib.import_module(home)
    if not hasattr(module, other_name or name):
        importlib.import_module(f"{home}.{name}")  # a module
    return getattr(module, other_name or name)
