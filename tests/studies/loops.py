"""Tiny models that fall into loops by themselves, and the texts in which they do."""

from __future__ import annotations

import functools
from typing import Any

import torch

from mechrep.cache import CorpusCache
from mechrep.measures.neurons import RepetitionNeuronResult, RepetitionNeurons
from mechrep.models.load import load_model
from mechrep.models.model import Model
from mechrep.text.corpus import Corpus
from tests.studies.obvious import published_detector
from tests.tiny_models import N_LAYERS, PARTS, fresh, random_tokens

NEW = 60
PREFIX = 8


@functools.cache
def module(family: str) -> Any:
    """A model with half as large weights in its layers: about half of what it writes then soon repeats."""
    made = fresh(family, seed=3, max_position_embeddings=256)
    for layer in range(N_LAYERS):
        for parameter in PARTS[family].of(made, "layer", layer).parameters():
            if parameter.ndim == 2:
                parameter.mul_(0.5)
    return made


@functools.cache
def model(family: str) -> Model:
    """The same model, loaded."""
    return load_model(module(family))


@functools.cache
def greedy_texts(family: str, n: int = 40, length: int = 70) -> list[list[int]]:
    """What the model writes after random prompts, up to its EOS."""
    ids = random_tokens(n, PREFIX, seed=11)
    texts = module(family).generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False, pad_token_id=2
    ).tolist()  # fmt: skip
    ends = [[*text, 1].index(1) + 1 for text in texts]
    return [text[:end] for text, end in zip(texts, ends, strict=True)]


@functools.cache
def looping(family: str, n: int = 8) -> Corpus:
    """Texts in which the published detector finds a loop after the prompt, with its onset."""
    found = [(ids, published_detector(ids)) for ids in greedy_texts(family)]
    kept = [(ids, places) for ids, places in found if places is not None and places[1] >= PREFIX][:n]
    corpus = Corpus.from_tokens([ids for ids, _ in kept], model=model(family), source="loop")
    return corpus.with_columns(start=[p[0] for _, p in kept], onset=[p[1] for _, p in kept], prompt_length=PREFIX)


@functools.cache
def free(family: str, n: int = 6) -> Corpus:
    """Texts without a loop, as far as they go."""
    kept = [ids for ids in greedy_texts(family) if published_detector(ids) is None][:n]
    return Corpus.from_tokens(kept, model=model(family), source="free")


@functools.cache
def neurons(family: str) -> RepetitionNeuronResult:
    """Neurons found on the looping texts themselves."""
    result = CorpusCache(model(family), looping(family)).run(RepetitionNeurons("hiraoka2025", r=10))
    assert isinstance(result, RepetitionNeuronResult)
    return result
