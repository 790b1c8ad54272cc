"""Planted heads: previous token, induction, resting on BOS, self-finding; and planted repetition neurons."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from mechrep.models.model import Model
from tests.planted.workbench import BOS, CUR, GATED, OUT, PLUS, PREV, SCRATCH, WORDS, Bench, Unit

PREVIOUS_TOKEN: Unit = (0, 1)
INDUCTION: Unit = (1, 2)
BOS_REST: Unit = (1, 0)
SELF_FINDING: Unit = (1, 3)

_OFFSET = 200.0  # one offset beats every other by 0.13 of this: 26
_MATCH = 50.0  # per digit: 25 between a match, a rest on BOS, and one digit too few
_SELF_MATCH = 450.0  # per digit: more than twice _OFFSET
WEAK = 0.15  # a copied token's OUT where neurons have to amplify it: a logit of 1.5, below the habit's 2


@dataclass(frozen=True)
class InductionCircuit:
    """A model in which two heads copy.

    Attributes:
        model: the model, checked by mechrep.
        family: its family.
        previous_token: head that looks at the position before.
        induction: head that looks at the token after the earlier copy, and copies it.
        bos_rest: head that looks at BOS always, and moves nothing.
        idle: all other heads: uniform attention, nothing moved.
        must_hold: what is true of the model.
    """

    model: Model
    family: str
    previous_token: Unit
    induction: Unit
    bos_rest: Unit
    idle: tuple[Unit, ...]
    must_hold: str


@dataclass(frozen=True)
class SelfFindingHead:
    """A model in which one head looks at earlier copies of the current token; fields as in :class:`InductionCircuit`.

    Attributes:
        model: the model.
        family: its family.
        self_finding: the head.
        idle: all other heads: uniform attention, nothing moved.
        must_hold: what is true of the model.
    """

    model: Model
    family: str
    self_finding: Unit
    idle: tuple[Unit, ...]
    must_hold: str


@dataclass(frozen=True)
class RepetitionNeuronCircuit:
    """An induction circuit whose weak copy is noticed by some neurons and amplified by others.

    Attributes:
        model: the model.
        family: its family.
        previous_token: head of the circuit.
        induction: head of the circuit.
        bos_rest: head that looks at BOS always, and moves nothing.
        detectors: neurons that fire whenever the induction head copies; nothing depends on them.
        detector_acts: the activation (``GATE_ACT``) of each while it fires.
        amplifiers: neurons that fire when the copied token has a certain digit; without them no loop goes on.
        amplifier_act: the activation of an amplifier while it fires.
        must_hold: what is true of the model.
    """

    model: Model
    family: str
    previous_token: Unit
    induction: Unit
    bos_rest: Unit
    detectors: tuple[Unit, ...]
    detector_acts: tuple[float, ...]
    amplifiers: tuple[Unit, ...]
    amplifier_act: float
    must_hold: str

    @property
    def neurons(self) -> tuple[Unit, ...]:
        """All planted neurons."""
        return self.detectors + self.amplifiers


@functools.cache
def induction_circuit(family: str, size: str = "small", seed: int = 0) -> InductionCircuit:
    """Two layers: a previous-token head feeds an induction head.

    * L0H1, previous token: ``score = 200 mean_f cos(f (i - 1 - j))`` with four frequencies; it copies ``CUR`` of the
      key to ``PREV``.
    * L1H2, induction: 50 for each digit in which ``CUR`` of the query and ``PREV`` of the key agree: 100 for a match,
      at most 50 for anything else, and 75 for BOS, on which unmatched rows rest.  It copies ``CUR`` of the key to
      ``OUT``, but not of BOS: a resting row says nothing.
    * L1H0 rests on BOS always (score 50), and moves nothing.  The other heads are zero: uniform attention.

    A copied token has logit 10; the token that follows by habit (``habit(token)``, the next word, at last EOS) has 2.

    Texts start with BOS; without one, the first token takes itself for its own predecessor.
    """
    bench = Bench(family, 2, size=size, seed=seed)
    planted = plant_induction(bench, factor=1.0)
    return InductionCircuit(
        bench.finish(),
        family,
        *planted,
        _others(bench, planted),
        "On [BOS] + r + r: previous-token score 1 from position 2 on, prefix matching 1, unmatched rows of the "
        "induction head 1 on BOS, idle heads uniform; the logits' argmax continues the repeat, and greedy text loops "
        "with the period of r.",
    )


@functools.cache
def self_finding_head(family: str, size: str = "small", seed: int = 0, says: float = 0.0) -> SelfFindingHead:
    """Two layers, in which only L1H3 attends to anything in particular.

    ``score = 450 (digits that agree) - 200 mean_f cos(f (i - j))``; for the key of BOS it is a constant.  The current
    position agrees best but pays 200; an earlier copy, at any distance, pays at most 0.87 of that, so it wins by 26;
    BOS lies halfway between and is where rows without an earlier copy rest.  A token with one equal digit lacks 450
    and gains at most 400.  Among several earlier copies the shares depend on their distances.  The head says the token
    that it finds, ``says`` times as loud as an induction head.
    """
    bench = Bench(family, 2, size=size, seed=seed)
    bench.swamped = 40.0  # its scores are large, and some differences small
    ((layer, head),) = bench.heads(SELF_FINDING)
    bench.score_match(layer, head, CUR, CUR, _SELF_MATCH)
    bench.score_offset(layer, head, 0, -_OFFSET)
    bench.no_offset_for_bos(layer, head)
    bench.score_key(layer, head, CUR + BOS, 2 * _SELF_MATCH - _OFFSET + 13)
    if says:
        bench.copy(layer, head, CUR, OUT, says, skip=[BOS])
    return SelfFindingHead(
        bench.finish(),
        family,
        (layer, head),
        _others(bench, ((layer, head),)),
        "Attention to earlier copies of the current token is 1 wherever there is one; elsewhere it is 1 on BOS; the "
        "other heads are uniform.",
    )


@functools.cache
def repetition_neurons(family: str, size: str = "small", seed: int = 0) -> RepetitionNeuronCircuit:
    """Three layers: the induction circuit writes a weak copy; neurons of layer 2 notice it and amplify it.

    The induction head writes 0.15 to ``OUT``: logit 1.5, which is less than the 2 of the habit.  In layer 2

    * four *detectors* read the sum of ``OUT``, less half of 0.15; they write a little to ``SCRATCH``, which nobody
      reads;
    * sixteen *amplifiers*, one for each value of each digit, read ``OUT`` of the tokens with that digit, less half of
      0.15, and write 0.3 to ``OUT`` of all of them: the copied token gets 1.5 + 3 + 3, tokens that share one digit 3,
      the token that follows by habit at most 2 + 3.

    In gated families the up-projection gives -2 and the output weights make up for it: the product is negative while
    the activation is positive, so that who takes one for the other finds these neurons at the bottom.

    With all amplifiers at zero the text follows the habit, from word to word up to EOS.  Where earlier copies of a
    token had different successors, each gets its share of 0.15 and the neurons fire less or not at all.
    """
    bench = Bench(family, 3, size=size, seed=seed)
    previous, induction, rest = plant_induction(bench, factor=WEAK)
    layer = bench.at[2]
    detectors, amplifiers = bench.neurons(2, 5, 18, 44, 71), bench.neurons(2, *range(20, 28), *range(57, 65))
    acts, amplifier_act = (0.5, 1.0, 2.0, 4.0), 2.0
    up = -2.0 if family in GATED else 1.0
    for neuron, act in zip(detectors, acts, strict=True):
        read_copies(bench, layer, neuron, torch.tensor(WORDS), act, up)
        bench.down[layer, neuron, SCRATCH] = 0.05 / up
    for neuron, members in zip(amplifiers, members_of_digits(), strict=True):
        read_copies(bench, layer, neuron, members, amplifier_act, up)
        bench.down[layer, neuron, OUT + members] = 0.3 / amplifier_act / up
    return RepetitionNeuronCircuit(
        bench.finish(),
        family,
        previous,
        induction,
        rest,
        tuple(bench.unit(layer, neuron) for neuron in detectors),
        acts,
        tuple(bench.unit(layer, neuron) for neuron in amplifiers),
        amplifier_act,
        "The planted neurons are exactly silent before the first repeated token; from then on each detector has its "
        "activation at every position and an amplifier has its own where the copied token has its digit; they are the "
        "top of RepetitionNeurons.  Greedy text loops; with the amplifiers at zero it does not, with the detectors at "
        "zero no logit moves by 0.01.",
    )


def plant_induction(bench: Bench, factor: float) -> tuple[Unit, Unit, Unit]:
    """A previous-token head, the induction head that reads what it wrote, and a head that rests on BOS."""
    previous, induction, rest = bench.heads(PREVIOUS_TOKEN, INDUCTION, BOS_REST)
    bench.score_offset(*previous, 1, _OFFSET)
    bench.copy(*previous, CUR, PREV, 1.0)
    bench.score_match(*induction, CUR, PREV, _MATCH)
    bench.score_key(*induction, CUR + BOS, 1.5 * _MATCH)
    bench.copy(*induction, CUR, OUT, factor, skip=[BOS])
    bench.score_key(*rest, CUR + BOS, _MATCH)
    return previous, induction, rest


def read_copies(bench: Bench, layer: int, neuron: int, tokens: torch.Tensor, act: float, up: float) -> None:
    """A neuron at ``act`` when one of ``tokens`` is being copied, at 0 otherwise: a threshold at half of the copy."""
    bench.gate[layer, OUT + tokens, neuron] = 2 * act / WEAK
    bench.gate[layer, PLUS, neuron] = -act / bench.constant
    bench.up[layer, PLUS, neuron] = up / bench.constant


def members_of_digits() -> list[torch.Tensor]:
    """The words with each value of the first digit, then those with each value of the second."""
    words = torch.tensor(WORDS)
    return [words[digit == value] for digit in (words // 8, words % 8) for value in range(8)]


def _others(bench: Bench, planted: tuple[Unit, ...]) -> tuple[Unit, ...]:
    every = ((layer, head) for layer in range(bench.n_layers) for head in range(bench.n_heads))
    return tuple(unit for unit in every if unit not in planted)
