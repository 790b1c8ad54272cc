"""What heads would do to the logits of the token they look at, read off their weights alone.

With the embedding ``E`` and the unembedding ``U`` the full circuit of head ``h`` is ``C = E W_V(h) W_O(h) U``
``[d_vocab d_vocab]``: row ``t`` is what looking at token ``t`` does to all logits.  The norms' gains are folded in and
``U`` is centred over the vocabulary; biases, norms' scales, positions and everything between embedding and head are
left out::

    eigen         = Re(sum of C's eigenvalues) / sum of their absolute values
    topk          = share of tokens t whose own entry C[t, t] is among the k highest of its row
    suppress_topk = the same for the k lowest

``C`` has the non-zero eigenvalues of ``W_O U E W_V`` ``[d_head d_head]``, and its rows are made in chunks, so it never
exists as a whole.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrep.analyzers.heads.circuits import HeadCircuits, weights_provenance
from mechrep.analyzers.heads.frozen_norm import exact, wide
from mechrep.analyzers.heads.ov_result import OVScoreResult as OVScoreResult
from mechrep.errors import InputError
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import read_activations
from mechrep.text.random_repeats import ordinary_ids

Embedding = Literal["token", "mlp0"]

_ENTRIES_PER_CHUNK = 2**24  # of the full circuit, at a time


@torch.no_grad()
def ov_scores(
    model: Model,
    *,
    embed: Embedding = "token",
    k: int = 10,
    sample: int | None = None,
    draws: int = 50,
    seed: int = 0,
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
        ModelError: a model without separate heads, see :class:`~mechrep.analyzers.heads.circuits.HeadCircuits`.

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
    if draws < 0:
        raise InputError(f"draws={draws}", "0 or more", "leave it out")
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
    if embed not in ("token", "mlp0") or not 1 <= k <= model.anatomy.d_vocab:
        raise InputError(
            f"embed={embed!r}, k={k}", f"'token' or 'mlp0', k from 1 to {model.anatomy.d_vocab}", "correct them"
        )
    n_ordinary = len(ordinary_ids(model))
    if sample is not None and not 1 <= sample <= n_ordinary:
        raise InputError(f"sample={sample}", f"1 to {n_ordinary} ordinary tokens", "choose fewer, or leave it out")
    return n_ordinary if sample is None else sample


def head_tables(
    circuits: HeadCircuits, embedding: Float[Tensor, "d_vocab d_model"], tokens: Int[Tensor, " token"], k: int
) -> dict[str, Float[Tensor, "layer head"]]:
    """The scores of all heads, by name."""
    shape = (circuits.model.anatomy.n_layers, circuits.n_heads)
    tables = {name: torch.full(shape, torch.nan) for name in OVScoreResult.names}
    for layer in range(shape[0]):
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
        return wide(model.W_E)
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
        norm = circuits.norm(draw % anatomy.n_layers)
        value, output = (torch.randn(anatomy.d_model, anatomy.d_head, generator=generator) for _ in range(2))
        folded = norm.fold(value.to(norm.gain))
        scores[draw] = _eigen(*_factors(circuits, embedding, folded, output.T.to(norm.gain)))
    return scores
