"""Parts without a purpose: they look, fire and write as loudly as planted ones, at places and by rules of chance.

A *head* scores pairs of tokens at random, softly or sharply, and writes a random vector for each token that it sees.
A *neuron* likes half of the words, and what idle parts before it wrote; it fires as loudly as a planted one and writes
a random vector.  These vectors lie in dimensions that idle parts read, and the unembedding: all together they change
the logit of a word by 0.3 or so, up or down, so that ablating any of them changes what the model says.

Where a norm is the message (:mod:`tests.planted.sinks`) idle parts write as much as leaves it readable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tests.planted.fitting import BUILDS

if TYPE_CHECKING:
    from tests.planted.workbench import Bench

_LOGITS = 0.3  # standard deviation of what all idle parts together add to a word's logit
_SHARPEST, _SOFTEST = 24.0, 1.5  # standard deviation of a head's scores
_LOUDEST, _FAINTEST = 4.0, 0.25  # activation of a neuron where it likes the token
_WRITTEN = 0.5  # length of what a neuron writes there
_HEARD = 0.3  # of what a neuron is told by idle parts, beside the token
_SLOTS = 8  # dimensions of queries and keys


def fill_idle_parts(bench: Bench) -> None:
    """Give all heads and neurons that have no purpose something to do."""
    draw = torch.Generator().manual_seed(bench.seed)
    n_heads = n_neurons = 0
    for layer in range(bench.n_layers):
        heads, neurons = [n for n in range(bench.n_heads) if (layer, n) not in bench.taken], bench.idle_neurons(layer)
        _look(bench, layer, draw)
        if not (layer == 0 and bench.marks_first):  # there a norm leaves nothing but the mark
            _let_heads_write(bench, layer, heads, draw)
        _let_neurons_fire(bench, layer, neurons, draw)
        n_heads, n_neurons = n_heads + len(heads), n_neurons + len(neurons)
    share = (
        2.0 if BUILDS[bench.family].experts else 0.5
    )  # half of the neurons fire; in two experts the same, twice as loud
    length = (n_heads + _WRITTEN**2 * share * n_neurons) ** 0.5  # of all that they write
    bench.unembed[bench.idle_places, bench.words] = (
        _LOGITS
        / length
        * _normal(len(range(bench.d_model)[bench.idle_places]), bench.n_tokens - bench.words.start, draw=draw)
    )


def _uniform(low: float, high: float, n: int, draw: torch.Generator) -> Tensor:
    """Between the two, evenly on a logarithmic scale."""
    return low * (high / low) ** torch.rand(n, generator=draw, dtype=torch.float64)


def _normal(*shape: int, draw: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def _vectors(bench: Bench, n: int, length: float, draw: torch.Generator) -> Tensor:
    """Random vectors ``[n d_model]`` of a length whose entries sum to 0."""
    vectors = torch.zeros(n, bench.d_model, dtype=torch.float64)
    part = _normal(n, len(range(bench.d_model)[bench.idle_places]), draw=draw)
    part -= part.mean(1, keepdim=True)
    vectors[:, bench.idle_places] = length * part / part.norm(dim=1, keepdim=True)
    return vectors


def _look(bench: Bench, layer: int, draw: torch.Generator) -> None:
    """Scores by the tokens, of heads that share no keys with one that has a purpose."""
    slots, first = bench.still[:_SLOTS], bench.first_heard
    busy = {bench.kv(head) for there, head in bench.taken if there == layer}
    free = [head for head in range(bench.n_heads) if bench.kv(head) not in busy]
    for head, spread in zip(free, _uniform(_SOFTEST, _SHARPEST, len(free), draw).tolist(), strict=True):
        louder = spread * (bench.d_head / _SLOTS) ** 0.5 * bench.faint(layer) ** 2
        for part, place, size in ((bench.query, head, louder), (bench.key, bench.kv(head), 1.0)):
            table = torch.zeros(bench.n_tokens - first, bench.d_head, dtype=torch.float64)
            table[:, slots] = size * _normal(len(table), _SLOTS, draw=draw)
            part[layer, place][first : bench.n_tokens] = table


def _let_heads_write(bench: Bench, layer: int, heads: list[int], draw: torch.Generator) -> None:
    """A vector for each token; heads that share values with one that has a purpose write by these."""
    for head in heads:
        value = bench.value[layer, bench.kv(head)]
        if not value.any():
            value[: bench.n_tokens, : bench.n_tokens] = torch.eye(bench.n_tokens, dtype=torch.float64)
        told = bench.loud(layer) * bench.faint(layer)
        bench.output[layer, head, : bench.n_tokens] = _vectors(bench, bench.n_tokens, told, draw)


def _let_neurons_fire(bench: Bench, layer: int, neurons: list[int], draw: torch.Generator) -> None:
    """Each likes half of the words; what it writes has one length, however loud it is."""
    loud = _uniform(_FAINTEST, _LOUDEST, len(neurons), draw)
    liked = torch.rand(len(neurons), bench.n_tokens - 3, generator=draw).argsort(1) < (bench.n_tokens - 3) // 2
    bench.gate[layer, 3 : bench.n_tokens, neurons] = (liked * loud[:, None]).T
    n_places = len(range(bench.d_model)[bench.idle_places])
    others = _normal(n_places, len(neurons), draw=draw) / n_places**0.5
    bench.gate[layer, bench.idle_places, neurons] = _HEARD * loud * others / bench.loud(layer)
    signs = torch.where(torch.rand(len(neurons), generator=draw) < 0.5, -1.0, 1.0).double()
    bench.up[layer, bench.plus, neurons] = (signs if BUILDS[bench.family].gated else 1.0) / bench.constant
    if BUILDS[bench.family].sandwich:  # a null model whose MLP says nothing to most tokens has sinks by chance
        bench.up[layer, bench.idle_places, neurons] = _HEARD * others.roll(1, 0) / bench.loud(layer)
    written = _vectors(bench, len(neurons), bench.loud(layer) * _WRITTEN, draw)
    bench.down[layer, neurons] = written / loud[:, None]
