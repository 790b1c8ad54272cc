"""Affine edits of sites, and how TransformerLens hooks make them: the reference.

In a gated MLP TransformerLens has no hook between activation function and product, so an edit ``g -> g f + o`` of the
gate's activation is made on the product ``p = g u`` as ``p f + o u``, with the up-projection ``u`` of the same pass.
Attention is moved where it is visible, in the pattern.  The level at which up-projections are held is read off the same
forward pass, which holds whole texts.  For batches of mixed rows on the plain view see
:mod:`mechrep.interventions.apply`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechrep.guards import one_of
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import product_bias, read_activations

Hook = tuple[str, Callable[..., Any]]
When = Literal["auto", "all", "last", "from_onset"]
WHENS: tuple[When, ...] = ("auto", "all", "last", "from_onset")
Place = tuple[Site, int]
Holds = dict[int, tuple[int, ...]]  # neurons by layer


def check_when(when: str) -> None:
    """Refuse a place to begin that does not exist.

    Raises:
        InputError: it does not.
    """
    one_of("when", when, WHENS)


@dataclass(frozen=True)
class Edit:
    """``activation * factor + offset`` along the last axis of one site of one layer.

    At ``Z`` the heads lie side by side, ``head * d_head`` units.  At ``PATTERN`` a unit is a head: its rows become
    ``row * factor``, and ``offset`` is added to what they give to the first key.
    """

    factor: Float[Tensor, " unit"]
    offset: Float[Tensor, " unit"]

    def then(self, other: Edit) -> Edit:
        """This edit followed by ``other``."""
        return Edit(self.factor * other.factor, self.offset * other.factor + other.offset)


Edits = dict[Place, Edit]


def in_order(places: Iterable[Place]) -> list[Place]:
    """Places in the order of the model: the activation function before its product, the pattern before ``z``."""
    return sorted(places, key=lambda place: place[0] not in (Site.GATE_ACT, Site.PATTERN))


def position_mask(starts: Int[Tensor, " batch"], length: int) -> Bool[Tensor, "batch pos"]:
    """True from each row's start on."""
    return torch.arange(length, device=starts.device)[None] >= starts[:, None]


@dataclass(frozen=True)
class Mask:
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


def site_hooks(model: Model, place: Place, edits: Sequence[Edit], where: Mask) -> list[Hook]:
    """Hooks that make one site's edits.

    Args:
        model: the model.
        place: site and layer.
        edits: one for each row, or a single one for all.
        where: the positions that are edited.
    """
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


def _product_hooks(model: Model, layer: int, factor: Tensor, offset: Tensor, where: Mask) -> list[Hook]:
    """Edits of a gate's activation, made on the product with the up-projection."""
    captured: dict[str, Tensor] = {}

    def capture(activation: Tensor, hook: Any = None) -> None:
        captured["up"] = activation

    def apply(activation: Tensor, hook: Any = None) -> Tensor:
        times, plus, bias = factor.to(activation), offset.to(activation), product_bias(model, layer)
        return where.choose((activation - bias) * times + plus * captured.pop("up") + bias, activation)

    names = [model.anatomy.hook_name(site, layer) for site in (Site.UP_PROJ, Site.MLP_POST)]
    return [(names[0], capture), (names[1], apply)]


Choose = Callable[[Tensor, Tensor], Tensor]


def hold_hooks(model: Model, holds: Holds, choose: Choose, anchors: Int[Tensor, " batch"] | None) -> list[Hook]:
    """TransformerLens hooks that hold neurons from each row's anchor on.

    Args:
        model: the model.
        holds: neurons by layer.
        choose: the edited activation where positions are edited, the other one elsewhere.
        anchors: position of every row's first token after BOS.  By default 1 in rows that begin with BOS, told by
            their embedding, and 0 in others.
    """
    places: dict[str, Tensor] = {} if anchors is None else {"anchors": anchors}
    hooks: list[Hook] = []
    if anchors is None and holds:
        hooks.append((model.anatomy.hook_name(Site.EMBED, 0), _anchor_finder(model, places)))
    for layer, neurons in holds.items():

        def hold(activation: Tensor, hook: Any = None, neurons: tuple[int, ...] = neurons) -> Tensor:
            anchor = places["anchors"].to(activation.device)
            length = activation.shape[1]
            index = torch.tensor(neurons, device=activation.device)
            values = activation[..., index]
            level = values[torch.arange(len(values), device=values.device), anchor.clamp_max(length - 1)]
            after = torch.arange(length, device=anchor.device) >= anchor[:, None]
            edited = activation.clone()
            edited[..., index] = torch.where(after[..., None], level[:, None], values)
            return choose(edited, activation)

        # Without a gate the activation function's output stands for the up-projection; this hook comes before all
        # edits of that output, as the up-projection does.
        site = Site.UP_PROJ if model.anatomy.gated else Site.GATE_ACT
        hooks.append((model.anatomy.hook_name(site, layer), hold))
    return hooks


def _anchor_finder(model: Model, places: dict[str, Tensor]) -> Callable[..., None]:
    """A hook at the embedding that notes which rows begin with BOS."""
    of_bos: list[Tensor] = []
    if model.bos_id is not None:
        tokens = torch.tensor([[model.bos_id]], device=model.device)

        def keep(activation: Tensor, _site: Site, _layer: int) -> None:
            of_bos.append(activation[0, 0].clone())

        read_activations(model, tokens, {Site.EMBED: [0]}, keep, view="transformer_lens")

    def find(activation: Tensor, hook: Any = None) -> None:
        first = activation[:, 0]
        begins = (first == of_bos[0]).all(-1) if of_bos else torch.zeros_like(first[:, 0], dtype=torch.bool)
        places["anchors"] = begins.long()

    return find
