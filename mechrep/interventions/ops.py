"""What to do to a model, as frozen values with no model inside; two compose with ``+``.

Every operation (:class:`Op`) is ``a <- a * factor + offset`` with its own factor and offset per unit.  Writing all of
them in this one form is what lets a batch hold a different operation in every row.  A unit is a neuron, with one number
as its activation, or an attention head, with a vector ``[d_head]``.

* :class:`Neurons`, :class:`Heads`: one operation on a set of units.
* :class:`SinkPatch`: repeated tokens no longer turn into attention sinks, and BOS stays one.
"""

from __future__ import annotations

import hashlib
import html
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechrep.errors import InputError
from mechrep.guards import Seed, guarded
from mechrep.interventions.hooks import (
    Edit,
    Edits,
    Holds,
    Hook,
    Mask,
    When,
    check_when,
    hold_hooks,
    in_order,
    site_hooks,
)
from mechrep.models.anatomy import Anatomy, Site
from mechrep.models.model import Model
from mechrep.models.units import check_number, check_unit, expert_unit
from mechrep.notation import checked_units, listed_units, neurons_of_one_layer


class Intervention(ABC):
    """A frozen description of what to change in a model; add two to apply both.

    Attributes:
        when: ``"auto"``: in a text with an onset as ``"from_onset"``, in others as ``"all"``; ``"all"`` positions;
            ``"last"``: from the prompt's last position on, that is at the newest position of every decoding step;
            ``"from_onset"``: from the position that predicts the onset token on, and no text without one.
    """

    when: When

    def _repr_html_(self) -> str:
        return f"<code>{html.escape(repr(self))}</code>"

    @property
    def needs_start(self) -> bool:
        """Whether somebody must say where it begins; without a word it is active at all positions."""
        return self.when not in ("all", "auto")

    @abstractmethod
    def edits(self, anatomy: Anatomy, text: int = 0) -> Edits:
        """The affine edits for the text with this number (only resampling depends on it)."""

    @property
    @abstractmethod
    def differs_by_text(self) -> bool:
        """Whether two texts get different edits."""

    def holds(self, anatomy: Anatomy) -> Holds:
        """Neurons whose up-projection is held at the level of the text's first token after BOS; most hold none."""
        return {}

    @guarded
    def __add__(self, other: Intervention) -> Intervention:
        """Both interventions, this one first."""
        return Combined((self, other))

    @guarded
    def hooks(
        self,
        model: Model,
        starts: Int[Tensor, " batch"] | None = None,
        anchors: Int[Tensor, " batch"] | None = None,
        texts: Sequence[int] | None = None,
    ) -> list[Hook]:
        """TransformerLens hooks for ``run_with_hooks``, for full forward passes (no cache).

        Args:
            model: the model that will run.
            starts: first edited position of each row; not needed for ``"all"`` and ``"auto"``.  Without it, ``"last"``
                edits the last position of every call, which is right only where each call brings one new token.
            anchors: for neurons held at the level of the first token after BOS: its position in each row.  By
                default 1 in rows whose first token is BOS and 0 in others; give them where rows are padded on the left.
            texts: number of the text in each row (default 0, 1, ...), which decides what resampling draws.

        Raises:
            InputError: ``when="from_onset"`` without ``starts``, resampling without ``starts`` or ``texts``, or units
                that the model does not have.
        """
        if self.when == "from_onset" and starts is None:
            raise InputError(
                "when='from_onset' without starts", "the first edited position of each row", "pass starts="
            )
        numbers: Sequence[int] = [0]
        if self.differs_by_text:
            if texts is None and starts is None:
                raise InputError("resampling without starts", "the number of rows, through starts", "pass starts=")
            numbers = texts if texts is not None else range(len(starts))  # pyright: ignore[reportArgumentType]
        per_text = [self.edits(model.anatomy, text) for text in numbers]
        where = Mask(self.when, starts)
        made = hold_hooks(model, self.holds(model.anatomy), where.choose, anchors)
        for place in in_order(per_text[0]):
            made += site_hooks(model, place, [edits[place] for edits in per_text], where)
        return made


_SHOWN_PARTS = 3


