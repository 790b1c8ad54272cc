"""The cache of slots: what the rows of a decoding batch keep of their earlier tokens while rows come and go.

There is a fixed number of slots over one preallocated buffer.  All rows write their newest token into the same column,
so one decoding step is one ordinary forward pass.  A row that enters late is laid to the *left* of the current column;
the columns before its first token are masked.  Nothing is ever concatenated: a step writes one column, and attention
reads a view.

Some layers keep a state in place of keys and values (gated delta nets, Mamba, short convolutions), or both.  A state
has no columns: it is copied into the row's slot, and a row that begins with nothing begins with zeros.  A state is what
the *last* token left, so that prefixes computed together must be of one length (:func:`has_states`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from mechrep.models.model import Model


class SlotLayer(DynamicLayer):
    """One layer's keys and values ``[slot kv_head column d_head]``, seen through the window that is in use."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.first, self.next = capacity, 0, 0

    def allocate(self, like: Float[Tensor, "row kv_head pos d_head"], like_values: Tensor, slots: int) -> None:
        """Make room, once, for tensors such as these."""
        self.keys = like.new_zeros(slots, like.shape[1], self.capacity, like.shape[3])
        self.values = like_values.new_zeros(slots, like_values.shape[1], self.capacity, like_values.shape[3])
        self.dtype, self.device, self.is_initialized = like.dtype, like.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the newest column; hand back every column of the window, the newest included."""
        if not self.is_initialized:
            self.allocate(key_states, value_states, key_states.shape[0])
        assert self.keys is not None and self.values is not None
        self.keys.narrow(2, self.next, 1).copy_(key_states)
        self.values.narrow(2, self.next, 1).copy_(value_states)
        first, width = self.first, self.next + 1 - self.first
        return self.keys.narrow(2, first, width), self.values.narrow(2, first, width)

    def get_seq_length(self) -> int:
        """Columns in the window before the newest."""
        return self.next - self.first

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of what attention will see."""
        return self.get_seq_length() + query_length, 0


class SlotState(LinearAttentionLayer):
    """The states of one layer without attention ``[slot ...]``."""

    def take(self, slots: list[int], given: LinearAttentionLayer, rows: list[int], n_slots: int) -> None:
        """Copy the states of some rows into slots."""
        for number in range(self.number_of_states):
            pairs = (
                (self.conv_states, given.conv_states, self.is_conv_states_initialized),
                (self.recurrent_states, given.recurrent_states, self.is_recurrent_states_initialized),
            )
            for mine, theirs, ready in pairs:
                state = theirs[number]
                if state is not None:
                    kept = mine[number]
                    if kept is None:
                        kept = mine[number] = state.new_zeros(n_slots, *state.shape[1:])
                        ready[number] = True
                    kept[slots] = state[rows]
            self.conv_kernel_size[number] = given.conv_kernel_size[number]
            self.has_previous_state[number] = given.has_previous_state[number]

    def clear(self, slots: list[int]) -> None:
        """Slots for rows that begin with nothing."""
        for state in self.states():
            state[slots] = 0

    def select(self, index: Int[Tensor, " kept"]) -> None:
        """Drop the other slots."""
        for kept in (self.conv_states, self.recurrent_states):
            for number, state in kept.items():
                kept[number] = None if state is None else state[index.to(state.device)]

    def states(self) -> Iterator[Tensor]:
        """Those that are there already."""
        both = (*self.conv_states.values(), *self.recurrent_states.values())
        return (state for state in both if state is not None)


class SlotBoth(SlotState, SlotLayer):  # pyright: ignore[reportIncompatibleMethodOverride] - as in transformers
    """A layer with attention and a state beside it."""

    def __init__(self, capacity: int, number_of_states: int = 1) -> None:
        SlotLayer.__init__(self, capacity)
        SlotState.__init__(self, number_of_states)


