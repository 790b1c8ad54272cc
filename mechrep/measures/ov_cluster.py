"""``ov_cluster``: different tokens that the first layer takes for one, and whether they become a sink together.

The first layer tells "first token" from the others by what heads bring in from *other* tokens (for a rotary model,
``z_t - v_t = sum over j of A[t, j] (v_j - v_t)``).  Where all tokens of a text bring in the same, nothing tells them
apart, as if one token were repeated.  So tokens are looked for whose output-value vectors::

    e(x) = sum over heads h of v_x^h W_O^h        at layer 0, in the residual stream

lie close together: a cluster is grown from one token, always by the token that keeps its diameter,
``max |e(i) - e(j)|``, smallest.  Then texts are built of the cluster's tokens in random order, each as often as the
others, none twice in a row, and compared with texts of random sets of the same size and with plain repeats.

``OVClusterResult``: what texts of one cluster of tokens do, beside texts of random sets and plain repeats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.errors import InputError
from mechrep.guards import Count, Seed, Several, check_count, guarded, one_of, within
from mechrep.measures.sink_norms import norms_of
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import read_activations
from mechrep.provenance import provenance_of
from mechrep.results import Result
from mechrep.stats import percentile_interval
from mechrep.text.corpus import Corpus
from mechrep.text.stimuli import single_token_id
from mechrep.text.token_kinds import ordinary_ids

KINDS = ("cluster", "random", "repeat")


@dataclass(frozen=True, eq=False)
class OVClusterResult(Result):
    """Texts of three kinds, all ending in the same token; depth 0 is the input of block 0.

    Attributes:
        cluster: the cluster's tokens, in the order in which it grew.
        random_sets: tokens of the random sets.
        length: tokens per text, without BOS.
        bos: whether texts begin with BOS.
        kinds: of each text: ``"cluster"``, ``"random"`` or ``"repeat"`` (the token alone, over and over).
        sets: number of each text's set among those of its kind.
        diameter: of the cluster, and the mean of the random sets'; distance in the residual stream.
        signal: distance of layer 0's attention output at the last position from the token's own value.
        norm: residual norm at the last position.
        bos_norm: residual norm at BOS; NaN without one.
    """

    cluster: Sequence[int]
    random_sets: Sequence[Sequence[int]]
    length: int
    bos: bool
    kinds: Sequence[str]
    sets: Sequence[int]
    diameter: Mapping[str, float]
    signal: Float[Tensor, " text"]
    norm: Float[Tensor, "text depth"]
    bos_norm: Float[Tensor, " depth"]

    @guarded
    def by_set(self, values: Float[Tensor, " text"], kind: str) -> Float[Tensor, " set"]:
        """Means of one number per text over the orders of each set.

        Args:
            values: one number per text, for instance ``signal`` or ``norm[:, depth]``.
            kind: ``"cluster"``, ``"random"`` or ``"repeat"``.

        Raises:
            InputError: another kind.
        """
        one_of("kind", kind, KINDS)
        here = [(text, number) for text, number in enumerate(self.sets) if self.kinds[text] == kind]
        groups = [[text for text, own in here if own == number] for number in sorted({own for _, own in here})]
        return torch.stack([values[group].double().mean() for group in groups])

    @property
    def p_signal(self) -> float:
        """How often a random set has a signal as small as the cluster's: (1 + such sets) / (1 + random sets)."""
        return _share(self.by_set(self.signal, "random") <= self.by_set(self.signal, "cluster"))

    @guarded
    def p_norm(self, layer: int) -> float:
        """How often a random set comes to a norm as large as the cluster's after ``layer``; counted in the same way.

        Raises:
            InputError: a layer that the model does not have.
        """
        values = self.norm[:, self._depth(layer)]
        return _share(self.by_set(values, "random") >= self.by_set(values, "cluster"))

    def _depth(self, layer: int) -> int:
        within("layer", layer, 0, self.norm.shape[1] - 2, "a layer")
        return layer + 1

    @guarded
    def top(self, k: int) -> list[int]:
        """The first ``k`` tokens of the cluster, as it grew.

        Raises:
            InputError: ``k`` larger than the cluster.
        """
        check_count(k, len(self.cluster), "tokens of the cluster")
        return list(self.cluster[:k])

    @guarded
    def to_frame(self, layer: int | None = None) -> pd.DataFrame:
        """One row per kind: mean signal and norm with 95 % intervals.

        Intervals are over orders for the cluster and over sets for random ones: a set is one draw.

        Args:
            layer: whose output the norms are of; the last by default.
        """
        norms = self.norm[:, -1 if layer is None else self._depth(layer)]
        rows = []
        for kind in KINDS:
            texts = [text for text, name in enumerate(self.kinds) if name == kind]
            row = {"kind": kind, "texts": len(texts), "diameter": self.diameter.get(kind, 0.0)}
            for name, values in (("signal", self.signal), ("norm", norms)):
                draws = self.by_set(values, kind) if kind == "random" else values[texts].double()
                low, high = percentile_interval(draws.tolist())
                row |= {name: float(draws.mean()), f"{name}_low": low, f"{name}_high": high}
            rows.append(row)
        return pd.DataFrame(rows)


