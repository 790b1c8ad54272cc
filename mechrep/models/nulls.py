"""Models that know nothing: copies of a model whose weights are shuffled or drawn anew.

A score such as "share of attention on the first position" is never zero, not even in a model that was never trained:
what it is worth shows beside the same score on these copies.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mechrep.models.load import load_model
from mechrep.models.model import Model

_USUAL_SPREAD = 0.02  # of GPT-2's and most later initialisations; used where the configuration names none


def shuffled(model: Model, seed: int = 0, into: Model | None = None) -> Model:
    """A copy whose weights stand in random places: within every matrix and bias the entries are permuted.

    Sizes, the distribution of the entries and the norms' gains stay; what was learned is gone, outliers included: a
    giant row becomes giant entries all over its matrix.

    Args:
        model: stays as it is.
        seed: of the permutations.
        into: an earlier copy of this model that is no longer needed: it gets the new weights, where that is possible.

    Returns:
        A model of its own, named after the original.  It needs as much memory again.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> null = shuffled(model, seed=1)
        >>> null.name, bool((null.W_E == model.W_E).all())
        ('mechrep-tiny (shuffled, seed 1)', False)
        >>> bool((null.W_E.flatten().sort().values == model.W_E.flatten().sort().values).all())
        True
    """

    def permute(weight: Tensor, generator: torch.Generator) -> None:
        order = torch.randperm(weight.numel(), generator=generator, device=weight.device)
        weight.copy_(weight.flatten()[order].view_as(weight))

    return _edited_copy(model, permute, seed, f"shuffled, seed {seed}", into)


def reinitialised(model: Model, seed: int = 0, into: Model | None = None) -> Model:
    """A copy before training: every matrix normal with the configuration's ``initializer_range``, every bias zero.

    The norms' gains stay, so that the copy differs from the original in what it has learned and not in its scale.

    Args:
        model: stays as it is.
        seed: of the draws.
        into: as for :func:`shuffled`.

    Returns:
        A model of its own, named after the original.  It needs as much memory again.

    Example:
        >>> import mechrep
        >>> null = reinitialised(mechrep.load_model("mechrep-tiny"))
        >>> round(null.W_E.std().item(), 3)
        0.02
    """
    spread = getattr(model.config, "initializer_range", None)
    # HookedTransformer marks "let me choose" with a negative number.
    spread = _USUAL_SPREAD if spread is None or spread <= 0 else float(spread)

    def draw(weight: Tensor, generator: torch.Generator) -> None:
        if weight.ndim < 2:
            weight.zero_()
        else:
            weight.normal_(0, spread, generator=generator)

    return _edited_copy(model, draw, seed, f"reinitialised, seed {seed}", into)


@torch.no_grad()
def _edited_copy(
    model: Model, edit: Callable[[Tensor, torch.Generator], None], seed: int, what: str, into: Model | None
) -> Model:
    """A deep copy of the plain module with every parameter that is no norm's edited in place, and loaded again.

    Where the plain module is part of the TransformerLens model, or there is none, that model is copied instead.  An
    earlier copy is taken anew where there is one of the same sizes.
    """
    wrapped: Any = None if model.tl_is_built is False else getattr(model.tl, "original_model", None)
    apart = model.plain is not None and model.plain is not wrapped and not model.processed
    again = into is not None and apart and _holds_the_same(model, into)
    if again:
        module: Any = into.plain  # pyright: ignore
        for weight, learned in zip(_learned(module), _learned(model.plain), strict=True):  # pyright: ignore
            weight.copy_(learned)
    else:
        module = copy.deepcopy(model.plain if apart else model.tl)
    generators: dict[torch.device, torch.Generator] = {}
    for weight in _weights(module):
        if weight.device not in generators:
            generators[weight.device] = torch.Generator(weight.device).manual_seed(seed)
        edit(weight, generators[weight.device])
    null = into if again else load_model(module, tokenizer=model.tokenizer, check=False)
    assert null is not None
    null.name, null.revision, null.tokenizer = f"{model.name} ({what})", model.revision, model.tokenizer
    null.prepends_bos = model.default_prepend_bos
    return null


def _holds_the_same(model: Model, other: Model) -> bool:
    """Whether the other can take this model's weights."""
    if model.plain is None or other.plain is None or not other.name.startswith(f"{model.name} ("):
        return False
    kinds = [[(p.shape, p.dtype, p.device) for p in one.parameters()] for one in (model.plain, other.plain)]
    return kinds[0] == kinds[1]


def _weights(module: nn.Module) -> Iterator[Tensor]:
    """Every parameter once (tied ones are one), in the module's order, norms left out."""
    seen: set[int] = set()
    for part in module.modules():
        if "norm" in type(part).__name__.lower():
            seen.update(id(parameter) for parameter in part.parameters())
    for weight in _learned(module):
        if id(weight) not in seen:
            seen.add(id(weight))
            yield weight.data


_LEARNED_BUFFERS = ("e_score_correction_bias",)  # by which training balances DeepSeek's experts: it knows about routing


def _learned(module: nn.Module) -> Iterator[Tensor]:
    """All that training changes: parameters, and the buffers that are no settings, in the module's order."""
    for part in module.modules():
        yield from part.parameters(recurse=False)
        yield from (buffer for name, buffer in part.named_buffers(recurse=False) if name in _LEARNED_BUFFERS)
