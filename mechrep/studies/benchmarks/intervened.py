"""A plain Hugging Face module inside an intervention: whoever calls it, calls the edited model.

A harness calls the module itself, with batches that nobody announces.  So a hook in front of the module looks at each
batch and says which of its positions are real; then the edits of :mod:`mechrep.interventions.table` do the rest.
Sink patches go through :class:`~mechrep.generation.patched_model.PatchedModel`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mechrep.errors import InputError
from mechrep.generation.calls import real_columns
from mechrep.generation.patched_model import PatchedModel
from mechrep.interventions.base import Combined, Intervention, Place
from mechrep.interventions.sink_patch import SinkPatch
from mechrep.interventions.table import EditTable
from mechrep.models.anatomy import Site
from mechrep.models.model import Model


@contextmanager
def intervened(model: Model, intervention: Intervention | None) -> Iterator[nn.Module]:
    """The plain Hugging Face module of a model, edited at all real positions of every call while the context is open.

    Rows may be padded on the right, with or without an attention mask, or on the left with one.  Keys and values may
    be cached, except where attention is moved.

    Args:
        model: the model; its plain view is what is edited and given.
        intervention: of ``when="all"``; ``None`` for the untouched model.

    Raises:
        InputError: a model without a plain view or with processed weights, an intervention that begins somewhere or
            differs by text, units the model lacks.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> tokens = model.to_tokens("again and again")
        >>> cut = mechrep.Heads([(0, 0)], "to_bos", when="all")
        >>> with torch.no_grad(), intervened(model, cut) as module:
        ...     changed = module(tokens).logits
        >>> expected = model.run_with_hooks(tokens, fwd_hooks=cut.hooks(model))
        >>> torch.allclose(changed, expected, atol=1e-3)
        True
    """
    if model.plain is None or model.processed:
        raise InputError(
            f"{model.name} with {'processed weights' if model.processed else 'no plain view'}",
            "a model whose plain Hugging Face module mechrep can edit",
            "load it by name, or from a Hugging Face module, and keep its raw weights",
        )
    parts = _parts(intervention)
    patches = tuple(part for part in parts if isinstance(part, SinkPatch))
    others = tuple(part for part in parts if not isinstance(part, SinkPatch))
    with ExitStack() as stack:
        if patches:
            stack.enter_context(PatchedModel(model, Combined(patches)))
        if others:
            edits = _WholePassEdits(model, Combined(others))
            stack.callback(model.plain.register_forward_pre_hook(edits.look, with_kwargs=True).remove)
            stack.enter_context(edits.applied())
        yield model.plain


def _parts(intervention: Intervention | None) -> tuple[Intervention, ...]:
    """What a sum is made of, one after the other."""
    if isinstance(intervention, Combined):
        return tuple(part for inner in intervention.parts for part in _parts(inner))
    return () if intervention is None else (intervention,)


class _WholePassEdits(EditTable):
    """One intervention on all rows of every pass; the first position is found in the pass and not known before."""

    def __init__(self, model: Model, intervention: Intervention) -> None:
        if intervention.when != "all" or intervention.differs_by_text:
            given = "resampling by text" if intervention.differs_by_text else f"when={intervention.when!r}"
            raise InputError(
                f"an intervention with {given}",
                "one that is the same at every position of every text: the harness does not tell them apart",
                "build it with when='all' and another operation",
            )
        super().__init__(model, [intervention], [0], first_tokens=[0], starts=[0])
        self.moves_attention = any(site is Site.PATTERN for site, _ in self.tables)

    def _find_first_values(self, moving: set[int], first_tokens: Sequence[int], starts: Sequence[int]) -> None:
        """Nothing to compute: the first position is part of every pass."""

    def look(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """See which positions of the coming pass are real, and which is the first of each row."""
        tokens: Int[Tensor, "batch pos"] = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        if self.moves_attention and past:
            raise InputError(
                "attention moved to a first position that is in the cache",
                "whole texts in every call",
                "use mechrep.generate, or call the module with use_cache=False",
            )
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        real: Bool[Tensor, "batch pos"] = real_columns(mask, tokens, past)
        self.aim(torch.zeros(len(tokens), dtype=torch.long, device=self.conditions.device), real)
        self._first = real.int().argmax(1)

    def _edit(self, activation: Float[Tensor, "batch pos unit"], place: Place) -> Tensor:
        if place[0] is not Site.PATTERN or self._mask is None:
            return super()._edit(activation, place)
        factor, offset = (table[self._condition][:, None] for table in self.tables[place])
        first = activation[torch.arange(len(activation), device=activation.device), self._first][:, None]
        return torch.where(self._mask[..., None], activation * factor + offset * first, activation)
