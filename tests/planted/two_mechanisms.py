"""Models in which copying and looping are told apart by construction, and one whose loops look at certain words.

Two heads copy (:func:`tests.planted.circuits.plant_induction`), but nothing of the words of the loops.  Neurons, one
for each of these words, say the next of its loop, round and round, and nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mechrep.models.model import Model
from mechrep.text.corpus import Corpus
from tests.planted.circuits import (
    BOS_REST,
    INDUCTION,
    PREVIOUS_TOKEN,
    WEAK,
    Unit,
    members_of_digits,
    plant_induction,
    read_copies,
)
from tests.planted.workbench import BOS, CUR, D_HEAD, EOS, FLAG, GATED, OUT, PLUS, PREV, WORDS, Bench

LOOP = (51, 52, 53, 54)
FREE_END = 58  # from here on habit leads to the end of the text
LOOPING_END = 49  # from here on habit leads to the loop
_OFFSET, _MATCH, _SAID = 200.0, 50.0, 2.0

LOOPS = tuple((word, word + 1, word + 2) for word in range(39, 63, 3))  # eight families
ENTRIES = tuple(range(31, 39))  # words from which habit leads into each of them
FREE = 30  # the word from which habit leads to the end

COMMON = tuple(range(3, 11))  # words that are probable everywhere
_COMMON_LOGIT, _LOOK = 5.0, 60.0


@dataclass(frozen=True)
class TwoMechanisms:
    """The model, its copying heads, the layer whose MLP loops, and a head that rests on BOS."""

    model: Model
    heads: tuple[Unit, Unit]
    mlp: int
    rest: Unit


@functools.cache
def two_mechanisms(family: str = "llama_gqa", induction: Unit = INDUCTION) -> TwoMechanisms:
    """The planted model; the head that copies may stand elsewhere in layer 1."""
    return _two(Bench(family, 2), [LOOP], induction)


@functools.cache
def several_loops(family: str, size: str = "small", seed: int = 0) -> TwoMechanisms:
    """The same with eight loops of three words each, so that texts that loop are of eight families."""
    habits = dict(zip(ENTRIES, (loop[0] for loop in LOOPS), strict=True)) | {FREE: EOS}
    return _two(Bench(family, 2, size=size, seed=seed, habits=habits), LOOPS, INDUCTION)


def _two(bench: Bench, loops: Sequence[Sequence[int]], copying: Unit) -> TwoMechanisms:
    previous, induction, rest = bench.heads(PREVIOUS_TOKEN, copying, BOS_REST)
    layer, says = bench.at[1], {word: loop[(n + 1) % len(loop)] for loop in loops for n, word in enumerate(loop)}
    bench.score_offset(*previous, 1, _OFFSET)
    bench.copy(*previous, CUR, PREV, 1.0)
    bench.score_match(*induction, CUR, PREV, _MATCH)
    bench.score_key(*induction, CUR + BOS, 1.5 * _MATCH)
    bench.copy(*induction, CUR, OUT, 1.0, skip=[BOS, *says])
    bench.score_key(*rest, CUR + BOS, _MATCH)
    places = bench.neurons(1, *(_WITHOUT_BACKGROUND[: len(says)]))
    for neuron, (token, following) in zip(places, says.items(), strict=True):
        bench.gate[layer, CUR + token, neuron] = 1.0
        bench.up[layer, PLUS, neuron] = 1.0 / bench.constant if bench.family in GATED else 0.0
        bench.down[layer, neuron, OUT + following] = _SAID
    return TwoMechanisms(bench.finish(), (previous, induction), layer, rest)


_WITHOUT_BACKGROUND = [n for n in range(20, 72) if (n - 3) % 13]


@dataclass(frozen=True)
class Reader:
    """A model whose copies are amplified as long as one head finds a common word to look at."""

    model: Model
    head: Unit
    circuit: tuple[Unit, Unit, Unit]


@functools.cache
def low_information_reader(family: str, size: str = "small", seed: int = 0) -> Reader:
    """Four layers: two heads copy weakly, a third looks at common words, neurons amplify where it has found one.

    The unembedding makes eight words probable wherever they stand, so they carry little information.  A head attends to
    them alone, where there is one, and writes to ``FLAG`` how much of its attention it gives to them.  The amplifiers
    are those of :func:`tests.planted.circuits.repetition_neurons`, silent without the flag.
    """
    bench = Bench(family, 4, size=size, seed=seed)
    circuit = plant_induction(bench, factor=WEAK)
    ((layer, head),) = bench.heads((2, 2))
    for token in COMMON:
        bench.unembed[PLUS, token] = _COMMON_LOGIT / bench.constant
        bench.score_key(layer, head, CUR + token, _LOOK)
        bench.value[layer, bench.kv(head), CUR + token, D_HEAD - 1] = 1
    bench.query[layer, head, PLUS, bench.still_slot] /= len(COMMON)  # it was added once for each
    bench.output[layer, head, D_HEAD - 1, FLAG] = 1
    mlp = bench.at[3]
    for neuron, members in zip(bench.neurons(3, *_WITHOUT_BACKGROUND[:16]), members_of_digits(), strict=True):
        read_copies(bench, mlp, neuron, members, 2.0, 1.0)
        bench.gate[mlp, FLAG, neuron] = 8.0
        bench.gate[mlp, PLUS, neuron] -= 8.0 / bench.constant
        bench.down[mlp, neuron, OUT + members] = 0.6 / 2.0
    return Reader(bench.finish(), (layer, head), circuit)


def reading_texts(model: Model, rows: int = 12, copies: int = 4) -> Corpus:
    """Different words, a quarter of them common, and then a loop of one common and three rare ones."""
    texts = []
    for number in range(rows):
        draw = np.random.default_rng(number)
        rare, common = draw.permutation(np.arange(11, 63))[:12].tolist(), draw.permutation(COMMON)[:4].tolist()
        before = draw.permutation([*rare[:9], *common[:3]]).tolist()
        texts.append([BOS, *before, *draw.permutation([*rare[9:], common[3]]).tolist() * copies])
    return Corpus.from_tokens(texts, model=model, source="planted").with_cycles()


def ordinary_texts(model: Model, rows: int = 12, length: int = 40) -> Corpus:
    """Words in random order, none twice."""
    texts = [[BOS, *np.random.default_rng(900 + row).permutation(WORDS)[:length].tolist()] for row in range(rows)]
    return Corpus.from_tokens(texts, model=model, source="planted")


def several_prompts(model: Model, n: int = 14, length: int = 9) -> Corpus:
    """BOS and different words from 3 to 26, then a word from which habit leads into a loop, or to the end."""
    draw, rows = np.random.default_rng(0), []
    for number in range(2 * n):
        end = ENTRIES[number % len(ENTRIES)] if number < n else 28
        rows.append([BOS, *draw.permutation(np.arange(3, 27))[:length].tolist(), end])
    return Corpus.from_tokens(rows, model=model, source="planted")


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
