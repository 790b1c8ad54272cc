"""``DistanceProfile``: where a head looks by distance alone, in text that does not repeat.

A reader that looks by distance gives the key at distance ``d`` of query ``i`` the share ``w(d) / (w(0) + ... + w(i -
1))`` of what it does not give to position 0, where heads rest.  The weights are those under which what the head gives
is most likely::

    w(d) = sum_i A[i, i - d]  /  sum_{i > d} m_i / (w(0) + ... + w(i - 1)),        m_i = 1 - A[i, 0]

found by iterating this (which can only make it more likely), up to a factor.  So a head that looks at all keys alike,
and one that looks by distance and nothing else, are exactly their own reader.  A mean over the queries that see a
distance is not: early queries have few keys, and share more with each, and they see near ones only.

Neighbouring distances are put together, the more the farther away they are, because few queries see the farthest; from
position 4096 on so are 128 neighbouring queries, whose numbers of keys hardly differ.  This
is the reader that position-matched ratios compare with: it looks where the head usually looks, whatever stands there.

Source: the choice among those in reach is Luce 1959 (*Individual Choice Behavior*); the iteration is Hunter 2004 (The
Annals of Statistics 32, 384-406).
"""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mechrep.cache.corpus_cache import Analyzer, Batch, CorpusCache
from mechrep.errors import InputError, ModelError
from mechrep.guards import Count, guarded
from mechrep.models.anatomy import Anatomy, Site
from mechrep.models.model import Model
from mechrep.models.units import empty_table
from mechrep.provenance import Provenance
from mechrep.results import Result
from mechrep.text.corpus import Corpus

_SINGLE, _GROWTH = 16, 1.2  # so many distances stand alone; from there on bins grow by this factor
_ROWS, _TOGETHER = 4096, 128  # so many queries are told apart by how many keys they see; then so many count as one
_ROUNDS, _STEADY = 500, 1e-7  # of the iteration, at most; until no weight changes by more than this share
_ROUGH = 1e-3  # a larger change in the last round is said
TOKENS_PER_BATCH = 2048  # a pattern is heads x T x T per text; on a CPU small batches stay in its cache


@dataclass(frozen=True, eq=False)
class DistanceProfileResult(Result):
    """Attention by distance.

    Attributes:
        weights: of a key at distance 0, 1, ...; those beyond the last have its weight.  Their factor is such that over
            all pairs of positions they sum to what the head gives.
        pairs: queries that see a key at each distance.
    """

    weights: Float[Tensor, "layer head distance"]
    pairs: Float[Tensor, " distance"]

    def to_frame(self) -> pd.DataFrame:
        """One row per head and distance: ``layer, head, distance, weight``."""
        layers, heads, distances = self.weights.shape
        index = pd.MultiIndex.from_product(
            [range(layers), range(heads), range(distances)], names=["layer", "head", "distance"]
        )
        return pd.DataFrame({"weight": self.weights.flatten().numpy()}, index=index).reset_index()

    @guarded
    def of_rows(self, layer: int, positions: Int64[Tensor, " query_pos"], keys: int) -> Tensor:
        """Weights ``[head query_pos key_pos]`` of queries at some positions, 0 for keys after the query.

        Args:
            layer: the layer.
            positions: of the queries.
            keys: number of keys.
        """
        distance = positions[:, None].cpu() - torch.arange(keys)
        table = self.weights[layer].double()
        rows = table[:, distance.clamp(0, table.shape[1] - 1)]
        # A head that gives nothing to any key but the first reads alike everywhere.
        return (rows + 1e-9).masked_fill(distance < 0, 0.0)


