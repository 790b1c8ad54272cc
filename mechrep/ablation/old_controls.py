"""Control sets: neurons that an effect must be compared with before it means anything.

``random``
    uniform over all neurons, as published; may include top ones and misses the layers where they lie.
``layer_matched``
    as many neurons in each layer as the set under test, drawn from the others.
``activation_matched``
    in the same layer, and each with nearly the same mean absolute activation in normal text as its partner: cutting
    them removes about as much.

Control heads: what an effect of cutting heads must be compared with before it means anything.

``random``
    uniform over all heads but those under test: a model has few, and a draw of the same heads compares nothing.
``layer_matched``
    as many heads in each layer as the set under test, drawn from the others.
``bos_matched``
    in any layer, heads that are no induction heads, each with nearly the same attention to the first position as its
    partner: heads that rest there look alike in many scores, and cutting them removes about as much of the sink.

The conditions of a sweep: which units, under which name, how many, from which seed.
"""

from __future__ import annotations

import bisect
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from mechrep.errors import InputError
from mechrep.interventions.ops import Neurons, Op
from mechrep.measures.attention_sinks import AttentionSinkResult
from mechrep.measures.head_scores import HeadScoreResult
from mechrep.measures.neurons import RepetitionNeuronResult
from mechrep.models.model import Model

CONTROLS = ("random", "layer_matched", "activation_matched")
_NEIGHBOURS = 8  # an activation-matched partner is drawn among so many nearest neurons that are still free

Unit = tuple[int, int]


