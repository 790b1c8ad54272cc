"""What attention heads read and write, by their weights: the pieces, their composition, and copying.

**Pieces.**  Vectors are rows: head ``h`` moves ``x [W_V(h) W_O(h)]`` from key to query.  A norm is
``N(x) = g * c(x) / s(x) + b``: gains ``g`` and bias ``b``; ``c`` takes the mean away (LayerNorm) or nothing (RMSNorm);
``s`` alone is not linear.  With ``s`` frozen at what it is, ``c`` and ``g`` belong to the weights that read the norm's
output: ``N(x) W + bias = x [c diag(g) W] / s(x) + (b W + bias)``; see :mod:`mechrep.models.stream`.  That the pieces
are the model's own is checked on a probe before they are used.

**Composition.**  With ``OV = W_V W_O`` of a head, ``QK = W_Q W_K^T`` of a head in a later layer, and ``|.|`` the
Frobenius norm::

    Q-composition  |OV_1 QK_2|   / (|OV_1| |QK_2|)      what head 1 writes decides where head 2 looks from
    K-composition  |OV_1 QK_2^T| / (|OV_1| |QK_2|)      ... what head 2 looks at
    V-composition  |OV_1 OV_2|   / (|OV_1| |OV_2|)      ... what head 2 moves on

An induction head K-composes with a previous-token head.

**Copying.**  With the embedding ``E`` and the unembedding ``U``, centred over the vocabulary, the full circuit of head
``h`` is ``C = E W_V(h) W_O(h) U`` ``[d_vocab d_vocab]``: row ``t`` is what looking at token ``t`` does to all logits.
Biases, norms' scales, positions and everything between embedding and head are left out::

    eigen         = Re(sum of C's eigenvalues) / sum of their absolute values
    topk          = share of tokens t whose own entry C[t, t] is among the k highest of its row
    suppress_topk = the same for the k lowest

``C`` has the non-zero eigenvalues of ``W_O U E W_V`` ``[d_head d_head]``, and its rows are made in chunks, so it never
exists as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, get_args

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrep.errors import InputError, ModelError
from mechrep.guards import Seed, Several, Whole, check_count, guarded, one_of, within
from mechrep.measures.head_targets import HeadTableResult
from mechrep.models.anatomy import Anatomy, Site
from mechrep.models.model import Model
from mechrep.models.parts import wide
from mechrep.models.reading import read_activations
from mechrep.models.stream import FrozenNorm, Stream, exact
from mechrep.provenance import Provenance, provenance_of
from mechrep.results import Result
from mechrep.stats import percentile_interval
from mechrep.text.token_kinds import ordinary_ids

Reader = Literal["Q", "K", "V"]

_SITES: dict[Reader, Site] = {"Q": Site.Q, "K": Site.K, "V": Site.V}
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_HALF_PRECISION_TOLERANCE = 0.1


class HeadCircuits:
    """The weights of a model's heads, one matrix per query head, as :mod:`mechrep.measures.head_circuits` says.

    Query head ``h`` reads key-value head ``h // (n_heads / n_kv_heads)``; that one's weights are repeated here.

    Args:
        model: the model, raw or in compatibility mode: what is worked out from these weights is the same.  Norms are
            remembered, so make new circuits when weights change.
        readers: which inputs of the heads are needed; fewer for a model whose queries and keys are compressed (MLA).

    Attributes:
        model: the model.
        n_heads: query heads per layer.

    Raises:
        ModelError: a model without separate heads, or whose queries, keys, values and attention outputs are not what
            norm and weights make of the residual stream (attention behind a gate, compressed keys, other norms).

    Example:
        >>> import mechrep
        >>> circuits = HeadCircuits(mechrep.load_model("mechrep-tiny"))
        >>> ov = circuits.reading(1, "V") @ circuits.writing(1)
        >>> ov.shape[0] == circuits.n_heads, ov.shape[1] == ov.shape[2] == circuits.unembed.shape[0]
        (True, True)
    """

    def __init__(self, model: Model, readers: Sequence[Reader] = ("Q", "K", "V")) -> None:
        anatomy = model.anatomy
        needed = (*(_SITES[reader] for reader in readers), Site.Z, Site.ATTN_OUT)
        absent = [site for site in needed if not anatomy.has(site)]
        if absent:
            raise ModelError(
                f"{anatomy.architecture}, without {', '.join(site.value for site in absent)}",
                f"attention with what each head reads and writes ({anatomy.why_not(absent[0])})",
                "this model has no separate heads; use a score of attention patterns",
            )
        self.model, self.n_heads = model, anatomy.n_heads
        self.stream, self.readers = Stream(model), tuple(readers)
        self._check()

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers with heads."""
        return self.model.anatomy.attention_layers

    def norm(self, layer: int) -> FrozenNorm:
        """The norm whose output the heads of a layer read; one that changes nothing where there is none (OLMo 2)."""
        return self.stream.before(layer)

    @cached_property
    def final_norm(self) -> FrozenNorm:
        """The norm before the unembedding."""
        return self.stream.final_norm

    @cached_property
    def unembed(self) -> Float[Tensor, "d_model d_vocab"]:
        """``W_U`` with the final norm folded in, centred over the vocabulary; its bias left out."""
        folded = self.final_norm.fold(self.stream.unembedding)
        return folded - folded.mean(-1, keepdim=True)

    def reading(self, layer: int, which: Reader) -> Float[Tensor, "head d_model d_head"]:
        """``W_Q``, ``W_K`` or ``W_V`` with the norm before it folded in."""
        weight, _ = self.stream.head_inputs(layer, _SITES[which])
        return self._per_head(self.norm(layer).fold(weight))

    def reading_bias(self, layer: int, which: Reader) -> Float[Tensor, "head d_head"]:
        """What stands beside :meth:`reading`: the bias of the projection and that of the norm before it."""
        weight, own = self.stream.head_inputs(layer, _SITES[which])
        bias = self.norm(layer).bias.to(weight) @ weight
        return self._per_head(bias if own is None else bias + own)

    def writing(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """``W_O``, with what stands behind it folded in: a norm (Gemma 2), a residual multiplier (Granite)."""
        weight, behind = self.stream.head_outputs(layer), self.stream.behind(layer, "attention")
        return (weight if behind is None else behind.apply(weight)) * self.stream.multiplier(layer)

    def writing_scale(
        self, layer: int, z: Float[Tensor, "*batch head d_head"]
    ) -> tuple[Float[Tensor, "*batch 1"], Float[Tensor, "*batch d_model"]]:
        """What turns ``sum_h z_h W_O(h)`` into the attention's output: a factor per position, and a bias."""
        behind, own = self.stream.behind(layer, "attention"), self.stream.output_bias(layer)
        multiplier = self.stream.multiplier(layer)
        summed = torch.einsum("...hd,hdm->...m", exact(z), exact(self.stream.head_outputs(layer)))
        bias = torch.zeros_like(summed) if own is None else exact(own).expand_as(summed)
        if behind is None:
            return torch.ones_like(summed[..., :1]), bias * multiplier
        factor = 1 / behind.scale((summed + bias).to(self.model.dtype))
        return factor, (exact(behind.apply(wide(bias))) * factor + exact(behind.bias)) * multiplier

    def head_outputs(self, layer: int, z: Float[Tensor, "*batch head d_head"]) -> Float[Tensor, "*batch head d_model"]:
        """What each head adds to the residual stream because of the tokens it looks at: value biases left out.

        Rows of attention sum to 1, so a head adds its value biases always; compatibility mode moves them to ``b_O``.
        """
        factor, _ = self.writing_scale(layer, z)
        moved = exact(z) - exact(self.reading_bias(layer, "V"))
        return torch.einsum("...hd,hdm->...hm", moved, exact(self.writing(layer))) * factor[..., None]

    def _per_head(self, weight: Tensor) -> Tensor:
        return weight.repeat_interleave(self.n_heads // weight.shape[0], dim=0)

    @torch.no_grad()
    def _check(self) -> None:
        model, seen = self.model, {}

        def keep(activation: Tensor, site: Site, layer: int) -> None:
            seen[site, layer] = activation.clone()

        read = tuple(_SITES[reader] for reader in self.readers)
        written = (Site.RESID_PRE, Site.Z, Site.ATTN_OUT)
        for some in (read, written):
            read_activations(model, model.probe_tokens(), dict.fromkeys(some, self.layers), keep)
        tolerance = _TOLERANCE.get(model.dtype, _HALF_PRECISION_TOLERANCE)
        for layer in self.layers:
            for what, expected, found in self._promises({s: seen[s, layer] for s in (*read, *written)}, layer):
                size = expected.abs().max().clamp_min(1e-6)
                if ((expected - found).abs().max() / size).item() > tolerance:
                    raise ModelError(
                        f"{model.name!r} ({model.anatomy.architecture}), {what} of layer {layer}",
                        "heads that read the residual stream through one norm and add up to the attention's output",
                        "scores from weights would be wrong for this model; use scores of attention patterns",
                    )

    def _promises(self, seen: dict[Site, Tensor], layer: int) -> Iterator[tuple[str, Tensor, Tensor]]:
        """What the model computed, and the same from the pieces given here."""
        stream = seen[Site.RESID_PRE]
        scale = self.norm(layer).scale(stream)[..., None]
        for which in self.readers:
            site = _SITES[which]
            read = torch.einsum("bpm,hmd->bphd", exact(stream), exact(self.reading(layer, which))) / scale
            found = self._per_head(exact(seen[site]).movedim(2, 0)).movedim(0, 2)
            yield site.value, found, read + exact(self.reading_bias(layer, which))
        factor, bias = self.writing_scale(layer, seen[Site.Z])
        written = torch.einsum("bphd,hdm->bpm", exact(seen[Site.Z]), exact(self.writing(layer)))
        yield "the attention output", exact(seen[Site.ATTN_OUT]), written * factor + bias


class _NoTexts:
    """Stands for the corpus in the provenance of what is read off weights alone."""

    bos_policy = "no texts"

    def __init__(self, model: Model) -> None:
        self.tokenizer = model.tokenizer_fingerprint

    def __len__(self) -> int:
        return 0

    def fingerprint(self) -> str:
        return "no texts"


def weights_provenance(model: Model, config: dict[str, Any]) -> Provenance:
    """Provenance of a result that no text took part in."""
    return provenance_of(model, _NoTexts(model), config)


Mode = Literal["Q", "K", "V"]
Pair = tuple[tuple[int, int], tuple[int, int]]

MODES: tuple[Mode, ...] = ("Q", "K", "V")


@dataclass(frozen=True, eq=False)
class HeadCompositionResult(Result):
    """Composition scores, see :mod:`mechrep.measures.head_circuits`.  Axis ``mode`` runs over Q, K, V.

    Attributes:
        scores: of every pair of heads; NaN where the second is not in a later layer, and for heads of zeros.
        null: mean score of Gaussian heads in the same layers.
        null_sd: its standard deviation over pairs of heads.
    """

    scores: Float[Tensor, "mode from_layer from_head to_layer to_head"]
    null: Float[Tensor, "mode from_layer to_layer"]
    null_sd: Float[Tensor, "mode from_layer to_layer"]

    @guarded
    def of(self, mode: str) -> Float[Tensor, "from_layer from_head to_layer to_head"]:
        """The scores of one mode.

        Raises:
            InputError: not Q, K or V.
        """
        return self.scores[_number(mode)]

    @guarded
    def excess(self, mode: str) -> Float[Tensor, "from_layer from_head to_layer to_head"]:
        """Scores less the mean of Gaussian heads."""
        return self.of(mode) - self.null[_number(mode)][:, None, :, None]

    @guarded
    def z_scores(self, mode: str) -> Float[Tensor, "from_layer from_head to_layer to_head"]:
        """:meth:`excess` in standard deviations of Gaussian heads, which are narrow: read it as "not by chance"."""
        return self.excess(mode) / self.null_sd[_number(mode)][:, None, :, None]

    @guarded
    def with_sources(self, sources: Sequence[tuple[int, int]], mode: str) -> Float[Tensor, "source to_layer to_head"]:
        """How much every head composes with given ones, for instance with the previous-token heads of a model.

        Args:
            sources: ``(layer, head)`` pairs, for instance ``head_scores.above(0.5, "previous_token")``.
            mode: Q, K or V.

        Raises:
            InputError: no source, or a head that the model does not have.
        """
        n_layers, n_heads = self.scores.shape[1:3]
        wrong = [unit for unit in sources if not (0 <= unit[0] < n_layers and 0 <= unit[1] < n_heads)]
        if wrong or not sources:
            raise InputError(
                f"sources {list(sources)[:5]}",
                f"heads of {n_layers} layers x {n_heads} heads, one at least",
                "correct them",
            )
        layers, heads = torch.tensor(list(sources)).T
        return self.of(mode)[layers, heads]

    @guarded
    def top(self, k: int, mode: str = "K") -> list[Pair]:
        """The ``k`` pairs ``((layer, head), (later layer, head))`` that compose most.

        Raises:
            InputError: ``k`` larger than the number of pairs, or an unknown mode.
        """
        frame = self.to_frame(mode)
        check_count(k, len(frame), "pairs of heads")
        columns = ("from_layer", "from_head", "to_layer", "to_head")
        rows = frame.loc[: k - 1, list(columns)].to_numpy().tolist() if k else []
        return [((row[0], row[1]), (row[2], row[3])) for row in rows]

    @guarded
    def to_frame(self, mode: str = "K") -> pd.DataFrame:
        """One row per pair with a score, highest first.

        Columns: from_layer, from_head, to_layer, to_head, mode, score, excess, z.
        """
        scores = self.of(mode)
        places = (~scores.isnan()).nonzero()
        places = places[torch.argsort(scores[tuple(places.T)], descending=True, stable=True)]
        columns = dict(zip(("from_layer", "from_head", "to_layer", "to_head"), places.T.numpy(), strict=True))
        tables = {"score": scores, "excess": self.excess(mode), "z": self.z_scores(mode)}
        values = {name: table[tuple(places.T)].numpy() for name, table in tables.items()}
        return pd.DataFrame({**columns, "mode": mode, **values})


def _number(mode: str) -> int:
    one_of("mode", mode, MODES)
    return MODES.index(mode)


Weights = dict[str, Tensor]  # by letter: Q, K, V [head d_model d_head], O [head d_head d_model]


@torch.no_grad()
@guarded
def head_composition(model: Model, *, draws: Several = 4, seed: Seed = 0) -> HeadCompositionResult:
    """Composition scores of all pairs of heads, and what heads of Gaussian weights would have.

    The scores are those of TransformerLens' ``all_composition_scores`` on processed weights: gains of the norms before
    a head belong to it, and where those norms centre, the mean of what a head writes is left out.

    Args:
        model: the model; raw or in compatibility mode, the scores are the same.
        draws: Gaussian heads per head; their scores pass through the same norms, so large gains raise both.
        seed: of the draws.

    Raises:
        InputError: fewer than two draws.
        ModelError: a model without separate heads, see :class:`~mechrep.measures.head_circuits.HeadCircuits`.

    Source: Elhage et al. 2021 (*A Mathematical Framework for Transformer Circuits*).

    Limits: rotary position embeddings are left out of ``QK``.  MLPs between two heads play no part.  A score says that
    one head can read another, not that it does on any text: see
    :func:`mechrep.measures.qk_attribution.qk_attribution`.

    Example:
        >>> import mechrep
        >>> result = head_composition(mechrep.load_model("mechrep-tiny"))
        >>> sources = [(0, 0), (0, 1)]  # for instance heads with a high previous-token score
        >>> result.with_sources(sources, "K").shape[0], bool(result.of("K")[1, 0, 0].isnan().all())
        (2, True)
    """
    circuits, generator = HeadCircuits(model), torch.Generator().manual_seed(seed)
    there = circuits.layers
    trained = [_weights(circuits, layer) for layer in there]
    null = torch.stack(
        [
            _spread(_all_scores([_gaussian(circuits, layer, generator) for layer in there]), model.anatomy)
            for _ in range(draws)
        ]
    ).permute(1, 2, 4, 0, 3, 5)  # [mode from_layer to_layer draw from_head to_head]
    null = null.flatten(3)
    return HeadCompositionResult(
        weights_provenance(model, {"draws": draws, "seed": seed}),
        scores=_spread(_all_scores(trained), model.anatomy),
        null=null.mean(-1),
        null_sd=null.std(-1),
    )


def _all_scores(
    layers: list[Weights],
) -> Float[Tensor, "mode from_layer from_head to_layer to_head"]:
    """Scores of all pairs; NaN where the second head is not in a later layer, or where one of them is zero."""
    from transformer_lens import FactoredMatrix

    n_layers, n_heads = len(layers), len(layers[0]["Q"])
    scores = torch.full((len(MODES), n_layers, n_heads, n_layers, n_heads), torch.nan)
    written: list[Tensor] = []  # S V^T of each layer's OV: what is left of it when orthogonal factors are dropped
    for later, weights in enumerate(layers):
        ov = FactoredMatrix(weights["V"], weights["O"])
        qk = FactoredMatrix(weights["Q"], weights["K"].transpose(-2, -1))
        readers = {"Q": qk.collapse_r(), "K": qk.T.collapse_r(), "V": ov.collapse_r()}
        for mode, name in enumerate(MODES):
            reader = readers[name]
            for earlier, left in enumerate(written):
                product = left.to(reader)[:, None] @ reader[None]
                sizes = left.to(reader).norm(dim=(-2, -1))[:, None] * reader.norm(dim=(-2, -1))
                scores[mode, earlier, :, later] = (product.norm(dim=(-2, -1)) / sizes).float().cpu()
        written.append(ov.collapse_l())
    return scores


def _spread(scores: Tensor, anatomy: Anatomy) -> Float[Tensor, "mode from_layer from_head to_layer to_head"]:
    """Scores of the layers with heads at their own numbers; NaN for the others."""
    there, n = list(anatomy.attention_layers), anatomy.n_layers
    if len(there) == n:
        return scores
    whole = torch.full((len(MODES), n, anatomy.n_heads, n, anatomy.n_heads), torch.nan)
    for number, layer in enumerate(there):
        whole[:, layer][:, :, there] = scores[:, number]
    return whole


def _weights(circuits: HeadCircuits, layer: int) -> Weights:
    readers: tuple[Reader, ...] = ("Q", "K", "V")
    return {which: circuits.reading(layer, which) for which in readers} | {
        "O": _centred(circuits, circuits.writing(layer))
    }


def _gaussian(circuits: HeadCircuits, layer: int, generator: torch.Generator) -> Weights:
    """Weights of the same shapes, drawn anew and read through the same norms."""
    drawn: Weights = {}
    for which in ("Q", "K", "V", "O"):
        like = (
            circuits.stream.head_outputs(layer)
            if which == "O"
            else circuits.stream.head_inputs(layer, _SITES[which])[0]
        )
        weight = torch.randn(like.shape, generator=generator).to(like)
        folded = weight if which == "O" else circuits.norm(layer).fold(weight)
        drawn[which] = folded.repeat_interleave(circuits.n_heads // len(folded), dim=0)
    return drawn | {"O": _centred(circuits, drawn["O"])}


def _centred(circuits: HeadCircuits, writing: Tensor) -> Tensor:
    """What the next norm takes away is not written."""
    return writing - writing.mean(-1, keepdim=True) if circuits.final_norm.centred else writing


@dataclass(frozen=True, eq=False)
class OVScoreResult(HeadTableResult):
    """Scores of every head's full OV circuit, see :func:`mechrep.measures.head_circuits.ov_scores`.

    Attributes:
        eigen: in [-1, 1]; a copier has 1, a head that takes away what it looks at -1; NaN for a head of zeros.
        top1: share of tokens whose own logit rises most.
        topk: share of tokens whose own logit is among the ``k`` that rise most.
        suppress_topk: share of tokens whose own logit is among the ``k`` that fall most.
        eigen_null: ``eigen`` of heads with Gaussian weights.
        k: for ``topk`` and ``suppress_topk``.
        embed: what a head is taken to look at: ``"token"`` or ``"mlp0"``.
        n_tokens: tokens behind the shares.
    """

    names: ClassVar[tuple[str, ...]] = ("eigen", "top1", "topk", "suppress_topk")

    eigen: Float[Tensor, "layer head"]
    top1: Float[Tensor, "layer head"]
    topk: Float[Tensor, "layer head"]
    suppress_topk: Float[Tensor, "layer head"]
    eigen_null: Float[Tensor, " draw"]
    k: int
    embed: str
    n_tokens: int

    @property
    def eigen_band(self) -> tuple[float, float]:
        """Where 99 % of the heads with Gaussian weights lie; ``(nan, nan)`` if none was drawn."""
        return percentile_interval(self.eigen_null.tolist(), confidence=0.99)


Embedding = Literal["token", "mlp0"]

_ENTRIES_PER_CHUNK = 2**24  # of the full circuit, at a time


@torch.no_grad()
@guarded
def ov_scores(
    model: Model,
    *,
    embed: Embedding = "token",
    k: int = 10,
    sample: int | None = None,
    draws: Whole = 50,
    seed: Seed = 0,
) -> OVScoreResult:
    """Score all heads as copiers and suppressors by their weights.

    Args:
        model: the model; raw or in compatibility mode, the scores are the same.
        embed: what a head is taken to look at.  ``"token"``: rows of ``W_E``.  ``"mlp0"``: the residual stream after
            block 0 of each token alone, which is where many models first make out of a token what it means.
        k: for ``topk`` and ``suppress_topk``.
        sample: number of tokens, drawn at random, that the shares are taken over; all ordinary tokens by default.  The
            cost is ``d_vocab * d_head`` per token and head.  ``eigen`` is always of all.
        draws: heads of Gaussian weights to draw for ``eigen_null``.
        seed: of both draws.

    Returns:
        ``eigen``, ``top1``, ``topk`` and ``suppress_topk`` of every head.

    Raises:
        InputError: an unknown embedding, or numbers that are too small or too large.
        ModelError: a model without separate heads, see :class:`~mechrep.measures.head_circuits.HeadCircuits`.

    Source: Elhage et al. 2021 (*A Mathematical Framework for Transformer Circuits*); ``suppress_topk``: McDougall et
    al. 2023 (arXiv 2310.04625).

    Limits: position and attention play no part, so a head that never looks at anything can be a perfect copier.  The
    eigenvalue score of random heads scatters round 0, widely where ``d_head`` is small: read it beside ``eigen_null``.
    A head whose weights are zero has no ``eigen`` (NaN) and is in nobody's top.

    Example:
        >>> import mechrep
        >>> result = ov_scores(mechrep.load_model("mechrep-tiny"), draws=8)
        >>> bool(result.eigen.abs().max() <= 1), result.eigen_null.shape
        (True, torch.Size([8]))
    """
    chosen = check_settings(model, embed, k, sample)
    circuits, generator = HeadCircuits(model), torch.Generator().manual_seed(seed)
    ordinary = torch.from_numpy(ordinary_ids(model))
    tokens = ordinary[torch.randperm(len(ordinary), generator=generator)[:chosen].sort().values]
    embedding = embedded_tokens(model, embed)
    config = {"embed": embed, "k": k, "sample": chosen, "draws": draws, "seed": seed}
    return OVScoreResult(
        weights_provenance(model, config),
        **head_tables(circuits, embedding, tokens, k),
        eigen_null=_null(circuits, embedding, draws, generator),
        k=k,
        embed=embed,
        n_tokens=chosen,
    )


def check_settings(model: Model, embed: str, k: int, sample: int | None) -> int:
    """Refuse settings of :func:`ov_scores` that cannot be met; returns the number of tokens the shares are taken over.

    Raises:
        InputError: an unknown embedding, or ``k`` or ``sample`` out of range.
    """
    one_of("embed", embed, get_args(Embedding))
    within("k", k, 1, model.anatomy.d_vocab, "a number of tokens")
    n_ordinary = len(ordinary_ids(model))
    return n_ordinary if sample is None else within("sample", sample, 1, n_ordinary, "a number of ordinary tokens")


def head_tables(
    circuits: HeadCircuits, embedding: Float[Tensor, "d_vocab d_model"], tokens: Int[Tensor, " token"], k: int
) -> dict[str, Float[Tensor, "layer head"]]:
    """The scores of all heads, by name."""
    shape = (circuits.model.anatomy.n_layers, circuits.n_heads)
    tables = {name: torch.full(shape, torch.nan) for name in OVScoreResult.names}
    for layer in circuits.layers:
        values, outputs = circuits.reading(layer, "V"), circuits.writing(layer)
        for head in range(shape[1]):
            left, right = _factors(circuits, embedding, values[head], outputs[head])
            above, below = _ranks(left, right, tokens.to(left.device))
            tables["eigen"][layer, head] = _eigen(left, right)
            tables["top1"][layer, head] = (above < 1).double().mean()
            tables["topk"][layer, head] = (above < k).double().mean()
            tables["suppress_topk"][layer, head] = (below < k).double().mean()
    return tables


def embedded_tokens(model: Model, embed: Embedding) -> Float[Tensor, "d_vocab d_model"]:
    """What each token is before a head looks at it, see :func:`ov_scores`."""
    if embed == "token":
        return Stream(model).embedding
    rows: list[Tensor] = []
    for tokens in torch.arange(model.anatomy.d_vocab, device=model.device).split(2048):
        read_activations(
            model, tokens[:, None], {Site.RESID_POST: [0]}, lambda activation, *_: rows.append(wide(activation[:, 0]))
        )
    return torch.cat(rows)


def _factors(circuits: HeadCircuits, embedding: Tensor, value: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """The full circuit as a product ``[d_vocab d_head] [d_head d_vocab]``."""
    device = circuits.unembed.device  # the layers of a spread model lie on several
    return embedding.to(device) @ value.to(device), output.to(device) @ circuits.unembed


def _eigen(left: Tensor, right: Tensor) -> float:
    from transformer_lens import FactoredMatrix

    values = FactoredMatrix(exact(left), exact(right)).eigenvalues
    return float(values.sum().real / values.abs().sum())


def _ranks(left: Tensor, right: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """How many other entries of each token's row are at least, and at most, as large as its own."""
    counts = []
    for part in tokens.split(max(1, _ENTRIES_PER_CHUNK // right.shape[1])):
        rows = left[part] @ right
        own = rows.gather(1, part[:, None])
        counts.append(torch.stack([(rows >= own).sum(1), (rows <= own).sum(1)]) - 1)
    above, below = torch.cat(counts, dim=1)
    return above, below


def _null(circuits: HeadCircuits, embedding: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """``eigen`` of heads with Gaussian weights, read through the norms of the model's layers in turn."""
    anatomy, scores = circuits.model.anatomy, torch.zeros(draws)
    for draw in range(draws):
        norm = circuits.norm(circuits.layers[draw % len(circuits.layers)])
        value, output = (torch.randn(anatomy.d_model, anatomy.d_head, generator=generator) for _ in range(2))
        folded = norm.fold(value.to(norm.gain))
        scores[draw] = _eigen(*_factors(circuits, embedding, folded, output.T.to(norm.gain)))
    return scores