class SlotCache:
    """The slots of all layers, and where each row begins.

    Args:
        n_layers: layers with keys and values, where ``kinds`` does not say more.
        slots: rows at a time.
        capacity: columns.
        device: where masks are made.
        kinds: what transformers keeps of each layer; by default keys and values of all.

    Attributes:
        starts: first column of each slot's row; equal to :attr:`column` for an empty slot.
        column: where the next token of every row is written.
        padded: whether columns of the window are masked in some slots; else no mask is needed.
    """

    def __init__(
        self, n_layers: int, slots: int, capacity: int, device: torch.device, kinds: Sequence[Any] = ()
    ) -> None:
        made = [_slot_layer(kind, capacity) for kind in kinds] or [SlotLayer(capacity) for _ in range(n_layers)]
        self.layers = [layer for layer in made if isinstance(layer, SlotLayer)]
        self.states = [layer for layer in made if isinstance(layer, SlotState)]
        self.hf = Cache(layers=made)
        self.capacity, self.column = capacity, 0
        self.starts: Int[Tensor, " slot"] = torch.zeros(slots, dtype=torch.long, device=device)
        self.empty: Bool[Tensor, " slot"] = torch.ones(slots, dtype=torch.bool, device=device)
        self._first, self.padded = 0, True
        self._mask: Int[Tensor, "slot column"] | None = None  # of the window, with the columns that are still to come

    def enter(self, slots: list[int], prefix: Any, rows: list[int], lengths: list[int]) -> None:
        """Lay computed prefixes into slots, ending just before the current column.

        Args:
            slots: where to.
            prefix: Hugging Face cache of a right-padded batch of prefixes (``None`` if all are empty); of prefixes of
                one length where layers keep states.
            rows: row of ``prefix`` for each slot (several slots may share one).
            lengths: tokens of each slot's prefix.
        """
        longest = max(lengths, default=0)
        if self.column < longest:
            self._shift(longest - self.column)
        for state in self.states if prefix is None else ():
            state.clear(slots)
        for layer, given in zip(self.hf.layers, () if prefix is None else prefix.layers, strict=False):
            if isinstance(layer, SlotState):
                layer.take(slots, given, rows, len(self.starts))
            if isinstance(layer, SlotLayer) and given.keys is not None:
                self._lay(layer, given, list(zip(slots, rows, lengths, strict=True)))
        self.starts[slots] = torch.tensor([self.column - length for length in lengths], device=self.starts.device)
        self.empty[slots] = False
        self._mask = None

    def _lay(self, layer: SlotLayer, given: Any, places: list[tuple[int, int, int]]) -> None:
        """Lay keys and values into (slot, from row, of length), ending just before the current column."""
        if not layer.is_initialized:
            layer.allocate(given.keys, given.values, len(self.starts))
        assert layer.keys is not None and layer.values is not None
        for slot, row, length in places:
            here = slice(self.column - length, self.column)
            layer.keys[slot, :, here] = given.keys[row, :, :length]
            layer.values[slot, :, here] = given.values[row, :, :length]

    def leave(self, slots: list[int]) -> None:
        """Empty these slots."""
        self.empty[slots] = True
        self._mask = None

    def make_room(self, steps: int) -> None:
        """Make sure that columns are free, and narrow the window: what has to be asked of the device is asked here.

        Args:
            steps: so many come before a row enters or leaves.
        """
        self.starts[self.empty] = self.column
        self._first, last = torch.stack(self.starts.aminmax()).tolist()
        self.padded = self._first != last
        if self.column + steps > self.capacity:
            self._shift(-self._first)
            self._first = 0
        for layer in self.layers:  # transformers asks the device whether a mask masks anything, but of such layers
            layer.is_compileable = self.padded
        columns = torch.arange(self._first, self.column + steps, device=self.starts.device)
        self._mask = (columns[None] >= self.starts[:, None]).long()

    def before_step(self) -> Int[Tensor, "slot column"]:
        """Show the window to all layers, and give its mask: 1 where a column, the newest included, is the row's."""
        width = self.column + 1 - self._first
        if self._mask is None or self._mask.shape[1] < width:
            self.make_room(1)
            width = self.column + 1 - self._first
        assert self._mask is not None
        for layer in self.layers:
            layer.first, layer.next = self._first, self.column
        return self._mask[:, :width]

    def after_step(self) -> None:
        """The newest column now belongs to the rows."""
        self.column += 1

    def keep(self, slots: list[int]) -> None:
        """Drop all other slots, to stop computing rows that nobody needs."""
        index = torch.tensor(slots, device=self.starts.device)
        self.starts, self.empty, self._mask = self.starts[index], self.empty[index], None
        for state in self.states:
            state.select(index)
        for layer in self.layers:
            if layer.is_initialized:
                assert layer.keys is not None and layer.values is not None
                here = index.to(layer.keys.device)
                layer.keys, layer.values = layer.keys[here], layer.values[here]

    def _shift(self, by: int) -> None:
        """Move all rows ``by`` columns to the right (left if negative)."""
        old, new = slice(0, self.column), slice(by, self.column + by)
        if by < 0:
            old, new = slice(-by, self.column), slice(0, self.column + by)
        for layer in self.layers:
            if layer.is_initialized:
                assert layer.keys is not None and layer.values is not None
                layer.keys[:, :, new] = layer.keys[:, :, old].clone()
                layer.values[:, :, new] = layer.values[:, :, old].clone()
        self.starts += by
        self.column += by


