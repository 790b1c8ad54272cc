"""Every analyzer of mechrep with texts to run it on, whatever the model's type."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from mechrep.generation import sample_prompts
from mechrep.generation.text_kinds import induced_texts, joined_texts
from mechrep.measures.attention_sinks import AttentionSinks
from mechrep.measures.distance_profile import DistanceProfile
from mechrep.measures.first_token import FirstTokenDetection
from mechrep.measures.head_copying import CopySuppression, HeadCopying
from mechrep.measures.head_scores import HeadScores
from mechrep.measures.natural_vs_induced import TextKindContrast
from mechrep.measures.neurons import RepetitionNeurons
from mechrep.measures.router_shift import RouterShift
from mechrep.measures.sink_norms import RepeatNorms, SinkNorms
from mechrep.measures.token_information import TokenInformation, token_facts
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.text.corpus import Corpus
from mechrep.text.stimuli import repeated_tokens
from tests.analyzers.looping_texts import as_corpus, random_loops
from tests.analyzers.oracle import Loop

TINY = "mechrep-tiny"
WORDS = ["The sea, the sea, the sea, and the sea.", "It rained and it rained all day long.", "No, no, no, no."]


def loops(model: Model) -> Corpus:
    """Random loops; the same ids whatever the model."""
    return as_corpus(random_loops(8, length=60), model)


def with_controls(model: Model) -> Corpus:
    """Loops, and as many texts as long in which nothing repeats."""
    looping = random_loops(4, first=(20, 30), length=60)
    free = [Loop(list(range(3, 3 + len(loop.ids[:55]))), -1, -1) for loop in looping]
    return as_corpus([*looping, *free], model)


@functools.cache
def kinds() -> Corpus:
    """Texts of several kinds, written once, in float32."""
    model = load_model(TINY)
    induced = induced_texts(model, sample_prompts(model, 8), 3, "cycle", max_new_tokens=80)
    return joined_texts(induced, n_ctx=model.anatomy.n_ctx, copies=2)


@functools.cache
def facts() -> tuple[Corpus, Any]:
    """Texts, and what is known of their tokens in float32."""
    model = load_model(TINY)
    corpus = Corpus.from_texts(WORDS, model=model)
    return corpus, token_facts(model, corpus, reference=corpus)


MAKERS: dict[str, Callable[[Model], tuple[Corpus, Any]]] = {
    "AttentionSinks": lambda model: (loops(model), AttentionSinks()),
    "CopySuppression": lambda model: (loops(model), CopySuppression(model)),
    "DistanceProfile": lambda model: (loops(model), DistanceProfile(8)),
    "FirstTokenDetection": lambda model: (loops(model), FirstTokenDetection.of(model)),
    "HeadCopying": lambda model: (loops(model), HeadCopying(model)),
    "HeadScores": lambda model: (loops(model), HeadScores(bos_id=0)),
    "RepeatNorms": lambda model: (repeated_tokens(model, [5, 6, 7, 8, 9], 60), RepeatNorms()),
    "RepetitionNeurons": lambda model: (loops(model), RepetitionNeurons(r=5)),
    "RouterShift": lambda model: (with_controls(model), RouterShift(r=8)),
    "SinkNorms": lambda model: (loops(model), SinkNorms()),
    "TextKindContrast": lambda model: (kinds(), TextKindContrast(model, copies=2)),
    "TokenInformation": lambda model: (facts()[0], TokenInformation(facts()[1])),
}
