"""``PatchedModel``: a sink patch on a plain Hugging Face model, for other people's generation and evaluation code.

Two kinds of hooks.  One before the decoder reads off each call which rows have begun, where their first token after BOS
is and which columns are padding.  One at the up-projection catches the level there and holds it.  What must outlive a
call is kept on the key-value cache (:mod:`mechrep.generation.patched_model`), never in the model.

What a patched model remembers of every row of a key-value cache, kept on the cache itself.

A cache may be filled in several passes, go on for thousands of tokens, be copied, cropped, and have its rows
repeated, selected or put in another order (beam search).  Other caches may be filled in between.  So what belongs to a
row is an attribute of the cache that holds the row, and goes wherever its rows go.

Reading off a call of a Hugging Face decoder which of its columns are text.

A plain Hugging Face module inside an intervention: whoever calls it, calls the edited model.

A harness calls the module itself, with batches that nobody announces.  So a hook in front of the module looks at each
batch and says which of its positions are real; then the edits of :mod:`mechrep.interventions.apply` do the rest.
Sink patches go through :class:`~mechrep.generation.patched_model.PatchedModel`.
"""

from __future__ import annotations

import inspect
import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mechrep.errors import InputError
from mechrep.guards import guarded
from mechrep.interventions.apply import EditTable
from mechrep.interventions.hooks import Place
from mechrep.interventions.ops import Combined, Intervention, SinkPatch
from mechrep.models.anatomy import Site
from mechrep.models.attention import reading_of
from mechrep.models.lengths import LengthRule, length_rule
from mechrep.models.model import Model
from mechrep.models.neurons import columns_of, looking_at, refuse_routed
from mechrep.models.parts import PlainHandles, find_handles
from mechrep.models.state import mark_patched

NOT_YET = torch.iinfo(torch.long).max


