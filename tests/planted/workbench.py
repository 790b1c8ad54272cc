"""A bench on which models are built by hand: weights are written in one plain form and then fitted to a family.

**The residual stream** (256 dimensions) is a row of named places, the same in every planted model::

    CUR    63  the current token, one-hot, written by the embedding
    PREV   63  circuits: the token one position back;  sinks: own token minus what layer 0 attends to
    OUT    63  what the model is going to say; the unembedding multiplies it by 10
    PLUS, MINUS        the constant +c and -c: every weight that needs a bias reads PLUS / c instead
    BALANCE            minus the sum of everything else, so that every vector has mean 0
    POSITION  16  cos and sin of four frequencies, and their negatives; only where positions are learned (GPT-2)
    FIRST              "nothing but my own token is before me"
    SINK_PLUS, SINK_MINUS   the sink's huge norm
    SCRATCH            written by some neurons, read by nobody

**Why norms do no harm.**  Every vector has mean 0, so LayerNorm is RMSNorm, and gains are such that a part reads
``x * length / |x|``.  Where ``c`` is large (100 beside entries of about 1) ``|x|`` is ``c sqrt(2)`` at every position
to one part in 10^3; with that for ``length`` a part reads the residual stream as it stands.  Gains are not uniform:
each dimension has its own factor between 0.5 and 2, undone in the weights that read it, so who forgets a gain gets
wrong numbers.

**No weight has a bias**, so the Llamas are ordinary Llamas.  Activation functions are ReLU: silent is exactly 0.

**Tokens** are 0 BOS, 1 EOS, 2 padding, and the words 3 to 62.  Queries and keys compare tokens by two digits,
``divmod(token, 8)``: equal tokens agree in two, others in one at most.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

import mechrep
from mechrep.models.model import Model

FAMILIES = ("gpt2", "llama", "llama_gqa", "gpt_neox")
ROTARY = ("llama", "llama_gqa", "gpt_neox")
GATED = ("llama", "llama_gqa")
PARALLEL = ("gpt_neox",)

D_VOCAB, D_MODEL, N_HEADS, D_HEAD, D_MLP, N_CTX = 63, 256, 4, 64, 80, 320
BOS, EOS, PAD = 0, 1, 2
WORDS = tuple(range(3, D_VOCAB))

CUR, PREV, OUT = 0, D_VOCAB, 2 * D_VOCAB
PLUS, MINUS, BALANCE = 189, 190, 191
POSITION = 192
FIRST, SINK_PLUS, SINK_MINUS, SCRATCH = 208, 209, 210, 211

UNEMBED = 10.0  # logits per unit of OUT
HABIT = 2.0  # logit of the token that follows by habit, where nothing is copied

_FREQUENCIES = 4  # enough for one offset to stand out among N_CTX
_BACKGROUND = range(3, D_MLP, 13)  # in every layer: neurons that follow the token, whatever the text does
_BACKGROUND_ACT = 0.1


def habit(token: int) -> int:
    """What follows a token where nothing is copied: the next word, after the last one the end of the text."""
    return EOS if token == WORDS[-1] else max(token + 1, WORDS[0])


@dataclass
class Bench:
    """Weights in one plain form, float64, biases nowhere; a part that is not written stays zero.

    Args:
        family: one of :data:`FAMILIES`.
        n_layers: layers.
        constant: ``c``, the size of ``PLUS`` and ``MINUS``.
        length: the norm that every vector has when it is read.

    Shapes: ``query``, ``output`` ``[layer head ...]``; ``key``, ``value`` ``[layer key-value head ...]``; ``gate`` and
    ``up`` ``[layer d_model d_mlp]``, ``down`` ``[layer d_mlp d_model]``; ``unembed`` ``[d_model d_vocab]``.
    """

    family: str
    n_layers: int
    constant: float = 100.0
    length: float = 100.0 * 2**0.5
    n_kv: int = field(init=False)

    def __post_init__(self) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64)

        self.n_kv = 2 if self.family == "llama_gqa" else N_HEADS
        self.embed, self.positions, self.unembed = (
            zeros(D_VOCAB, D_MODEL),
            zeros(N_CTX, D_MODEL),
            zeros(D_MODEL, D_VOCAB),
        )
        self.query = zeros(self.n_layers, N_HEADS, D_MODEL, D_HEAD)
        self.key, self.value = (zeros(self.n_layers, self.n_kv, D_MODEL, D_HEAD) for _ in range(2))
        self.output = zeros(self.n_layers, N_HEADS, D_HEAD, D_MODEL)
        self.gate, self.up = (zeros(self.n_layers, D_MODEL, D_MLP) for _ in range(2))
        self.down = zeros(self.n_layers, D_MLP, D_MODEL)
        self.module = _empty_module(self.family, self.n_layers)
        self._lay_out()

    # -- what every model has ---------------------------------------------------------------------------------

    def _lay_out(self) -> None:
        self.embed[:, CUR : CUR + D_VOCAB] = torch.eye(D_VOCAB, dtype=torch.float64)
        self.embed[:, PLUS], self.embed[:, MINUS] = self.constant, -self.constant
        self.unembed[OUT : OUT + D_VOCAB] = UNEMBED * torch.eye(D_VOCAB, dtype=torch.float64)
        for token in range(D_VOCAB):
            self.unembed[CUR + token, habit(token)] = HABIT
        self.unembed[PLUS, [BOS, PAD]] = -10 / self.constant  # never said
        if self.family in ROTARY:
            rotary: Any = next(part for name, part in self.module.named_modules() if name.endswith("rotary_emb"))
            frequencies, half = rotary.inv_freq.double(), len(rotary.inv_freq)
            # Fast pairs tell positions apart.  Slow ones (or dimensions that do not turn at all) compare tokens.
            slow = range(half - 10, half) if self.family in GATED else ()
            self._still = [*slow, *(half + pair for pair in slow), *range(2 * half, D_HEAD)]
        else:
            frequencies, half = 10 ** (-torch.arange(_FREQUENCIES) / 4).double(), _FREQUENCIES
            self._still = list(range(2 * half, D_HEAD))
            turns = torch.arange(N_CTX)[:, None] * frequencies
            features = torch.cat([turns.cos(), turns.sin()], dim=1)
            self.positions[:, POSITION : POSITION + 4 * half] = torch.cat([features, -features], dim=1)
        self._frequencies, self._half = frequencies[:_FREQUENCIES], half
        for layer in range(self.n_layers):
            self._add_background(layer)

    def _add_background(self, layer: int) -> None:
        """Neurons with a life of their own, so that no layer is dead: each likes half of the words."""
        generator = torch.Generator().manual_seed(layer)
        for neuron in _BACKGROUND:
            liked = torch.randperm(len(WORDS), generator=generator)[: len(WORDS) // 2] + WORDS[0]
            self.gate[layer, CUR + liked, neuron] = _BACKGROUND_ACT
            self.up[layer, PLUS, neuron] = 1 / self.constant
            self.down[layer, neuron, OUT + PAD] = 0.02

    # -- pieces of heads; strengths are scores as softmax sees them ----------------------------------------------

    @property
    def still_slot(self) -> int:
        """A dimension of queries and keys that does not turn with the position, and is not used for tokens."""
        return self._still[16]

    def kv(self, head: int) -> int:
        """The key-value head that a query head uses."""
        return head * self.n_kv // N_HEADS

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
            slots = [self._still[high], self._still[8 + low]]
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
        for written in (self.embed, self.positions, self.output, self.down):
            written[..., BALANCE] -= written.sum(-1)
        generator = torch.Generator().manual_seed(0)
        n_norms = 2 * self.n_layers + 1
        uneven = 2 ** (2 * torch.rand(n_norms, D_MODEL, generator=generator, dtype=torch.float64) - 1)
        self._gains = uneven * self.length / D_MODEL**0.5
        for layer in range(self.n_layers):
            for reading in (self.query, self.key, self.value):
                reading[layer] /= uneven[2 * layer][:, None]
            for reading in (self.gate, self.up):
                reading[layer] /= uneven[2 * layer + 1][:, None]
        self.unembed /= uneven[-1][:, None]
        with torch.no_grad():
            {"gpt2": self._fit_gpt2, "gpt_neox": self._fit_neox}.get(self.family, self._fit_llama)()
        with tempfile.TemporaryDirectory() as folder:  # TransformerLens reads the tokenizer from there once more
            return mechrep.load_model(self.module, tokenizer=_tokenizer(folder))

    def _side_by_side(self, heads: Tensor) -> Tensor:
        """``[head d_model d_head]`` as one matrix ``[d_model head*d_head]``."""
        return heads.transpose(0, 1).flatten(1)

    def _fit_llama(self) -> None:
        model: Any = self.module
        model.model.embed_tokens.weight.copy_(self.embed)
        model.model.norm.weight.copy_(self._gains[-1])
        model.lm_head.weight.copy_(self.unembed.T)
        for number, layer in enumerate(model.model.layers):
            layer.input_layernorm.weight.copy_(self._gains[2 * number])
            layer.post_attention_layernorm.weight.copy_(self._gains[2 * number + 1])
            attention, mlp = layer.self_attn, layer.mlp
            for part, heads in ((attention.q_proj, self.query), (attention.k_proj, self.key)):
                part.weight.copy_(self._side_by_side(heads[number]).T)
            attention.v_proj.weight.copy_(self._side_by_side(self.value[number]).T)
            attention.o_proj.weight.copy_(self.output[number].flatten(0, 1).T)
            mlp.gate_proj.weight.copy_(self.gate[number].T)
            mlp.up_proj.weight.copy_(self.up[number].T)
            mlp.down_proj.weight.copy_(self.down[number].T)

    def _fit_gpt2(self) -> None:
        model: Any = self.module
        model.transformer.wte.weight.copy_(self.embed)
        model.transformer.wpe.weight.copy_(self.positions)
        model.transformer.ln_f.weight.copy_(self._gains[-1])
        model.lm_head.weight.copy_(self.unembed.T)
        for number, layer in enumerate(model.transformer.h):
            layer.ln_1.weight.copy_(self._gains[2 * number])
            layer.ln_2.weight.copy_(self._gains[2 * number + 1])
            heads = [self._side_by_side(part[number]) for part in (self.query, self.key, self.value)]
            layer.attn.c_attn.weight.copy_(torch.cat(heads, dim=1))
            layer.attn.c_proj.weight.copy_(self.output[number].flatten(0, 1))
            layer.mlp.c_fc.weight.copy_(self.gate[number])
            layer.mlp.c_proj.weight.copy_(self.down[number])

    def _fit_neox(self) -> None:
        model: Any = self.module
        model.gpt_neox.embed_in.weight.copy_(self.embed)
        model.gpt_neox.final_layer_norm.weight.copy_(self._gains[-1])
        model.get_output_embeddings().weight.copy_(self.unembed.T)
        for number, layer in enumerate(model.gpt_neox.layers):
            layer.input_layernorm.weight.copy_(self._gains[2 * number])
            layer.post_attention_layernorm.weight.copy_(self._gains[2 * number + 1])
            per_head = torch.cat([self.query[number], self.key[number], self.value[number]], dim=-1)
            layer.attention.query_key_value.weight.copy_(self._side_by_side(per_head).T)
            layer.attention.dense.weight.copy_(self.output[number].flatten(0, 1).T)
            layer.mlp.dense_h_to_4h.weight.copy_(self.gate[number].T)
            layer.mlp.dense_4h_to_h.weight.copy_(self.down[number].T)


def _empty_module(family: str, n_layers: int) -> nn.Module:
    """A model of the family in which every weight is 0."""
    special = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD, "tie_word_embeddings": False}
    rotary: dict[str, Any] = {
        "vocab_size": D_VOCAB,
        "hidden_size": D_MODEL,
        "intermediate_size": D_MLP,
        "num_hidden_layers": n_layers,
        "num_attention_heads": N_HEADS,
        "max_position_embeddings": N_CTX,
        "hidden_act": "relu",
        **special,
    }
    t = transformers
    if family == "gpt2":
        sizes = {"vocab_size": D_VOCAB, "n_embd": D_MODEL, "n_inner": D_MLP, "n_layer": n_layers, "n_head": N_HEADS}
        config: Any = t.GPT2Config(**sizes, n_positions=N_CTX, activation_function="relu", **special)
    elif family == "gpt_neox":
        config = t.GPTNeoXConfig(**rotary)
    elif family in GATED:
        n_kv = 2 if family == "llama_gqa" else N_HEADS
        turning = {"rope_type": "default", "rope_theta": 1e8}  # so large that slow pairs stand still over N_CTX
        config = t.LlamaConfig(**rotary, num_key_value_heads=n_kv, rope_parameters=turning)
    else:
        raise ValueError(f"family {family!r}: choose one of {FAMILIES}")
    module = t.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.zero_()
    return module


def _tokenizer(folder: str) -> Any:
    """Whole words ``w3`` ... ``w62``, saved to a folder and read from there."""
    vocabulary = {"<bos>": BOS, "<eos>": EOS, "<pad>": PAD, **{f"w{word}": word for word in WORDS}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special: dict[str, Any] = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)