def _share(as_extreme: Tensor) -> float:
    return (1 + int(as_extreme.sum())) / (1 + as_extreme.numel())


_TOKENS_PER_BATCH = 8192
_CANDIDATES = 4096


@torch.no_grad()
def ov_vectors(model: Model, token_ids: Sequence[int]) -> Float[Tensor, "token d_model"]:
    """What the first layer's attention adds for each token alone: ``e(x)``, biases included.

    A text of one token attends to itself, so its attention output is its own value through all heads.  In a model
    with learned positions that is the value at the first position.

    Args:
        model: the model.
        token_ids: the tokens.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> ov_vectors(model, [300, 301]).shape[1] == model.anatomy.d_model
        True
    """
    kept: list[Tensor] = []
    for part in torch.tensor(list(token_ids), device=model.device).split(_TOKENS_PER_BATCH):
        read_activations(
            model, part[:, None], {Site.ATTN_OUT: [0]}, lambda output, *_: kept.append(output[:, 0].float().cpu())
        )
    return torch.cat(kept)


@torch.no_grad()
@guarded
def ov_cluster(
    model: Model,
    token: int | str,
    size: Several = 8,
    *,
    length: Count | None = None,
    draws: tuple[Count, Count] = (8, 8),
    candidates: Sequence[int] | None = None,
    bos: bool = True,
    seed: Seed = 0,
) -> OVClusterResult:
    """Grows a cluster from a token and measures what texts of its tokens do to the first layer and to the norm.

    Every text ends in ``token`` itself, so that texts of all kinds are compared at the same token::

        signal = |attention output of layer 0 at the last position - e(token)|
        norm   = |residual stream at the last position|, at every depth

    ``signal`` is what the first layer sees of other tokens: 0 for a first position, small for long repeats.

    Args:
        model: the model.
        token: where the cluster begins; an id, or a word of one token.
        size: tokens of the cluster, the first one included.
        length: tokens per text, without BOS; by default 64 times the size, as far as the context allows.
        draws: random sets of the same size, each with ``token`` in it, and texts of every set, in random orders.
        candidates: ids that the cluster may take; by default all ordinary tokens, of large vocabularies 4,096 drawn.
        bos: whether texts begin with BOS; its value is brought in too.
        seed: of orders, sets and candidates.

    Returns:
        Signals and norms text by text: of the cluster, of random sets, and of the token repeated.

    Raises:
        InputError: fewer than two tokens, more than there are candidates, texts shorter than the set or longer than
            the context, no sets or orders, or a model without BOS where it is asked for.

    Source: mechrep's own.  Yona et al. 2025 (arXiv 2503.08908) attack with similar tokens in place of equal ones; how
    they choose them is not known to us, and these clusters are not theirs.

    Limits: OV space only: whether heads *attend* to the tokens alike is not asked.  Closeness at layer 0 need not last.
    Random sets scatter: with ``n`` of them, the smallest share that :attr:`OVClusterResult.p_signal` can show is
    ``1 / (n + 1)``.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> result = ov_cluster(model, 300, 4, length=16, draws=(3, 2))
        >>> len(result.cluster), result.cluster[0], result.diameter["cluster"] <= result.diameter["random"]
        (4, 300, True)
    """
    first = single_token_id(model, token) if isinstance(token, str) else token
    room = model.anatomy.n_ctx - int(bos)
    length = min(64 * size, room) if length is None else length
    sets, orders = draws
    generator = np.random.default_rng(seed)
    pool = _pool(model, first, candidates, generator)
    if not 2 <= size <= len(pool) + 1 or not size <= length <= room or sets < 1 or orders < 1:
        raise InputError(
            f"size={size}, length={length}, draws={draws}",
            f"2 to {len(pool) + 1} tokens, texts from that size to {room} tokens, at least one set and one text of it",
            "correct them",
        )
    if bos and model.bos_id is None:
        raise InputError("texts after BOS", "a model that has a BOS", "pass bos=False")
    vectors = ov_vectors(model, [first, *pool])
    ids = [first, *pool]
    cluster = _grow(vectors, size)
    places = np.arange(1, len(ids))
    random = [[0, *generator.choice(places, size - 1, replace=False).tolist()] for _ in range(sets)]
    chosen = [cluster] * orders + [one for one in random for _ in range(orders)] + [[0]]
    kinds = ["cluster"] * orders + ["random"] * (sets * orders) + ["repeat"]
    numbers = [0] * orders + [number for number in range(sets) for _ in range(orders)] + [0]
    start = [model.bos_id] if bos and model.bos_id is not None else []
    rows = [[*start, *(ids[place] for place in _order(members, length, generator))] for members in chosen]
    corpus = Corpus.from_tokens(
        rows, model=model, attention_mask=True, source="ov-cluster", bos_policy="prepended" if bos else "absent"
    )
    signal, norm, bos_norm = _measure(model, corpus, vectors[0], bos)
    spread = [_diameter(vectors[members]) for members in (cluster, *random)]
    config = {"token": first, "size": size, "length": length, "sets": sets, "orders": orders, "bos": bos, "seed": seed}
    return OVClusterResult(
        provenance_of(model, corpus, config),
        cluster=[ids[place] for place in cluster],
        random_sets=[[ids[place] for place in members] for members in random],
        length=length,
        bos=bos,
        kinds=kinds,
        sets=numbers,
        diameter={"cluster": spread[0], "random": float(np.mean(spread[1:]))},
        signal=signal,
        norm=norm,
        bos_norm=bos_norm,
    )