@dataclass(frozen=True, eq=False, repr=False)
class Combined(Intervention):
    """Several interventions applied one after the other; all must begin at the same place, ``"auto"`` at any.

    Parts that meet at one site take effect in the order given.  At different sites each takes effect where the model
    computes it, whichever was named first: attention is moved before ``z`` is edited, up-projections are held before
    ``GATE_ACT`` is edited, and that before ``MLP_POST``.

    Raises:
        InputError: parts that differ in ``when``.
    """

    parts: tuple[Intervention, ...]

    def __post_init__(self) -> None:
        begins = {part.when for part in self.parts} - {"auto"}
        if len(begins) > 1 or not self.parts:
            raise InputError(
                f"interventions with when = {sorted(begins)}", "one and the same", "give all parts the same when"
            )

    @property
    def when(self) -> When:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Where all parts begin."""
        given: list[When] = [part.when for part in self.parts if part.when != "auto"]
        return given[0] if given else "auto"

    def __repr__(self) -> str:
        shown = [repr(part) for part in self.parts[:_SHOWN_PARTS]]
        more = [f"{len(self.parts) - len(shown)} more"] if len(self.parts) > len(shown) else []
        return " + ".join(shown + more)

    @property
    def differs_by_text(self) -> bool:
        """Whether any part does."""
        return any(part.differs_by_text for part in self.parts)

    def edits(self, anatomy: Anatomy, text: int = 0) -> Edits:
        """The parts' edits, composed in order where they meet."""
        composed: Edits = {}
        for part in self.parts:
            for place, edit in part.edits(anatomy, text).items():
                composed[place] = composed[place].then(edit) if place in composed else edit
        return composed

    def holds(self, anatomy: Anatomy) -> Holds:
        """The parts' held neurons together."""
        together: dict[int, set[int]] = {}
        for part in self.parts:
            for layer, neurons in part.holds(anatomy).items():
                together.setdefault(layer, set()).update(neurons)
        return {layer: tuple(sorted(neurons)) for layer, neurons in together.items()}


@dataclass(frozen=True, eq=False)
class Op:
    """One operation; build it with :func:`zero`, :func:`add`, :func:`scale`, :func:`mean` or one of the others.

    Attributes:
        name: what the operation is called in tables.
        factor: what the activation is multiplied by.
        offset: what is then added: one number for all units, a table ``[layer neuron]`` or ``[layer head d_head]``,
            or, where it differs by text, a bank of such tables ``[sample ...]`` of which every text draws one.
        seed: decides which sample a text draws.
        differs_by_text: whether ``offset`` is such a bank.
        moves_attention: ``factor`` is for a head's pattern, and ``offset`` is added to its weight on the first key.
    """

    name: str
    factor: float
    offset: float | Tensor = field(default=0.0, repr=False)
    seed: int = 0
    differs_by_text: bool = False
    moves_attention: bool = False

    @property
    def fingerprint(self) -> str:
        """Identity of name, numbers and seed, for filing what was computed with them."""
        values = torch.as_tensor(self.offset, dtype=torch.float64).cpu().contiguous()
        facts = (self.name, self.factor, self.seed, tuple(values.shape), values.numpy().tobytes())
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def offsets(
        self, layers: Int[Tensor, " unit"], numbers: Int[Tensor, " unit"], text: int, shape: tuple[int, ...]
    ) -> Float[Tensor, "unit ..."]:
        """The offset of each unit in the text with this number.

        Args:
            layers: layer of each unit.
            numbers: its number in the layer.
            text: number of the text, for resampling.
            shape: that of a table for the whole model: ``[layer neuron]`` or ``[layer head d_head]``.

        Raises:
            InputError: a table or bank of another shape.
        """
        if not isinstance(self.offset, Tensor):
            return torch.full((len(layers), *shape[2:]), float(self.offset))
        table = self.offset
        if tuple(table.shape[int(self.differs_by_text) :]) != shape or len(table) == 0:
            samples = "any number of tables of " if self.differs_by_text else ""
            raise InputError(
                f"a tensor of shape {tuple(table.shape)} for {self.name}",
                f"one value for every unit of the model: {samples}shape {shape}",
                "use the model's own",
            )
        if self.differs_by_text:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + text)
            table = table[int(torch.randint(0, len(table), (1,), generator=generator))]
        chosen = table[layers, numbers].float().cpu()
        if not bool(chosen.isfinite().all()):
            raise InputError(
                f"{self.name} with values that are NaN or infinite for some of the units",
                "a number for every unit that is edited",
                "leave out units without one: layers that lack the part have NaN",
            )
        return chosen