def _slot_layer(kind: Any, capacity: int) -> Any:
    """A layer of slots for what transformers keeps of a layer."""
    attends = isinstance(kind, CacheLayerMixin)
    if isinstance(kind, LinearAttentionCacheLayerMixin):
        return SlotBoth(capacity, kind.number_of_states) if attends else SlotState(kind.number_of_states)
    return SlotLayer(capacity) if attends else DummyLayer()


def _whole_layer(kind: Any) -> Any:
    """A layer of transformers' cache that keeps all columns, of sliding windows too."""
    attends = isinstance(kind, CacheLayerMixin)
    if isinstance(kind, LinearAttentionCacheLayerMixin):
        made = LinearAttentionAndFullAttentionLayer if attends else LinearAttentionLayer
        return made(kind.number_of_states)
    return DynamicLayer() if attends else DummyLayer()


def kept_by(model: Model) -> list[Any]:
    """What transformers keeps of every layer of the plain view: keys and values, states, both or nothing."""
    return DynamicCache(config=model.config).layers


def has_states(model: Model) -> bool:
    """Whether some layers of the plain view carry a state from token to token (Mamba, gated delta nets, convolutions).

    Example:
        >>> import mechrep
        >>> has_states(mechrep.load_model("mechrep-tiny"))
        False
    """
    return any(isinstance(kind, LinearAttentionCacheLayerMixin) for kind in kept_by(model))


def shares_keys(model: Model) -> bool:
    """Whether some layers with attention read the keys and values of a layer below them (Gemma 3n, Gemma 4).

    Example:
        >>> import mechrep
        >>> shares_keys(mechrep.load_model("mechrep-tiny"))
        False
    """
    config, kinds = model.config, kept_by(model)
    own = [isinstance(kinds[layer], CacheLayerMixin) for layer in model.anatomy.attention_layers]
    return bool(getattr(config, "num_kv_shared_layers", 0)) or not all(own)


