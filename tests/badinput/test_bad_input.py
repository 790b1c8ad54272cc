"""Every wrong call gives one clear error of mechrep's own, which names what is wrong; and nothing right is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import mechrep
from mechrep.errors import InputError, MechrepError
from tests.badinput import signatures
from tests.badinput.catalogue import CASES, Case
from tests.badinput.world import World

FUNCTIONS = signatures.once_each()
GUARDED = {name: function for name, function in FUNCTIONS.items() if signatures.is_guarded(function)}


def complaint(case: Case, world: World) -> str:
    """What is wrong with the answer; nothing if it is the one that is asked for."""
    try:
        made = case.call(world)
    except case.error as error:
        said = f"{error.given} | {error.expected} | {error.remedy}"
        return "" if case.word in said else f"no {case.word!r} in: {said}"
    except MechrepError as error:
        return f"{type(error).__name__} in place of {case.error.__name__}: {error}"
    return f"accepted: {made!r:.200}"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_wrong_call_is_refused_by_the_stated_error(case: Case, world: World) -> None:
    assert not complaint(case, world)


def wrong_answers(name: str, function: Callable[..., Any], world: World) -> tuple[int, list[str]]:
    """Number of wrong arguments of a function, and those that were not refused by their names."""
    found, tried = [], 0
    for parameter, value in signatures.wrong_arguments(function):
        tried += 1
        try:
            signatures.call_with(world, name, function, parameter, value)
        except InputError as error:
            if parameter in error.given:
                continue
            found.append(f"{parameter}={value!r:.40}: {error}")
        else:
            found.append(f"{parameter}={value!r:.40} was accepted")
    return tried, found


@pytest.mark.parametrize("name", GUARDED)
def test_an_argument_of_a_wrong_kind_or_out_of_bounds_is_refused_by_its_name(name: str, world: World) -> None:
    tried, found = wrong_answers(name, GUARDED[name], world)
    assert not found, f"{len(found)} of {tried}"


def test_every_public_function_is_asked() -> None:
    asked = {case.who for case in CASES} | set(GUARDED)
    assert len(FUNCTIONS) > 100
    assert not sorted(set(FUNCTIONS) - asked), "public, and in neither the catalogue nor checked by its signature"
    known = set(signatures.public()) | {name for one in signatures.results() for name in (one.__name__, *_methods(one))}
    assert not sorted({case.who for case in CASES} - known), "in the catalogue, and not there"


def _methods(kind: type) -> list[str]:
    return [f"{kind.__name__}.{name}" for name in dir(kind)]


@pytest.mark.parametrize(
    "call",
    [
        lambda w, n: mechrep.Decoding(temperature=np.float32(0.5), top_k=n(5), seed=n(3)),
        lambda w, n: mechrep.Run(seed=n(3), batch_size=n(2), progress=np.bool_(False)),
        lambda w, n: mechrep.generate(w.model, "The sea", max_new_tokens=n(2), progress=False),
        lambda w, n: mechrep.Neurons([(n(0), n(1))]),
        lambda w, n: mechrep.SinkPatch(n(0), [n(1)]),
        lambda w, n: w.corpus.row(n(1)),
        lambda w, n: w.corpus.select([n(1)]),
        lambda w, n: w.neurons.top(n(3)),
        lambda w, n: w.cache.get("z", layers=[n(1)], texts=[n(0)]),
        lambda w, n: w.anatomy.check_layer(n(3)),
        lambda w, n: mechrep.Circuit("a", heads=[(n(1), n(0))]),
        lambda w, n: mechrep.AttentionSinks(np.float64(0.3), keys=n(8)),
        lambda w, n: mechrep.detect_cycle(np.array([n(1), n(2), n(1)])),
        lambda w, n: mechrep.score_heads(w.model, n=n(5), sequences=n(1), seed=n(2)),
        lambda w, n: mechrep.RepeatNorms(np.array([0.5, 0.25])),
    ],
)
@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8], ids=["int64", "int32", "uint8"])
def test_numbers_of_numpy_count_as_pythons(call: Callable[..., Any], kind: type, world: World) -> None:
    call(world, kind)


def test_what_is_given_as_numpy_arrives_as_python() -> None:
    made = mechrep.Decoding(seed=np.int64(3), temperature=np.float32(0.5), suppress=np.arange(2))  # type: ignore[arg-type]
    assert [type(one) for one in (made.seed, made.temperature)] == [int, float]
    assert made.suppress == [0, 1]


def test_an_iterator_is_read_once_and_stays_whole(world: World) -> None:
    heads = ((layer, head) for layer, head in [(0, 0), (1, 1)])
    assert mechrep.Heads(heads).units == ((0, 0), (1, 1))
    written = mechrep.generate(world.model, (text for text in ["The sea", "A king"]), max_new_tokens=1, progress=False)
    assert len(written) == 2
    cut = mechrep.generate(world.model, "The sea", max_new_tokens=1, suppress=(n for n in [5, 6]), progress=False)
    assert len(cut) == 1


def test_weights_that_are_written_past_torch_are_seen_by_what_is_kept(world: World) -> None:
    """``parameter.data`` has no count of its writes; every result has a fingerprint of all bytes."""
    model = mechrep.load_model(world.fresh())
    model.plain.get_parameter("model.layers.0.mlp.up_proj.weight").data.view(-1)[0] = torch.nan
    with pytest.raises(mechrep.errors.ModelError, match=r"up_proj.*not finite"):
        mechrep.CorpusCache(model, world.foreign, progress=False).run(mechrep.SinkNorms())


@pytest.mark.slow
def test_the_figures(world: World, trust: Callable[..., None]) -> None:
    right = sum(not complaint(case, world) for case in CASES)
    counts = [wrong_answers(name, function, world) for name, function in GUARDED.items()]
    tried, failed = sum(count for count, _ in counts), sum(len(found) for _, found in counts)
    trust(
        section="bad input",
        what="wrong calls of the Python interface that give the stated error",
        asked="200 or more, all",
        measured=f"{right} of {len(CASES)}",
        holds=right == len(CASES) >= 200,
    )
    trust(
        section="bad input",
        what=f"wrong kinds and bounds of single arguments of {len(GUARDED)} functions, refused by name",
        asked="all",
        measured=f"{tried - failed:,} of {tried:,}",
        holds=not failed,
    )
    assert right == len(CASES) and not failed
