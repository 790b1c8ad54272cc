"""A bench on which models are built by hand: weights are written in one plain form and then fitted to a family.

**The residual stream** (64 dimensions for each head) is a row of named places, the same in every planted model::

    CUR    63  the current token, one-hot, written by the embedding
    PREV   63  circuits: the token one position back;  sinks: own token minus what layer 0 attends to
    OUT    63  what the model is going to say; the unembedding multiplies it by 10
    PLUS, MINUS        the constant +c and -c: every weight that needs a bias reads PLUS / c instead
    BALANCE            minus the sum of everything else, so that every vector has mean 0
    POSITION  16  cos and sin of four frequencies, and their negatives; only where positions are learned (GPT-2)
    FIRST              "nothing but my own token is before me"
    SINK_PLUS, SINK_MINUS   the sink's huge norm
    SCRATCH            written by some neurons, read by nobody
    CALM, MARK, AGAIN_PLUS, AGAIN_MINUS, FLAG    see the builders that use them

**Why norms do no harm.**  Every vector has mean 0, so LayerNorm is RMSNorm, and gains are such that a part reads
``x * length / |x|``.  Where ``c`` is large (100 beside entries of about 1) ``|x|`` is ``c sqrt(2)`` at every position
to one part in 10^3; with that for ``length`` a part reads the residual stream as it stands.  Gains are not uniform:
each dimension has its own factor between 0.5 and 2, undone in the weights that read it, so who forgets a gain gets
wrong numbers.

**No weight has a bias** (but the output of attention in Gemma), so the Llamas are ordinary Llamas.  Activation
functions are ReLU: silent is exactly 0.

**Tokens** are 0 BOS, 1 EOS, 2 padding, and the words 3 to 62.  Queries and keys compare tokens by two digits,
``divmod(token, 8)``: equal tokens agree in two, others in one at most.

**Sizes and seeds.**  Seed 0 of the small size is *plain*: its parts are where the builders name them, heads without a
purpose attend uniformly, and most neurons are silent.  Other seeds and sizes have their parts elsewhere, and those
without a purpose are as loud as planted ones (:mod:`tests.planted.idle`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

import mechrep
from mechrep.models.model import Model
from tests.planted.fitting import BUILDS, CALM_NORM, N_EXPERTS, STEADY, empty_module, fit
from tests.planted.idle import fill_idle_parts

FAMILIES = ("gpt2", "llama", "llama_gqa", "gpt_neox")  # of the checks without mechrep
ALL_FAMILIES = tuple(BUILDS)
ROTARY = tuple(name for name, build in BUILDS.items() if build.rotary)
GATED = tuple(name for name, build in BUILDS.items() if build.gated)
PARALLEL = tuple(name for name, build in BUILDS.items() if build.parallel)
SANDWICH = tuple(name for name, build in BUILDS.items() if build.sandwich)

SIZES = {"small": (0, 4, 80), "wide": (1, 6, 112), "deep": (3, 4, 96)}  # more layers, heads, neurons of a layer
D_VOCAB, D_MODEL, N_HEADS, D_HEAD, D_MLP, N_CTX = 63, 256, 4, 64, 80, 320
BOS, EOS, PAD = 0, 1, 2
WORDS = tuple(range(3, D_VOCAB))
Unit = tuple[int, int]

CUR, PREV, OUT = 0, D_VOCAB, 2 * D_VOCAB
PLUS, MINUS, BALANCE = 189, 190, 191
POSITION = 192
FIRST, SINK_PLUS, SINK_MINUS, SCRATCH = 208, 209, 210, 211
CALM, MARK, AGAIN_PLUS, AGAIN_MINUS, FLAG = 212, 213, 214, 215, 216

UNEMBED = 10.0  # logits per unit of OUT
HABIT = 2.0  # logit of the token that follows by habit, where nothing is copied

_FREQUENCIES = 4  # enough for one offset to stand out among N_CTX
_BACKGROUND_EVERY = 13  # in every layer: neurons that follow the token, whatever the text does
_BACKGROUND_ACT = 0.1


def habit(token: int) -> int:
    """What follows a token where nothing is copied: the next word, after the last one the end of the text."""
    return EOS if token == WORDS[-1] else max(token + 1, WORDS[0])


@dataclass
class Bench:
    """Weights in one plain form, float64, biases nowhere; a part that is not written stays zero.

    Args:
        family: one of :data:`ALL_FAMILIES`.
        depth: layers that the mechanism needs; a size may have more.
        constant: ``c``, the size of ``PLUS`` and ``MINUS``.
        length: the norm that every vector has when it is read.
        size: one of :data:`SIZES`.
        seed: of places, gains, and everything without a purpose.
        habits: what follows a token where nothing is copied, if not :func:`habit`.
        front: layers of the mechanism that are the model's first ones, whatever the seed.

    Shapes: ``query``, ``output`` ``[layer head ...]``; ``key``, ``value`` ``[layer key-value head ...]``; ``gate`` and
    ``up`` ``[layer d_model d_mlp]``, ``down`` ``[layer d_mlp d_model]``; ``unembed`` ``[d_model d_vocab]``.  In a
    mixture of experts the neurons are those of one expert in each layer.
    """

    family: str
    depth: int
    constant: float = 100.0
    length: float = 100.0 * 2**0.5
    size: str = "small"
    seed: int = 0
    habits: Mapping[int, int] = field(default_factory=dict)
    front: int = 1
    n_kv: int = field(init=False)

    plus, minus, calm, mark, d_head, steadied = PLUS, MINUS, CALM, MARK, D_HEAD, CALM_NORM
    n_tokens, words = D_VOCAB, slice(WORDS[0], D_VOCAB)
    swamped = 4.0  # times as long as anything else is the constant in queries and keys that have a norm
    marks_first = False  # by the norm behind the attention of layer 0, see tests.planted.sinks
    quiet, quiet_up_to = 1.0, -1  # how loud idle parts are, and up to which layer; after it 1
    faintness = (1.0, 1.0)  # how much shorter a usual vector is when it is read, in layer 0 and after it

    def __post_init__(self) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64)

        more, self.n_heads, self.d_mlp = SIZES[self.size]
        self.n_layers, self.d_model = self.depth + more, self.n_heads * D_HEAD
        self.n_kv = self.n_heads // 2 if BUILDS[self.family].grouped else self.n_heads
        self.draw = np.random.default_rng([self.seed, *self.size.encode()])
        self.plain = self.size == "small" and self.seed == 0
        self.at = list(range(self.depth)) if self.plain else self._some_layers()
        self.embed, self.positions, self.unembed = (
            zeros(D_VOCAB, self.d_model),
            zeros(N_CTX, self.d_model),
            zeros(self.d_model, D_VOCAB),
        )
        self.query = zeros(self.n_layers, self.n_heads, self.d_model, D_HEAD)
        self.key, self.value = (zeros(self.n_layers, self.n_kv, self.d_model, D_HEAD) for _ in range(2))
        self.output = zeros(self.n_layers, self.n_heads, D_HEAD, self.d_model)
        self.gate, self.up = (zeros(self.n_layers, self.d_model, self.d_mlp) for _ in range(2))
        self.down = zeros(self.n_layers, self.d_mlp, self.d_model)
        generator = torch.Generator().manual_seed(self.seed)
        spread = torch.rand(2 * self.n_layers + 1, self.d_model, generator=generator, dtype=torch.float64)
        self.uneven = 2 ** (2 * spread - 1)
        self.taken: set[Unit] = set()  # heads with a purpose
        self.used: set[Unit] = set()  # neurons with one
        self.module = empty_module(
            self, {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD, "tie_word_embeddings": False}
        )
        self._lay_out()

    # -- where things are -------------------------------------------------------------------------------------

    def _some_layers(self) -> list[int]:
        """Layer 0 stays the first: only there nothing has been read yet."""
        rest = self.draw.choice(np.arange(self.front, self.n_layers), self.depth - self.front, replace=False)
        return [*range(self.front), *sorted(rest.tolist())]

    def kv(self, head: int) -> int:
        """The key-value head that a query head uses."""
        return head * self.n_kv // self.n_heads

    def heads(self, *wanted: Unit) -> list[Unit]:
        """Heads for a purpose: those named, in the layers of this size; by other seeds others, no two of one group."""
        found = []
        for depth, head in wanted:
            layer = self.at[depth]
            groups = {self.kv(other) for there, other in self.taken if there == layer}
            free = [one for one in range(self.n_heads) if self.kv(one) not in groups]
            unit = (layer, head if self.plain else int(self.draw.choice(free)))
            self.taken.add(unit)
            found.append(unit)
        return found

    def neurons(self, depth: int, *wanted: int) -> list[int]:
        """Numbers of neurons for a purpose, likewise; in a mixture, within its expert (see :meth:`unit`)."""
        layer = self.at[depth]
        busy = {n for there, n in self.used if there == layer} | {*self.background, *self.steady}
        free = [n for n in range(self.d_mlp) if n not in busy]
        chosen = list(wanted) if self.plain else self.draw.choice(free, len(wanted), replace=False).tolist()
        self.used |= {(layer, n) for n in chosen}
        return chosen

    def expert(self, layer: int) -> int:
        """The expert of a layer that holds the planted neurons."""
        return (self.seed + layer) % N_EXPERTS

    def unit(self, layer: int, neuron: int) -> Unit:
        """How mechrep counts a neuron: in a mixture, expert by expert."""
        return (layer, neuron + (self.d_mlp * self.expert(layer) if BUILDS[self.family].experts else 0))

    @property
    def background(self) -> list[int]:
        """Neurons that follow the token."""
        return list(range(3, self.d_mlp, _BACKGROUND_EVERY))

    def idle_neurons(self, layer: int) -> list[int]:
        """Neurons of a layer without a purpose that do something all the same."""
        if self.plain:
            return self.background
        busy = {n for there, n in self.used if there == layer} | {*self.steady}
        return [n for n in range(self.d_mlp) if n not in busy]

    @property
    def idle_places(self) -> slice:
        """Dimensions that idle parts alone read."""
        return slice(FLAG + 1, self.d_model)

    @property
    def first_heard(self) -> int:
        """The first token that idle heads look at: no special one where a first position is louder than others."""
        return BOS if self.faintness == (1.0, 1.0) else WORDS[0]

    def loud(self, layer: int) -> float:
        """How loud the idle parts of a layer are, beside planted ones."""
        if layer == 0 and self.family in SANDWICH:  # or neurons that are all but constant tell a first position by it
            return 0.01
        return self.quiet if layer <= self.quiet_up_to else 1.0

    def faint(self, layer: int) -> float:
        """How much shorter a usual vector is when a layer reads it."""
        return self.faintness[min(layer, 1)]

    @property
    def steady(self) -> list[int]:
        """Neurons that always fire, where a norm stands behind the MLP."""
        return list(range(self.d_mlp - STEADY, self.d_mlp)) if self.family in SANDWICH else []

    # -- what every model has ---------------------------------------------------------------------------------

    def _lay_out(self) -> None:
        self.embed[:, CUR : CUR + D_VOCAB] = torch.eye(D_VOCAB, dtype=torch.float64)
        self.embed[:, PLUS], self.embed[:, MINUS] = self.constant, -self.constant
        self.unembed[OUT : OUT + D_VOCAB] = UNEMBED * torch.eye(D_VOCAB, dtype=torch.float64)
        for token in range(D_VOCAB):
            self.unembed[CUR + token, self.habits.get(token, habit(token))] = HABIT
        self.unembed[PLUS, [BOS, PAD]] = -10 / self.constant  # never said
        half = D_HEAD // 2
        self.free_pairs = (5, 6)
        if self.family in GATED:
            frequencies = 1e8 ** (-torch.arange(half).double() / half)
            # Fast pairs tell positions apart.  Slow ones compare tokens.
            slow = range(half - 10, half)
            self.still = [*slow, *(half + pair for pair in slow)]
        elif self.family in ROTARY:  # some dimensions do not turn at all
            rotary: Any = next(part for name, part in self.module.named_modules() if name.endswith("rotary_emb"))
            frequencies, half = rotary.inv_freq.double(), len(rotary.inv_freq)
            self.still = list(range(2 * half, D_HEAD))
        else:
            frequencies, half = 10 ** (-torch.arange(_FREQUENCIES) / 4).double(), _FREQUENCIES
            self.still = list(range(2 * half, D_HEAD))
            turns = torch.arange(N_CTX)[:, None] * frequencies
            features = torch.cat([turns.cos(), turns.sin()], dim=1)
            self.positions[:, POSITION : POSITION + 4 * half] = torch.cat([features, -features], dim=1)
        self._frequencies, self._half = frequencies[:_FREQUENCIES], half
        for layer in range(self.n_layers):
            self._add_background(layer)

    def _add_background(self, layer: int) -> None:
        """Neurons with a life of their own, so that no layer is dead: each likes half of the words."""
        generator = torch.Generator().manual_seed(layer + 100 * self.seed)
        for neuron in self.background:
            if neuron in self.steady:
                continue
            liked = torch.randperm(len(WORDS), generator=generator)[: len(WORDS) // 2] + WORDS[0]
            self.gate[layer, CUR + liked, neuron] = _BACKGROUND_ACT
            self.up[layer, PLUS, neuron] = 1 / self.constant
            self.down[layer, neuron, OUT + PAD] = 0.02

    # -- pieces of heads; strengths are scores as softmax sees them ----------------------------------------------

    @property
    def still_slot(self) -> int:
        """A dimension of queries and keys that does not turn with the position, and is not used for tokens."""
        return self.still[16]

    def score_offset(self, layer: int, head: int, offset: int, strength: float) -> None:
        """Add ``strength * mean_f cos(f * (i - offset - j))``: at ``j = i - offset`` all of it, elsewhere less.

        Where position embeddings rotate, query and key are constants, the query turned back by ``offset``; where
        positions are learned, both read cos and sin from the residual stream.
        """
        scale = strength / _FREQUENCIES * D_HEAD**0.5
        query, key = self.query[layer, head], self.key[layer, self.kv(head)]
        for pair, frequency in enumerate(self._frequencies):
            one, other = pair, self._half + pair
            back = frequency * offset
            if self.family in ROTARY:
                query[PLUS, one] += scale * back.cos() / self.constant
                query[PLUS, other] -= scale * back.sin() / self.constant
                key[PLUS, one] += 1 / self.constant
            else:
                cos, sin = POSITION + pair, POSITION + _FREQUENCIES + pair
                query[cos, one] += scale * back.cos()
                query[sin, one] += scale * back.sin()
                query[sin, other] += scale * back.cos()
                query[cos, other] -= scale * back.sin()
                key[cos, one] += 1
                key[sin, other] += 1

    def no_offset_for_bos(self, layer: int, head: int) -> None:
        """Let :meth:`score_offset` add 0 at the key of a BOS (at position 0, where positions are learned)."""
        self.key[layer, self.kv(head)][CUR + BOS, list(range(_FREQUENCIES))] -= 1

    def score_match(self, layer: int, head: int, query_place: int, key_place: int, strength: float) -> None:
        """Add ``strength`` per digit in which the token at two places agrees; BOS in a key agrees with nothing."""
        for token in range(D_VOCAB):
            high, low = divmod(token, 8)
            slots = [self.still[high], self.still[8 + low]]
            self.query[layer, head][query_place + token, slots] += strength * D_HEAD**0.5
            if token != BOS:
                self.key[layer, self.kv(head)][key_place + token, slots] += 1

    def score_key(self, layer: int, head: int, key_dimension: int, strength: float) -> None:
        """Add ``strength`` times ``key_dimension`` of the key, whatever the query."""
        slot = self.still_slot
        self.query[layer, head][PLUS, slot] += strength * D_HEAD**0.5 / self.constant
        self.key[layer, self.kv(head)][key_dimension, slot] += 1

    def copy(self, layer: int, head: int, source: int, target: int, factor: float, skip: Iterable[int] = ()) -> None:
        """Move the token at ``source`` of the keys, times ``factor``, to ``target`` of the query."""
        for token in set(range(D_VOCAB)) - set(skip):
            self.value[layer, self.kv(head)][source + token, token] = 1
            self.output[layer, head][token, target + token] = factor

    # -- from here to a model ------------------------------------------------------------------------------------

    def finish(self) -> Model:
        """The model of the family with these weights, loaded and checked by mechrep."""
        if not self.plain:
            fill_idle_parts(self)
        for written in (self.embed, self.positions, self.output, self.down):
            written[..., BALANCE] -= written.sum(-1)
        for layer in range(self.n_layers):
            for reading in (self.query, self.key, self.value):
                reading[layer] /= self.uneven[2 * layer][:, None]
            for reading in (self.gate, self.up):
                reading[layer] /= self.uneven[2 * layer + 1][:, None]
        self.unembed /= self.uneven[-1][:, None]
        fit(self, self.uneven * self.length / self.d_model**0.5)
        with tempfile.TemporaryDirectory() as folder:  # TransformerLens reads the tokenizer from there once more
            return mechrep.load_model(self.module, tokenizer=_tokenizer(folder))


def _tokenizer(folder: str) -> Any:
    """Whole words ``w3`` ... ``w62``, saved to a folder and read from there."""
    vocabulary = {"<bos>": BOS, "<eos>": EOS, "<pad>": PAD, **{f"w{word}": word for word in WORDS}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special: dict[str, Any] = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)
