"""The published search as plainly as it can be written: one text at a time, torch hooks, a table of activations.

Models are transformers' own and nothing of mechrep takes part.  The windows are those of Hiraoka and Inui (arXiv
2410.13497): the released code (``published``), the printed form (``paper_form``), and mechrep's own (``clean``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tests.tiny_models import PARTS


@dataclass(frozen=True)
class Loop:
    """One text: its ids, where its first copy begins and where its second."""

    ids: list[int]
    first: int
    onset: int


def activations(family: str, model: Any, ids: Sequence[int], part: str = "activation") -> np.ndarray:
    """``[pos layer neuron]`` of one text in float64: what leaves the activation module, or enters the output matrix."""
    kept: list[torch.Tensor] = []
    handles = []
    for layer in range(model.config.num_hidden_layers):
        module = PARTS[family].of(model, part, layer)
        if part == "activation":
            handles.append(module.register_forward_hook(lambda _module, _inputs, out: kept.append(out[0])))
        else:
            handles.append(module.register_forward_pre_hook(lambda _module, inputs: kept.append(inputs[0][0])))
    with torch.no_grad():
        model(torch.tensor([list(ids)]))
    for handle in handles:
        handle.remove()
    return torch.stack(kept, dim=1).double().numpy()


def windows(loop: Loop, r: int, window: str) -> tuple[list[int], list[int]]:
    """Positions of the normal and of the repetition window."""
    predicts = loop.onset if window == "paper_form" else loop.onset - 1
    repetition = list(range(predicts, min(len(loop.ids), predicts + r)))
    edge = loop.first if window == "clean" else predicts
    return list(range(max(0, edge - r), edge)), repetition


@dataclass
class Found:
    """The numbers of a search, each ``[layer neuron]``."""

    delta: np.ndarray
    normal_mean: np.ndarray
    repetition_mean: np.ndarray
    normal_sd: np.ndarray
    repetition_sd: np.ndarray
    mean_difference: np.ndarray
    standard_error: np.ndarray
    t: np.ndarray
    dprime: np.ndarray
    n_texts: int


def search(tables: Sequence[np.ndarray], loops: Sequence[Loop], r: int, window: str) -> Found:
    """Pool positions, compare means, and take the text as the unit of the error; texts without a window are left."""
    normal, repetition, differences = [], [], []
    for table, loop in zip(tables, loops, strict=True):
        before, during = windows(loop, r, window)
        if before and during:
            normal += [table[position] for position in before]
            repetition += [table[position] for position in during]
            differences.append(table[during].mean(axis=0) - table[before].mean(axis=0))
    n, r_, d = np.stack(normal), np.stack(repetition), np.stack(differences)
    delta = r_.mean(axis=0) - n.mean(axis=0)
    error = d.std(axis=0, ddof=1) / np.sqrt(len(d))
    pooled = np.sqrt((n.var(axis=0) + r_.var(axis=0)) / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Found(
            delta, n.mean(axis=0), r_.mean(axis=0), n.std(axis=0), r_.std(axis=0),
            d.mean(axis=0), error, d.mean(axis=0) / error, delta / pooled, len(d),
        )  # fmt: skip
