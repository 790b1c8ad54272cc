"""``PatchedModel``: a sink patch on a plain Hugging Face model, for other people's generation and evaluation code.

Two kinds of hooks.  One before the decoder reads off each call which rows have begun, where their first token after BOS
is and which columns are padding.  One at the up-projection catches the level there and holds it.  What must outlive a
call is kept on the key-value cache (:mod:`mechrep.generation.cache_rows`), never in the model.
"""

from __future__ import annotations

import inspect
import itertools
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mechrep.errors import InputError
from mechrep.generation.cache_rows import RowLevels, remembered, row_levels
from mechrep.generation.calls import real_columns, refuse_packed_rows
from mechrep.interventions.base import Combined, Intervention
from mechrep.interventions.sink_patch import SinkPatch
from mechrep.models.handles import PlainHandles, find_handles
from mechrep.models.model import Model
from mechrep.models.up_projections import find_up_projections

_patched: WeakSet[nn.Module] = WeakSet()
_owners = itertools.count()  # unlike id(), never the same twice


def is_patched(module: nn.Module | None) -> bool:
    """Whether a :class:`PatchedModel` is at work in this module."""
    return module in _patched


@dataclass
class _Pass:
    """One forward pass: what is remembered of its rows, where their anchors are and where neurons are held."""

    rows: RowLevels
    anchor_here: Bool[Tensor, "batch pos"]
    edited: Bool[Tensor, "batch pos"]


