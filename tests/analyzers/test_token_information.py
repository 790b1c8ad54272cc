"""``TokenInformation``: closed forms, a second implementation in plain loops, padding, and planted heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mechrep.errors import InputError
from mechrep.measures import distance_profile
from mechrep.measures.distance_profile import DistanceProfile
from mechrep.measures.token_facts import GROUPS, TokenFacts
from mechrep.measures.token_information import TokenInformation, TokenInformationResult
from mechrep.models.anatomy import Site
from tests.analyzers.sinks_by_hand import PROVENANCE, anatomy, check_equal, merged, observed

NEWLINE = GROUPS.index("newline")
N_GROUPS = len(GROUPS)


def facts_by_hand(lengths: Sequence[int], seed: int = 0, onset: int = 4) -> TokenFacts:
    """Random classes and information for texts of these lengths; position 1 is always a newline."""
    generator = torch.Generator().manual_seed(seed)
    texts, width = len(lengths), max(lengths)
    position = torch.arange(width)
    real = position < torch.tensor(list(lengths))[:, None]
    classes = torch.randint(0, N_GROUPS - 2, (texts, width), generator=generator)
    classes[:, 1] = NEWLINE
    groups = torch.stack([classes == number for number in range(N_GROUPS - 2)])
    low = torch.rand(2, texts, width, generator=generator) < 0.3
    values = (5 * torch.rand(2, texts, width, generator=generator)).masked_fill(~real | (position == 0), torch.nan)
    queries = real & (position >= onset)
    source = position.expand(texts, width).clone()
    ends, prompt = queries & (position % 3 == 0), real & (position < onset)
    return TokenFacts(torch.cat([groups, low]) & real, values, queries, ends, prompt, source)


def frame_of(texts: int, **columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"id": [f"text-{i}" for i in range(texts)], **columns})


def measured(facts: TokenFacts, *texts: list[Tensor], profile: Any = None, **options: Any) -> TokenInformationResult:
    """One layer whose heads have, text by text, the patterns given."""
    tables = {(Site.PATTERN, 0): [torch.stack(heads) for heads in texts]}
    frame = options.pop("frame", frame_of(len(texts)))
    batch_size = options.pop("batch_size", 100)
    analyzer = TokenInformation(facts, profile, **options)
    sizes = anatomy(1, n_heads=len(texts[0]))
    return observed(analyzer, tables, sizes, batch_size=batch_size, frame=frame).result(PROVENANCE)


def uniform(length: int) -> Tensor:
    return torch.ones(length, length).tril() / torch.arange(1, length + 1)[:, None]


def random_pattern(length: int, seed: int) -> Tensor:
    scores = torch.from_numpy(np.random.default_rng(seed).normal(0, 2, (length, length))).float()
    return scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf).softmax(-1)


@given(st.lists(st.integers(6, 20), min_size=1, max_size=3), st.integers(0, 99), st.sampled_from([None, 0.3, 0.1]))
@settings(max_examples=25)
def test_uniform_attention_has_no_bias(lengths: list[int], seed: int, sink: float | None) -> None:
    facts = facts_by_hand(lengths, seed)
    result = measured(facts, *([uniform(length)] for length in lengths), sink=sink)
    bias = result.bias()[0, 0]
    seen = result.share_vis()[0, 0, :N_GROUPS] > 0
    np.testing.assert_allclose(bias[seen], 1.0, atol=1e-6)
    assert bool(bias[~seen].isnan().all())
    np.testing.assert_allclose(result.share_att()[0, 0], result.share_vis()[0, 0], rtol=1e-6)


def test_a_head_that_reads_newlines_only() -> None:
    facts = facts_by_hand([14, 9], 3)
    newlines = facts.groups[NEWLINE]

    def pattern(text: int, length: int) -> Tensor:
        rows = newlines[text, :length].float().expand(length, -1).tril()
        rows[0, 0] = 1.0
        rows[:, 0] += rows.sum(-1) == 0
        return rows / rows.sum(-1, keepdim=True)

    result = measured(facts, [pattern(0, 14)], [pattern(1, 9)], sink=None)
    share = float(result.share_vis()[0, 0, NEWLINE])
    assert 0 < share < 1
    assert float(result.share_att()[0, 0, NEWLINE]) == pytest.approx(1.0)
    assert float(result.bias()[0, 0, NEWLINE]) == pytest.approx(1 / share)


def test_attention_moved_to_bos_changes_the_sink_and_nothing_else() -> None:
    facts = facts_by_hand([16], 1)
    pattern = random_pattern(16, 5)
    moved = 0.5 * pattern
    moved[:, 0] += 0.5
    result = measured(facts, [pattern, moved], sink=None)
    np.testing.assert_allclose(result.bias()[0, 0], result.bias()[0, 1], rtol=1e-6)
    first = result.sinks()["first_position"]
    assert first[1] == pytest.approx(0.5 + 0.5 * first[0])


def by_loops(
    pattern: Tensor, facts: TokenFacts, text: int, length: int, sink: float | None, weight: Tensor | None = None
) -> dict[str, Any]:
    """The definitions, query by query and key by key."""
    a = pattern.double()
    sinks = {0}
    for j in range(1, length):
        behind = length - 1 - j
        if sink is not None and 2 * behind >= length - 1:
            received = sum(float(a[t, j]) for t in range(j + 1, length)) / max(behind, 1)
            sinks |= {j} if received > sink else set()
    features = [*facts.groups[:, text].double(), *facts.values[:, text].double()]
    sums = {name: np.zeros(len(features)) for name in ("attended", "visible", "matched")}
    counts = {"queries": 0, "dropped": 0, "on_first": 0.0, "on_sinks": 0.0}
    for i in range(length):
        if not facts.queries[text, i]:
            continue
        counts["on_first"] += float(a[i, 0])
        counts["on_sinks"] += sum(float(a[i, j]) for j in sinks - {0} if j <= i)
        keys = [j for j in range(i + 1) if j not in sinks]
        mass = sum(float(a[i, j]) for j in keys)
        if not keys or mass < 1e-6:
            counts["dropped"] += 1
            continue
        counts["queries"] += 1
        for number, feature in enumerate(features):
            sums["attended"][number] += sum(float(a[i, j] * feature[j]) for j in keys) / mass
            sums["visible"][number] += sum(float(feature[j]) for j in keys) / len(keys)
            if weight is not None:
                total = sum(float(weight[i - j]) + 1e-9 for j in keys)
                wanted = sum((float(weight[i - j]) + 1e-9) * float(feature[j]) for j in keys)
                sums["matched"][number] += wanted / total
    return sums | counts


@pytest.mark.parametrize("sink", [None, 0.3, 0.15])
def test_equals_plain_loops_whatever_the_batches(sink: float | None) -> None:
    lengths = [13, 9, 16]
    facts = facts_by_hand(lengths, 7)
    texts = [[random_pattern(length, 10 * text + head) for head in range(2)] for text, length in enumerate(lengths)]
    texts[2][1][:, 2:] *= 0.2  # a head with a sink at position 1
    texts[2][1][:, 1] += (1 - texts[2][1].sum(-1)) * (torch.arange(16) > 0)
    other = {(Site.PATTERN, 0): [torch.stack([random_pattern(20, 91), random_pattern(20, 92)])]}
    profile = observed(DistanceProfile(), other, anatomy(1)).result(PROVENANCE)
    result = measured(facts, *texts, profile=profile, sink=sink)
    for text, length in enumerate(lengths):
        for head in range(2):
            expected = by_loops(texts[text][head], facts, text, length, sink, profile.weights[0, head])
            for name, value in expected.items():
                np.testing.assert_allclose(getattr(result, name)[text, 0, head], value, rtol=1e-6, atol=1e-9)
    if sink is not None:
        assert float(result.on_sinks[2, 0, 1]) > 0
    check_equal(result, measured(facts, *texts, profile=profile, sink=sink, batch_size=1))


def test_two_merged_halves_are_the_whole() -> None:
    lengths = [8, 12, 10]
    facts = facts_by_hand(lengths)
    tables = {(Site.PATTERN, 0): [torch.stack([random_pattern(n, n), random_pattern(n, n + 1)]) for n in lengths]}
    frame, sizes = frame_of(3), anatomy(1)
    whole = observed(TokenInformation(facts), tables, sizes, frame=frame)
    halves = [observed(TokenInformation(facts), tables, sizes, frame=frame, texts=some) for some in ([0, 2], [1])]
    check_equal(whole.result(PROVENANCE), merged(halves).result(PROVENANCE))


def by_distance(length: int, weight: Tensor, first: float = 0.0) -> Tensor:
    """A head that gives ``first`` to position 0, and the rest by distance alone."""
    distance = (torch.arange(length)[:, None] - torch.arange(length)).clamp_min(0)
    pattern = weight[distance].tril()
    pattern[:, 0] = 0.0
    pattern = (1 - first) * pattern / pattern.sum(-1, keepdim=True).clamp_min(1e-30)
    pattern[:, 0] = 1 - pattern[:, 1:].sum(-1)
    return pattern


@pytest.mark.parametrize("first", [0.0, 0.7])
@pytest.mark.parametrize("lengths", [[16], [9, 15, 4]])
def test_the_profile_of_a_head_that_looks_by_distance_is_its_own_weights(lengths: list[int], first: float) -> None:
    """Exact whatever the lengths: uniform heads, near-sighted ones, and one that looks at a single distance."""
    kernels = [torch.ones(20), 0.6 ** torch.arange(20).float(), torch.ones(20) + 5 * (torch.arange(20) == 3)]
    for weight in kernels:
        table = [torch.stack([by_distance(length, weight, first)] * 2) for length in lengths]
        result = observed(DistanceProfile(20), {(Site.PATTERN, 0): table}, anatomy(1), batch_size=2).result(PROVENANCE)
        seen = max(lengths) - 1
        found = result.weights[0, 0, :seen].double()
        np.testing.assert_allclose(found / found[0], weight[:seen] / weight[0], rtol=1e-3)


def test_the_profile_is_the_likeliest_by_distance() -> None:
    """No other weights make what a random head gives more likely."""
    lengths = [7, 11]
    patterns = [random_pattern(length, length) for length in lengths]
    tables = {(Site.PATTERN, 0): [torch.stack([pattern, pattern]) for pattern in patterns]}
    result = observed(DistanceProfile(10), tables, anatomy(1), batch_size=2).result(PROVENANCE)

    def log_likelihood(weight: np.ndarray) -> float:
        return sum(
            float(pattern[i, i - d]) * math.log(weight[min(d, 9)] / sum(weight[min(e, 9)] for e in range(i)))
            for pattern in patterns for i in range(1, len(pattern)) for d in range(i)
        )  # fmt: skip

    best = result.weights[0, 0].double().numpy()
    top, draw = log_likelihood(best), np.random.default_rng(0)
    for size in (0.001, 0.01, 0.1):
        for _ in range(20):
            assert log_likelihood(best * np.exp(size * draw.normal(size=10))) < top
    assert float(result.pairs[9]) == 1


def test_far_distances_stand_together_and_beyond_the_last_nothing_changes() -> None:
    length = 60
    tables = {(Site.PATTERN, 0): [torch.stack([random_pattern(length, 1)] * 2)]}
    result = observed(DistanceProfile(), tables, anatomy(1)).result(PROVENANCE)
    weights = result.weights[0, 0]
    assert len(set(weights[16:19].tolist())) == 1  # 16, 17, 18 are one bin
    total = sum(float(weights[d] * result.pairs[d]) for d in range(length))
    rows = tables[Site.PATTERN, 0][0][0][:, 1:]
    assert total == pytest.approx(float(rows.sum()), rel=1e-5)
    row = result.of_rows(0, torch.tensor([300]), 301)[0, 0]
    assert float(row[0]) == pytest.approx(float(weights[-1]) + 1e-9, rel=1e-5)


@pytest.mark.parametrize(("decay", "off"), [(1.0, 0.02), (0.9, 0.02)])
def test_far_queries_count_together_and_hardly_change_anything(
    decay: float, off: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = decay ** torch.arange(120).float()
    usual = {(Site.PATTERN, 0): [torch.stack([by_distance(120, weight)] * 2)]}

    def profile() -> Tensor:
        found = observed(DistanceProfile(120), usual, anatomy(1)).result(PROVENANCE).weights[0, 0]
        return found / found[0]

    apart = profile()
    monkeypatch.setattr(distance_profile, "_ROWS", 40)
    monkeypatch.setattr(distance_profile, "_TOGETHER", 8)
    torch.testing.assert_close(profile(), apart, rtol=off, atol=0)


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_a_head_that_looks_by_distance_has_no_matched_bias(decay: float) -> None:
    """Its plain bias is large where the tokens near by are of one class, and nothing is left of it when matched.

    The profile is that of longer text, in which queries can look farther.
    """
    length, weight = 15, decay ** torch.arange(60).float()
    facts, pattern = facts_by_hand([length], 2), by_distance(15, weight)
    usual = {(Site.PATTERN, 0): [torch.stack([by_distance(60 if decay == 1 else 25, weight)] * 2)]}
    profile = observed(DistanceProfile(60), usual, anatomy(1)).result(PROVENANCE)
    result = measured(facts, [pattern, pattern], profile=profile, sink=None)
    seen = result.share_vis()[0, 0, :N_GROUPS] > 0
    np.testing.assert_allclose(result.bias(matched=True)[0, 0][seen], 1.0, rtol=1e-3)
    apart = float((result.bias()[0, 0][seen] - 1).abs().max())
    assert apart > 0.2 if decay < 1 else apart < 1e-6


def test_the_published_way_votes_by_argmax_against_the_prompt() -> None:
    lengths = [13, 10]
    facts = facts_by_hand(lengths, 4)
    texts = [[random_pattern(length, 3 * text + head) for head in range(2)] for text, length in enumerate(lengths)]
    result = measured(facts, *texts, preset="mahaut2025")
    for head in range(2):
        votes, make_up, n = np.zeros(N_GROUPS), np.zeros(N_GROUPS), 0
        for text in range(2):
            ends = np.flatnonzero(facts.ends[text])
            for i in ends:
                best = int(texts[text][head][i].argmax())
                votes += facts.groups[:, text, best].numpy()
            shares = facts.groups[:, text][:, facts.prompt[text]].double().mean(1).numpy()
            make_up, n = make_up + len(ends) * shares, n + len(ends)
        np.testing.assert_allclose(result.share_att()[0, head, :N_GROUPS], votes / n)
        np.testing.assert_allclose(result.share_vis()[0, head, :N_GROUPS], make_up / n)


def planted_texts(texts: int, strength: float) -> tuple[TokenFacts, list[list[Tensor]]]:
    """Attention that is ``exp(strength)`` times larger on newlines, with noise of its own in every text."""
    length = 24
    facts = facts_by_hand([length] * texts, 11)
    patterns = []
    for text in range(texts):
        scores = torch.from_numpy(np.random.default_rng(text).normal(0, 0.5, (length, length))).float()
        scores += strength * facts.groups[NEWLINE, text].float()
        patterns.append([scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf).softmax(-1)])
    return facts, patterns


def test_intervals_hold_a_planted_preference_and_nothing_for_none() -> None:
    for strength, least in ((1.5, 1.0), (0.0, 0.0)):
        facts, patterns = planted_texts(30, strength)
        result = measured(facts, *patterns, sink=None)
        row = result.summary().set_index("group").loc["newline"]
        assert row["low"] <= row["bias"] <= row["high"]
        assert (row["low"] > 1.5) if least else (row["low"] <= 1.05 and row["high"] >= 0.95)


def test_conditions_are_told_apart_and_swapped_labels_turn_the_sign() -> None:
    (facts, strong), (_, weak) = planted_texts(30, 1.5), planted_texts(30, 0.0)
    patterns = [*strong[:15], *weak[15:]]
    prompts = [f"p{i % 15}" for i in range(30)]
    names = ["natural"] * 15 + ["induced"] * 15
    result = measured(facts, *patterns, sink=None, frame=frame_of(30, condition=names, prompt=prompts))
    row = result.compare("natural", "induced").set_index("group").loc["newline"]
    assert row["low"] > 0.5
    other = result.compare("induced", "natural").set_index("group").loc["newline"]
    assert other["log2_ratio"] == pytest.approx(-row["log2_ratio"])
    mixed = ["natural" if i % 2 else "induced" for i in range(15)] + [
        "induced" if i % 2 else "natural" for i in range(15)
    ]
    swapped = measured(facts, *patterns, sink=None, frame=frame_of(30, condition=mixed, prompt=prompts))
    null = swapped.compare("natural", "induced").set_index("group").loc["newline"]
    assert null["low"] < 0 < null["high"]
    assert set(result.to_frame()["text_kind"]) == {"natural", "induced"}
    assert result.top(1, "newline") == [(0, 0)]


def test_tables_agree_with_the_ratios() -> None:
    facts, patterns = planted_texts(6, 1.0)
    result = measured(facts, *patterns)
    frame = result.to_frame(draws=50).set_index("group")
    np.testing.assert_allclose(frame.loc[list(GROUPS), "bias"], result.bias()[0, 0], equal_nan=True)
    difference = result.share_att() - result.share_vis()
    np.testing.assert_allclose(frame.loc["surprisal", "bias"], difference[0, 0, N_GROUPS])
    assert frame["bias_matched"].isna().all()
    assert (frame["bias_low"].dropna() <= frame["bias_high"].dropna()).all()


def test_saving_and_bad_input(tmp_path: Any) -> None:
    facts, patterns = planted_texts(2, 1.0)
    result = measured(facts, *patterns)
    result.save(tmp_path / "result")
    check_equal(result, TokenInformationResult.load(tmp_path / "result"))
    with pytest.raises(InputError, match="preset"):
        TokenInformation(facts, preset="mahaut2024")
    with pytest.raises(InputError, match="facts of 2 texts"):
        TokenInformation(facts).prepare(anatomy(1), frame_of(3))
    with pytest.raises(InputError, match="kind"):
        result.bias("natural")
    silent = TokenFacts(
        facts.groups, facts.values, torch.zeros_like(facts.queries), facts.ends, facts.prompt, facts.source
    )
    with pytest.raises(InputError, match="query"):
        measured(silent, *patterns)
    assert not math.isnan(float(result.on_first.sum()))
