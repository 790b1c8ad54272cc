"""Names that the golden record needs and the public facade does not offer: where they are defined today.

When code moves, this table is all that has to follow.
"""

from __future__ import annotations

import importlib
from typing import Any

HOMES = {
    "CLASSES": "mechrep.text.token_classes",
    "DistanceProfile": "mechrep.analyzers.token_information.distances",
    "EMBEDDED_TASKS": "mechrep.studies.benchmarks.tasks",
    "MassiveActivations": "mechrep.analyzers.sinks.massive_activations",
    "Measure": "mechrep.studies.checkpoints",
    "SinkStates": "mechrep.analyzers.sinks.states",
    "VARIANTS": "mechrep.analyzers.heads.variants",
    "agreement": "mechrep.studies.contrast",
    "collect_loops": "mechrep.generation",
    "compare_heads": "mechrep.studies.contrast.comparison",
    "condition_flow": "mechrep.generation.conditions",
    "contrast_conditions": "mechrep.analyzers.conditions.contrast",
    "continuation_questions": "mechrep.studies.benchmarks.embedded",
    "detect_cycle": "mechrep.text.cycles",
    "distance_profile": "mechrep.analyzers.token_information",
    "first_layer_convergence": "mechrep.analyzers.first_token.convergence",
    "first_layer_head_cuts": "mechrep.analyzers.first_token.head_cuts",
    "first_token_detectors": "mechrep.analyzers.first_token.detectors",
    "first_token_parts": "mechrep.analyzers.first_token.find_first_token",
    "head_kinds": "mechrep.studies.head_kinds",
    "head_reference": "mechrep.studies.contrast.reference",
    "information_cut": "mechrep.analyzers.token_information",
    "joined_conditions": "mechrep.generation.conditions",
    "limit_norms": "mechrep.analyzers.sinks.repeat_norms",
    "match_lengths": "mechrep.generation.conditions",
    "mean": "mechrep.interventions",
    "measure_named": "mechrep.studies.checkpoints",
    "ov_vectors": "mechrep.analyzers.sinks.cluster",
    "random_repeats": "mechrep.text",
    "recall_questions": "mechrep.studies.benchmarks.embedded",
    "reinitialised": "mechrep.models.nulls",
    "rep_n": "mechrep.text",
    "repeated_tokens": "mechrep.text",
    "resample": "mechrep.interventions",
    "row_norms": "mechrep.analyzers.sinks.neurons",
    "sample_prompts": "mechrep.generation",
    "scale": "mechrep.interventions",
    "seq_rep_n": "mechrep.text",
    "shuffled": "mechrep.models.nulls",
    "sink_neuron_ablation": "mechrep.analyzers.sinks.ablation",
    "sink_neurons": "mechrep.analyzers.sinks.neurons",
    "tiny": "mechrep.models",
    "token_classes": "mechrep.text.token_classes",
    "token_facts": "mechrep.analyzers.token_information",
    "token_information": "mechrep.analyzers.token_information",
    "windows_of_text": "mechrep.text",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(HOMES[name])
    return importlib.import_module(f"{HOMES[name]}.{name}") if name == "tiny" else getattr(module, name)
