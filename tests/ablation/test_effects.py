"""The table of effects against plain loops: frames agree with each other, NaN is left out, everything comes back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from mechrep.ablation.effects import Condition, Effects, Measure, example_effects
from mechrep.errors import InputError
from mechrep.provenance import Provenance
from mechrep.stats import cluster_intervals, proportion_interval


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
    values = torch.tensor([[[0.0], [1.0], [3.0], [2.0]]]).double().repeat(1, 1, 7)
    conditions = [Condition(), *(Condition(name, "ablation", 1) for name in "abc")]
    ids = [[str(i) for i in range(7)]]
    effects = Effects(Provenance({}, {}, {}), conditions, [Measure("loss")], ids, ids, values, {"peers": "other heads"})
    assert effects.summary().set_index("name")["p"].to_dict() == pytest.approx({"a": 1.0, "b": 1 / 3, "c": 2 / 3})
    assert effects.summary()["m"].tolist() == [2, 2, 2] and [one.name for one in effects.top(2)] == ["b", "c"]


@settings(max_examples=15)
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


def test_intervals_are_those_of_scipys_bootstrap_of_clusters() -> None:
    values = np.random.default_rng(1).normal(size=24)
    clusters = np.repeat(np.arange(8), 3)
    sums = np.array([values[clusters == one].sum() for one in range(8)])
    theirs = bootstrap(
        (sums, np.full(8, 3.0)), lambda s, n, axis=-1: s.sum(axis) / n.sum(axis), paired=True, method="percentile",
        n_resamples=20_000, rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    ours = cluster_intervals(values[None], clusters, draws=20_000)[0]
    np.testing.assert_allclose(ours, theirs, atol=0.02)
    alone = cluster_intervals(values[None], np.arange(24))[0]
    copied = cluster_intervals(np.repeat(values[::3], 3)[None], clusters)[0]
    assert np.ptp(copied) > 1.3 * np.ptp(cluster_intervals(np.repeat(values[::3], 3)[None], np.arange(24))[0])
    assert np.isnan(cluster_intervals(np.array([[1.0, 1.0]]), ["a", "a"])).all() and np.ptp(alone) > 0


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
    for wrong in ({"measures": ["nosuch"]},):
        with pytest.raises(InputError, match="nosuch"):
            effects.select(**wrong)
    with pytest.raises(InputError, match="one of"):
        effects.of("nosuch")
    with pytest.raises(InputError, match="the baseline"):
        replace(effects, conditions=effects.conditions[1:], values=effects.values[:, 1:])
    with pytest.raises(InputError, match="a unit of"):
        Measure("x", "furlongs")


def test_figures_hold_every_draw_and_every_effect() -> None:
    effects = example_effects(m=30)
    figure: Any = effects.plot()
    xs = np.concatenate([np.asarray(trace.x, dtype=float) for trace in figure.data if trace.mode == "markers"])
    frame = effects.to_frame()
    for value in frame[frame["selection"] != "baseline"]["effect"]:
        assert np.isclose(xs, value).any()
    with pytest.raises(InputError, match="x='time'"):
        effects.curve("time")
