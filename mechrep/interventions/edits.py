"""Applying interventions as TransformerLens hooks: the reference.

In a gated MLP TransformerLens has no hook between activation function and product, so an edit ``g -> g f + o`` of the
gate's activation is made on the product ``p = g u`` as ``p f + o u``, with the up-projection ``u`` of the same pass.
Attention is moved where it is visible, in the pattern.  For batches of mixed rows see
:mod:`mechrep.interventions.table`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechrep.errors import InputError
from mechrep.interventions.base import Edit, Intervention, Place, When, in_order
from mechrep.interventions.holding import hold_hooks
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import product_bias

Hook = tuple[str, Callable[..., Any]]


def position_mask(starts: Int[Tensor, " batch"], length: int) -> Bool[Tensor, "batch pos"]:
    """True from each row's start on."""
    return torch.arange(length, device=starts.device)[None] >= starts[:, None]


def transformer_lens_hooks(
    intervention: Intervention,
    model: Model,
    starts: Int[Tensor, " batch"] | None,
    texts: Sequence[int] | None = None,
    anchors: Int[Tensor, " batch"] | None = None,
) -> list[Hook]:
    """Hooks that apply an intervention to rows, each from its own start on.

    See :meth:`mechrep.interventions.base.Intervention.hooks`; ``texts`` numbers the rows (default 0, 1, ...), which
    decides what resampling draws.
    """
    if intervention.when == "from_onset" and starts is None:
        raise InputError("when='from_onset' without starts", "the first edited position of each row", "pass starts=")
    numbers: Sequence[int] = [0]
    if intervention.differs_by_text:
        if texts is None and starts is None:
            raise InputError("resampling without starts", "the number of rows, through starts", "pass starts=")
        numbers = texts if texts is not None else range(len(starts))  # pyright: ignore[reportArgumentType]
    per_text = [intervention.edits(model.anatomy, text) for text in numbers]
    where = _Mask(intervention.when, starts)
    hooks: list[Hook] = hold_hooks(model, intervention.holds(model.anatomy), where.choose, anchors)
    for place in in_order(per_text[0]):
        hooks += _site_hooks(model, place, [edits[place] for edits in per_text], where)
    return hooks


@dataclass(frozen=True)
class _Mask:
    """Which positions of a forward pass are edited."""

    when: When
    starts: Tensor | None

    def choose(self, edited: Float[Tensor, "batch pos ..."], activation: Float[Tensor, "batch pos ..."]) -> Tensor:
        """The edited activation at these positions, the one that was there elsewhere."""
        length = activation.shape[1]
        if self.starts is not None:
            mask = position_mask(self.starts.to(activation.device), length)
        elif self.when == "last":
            mask = torch.arange(length, device=activation.device)[None] == length - 1
        else:
            return edited
        return torch.where(mask.view(*mask.shape, *[1] * (activation.ndim - 2)), edited, activation)


def _site_hooks(model: Model, place: Place, edits: Sequence[Edit], where: _Mask) -> list[Hook]:
    site, layer = place
    factor = torch.stack([edit.factor for edit in edits])[:, None]  # [batch or 1, 1, unit]
    offset = torch.stack([edit.offset for edit in edits])[:, None]
    name = model.anatomy.hook_name(site, layer)
    if site is Site.GATE_ACT and model.anatomy.gated:
        return _product_hooks(model, layer, factor, offset, where)

    def units(activation: Tensor, hook: Any = None) -> Tensor:
        return where.choose(activation * factor.to(activation) + offset.to(activation), activation)

    def heads(activation: Tensor, hook: Any = None) -> Tensor:
        return units(activation.flatten(-2)).unflatten(-1, activation.shape[-2:])

    def pattern(activation: Tensor, hook: Any = None) -> Tensor:
        rows = activation.transpose(1, 2)  # [batch query_pos head key_pos]
        edited = rows * factor[..., None].to(rows)
        edited[..., 0] += offset.to(rows)
        return where.choose(edited, rows).transpose(1, 2)

    return [(name, {Site.Z: heads, Site.PATTERN: pattern}.get(site, units))]


def _product_hooks(model: Model, layer: int, factor: Tensor, offset: Tensor, where: _Mask) -> list[Hook]:
    """Edits of a gate's activation, made on the product with the up-projection."""
    captured: dict[str, Tensor] = {}

    def capture(activation: Tensor, hook: Any = None) -> None:
        captured["up"] = activation

    def apply(activation: Tensor, hook: Any = None) -> Tensor:
        times, plus, bias = factor.to(activation), offset.to(activation), product_bias(model, layer)
        return where.choose((activation - bias) * times + plus * captured.pop("up") + bias, activation)

    names = [model.anatomy.hook_name(site, layer) for site in (Site.UP_PROJ, Site.MLP_POST)]
    return [(names[0], capture), (names[1], apply)]
