"""The table of effects against plain loops: frames agree with each other, NaN is left out, everything comes back."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, permutation_test

from mechrep.ablation.effects import Condition, Effects, Measure, example_effects
from mechrep.errors import InputError
from mechrep.provenance import Provenance
from mechrep.stats import (
    cluster_intervals,
    expanded_tail,
    least_sign_flip_p,
    proportion_interval,
    sign_flip_p_values,
)


def made_up(seed: int = 0) -> Effects:
    """Two measures (one of them yes or no, in families), two ablations, two kinds of control; some numbers missing."""
    generator = np.random.default_rng(seed)
    conditions = [Condition()]
    for name, k in (("a", 1), ("b", 3)):
        conditions.append(Condition(name, "ablation", k, "zero"))
        conditions += [
            Condition(name, kind, k, "zero", seed=d) for kind in ("random", "layer_matched") for d in range(4)
        ]
    values = torch.full((2, len(conditions), 9), torch.nan, dtype=torch.float64)
    values[0] = torch.from_numpy(generator.normal(2, 1, (len(conditions), 9)))
    values[1, :, :6] = torch.from_numpy(generator.integers(0, 2, (len(conditions), 6)).astype(float))
    values[0, 4, 2] = torch.nan
    units = [[f"t{i}" for i in range(9)], [f"u{i}" for i in range(6)]]
    clusters = [units[0], ["x", "x", "y", "y", "z", "z"]]
    measures = [Measure("loss"), Measure("loops", "share", trials=1)]
    return Effects(Provenance({"name": "m"}, {"texts": 9}, {}), conditions, measures, units, clusters, values)


def test_tables_are_those_of_plain_loops() -> None:
    effects = made_up()
    frame, units = effects.to_frame(), effects.unit_frame()
    for place, measure in enumerate(effects.measures):
        for number, condition in enumerate(effects.conditions):
            values = effects.values[place, number, : len(effects.units[place])].numpy()
            base = effects.values[place, 0, : len(effects.units[place])].numpy()
            mine = frame[(frame["measure"] == measure.name) & (frame["name"] == condition.name)]
            row = mine[(mine["selection"] == condition.selection) & (mine["seed"] == condition.seed)].iloc[0]
            assert row["value"] == pytest.approx(np.nanmean(values))
            assert row["effect"] == pytest.approx(np.nanmean(values - base))
            assert row["texts"] == (~np.isnan(values - base)).sum()
            own = units[(units["measure"] == measure.name) & (units["name"] == condition.name)]
            own = own[(own["selection"] == condition.selection) & (own["seed"] == condition.seed)]
            np.testing.assert_allclose(own["value"], values[~np.isnan(values)])
    wide = effects.wide()
    assert wide["loops"].tolist() == np.nansum(effects.of("loops"), 1).astype(int).tolist()
    np.testing.assert_allclose(wide["loss"], np.nanmean(effects.of("loss"), 1))
    assert frame[frame["measure"] == "loops"]["n"].unique().tolist() == [3], "families, not texts, are independent"


def test_the_summary_stands_beside_the_range_of_its_own_draws() -> None:
    effects = made_up()
    frame, summary = effects.to_frame(), effects.summary().set_index(["measure", "name"])
    for (measure, name), row in summary.iterrows():
        drawn = frame[(frame["measure"] == measure) & (frame["name"] == name)]
        drawn = drawn[~drawn["selection"].isin(["ablation", "baseline"])]["effect"]
        assert (row["control_low"], row["control_high"]) == pytest.approx((drawn.min(), drawn.max()))
        assert row["m"] == 4 and row["controls"] == "random, layer_matched"
        assert row["value"] == pytest.approx(row["baseline"] + row["effect"])


def test_peers_are_each_others_controls() -> None:
    """Texts are asked whether a peer does more than the middle one: ranks among all come once each, whatever is so."""
    values = torch.tensor([[[0.0], [1.0], [3.0], [2.0], [-0.5]]]).double().repeat(1, 1, 7)
    conditions = [Condition(), *(Condition(name, "ablation", 1) for name in "abcd")]
    ids = [[str(i) for i in range(7)]]
    effects = Effects(Provenance({}, {}, {}), conditions, [Measure("loss")], ids, ids, values, {"peers": "other heads"})
    table, most = effects.summary().set_index("name"), 2 / 2**7  # the middle is 1.5
    assert table["p"].to_dict() == pytest.approx({"a": 1.0, "b": most, "c": most, "d": most})
    assert table["m"].tolist() == [3] * 4 and [one.name for one in effects.top(2)] == ["b", "c"]
    assert table["controls"].tolist() == ["other heads"] * 4 and table.loc["a", "control_high"] == 3


def test_peers_of_another_size_or_operation_are_no_controls() -> None:
    values = torch.randn(1, 7, 8, generator=torch.Generator().manual_seed(0)).double()
    facts = [("a", 1, "zero"), ("b", 1, "zero"), ("c", 2, "zero"), ("d", 1, "mean"), ("e", 1, "mean")]
    conditions = [Condition(), *(Condition(name, "ablation", k, op) for name, k, op in facts)]
    conditions.append(Condition("a", "ablation", 1, "zero", model="other"))
    ids = [[str(i) for i in range(8)]]
    effects = Effects(Provenance({}, {}, {}), conditions, [Measure("loss")], ids, ids, values, {"peers": "others"})
    assert effects.summary()["m"].tolist() == [1, 1, 0, 1, 1, 0] and effects.summary()["p"].isna().sum() == 2


@settings(max_examples=8)
@given(st.integers(0, 10**6), st.floats(-5, 5))
def test_what_is_added_to_a_unit_everywhere_changes_no_effect(seed: int, constant: float) -> None:
    effects = made_up(seed)
    moved = replace(effects, values=effects.values + constant * torch.tensor([1.0, 0.0])[:, None, None])
    columns = ["effect", "low", "high", "p"]
    one, other = (table.summary()[columns].to_numpy(float) for table in (effects, moved))
    np.testing.assert_allclose(one, other, atol=1e-9, equal_nan=True)


def test_the_order_of_draws_and_units_means_nothing() -> None:
    effects = made_up()
    order = [0, 1, *range(9, 1, -1), *range(10, 19)]
    flipped = torch.full_like(effects.values, torch.nan)
    flipped[0], flipped[1, :, :6] = effects.values[0][order].flip(-1), effects.values[1][order][:, :6].flip(-1)
    units, clusters = ([ids[::-1] for ids in both] for both in (effects.units, effects.clusters))
    conditions = [effects.conditions[i] for i in order]
    other = replace(effects, conditions=conditions, values=flipped, units=units, clusters=clusters)
    columns = ["effect", "m", "p", "control_low", "control_high"]
    pd.testing.assert_frame_equal(effects.summary()[columns], other.summary()[columns])


@settings(max_examples=8)
@given(st.integers(0, 10**6), st.floats(0.1, 100), st.sampled_from([-1, 1]))
def test_other_units_of_measure_scale_everything_but_p(seed: int, factor: float, sign: int) -> None:
    one, other = made_up(seed).summary(), replace(made_up(seed), values=sign * factor * made_up(seed).values).summary()
    one, other = (table[table["measure"] == "loss"] for table in (one, other))
    ends = ["low", "high"] if sign > 0 else ["high", "low"]
    np.testing.assert_allclose(other["effect"], sign * factor * one["effect"])
    np.testing.assert_allclose(other[["low", "high"]].to_numpy(), sign * factor * one[ends].to_numpy())
    assert other["p"].tolist() == one["p"].tolist() and other["p_units"].tolist() == one["p_units"].tolist()


def test_intervals_are_those_of_scipys_bootstrap_of_clusters_further_out() -> None:
    values = np.random.default_rng(1).normal(size=24)
    clusters = np.repeat(np.arange(8), 3)
    sums = np.array([values[clusters == one].sum() for one in range(8)])
    theirs = bootstrap(
        (sums, np.full(8, 3.0)), lambda s, n, axis=-1: s.sum(axis) / n.sum(axis), paired=True, method="percentile",
        n_resamples=40_000, confidence_level=1 - 2 * expanded_tail(8), rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    ours = cluster_intervals(values[None], clusters, draws=40_000)[0]
    np.testing.assert_allclose(ours, theirs, atol=0.02)
    copied = np.repeat(values[::3], 3)[None]
    by_family, by_text = (np.ptp(cluster_intervals(copied, ids)) for ids in (clusters, np.arange(24)))
    assert by_family > 1.3 * by_text
    assert np.isnan(cluster_intervals(np.array([[1.0, 1.0]]), ["a", "a"])).all()
    assert np.isnan(cluster_intervals(np.full((1, 3), np.nan), list("abc"))).all()
    rows = np.stack([values, values, np.r_[np.full(3, np.nan), values[3:]]])
    together, alone = cluster_intervals(rows, clusters), cluster_intervals(rows[2:, 3:], clusters[3:])
    assert (together[0] == together[1]).all() and np.allclose(together[2], alone[0])


@pytest.mark.parametrize("n", [6, 12, 40])
def test_intervals_cover_a_mean_of_few_units_as_often_as_they_say(n: int) -> None:
    rows = np.random.default_rng(n).normal(3.0, 2.0, (2000, n))
    ends = cluster_intervals(rows, np.arange(n))
    assert 0.92 <= ((ends[:, 0] <= 3) & (ends[:, 1] >= 3)).mean() <= 0.97


@pytest.mark.parametrize("sizes", [[1] * 7, [1] * 18, [3, 1, 1, 2, 5, 1, 1], [9, 1, 1, 1, 1, 1, 1, 1, 2, 2]])
def test_p_of_no_effect_is_that_of_scipys_changed_signs(sizes: list[int]) -> None:
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.random.default_rng(0).normal(0.4, 1.0, (6, len(clusters)))
    ours = sign_flip_p_values(rows, clusters)
    for p, row in zip(ours, rows, strict=True):
        sums = np.array([row[clusters == one].sum() for one in range(len(sizes))])
        theirs = permutation_test((sums,), np.sum, permutation_type="samples", n_resamples=9999, rng=1)
        exact = 2.0 ** len(sizes) <= 9999
        assert p == pytest.approx(theirs.pvalue, abs=1e-9 if exact else 0.03)


@given(st.integers(1, 16), st.integers(0, 10**6))
def test_texts_that_all_agree_give_the_least_p_and_texts_without_effect_none(n: int, seed: int) -> None:
    values = np.random.default_rng(seed).uniform(0.1, 2.0, n)
    rows = np.stack([values, -values, 0 * values])
    least, same, none = sign_flip_p_values(rows, np.arange(n))
    assert least == same == pytest.approx(least_sign_flip_p(n), abs=3e-4) and none == 1
    assert np.isnan(sign_flip_p_values(np.full((1, n), np.nan), np.arange(n))).all()


def test_one_large_family_cannot_speak_for_all() -> None:
    """It is most of the mean; whatever its size, its sign is one coin."""
    clusters = np.repeat(np.arange(8), [30, *[1] * 7])
    families = np.random.default_rng(0).normal(size=(400, 8))
    assert (sign_flip_p_values(families[:, clusters], clusters) <= 0.05).mean() <= 0.07
    assert (sign_flip_p_values(families[:, clusters], np.arange(37)) <= 0.05).mean() > 0.3


def test_shares_of_single_texts_have_wilsons_interval() -> None:
    effects = replace(made_up(), clusters=made_up().units)
    row = effects.to_frame().query("measure == 'loops' and selection == 'ablation' and name == 'a'").iloc[0]
    assert (row["value_low"], row["value_high"]) == pytest.approx(proportion_interval(int(6 * row["value"] + 0.5), 6))


def test_it_is_saved_whole_selected_and_refused(tmp_path: Path) -> None:
    effects = made_up()
    effects.save(tmp_path / "kept")
    loaded = Effects.load(tmp_path / "kept")
    assert list(loaded.conditions) == list(effects.conditions) and list(loaded.measures) == list(effects.measures)
    pd.testing.assert_frame_equal(loaded.summary(), effects.summary())
    effects.to_parquet(tmp_path / "values.parquet")
    assert len(pd.read_parquet(tmp_path / "values.parquet")) == len(effects.unit_frame())
    only = effects.select(keep=[1], measures=["loops"])
    assert [one.selection for one in only.conditions] == ["baseline", "ablation"] and only.values.shape[:2] == (1, 2)
    with pytest.raises(InputError, match="nosuch"):
        effects.select(measures=["nosuch"])
    with pytest.raises(InputError, match="one of"):
        effects.of("nosuch")
    with pytest.raises(InputError, match="the baseline"):
        replace(effects, conditions=effects.conditions[1:], values=effects.values[:, 1:])
    with pytest.raises(InputError, match="a unit of"):
        Measure("x", "furlongs")


def test_conditions_that_were_not_measured_are_missing_everywhere() -> None:
    effects = made_up()
    values = effects.values.clone()
    values[:, 5:10] = torch.nan
    fewer = replace(effects, values=values)
    frame, wide, draws = fewer.to_frame(), fewer.wide(), fewer.draws()
    assert wide["loops"].isna().tolist() == wide["loss"].isna().tolist() == [5 <= i < 10 for i in range(19)]
    assert frame["value"].isna().sum() == 2 * 5 and (frame.loc[frame["value"].isna(), "n"] == 0).all()
    assert len(fewer.unit_frame()) == len(effects.unit_frame()) - 5 * (9 + 6)
    assert draws.query("name == 'a' and control == 'random'")["m"].tolist() == [3, 3]
    assert set(fewer.summary().query("name == 'a'")["controls"]) == {"random"}


def test_the_ranking_is_by_size_of_effect_and_what_is_missing_comes_last() -> None:
    values = torch.zeros(1, 5, 6).double()
    values[0, 1:] = torch.tensor([0.1, -3.0, torch.nan, 2.0])[:, None]
    conditions = [Condition(), *(Condition(name, "ablation", 1) for name in "abcd")]
    ids = [[str(i) for i in range(6)]]
    effects = Effects(Provenance({}, {}, {}), conditions, [Measure("loss")], ids, ids, values)
    assert effects.ranking() == [2, 4, 1, 3] and [one.name for one in effects.top(2)] == ["b", "d"]
    with pytest.raises(InputError, match="k = 5"):
        effects.top(5)
    only = effects.select(keep=[2, 4])
    assert [one.name for one in only.conditions[1:]] == ["b", "d"] and only.top(1)[0].name == "b"
    np.testing.assert_array_equal(only.effect_of(), effects.effect_of()[[0, 2, 4]])


def test_repetitions_of_a_loop_are_told_apart() -> None:
    effects = made_up()
    both = [Measure("loss", copy=0), Measure("loss", copy=1)]
    copies = replace(effects, measures=both)
    assert (copies.number("loss", 0), copies.number("loss", 1), copies.number()) == (0, 1, 1)
    np.testing.assert_array_equal(copies.of("loss", 1), effects.of("loops"))
    summary = copies.summary()
    assert summary["copy"].tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(summary["effect"], effects.summary()["effect"])
    assert list(copies.wide().columns[-2:]) == ["loss 0", "loss 1"]
    with pytest.raises(InputError, match="copy 2"):
        copies.number("loss", 2)


def test_a_large_table_is_summed_up_in_two_seconds() -> None:
    n, conditions = 60, [Condition()]
    for number in range(40):
        conditions.append(Condition(f"set {number}", "ablation", 3, "zero"))
        for kind in ("random", "layer_matched"):
            conditions += [Condition(f"set {number}", kind, 3, "zero", seed=draw) for draw in range(99)]
    values = torch.randn(8, len(conditions), n, generator=torch.Generator().manual_seed(0)).double()
    ids = [[f"t{i}" for i in range(n)]] * 8
    measures = [Measure(f"measure {number}") for number in range(8)]
    effects = Effects(Provenance({}, {}, {}), conditions, measures, ids, ids, values)
    example_effects().summary()  # SciPy is loaded
    begun = time.process_time()
    assert len(effects.summary()) == 8 * 40
    assert time.process_time() - begun < 2


def test_figures_hold_every_draw_and_every_effect_once() -> None:
    effects = made_up()
    figure: Any = effects.plot()
    traces = [trace for trace in figure.data if trace.mode == "markers"]
    xs = sorted(x for trace in traces for x in np.asarray(trace.x, dtype=float))
    frame = effects.to_frame().query("selection != 'baseline'")
    scale = frame["unit"].map({"nats": 1.0, "share": 100.0})
    np.testing.assert_allclose(xs, np.sort(frame["effect"] * scale))
    own, row = traces[-1], effects.summary().iloc[-1]
    assert own.x[-1] + own.error_x.array[-1] == pytest.approx(100 * row["high"])
    assert own.x[-1] - own.error_x.arrayminus[-1] == pytest.approx(100 * row["low"])
    assert own.customdata[-1].tolist() == row[["p", "m", "n"]].tolist()
    with pytest.raises(InputError, match="x='time'"):
        effects.curve("time")


def test_curves_go_through_every_size() -> None:
    values = torch.arange(5.0).double()[None, :, None].repeat(1, 1, 6)
    conditions = [Condition(), *(Condition("set", "ablation", k, "zero") for k in (1, 2, 4))]
    conditions.append(Condition("set", "random", 4, "zero"))
    ids = [[str(i) for i in range(6)]]
    effects = Effects(Provenance({"name": "m"}, {}, {}), conditions, [Measure("loss")], ids, ids, values)
    figure: Any = effects.curve()
    lines = {trace.name: trace for trace in figure.data if trace.mode == "lines+markers"}
    (own,) = [trace for name, trace in lines.items() if name.startswith("set") and "random" not in name]
    assert list(own.x) == [1, 2, 4] and list(own.y) == [1.0, 2.0, 3.0]