class PatchedModel:
    """A Hugging Face model under a :class:`~mechrep.interventions.sink_patch.SinkPatch`.

    The model itself is hooked, not a copy: until :meth:`remove`, or the end of a ``with`` block, every forward pass of
    it is patched, whoever makes it: your own call, ``model.generate(...)``, an evaluation harness.  The wrapper passes
    calls and attributes on, so it can be handed over in place of the model.

    Rows are told apart by what the model is given.  The first real token of a row is the first that ``attention_mask``
    admits (the first one where no mask is given); the row's level is the up-projection at the first token after BOS.
    It is kept with the row on its key-value cache, so that left padding, prefill in pieces, prompts of one token,
    generations that take turns, copied and cropped caches and beam search come to the same logits as one pass over
    the whole text.

    Args:
        model: a Hugging Face causal language model, or a :class:`~mechrep.models.model.Model` with a plain view.
        patch: a patch, or several added to each other.
        bos_id: id of BOS.  Default: what ``Model.bos_id`` says, or for a bare module the configuration's
            ``bos_token_id``; a model without one has no BOS, and its anchor is the first token.

    Raises:
        InputError: an intervention of another kind, or one that begins later than at the first token after BOS; a
            model without a plain view, or without the layer or neurons.  When the model is called: with
            embeddings in place of ids, with several texts packed into one row, with a mask of a form that does not
            tell padding, or with a cache that was filled without the patch or whose rows were changed by hand.
        ModelError: a model whose up-projections are not found.

    Source: the patch is that of Yona et al. 2025 (arXiv 2503.08908); the bookkeeping is mechrep's own.

    Limits: left padding without an ``attention_mask`` cannot be told from text.  The hooks keep the model from being
    compiled as one graph.  Inside ``with``, generate with the model's own ``generate``; for
    :func:`mechrep.generate` pass the patch as ``interventions=``.

    Example:
        >>> import mechrep, torch
        >>> from mechrep.interventions import SinkPatch
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> ids = torch.tensor([model.encode("the sea, the sea")])
        >>> before = model.plain(ids).logits
        >>> with PatchedModel(model, SinkPatch(0, [3, 8])) as patched:
        ...     held = patched(ids).logits
        ...     text = patched.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
        >>> bool((held != before).any()), bool((model.plain(ids).logits == before).all())
        (True, True)
    """

    def __init__(self, model: Model | nn.Module, patch: Intervention, *, bos_id: int | None = None) -> None:
        self.module, handles, default_bos = _plain_parts(model)
        self.bos_id = default_bos if bos_id is None else bos_id
        self.patch = patch
        self._owner = next(_owners)
        self._neurons = _held(patch, len(handles.layers))
        self._passes: dict[int, _Pass] = {}  # by thread: a module may serve several
        decoder = _decoder(self.module, handles.layers[0])
        self._signature = inspect.signature(decoder.forward)
        up_projections = find_up_projections(self.module, handles)
        _check_width(patch, self.module, handles)
        self._handles: list[Any] = [
            decoder.register_forward_pre_hook(self._begin, with_kwargs=True),
            decoder.register_forward_hook(self._end),
            *(up_projections[layer].edit(partial(self._hold, layer=layer)) for layer in self._neurons),
        ]
        _patched.add(self.module)

    def __getattr__(self, name: str) -> Any:
        if name == "module":  # not set yet: a copy or a failed constructor
            raise AttributeError(name)
        return getattr(self.module, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def __enter__(self) -> PatchedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        state = "" if self._handles else ", removed"
        return f"PatchedModel({type(self.module).__name__}, {self.patch}{state})"

    def remove(self) -> None:
        """Take the patch out of the model; calling it again does nothing."""
        for handle in self._handles:
            handle.remove()
        if self._handles:
            _patched.discard(self.module)
        self._handles, self._passes = [], {}

    def _begin(self, _decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the decoder: which rows are these, and where in their texts is this pass?"""
        call = dict(self._signature.bind_partial(*args, **kwargs).arguments)
        for name, parameter in self._signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                call |= call.pop(name, {})
        ids, cache = call.get("input_ids"), call.get("past_key_values")
        if ids is None:
            raise InputError("embeddings in place of input_ids", "ids, among which BOS can be told", "pass input_ids=")
        past = 0 if cache is None else int(cache.get_seq_length())
        real = real_columns(call.get("attention_mask"), ids, past)
        refuse_packed_rows(call, real)
        rows = None if cache is None or past == 0 else remembered(cache, self._owner)
        if (rows is None and past > 0) or (rows is not None and len(rows) != len(ids)):
            known = "no row" if rows is None else f"{len(rows)} rows"
            raise InputError(
                f"a cache of {past} columns for {len(ids)} rows, of which {known} began under this patch",
                "a cache that was filled under the patch from its first token on",
                "begin with an empty cache",
            )
        rows = RowLevels.empty(len(ids), ids.device) if rows is None else rows
        is_bos = torch.zeros_like(real) if self.bos_id is None else ids == self.bos_id
        self._passes[threading.get_ident()] = _Pass(rows, *rows.advance(is_bos, real, past))

    def _end(self, _decoder: nn.Module, _args: Any, output: Any) -> None:
        """After the decoder: what was learned of the rows goes onto their cache."""
        now = self._passes.pop(threading.get_ident())
        parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else ()
        for part in parts:
            if hasattr(part, "get_seq_length"):
                row_levels(part)[self._owner] = now.rows

    def _hold(self, up: Float[Tensor, "*batch_pos d_mlp"], layer: int) -> Tensor:
        now = self._passes.get(threading.get_ident())
        if now is None:
            raise InputError(
                "a part of a patched model, run on its own", "the whole decoder", "call the model, or remove the patch"
            )
        index = torch.tensor(self._neurons[layer], device=up.device)
        values = up[..., index].view(*now.edited.shape, len(index))
        level = now.rows.catch(layer, values, now.anchor_here.to(up.device))
        held = torch.where(now.edited.to(up.device)[..., None], level[:, None], values)
        edited = up.clone()
        edited[..., index] = held.view(*up.shape[:-1], len(index))
        return edited


def _plain_parts(model: Model | nn.Module) -> tuple[nn.Module, PlainHandles, int | None]:
    """The Hugging Face module, its parts and its BOS."""
    if isinstance(model, Model):
        if model.plain is None or model.handles is None or model.processed:
            raise InputError(f"the plain view of {model.name}", "a model that has one", "use patch.hooks(model)")
        return model.plain, model.handles, model.bos_id
    config: Any = getattr(model, "config", None)
    if isinstance(model, nn.Module) and hasattr(config, "get_text_config"):
        text = config.get_text_config()
        handles = find_handles(model, text.num_hidden_layers)
        if handles is not None:
            bos = text.bos_token_id
            return model, handles, bos if isinstance(bos, int) else None
    raise InputError(
        f"an object of type {type(model).__name__}",
        "a Hugging Face causal language model whose parts mechrep knows, or a mechrep Model",
        "pass one of these",
    )


def _decoder(module: nn.Module, first_layer: nn.Module) -> nn.Module:
    """The smallest part that reads ids and holds the layers; whatever runs the model, passes come through it."""
    name = next(name for name, part in module.named_modules() if part is first_layer)
    while "." in name:
        name = name.rpartition(".")[0]
        part = module.get_submodule(name)
        if "input_ids" in inspect.signature(part.forward).parameters:
            return part
    return module


def _held(patch: Intervention, n_layers: int) -> dict[int, tuple[int, ...]]:
    """Neurons by layer of a patch, or of several."""
    parts = patch.parts if isinstance(patch, Combined) else (patch,)
    held: dict[int, tuple[int, ...]] = {}
    for part in parts:
        if isinstance(part, Combined):
            more = _held(part, n_layers)
        elif isinstance(part, SinkPatch) and part.when == "all":
            more = {part.layer: part.neurons}
        else:
            raise InputError(
                f"{part} on a plain model",
                "a SinkPatch with when='all', or several added to each other",
                "for other interventions use mechrep.generate(..., interventions=) or .hooks(model)",
            )
        for layer, neurons in more.items():
            held[layer] = tuple(sorted({*held.get(layer, ()), *neurons}))
    return held


def _check_width(patch: Intervention, module: nn.Module, handles: PlainHandles) -> None:
    """Refuse layers and neurons that the model does not have, before it runs."""
    for part in patch.parts if isinstance(patch, Combined) else (patch,):
        if isinstance(part, Combined):
            _check_width(part, module, handles)
        elif isinstance(part, SinkPatch):
            part.check(len(handles.layers), _d_mlp(handles))


def _d_mlp(handles: PlainHandles) -> int:
    """Inputs of the output matrix; Conv1D of GPT-2 keeps its matrix the other way round than Linear."""
    output: Any = handles.mlp_outputs[0]
    return int(output.in_features if hasattr(output, "in_features") else output.weight.shape[0])
