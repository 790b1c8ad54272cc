"""Plain second implementations for first-token tests, and a model without positions."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from mechrep.models.load import load_model
from mechrep.models.model import Model
from tests.planted.sinks import SinkModel, sink_model
from tests.tiny_models import fresh


@functools.cache
def planted(family: str) -> SinkModel:
    """A model whose detector, head and sink are known, once per process."""
    return sink_model(family)


@functools.cache
def without_positions() -> Model:
    """A GPT-2 whose learned positions are all zero: a model without positions."""
    module: Any = fresh("gpt2")
    module.transformer.wpe.weight.zero_()
    return load_model(module)


def mass_by_loops(pattern: Tensor, ids: list[int]) -> Tensor:
    """Other-token mass, one number at a time, ``[head, position]``."""
    heads, length, _ = pattern.shape
    mass = torch.zeros(heads, length, dtype=torch.float64)
    for head in range(heads):
        for query in range(length):
            for key in range(query + 1):
                if ids[key] != ids[query]:
                    mass[head, query] += float(pattern[head, query, key])
    return mass


def area_by_pairs(first: list[float], others: list[float]) -> float:
    """Share of pairs in which the first token's number is larger, ties counting half."""
    won = [1.0 if a > b else 0.5 if a == b else 0.0 for a in first for b in others]
    return sum(won) / len(won)
