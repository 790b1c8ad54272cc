"""Heads' weights and direct logits another way: with matrices that TransformerLens has folded and centred."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mechrep.models.anatomy import Site
from mechrep.models.load import load_model
from mechrep.models.model import Model
from tests.planted import circuits
from tests.planted.workbench import Bench
from tests.tiny_models import N_HEADS, N_LAYERS, tiny


@functools.cache
def raw(family: str) -> Model:
    """A tiny random model with its weights as they were trained."""
    return load_model(copy.deepcopy(tiny(family)))


@functools.cache
def processed(family: str) -> Model:
    """The same in compatibility mode."""
    model = load_model(copy.deepcopy(tiny(family)))
    model.enable_compatibility_mode()
    return model


@functools.cache
def planted(family: str) -> circuits.InductionCircuit:
    return circuits.induction_circuit(family)


@functools.cache
def negated(family: str) -> Model:
    """The planted circuit whose induction head takes away what it looks at."""
    bench = Bench(family, 2)
    circuits.plant_induction(bench, factor=-1.0)
    return bench.finish()


def without(model: Model, site: Site) -> Model:
    """The model as one would see it whose attention lacks a part."""
    lacking = copy.copy(model)
    lacking.anatomy = dataclasses.replace(model.anatomy, missing=frozenset({site}))
    return lacking


def expanded(model: Model, name: str) -> Tensor:
    """``W_K`` or ``W_V`` of all layers, one per query head ``[layer head d_model d_head]``."""
    weight = getattr(model, name).detach()
    return torch.stack([weight[:, head * weight.shape[1] // N_HEADS] for head in range(N_HEADS)], dim=1)


def full_circuits(family: str) -> np.ndarray:
    """``W_E W_V W_O W_U`` of every head of a processed model, ``[layer head d_vocab d_vocab]``, in float64."""
    model = processed(family)
    parts = (model.W_E, expanded(model, "W_V"), model.W_O, model.W_U)
    embed, value, output, unembed = (part.detach().double().numpy() for part in parts)
    return embed @ value @ output @ unembed


@dataclass(frozen=True)
class HeadsOnText:
    """Heads of a processed model on a text: logits ``[layer head pos d_vocab]``, patterns ``[layer head pos pos]``."""

    logits: np.ndarray
    patterns: np.ndarray

    def correlation(self, layer: int, head: int, query: int, token: int) -> float:
        """Pearson's, of all logits with a one-hot."""
        logits = self.logits[layer, head, query]
        return float(np.corrcoef(logits, np.eye(len(logits))[token])[0, 1])


@torch.no_grad()
def heads_on_text(family: str, ids: Sequence[int]) -> HeadsOnText:
    """Run one text; the direct logits by TransformerLens' own tools, which want a processed model."""
    model = processed(family)
    _, cache = model.run_with_cache(torch.tensor([list(ids)]))
    heads = cache.stack_head_results(apply_ln=False)[:, 0].unflatten(0, (N_LAYERS, N_HEADS))
    scale = cache["ln_final.hook_scale"][0]
    logits = (heads.double() / scale.double()) @ model.W_U.detach().double()
    patterns = torch.stack([cache["pattern", layer][0] for layer in range(N_LAYERS)])
    return HeadsOnText(logits.numpy(), patterns.double().numpy())
