"""Models that know nothing: the same model with weights shuffled or drawn anew.

A score such as "share of attention on the first position" is never zero, not even in a model that was never trained:
what it is worth shows beside the same score on these models.

:func:`as_null` lets a model compute so for a while, without a copy: while a layer runs, its weights are others.
:func:`shuffled` and :func:`reinitialised` give whole models of the same weights, to keep and to look into.
"""

from __future__ import annotations

import copy
import hashlib
import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mechrep.errors import InputError
from mechrep.models.load import load_model
from mechrep.models.model import Model

NullKind = Literal["shuffled", "reinitialised"]
_USUAL_SPREAD = 0.02  # of GPT-2's and most later initialisations; used where the configuration names none


def shuffled(model: Model, seed: int = 0) -> Model:
    """A copy whose weights stand in random places: every entry of a matrix or bias is one of its entries, at random.

    Sizes, the distribution of the entries and the norms' gains stay; what was learned is gone, outliers included: a
    giant row becomes giant entries all over its matrix.  Entries are drawn with replacement.

    Args:
        model: stays as it is.
        seed: of the draws.

    Returns:
        A model of its own, named after the original.  It needs as much memory again.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> null = shuffled(model, seed=1)
        >>> null.name, bool((null.W_E == model.W_E).all())
        ('mechrep-tiny (shuffled, seed 1)', False)
        >>> bool(torch.isin(null.W_E, model.W_E).all()), abs((null.W_E.std() / model.W_E.std()).item() - 1) < 0.02
        (True, True)
    """
    return _copy_of(model, "shuffled", seed)


def reinitialised(model: Model, seed: int = 0) -> Model:
    """A copy before training: every matrix normal with the configuration's ``initializer_range``, every bias zero.

    The norms' gains stay, so that the copy differs from the original in what it has learned and not in its scale.

    Args:
        model: stays as it is.
        seed: of the draws.

    Returns:
        A model of its own, named after the original.  It needs as much memory again.

    Example:
        >>> import mechrep
        >>> null = reinitialised(mechrep.load_model("mechrep-tiny"))
        >>> round(null.W_E.std().item(), 3)
        0.02
    """
    return _copy_of(model, "reinitialised", seed)


@contextmanager
def as_null(model: Model, kind: NullKind, seed: int = 0, fingerprint: str | None = None) -> Iterator[Model]:
    """While open, activations of the model are those of ``shuffled(model, seed)`` or ``reinitialised(model, seed)``.

    While a layer runs, its weights are others; afterwards it has its own again.  So memory grows by one layer, and of
    the embedding only the rows of the tokens that are read are made.  Where only TransformerLens' view is there, or the
    layers' weights are not in memory as numbers, a copy is yielded.

    Args:
        model: the model; it has another name and another fingerprint meanwhile.
        kind: ``"shuffled"`` or ``"reinitialised"``.
        seed: of the draws.
        fingerprint: of the model, where it is known: it takes a sum over all weights.

    Raises:
        InputError: logits are asked for, or TransformerLens' view: both would be those of the model itself.

    Example:
        >>> import mechrep
        >>> from mechrep.models.anatomy import Site
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> corpus = mechrep.Corpus.from_texts(["The sea was calm."], model=model)
        >>> with as_null(model, "shuffled", seed=1) as null:
        ...     name, states = null.name, mechrep.CorpusCache(null, corpus)[Site.RESID_POST, 2]
        >>> name, model.name
        ('mechrep-tiny (shuffled, seed 1)', 'mechrep-tiny')
        >>> again = mechrep.CorpusCache(shuffled(model, 1), corpus)[Site.RESID_POST, 2]
        >>> bool(torch.allclose(states, again, atol=1e-5))
        True
    """
    if not _streams(model):
        yield _copy_of(model, kind, seed)
        return
    assert model.plain is not None and model.handles is not None
    plain, layers = model.plain, list(model.handles.layers)
    own = hashlib.sha256(f"{fingerprint or model.fingerprint()} {kind} {seed}".encode()).hexdigest()[:16]
    names = _names(plain)
    edit = partial(_edited, kind, seed, _spread(model))
    inside = {id(weight) for layer in layers for weight in _learned(layer)}
    embedding, head = plain.get_input_embeddings(), plain.get_output_embeddings()  # pyright: ignore
    apart = {id(one.weight) for one in (embedding, head) if one is not None}
    swaps = [_Swap([(w, names[id(w)]) for w in _learned(layer) if id(w) in names], edit) for layer in layers]
    rest = [(w, name) for w, name in _weights(plain) if id(w) not in inside | apart]
    with ExitStack() as stack:
        stack.enter_context(model.standing_for(f"{model.name} ({kind}, seed {seed})", own))
        whole = _Swap(rest, edit)
        stack.callback(whole.back)
        whole.there()
        for layer, swap in zip(layers, swaps, strict=True):
            stack.callback(swap.back)
            stack.callback(layer.register_forward_pre_hook(swap.there).remove)
            stack.callback(layer.register_forward_hook(swap.back, always_call=True).remove)
        rows = _Rows(embedding, names[id(embedding.weight)], edit)
        stack.callback(rows.back)
        stack.callback(embedding.register_forward_pre_hook(rows.there).remove)
        stack.callback(embedding.register_forward_hook(rows.back, always_call=True).remove)
        if head is not None:
            stack.callback(head.register_forward_pre_hook(_no_logits).remove)
        yield model


