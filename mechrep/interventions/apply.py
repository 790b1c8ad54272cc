"""Applying interventions to the plain view: tables of factors and offsets for batches of mixed rows.

A text may come in pieces, and rows of many texts in one batch: :class:`HeldLevels` keeps every row's level of held
up-projections from the pass in which its anchor, the first token after BOS, went by.

Attention that is moved to the first position needs no pattern, which the plain view does not have: a head that attends
to position 0 alone gives ``v(0)``, and that is what it gives *at* position 0, where there is nothing else to attend to.
So ``z(t) <- z(0)`` of the same text.  Position 0 depends on nothing but the first token and what is edited there; its
``z`` is computed once for all rows that have both in common, and is at hand when decoding is far past it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mechrep.errors import InputError
from mechrep.interventions.hooks import Edits, Holds, Place, in_order
from mechrep.interventions.ops import Intervention
from mechrep.models.anatomy import Site
from mechrep.models.attention import computed_here, reading_of
from mechrep.models.model import Model
from mechrep.models.neurons import looking_at, refuse_routed


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
        if model.handles is not None:
            for layer in self.layers:
                refuse_routed(model.handles, layer, [n for holds in chosen for n in holds.get(layer, ())])
        device = conditions.device
        if self.layers and first_tokens is None:
            raise InputError(
                "neurons held at the level of the first token after BOS, in rows whose first tokens are unknown",
                "the first token of every row",
                "pass first_tokens=",
            )
        bos_id = model.bos_id
        bos = [int(bos_id is not None and token == bos_id) for token in first_tokens or ()]
        self.anchors: Int[Tensor, " row"] = torch.tensor(bos, dtype=torch.long, device=device)
        self.neurons: dict[int, Int[Tensor, " neuron"]] = {}
        self.ends: dict[int, tuple[int, int]] = {}  # the first and the last of these
        self.on: dict[int, Bool[Tensor, "condition neuron"]] = {}
        self.levels: dict[int, Float[Tensor, "one_more neuron"]] = {}
        for layer in self.layers:
            union = sorted({neuron for holds in chosen for neuron in holds.get(layer, ())})
            on = [[neuron in holds.get(layer, ()) for neuron in union] for holds in ({}, *chosen)]
            self.neurons[layer] = torch.tensor(union, device=device)
            self.ends[layer] = union[0], union[-1]
            self.on[layer] = torch.tensor(on, device=device)
            self.levels[layer] = torch.zeros(len(conditions) + 1, len(union), dtype=model.dtype, device=device)
        self.holding: Bool[Tensor, " condition"] = torch.tensor([False, *map(bool, chosen)], device=device)
        # One place more than there are rows: there goes what rows without an anchor in a pass would be told.
        self.known: Bool[Tensor, " one_more"] = torch.zeros(len(conditions) + 1, dtype=torch.bool, device=device)
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
        self._target = rows.where(self._here.any(1), len(self.conditions))
        self.known[self._target] = True
        # A pass of one token, a step of decoding, comes after a prefix: it asks the device for nothing.
        if mask.shape[1] > 1 and bool(
            (self._edited.any(1) & self.holding[self.conditions[rows]] & ~self.known[rows]).any()
        ):
            raise InputError(
                "rows whose first token after BOS went by unseen",
                "every row from its first token after BOS on",
                "run the whole text, or what comes before the edit, through the same table",
            )

    def apply(
        self, up: Float[Tensor, "batch pos column"], layer: int, columns: slice
    ) -> Float[Tensor, "batch pos column"] | None:
        """Catch the levels of anchors in this pass; hold what is to be held, if it is among these columns."""
        first, last = self.ends[layer]
        if first < columns.start or last >= columns.start + up.shape[-1]:
            return None
        index, rows = self.neurons[layer].to(up.device) - columns.start, self._rows
        values, here = up[..., index], self._here.to(up.device)
        at_anchor = values[torch.arange(len(values), device=up.device), here.int().argmax(1)]
        self.levels[layer][self._target] = at_anchor.to(self.levels[layer])
        active = self._edited[..., None] & self.on[layer][self.conditions[rows]][:, None]
        edited = up.clone()
        edited[..., index] = torch.where(active.to(up.device), self.levels[layer][rows][:, None].to(up), values)
        return edited


def refuse_gated(model: Model) -> None:
    """Refuse to move attention where heads do not read values by their pattern alone.

    Raises:
        InputError: the values pass a gate or a norm of the model's own.
    """
    seen = reading_of(model)
    if seen.rows and not seen.plain:
        raise InputError(
            f"attention of {model.name} ({model.anatomy.architecture}) moved to the first position",
            "heads that give their pattern times the values: behind these stands a gate or a norm",
            "zero or mean-ablate the heads instead",
        )


_FIRST_TOKENS_PER_BATCH = 256
_KEPT = 2**18  # numbers of a place that are looked up once for several steps: more would take memory for all places
Change = Callable[[Tensor, slice], Tensor]


class EditTable:
    """The edits of many rows at once: one row of a batch, one condition.

    Equal interventions share a condition, so a thousand texts under ten interventions cost ten rows of table.

    Args:
        model: the model whose plain view will be edited.
        interventions: one per row, or ``None`` for an unchanged row.
        texts: number of the text in each row (for resampling).
        first_tokens: the id at position 0 of each row; needed where attention is moved there, and where neurons are
            held at the level of the first token after BOS.
        starts: first edited position of each row, which must be where the masks of :meth:`aim` begin; needed with
            ``first_tokens``, because an edit of position 0 changes what is attended to there.

    Raises:
        InputError: units or tables that are not the model's, attention moved without ``first_tokens`` and ``starts``,
            or (at the latest by :meth:`applied`) a model without a plain view.
    """

    def __init__(
        self,
        model: Model,
        interventions: Sequence[Intervention | None],
        texts: Sequence[int],
        *,
        first_tokens: Sequence[int] | None = None,
        starts: Sequence[int] | None = None,
    ) -> None:
        self.model = model
        keys: dict[tuple[int, int], int] = {}
        chosen: list[Edits] = []
        holds: list[Holds] = []
        conditions = []
        for intervention, text in zip(interventions, texts, strict=True):
            if intervention is None:
                conditions.append(0)
                continue
            key = (id(intervention), text if intervention.differs_by_text else -1)
            if key not in keys:
                chosen.append(intervention.edits(model.anatomy, text))
                holds.append(intervention.holds(model.anatomy))
                keys[key] = len(chosen)
            conditions.append(keys[key])
        self.conditions: Int[Tensor, " row"] = torch.tensor(conditions, device=model.device)
        self.tables: dict[Place, tuple[Tensor, Tensor]] = self._tables(chosen)
        self.held = HeldLevels(model, holds, self.conditions, first_tokens)
        self._condition: Tensor = self.conditions[:0]
        self._first: Tensor = self.conditions[:0]
        self._mask: Bool[Tensor, "batch pos"] | None = None
        self._chosen: dict[tuple[Place, Any, Any], tuple[Tensor, Tensor]] = {}  # by place and columns
        self._first_numbers: Int[Tensor, " row"] = torch.zeros_like(self.conditions)
        self._first_values: dict[int, Float[Tensor, "first unit"]] = {}
        moving = {number for number, edits in enumerate(chosen, 1) if any(site is Site.PATTERN for site, _ in edits)}
        if moving:
            refuse_gated(model)
            if first_tokens is None or starts is None:
                raise InputError(
                    "attention moved to the first position of rows whose first tokens are unknown",
                    "the first token and the first edited position of every row",
                    "pass first_tokens= and starts=",
                )
            self._find_first_values(moving, first_tokens, starts)

    def _tables(self, chosen: Sequence[Edits]) -> dict[Place, tuple[Tensor, Tensor]]:
        """Factors and offsets ``[condition unit]`` of every edited place; condition 0 changes nothing."""
        like: dict[str, Any] = {"device": self.model.device, "dtype": self.model.dtype}
        tables: dict[Place, tuple[Tensor, Tensor]] = {}
        for place in in_order({place: None for edits in chosen for place in edits}):
            # What z is multiplied by is given per head, and the plain view has the heads side by side.
            width = self.model.anatomy.d_head if place[0] is Site.PATTERN else 1
            here = [(number, edits[place]) for number, edits in enumerate(chosen, 1) if place in edits]
            size = (len(chosen) + 1, len(here[0][1].factor) * width)
            tables[place] = factor, offset = torch.ones(size, **like), torch.zeros(size, **like)
            for number, edit in here:
                factor[number] = edit.factor.repeat_interleave(width).to(factor)
                offset[number] = edit.offset.repeat_interleave(width).to(offset)
        return tables

    @torch.no_grad()
    def _find_first_values(self, moving: set[int], first_tokens: Sequence[int], starts: Sequence[int]) -> None:
        """Compute ``z(0)``, the value of position 0, for every first token and condition in which it is needed."""
        firsts: dict[tuple[int, int], int] = {}
        numbers = []
        for token, start, condition in zip(first_tokens, starts, self.conditions.tolist(), strict=True):
            first = (token, condition if start <= 0 else 0)
            numbers.append(firsts.setdefault(first, len(firsts)) if condition in moving else 0)
        self._first_numbers = torch.tensor(numbers, device=self.model.device)
        tokens, conditions = torch.tensor(list(firsts), device=self.model.device).unbind(-1)
        kept: dict[int, list[Tensor]] = {layer: [] for site, layer in self.tables if site is Site.PATTERN}

        seen = reading_of(self.model)

        def keep(z: Tensor, _columns: slice, layer: int) -> Tensor:
            if not seen.sinks:
                kept[layer].append(z[:, 0].clone())
                return z  # at position 0 attention is where it is moved to
            factor, offset = (
                table[self._condition][:, None].to(z.device) for table in self.tables[Site.PATTERN, layer]
            )
            return z * factor + offset * kept[layer][-1][:, None]

        def keep_value(value: Tensor, layer: int) -> None:
            repeated = value[:, 0].repeat_interleave(self.model.anatomy.n_heads // value.shape[2], dim=1)
            kept[layer].append(repeated.flatten(1))

        with ExitStack() as stack:
            stack.enter_context(
                self._hooked(
                    lambda place: partial(keep, layer=place[1]) if place[0] is Site.PATTERN else self._at(place)
                )
            )
            if seen.sinks:  # which take part of position 0's attention too: there z(0) is less than v(0)
                stack.enter_context(computed_here(self.model, None, keep_value, layers=list(kept)))
            for some in torch.arange(len(tokens), device=tokens.device).split(_FIRST_TOKENS_PER_BATCH):
                self._condition = conditions[some]
                self._mask = torch.ones_like(self._condition[:, None], dtype=torch.bool)
                self._chosen.clear()
                assert self.model.plain is not None
                self.model.plain(input_ids=tokens[some][:, None], use_cache=False)
        self._first_values = {layer: torch.cat(values) for layer, values in kept.items()}
        self.rest()

    def __bool__(self) -> bool:
        return bool(self.tables or self.held.layers)

    def aim(
        self,
        rows: Int[Tensor, " batch"],
        mask: Bool[Tensor, "batch pos"],
        positions: Int[Tensor, "batch pos"] | None = None,
    ) -> None:
        """Say which rows the next forward pass holds and at which of its positions their edits are active.

        Args:
            rows: the row of the table that is in each row of the batch.
            mask: where edits are active.
            positions: place of every token in its text, -1 where there is none; needed where neurons are held at the
                level of the first token after BOS, which must have been in this pass or an earlier one.
        """
        self._condition, self._first, self._mask = self.conditions[rows], self._first_numbers[rows], mask
        if mask.shape[1] == 1:  # a row that is not edited here is one under condition 0, which changes nothing
            self._condition = self._condition * mask[:, 0]
        self._chosen.clear()
        self.held.aim(rows, mask, positions)

    def changes(self, row: int) -> bool:
        """Whether anything is edited or held in this row."""
        return int(self.conditions[row]) > 0

    def holds(self, row: int) -> bool:
        """Whether neurons are held in this row: then the pass over its first token after BOS must be aimed."""
        return bool(self.held.layers) and bool(self.held.holding[self.conditions[row]])

    def rest(self) -> None:
        """Edit nothing until :meth:`aim` is called again."""
        self._mask = None

    def _at(self, place: Place) -> Change:
        return partial(self._edit, place=place)

    def _edit(self, activation: Float[Tensor, "batch pos unit"], columns: slice, place: Place) -> Tensor:
        """The edit of these columns of a place."""
        if self._mask is None:
            return activation
        factor, offset = self._chosen_at(place, columns, activation.device)
        edited = torch.addcmul(offset, activation, factor)
        if self._mask.shape[1] == 1:
            return edited
        return torch.where(self._mask.to(activation.device)[..., None], edited, activation)

    def _chosen_at(self, place: Place, columns: slice, there: torch.device) -> tuple[Tensor, Tensor]:
        """Factors and offsets ``[batch 1 unit]`` of the rows that were aimed at; small ones are kept until the next."""
        key = place, columns.start, columns.stop
        if key in self._chosen:
            return self._chosen[key]
        factor, offset = (table[:, columns].index_select(0, self._condition)[:, None] for table in self.tables[place])
        if place[0] is Site.PATTERN:
            first = self._first_values[place[1]][:, columns]
            offset = offset * first[self._first.to(first.device)][:, None].to(offset.device)
        factor, offset = factor.to(there), offset.to(there)  # layers of a model may lie on several devices
        if factor.numel() <= _KEPT:
            self._chosen[key] = factor, offset
        return factor, offset

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While open, forward passes of the plain view are edited as :meth:`aim` last said."""
        with ExitStack() as stack:
            if self.held.layers:
                self._check_view()
                assert self.model.plain is not None and self.model.handles is not None
                # First, so that without a gate the activation is held before it is edited.
                for layer in self.held.layers:
                    look = partial(self._hold, layer=layer)
                    stack.enter_context(looking_at(self.model.plain, self.model.handles, Site.UP_PROJ, layer, look))
            stack.enter_context(self._hooked(self._at))
            yield

    def _hold(self, up: Float[Tensor, "batch pos column"], columns: slice, layer: int) -> Tensor | None:
        return None if self._mask is None else self.held.apply(up, layer, columns)

    def _check_view(self) -> None:
        if self.model.handles is None:
            raise InputError(
                "the plain view of " + self.model.name, "a model that has one", "use view='transformer_lens'"
            )

    @contextmanager
    def _hooked(self, change_at: Callable[[Place], Change]) -> Iterator[None]:
        if self.tables:
            self._check_view()
        plain = self.model.plain  # asked for once: each time it is looked at whole
        with ExitStack() as stack:
            for place in self.tables:
                stack.enter_context(self._registered(plain, place, change_at(place)))
            yield

    def _registered(self, plain: nn.Module | None, place: Place, change: Change) -> AbstractContextManager[Any]:
        """The hook that makes one place's edits, as a context."""
        site, layer = place
        handles = self.model.handles
        assert handles is not None and plain is not None
        if site in (Site.GATE_ACT, Site.MLP_POST):
            return looking_at(plain, handles, site, layer, change)
        output = handles.attention_outputs[layer]
        if site not in (Site.Z, Site.PATTERN) or output is None:
            raise InputError(
                f"an edit at {site.value} of layer {layer}", "gate_act, mlp_post, z or pattern", "choose one of these"
            )

        def edit_input(_module: Any, args: Any) -> tuple[Any, ...]:
            return (change(args[0], slice(None)), *args[1:])

        stack = ExitStack()
        stack.callback(output.register_forward_pre_hook(edit_input).remove)
        return stack