def zero() -> Op:
    """``a <- 0``: the published deactivation.  Zero may lie far from anything the unit does on text."""
    return Op("zero", 0.0)


@guarded
def add(value: float | Float[Tensor, "layer unit *d_head"] = 1.0) -> Op:
    """``a <- a + value``: the published activation of neurons with 1.0.

    A table such as ``2 * sd`` puts units on one scale.  Heads take a table only.
    """
    return Op("add" if isinstance(value, Tensor) else f"add({value:g})", 1.0, value)


@guarded
def scale(factor: float) -> Op:
    """``a <- a * factor``."""
    return Op(f"scale({factor:g})", factor)


@guarded
def mean(values: Float[Tensor, "layer unit *d_head"]) -> Op:
    """``a <- values``: each unit held at its mean, e.g. ``RepetitionNeuronResult.normal_mean``."""
    return Op("mean", 0.0, values)


@guarded
def resample(bank: Float[Tensor, "sample layer unit *d_head"], seed: Seed = 0) -> Op:
    """``a <- a sample``: all units of a text take the values of one drawn position of other text, jointly."""
    return Op("resample", 0.0, bank, seed, differs_by_text=True)


def to_bos() -> Op:
    """A head attends to the first position alone: ``A(t, .) <- (1, 0, 0, ...)``, so that ``z(t) <- v(0)``."""
    return Op("to_bos", 0.0, 1.0, moves_attention=True)


_NAMED = {"zero": zero, "add": add, "to_bos": to_bos}


def as_op(op: Op | str) -> Op:
    """An operation, or the name of one that needs no value (``"zero"``, ``"to_bos"``; ``"add"`` means +1).

    Example:
        >>> as_op("add").name
        'add(1)'
    """
    if isinstance(op, Op):
        return op
    if op not in _NAMED:
        raise InputError(
            f"op={op!r}",
            f"an Op or one of {sorted(_NAMED)}",
            "build one with mechrep.interventions.mean(...) and so on",
        )
    return _NAMED[op]()


@dataclass(frozen=True, eq=False, repr=False)
class UnitIntervention(Intervention):
    """An operation on ``(layer, unit)`` pairs; subclasses say what a unit is and where it is edited."""

    unit: ClassVar[str]  # what one is called in errors

    units: tuple[tuple[int, int], ...]
    op: Op
    when: When

    def _take(self, units: Iterable[Any], op: Op | str, when: str) -> None:
        """Check and set what every subclass is given."""
        pairs = checked_units(units, self.unit)
        check_when(when)
        for name, value in (("units", pairs), ("op", as_op(op)), ("when", when)):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({listed_units(self.unit, self.units)}: {self.op.name}, when={self.when!r})"

    @abstractmethod
    def where(self, anatomy: Anatomy) -> tuple[Site, tuple[int, ...]]:
        """The edited site, and the shape of one layer there: ``[unit]``, or ``[unit width]`` where a unit is wide."""

    @property
    def differs_by_text(self) -> bool:
        """Whether two texts get different edits (resampling)."""
        return self.op.differs_by_text

    def edits(self, anatomy: Anatomy, text: int = 0) -> Edits:
        """One edit of full width per layer that holds one of the units."""
        site, shape = self.where(anatomy)
        for layer, number in self.units:
            check_unit(anatomy, "heads" if self.unit == "head" else "neurons", layer, number)
        layers, numbers = torch.tensor(self.units, dtype=torch.long).reshape(-1, 2).unbind(-1)
        values = self.op.offsets(layers, numbers, text, (anatomy.n_layers, *shape))
        edits: Edits = {}
        for layer in layers.unique().tolist():
            here = layers == layer
            factor, offset = torch.ones(shape), torch.zeros(shape)
            factor[numbers[here]], offset[numbers[here]] = self.op.factor, values[here]
            edits[site, layer] = Edit(factor.flatten(), offset.flatten())
        return edits


