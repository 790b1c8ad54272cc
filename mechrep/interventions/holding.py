"""Holding up-projections at the level they have at a text's anchor, the first token after BOS.

As TransformerLens hooks the level is read off the same forward pass, which holds whole texts.  For the plain view a
text may come in pieces, and rows of many texts in one batch: :class:`HeldLevels` keeps every row's level from the
pass in which its anchor went by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechrep.errors import InputError
from mechrep.interventions.base import Holds
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import read_activations

Choose = Callable[[Tensor, Tensor], Tensor]


def hold_hooks(
    model: Model, holds: Holds, choose: Choose, anchors: Int[Tensor, " batch"] | None
) -> list[tuple[str, Callable[..., Any]]]:
    """TransformerLens hooks that hold neurons from each row's anchor on.

    Args:
        model: the model.
        holds: neurons by layer.
        choose: the edited activation where positions are edited, the other one elsewhere.
        anchors: position of every row's first token after BOS.  By default 1 in rows that begin with BOS, told by
            their embedding, and 0 in others.
    """
    places: dict[str, Tensor] = {} if anchors is None else {"anchors": anchors}
    hooks: list[tuple[str, Callable[..., Any]]] = []
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


class HeldLevels:
    """Which neurons each row of an edit table holds, and at which level.

    Args:
        model: the model.
        chosen: neurons by layer of every condition; condition 0, which holds nothing, is not listed.
        conditions: condition of every row.
        first_tokens: id at position 0 of every row.

    Raises:
        InputError: neurons are held in rows whose first tokens are unknown.
    """

    def __init__(
        self,
        model: Model,
        chosen: Sequence[Holds],
        conditions: Int[Tensor, " row"],
        first_tokens: Sequence[int] | None,
    ) -> None:
        self.layers: list[int] = sorted({layer for holds in chosen for layer in holds})
        device = conditions.device
        if self.layers and first_tokens is None:
            raise InputError(
                "neurons held at the level of the first token after BOS, in rows whose first tokens are unknown",
                "the first token of every row",
                "pass first_tokens=",
            )
        bos = [int(model.bos_id is not None and token == model.bos_id) for token in first_tokens or ()]
        self.anchors: Int[Tensor, " row"] = torch.tensor(bos, dtype=torch.long, device=device)
        self.neurons: dict[int, Int[Tensor, " neuron"]] = {}
        self.on: dict[int, Bool[Tensor, "condition neuron"]] = {}
        self.levels: dict[int, Float[Tensor, "row neuron"]] = {}
        for layer in self.layers:
            union = sorted({neuron for holds in chosen for neuron in holds.get(layer, ())})
            on = [[neuron in holds.get(layer, ()) for neuron in union] for holds in ({}, *chosen)]
            self.neurons[layer] = torch.tensor(union, device=device)
            self.on[layer] = torch.tensor(on, device=device)
            self.levels[layer] = torch.zeros(len(conditions), len(union), dtype=model.dtype, device=device)
        self.holding: Bool[Tensor, " condition"] = torch.tensor([False, *map(bool, chosen)], device=device)
        self.known: Bool[Tensor, " row"] = torch.zeros_like(conditions, dtype=torch.bool)
        self.conditions = conditions

    def aim(
        self, rows: Int[Tensor, " batch"], mask: Bool[Tensor, "batch pos"], positions: Int[Tensor, "batch pos"] | None
    ) -> None:
        """Say which rows and positions the next pass holds.

        Raises:
            InputError: unknown positions, or an edit after an anchor that has never gone by.
        """
        if not self.layers:
            return
        if positions is None:
            raise InputError(
                "neurons held from the first token after BOS on, in a pass whose positions are unknown",
                "the position of every token in its text",
                "pass positions= to aim(), or run the plain model inside mechrep.PatchedModel",
            )
        anchor = self.anchors[rows][:, None]
        self._rows, self._here = rows, positions == anchor
        self._edited = mask & (positions >= anchor)
        self.known[rows[self._here.any(1)]] = True
        if bool((self._edited.any(1) & self.holding[self.conditions[rows]] & ~self.known[rows]).any()):
            raise InputError(
                "rows whose first token after BOS went by unseen",
                "every row from its first token after BOS on",
                "run the whole text, or what comes before the edit, through the same table",
            )

    def apply(self, up: Float[Tensor, "batch pos d_mlp"], layer: int) -> Float[Tensor, "batch pos d_mlp"]:
        """Catch the levels of anchors in this pass; hold what is to be held."""
        index, rows = self.neurons[layer].to(up.device), self._rows
        values, here = up[..., index], self._here.to(up.device)
        caught = here.any(1)
        at_anchor = values[torch.arange(len(values), device=up.device), here.int().argmax(1)]
        self.levels[layer][rows[caught.to(rows.device)]] = at_anchor[caught].to(self.levels[layer])
        active = self._edited[..., None] & self.on[layer][self.conditions[rows]][:, None]
        edited = up.clone()
        edited[..., index] = torch.where(active.to(up.device), self.levels[layer][rows][:, None].to(up), values)
        return edited