def first_edited(
    frame: pd.DataFrame, prompt_lengths: Sequence[int], interventions: Sequence[Intervention | None]
) -> list[int]:
    """The first edited position of every text, by the ``when`` of its intervention: one rule for writing and reading.

    Args:
        frame: facts about the texts; ``onset`` where one is known.
        prompt_lengths: tokens of each text's prompt.
        interventions: of each text; ``None`` changes nothing.

    Raises:
        InputError: ``"from_onset"`` for a text without an onset.

    Example:
        >>> from mechrep.interventions import Heads
        >>> frame = pd.DataFrame({"id": ["loop", "other"], "onset": [7, None]})
        >>> auto, last = Heads("L0H0"), Heads("L0H0", when="last")
        >>> first_edited(frame, [5, 5], [auto, auto]), first_edited(frame, [5, 5], [last, None])
        ([6, 0], [4, 0])
    """
    onsets = frame["onset"].tolist() if "onset" in frame else [None] * len(frame)
    starts = []
    for number, (onset, length, one) in enumerate(zip(onsets, prompt_lengths, interventions, strict=True)):
        before = None if onset is None or pd.isna(onset) else max(0, int(onset) - 1)
        when = "all" if one is None else one.when
        if when == "from_onset" and before is None:
            raise InputError(
                f"when='from_onset' for text {frame['id'].iloc[number]!r}, which has no onset",
                "texts in which a cycle was found",
                "call corpus.with_cycles(), or use when='auto', which edits such texts everywhere",
            )
        if when in ("auto", "from_onset"):
            starts.append(before or 0)
        else:
            starts.append(length - 1 if when == "last" else 0)
    return starts