@dataclass(frozen=True, eq=False, repr=False)
class Neurons(UnitIntervention):
    """Apply ``op`` to neurons, at the site that the literature calls the neuron's activation unless told otherwise.

    Args:
        units: ``(layer, neuron)`` pairs, for instance ``result.top(50)``; or names, ``"L18N264"``.
        op: an operation of :mod:`mechrep.interventions.ops`, or ``"zero"`` / ``"add"`` (+1).
        site: ``GATE_ACT`` (default) or ``MLP_POST``.  In a gated MLP adding at ``MLP_POST`` is another intervention:
            it ignores the up-projection.
        when: see :class:`~mechrep.interventions.ops.Intervention`.

    Raises:
        InputError: duplicate or malformed units, a site that is no neuron site, an operation on attention; later,
            units the model lacks.

    Source: Hiraoka & Inui 2025 (arXiv 2410.13497), deactivation ``a <- 0`` and activation ``a <- a + 1``.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> cut = mechrep.Neurons("L3N7, L3N8")
        >>> tokens = model.to_tokens("again and again")
        >>> changed = model.run_with_hooks(tokens, fwd_hooks=cut.hooks(model))
        >>> bool((changed != model(tokens)).any())
        True
    """

    unit: ClassVar[str] = "neuron"

    site: Site

    @guarded
    def __init__(
        self,
        units: Iterable[tuple[int, int] | str] | str,
        op: Op | str = "zero",
        site: Site | str = Site.GATE_ACT,
        when: When = "auto",
    ) -> None:
        self._take(units, op, when)
        if site not in (Site.GATE_ACT, Site.MLP_POST):  # a Site equals its own value
            raise InputError(f"site {str(site)!r}", "gate_act or mlp_post", "choose one of these")
        if self.op.moves_attention:
            raise InputError(
                f"{self.op.name} on neurons", "an operation on activations", "use it with mechrep.interventions.Heads"
            )
        object.__setattr__(self, "site", Site(site))

    def where(self, anatomy: Anatomy) -> tuple[Site, tuple[int, ...]]:
        """The site, ``[d_mlp]``."""
        return self.site, (anatomy.d_mlp,)


