"""Rows that are still equal are computed once: they part at the layer in which an edit first sets them apart.

Cutting a head of layer 5 changes nothing below layer 5.  So a batch of one text under many interventions begins as one
row; every layer takes the rows that begin to differ in it from the row that they were until then, and rows that no edit
ever sets apart stay one to the end.  With every head cut once this halves the work; the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mechrep.interventions.table import EditTable
from mechrep.models.model import Model


@dataclass(frozen=True)
class Branches:
    """Which rows of a batch are computed in which layer.

    Attributes:
        rows: for every layer, the rows that it computes, as places in the batch that was asked for; each stands for
            all rows that still equal it.
        sources: where these lie among the rows of the layer below.
        origins: where they lie among the rows of the lowest layer.
        result: where each row that was asked for lies among those of the highest layer.
    """

    rows: list[Int[Tensor, " _"]]
    sources: list[Int[Tensor, " _"]]
    origins: list[Int[Tensor, " _"]]
    result: Int[Tensor, " row"]

    @classmethod
    def of(cls, texts: Sequence[int], first_layers: Sequence[int], n_layers: int) -> Branches:
        """Plan a batch.

        Args:
            texts: number of the text in each row.
            first_layers: the lowest layer in which each row is edited; ``n_layers`` or more where none is.
            n_layers: of the model.

        Example:
            >>> plan = Branches.of([0, 0, 0], first_layers=[2, 0, 1], n_layers=2)
            >>> [rows.tolist() for rows in plan.rows], [sources.tolist() for sources in plan.sources]
            ([[0, 1], [0, 1, 2]], [[0, 1], [0, 1, 0]])
        """
        rows, sources, origins = [], [], []
        below: dict[tuple[int, int | None], int] = {}
        places = torch.zeros(len(texts), dtype=torch.long)
        for layer in range(n_layers):
            # A row that is not edited yet is its text's unedited row.
            keys = [
                (text, row if first <= layer else None)
                for row, (text, first) in enumerate(zip(texts, first_layers, strict=True))
            ]
            firsts = {key: row for row, key in reversed([*enumerate(keys)])}
            computed = sorted(firsts.values())
            here = {keys[row]: place for place, row in enumerate(computed)}
            rows.append(torch.tensor(computed))
            before = below or here
            sources.append(torch.tensor([before[key if key in before else (key[0], None)] for key in here]))
            origins.append(origins[-1][sources[-1]] if origins else sources[-1])
            below, places = here, torch.tensor([here[key] for key in keys])
        return cls(rows, sources, origins, places)

    @contextmanager
    def applied(self, model: Model, entering: Callable[[Int[Tensor, " row"]], None]) -> Iterator[None]:
        """While open, a forward pass of the plain view that is given ``rows[0]`` computes and returns ``rows[-1]``.

        Args:
            model: the model.
            entering: called with the rows of every layer before it runs.
        """
        assert model.handles is not None
        with ExitStack() as stack:
            for layer, module in enumerate(model.handles.layers):
                hook = partial(self._enter, layer=layer, entering=entering)
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            yield

    def _enter(
        self,
        _module: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        layer: int,
        entering: Callable[[Int[Tensor, " row"]], None],
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Take the hidden states from the layer below; masks and the like are those of the lowest layer."""
        entering(self.rows[layer])
        sources, origins, size = self.sources[layer], self.origins[layer], len(self.rows[0])
        hidden = {"hidden_states": _pick(kwargs["hidden_states"], sources)} if "hidden_states" in kwargs else {}
        given = args if hidden else args[1:]
        beside = [_beside(value, origins, size) for value in given]
        named = {name: _beside(value, origins, size, name) for name, value in kwargs.items() if name not in hidden}
        return tuple(beside if hidden else [_pick(args[0], sources), *beside]), named | hidden


def first_edited_layers(table: EditTable, n_layers: int) -> Int[Tensor, " row"]:
    """The lowest layer in which each row of a table is edited; ``n_layers`` where none is."""
    first = torch.full((int(table.conditions.max()) + 1,), n_layers, device=table.conditions.device)
    for (_, layer), (factor, offset) in table.tables.items():
        changes = ((factor != 1) | (offset != 0)).any(-1)[: len(first)]
        first = torch.where(changes, first.clamp_max(layer), first)
    for layer, on in table.held.on.items():
        first = torch.where(on.any(-1)[: len(first)], first.clamp_max(layer), first)
    return first[table.conditions]


def _pick(hidden: Tensor, rows: Int[Tensor, " row"]) -> Tensor:
    return hidden[rows.to(hidden.device)]


def _beside(value: Any, origins: Int[Tensor, " row"], size: int, name: str = "") -> Any:
    """What belongs to the rows, row by row; everything else as it is."""
    if isinstance(value, tuple):
        return tuple(_beside(part, origins, size) for part in value)
    if not isinstance(value, Tensor) or value.ndim < 2:
        return value
    if name == "alibi":  # BLOOM's slopes have their rows and heads on one axis
        return _pick(value.unflatten(0, (size, -1)), origins).flatten(0, 1)
    return _pick(value, origins) if len(value) == size else value