@dataclass
class RowLevels:
    """Where every row's text begins and which level its neurons are held at.

    Columns are counted from the first column of the cache, padding included.

    Attributes:
        first: column of the row's first real token; ``NOT_YET`` before there is one.
        begins_with_bos: whether that token is BOS.
        anchor: column of the first token after BOS, or of the first token where there is no BOS.
        levels: up-projection of the held neurons there, by layer.
    """

    first: Int[Tensor, " batch"]
    begins_with_bos: Bool[Tensor, " batch"]
    anchor: Int[Tensor, " batch"]
    levels: dict[int, Float[Tensor, "batch neuron"]] = field(default_factory=dict)

    @classmethod
    def empty(cls, rows: int, device: torch.device) -> RowLevels:
        """Rows that have not begun."""
        none = torch.full((rows,), NOT_YET, device=device)
        return cls(none, torch.zeros_like(none, dtype=torch.bool), none.clone())

    def __len__(self) -> int:
        return len(self.first)

    def take(self, rows: Int[Tensor, " batch"]) -> None:
        """Become these rows, in this order."""
        for name in ("first", "begins_with_bos", "anchor"):
            values = getattr(self, name)
            setattr(self, name, values[rows.to(values.device)])
        self.levels = {layer: level[rows.to(level.device)] for layer, level in self.levels.items()}

    def advance(
        self,
        is_bos: Bool[Tensor, "batch pos"],
        real: Bool[Tensor, "batch pos"],
        past: int,
    ) -> tuple[Bool[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
        """Take note of the columns of one pass.

        Args:
            is_bos: where the token is BOS.
            real: where there is a token and no padding.
            past: columns before this pass; what was noted of later ones (a cropped cache) is forgotten.

        Returns:
            Where the anchors are, and where neurons are held: from the anchor on, padding left out.
        """
        begun = self.first < past
        bos_before = self.begins_with_bos & begun
        number = real.cumsum(1)  # of each real token in this pass, from 1
        first_here = real & (number == 1) & ~begun[:, None]
        begins_here = (first_here & is_bos).any(1)
        self.first = torch.where(begun, self.first, _column(first_here, past))
        self.begins_with_bos = bos_before | begins_here
        waiting = ~(self.anchor < past)
        wanted = torch.where(begun, 1, 1 + begins_here.long())
        anchor_here = real & (number == wanted[:, None]) & waiting[:, None]
        self.anchor = torch.where(waiting, _column(anchor_here, past), self.anchor)
        columns = past + torch.arange(real.shape[1], device=real.device)
        return anchor_here, real & (columns >= self.anchor[:, None])

    def catch(
        self, layer: int, values: Float[Tensor, "batch pos neuron"], anchor_here: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch neuron"]:
        """Note the values at the anchors of this pass; returns the level of every row (0 where it is unknown)."""
        found = anchor_here.any(1)
        at_anchor = values[torch.arange(len(values), device=values.device), anchor_here.int().argmax(1)]
        before = self.levels[layer].to(values) if layer in self.levels else torch.zeros_like(at_anchor)
        self.levels[layer] = torch.where(found[:, None], at_anchor, before)
        return self.levels[layer]


def _column(here: Bool[Tensor, "batch pos"], past: int) -> Int[Tensor, " batch"]:
    """The column of the one place in each row, or ``NOT_YET`` where there is none."""
    return torch.where(here.any(1), past + here.int().argmax(1), NOT_YET)


class _CarriesRows:
    """Mixed into the class of a cache: what moves its rows moves what is remembered of them."""

    row_levels: dict[int, RowLevels]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam search: row ``i`` becomes what row ``beam_idx[i]`` was."""
        super().reorder_cache(beam_idx)  # pyright: ignore[reportAttributeAccessIssue]
        self._take(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        super().batch_select_indices(indices)  # pyright: ignore[reportAttributeAccessIssue]
        self._take(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row several times, side by side."""
        super().batch_repeat_interleave(repeats)  # pyright: ignore[reportAttributeAccessIssue]
        for levels in self.row_levels.values():
            levels.take(torch.arange(len(levels)).repeat_interleave(repeats))

    def _take(self, rows: Tensor) -> None:
        for levels in self.row_levels.values():
            levels.take(rows)


_carrying: dict[type, type] = {}


def row_levels(cache: Any) -> dict[int, RowLevels]:
    """What is remembered of a cache's rows, by owner; from now on it follows the rows."""
    kind = type(cache)
    if not isinstance(cache, _CarriesRows):
        if kind not in _carrying:
            _carrying[kind] = type(kind.__name__, (_CarriesRows, kind), {"__module__": kind.__module__})
        cache.__class__ = _carrying[kind]
        cache.row_levels = {}
    return cache.row_levels


def remembered(cache: Any, owner: int) -> RowLevels | None:
    """A copy of what ``owner`` remembers of a cache: a pass that fails leaves the cache as it was."""
    known = row_levels(cache).get(owner)
    return None if known is None else replace(known, levels=dict(known.levels))


def real_columns(mask: Any, ids: Int[Tensor, "batch pos"], past: int) -> Bool[Tensor, "batch pos"]:
    """True where a column of this call is a token and no padding.

    Args:
        mask: ``attention_mask`` as the model got it: ``None``; ``[batch past+pos]`` of ones and zeros; or what
            ``generate`` makes of that for a static cache, ``[batch 1 query key]``, which may stand in a dictionary.
        ids: the ids of this call.
        past: columns in the cache.

    Raises:
        InputError: a mask that does not say which columns are padding.

    Example:
        >>> real_columns(torch.tensor([[0, 1, 1]]), torch.tensor([[2, 5, 7]]), past=0).tolist()
        [[False, True, True]]
    """
    if isinstance(mask, Mapping) and "full_attention" in mask:
        mask = mask["full_attention"]
    if mask is None:
        return torch.ones_like(ids, dtype=torch.bool)
    rows, length = ids.shape
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] in (length, past + length):
        return mask[:, -length:].to(ids.device) != 0
    if isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[2] == length and mask.shape[3] >= past + length:
        # What the last query may see; additive masks have 0 there and a huge negative number elsewhere.
        last = mask[:, 0, -1, past : past + length].to(ids.device)
        return (last if mask.dtype == torch.bool else last == 0).expand(rows, length)
    shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
    raise InputError(
        f"attention_mask {shape} for {rows} rows of {length} tokens after {past}",
        "a mask [batch, all columns so far] of ones and zeros",
        "pass the mask that the tokenizer gives",
    )


def refuse_packed_rows(call: Mapping[str, Any], real: Bool[Tensor, "batch pos"]) -> None:
    """Refuse rows that hold several texts: positions that begin again, or lengths of packed sequences.

    Raises:
        InputError: they do.
    """
    positions = call.get("position_ids")
    lengths = next(
        (name for name in ("cu_seq_lens_q", "cu_seqlens_q", "block_table") if call.get(name) is not None), ""
    )
    packed = bool(lengths)
    if isinstance(positions, Tensor) and positions.ndim == 2 and positions.shape[1] == real.shape[1] > 1:
        both = real[:, 1:] & real[:, :-1]
        packed = packed or bool((both & (positions.diff(dim=1) <= 0).to(real.device)).any())
    if packed:
        raise InputError(
            f"several texts in one row ({lengths or 'position_ids begin again'})",
            "one text per row",
            "pad the batch instead of packing it",
        )


def refuse_other_angles(rule: LengthRule | None, call: Mapping[str, Any]) -> None:
    """Refuse a pass of somebody else's in which a text would not have the positions that it has alone.

    Args:
        rule: of the model, if its positions depend on the length of the text.
        call: what the model is given.

    Raises:
        InputError: rows on both sides of the switch, or keys in the cache that were made with other angles.
    """
    if rule is None:
        return
    rule.forget()
    ids, cache, mask = call["input_ids"], call.get("past_key_values"), call.get("attention_mask")
    past = 0 if cache is None else int(cache.get_seq_length())
    new = real_columns(mask, ids, past).sum(-1)
    told = isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] == past + ids.shape[1]
    lengths = mask.sum(-1).to(new.device) if isinstance(mask, Tensor) and told else new + past
    positions = call.get("position_ids")
    top = int(positions.max()) + 1 if isinstance(positions, Tensor) else past + ids.shape[1]
    alike = {rule.alike(int(length)) for length in (*lengths, top)}
    kept = {rule.alike(int(length)) for length in lengths - new if length > 0}
    if len(alike) > 1 or not kept <= alike:
        raise InputError(
            f"rows of {int(lengths.min())} to {int(lengths.max())} tokens"
            + (", the first of them from a cache" if past else ""),
            f"rows whose positions are alike: beyond {rule.switch} tokens this model's are other ones"
            + (" at every length" if rule.every else ""),
            "run one text at a time, without a cache beyond that length, or use mechrep.generate",
        )


_owners = itertools.count()  # unlike id(), never the same twice


@dataclass
class _Pass:
    """One forward pass: what is remembered of its rows, where their anchors are and where neurons are held."""

    rows: RowLevels
    anchor_here: Bool[Tensor, "batch pos"]
    edited: Bool[Tensor, "batch pos"]


class PatchedModel:
    """A Hugging Face model under a :class:`~mechrep.interventions.ops.SinkPatch`.

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
            tell padding, with rows whose positions would be other ones than alone (longrope, dynamic NTK), or with a
            cache that was filled without the patch or whose rows were changed by hand.
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

    @guarded
    def __init__(self, model: Model | nn.Module, patch: Intervention, *, bos_id: int | None = None) -> None:
        self.module, handles, default_bos = _plain_parts(model)
        self.bos_id = default_bos if bos_id is None else bos_id
        self.patch = patch
        self._owner = next(_owners)
        self._neurons = _held(patch, len(handles.layers))
        self._passes: dict[int, _Pass] = {}  # by thread: a module may serve several
        decoder = _decoder(self.module, handles.layers[0])
        self._signature = inspect.signature(decoder.forward)
        self._lengths = model.lengths if isinstance(model, Model) else length_rule(self.module)
        _check_width(patch, handles)
        for layer, neurons in self._neurons.items():
            refuse_routed(handles, layer, neurons)
        self._hooks = ExitStack()
        self._hooks.callback(decoder.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
        self._hooks.callback(decoder.register_forward_hook(self._end).remove)
        for layer in self._neurons:
            look = partial(self._hold, layer=layer)
            self._hooks.enter_context(looking_at(self.module, handles, Site.UP_PROJ, layer, look))
        self._active = True
        mark_patched(self.module, True)

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
        state = "" if self._active else ", removed"
        return f"PatchedModel({type(self.module).__name__}, {self.patch}{state})"

    def remove(self) -> None:
        """Take the patch out of the model; calling it again does nothing."""
        self._hooks.close()
        if self._active:
            mark_patched(self.module, False)
        self._active, self._passes = False, {}

    def _begin(self, _decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the decoder: which rows are these, and where in their texts is this pass?"""
        call = dict(self._signature.bind_partial(*args, **kwargs).arguments)
        for name, parameter in self._signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                call |= call.pop(name, {})
        ids, cache = call.get("input_ids"), call.get("past_key_values")
        if ids is None:
            raise InputError("embeddings in place of input_ids", "ids, among which BOS can be told", "pass input_ids=")
        refuse_other_angles(self._lengths, call)
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

    def _hold(self, up: Float[Tensor, "batch pos column"], columns: slice, layer: int) -> Tensor | None:
        now = self._passes.get(threading.get_ident())
        if now is None:
            raise InputError(
                "a part of a patched model, run on its own", "the whole decoder", "call the model, or remove the patch"
            )
        index = torch.tensor(self._neurons[layer], device=up.device) - columns.start
        if int(index.min()) < 0 or int(index.max()) >= up.shape[-1]:  # the routed experts, whose neurons are not held
            return None
        values = up[..., index]
        level = now.rows.catch(layer, values, now.anchor_here.to(up.device))
        held = torch.where(now.edited.to(up.device)[..., None], level[:, None], values)
        edited = up.clone()
        edited[..., index] = held
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
        elif isinstance(part, SinkPatch) and not part.needs_start:
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


def _check_width(patch: Intervention, handles: PlainHandles) -> None:
    """Refuse layers and neurons that the model does not have, before it runs."""
    for part in patch.parts if isinstance(patch, Combined) else (patch,):
        if isinstance(part, Combined):
            _check_width(part, handles)
        elif isinstance(part, SinkPatch):
            part.check([columns_of(handles, layer)[1].stop for layer in range(len(handles.layers))])


@contextmanager
def intervened(model: Model, intervention: Intervention | None) -> Iterator[nn.Module]:
    """The plain Hugging Face module of a model, edited at all real positions of every call while the context is open.

    Rows may be padded on the right, with or without an attention mask, or on the left with one.  Keys and values may
    be cached, except where attention is moved.

    Args:
        model: the model; its plain view is what is edited and given.
        intervention: of ``when="all"``; ``None`` for the unchanged model.

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
    if not model.fast:
        raise InputError(
            f"{model.name} with {'processed weights' if model.processed else 'no plain view'}",
            "a model whose plain Hugging Face module mechrep can edit",
            "load it by name, or from a Hugging Face module, and keep its raw weights",
        )
    assert model.plain is not None
    parts = _parts(intervention)
    patches = tuple(part for part in parts if isinstance(part, SinkPatch))
    others = tuple(part for part in parts if not isinstance(part, SinkPatch))
    with ExitStack() as stack:
        if model.lengths is not None:
            look = partial(_look_at_lengths, model.lengths)
            stack.callback(model.plain.register_forward_pre_hook(look, with_kwargs=True).remove)
        if patches:
            stack.enter_context(PatchedModel(model, Combined(patches)))
        if others:
            edits = _WholePassEdits(model, Combined(others))
            stack.callback(model.plain.register_forward_pre_hook(edits.look, with_kwargs=True).remove)
            stack.enter_context(edits.applied())
        yield model.plain


def _look_at_lengths(rule: LengthRule, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    refuse_other_angles(rule, inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments)


def _parts(intervention: Intervention | None) -> tuple[Intervention, ...]:
    """What a sum is made of, one after the other."""
    if isinstance(intervention, Combined):
        return tuple(part for inner in intervention.parts for part in _parts(inner))
    return () if intervention is None else (intervention,)


class _WholePassEdits(EditTable):
    """One intervention on all rows of every pass; the first position is found in the pass and not known before."""

    def __init__(self, model: Model, intervention: Intervention) -> None:
        if intervention.needs_start or intervention.differs_by_text:
            given = "resampling by text" if intervention.differs_by_text else f"when={intervention.when!r}"
            raise InputError(
                f"an intervention with {given}",
                "one that is the same at every position of every text: the harness does not tell them apart",
                "build it with when='all' and another operation",
            )
        super().__init__(model, [intervention], [0], first_tokens=[0], starts=[0])
        self.moves_attention = any(site is Site.PATTERN for site, _ in self.tables)

    def _find_first_values(self, moving: set[int], first_tokens: Sequence[int], starts: Sequence[int]) -> None:
        """Nothing to compute: the first position is part of every pass.

        Raises:
            InputError: a model whose learned sinks take part of the first position's attention.
        """
        if reading_of(self.model).sinks:
            raise InputError(
                f"attention of {self.model.name} moved to the first position in passes of a harness",
                "a model without learned sinks, whose first position attends to itself alone",
                "use mechrep.generate or mechrep.interventions.apply.logits",
            )

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

    def _edit(self, activation: Float[Tensor, "batch pos unit"], columns: slice, place: Place) -> Tensor:
        if place[0] is not Site.PATTERN or self._mask is None:
            return super()._edit(activation, columns, place)
        there = activation.device
        factor, offset = (table[self._condition][:, None].to(there) for table in self.tables[place])
        first = activation[torch.arange(len(activation), device=there), self._first.to(there)][:, None]
        return torch.where(self._mask.to(there)[..., None], activation * factor + offset * first, activation)
