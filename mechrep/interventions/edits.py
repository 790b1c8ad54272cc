"""Applying interventions: as TransformerLens hooks (the reference) and as tables for batches of mixed rows.

In a gated MLP TransformerLens has no hook between activation function and product, so an edit ``g -> g f + o`` of the
gate's activation is made on the product ``p = g u`` as ``p f + o u``, with the up-projection ``u`` of the same pass.
The plain view is edited where the activation arises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechrep.errors import InputError
from mechrep.interventions.base import Intervention, When
from mechrep.models.anatomy import Site
from mechrep.models.model import Model
from mechrep.models.reading import product_bias


def position_mask(starts: Int[Tensor, " batch"], length: int) -> Bool[Tensor, "batch pos"]:
    """True from each row's start on."""
    return torch.arange(length, device=starts.device)[None] >= starts[:, None]


def transformer_lens_hooks(
    intervention: Intervention,
    model: Model,
    starts: Int[Tensor, " batch"] | None,
    texts: Sequence[int] | None = None,
) -> list[tuple[str, Callable[..., Any]]]:
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
    hooks: list[tuple[str, Callable[..., Any]]] = []
    # A layer's activation function comes before its product, whichever was named first.
    for site, layer in sorted(per_text[0], key=lambda place: place[0] is not Site.GATE_ACT):
        factor = torch.stack([edits[site, layer].factor for edits in per_text])[:, None]
        offset = torch.stack([edits[site, layer].offset for edits in per_text])[:, None]
        hooks += _site_hooks(model, (site, layer), factor, offset, _Mask(intervention.when, starts))
    return hooks


@dataclass(frozen=True)
class _Mask:
    """Which positions of a forward pass are edited."""

    when: When
    starts: Tensor | None

    def of(self, activation: Tensor) -> Tensor | None:
        """``[batch pos]``, or ``None`` for all of them."""
        length = activation.shape[1]
        if self.starts is not None:
            return position_mask(self.starts.to(activation.device), length)
        if self.when == "last":
            return torch.arange(length, device=activation.device)[None] == length - 1
        return None


def _site_hooks(
    model: Model, place: tuple[Site, int], factor: Tensor, offset: Tensor, where: _Mask
) -> list[tuple[str, Callable[..., Any]]]:
    site, layer = place
    through_product = site is Site.GATE_ACT and model.anatomy.gated
    captured: dict[str, Tensor] = {}

    def capture(activation: Tensor, hook: Any = None) -> None:
        captured["up"] = activation

    def apply(activation: Tensor, hook: Any = None) -> Tensor:
        times, plus = factor.to(activation), offset.to(activation)
        if through_product:
            bias = product_bias(model, layer)
            edited = (activation - bias) * times + plus * captured.pop("up") + bias
        else:
            edited = activation * times + plus
        mask = where.of(activation)
        return edited if mask is None else torch.where(mask[..., None], edited, activation)

    if through_product:
        names = (model.anatomy.hook_name(Site.UP_PROJ, layer), model.anatomy.hook_name(Site.MLP_POST, layer))
        return [(names[0], capture), (names[1], apply)]
    return [(model.anatomy.hook_name(site, layer), apply)]


class EditTable:
    """The edits of many rows at once: one row of a batch, one condition.

    Equal interventions share a condition, so a thousand texts under ten interventions cost ten rows of table.

    Args:
        model: the model whose plain view will be edited.
        interventions: one per row, or ``None`` for an untouched row.
        texts: number of the text in each row (for resampling).
    """

    def __init__(self, model: Model, interventions: Sequence[Intervention | None], texts: Sequence[int]) -> None:
        self.model = model
        keys: dict[tuple[int, int], int] = {}
        chosen: list[tuple[Intervention, int]] = []
        conditions = []
        for intervention, text in zip(interventions, texts, strict=True):
            if intervention is None:
                conditions.append(0)
                continue
            key = (id(intervention), text if intervention.differs_by_text else -1)
            if key not in keys:
                chosen.append((intervention, text))
                keys[key] = len(chosen)
            conditions.append(keys[key])
        self.conditions: Int[Tensor, " row"] = torch.tensor(conditions, device=model.device)
        self.tables: dict[tuple[Site, int], tuple[Tensor, Tensor]] = {}
        for condition, (intervention, text) in enumerate(chosen, start=1):
            for place, edit in intervention.edits(model.anatomy, text).items():
                factor, offset = self.tables.setdefault(
                    place, self._identity(len(chosen) + 1, model.anatomy.width(place[0]))
                )
                factor[condition], offset[condition] = edit.factor.to(factor), edit.offset.to(offset)
        self._factor_rows: Tensor = self.conditions[:0]
        self._mask: Bool[Tensor, "batch pos"] | None = None

    def _identity(self, conditions: int, width: int) -> tuple[Tensor, Tensor]:
        like = {"device": self.model.device, "dtype": self.model.dtype}
        return torch.ones(conditions, width, **like), torch.zeros(conditions, width, **like)

    def __bool__(self) -> bool:
        return bool(self.tables)

    def aim(self, rows: Int[Tensor, " batch"], mask: Bool[Tensor, "batch pos"]) -> None:
        """Say which rows the next forward pass holds and at which of its positions their edits are active."""
        self._factor_rows, self._mask = self.conditions[rows], mask

    def rest(self) -> None:
        """Edit nothing until :meth:`aim` is called again."""
        self._mask = None

    def _edit(self, activation: Float[Tensor, "batch pos unit"], place: tuple[Site, int]) -> Tensor:
        if self._mask is None:
            return activation
        factor, offset = (table[self._factor_rows][:, None] for table in self.tables[place])
        return torch.where(self._mask[..., None], activation * factor + offset, activation)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While open, forward passes of the plain view are edited as :meth:`aim` last said."""
        handles = self.model.handles
        if self.tables and handles is None:
            raise InputError(
                "the plain view of " + self.model.name, "a model that has one", "use view='transformer_lens'"
            )
        with ExitStack() as stack:
            for place in self.tables:
                stack.callback(self._register(place).remove)
            yield

    def _register(self, place: tuple[Site, int]) -> Any:
        site, layer = place
        handles = self.model.handles
        assert handles is not None

        def edit_output(_module: Any, _args: Any, output: Any) -> Tensor:
            return self._edit(output, place)

        def edit_input(_module: Any, args: Any) -> tuple[Any, ...]:
            return (self._edit(args[0], place), *args[1:])

        if site is Site.GATE_ACT:
            return handles.activations[layer].register_forward_hook(edit_output)
        if site is Site.MLP_POST:
            return handles.mlp_outputs[layer].register_forward_pre_hook(edit_input)
        raise InputError(
            f"an edit at {site.value}", "gate_act or mlp_post on the plain view", "use view='transformer_lens'"
        )