def prefill(model: Model, prefixes: Sequence[Sequence[int]]) -> Cache:
    """What is kept of right-padded prefixes: causal attention leaves the padding out of what is read later.

    Args:
        model: the model.
        prefixes: ids, at least one each; of one length where layers keep states, which padding would go into.
    """
    plain = model.plain  # once: each time it is asked for, its parts are looked at
    assert plain is not None
    tokens = torch.zeros(len(prefixes), max(map(len, prefixes)), dtype=torch.long)
    for row, prefix in enumerate(prefixes):
        tokens[row, : len(prefix)] = torch.tensor(prefix)
    cache = Cache(layers=[_whole_layer(kind) for kind in kept_by(model)])
    plain(input_ids=tokens.to(model.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def step(
    plain: Any, cache: SlotCache, tokens: Int[Tensor, " slot"], positions: Int[Tensor, " slot"]
) -> Float[Tensor, "slot d_vocab"]:
    """Feed one token to every slot, and give the logits of the next.

    Args:
        plain: the plain view of the model, which looks at its parts each time that a model is asked for it.
        cache: its slots.
        tokens: one per slot.
        positions: of these tokens in their texts.
    """
    mask = cache.before_step()
    options = {"position_ids": positions[:, None]} if _takes_positions(type(plain)) else {}
    logits = plain(
        input_ids=tokens[:, None],
        attention_mask=mask if cache.padded else None,
        past_key_values=cache.hf,
        use_cache=True,
        **options,
    ).logits[:, -1]
    cache.after_step()
    return logits


@functools.cache
def _takes_positions(kind: type) -> bool:
    return "position_ids" in inspect.signature(kind.forward).parameters


# -- does it work? ------------------------------------------------------------------------------------------------

_kept: WeakKeyDictionary[Model, str] = WeakKeyDictionary()
_PROBE, _STEPS, _BEGIN = 12, 4, (8, 5)
_SAME = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1.5e-1}
# What a family raises whose cache is of another kind.
UNLIKE = (IndexError, KeyError, AttributeError, TypeError, ValueError, RuntimeError, NotImplementedError)


@torch.no_grad()
def why_not_kept(model: Model) -> str:
    """Why this model cannot go on from what is kept of earlier tokens, in a sentence; nothing where it can.

    Found by trying, once per model: two short rows beside each other go on from slots, and have to get the logits that
    passes over the whole rows give.

    Args:
        model: the model.

    Example:
        >>> import mechrep
        >>> why_not_kept(mechrep.load_model("mechrep-tiny"))
        ''
    """
    if model not in _kept or model.steered:  # hooks of the user's own come and go
        _kept[model] = _try(model)
    return _kept[model]


def _try(model: Model) -> str:
    longest = model.anatomy.n_ctx if model.lengths is None else min(model.anatomy.n_ctx, model.lengths.switch)
    if longest < _PROBE:
        return ""
    tokens = model.probe_tokens(_PROBE)
    plain = model.plain  # once: each time it is asked for, its parts are looked at
    assert plain is not None
    whole = plain(input_ids=tokens, use_cache=False).logits
    try:
        found = _from_slots(model, tokens.tolist())
    except UNLIKE as error:
        return f"what its layers keep is of another kind ({type(error).__name__}: {error})"
    places = torch.tensor([range(begin, begin + _STEPS) for begin in _BEGIN], device=whole.device)
    right = whole[torch.arange(len(_BEGIN), device=whole.device)[:, None], places]
    off = (found - right).abs().amax(-1).float() / right.abs().amax().float().clamp_min(1e-6)
    wrong = float(off.median())  # one token may be sent to another expert by rounding
    if not wrong <= _SAME.get(model.dtype, 1e-3):
        return f"from what its layers keep it computes something else (logits off by {wrong:.2g})"
    return ""


def _from_slots(model: Model, rows: list[list[int]]) -> Float[Tensor, "slot step d_vocab"]:
    """Logits of some tokens of each row, from slots; each row begins at another column."""
    cache = SlotCache(model.anatomy.n_layers, len(rows), _PROBE, model.device, kept_by(model))
    for slot, begin in enumerate(_BEGIN):
        cache.enter([slot], prefill(model, [rows[slot][:begin]]), [0], [begin])
    found = []
    places = torch.tensor(_BEGIN, device=model.device)
    for number in range(_STEPS):
        tokens = torch.tensor(
            [row[begin + number] for row, begin in zip(rows, _BEGIN, strict=True)], device=model.device
        )
        found.append(step(model.plain, cache, tokens, places + number))
    return torch.stack(found, 1)