def _streams(model: Model) -> bool:
    """Whether weights can be others for a while: the plain view is there, each in memory as a matrix of numbers."""
    plain = model.plain
    if plain is None or model.handles is None or not model.fast or model.processed:
        return False
    embedding = plain.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    return isinstance(embedding, nn.Embedding) and all(
        weight.is_floating_point() and weight.device.type != "meta" for weight in plain.parameters()
    )


def _no_logits(_module: nn.Module, _args: Any) -> None:
    raise InputError(
        "logits of a null model", "activations alone: the unembedding is still the model's own", "use shuffled(model)"
    )


class _Swap:
    """The weights of a part, and what stands in their place while it runs."""

    def __init__(self, weights: list[tuple[Tensor, str]], edit: Callable[..., Tensor]) -> None:
        self.weights, self.edit = weights, edit
        self.own: list[Tensor] = []

    def there(self, *_call: Any) -> None:
        """Others, of the same sizes."""
        self.back()
        with torch.no_grad():
            others = [self.edit(name, weight.data) for weight, name in self.weights]
        self.own = [weight.data for weight, _ in self.weights]
        for (weight, _), other in zip(self.weights, others, strict=True):
            weight.data = other

    def back(self, *_call: Any) -> None:
        """The part's own again."""
        for (weight, _), own in zip(self.weights, self.own, strict=False):
            weight.data = own
        self.own = []


