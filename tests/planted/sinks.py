"""Planted attention sinks: a norm that one neuron makes, and a head that rests on it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from mechrep.models.model import Model
from tests.planted.workbench import (
    AGAIN_MINUS,
    AGAIN_PLUS,
    BOS,
    CUR,
    D_HEAD,
    D_VOCAB,
    FIRST,
    GATED,
    MARK,
    PARALLEL,
    PLUS,
    PREV,
    SANDWICH,
    SINK_MINUS,
    SINK_PLUS,
    Bench,
    Unit,
)

SINK_NORM = 1000.0  # the residual stream's norm at a sink, to 1 %; 14 to 20 in a text of different words
SANDWICH_NORM = 7000.0  # the same in Gemma; 141 in a text
_OWN_MINUS_SEEN = 20.0  # G below
_DETECTOR, _SINK, _DECOY, _ERASER, _AGAIN = 47, 31, 66, 12, 50
_DETECTOR_HEAD, _OWN_HEAD, _SINK_HEAD, _AGAIN_HEAD = 2, 0, 1, 3
_POSITIONS = 0.25  # size of GPT-2's position features
_THRESHOLD = 0.5  # of FIRST at the first position
# What a sink neuron reads is so many times as large as it need be, and what it writes for that smaller: with all of the
# norm in a few weights null models have sinks by chance.  In plain models all of it is there.
_READ = 16.0
_OWN_OFFSET = 200.0


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
        own_head: in Gemma, the head of layer 0 that the mark needs as much as the detector's.
        again: layer and neuron that make a second sink after the first was erased.
        again_head: head that rests on that one.
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
    own_head: Unit | None = None
    again: Unit | None = None
    again_head: Unit | None = None

    @property
    def neurons(self) -> list[Unit]:
        """All that make a sink, in the order of depth."""
        return [self.sink_neuron, *([self.again] if self.again else [])]

    @property
    def heads(self) -> set[Unit]:
        """All that rest on a sink."""
        return {self.sink_head} | ({self.again_head} if self.again_head else set())

    @property
    def detector_heads(self) -> set[Unit]:
        """Heads of layer 0 without which no position is the first."""
        return {head for head in (self.detector_head, self.own_head) if head is not None}


@functools.cache
def sink_model(family: str, size: str = "small", seed: int = 0, *, again: bool = False) -> SinkModel:
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

    In Gemma the norms behind attention would undo step 2, and do its work instead: two heads of layer 0 write ``G``
    (own minus seen), the output bias 1 to ``MARK``, and what the norm leaves of that 1 is ``r``.  There ``c = 100``.

    With ``again`` an eraser takes the sink away one MLP later, and one more layer on another neuron writes it anew.
    """
    bench, first = _bench(family, size, seed, _detector_depth(family) + (4 if again else 2) + 1)
    squares, heads = 2 * bench.constant**2 + 2 + _position_squares(family), [(0, _DETECTOR_HEAD)]
    if family in SANDWICH:
        heads.append((0, _OWN_HEAD))
    head, *own = bench.heads(*heads)
    (detector,) = bench.neurons(first, _DETECTOR)
    layer = bench.at[first]
    if family in SANDWICH:
        power, quiet = 1, (1 + _OWN_MINUS_SEEN**2 / 2) ** -0.5
        bench.marks_first = True
        bench.copy(*head, CUR, PREV, -_OWN_MINUS_SEEN)
        bench.score_offset(*own[0], 0, _OWN_OFFSET)
        bench.copy(*own[0], CUR, PREV, _OWN_MINUS_SEEN)
        bench.gate[layer, MARK, detector], bench.up[layer, PLUS, detector] = 1, 1 / bench.constant
        bench.down[layer, detector, FIRST] = 1
    else:
        power = 2 if family in GATED else 1
        for token in range(D_VOCAB):
            bench.embed[token, PREV + token] = _OWN_MINUS_SEEN
        # Before layer 0 all tokens have the same norm; what the head reads is shorter by length / norm.
        before = (3 + _OWN_MINUS_SEEN**2 + (1 + _OWN_MINUS_SEEN) ** 2 + _position_squares(family)) ** 0.5
        bench.quiet, bench.faintness = 0.002 if again else 0.02, (before / bench.length, 10.0)
        bench.copy(*head, CUR, PREV, -_OWN_MINUS_SEEN * before / bench.length)
        bench.gate[layer, PLUS, detector] = bench.up[layer, PLUS, detector] = 1
        bench.down[layer, detector, FIRST] = (squares**0.5 / bench.length) ** power
        quiet = (squares / (squares + _OWN_MINUS_SEEN**2 / 2)) ** (power / 2)
    planted = _plant_sinks(bench, first + 1, squares + 4, quiet, again)
    return SinkModel(
        bench.finish(),
        family,
        detector=bench.unit(layer, detector),
        detector_head=head,
        repeats_approach=True,
        own_head=own[0] if own else None,
        must_hold="From the sink's layer on, the residual norm of position 0 is at least 20 times that of ordinary "
        "positions, whatever the token; repeats of one token (with or without BOS) come to the same norm; the sink "
        "head's attention to position 0 is above 0.9; with the sink neuron at zero all of this is gone.",
        **planted,
    )


@functools.cache
def bos_sink_model(family: str, size: str = "small", seed: int = 0, *, again: bool = False) -> SinkModel:
    """The same sink, but ``FIRST`` is part of the embedding of BOS: BOS is a sink anywhere, repeats never are.

    There is no detector; the layers are those of :func:`sink_model`.
    """
    bench, first = _bench(family, size, seed, _detector_depth(family) + (4 if again else 2) + 1)
    bench.embed[BOS, FIRST] = 1
    if family not in SANDWICH:
        bench.quiet = 0.01 if again else 0.1
    squares = 2 * bench.constant**2 + 6 + _position_squares(family)
    planted = _plant_sinks(bench, first + 1, squares, 0.0, again)
    return SinkModel(
        bench.finish(),
        family,
        detector=None,
        detector_head=None,
        repeats_approach=False,
        must_hold="BOS has at least 20 times the norm of ordinary positions from the sink's layer on, anywhere in a "
        "text; without BOS there is no sink, and repeats of another token never become one.",
        **planted,
    )


