"""Families of loops against all pairs of texts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mechrep.text.corpus import Corpus
from mechrep.text.families import loop_families

CYCLES = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=12), min_size=1, max_size=7)


def corpus_of(cycles: list[list[int]]) -> Corpus:
    rows = [[0, *cycle * 3] for cycle in cycles]
    return Corpus.from_tokens(rows).with_columns(start=[1] * len(rows), onset=[1 + len(cycle) for cycle in cycles])


def grams(cycle: list[int]) -> set[tuple[int, ...]]:
    ring = cycle * 12
    return {tuple(ring[place : place + 6]) for place in range(len(cycle))}


@given(CYCLES)
def test_families_are_the_closure_of_sharing_half(cycles: list[list[int]]) -> None:
    sets, n = [grams(cycle) for cycle in cycles], len(cycles)
    near = [[len(a & b) >= 0.5 * min(len(a), len(b)) for b in sets] for a in sets]
    for through in range(n):  # Warshall's closure
        for i in range(n):
            for j in range(n):
                near[i][j] |= near[i][through] and near[through][j]
    found = loop_families(corpus_of(cycles))
    assert [[a == b for b in found] for a in found] == near


@given(st.lists(st.integers(1, 9), min_size=1, max_size=15), st.integers(0, 14))
def test_rotations_are_one_family(cycle: list[int], turn: int) -> None:
    turned = cycle[turn % len(cycle) :] + cycle[: turn % len(cycle)]
    assert len(set(loop_families(corpus_of([cycle, turned])))) == 1


def test_texts_without_a_loop_are_alone_and_splits_keep_families_together() -> None:
    assert loop_families(Corpus.from_tokens([[0, 1], [0, 1]])) == ["tokens-0", "tokens-1"]
    corpus = corpus_of([[i, i + 1, i + 2] for i in (1, 11, 21, 31) for _ in range(5)])
    families = loop_families(corpus)
    for seed in range(5):
        find, test = corpus.split(0.75, seed, clusters=families)
        names = dict(zip(corpus.frame["id"], families, strict=True))
        assert not {names[i] for i in find.frame["id"]} & {names[i] for i in test.frame["id"]}
        assert (len(find), len(test)) == (15, 5)