class DistanceProfile(Analyzer[DistanceProfileResult]):
    """Sums of attention by distance; see the module.

    Args:
        distances: how many are told apart.

    Raises:
        InputError: no distance.
        ModelError: a model without attention patterns.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea was calm, and the wind was still."], model=model)
        >>> profile = mechrep.CorpusCache(model, corpus).run(DistanceProfile(8))
        >>> profile.weights.shape[-1]
        8
    """

    sites: ClassVar[frozenset[Site]] = frozenset({Site.PATTERN})

    @guarded
    def __init__(self, distances: Count = 1024) -> None:
        self.distances = distances
        self.state = {}

    @property
    def config(self) -> dict[str, Any]:
        """Number of distances, and how weights are found."""
        return {"distances": self.distances, "weights": "likelihood"}

    def prepare(self, anatomy: Anatomy, frame: pd.DataFrame) -> None:  # noqa: ARG002 - any corpus will do
        """Empty sums for this model's heads."""
        if not anatomy.has(Site.PATTERN):
            raise ModelError(anatomy.architecture, "attention patterns", "this model has no heads to read")
        known = min(self.distances, anatomy.n_ctx)
        self.state = {
            "sum": empty_table(anatomy, "heads")[..., None].repeat(1, 1, known),
            "pairs": torch.zeros(known, dtype=torch.float64),
            "given": empty_table(anatomy, "heads")[..., None].repeat(
                1, 1, 1 + int(_place(torch.tensor(anatomy.n_ctx - 1)))
            ),
        }

    def observe(self, activation: Tensor, site: Site, layer: int, batch: Batch) -> None:  # noqa: ARG002 - it has one
        """Add one layer of one batch."""
        wide = torch.float32 if activation.device.type == "mps" else torch.float64
        lengths = batch.lengths.to(activation.device)
        real = torch.arange(activation.shape[-1], device=activation.device) < lengths[:, None]
        rows = activation.masked_fill(~real[:, None, :, None], 0.0).sum(0, dtype=wide)  # [head query key]
        query, key, distance = self._pairs(activation.shape[-1], activation.device)
        values = rows[:, query, key]
        self.state["sum"][layer] += values.new_zeros(len(rows), self.state["pairs"].shape[0]).index_add_(
            1, distance, values
        ).cpu()  # fmt: skip
        given = rows.tril()[..., 1:].sum(-1).cpu()  # [head query]
        self.state["given"][layer].index_add_(1, _place(torch.arange(given.shape[1])), given.to(self.state["given"]))

    def finish_batch(self, batch: Batch) -> None:
        """Count pairs of positions, once for all layers."""
        query, _, distance = self._pairs(batch.tokens.shape[1], torch.device("cpu"))
        texts = (batch.lengths.cpu()[:, None] > torch.arange(batch.tokens.shape[1])).sum(0).double()
        self.state["pairs"].index_add_(0, distance, texts[query])

    def _pairs(self, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (never position 0), and their distances, the farthest put together."""
        query, key = torch.tril_indices(width, width, device=device)
        query, key = query[key > 0], key[key > 0]
        return query, key, (query - key).clamp(max=self.state["pairs"].shape[0] - 1)

    def result(self, provenance: Provenance) -> DistanceProfileResult:
        """The weights, equal in bins that grow with the distance.

        Raises:
            InputError: no text of two tokens.
        """
        sums, pairs, given = self.state["sum"], self.state["pairs"], self.state["given"]
        if not bool(pairs.any()):
            raise InputError("texts of one token", "texts with queries behind the first position", "use longer texts")
        bins = [(begin, end) for begin, end in _bins(len(pairs)) if bool(pairs[begin:end].any())]
        number = torch.tensor([float(pairs[begin:end].sum()) for begin, end in bins])
        # How many keys of each bin a query sees; the last bin goes on.
        seen, ends = _seen(given.shape[2]), [float(end) for _, end in bins[:-1]] + [float("inf")]
        keys = torch.stack(
            [(seen.clamp(max=end) - begin).clamp_min(0) for (begin, _), end in zip(bins, ends, strict=True)]
        )
        shares = _likeliest(torch.stack([sums[..., begin:end].sum(-1) for begin, end in bins], -1), given, keys, number)
        weights = shares[..., -1:].repeat(1, 1, len(pairs))
        for place, (begin, end) in enumerate(bins):
            weights[..., begin:end] = shares[..., place, None]
        return DistanceProfileResult(provenance, weights.float(), pairs.float())


def _place(query: Int64[Tensor, "*_"]) -> Int64[Tensor, "*_"]:
    """Where a query is counted: far ones, which see nearly as many keys, together."""
    return torch.where(query < _ROWS, query, _ROWS + (query - _ROWS) // _TOGETHER)


def _seen(places: int) -> Float[Tensor, " place"]:
    """How many keys behind the first the queries of each place see, on average."""
    place = torch.arange(places, dtype=torch.float64)
    return torch.where(place < _ROWS, place, _ROWS + (place - _ROWS + 0.5) * _TOGETHER - 0.5)


def _likeliest(
    sums: Float[Tensor, "layer head bin"],
    given: Float[Tensor, "layer head query"],
    keys: Float[Tensor, "bin query"],
    number: Float[Tensor, " bin"],
) -> Float[Tensor, "layer head bin"]:
    """Weights under which what a head gives to each bin is most likely.

    Args:
        sums: attention to the keys of each bin.
        given: attention of each query to all keys but the first.
        keys: how many keys of a bin each query sees.
        number: pairs of positions in each bin.
    """
    wide, pairs = keys.double(), number.double()
    weights, change = sums / pairs, torch.tensor(0.0)
    for _ in range(_ROUNDS):
        reach = weights @ wide
        rate = torch.where(reach > 0, given / reach, 0.0) @ wide.T
        new = torch.where(rate > 0, sums / rate, sums * 0)  # what is not known stays so
        new = new * (sums.sum(-1) / (new @ pairs).clamp_min(1e-300))[..., None]
        change = ((new - weights).abs() / new.clamp_min(1e-12)).nan_to_num(0.0).max()
        weights = new
        if float(change) < _STEADY:
            return weights
    if float(change) > _ROUGH:
        warnings.warn(
            f"weights by distance still change by {float(change):.2g} of themselves after {_ROUNDS} rounds",
            stacklevel=2,
        )
    return weights


def distance_profile(model: Model, reference: Corpus, *, progress: bool | None = False) -> DistanceProfileResult:
    """The profile of all heads on reference text.

    Args:
        model: the model.
        reference: text that does not repeat, at least as long as the texts it is compared with.
        progress: show a progress bar.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea was calm, and the wind was still."], model=model)
        >>> distance_profile(model, corpus).weights.shape[:2] == (model.anatomy.n_layers, model.anatomy.n_heads)
        True
    """
    batch_size = max(1, TOKENS_PER_BATCH // reference.tokens.shape[1])
    result = CorpusCache(model, reference, batch_size=batch_size, progress=progress).run(DistanceProfile())
    assert isinstance(result, DistanceProfileResult)
    return result


def _bins(distances: int) -> list[tuple[int, int]]:
    """Begin and end of each bin."""
    edges = list(range(min(_SINGLE, distances) + 1))
    while edges[-1] < distances:
        edges.append(min(distances, max(edges[-1] + 1, round(edges[-1] * _GROWTH))))
    return list(itertools.pairwise(edges))
