"""Planted attention sinks: a norm that one neuron makes, and a head that rests on it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from mechrep.models.model import Model
from tests.planted.workbench import (
    BOS,
    CUR,
    D_HEAD,
    D_VOCAB,
    FIRST,
    GATED,
    PARALLEL,
    PLUS,
    PREV,
    SINK_MINUS,
    SINK_PLUS,
    Bench,
)

Unit = tuple[int, int]

SINK_NORM = 1000.0  # the residual stream's norm at a sink, to 1 %; 14 to 20 in a text of different words
_OWN_MINUS_SEEN = 20.0  # G below
_DETECTOR, _SINK, _DECOY = 47, 31, 66
_DETECTOR_HEAD, _SINK_HEAD = 2, 1
_POSITIONS = 0.25  # size of GPT-2's position features
_THRESHOLD = 0.5  # of FIRST at the first position


@dataclass(frozen=True)
class SinkModel:
    """A model whose first position (or whose BOS) is an attention sink.

    Attributes:
        model: the model, checked by mechrep.
        family: its family.
        sink_layer: layer whose MLP makes the sink.
        sink_neuron: the unit that makes it; with it at zero there is none.
        detector: unit in the MLP before that is higher at the first position than anywhere else; ``None`` where the
            embedding of BOS marks the sink.
        detector_head: uniform head of layer 0 whose output tells "other tokens before me"; ``None`` as above.
        decoy: unit of the sink's layer with a large negative gate wherever there is a sink, and activation 0.
        sink_head: head of the layer after the sink that rests on it, and moves nothing.
        repeats_approach: whether a run of one token becomes like the first position.
        must_hold: what is true of the model.
    """

    model: Model
    family: str
    sink_layer: int
    sink_neuron: Unit
    detector: Unit | None
    detector_head: Unit | None
    decoy: Unit
    sink_head: Unit
    repeats_approach: bool
    must_hold: str


@functools.cache
def sink_model(family: str) -> SinkModel:
    """The first position becomes a sink, whatever its token, because nothing but its own token is before it.

    The residual stream is that of :mod:`tests.planted.workbench`, with ``c = 1``: here norms do matter.  ``PREV``
    holds ``G = 20`` times (own token minus the mean of all tokens up to here):

    1. The embedding writes ``G`` to the own token's ``PREV``.  L0H2 attends uniformly and writes ``-G`` times what it
       sees.  Where all tokens so far are the same, nothing is left; else the residual stream is long:
       ``|x|^2 = 4 + G^2 q`` with ``q = |own - seen|^2``; for a share ``w`` of one other token ``q = 2 w^2``.  (GPT-2's
       position features add 0.4.)
    2. The *detector*, in the next MLP, reads the constant.  The norm before the MLP divides it by ``|x|``, so it is
       highest where nothing is left: it writes to ``FIRST`` ``r = 1`` there and ``r = sqrt(4 / |x|^2)`` elsewhere.  In
       a gated MLP both branches read the constant, so ``r^2``: with BOS before n copies of a token, w = 1/(n+1).
    3. The *sink neuron*, one MLP later, has the gate ``FIRST - 0.5`` (plain copies of the sink are above it from about
       n = 8 on, without a gate, and n = 14, with one), and a huge row of output weights: norm 1000.  Its
       up-projection is ``FIRST`` less what ``FIRST`` is at a first ordinary token after BOS: 0 there.
    4. A head in the layer after it has the sink's dimension for a key and a constant for a query.

    In a parallel block (GPT-NeoX) the MLP of layer 0 does not see the attention of layer 0, so the detector is in
    layer 1, the sink in layer 2 and there are four layers; in the others they are in 0 and 1, and there are three.
    """
    bench, layer = Bench(family, _layers(family), constant=1.0, length=2.0), _detector_layer(family)
    bench.positions *= _POSITIONS
    for token in range(D_VOCAB):
        bench.embed[token, PREV + token] = _OWN_MINUS_SEEN
    # Before layer 0 all tokens have the same norm; what the head reads is shorter by length / norm.
    before = (3 + _OWN_MINUS_SEEN**2 + (1 + _OWN_MINUS_SEEN) ** 2 + _position_squares(family)) ** 0.5
    bench.copy(0, _DETECTOR_HEAD, CUR, PREV, -_OWN_MINUS_SEEN * before / bench.length)
    first = 4 + _position_squares(family)
    power = 2 if family in GATED else 1
    bench.gate[layer, PLUS, _DETECTOR] = bench.up[layer, PLUS, _DETECTOR] = 1
    bench.down[layer, _DETECTOR, FIRST] = (first**0.5 / bench.length) ** power
    after_bos = (first / (first + _OWN_MINUS_SEEN**2 / 2)) ** (power / 2)
    sink = _plant_sink(bench, layer + 1, squares=first + 4, quiet=after_bos)
    return SinkModel(
        bench.finish(),
        family,
        layer + 1,
        sink_neuron=sink,
        detector=(layer, _DETECTOR),
        detector_head=(0, _DETECTOR_HEAD),
        decoy=(layer + 1, _DECOY),
        sink_head=(layer + 2, _SINK_HEAD),
        repeats_approach=True,
        must_hold="From the sink's layer on, the residual norm of position 0 is at least 20 times that of ordinary "
        "positions, whatever the token; repeats of one token (with or without BOS) come to the same norm; the sink "
        "head's attention to position 0 is above 0.9; with the sink neuron at zero all of this is gone.",
    )


@functools.cache
def bos_sink_model(family: str) -> SinkModel:
    """The same sink, but ``FIRST`` is part of the embedding of BOS: BOS is a sink anywhere, repeats never are.

    There is no detector; the layers are those of :func:`sink_model`.
    """
    bench, layer = Bench(family, _layers(family), constant=1.0, length=2.0), _detector_layer(family) + 1
    bench.positions *= _POSITIONS
    bench.embed[BOS, FIRST] = 1
    sink = _plant_sink(bench, layer, squares=8 + _position_squares(family), quiet=0.0)
    return SinkModel(
        bench.finish(),
        family,
        layer,
        sink_neuron=sink,
        detector=None,
        detector_head=None,
        decoy=(layer, _DECOY),
        sink_head=(layer + 1, _SINK_HEAD),
        repeats_approach=False,
        must_hold="BOS has at least 20 times the norm of ordinary positions from the sink's layer on, anywhere in a "
        "text; without BOS there is no sink, and repeats of another token never become one.",
    )


def _position_squares(family: str) -> float:
    """What position features add to every squared norm."""
    return 8 * _POSITIONS**2 if family == "gpt2" else 0.0


def _layers(family: str) -> int:
    return 4 if family in PARALLEL else 3


def _detector_layer(family: str) -> int:
    return 1 if family in PARALLEL else 0


def _plant_sink(bench: Bench, layer: int, squares: float, quiet: float) -> Unit:
    """The sink neuron, its decoy and the head that rests on the sink.

    Args:
        bench: the model in the making.
        layer: the sink's layer.
        squares: squared norm of the residual stream at a sink, before the neuron.
        quiet: ``FIRST`` where the up-projection is to be 0.
    """
    unit = bench.length / squares**0.5  # what the norm makes of an entry of 1 there
    gate, up = bench.gate[layer], bench.up[layer]
    gate[FIRST, _SINK], gate[PLUS, _SINK] = 1, -_THRESHOLD
    up[FIRST, _SINK], up[PLUS, _SINK] = 1, -quiet
    gate[FIRST, _DECOY] = -10
    up[FIRST, _DECOY] = 1
    act = (1 - _THRESHOLD) * unit
    if bench.family in GATED:
        act *= (1 - quiet) * unit
    for dimension, sign in ((SINK_PLUS, 1), (SINK_MINUS, -1)):
        bench.down[layer, _SINK, dimension] = sign * SINK_NORM / 2**0.5 / act
        bench.down[layer, _DECOY, dimension] = bench.down[layer, _SINK, dimension]
    # A sink's key is sqrt(2); an ordinary query reads the constant as 2 / 20 at least: a score of 28.
    key, query = bench.key[layer + 1, bench.kv(_SINK_HEAD)], bench.query[layer + 1, _SINK_HEAD]
    slot = bench.still_slot
    key[SINK_PLUS, slot] = 1
    query[PLUS, slot] = 200 * D_HEAD**0.5
    return (layer, _SINK)