@dataclass(frozen=True, eq=False, repr=False)
class Heads(UnitIntervention):
    """Apply ``op`` to attention heads, each at its own output ``z`` before the output projection mixes the heads.

    With the attention pattern ``A`` and the values ``v`` of the key-value head that ``h`` reads (under grouped-query
    attention number ``h // (n_heads / n_kv_heads)``)::

        z_h(t) = sum over s <= t of A_h(t, s) v_h(s)      [d_head];   attention output = b_O + sum over h of z_h W_O(h)

    ``"zero"`` removes the head: ``z_h <- 0``, the same as a model without the head's rows of ``W_O``.  ``scale``,
    ``mean`` and ``resample`` act on ``z_h`` alike.  ``"to_bos"`` leaves the head its output but not its choice: its
    pattern puts everything on the text's first position, ``z_h(t) <- v_h(0)``, which is where heads that have nothing
    to do tend to rest.  Slices of the attention output *after* ``W_O`` are not heads and are not edited here.

    Args:
        units: ``(layer, head)`` pairs, or names, ``"L2H0"``.
        op: an operation of :mod:`mechrep.interventions.ops`, or ``"zero"`` / ``"to_bos"``.  ``mean`` takes a table
            ``[layer head d_head]``, ``resample`` a bank ``[sample layer head d_head]`` of which a text draws one
            sample for all its heads; ``add`` takes a table ``[layer head d_head]`` only, as one number in every
            direction of a head has no meaning.
        when: see :class:`~mechrep.interventions.ops.Intervention`.

    Raises:
        InputError: duplicate or malformed units, ``add`` of a number; later, heads that the model lacks and tables of
            another shape.

    Source: heads as independent summands: Elhage et al. 2021 (*A Mathematical Framework for Transformer Circuits*);
    zeroing heads: Olsson et al. 2022 (arXiv 2209.11895); their mean: Wang et al. 2023 (arXiv 2211.00593).

    Limits: rows must begin at their first real token (right padding, as in a corpus), else ``"to_bos"`` means the
    padding.  The first position need not be a BOS.  After ``enable_compatibility_mode`` the bias of the values is part
    of ``b_O``: ``"zero"`` then leaves it in.

    Example:
        >>> import mechrep
        >>> from mechrep.interventions import Heads
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> tokens = model.to_tokens("again and again")
        >>> cut = Heads("L0H0, L1H1", "to_bos")
        >>> changed = model.run_with_hooks(tokens, fwd_hooks=cut.hooks(model))
        >>> (changed != model(tokens)).any(-1)[0, :2].tolist()  # the first position attends to itself anyway
        [False, True]
    """

    unit: ClassVar[str] = "head"

    @guarded
    def __init__(
        self, units: Iterable[tuple[int, int] | str] | str, op: Op | str = "zero", when: When = "auto"
    ) -> None:
        self._take(units, op, when)
        if not (self.op.moves_attention or isinstance(self.op.offset, Tensor) or self.op.offset == 0):
            raise InputError(
                f"{self.op.name} on heads: one number in all directions of a head",
                "a vector for every head",
                "use add(table) with a table [layer head d_head], or scale(factor)",
            )

    def where(self, anatomy: Anatomy) -> tuple[Site, tuple[int, ...]]:
        """``Z`` ``[head d_head]``, or ``PATTERN`` ``[head]`` where attention is moved."""
        if self.op.moves_attention:
            return Site.PATTERN, (anatomy.n_heads,)
        return Site.Z, (anatomy.n_heads, anatomy.d_head)


@dataclass(frozen=True, repr=False)
class Experts(Intervention):
    """Switch off whole routed experts: what they write is gone, and nothing takes its place.

    All neurons of the expert are set to zero at ``MLP_POST``.  The router goes on as it did: tokens are still sent to
    the expert, and the weights of the other experts of a token are *not* scaled up to make up for it.  Biases of the
    expert's output stay, as those of ablated neurons do (gpt-oss has them).

    Args:
        units: ``(layer, expert)`` pairs, or names, ``"L5E7"``.
        when: see :class:`~mechrep.interventions.ops.Intervention`.

    Raises:
        InputError: duplicate or malformed units; later, experts that the model lacks.

    Limits: an ablated expert is not one that the router does not know: choosing it still costs a token one of its
    places.

    Example:
        >>> Experts("L1E3").units
        ((1, 3),)
    """

    units: tuple[tuple[int, int], ...]
    when: When

    @guarded
    def __init__(self, units: Iterable[tuple[int, int] | str] | str, when: When = "auto") -> None:
        check_when(when)
        for name, value in (("units", checked_units(units, "expert")), ("when", when)):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"Experts({listed_units('expert', self.units)}, when={self.when!r})"

    @property
    def differs_by_text(self) -> bool:
        """False."""
        return False

    def edits(self, anatomy: Anatomy, text: int = 0) -> Edits:
        """Zero for all neurons of these experts.

        Raises:
            MissingPartError: a layer without routed experts.
            InputError: an expert that the layer does not have.
        """
        edits: Edits = {}
        for layer, expert in self.units:
            _, first = expert_unit(anatomy, layer, expert, 0)
            if (Site.MLP_POST, layer) not in edits:
                edits[Site.MLP_POST, layer] = Edit(torch.ones(anatomy.d_mlp), torch.zeros(anatomy.d_mlp))
            edits[Site.MLP_POST, layer].factor[first : first + anatomy.d_expert] = 0.0
        return edits