def control_units(
    kind: str,
    units: Sequence[Unit],
    *,
    n_layers: int,
    d_mlp: int,
    seed: int,
    result: RepetitionNeuronResult | None = None,
) -> list[Unit]:
    """A control set of the same size as ``units``.

    Args:
        kind: ``"random"``, ``"layer_matched"`` or ``"activation_matched"``.
        units: the set under test; excluded from matched controls.
        n_layers: of the model.
        d_mlp: neurons per layer.
        seed: of the draw.
        result: needed for ``"activation_matched"``, which matches ``result.normal_mean``.

    Raises:
        InputError: an unknown kind, more units in a layer than neurons left there, or no result to match by.

    Example:
        >>> control_units("layer_matched", [(1, 0), (1, 1)], n_layers=2, d_mlp=4, seed=0)
        [(1, 2), (1, 3)]
    """
    generator = np.random.default_rng([seed, CONTROLS.index(kind) if kind in CONTROLS else 99, len(units)])
    if kind == "random":
        flat = generator.choice(n_layers * d_mlp, len(units), replace=False)
        return sorted((int(i) // d_mlp, int(i) % d_mlp) for i in flat)
    if kind not in CONTROLS:
        raise InputError(f"control {kind!r}", f"one of {CONTROLS}", "choose among these")
    if kind == "activation_matched" and result is None:
        raise InputError(
            "control 'activation_matched' with a list of neurons",
            "a RepetitionNeuronResult, whose mean activations are matched",
            "pass the result itself as neurons=, or leave this control out",
        )
    chosen: list[Unit] = []
    for layer in sorted({layer for layer, _ in units}):
        inside = [neuron for unit_layer, neuron in units if unit_layer == layer]
        free = np.setdiff1d(np.arange(d_mlp), inside)
        if len(free) < len(inside):
            raise InputError(
                f"{len(inside)} of the {d_mlp} neurons of layer {layer}",
                f"at most half of a layer for the control {kind!r}: {len(free)} are left to draw from",
                "lower k or leave this control out",
            )
        if kind == "layer_matched" or result is None:
            picked = generator.choice(free, len(inside), replace=False)
        else:
            picked = _nearest(result.normal_mean[layer].abs().numpy(), inside, free, generator)
        chosen.extend((layer, int(neuron)) for neuron in sorted(picked))
    return chosen


def _nearest(size: np.ndarray, inside: Sequence[int], free: np.ndarray, generator: np.random.Generator) -> list[int]:
    """For each neuron, in random order, one of the nearest free ones in ``size``; each used once."""
    left = free[np.argsort(size[free], kind="stable")].tolist()  # smallest first, so that the nearest are neighbours
    sizes = size[left].tolist()
    picked = []
    for neuron in generator.permutation(inside):
        own = float(size[neuron])
        place = bisect.bisect_left(sizes, own)
        around = range(max(0, place - _NEIGHBOURS), min(len(sizes), place + _NEIGHBOURS))
        near = sorted(around, key=lambda i: abs(sizes[i] - own))[:_NEIGHBOURS]
        index = near[int(generator.integers(len(near)))]
        sizes.pop(index)
        picked.append(left.pop(index))
    return picked


def as_ranking(neurons: RepetitionNeuronResult | Sequence[Unit]) -> list[Unit]:
    """The ranked units of a result, or the list itself.

    Raises:
        InputError: an empty list, or one of other things than pairs.
    """
    if isinstance(neurons, RepetitionNeuronResult):
        return neurons.ranking()
    try:
        ranking = [(operator.index(layer), operator.index(neuron)) for layer, neuron in neurons]
    except (TypeError, ValueError):
        ranking = []
    if not ranking:
        raise InputError(
            f"neurons={list(neurons)[:3]}", "a ranked list of (layer, neuron), or a result", "pass result.top(k)"
        )
    return ranking


def as_seeds(seeds: int | Sequence[int]) -> list[int]:
    """``n`` means the seeds 0 .. n-1.

    Raises:
        InputError: no seed, one twice, or a negative one.
    """
    chosen = list(range(seeds)) if isinstance(seeds, int) else [int(seed) for seed in seeds]
    if not chosen or len(set(chosen)) != len(chosen) or min(chosen) < 0:
        raise InputError(
            f"seeds={seeds!r}", "at least one seed, none twice or negative", "pass a number of seeds or a list"
        )
    return chosen


HEAD_CONTROLS = ("random", "layer_matched", "bos_matched")
_NEIGHBOURS_HEADS = 3  # a partner is drawn among so many nearest heads that are still free: a model has few heads


def control_heads(
    kind: str,
    units: Sequence[Unit],
    *,
    n_layers: int,
    n_heads: int,
    seed: int,
    scores: HeadScoreResult | None = None,
    sinks: AttentionSinkResult | None = None,
) -> list[Unit]:
    """A control set of as many heads as ``units``.

    Args:
        kind: ``"random"``, ``"layer_matched"`` or ``"bos_matched"``.
        units: the set under test; excluded from all controls.
        n_layers: of the model.
        n_heads: per layer.
        seed: of the draw.
        scores: for ``"bos_matched"``: tells induction heads, which are never drawn, and gives the attention to the
            first position.
        sinks: where given, the attention to the first position (``alpha``) is taken from here.

    Raises:
        InputError: an unknown kind, more heads than are left to draw from, no scores to match by or those of another
            model.

    Source: control heads that rest on BOS: Stolfo et al. 2024 (arXiv 2406.16254).

    Example:
        >>> control_heads("layer_matched", [(1, 0), (1, 1)], n_layers=2, n_heads=4, seed=0)
        [(1, 2), (1, 3)]
    """
    if kind not in HEAD_CONTROLS:
        raise InputError(f"control {kind!r}", f"one of {HEAD_CONTROLS}", "choose among these")
    generator = np.random.default_rng([seed, HEAD_CONTROLS.index(kind), len(units)])
    everywhere = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    free = sorted(set(everywhere) - set(units))
    if kind == "random":
        _check_enough(kind, len(units), len(free), "the model, outside the set")
        return sorted(free[i] for i in generator.choice(len(free), len(units), replace=False))
    if kind == "layer_matched":
        return _in_the_same_layers(units, free, generator)
    if scores is None:
        raise InputError(
            "control 'bos_matched' without head scores",
            "a HeadScoreResult, which tells induction heads from others",
            "pass head_scores=, or leave this control out",
        )
    first = scores.first_token if sinks is None else sinks.alpha
    for table in (scores.induction, first):
        if tuple(table.shape) != (n_layers, n_heads) or bool(table.isnan().any()):
            raise InputError(
                f"scores of {tuple(table.shape)} heads, {int(table.isnan().sum())} of them NaN",
                f"a score for each of {n_layers} layers of {n_heads} heads",
                "score this model, on texts that have what is scored",
            )
    return _nearest_heads(units, [unit for unit in free if unit not in scores.clear("induction")], first, generator)


def _in_the_same_layers(units: Sequence[Unit], free: Sequence[Unit], generator: np.random.Generator) -> list[Unit]:
    chosen: list[Unit] = []
    for layer in sorted({layer for layer, _ in units}):
        wanted = sum(unit[0] == layer for unit in units)
        here = [unit for unit in free if unit[0] == layer]
        _check_enough("layer_matched", wanted, len(here), f"layer {layer}, outside the set")
        chosen += [here[i] for i in generator.choice(len(here), wanted, replace=False)]
    return sorted(chosen)


def _nearest_heads(
    units: Sequence[Unit], free: list[Unit], first: Float[Tensor, "layer head"], generator: np.random.Generator
) -> list[Unit]:
    """For each head, in random order, one of the free ones nearest to it in ``first``; each used once."""
    _check_enough("bos_matched", len(units), len(free), "the model that are neither in the set nor induction heads")
    values, chosen = first.double().numpy(), []
    for index in generator.permutation(len(units)):
        own = values[units[index]]
        near = sorted(free, key=lambda other: abs(values[other] - own))[:_NEIGHBOURS_HEADS]
        picked = near[int(generator.integers(len(near)))]
        free.remove(picked)
        chosen.append(picked)
    return sorted(chosen)


def _check_enough(kind: str, wanted: int, available: int, where: str) -> None:
    if wanted > available:
        raise InputError(
            f"{wanted} heads for the control {kind!r}",
            f"at most the {available} heads of {where}",
            "cut fewer heads, or leave this control out",
        )


@dataclass(frozen=True)
class Condition:
    """One cell of a sweep.

    Attributes:
        selection: ``"none"`` (the untouched model), ``"top"`` or the name of a control.
        k: number of neurons.
        seed: of the control's draw; 0 where nothing is drawn.
        units: the neurons.
    """

    selection: str
    k: int
    seed: int
    units: tuple[Unit, ...]

    def intervention(self, op: Op, when: str) -> Neurons | None:
        """The intervention of this condition; ``None`` for the untouched model."""
        return Neurons(self.units, op, when=when) if self.units else None  # pyright: ignore[reportArgumentType]


def sweep_conditions(
    model: Model,
    neurons: RepetitionNeuronResult | Sequence[Unit],
    ks: Sequence[int],
    controls: Sequence[str],
    seeds: Sequence[int],
) -> list[Condition]:
    """The untouched model, the first ``k`` neurons, and each control from each seed, for every ``k``.

    Raises:
        InputError: no ``k``, a ``k`` larger than the ranking, a control twice or one that cannot be drawn.
    """
    ranking = as_ranking(neurons)
    try:
        numbers = {operator.index(k) for k in ks}
    except TypeError:
        numbers = set()
    if not numbers or min(numbers) < 0 or max(numbers) > len(ranking):
        raise InputError(
            f"ks={ks}", f"a list of numbers from 0 to {len(ranking)}, the neurons given", "lower k or rank more neurons"
        )
    if len(set(controls)) < len(controls):
        raise InputError(f"controls={list(controls)}", "each control once", "raise seeds to draw it more often")
    result = neurons if isinstance(neurons, RepetitionNeuronResult) else None
    anatomy = model.anatomy
    if result is not None and tuple(result.delta.shape) != (anatomy.n_layers, anatomy.d_mlp):
        raise InputError(
            f"a result of {result.provenance.model['name']} with {tuple(result.delta.shape)} neurons",
            f"{anatomy.n_layers} layers of {anatomy.d_mlp} neurons",
            "use the model that the result was measured on",
        )
    conditions = [Condition("none", 0, 0, ())]
    for k in sorted(numbers - {0}):
        top = ranking[:k]
        conditions.append(Condition("top", k, 0, tuple(top)))
        for control in controls:
            for seed in seeds:
                drawn = control_units(
                    control, top, n_layers=anatomy.n_layers, d_mlp=anatomy.d_mlp, seed=seed, result=result
                )
                conditions.append(Condition(control, k, seed, tuple(drawn)))
    return conditions
