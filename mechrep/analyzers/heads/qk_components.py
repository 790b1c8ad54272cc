"""Queries and keys of one head as sums over the components of the residual stream, turned as the model turns them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechrep.analyzers.heads.circuits import HeadCircuits
from mechrep.analyzers.heads.frozen_norm import exact, wide
from mechrep.errors import InputError, ModelError
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import read_activations

Edge = tuple[int, int, int]  # text, query, key
Side = Literal["Q", "K"]

# Of the product of the lengths of query and key.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
_HALF_PRECISION_TOLERANCE = 0.05


def component_names(model: Model, layer: int) -> list[str]:
    """The components that the residual stream before a layer is a sum of, in the order of a result."""
    start = ["embed", "pos_embed"] if model.anatomy.positions == "standard" else ["embed"]
    heads = range(model.anatomy.n_heads)
    blocks = [[*(f"L{earlier}H{head}" for head in heads), f"MLP{earlier}"] for earlier in range(layer)]
    return [*start, *(name for block in blocks for name in block), "bias", "remainder"]


@dataclass(frozen=True)
class HeadOnText:
    """One head on one text.

    Attributes:
        queries: by component, see :func:`component_names`; turned by the rotation.
        keys: the same.
        scores: the model's own, before the softmax.
    """

    queries: Float[Tensor, "pos component d_head"]
    keys: Float[Tensor, "pos component d_head"]
    scores: Float[Tensor, "pos pos"]

    @classmethod
    def read(cls, circuits: HeadCircuits, layer: int, head: int, ids: list[int]) -> HeadOnText:
        """Run the text up to the head's layer."""
        model, seen = circuits.model, {}
        wanted: dict[Site, Any] = dict.fromkeys((Site.Z, Site.MLP_OUT), range(layer))
        wanted |= {site: (layer,) for site in (Site.Q, Site.K, Site.SCORES)}
        wanted |= {Site.EMBED: (0,), Site.RESID_PRE: (0, layer)}

        def keep(activation: Tensor, site: Site, layer: int) -> None:
            seen[site, layer] = activation[0].clone()

        tokens = torch.tensor([ids], device=model.device)
        with _rotation(model, layer) as turn:
            read_activations(model, tokens, wanted, keep, view="transformer_lens")
        q, k = (_by_component(circuits, layer, head, side, seen) for side in ("Q", "K"))
        return cls(turn(q), turn(k), exact(seen[Site.SCORES, layer][head]))

    def contributions(self, edge: Edge, model: Model) -> tuple[Tensor, Tensor]:
        """``[component component]``, query first: of the edge, and less the mean over the query's other keys."""
        text, query, key = edge
        hidden = torch.finfo(model.dtype).min / 2
        visible = self.scores[query, : query + 1] > hidden
        if not visible[key]:
            raise InputError(
                f"edge ({text}, {query}, {key})", "a key that the model lets the query see", "drop the edge"
            )
        scaled = self.queries[query] / self.queries.shape[-1] ** 0.5
        table, score = scaled @ self.keys[key].T, self.scores[query, key]
        size = max(1.0, float(scaled.sum(0).norm() * self.keys[key].sum(0).norm()))
        if abs(float(table.sum() - score)) > _TOLERANCE.get(model.dtype, _HALF_PRECISION_TOLERANCE) * size:
            raise ModelError(
                f"{model.name!r} ({model.anatomy.architecture}), score {float(score):.4g} at edge {edge}",
                f"the product of query and key, which is {float(table.sum()):.4g}",
                "this model caps, norms, scales or turns its scores in a way that is not known here",
            )
        others = visible.clone()
        others[key] = False
        mean = self.keys[: query + 1][others].mean(0)  # NaN for a query that sees one key only
        return table.cpu(), (scaled @ (self.keys[key] - mean).T).cpu()


def _by_component(
    circuits: HeadCircuits, layer: int, head: int, side: Side, seen: dict[tuple[Site, int], Tensor]
) -> Float[Tensor, "pos component d_head"]:
    """A head's queries or keys before the rotation, as sums; components as in :func:`component_names`."""
    anatomy, stream = circuits.model.anatomy, seen[Site.RESID_PRE, layer]
    weight = exact(circuits.reading(layer, side)[head])
    start = exact(seen[Site.RESID_PRE, 0]).to(weight)  # the layers of a spread model lie on several devices
    if anatomy.positions == "standard":
        token = exact(seen[Site.EMBED, 0]).to(weight)
        parts = [(token @ weight)[:, None], ((start - token) @ weight)[:, None]]
    else:
        parts = [(start @ weight)[:, None]]
    bias = torch.zeros_like(parts[0][:, 0])
    for earlier in range(layer):
        z = seen[Site.Z, earlier]
        factor, constant = circuits.writing_scale(earlier, z)
        through = exact(circuits.writing(earlier)).to(weight.device) @ weight  # [head d_head d_head]
        parts.append(torch.einsum("phd,hde->phe", exact(z).to(weight), through) * factor.to(weight)[..., None])
        parts.append((exact(seen[Site.MLP_OUT, earlier]).to(weight) @ weight)[:, None])
        bias += constant.to(weight) @ weight
    scale = circuits.norm(layer).scale(stream)[..., None]
    read = torch.cat([*parts, bias[:, None]], dim=1) / scale
    read[:, -1] += exact(circuits.reading_bias(layer, side)[head])
    whole = exact(seen[Site.Q if side == "Q" else Site.K, layer])
    own = whole[:, head * whole.shape[1] // circuits.n_heads]
    return torch.cat([read, (own - read.sum(1))[:, None]], dim=1)


@contextmanager
def _rotation(model: Model, layer: int) -> Iterator[Any]:
    """A function that turns ``[pos component d_head]`` as one layer does, once the model has run inside the context."""
    attention: Any = model.blocks[layer].attn
    read: dict[str, Tensor] = {}

    def turn(vectors: Float[Tensor, "pos component d_head"]) -> Float[Tensor, "pos component d_head"]:
        if model.anatomy.positions == "rotary" and hasattr(attention, "apply_rotary"):  # HookedTransformer
            return exact(attention.apply_rotary(wide(vectors)[None])[0])
        if not read:  # positions are learned, or there are none
            return vectors
        cos, sin = (exact(read[name])[0, :, None] for name in ("hook_cos", "hook_sin"))
        width = cos.shape[-1]
        turned, still = vectors[..., :width], vectors[..., width:]
        swapped = torch.cat([-turned[..., width // 2 :], turned[..., : width // 2]], dim=-1)
        return torch.cat([turned * cos + swapped * sin, still], dim=-1)

    with ExitStack() as stack:
        for name in ("hook_cos", "hook_sin"):
            point = getattr(attention, name, None)
            if point is not None:

                def keep(_module: Any, _args: Any, value: Tensor, name: str = name) -> None:
                    read[name] = value.detach()

                stack.callback(point.register_forward_hook(keep).remove)
        yield turn
