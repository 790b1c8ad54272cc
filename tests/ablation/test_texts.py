"""Texts that studies share: which are searched, and which are tested."""

from __future__ import annotations

import pytest

from mechrep.ablation.texts import find_and_test, with_split
from mechrep.errors import NothingFoundError
from mechrep.text.corpus import Corpus
from mechrep.text.families import loop_families


def looping(*loops: list[int]) -> Corpus:
    rows = [[0, *range(100 + 20 * n, 110 + 20 * n), *loop * 4] for n, loop in enumerate(loops)]
    return Corpus.from_tokens(rows).with_cycles()


@pytest.mark.parametrize("seed", range(8))
def test_a_family_of_loops_stays_on_one_side(seed: int) -> None:
    turned = [[loop[turn:] + loop[:turn] for turn in (0, 1, 2)] for loop in ([5, 6, 7], [8, 9, 4], [3, 2, 1], [20, 21])]
    texts = with_split(looping(*(loop for family in turned for loop in family)), seed=seed)
    find, test = find_and_test(texts)
    sides = [set(loop_families(texts)[i] for i in range(len(texts)) if texts.frame["split"][i] == side)
             for side in ("find", "test")]  # fmt: skip
    assert len(find) + len(test) == len(texts) == 12 and len(find) and len(test)
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 4


def test_one_family_cannot_be_split() -> None:
    with pytest.raises(NothingFoundError, match="families"):
        with_split(looping([5, 6, 7], [6, 7, 5], [7, 5, 6]))


def test_the_published_preset_searches_where_it_tests() -> None:
    texts = with_split(looping([5, 6, 7], [8, 9, 4]), "hiraoka2025")
    find, test = find_and_test(texts)
    assert find.frame["id"].tolist() == test.frame["id"].tolist() == texts.frame["id"].tolist()