def _pool(model: Model, first: int, candidates: Sequence[int] | None, generator: np.random.Generator) -> list[int]:
    """Ids that the cluster may take, without its first."""
    within("token", first, 0, model.anatomy.d_vocab - 1, "an id")
    ids = ordinary_ids(model).tolist() if candidates is None else [int(token) for token in candidates]
    if candidates is None and len(ids) > _CANDIDATES:
        ids = generator.choice(ids, _CANDIDATES, replace=False).tolist()
    pool = sorted(set(ids) - {first})
    if pool and not 0 <= pool[0] <= pool[-1] < model.anatomy.d_vocab:
        raise InputError(f"candidates {pool[0]} to {pool[-1]}", "ids of this model", "correct them")
    return pool


def _grow(vectors: Float[Tensor, "token d_model"], size: int) -> list[int]:
    """Places of the cluster's tokens: from the first on, always the one that keeps the diameter smallest."""
    chosen, farthest = [0], torch.cdist(vectors[:1].double(), vectors.double())[0]
    for _ in range(size - 1):
        farthest[chosen] = torch.inf
        chosen.append(int(farthest.argmin()))
        farthest = torch.maximum(farthest, torch.cdist(vectors[chosen[-1:]].double(), vectors.double())[0])
    return chosen


def _diameter(vectors: Float[Tensor, "token d_model"]) -> float:
    return float(torch.cdist(vectors.double(), vectors.double()).max())


def _order(members: Sequence[int], length: int, generator: np.random.Generator) -> list[int]:
    """Shuffled rounds of all members, none twice in a row, the first member at the end."""
    if len(members) == 1:
        return [members[0]] * length
    order: list[int] = []
    while len(order) < length:  # built from the end
        left = generator.permutation([m for m in members if order or m != members[0]]).tolist()
        if order and left[0] == order[-1]:
            left = left[1:] + left[:1]
        order += left if order else [members[0], *left]
    return order[:length][::-1]


def _measure(
    model: Model, corpus: Corpus, own: Float[Tensor, " d_model"], bos: bool
) -> tuple[Float[Tensor, " text"], Float[Tensor, "text depth"], Float[Tensor, " depth"]]:
    """At the last position: distance of layer 0's attention output from the token's own value, and norms by depth."""
    depths = model.anatomy.n_layers + 1
    signal = torch.zeros(len(corpus), dtype=torch.float64)
    norm = torch.zeros(len(corpus), depths, dtype=torch.float64)
    bos_norm = torch.full((depths,), torch.nan, dtype=torch.float64)
    wanted = {Site.ATTN_OUT: [0], Site.RESID_PRE: [0], Site.RESID_POST: range(model.anatomy.n_layers)}
    for texts in torch.arange(len(corpus)).split(max(1, _TOKENS_PER_BATCH // corpus.tokens.shape[1])):

        def receive(activation: Tensor, site: Site, layer: int, texts: Tensor = texts) -> None:
            last = activation[:, -1:]
            if site is Site.ATTN_OUT:
                signal[texts] = (last[:, 0].float().cpu() - own).double().norm(dim=-1)
                return
            depth = 0 if site is Site.RESID_PRE else layer + 1
            norm[texts, depth] = norms_of(last)[:, 0].cpu().double()
            if bos:  # the same in every text
                bos_norm[depth] = norms_of(activation[:1, :1])[0, 0].cpu().double()

        with model.each_alone(corpus.lengths[texts]):
            read_activations(model, corpus.tokens[texts].to(model.device), wanted, receive)
    return signal.float(), norm.float(), bos_norm.float()