@contextmanager
def applied(
    model: Model,
    intervention: Intervention | None,
    tokens: Int[Tensor, "batch pos"],
    *,
    starts: Int[Tensor, " batch"] | None = None,
    texts: Sequence[int] | None = None,
    view: str = "auto",
) -> Iterator[None]:
    """While open, one forward pass over these right-padded tokens, on the chosen view, runs under an intervention.

    Args:
        model: the model.
        intervention: ``None`` changes nothing.
        tokens: of the pass.
        starts: first edited position of each row; not needed for ``when="all"`` and ``"auto"``.
        texts: number of the text in each row (default 0, 1, ...), which decides what resampling draws.
        view: ``"auto"``: the one that :func:`logits` takes; or one of the two by name.

    Raises:
        InputError: another ``when`` without ``starts``, components that the model does not have.
    """
    if intervention is None:
        yield
        return
    if starts is None and intervention.needs_start:
        raise InputError(
            f"when={intervention.when!r} without starts", "the first edited position of each row", "pass it"
        )
    begins = torch.zeros(len(tokens), dtype=torch.long) if starts is None else starts.cpu()
    if view == "transformer_lens" or (view == "auto" and not model.fast):
        with model.hooks(fwd_hooks=intervention.hooks(model, begins, texts=texts)):
            yield
        return
    rows = torch.arange(len(tokens), device=tokens.device)
    numbers = rows.tolist() if texts is None else texts
    table = EditTable(
        model, [intervention] * len(tokens), numbers, first_tokens=tokens[:, 0].tolist(), starts=begins.tolist()
    )
    positions = torch.arange(tokens.shape[1], device=tokens.device)[None].expand(len(tokens), -1)
    table.aim(rows, positions >= begins.to(tokens.device)[:, None], positions)
    with table.applied():
        yield


