"""Online detectors: equal to the offline ones on every prefix, and to the published rules written out plainly."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechrep.errors import InputError
from mechrep.text import NgramTripleWatch, TailWatch, detect_cycle, ngram_triple, tail_cycle, watch_for


@st.composite
def restless_texts(draw: st.DrawFn) -> list[int]:
    """Loops that begin, change and are left again."""
    text: list[int] = []
    for _ in range(draw(st.integers(1, 3))):
        text += draw(st.lists(st.integers(0, 3), max_size=4))
        text += tiled(draw(st.lists(st.integers(0, 2), min_size=1, max_size=7)), draw(st.integers(0, 40)))
    return text


def tiled(block: list[int], span: int) -> list[int]:
    return (block * (span // len(block) + 1))[:span]


def plain_triple(x: list[int], n: int = 10, r: int = 100, k: int = 3) -> tuple[int, int, int] | None:
    """The rule as the paper states it: look back from every n-gram into its window."""
    for i in range(len(x) - n + 1):
        window = range(max(0, i + n - r), i + 1)
        starts = [j for j in window if x[j : j + n] == x[i : i + n]]
        if len(starts) >= k and starts[1] - starts[0] == starts[2] - starts[1]:
            return starts[0], starts[1], starts[2]
    return None


def released_triple(x: list[int], n: int = 10, r: int = 100, k: int = 3) -> tuple[int, int, int] | None:
    """The released search: joined strings, substrings without boundaries, overlaps allowed."""
    for i in range(len(x) - n + 1):
        first = max(0, i + n - r)
        window = " ".join(map(str, x[first : i + n]))
        ngram = " ".join(map(str, x[i : i + n]))
        places = [m.start() for m in re.finditer(f"(?={re.escape(ngram)})", window)]
        starts = [first + window[:place].count(" ") for place in places]
        if len(starts) >= k and starts[1] - starts[0] == starts[2] - starts[1]:
            return starts[0], starts[1], starts[2]
    return None


def places(cycle) -> tuple[int, int, int] | None:
    return None if cycle is None else (cycle.start, cycle.onset, cycle.onset + cycle.period)


# --- the n-gram triple -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(restless_texts(), st.sampled_from([(10, 100, 3), (3, 12, 3), (2, 9, 4), (1, 6, 3), (4, 4, 3)]))
def test_ngram_watch_is_the_offline_rule_on_every_prefix(x: list[int], numbers: tuple[int, int, int]) -> None:
    n, r, k = numbers
    watch = NgramTripleWatch(n=n, r=r, k=k)
    for t, token in enumerate(x):
        fired = watch.push(token)
        offline = ngram_triple(x[: t + 1], n=n, r=r, k=k)
        assert fired == (offline is not None)
        assert watch.cycle == offline
        assert places(watch.cycle) == plain_triple(x[: t + 1], n, r, k)


def test_ngram_triple_is_the_paper_on_random_periodic_texts() -> None:
    rng = random.Random(0)
    for _ in range(250):
        block = [rng.randrange(10, 10 + rng.choice([2, 50])) for _ in range(rng.randint(1, 50))]
        head = [rng.randrange(10, 60) for _ in range(rng.randint(0, 20))]
        x = head + tiled(block, rng.randint(0, 150))
        # All ids have two digits, so that the released form cannot match inside one.
        assert places(ngram_triple(x)) == plain_triple(x) == released_triple(x)


def test_the_released_form_matches_inside_an_id_and_ours_does_not() -> None:
    copy = [12, 3, 4, 5, 6, 7, 8, 9, 10]
    x = [90, 91, 93, *copy, 45, 1, 2, *copy, 46, 1, 2, *copy, 4, 1, 2]
    assert released_triple(x) == (3, 15, 27)
    assert ngram_triple(x) is None


@pytest.mark.parametrize(("p", "expected"), [(44, (20, 64, 108)), (45, (20, 65, 110)), (46, None)])
def test_periods_above_45_are_invisible(p: int, expected: tuple[int, int, int] | None) -> None:
    x = [*range(1000, 1020), *tiled(list(range(p)), 191)]
    assert places(ngram_triple(x)) == expected


@pytest.mark.parametrize("p", [1, 3, 20, 45])
def test_fires_at_n_plus_two_periods_and_not_one_id_earlier(p: int) -> None:
    watch = NgramTripleWatch(range(1000, 1007))
    fired = [watch.push(token) for token in tiled(list(range(p)), 2 * p + 12)]
    assert fired == [False] * (2 * p + 9) + [True] * 3
    assert watch.cycle is not None
    assert (watch.cycle.start, watch.cycle.period, watch.cycle.end) == (7, p, 7 + 2 * p + 10)


def test_templates_with_other_fillers_are_accepted() -> None:
    g = list(range(10, 20))
    x = [1, 1, 1, *g, 2, 3, 4, *g, 5, 6, 7, *g]
    assert places(ngram_triple(x)) == (3, 16, 29)


def test_ngram_watch_forgets_what_left_the_window() -> None:
    rng = random.Random(0)
    watch = NgramTripleWatch([rng.randrange(1000) for _ in range(2000)])
    assert sum(map(len, watch._places.values())) == 100 - 10 + 1


# --- the certain tail ------------------------------------------------------------------------------------------


def certain(x: list[int]):
    return tail_cycle(x, min_copies=4, min_span=32)


@settings(deadline=None, max_examples=60)
@given(restless_texts())
def test_tail_watch_is_the_offline_rule_on_every_prefix(x: list[int]) -> None:
    watch = TailWatch()
    for t, token in enumerate(x):
        offline = certain(x[: t + 1])
        assert watch.push(token) == (offline is not None)
        assert watch.cycle == offline


@pytest.mark.parametrize("p", [1, 7, 8, 9, 60, 150])
def test_tail_watch_fires_after_four_copies_of_any_period(p: int) -> None:
    head = list(range(1000, 1045))
    watch = TailWatch(head)
    loop = tiled(list(range(p)), max(4 * p, 32) + 5)
    fired = [watch.push(token) for token in loop]
    assert fired.index(True) == max(4 * p, 32) - 1
    assert all(fired[fired.index(True) :])
    assert watch.cycle == certain(head + loop)
    assert watch.cycle is not None
    assert (watch.cycle.start, watch.cycle.period) == (45, p)


def test_tail_watch_takes_back_what_the_text_takes_back() -> None:
    watch = TailWatch([4] * 40)
    assert watch.cycle is not None
    assert not watch.push(5)
    assert watch.cycle is None


# --- both ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("watch_type", [NgramTripleWatch, TailWatch])
def test_ids_to_begin_with_are_as_if_pushed(watch_type: type) -> None:
    x = [9, 8, *tiled([1, 2, 3], 40)]
    pushed = watch_type()
    for token in np.array(x):
        pushed.push(token)
    assert watch_type(x).cycle == pushed.cycle
    assert pushed.cycle is not None


def test_watch_for_names_the_watch_of_a_preset() -> None:
    assert watch_for("hiraoka2025") is NgramTripleWatch
    assert watch_for("mechrep") is TailWatch
    with pytest.raises(InputError, match=r"preset='mahaut2025'.*hiraoka2025"):
        watch_for("mahaut2025")


def test_the_watch_of_hiraoka2025_finds_the_cycle_of_the_preset() -> None:
    x = [9, 8, *tiled([1, 2, 3], 40)]
    assert watch_for("hiraoka2025")(x).cycle == detect_cycle(x, "hiraoka2025")


@pytest.mark.parametrize("numbers", [{"n": 0}, {"n": 11, "r": 10}, {"k": 2}])
def test_numbers_that_make_no_sense_are_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(InputError, match="k >= 3"):
        NgramTripleWatch(**numbers)