def _bench(family: str, size: str, seed: int, depth: int) -> tuple[Bench, int]:
    """A bench on which norms matter (in Gemma, where they cannot, they do not), and the detector's place in it."""
    first = _detector_depth(family)
    if family in SANDWICH:
        bench = Bench(family, depth, size=size, seed=seed, front=first + 1)
    else:
        bench = Bench(family, depth, constant=1.0, length=2.0, size=size, seed=seed, front=first + 1)
        bench.positions *= _POSITIONS
    return bench, first


def _position_squares(family: str) -> float:
    """What position features add to every squared norm."""
    return 8 * _POSITIONS**2 if family == "gpt2" else 0.0


def _detector_depth(family: str) -> int:
    return 1 if family in PARALLEL else 0


def _plant_sinks(bench: Bench, depth: int, squares: float, quiet: float, again: bool) -> dict[str, Any]:
    """The sink neuron, its decoy and the head that rests on the sink; with ``again``, the eraser and the next sink.

    Args:
        bench: the model in the making.
        depth: the sink's place among the layers of the mechanism.
        squares: squared norm of the residual stream at a sink, before the neuron.
        quiet: ``FIRST`` where the up-projection is to be 0.
    """
    norm = SANDWICH_NORM if bench.family in SANDWICH else SINK_NORM
    (head,) = bench.heads((depth + 1, _SINK_HEAD))
    sink, decoy = bench.neurons(depth, _SINK, _DECOY)
    layer = bench.quiet_up_to = bench.at[depth]
    act = _write_sink(bench, layer, sink, (SINK_PLUS, SINK_MINUS), squares, quiet, norm)
    read = 1.0 if bench.plain else _READ
    bench.gate[layer, FIRST, decoy], bench.up[layer, FIRST, decoy] = -10 * read, read
    for dimension, sign in ((SINK_PLUS, 1), (SINK_MINUS, -1)):
        bench.down[layer, decoy, dimension] = sign * norm / 2**0.5 / act
    _rest_on(bench, head, SINK_PLUS)
    found: dict[str, Any] = {"sink_layer": layer, "sink_neuron": bench.unit(layer, sink), "sink_head": head}
    found["decoy"] = bench.unit(layer, decoy)
    if again:
        (eraser,), (other,) = bench.neurons(depth + 1, _ERASER), bench.neurons(depth + 2, _AGAIN)
        (other_head,) = bench.heads((depth + 3, _AGAIN_HEAD))
        _erase_sink(bench, bench.at[depth + 1], eraser, squares, norm)
        _write_sink(bench, bench.at[depth + 2], other, (AGAIN_PLUS, AGAIN_MINUS), squares, quiet, norm)
        _rest_on(bench, other_head, AGAIN_PLUS)
        bench.quiet_up_to = bench.at[depth + 2]
        found |= {"again": bench.unit(bench.at[depth + 2], other), "again_head": other_head}
    return found


def _write_sink(
    bench: Bench, layer: int, neuron: int, places: tuple[int, int], squares: float, quiet: float, norm: float
) -> float:
    """A neuron that makes the norm where ``FIRST`` is above its threshold; its activation there."""
    unit = bench.length / squares**0.5  # what the norm makes of an entry of 1 there
    gate, up = bench.gate[layer], bench.up[layer]
    read = 1.0 if bench.plain else _READ
    gate[FIRST, neuron], gate[PLUS, neuron] = read, -read * _THRESHOLD / bench.constant
    act = read * (1 - _THRESHOLD) * unit
    if bench.family in GATED:
        up[FIRST, neuron], up[PLUS, neuron] = read, -read * quiet / bench.constant
        act *= read * (1 - quiet) * unit
    for dimension, sign in zip(places, (1, -1), strict=True):
        bench.down[layer, neuron, dimension] = sign * norm / 2**0.5 / act
    return act


def _erase_sink(bench: Bench, layer: int, neuron: int, squares: float, norm: float) -> None:
    """A neuron that writes the opposite of a sink, and is silent elsewhere."""
    there = (norm**2 + squares) ** 0.5
    act = bench.length * norm / 2**0.5 / there
    read = 1.0 if bench.plain else _READ
    act *= read
    bench.gate[layer, SINK_PLUS, neuron] = read
    if bench.family in GATED:
        bench.up[layer, SINK_PLUS, neuron] = read
        act = act**2
    written = norm
    if bench.family in SANDWICH:  # there the neurons that always fire are quieter, and the norm behind makes up for it
        written *= (bench.length / there) ** 2 / (1 - (norm / bench.steadied) ** 2) ** 0.5
    for dimension, sign in ((SINK_PLUS, -1), (SINK_MINUS, 1)):
        bench.down[layer, neuron, dimension] = sign * written / 2**0.5 / act


def _rest_on(bench: Bench, head: Unit, dimension: int) -> None:
    """A sink's key is sqrt(2), and the score 28 or more: an ordinary query reads the constant as 2 / 20 or as it is."""
    key, query = bench.key[head[0], bench.kv(head[1])], bench.query[head]
    key[dimension, bench.still_slot] = 2 / bench.length
    query[PLUS, bench.still_slot] = (20 if bench.family in SANDWICH else 200) * D_HEAD**0.5 / bench.constant
