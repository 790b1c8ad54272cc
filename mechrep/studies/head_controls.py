"""Control heads: what an effect of cutting heads must be compared with before it means anything.

``random``
    uniform over all heads but those under test: a model has few, and a draw of the same heads compares nothing.
``layer_matched``
    as many heads in each layer as the set under test, drawn from the others.
``bos_matched``
    in any layer, heads that are no induction heads, each with nearly the same attention to the first position as its
    partner: heads that rest there look alike in many scores, and cutting them removes about as much of the sink.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from mechrep.analyzers.heads.result import HeadScoreResult
from mechrep.analyzers.sinks.attention_sinks_result import AttentionSinkResult
from mechrep.errors import InputError

HEAD_CONTROLS = ("random", "layer_matched", "bos_matched")
INDUCTION = 0.3  # adjusted prefix matching from which a head counts as an induction head; a convention
_NEIGHBOURS = 3  # a partner is drawn among so many nearest heads that are still free: a model has few heads

Unit = tuple[int, int]


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
    return _nearest(units, [unit for unit in free if unit not in induction_heads(scores)], first, generator)


def induction_heads(scores: HeadScoreResult) -> list[Unit]:
    """Heads whose prefix matching, adjusted for chance, is at least :data:`INDUCTION`; best first."""
    adjusted = scores.adjusted[list(scores.names).index("induction")]
    return [unit for unit in scores.ranking("induction") if adjusted[unit] >= INDUCTION]


def _in_the_same_layers(units: Sequence[Unit], free: Sequence[Unit], generator: np.random.Generator) -> list[Unit]:
    chosen: list[Unit] = []
    for layer in sorted({layer for layer, _ in units}):
        wanted = sum(unit[0] == layer for unit in units)
        here = [unit for unit in free if unit[0] == layer]
        _check_enough("layer_matched", wanted, len(here), f"layer {layer}, outside the set")
        chosen += [here[i] for i in generator.choice(len(here), wanted, replace=False)]
    return sorted(chosen)


def _nearest(
    units: Sequence[Unit], free: list[Unit], first: Float[Tensor, "layer head"], generator: np.random.Generator
) -> list[Unit]:
    """For each head, in random order, one of the free ones nearest to it in ``first``; each used once."""
    _check_enough("bos_matched", len(units), len(free), "the model that are neither in the set nor induction heads")
    values, chosen = first.double().numpy(), []
    for index in generator.permutation(len(units)):
        own = values[units[index]]
        near = sorted(free, key=lambda other: abs(values[other] - own))[:_NEIGHBOURS]
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
