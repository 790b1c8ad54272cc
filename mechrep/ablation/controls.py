"""Controls: sets of other components of the same size, which an effect must be compared with before it means anything.

``random``
    anywhere in the model; may miss the layers where the set under test lies.
``layer_matched``
    as many in each layer as the set under test has there.
``activation_matched``
    in the same layer, each with nearly the same size (of its activation) as its partner: ablating it removes about as
    much.
``bos_matched``
    in any layer, each with nearly the same attention to the first position as its partner: heads that rest there look
    alike in many scores.

A new control is a function here, with a line in :data:`CONTROLS`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from zlib import crc32

import numpy as np
from jaxtyping import Float
from torch import Tensor

from mechrep.errors import InputError
from mechrep.guards import Count, Seed, guarded, one_of

Unit = tuple[int, int]  # layer, number in the layer
_NEIGHBOURS = 8  # a matched partner is drawn among at least so many nearest ones
_TRIES = 30  # draws of a set, per set wanted, until one that is new


@dataclass(frozen=True)
class _Pool:
    """What may be drawn: the free components, the set under test, and what to match by."""

    units: Sequence[Unit]
    free: Sequence[Unit]
    sizes: Float[np.ndarray, "layer number"] | None
    draws: int

    @functools.cached_property
    def by_layer(self) -> dict[int, list[Unit]]:
        found: dict[int, list[Unit]] = {}
        for unit in self.free:
            found.setdefault(unit[0], []).append(unit)
        return found

    def in_layer(self, layer: int) -> list[Unit]:
        return self.by_layer.get(layer, [])


@dataclass(frozen=True)
class Control:
    """A kind of control.

    Attributes:
        draw: one set.
        groups: the pools that it draws from, with the number that it takes from each.
        matches: whether it needs ``match=``.
    """

    draw: Callable[[_Pool, np.random.Generator], list[Unit]]
    groups: Callable[[_Pool], list[tuple[list[Unit], int]]]
    matches: bool = False


@guarded
def draw_controls(
    kind: str,
    units: Sequence[Unit],
    *,
    layers: Count,
    width: int | Sequence[int],
    draws: Count,
    seed: Seed = 0,
    exclude: Collection[Unit] = (),
    match: Float[Tensor, "layer number"] | None = None,
) -> list[list[Unit]]:
    """Different control sets of the same size as ``units``; all there are where there are fewer than ``draws``.

    Args:
        kind: a key of :data:`CONTROLS`.
        units: the set under test, never drawn.
        layers: of the model.
        width: components per layer, the same number for all or one for each; see
            :func:`mechrep.models.units.units_per_layer`.
        draws: sets wanted.
        seed: of the draws.
        exclude: never drawn either: named circuits of the same mechanism.  A random set that holds the partner of the
            set under test has its effect, and hides it.
        match: what matched controls are matched by.

    Returns:
        Sets in the order of the draw, each sorted; the first sets do not depend on ``draws``, except of matched ones.

    Raises:
        InputError: an unknown kind, no components, ones that the model does not have, fewer free ones than needed, or
            nothing to match by.

    Example:
        >>> draw_controls("layer_matched", [(1, 0)], layers=2, width=4, draws=9, exclude=[(1, 3)])
        [[(1, 1)], [(1, 2)]]
    """
    one_of("control", kind, CONTROLS)
    control, own = CONTROLS[kind], sorted(set(units))
    widths = [width] * layers if isinstance(width, int) else list(width)
    if not own or not all(0 <= layer < layers and 0 <= number < widths[layer] for layer, number in own):
        raise InputError(
            f"components {own[:3]} of {layers} layers of {width}", "at least one, of this model", "correct the list"
        )
    taken, every = {*own, *exclude}, [(layer, number) for layer in range(layers) for number in range(widths[layer])]
    free = [unit for unit in every if unit not in taken]
    sizes = None if match is None else match.double().abs().numpy()
    if control.matches and (
        sizes is None or sizes.shape != (layers, max(widths)) or any(np.isnan(sizes[unit]) for unit in every)
    ):
        given = "nothing to match by" if sizes is None else f"a table of {sizes.shape} to match by"
        raise InputError(
            f"control {kind!r} with {given}", f"a number for each of {layers} layers of {width}", "measure this model"
        )
    pool = _Pool(own, free, sizes, draws)
    groups = control.groups(pool)
    for members, number in groups:
        if number > len(members):
            raise InputError(
                f"{len(own)} components for the control {kind!r}",
                f"at most {len(members)} where {number} are needed: the others are under test or excluded",
                "ablate fewer, exclude fewer, or leave this control out",
            )
    generator = np.random.default_rng([seed, crc32(kind.encode()), len(own)])
    possible = math.prod(math.comb(len(members), number) for members, number in groups)
    if possible <= draws:
        every = list(_all_sets(groups))
        return [every[place] for place in generator.permutation(len(every))]
    found: dict[tuple[Unit, ...], None] = {}
    for _ in range(_TRIES * draws):
        found.setdefault(tuple(sorted(control.draw(pool, generator))))
        if len(found) == draws:
            break
    return [list(one) for one in found]


def _all_sets(groups: Sequence[tuple[list[Unit], int]]) -> Iterator[list[Unit]]:
    for parts in product(*(combinations(members, number) for members, number in groups)):
        yield sorted(unit for part in parts for unit in part)


def _by_layer(pool: _Pool) -> list[tuple[list[Unit], int]]:
    layers = sorted({layer for layer, _ in pool.units})
    return [(pool.in_layer(layer), sum(unit[0] == layer for unit in pool.units)) for layer in layers]


def _anywhere(pool: _Pool) -> list[tuple[list[Unit], int]]:
    return [(list(pool.free), len(pool.units))]


def _random(pool: _Pool, generator: np.random.Generator) -> list[Unit]:
    return [pool.free[i] for i in generator.choice(len(pool.free), len(pool.units), replace=False)]


def _layer_matched(pool: _Pool, generator: np.random.Generator) -> list[Unit]:
    return [
        members[i] for members, number in _by_layer(pool) for i in generator.choice(len(members), number, replace=False)
    ]


def _nearest(units: Sequence[Unit], free: Sequence[Unit], pool: _Pool, generator: np.random.Generator) -> list[Unit]:
    """For each component, in random order, one of the nearest free ones in size; each used once."""
    assert pool.sizes is not None
    around = max(_NEIGHBOURS, math.ceil((1.5 * pool.draws) ** (1 / len(pool.units))))  # enough for different sets
    left, chosen = list(free), []
    sizes = np.array([pool.sizes[unit] for unit in left])
    for index in generator.permutation(len(units)):
        distance = np.abs(sizes - pool.sizes[units[index]])
        near = np.argsort(distance, kind="stable")[:around]
        place = int(near[int(generator.integers(len(near)))])
        chosen.append(left.pop(place))
        sizes = np.delete(sizes, place)
    return chosen


def _activation_matched(pool: _Pool, generator: np.random.Generator) -> list[Unit]:
    return [
        unit
        for layer in sorted({layer for layer, _ in pool.units})
        for unit in _nearest([u for u in pool.units if u[0] == layer], pool.in_layer(layer), pool, generator)
    ]


def _bos_matched(pool: _Pool, generator: np.random.Generator) -> list[Unit]:
    return _nearest(pool.units, pool.free, pool, generator)


CONTROLS: Mapping[str, Control] = {
    "random": Control(_random, _anywhere),
    "layer_matched": Control(_layer_matched, _by_layer),
    "activation_matched": Control(_activation_matched, _by_layer, matches=True),
    "bos_matched": Control(_bos_matched, _anywhere, matches=True),
}
