"""Control sets: neurons that an effect must be compared with before it means anything.

``random``
    uniform over all neurons, as published; may include top ones and misses the layers where they lie.
``layer_matched``
    as many neurons in each layer as the set under test, drawn from the others.
``activation_matched``
    in the same layer, and each with nearly the same mean absolute activation in normal text as its partner: cutting
    them removes about as much.
"""

from __future__ import annotations

import bisect
import operator
from collections.abc import Sequence

import numpy as np
import torch

from mechrep.analyzers.neuron_result import RepetitionNeuronResult
from mechrep.errors import InputError

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


def standard_deviations(result: RepetitionNeuronResult, factor: float = 1.0) -> torch.Tensor:
    """``factor`` standard deviations of each neuron in normal text, for ``add`` on a common scale."""
    return factor * result.normal_sd