@dataclass(frozen=True, repr=False)
class SinkPatch(Intervention):
    """Hold the up-projection of sink neurons at the level of the first token after BOS, from there on.

    With the first real position ``p`` of a text, ``f = 1`` where its token is BOS and else 0, the *anchor* ``q = p +
    f`` and the up-projection ``U`` of the layer, for every neuron ``n`` of the patch::

        U(t, n) <- U(q, n)    for every t >= q, in the prompt and in everything that is written after it

    BOS keeps its own value, and with it its norm.  All other positions get what the neuron makes of an ordinary token,
    also those deep in a run of one token, where it would otherwise fire as at BOS.  There is no detector of repeats:
    every text is changed, ordinary ones too, and sinks at delimiters in mid-text go as well.

    The value is each text's own.  Padding is neither measured nor changed.

    In an MLP without a gate, the published patch has no object: there is no second branch.  There the up-projection
    is what the activation function reads, so holding it holds the neuron's activation.  This is mechrep's extension.

    Args:
        layer: the sink layer, from 0; or, alone, the neurons by name, ``"L1N5, L1N9"``, or what
            :func:`mechrep.find_sink` found.
        neurons: numbers of the sink neurons in it (or one number).
        when: ``"all"`` is the patch.  The others may hold from a later start on, at the level of the same anchor; see
            :class:`~mechrep.interventions.ops.Intervention`.

    Raises:
        InputError: no neuron, one twice or a malformed one; later, units that the model does not have.

    Source: Yona et al. 2025 (arXiv 2503.08908), whose poster prints the patch for one prompt at a time; the value per
    row and the anchor per row are mechrep's own (a batch, left padding, texts without BOS).

    Limits: where the first token after BOS is itself a sink (a delimiter in some models), the level held is a sink's.
    After two BOS the anchor is the second one.

    Example:
        >>> import mechrep
        >>> model = mechrep.load_model("mechrep-tiny")
        >>> patch = SinkPatch(0, [3, 8])
        >>> tokens = model.to_tokens("again and again")
        >>> changed = model.run_with_hooks(tokens, fwd_hooks=patch.hooks(model))
        >>> (changed != model(tokens)).any(-1)[0, :3].tolist()  # BOS, the anchor, the first position that is held
        [False, False, True]
        >>> SinkPatch.from_dict(patch.to_dict()) == patch
        True
    """

    layer: int
    neurons: tuple[int, ...]
    when: When

    @guarded
    def __init__(self, layer: Any, neurons: Iterable[int] | int | None = None, when: When = "all") -> None:
        place, numbers = neurons_of_one_layer(layer, neurons)
        check_when(when)
        for name, value in (("layer", place), ("neurons", numbers), ("when", when)):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"SinkPatch({listed_units('neuron', self.units)}, when={self.when!r})"

    @property
    def units(self) -> tuple[tuple[int, int], ...]:
        """The neurons as ``(layer, neuron)`` pairs, as :class:`~mechrep.interventions.ops.Neurons` takes them."""
        return tuple((self.layer, neuron) for neuron in self.neurons)

    @property
    def differs_by_text(self) -> bool:
        """False: the level is a text's own, but what is done to it is the same."""
        return False

    def edits(self, anatomy: Anatomy, text: int = 0) -> Edits:
        """None: a held neuron takes a value of the same text, which no fixed factor and offset gives."""
        return {}

    def holds(self, anatomy: Anatomy) -> Holds:
        """The neurons, by layer.

        Raises:
            InputError: a layer or a neuron that the model does not have.
        """
        self.check(anatomy.neurons)
        return {self.layer: self.neurons}

    @guarded
    def check(self, there: Sequence[int]) -> None:
        """Refuse a model that lacks the layer or a neuron.

        Args:
            there: how many neurons each layer has.

        Raises:
            InputError: it does.
        """
        for neuron in self.neurons:
            check_number(there, "neuron", self.layer, neuron)

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON can hold."""
        return {"layer": self.layer, "neurons": list(self.neurons), "when": self.when}

    @classmethod
    @guarded
    def from_dict(cls, values: Mapping[str, Any]) -> SinkPatch:
        """What :meth:`to_dict` gave.

        Raises:
            InputError: other keys, or values that are no patch.
        """
        if not {"layer", "neurons"} <= set(values) <= {"layer", "neurons", "when"}:
            raise InputError(f"keys {sorted(values)}", "layer, neurons and perhaps when", "use what to_dict() gave")
        return cls(**values)
