"""Whose output each head reads, by the weights: composition of heads through the residual stream.

With ``OV = W_V W_O`` of a head and ``QK = W_Q W_K^T`` of a head in a later layer, norms folded in, and ``|.|`` the
Frobenius norm::

    Q-composition  |OV_1 QK_2|   / (|OV_1| |QK_2|)      what head 1 writes decides where head 2 looks from
    K-composition  |OV_1 QK_2^T| / (|OV_1| |QK_2|)      ... what head 2 looks at
    V-composition  |OV_1 OV_2|   / (|OV_1| |OV_2|)      ... what head 2 moves on

An induction head K-composes with a previous-token head.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.analyzers.heads.circuits import HeadCircuits, Reader, weights_provenance
from mechrep.analyzers.heads.composition_result import MODES, HeadCompositionResult
from mechrep.analyzers.heads.frozen_norm import wide
from mechrep.errors import InputError
from mechrep.models.model import Model

Weights = dict[str, Tensor]  # by letter: Q, K, V [head d_model d_head], O [head d_head d_model]


@torch.no_grad()
def head_composition(model: Model, *, draws: int = 4, seed: int = 0) -> HeadCompositionResult:
    """Composition scores of all pairs of heads, and what heads of Gaussian weights would have.

    The scores are those of TransformerLens' ``all_composition_scores`` on processed weights: gains of the norms before
    a head belong to it, and where those norms centre, the mean of what a head writes is left out.

    Args:
        model: the model; raw or in compatibility mode, the scores are the same.
        draws: Gaussian heads per head; their scores pass through the same norms, so large gains raise both.
        seed: of the draws.

    Raises:
        InputError: fewer than two draws.
        ModelError: a model without separate heads, see :class:`~mechrep.analyzers.heads.circuits.HeadCircuits`.

    Source: Elhage et al. 2021 (*A Mathematical Framework for Transformer Circuits*).

    Limits: rotary position embeddings are left out of ``QK``.  MLPs between two heads play no part.  A score says that
    one head can read another, not that it does on any text: see
    :func:`mechrep.analyzers.heads.qk_attribution.qk_attribution`.

    Example:
        >>> import mechrep
        >>> result = head_composition(mechrep.load_model("mechrep-tiny"))
        >>> sources = [(0, 0), (0, 1)]  # for instance heads with a high previous-token score
        >>> result.with_sources(sources, "K").shape[0], bool(result.of("K")[1, 0, 0].isnan().all())
        (2, True)
    """
    if draws < 2:
        raise InputError(f"draws={draws}", "at least 2, to know how far they scatter", "leave it out")
    circuits, generator = HeadCircuits(model), torch.Generator().manual_seed(seed)
    trained = [_weights(circuits, layer) for layer in range(model.anatomy.n_layers)]
    null = torch.stack(
        [
            _all_scores([_gaussian(circuits, layer, generator) for layer in range(model.anatomy.n_layers)])
            for _ in range(draws)
        ]
    ).permute(1, 2, 4, 0, 3, 5)  # [mode from_layer to_layer draw from_head to_head]
    null = null.flatten(3)
    return HeadCompositionResult(
        weights_provenance(model, {"draws": draws, "seed": seed}),
        scores=_all_scores(trained),
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


def _weights(circuits: HeadCircuits, layer: int) -> Weights:
    readers: tuple[Reader, ...] = ("Q", "K", "V")
    return {which: circuits.reading(layer, which) for which in readers} | {
        "O": _centred(circuits, circuits.writing(layer))
    }


def _gaussian(circuits: HeadCircuits, layer: int, generator: torch.Generator) -> Weights:
    """Weights of the same shapes, drawn anew and read through the same norms."""
    attention, drawn = circuits.model.blocks[layer].attn, {}
    for which in ("Q", "K", "V", "O"):
        like = wide(getattr(attention, f"W_{which}"))
        weight = torch.randn(like.shape, generator=generator).to(like)
        folded = weight if which == "O" else circuits.norm(layer).fold(weight)
        drawn[which] = folded.repeat_interleave(circuits.n_heads // len(folded), dim=0)
    return drawn | {"O": _centred(circuits, drawn["O"])}


def _centred(circuits: HeadCircuits, writing: Tensor) -> Tensor:
    """What the next norm takes away is not written."""
    return writing - writing.mean(-1, keepdim=True) if circuits.final_norm.centred else writing
