"""``HeadScores`` on attention made by hand: closed forms, and an oracle that goes from query to query."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from mechrep.cache import Batch
from mechrep.errors import InputError, NothingFoundError
from mechrep.measures.head_scores import HeadScores
from mechrep.measures.head_targets import Loops
from tests.analyzers.by_hand import anatomy
from tests.measures.heads_by_hand import (
    BOS,
    NAMES,
    Rules,
    Text,
    as_corpus,
    induction_key,
    mixed_texts,
    observed,
    one_head,
    oracle,
    random_pattern,
    repeated,
    result_of,
    text,
    two_heads,
)
from tests.unchecked import as_users_call

N = 50
R = list(range(3, 3 + N))
IDS = repeated(R)


def score(made: Text, name: str, **options: object) -> float:
    return result_of([made], **options).of(name)[0, 0].item()


# -- closed forms ------------------------------------------------------------------------------------------------------


def test_perfect_heads_score_one_and_nothing_else() -> None:
    looks = {
        "induction": induction_key(IDS),
        "duplicate_token": lambda i: i - N if i > N else 0,
        "previous_token": lambda i: max(i - 1, 0),
        "current_token": lambda i: i,
        "first_token": lambda i: 0,
    }
    for name, looks_at in looks.items():
        result = result_of([text(IDS, looks_at)])
        assert result.of(name)[0, 0].item() == 1.0 and result.adjusted[NAMES.index(name), 0, 0] == 1.0
        others = {other: result.of(other)[0, 0].item() for other in NAMES if other != name}
        expected = dict.fromkeys(others, 0.0)
        if name in ("induction", "duplicate_token"):
            expected["first_token"] = 0.5  # rests on BOS in the first copy
        if name == "previous_token":
            expected["first_token"] = 0.01  # BOS is the only key before position 1
        assert others == pytest.approx(expected, abs=1e-7), name
        assert abs(result.unexplained[0, 0].item()) < 1e-6


def test_uniform_attention_is_chance_and_bos_only_is_zero_and_never_nan() -> None:
    uniform = result_of([text(IDS, lambda i: range(i + 1))])
    chance = sum(1 / (i + 1) for i in range(N + 1, 2 * N + 1)) / N
    assert round(chance, 6) == 0.013569
    assert uniform.chance[:2].tolist() == pytest.approx([chance, chance], abs=1e-7)
    harmonic = sum(1 / k for k in range(1, len(IDS) + 1))
    assert uniform.chance[4].item() == pytest.approx((harmonic - 1) / (len(IDS) - 1), abs=1e-7)
    torch.testing.assert_close(uniform.scores, uniform.chance[:, None, None].expand(5, 1, 2))
    assert uniform.adjusted.abs().max() < 1e-7
    bos = result_of([text(IDS, lambda i: 0)])
    assert bos.scores[:4].tolist() == [[[0.0, 0.0]]] * 4
    assert bos.without_sink[:4].isnan().all()  # no row has anything left
    assert bos.sink_rows_dropped[:4, 0, 0].tolist() == [N, N, 2 * N - 1, 2 * N]


def test_random_permutations_of_keys_are_at_chance() -> None:
    """In permuted rows a target is as likely to get the weight as any other key before the query."""
    draw = np.random.default_rng(0)
    texts = []
    for _ in range(200):
        pattern = one_head(IDS, induction_key(IDS))
        for i in range(len(IDS)):
            pattern[0, 0, i, : i + 1] = draw.permutation(pattern[0, 0, i, : i + 1])
        texts.append(Text(IDS, two_heads(pattern)))
    result = result_of(texts, batch_size=50)
    for name in ("induction", "duplicate_token"):
        number = NAMES.index(name)
        apart = (result.of(name)[0, 0] - result.chance[number]) / result.standard_errors[number, 0, 0]
        assert abs(apart.item()) < 4


def test_the_two_kinds_of_copy_differ_by_one_key() -> None:
    """What an induction head sees, a self-finding head does not, and the other way round."""
    assert score(text(IDS, induction_key(IDS)), "duplicate_token") == 0.0
    assert score(text(IDS, lambda i: i - N if i > N else 0), "induction") == 0.0


def test_attention_at_bos_is_no_previous_token_and_without_bos_the_first_token_is() -> None:
    previous = [1 / 2, *[1.0] * 8]  # row 1 gives half to position 0
    for bos in (True, False):
        ids = repeated([7, 8, 9, 10, 11], bos=bos)
        made = text(ids, lambda i: (0, 1) if i == 1 else max(i - 1, 0))
        expected = 1.0 if bos else np.mean(previous)
        assert score(made, "previous_token") == pytest.approx(expected, abs=1e-7)
        assert score(made, "previous_token", bos_id=None) == pytest.approx(
            np.mean([0.5, *[1.0] * (len(ids) - 2)]), abs=1e-7
        )


def test_a_bos_that_stands_in_the_text_again_is_no_copy_of_the_first() -> None:
    ids = [BOS, 5, 6, BOS, 5, BOS]
    result = result_of([text(ids, lambda i: range(i + 1))])
    assert result.n_queries["duplicate_token"] == 2  # 5 at 4 and BOS at 5, which has a copy at 3
    assert result_of([text(ids, lambda i: range(i + 1))], bos_id=None).n_queries["duplicate_token"] == 3


# -- the oracle --------------------------------------------------------------------------------------------------------


OPTIONS = [
    {"copies": copies, "form": form, "queries": queries, "average": average}
    for copies, form, queries, average in itertools.product(
        ("all", "newest", "oldest"), ("id", "aligned"), ("all", "after_onset"), ("query", "text")
    )
] + [
    {"queries": "after_onset", "positions": 3},
    {"average": 0.15},
    {"average": 0.3, "queries": "after_onset", "form": "aligned"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_all_numbers_are_those_of_the_oracle(options: dict) -> None:
    texts = mixed_texts(seed=len(str(options)))
    expected = oracle(texts, Rules(**options))
    for batch_size in (3, 100):
        result = result_of(texts, batch_size=batch_size, **options)
        assert list(result.n_queries.values()) == expected.n_queries
        np.testing.assert_allclose(result.scores, expected.scores, atol=1e-6)
        np.testing.assert_allclose(result.standard_errors, expected.standard_errors, atol=1e-6)
        np.testing.assert_allclose(result.chance, expected.chance, atol=1e-6)
        np.testing.assert_allclose(result.without_sink, expected.without_sink, atol=1e-6)
        np.testing.assert_array_equal(result.sink_rows_dropped, expected.dropped)
        if not isinstance(options.get("average"), float):
            np.testing.assert_allclose(result.unexplained, expected.unexplained, atol=1e-6)
    assert min(expected.n_queries) >= 2 and expected.dropped.sum() > 0, "the texts must have something to find"


def test_texts_of_unequal_length_side_by_side_are_single_texts() -> None:
    """One text per batch has no padding; in one batch the padding is full of NaN."""
    texts = mixed_texts(seed=5)
    alone, together = (result_of(texts, batch_size=size) for size in (1, 100))
    for name in ("scores", "standard_errors", "without_sink", "unexplained", "chance"):
        torch.testing.assert_close(getattr(alone, name), getattr(together, name), equal_nan=True)
    assert together.scores.isfinite().all()


def test_merged_halves_are_the_whole_in_any_order() -> None:
    texts = mixed_texts(seed=6, n=9)
    whole = observed(texts).state
    parts = [observed(texts[begin:end], name=f"part-{begin}") for begin, end in ((4, 9), (0, 1), (1, 4))]
    for part in parts[1:]:
        parts[0].merge(part)
    assert whole.keys() == parts[0].state.keys()
    for name, value in whole.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(parts[0].state[name], value)
    with pytest.raises(InputError, match="merge like with like"):
        parts[0].merge(observed(texts, copies="newest"))


def test_half_precision_is_added_up_as_float32() -> None:
    ids = repeated(list(range(3, 33)), copies=8)
    pattern = random_pattern(np.random.default_rng(0), len(ids), layers=1)
    rounded = torch.from_numpy(pattern).bfloat16()
    analyzer = HeadScores(bos_id=BOS)
    reference = observed([Text(ids, rounded.double().numpy())])
    corpus = as_corpus([Text(ids, pattern)])
    analyzer.prepare(anatomy(1, 4), corpus.frame)
    batch = Batch(corpus.tokens, corpus.lengths, (0,), corpus.frame)
    analyzer.observe(rounded, next(iter(analyzer.sites)), 0, batch)
    analyzer.finish_batch(batch)
    torch.testing.assert_close(analyzer.state["sum"], reference.state["sum"], rtol=1e-5, atol=1e-6)


# -- copies, accidents, loops ------------------------------------------------------------------------------------------


def test_in_a_third_copy_newest_and_oldest_make_up_all() -> None:
    ids = repeated(R[:10], copies=3)
    made = [Text(ids, random_pattern(np.random.default_rng(1), len(ids)), (11, 10, 31))]  # onset: the third copy
    found = {copies: result_of(made, copies=copies, queries="after_onset") for copies in ("all", "newest", "oldest")}
    for name in ("induction", "duplicate_token"):
        torch.testing.assert_close(found["all"].of(name), found["newest"].of(name) + found["oldest"].of(name))
        assert (found["newest"].of(name) != found["oldest"].of(name)).all()
    second = [Text(ids[:21], made[0].pattern[:, :, :21, :21])]
    same = [result_of(second, copies=copies).scores[:2] for copies in ("all", "newest", "oldest")]
    assert torch.equal(same[0], same[1]) and torch.equal(same[0], same[2])


def test_accidental_repeats_count_by_id_and_not_in_the_aligned_form() -> None:
    r = [7, 8, 7, 9]  # 7 twice
    ids = repeated(r)
    looks_at_accident = text(ids, lambda i: 2 if i == 3 else 0, (1, 4, 9))  # row 3 holds the second 7; 2 follows 7
    by_id, aligned = (result_of([looks_at_accident], form=form) for form in ("id", "aligned"))
    assert by_id.n_queries["induction"] == 5 and aligned.n_queries["induction"] == 4
    assert by_id.induction[0, 0].item() == pytest.approx(1 / 5) and aligned.induction[0, 0] == 0
    aligned_head = text(ids, lambda i: i - 3 if i > 4 else 0, (1, 4, 9))
    assert result_of([aligned_head], form="aligned").induction[0, 0] == 1


def test_on_a_cycle_of_distinct_tokens_the_forms_agree() -> None:
    draw = np.random.default_rng(2)
    ids = [BOS, *range(30, 36), *[5, 6, 7, 8] * 4]
    made = [Text(ids, random_pattern(draw, len(ids)), (7, 4, len(ids)))]
    for copies in ("all", "newest", "oldest"):
        by_id, aligned = (result_of(made, form=form, copies=copies) for form in ("id", "aligned"))
        torch.testing.assert_close(by_id.scores, aligned.scores)
        torch.testing.assert_close(by_id.without_sink, aligned.without_sink, equal_nan=True)


def test_a_loop_that_ends_has_aligned_targets_up_to_its_end() -> None:
    ids = [BOS, *[5, 6, 7] * 3, 20, 21, 22]
    made = text(ids, lambda i: range(i + 1), (1, 3, 10))
    assert result_of([made], form="aligned").n_queries["induction"] == 6


def test_loops_of_period_1_cannot_be_told_apart_and_say_so() -> None:
    ids = [BOS, 9, 10, *[5] * 6]
    one = text(ids, lambda i: i, (3, 1, 9))
    result = result_of([one])
    assert result.scores[:4].isnan().all() and result.first_token[0, 0] == 0
    assert result.missing == dict.fromkeys(NAMES[:4], "period-1") and result.not_used["period-1"] == 1
    assert result.n_texts == dict(zip(NAMES, [0, 0, 0, 0, 1], strict=True))
    other = text(repeated([5, 6, 7]), induction_key(repeated([5, 6, 7])), (1, 3, 7))
    both = result_of([one, other])
    assert both.induction[0, 0] == 1 and both.missing == {} and both.not_used["period-1"] == 1
    assert both.n_texts["induction"] == 1 and both.n_texts["first_token"] == 2


def test_in_loops_of_period_2_the_newest_induction_target_is_the_previous_token() -> None:
    ids = [BOS, 9, *[5, 6] * 4]
    two = text(ids, lambda i: max(i - 1, 0), (2, 2, 10))
    newest = result_of([two], copies="newest")
    assert newest.induction.isnan().all() and newest.missing == {"induction": "period-2"}
    assert newest.not_used["period-2"] == 1 and newest.duplicate_token[0, 0] == 0 and newest.previous_token[0, 0] == 1
    every = result_of([two])
    assert every.induction[0, 0] == 1 and every.missing == {} and every.not_used["period-2"] == 0


def test_ties_include_the_current_token() -> None:
    """When tok[i] = tok[i-1], the token after the earlier copy is the query itself."""
    made = text([BOS, 5, 5], lambda i: i)
    assert score(made, "induction") == 1.0 and score(made, "duplicate_token") == 0.0


# -- sink --------------------------------------------------------------------------------------------------------------


def test_without_the_sink_a_head_with_one_percent_on_target_is_perfect_and_both_are_told() -> None:
    pattern = 0.01 * one_head(IDS, induction_key(IDS)) + 0.99 * one_head(IDS, lambda i: 0)
    result = result_of([Text(IDS, two_heads(pattern))])
    assert result.induction[0, 0].item() == pytest.approx(0.01, abs=1e-7)
    assert result.without_sink[0, 0, 0].item() == pytest.approx(1.0, abs=1e-6)
    assert result.sink_rows_dropped[0, 0, 0] == 0 and result.unexplained[0, 0].item() == pytest.approx(0, abs=1e-6)
    nearly = pattern.copy()
    nearly[0, :, 60] = 0
    nearly[0, :, 60, [0, 11]] = [[1 - 1e-7], [1e-7]]  # less than 1e-6 is left: rounding error
    dropped = result_of([Text(IDS, two_heads(nearly))])
    assert dropped.sink_rows_dropped[0, 0, 0] == 1
    assert dropped.without_sink[0, 0, 0].item() == pytest.approx(1.0, abs=1e-6)


def test_the_first_token_is_no_target_once_it_is_left_out() -> None:
    ids = repeated([5, 6, 7], bos=False)  # position 3 repeats the first token
    made = text(ids, lambda i: (0, i) if i == 3 else i)
    result = result_of([made])
    assert result.duplicate_token[0, 0].item() == pytest.approx(0.5 / 3)
    assert result.without_sink[1, 0, 0] == 0.0  # positions 4 and 5 only; row 3 has no other target
    assert result.without_sink[4].isnan().all()


# -- presets and refusals ----------------------------------------------------------------------------------------------


def test_hiraoka2025_is_the_mean_per_text_after_the_second_position_and_strictly_above_one_half() -> None:
    r = list(range(3, 13))
    ids = [BOS, 40, 41, *r * 3]
    loop = (3, 10, 33)
    half = text(ids, lambda i: (0, i - 10) if i >= 13 else 0, loop)
    longer = [BOS, 40, 41, *r * 2]
    full = text(longer, lambda i: i - 10 if i >= 13 else 0, (3, 10, 23))
    result = result_of([half], preset="hiraoka2025")
    assert result.duplicate_token[0, 0] == 0.5 and result.above() == []
    both = result_of([half, full], preset="hiraoka2025")
    assert both.duplicate_token[0, 0] == 0.75 and both.above() == [(0, 0), (0, 1)]  # texts weigh the same
    assert both.n_queries["duplicate_token"] == 30
    counted = result_of([half, full], preset="hiraoka2025", average=0.5)
    assert counted.duplicate_token[0, 0] == 0.5  # one of two texts is above
    nowhere = text([BOS, 9, 10, 9, 10], lambda i: 0)
    assert result_of([half, full, nowhere], preset="hiraoka2025").not_used["no onset"] == 1


def test_a_corpus_without_repeats_or_loops_has_nothing_to_find() -> None:
    plain = text([BOS, 5, 6, 7], lambda i: 0)
    with pytest.raises(NothingFoundError, match="1 texts in which no query"):
        result_of([plain])
    with pytest.raises(NothingFoundError, match="none with an onset"):
        result_of([plain], preset="hiraoka2025")
    with pytest.raises(NothingFoundError, match="none with an onset"):
        result_of([plain], form="aligned")
    loops = text(IDS, lambda i: 0, (1, 50, 101))
    assert result_of([plain, loops]).not_used["no repeated token"] == 1


def test_a_loop_outside_its_text_is_refused() -> None:
    with pytest.raises(InputError, match="onset 60"):
        result_of([text(IDS[:40], lambda i: 0, (10, 50, 60))])
    corpus = as_corpus([text(IDS, lambda i: 0)]).with_columns(onset=[51])
    with pytest.raises(InputError, match="loop from -1 and onset 51"):
        Loops.of(Batch(corpus.tokens, corpus.lengths, (0,), corpus.frame))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"preset": "hiraoka2026"}, "preset='hiraoka2026'"),
        ({"copies": "some"}, "copies='some'"),
        ({"form": "text"}, "form='text'"),
        ({"queries": "late"}, "queries='late'"),
        ({"average": "head"}, "average='head'"),
        ({"variants": ["tl"]}, "variant='tl'"),
        ({"positions": 30}, "positions=30, queries='all'"),
        ({"preset": "hiraoka2025", "positions": 0}, "positions=0"),
    ],
)
def test_bad_settings_are_refused(options: dict, match: str) -> None:
    unchecked = as_users_call(HeadScores.__init__)  # as users call it: without the type checker of the tests
    with pytest.raises(InputError, match=match):
        unchecked(object.__new__(HeadScores), bos_id=BOS, **options)
