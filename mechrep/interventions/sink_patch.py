"""``SinkPatch``: repeated tokens no longer turn into attention sinks, and BOS stays one."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mechrep.errors import InputError
from mechrep.interventions.base import WHENS, Edits, Holds, Intervention, When
from mechrep.models.anatomy import Anatomy


@dataclass(frozen=True)
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
        layer: the sink layer, from 0.
        neurons: numbers of the sink neurons in it (or one number).
        when: ``"all"`` is the patch.  The other two hold from a later start on, at the level of the same anchor; see
            :class:`~mechrep.interventions.base.Intervention`.

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

    def __init__(self, layer: int, neurons: Iterable[int] | int, when: When = "all") -> None:
        try:
            given = tuple(neurons) if isinstance(neurons, Iterable) else (neurons,)
            numbers = tuple(operator.index(neuron) for neuron in given)
            place = operator.index(layer)
        except TypeError as error:
            raise InputError(
                f"layer={layer!r}, neurons={neurons!r} ({error})",
                "the number of a layer and numbers of neurons in it",
                "pass for instance SinkPatch(sink.layer, [neuron for _, neuron in sink.neurons])",
            ) from None
        if not numbers or len(set(numbers)) < len(numbers):
            raise InputError(f"neurons {list(numbers)}", "at least one neuron, none twice", "correct the list")
        if when not in WHENS:
            raise InputError(f"when={when!r}", "'all', 'last' or 'from_onset'", "choose one of these")
        for name, value in (("layer", place), ("neurons", numbers), ("when", when)):
            object.__setattr__(self, name, value)

    @property
    def units(self) -> tuple[tuple[int, int], ...]:
        """The neurons as ``(layer, neuron)`` pairs, as :class:`~mechrep.interventions.neurons.Neurons` takes them."""
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
        self.check(anatomy.n_layers, anatomy.d_mlp)
        return {self.layer: self.neurons}

    def check(self, n_layers: int, d_mlp: int) -> None:
        """Refuse a model that lacks the layer or a neuron.

        Raises:
            InputError: it does.
        """
        if not 0 <= self.layer < n_layers:
            raise InputError(f"layer {self.layer}", f"a layer from 0 to {n_layers - 1}", "count layers from 0")
        for neuron in self.neurons:
            if not 0 <= neuron < d_mlp:
                raise InputError(
                    f"neuron {neuron} of layer {self.layer}",
                    f"a neuron from 0 to {d_mlp - 1}",
                    "check which model it is from",
                )

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON can hold."""
        return {"layer": self.layer, "neurons": list(self.neurons), "when": self.when}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SinkPatch:
        """What :meth:`to_dict` gave.

        Raises:
            InputError: other keys, or values that are no patch.
        """
        if not {"layer", "neurons"} <= set(values) <= {"layer", "neurons", "when"}:
            raise InputError(f"keys {sorted(values)}", "layer, neurons and perhaps when", "use what to_dict() gave")
        return cls(**values)