@torch.no_grad()
def logits(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    intervention: Intervention | None = None,
    *,
    starts: Int[Tensor, " batch"] | None = None,
    lengths: Int[Tensor, " batch"] | None = None,
    texts: Sequence[int] | None = None,
) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits of right-padded tokens, under an intervention if one is given: on the fast view where there is one.

    Args:
        model: the model.
        tokens: ids.
        intervention: what the model is under.
        starts: first edited position of each row; not needed for ``when="all"`` and ``"auto"``.
        lengths: of the texts in the rows; needed where a model's positions depend on the length of the text.
        texts: number of the text in each row (default 0, 1, ...), which decides what resampling draws.

    Raises:
        InputError: as :func:`applied`; lengths that are needed and not given.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> tokens = torch.tensor([[0, 5, 6, 7]])
        >>> without = logits(model, tokens, mechrep.Heads([(0, 1)], when="all"))
        >>> bool((without != logits(model, tokens)).any())
        True
    """
    with ExitStack() as stack:
        if lengths is not None:
            stack.enter_context(model.each_alone(lengths))
        if model.lengths is not None:
            model.lengths.check(tokens)
        stack.enter_context(applied(model, intervention, tokens, starts=starts, texts=texts))
        return model.plain_logits(tokens) if model.fast else model.tl(tokens)


def fingerprint_of(model: Model, interventions: Sequence[Intervention | None]) -> str:
    """Fingerprint of everything that interventions change in a model, of their order, and of where they begin."""
    digest = hashlib.sha256()
    for intervention in interventions:
        if intervention is None:
            digest.update(b"none")
            continue
        for text in (0, 1) if intervention.differs_by_text else (0,):
            edits = intervention.edits(model.anatomy, text)
            for (site, layer), edit in sorted(edits.items(), key=lambda item: (item[0][0].value, item[0][1])):
                digest.update(f"{site.value} {layer}".encode())
                for numbers in (edit.factor, edit.offset):
                    digest.update(numbers.double().cpu().contiguous().numpy().tobytes())
        digest.update(repr((sorted(intervention.holds(model.anatomy).items()), intervention.when)).encode())
    return digest.hexdigest()[:24]