class _Rows:
    """An embedding that has, while it runs, the rows of the tokens that are read, and these are others."""

    def __init__(self, embedding: nn.Embedding, name: str, edit: Callable[..., Tensor]) -> None:
        self.embedding, self.name, self.edit = embedding, name, edit
        self.own: tuple[Tensor, int | None] | None = None

    def there(self, _module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self.back()
        ids, places = args[0].unique(return_inverse=True)
        weight = self.embedding.weight.data
        with torch.no_grad():
            rows = self.edit(self.name, weight, ids)
        self.own = (weight, self.embedding.padding_idx)
        self.embedding.weight.data, self.embedding.padding_idx = rows, None
        return (places, *args[1:])

    def back(self, *_call: Any) -> None:
        if self.own is not None:
            self.embedding.weight.data, self.embedding.padding_idx = self.own
            self.own = None


# --- which weights there are, and what stands in their place ---------------------------------------------------------


def _copy_of(model: Model, kind: NullKind, seed: int) -> Model:
    """A deep copy of the plain module with every parameter that is no norm's edited, and loaded again.

    Where the plain module is part of the TransformerLens model, or there is none, that model is copied instead.
    """
    wrapped: Any = None if model.tl_is_built is False else getattr(model.tl, "original_model", None)
    apart = model.plain is not None and model.plain is not wrapped and not model.processed
    module: Any = copy.deepcopy(model.plain if apart else model.tl)
    with torch.no_grad():
        for weight, name in _weights(module):
            weight.data.copy_(_edited(kind, seed, _spread(model), name, weight.data))
    null = load_model(module, tokenizer=model.tokenizer, check=False)
    null.name, null.revision, null.tokenizer = f"{model.name} ({kind}, seed {seed})", model.revision, model.tokenizer
    null.prepends_bos = model.default_prepend_bos
    return null


_LEARNED_BUFFERS = ("e_score_correction_bias",)  # by which training balances DeepSeek's experts: it knows about routing


def _weights(module: nn.Module) -> list[tuple[Tensor, str]]:
    """Every learned tensor once (tied ones are one) with its name, in the module's order, norms left out."""
    seen: set[int] = set()
    for part in module.modules():
        if "norm" in type(part).__name__.lower():
            seen.update(id(parameter) for parameter in part.parameters())
    found = []
    for place, part in module.named_modules():
        for name, weight in _own(part):
            if id(weight) not in seen:
                seen.add(id(weight))
                found.append((weight, f"{place}.{name}"))
    return found


def _names(module: nn.Module) -> dict[int, str]:
    return {id(weight): name for weight, name in _weights(module)}


def _own(part: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All that training changes: parameters, and the buffers that are no settings."""
    yield from part.named_parameters(recurse=False)
    yield from (pair for pair in part.named_buffers(recurse=False) if pair[0] in _LEARNED_BUFFERS)


def _learned(module: nn.Module) -> Iterator[Tensor]:
    seen: set[int] = set()
    for part in module.modules():
        for _, weight in _own(part):
            if id(weight) not in seen:
                seen.add(id(weight))
                yield weight


def _spread(model: Model) -> float:
    spread = getattr(model.config, "initializer_range", None)
    # HookedTransformer marks "let me choose" with a negative number.
    return _USUAL_SPREAD if spread is None or spread <= 0 else float(spread)


_PIECE = 2**18  # entries made at a time: they stay in the processor's cache
_BITS = 24  # of a random number, as many as a single-precision number holds


def _edited(kind: NullKind, seed: int, spread: float, name: str, weight: Tensor, rows: Tensor | None = None) -> Tensor:
    """What stands in the place of a weight, or of some of its rows: the same numbers whichever rows are asked for."""
    chosen = weight if rows is None else weight.new_empty(len(rows), *weight.shape[1:])
    new = torch.empty_like(chosen, memory_format=torch.contiguous_format)
    if kind == "reinitialised" and weight.ndim < 2:
        return new.zero_()
    key = zlib.crc32(f"{seed} {name}".encode())
    flat, source = new.view(-1), weight.reshape(-1)
    width = weight[0].numel() if rows is not None else 0
    for start in range(0, flat.numel(), _PIECE):
        place = torch.arange(start, min(start + _PIECE, flat.numel()), device=weight.device)
        if rows is not None:
            place = rows[place // width] * width + place % width
        numbers = _numbers(place.to(torch.int32), key)
        part = flat[start : start + len(place)]
        if kind == "shuffled":
            torch.index_select(source, 0, (numbers * (source.numel() / 2**_BITS)).to(torch.int32), out=part)
        else:
            part.copy_(_normal(numbers).mul_(spread))
    return new


def _normal(numbers: Tensor) -> Tensor:
    """Standard normal numbers from random whole ones below 2**24; one bit less, so that 1/2 can be added exactly."""
    uniform = (numbers * 0.5).floor_().add_(0.5).mul_(4 / 2**_BITS).sub_(1.0)
    return uniform.erfinv_().mul_(math.sqrt(2))


def _numbers(places: Tensor, key: int) -> Tensor:
    """Random whole numbers below 2**24 as single-precision ones: a hash of place and key, the same on every device.

    Source: the finaliser is that of a 32-bit hash found by search, "lowbias32" (C. Wellons, Hash Prospector, 2018).
    """
    state, shifted = places.add_(_signed(key)), torch.empty_like(places)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        state ^= torch.bitwise_right_shift(state, shift, out=shifted)  # the sign comes along: that mixes as well
        state *= _signed(factor)
    return state.bitwise_and_((1 << _BITS) - 1).float()


def _signed(number: int) -> int:
    """A 32-bit number as torch's signed ones hold it."""
    return (number + 2**31) % 2**32 - 2**31
