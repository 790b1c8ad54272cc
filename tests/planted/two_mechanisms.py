"""A model in which copying and looping are told apart by construction.

Two heads copy (:func:`tests.planted.circuits.induction_circuit`), but nothing of the four words of ``LOOP``.  Neurons
of the last MLP, one for each of these words, say the next of the four, round and round, and nothing else.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch

from mechrep.models.model import Model
from mechrep.text.corpus import Corpus
from tests.planted.circuits import BOS_REST, INDUCTION, PREVIOUS_TOKEN, Unit
from tests.planted.workbench import BOS, CUR, GATED, OUT, PLUS, PREV, Bench

LOOP = (51, 52, 53, 54)
FREE_END = 58  # from here on habit leads to the end of the text
LOOPING_END = 49  # from here on habit leads to the loop
_OFFSET, _MATCH, _SAID = 200.0, 50.0, 2.0


@dataclass(frozen=True)
class TwoMechanisms:
    """The model, its copying heads, and the layer whose MLP loops."""

    model: Model
    heads: tuple[Unit, Unit]
    mlp: int


@functools.cache
def two_mechanisms(family: str = "llama_gqa", induction: Unit = INDUCTION) -> TwoMechanisms:
    """The planted model; the head that copies may stand elsewhere in layer 1."""
    bench, layer = Bench(family, n_layers=2), 1
    bench.score_offset(*PREVIOUS_TOKEN, 1, _OFFSET)
    bench.copy(*PREVIOUS_TOKEN, CUR, PREV, 1.0)
    bench.score_match(*induction, CUR, PREV, _MATCH)
    bench.score_key(*induction, CUR + BOS, 1.5 * _MATCH)
    bench.copy(*induction, CUR, OUT, 1.0, skip=[BOS, *LOOP])
    bench.score_key(*BOS_REST, CUR + BOS, _MATCH)
    for place, token in enumerate(LOOP):
        neuron = 20 + place
        bench.gate[layer, CUR + token, neuron] = 1.0
        bench.up[layer, PLUS, neuron] = 1.0 / bench.constant if family in GATED else 0.0
        bench.down[layer, neuron, OUT + LOOP[(place + 1) % len(LOOP)]] = _SAID
    return TwoMechanisms(bench.finish(), (PREVIOUS_TOKEN, induction), layer)


def prompts(model: Model, n: int = 6, *, looping: bool = True, free: bool = True, length: int = 9) -> Corpus:
    """BOS and different words from 3 to 47, then a word from which habit leads to the loop, or to the end."""
    draw = np.random.default_rng(0)
    rows = []
    for number in range(2 * n):
        ends = [LOOPING_END] if number < n else [FREE_END]
        if (number < n and looping) or (number >= n and free):
            rows.append([BOS, *draw.permutation(np.arange(3, 48))[:length].tolist(), *ends])
    return Corpus.from_tokens(rows, model=model, source="planted")


def logits_by_hand(model: Model, ids: list[int], hooks: list) -> torch.Tensor:
    """Logits ``[pos d_vocab]`` of one text with TransformerLens' own hooks."""
    with torch.no_grad():
        return model.tl.run_with_hooks(torch.tensor([ids]), fwd_hooks=hooks)[0].double()
